"""Sizes that are symbols: plans and thin functions for any batch, height and width."""

import jax
from jax import export, lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models
from slim_jax.export import stablehlo

pytestmark = pytest.mark.usefixtures('x64')

C = 8
RNG = np.random.default_rng(0)
VARIABLES = {
  'norm': {'scale': RNG.normal(size=C) + 2, 'bias': RNG.normal(size=C)},
  'first': RNG.normal(size=(3, 3, 3, C)),
  'next': RNG.normal(size=(3, 3, C, C)),
  'depthwise': RNG.normal(size=(3, 3, 1, C)),
  'out': RNG.normal(size=(C, 2)),
}
DEAD = {**dict.fromkeys(VARIABLES), 'norm': {'scale': np.arange(C) % 3 == 0, 'bias': None}}


def conv(x, kernel, *, strides=(1, 1), padding='SAME', **options):
  dims = ('NHWC', 'HWIO', 'NHWC')
  return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dims, **options)


def tokens(h):
  return h.reshape(h.shape[0], -1, C)


def attention(t):
  weights = jax.nn.softmax(jnp.einsum('bqc,bkc->bqk', t, t))
  return jnp.einsum('bqk,bkc->bqc', weights, t)


def normalised(g, axes):
  centred = g - g.mean(axes, keepdims=True)
  return centred / jnp.sqrt(jnp.square(centred).mean(axes, keepdims=True) + 1e-5)


def in_groups(h):
  return normalised(h.reshape(*h.shape[:3], 2, C // 2), (1, 2, 4)).reshape(h.shape)


def windows(h):
  b, height, width, _ = h.shape
  w = h.reshape(b, height // 2, 2, width // 2, 2, C).transpose(0, 1, 3, 2, 4, 5)
  return jnp.tanh(w).transpose(0, 1, 3, 2, 4, 5).reshape(h.shape)


def rows(h):
  return jnp.arange(h.shape[1])[None, :, None, None]


# Between two layers: of activations [b, h, w, C] and the variables.
OPERATIONS = {
  'nothing': lambda h, v: h,
  'mean': lambda h, v: h.mean((1, 2)),
  'squeeze and excite': lambda h, v: h * jax.nn.sigmoid(h.mean((1, 2), keepdims=True)),
  'conv': lambda h, v: jax.nn.relu(conv(h, v['next'])),
  'conv, strided': lambda h, v: conv(h, v['next'], strides=(2, 2)),
  'conv, valid': lambda h, v: conv(h, v['next'], padding='VALID'),
  'conv, depthwise': lambda h, v: conv(h, v['depthwise'], feature_group_count=C),
  'conv, dilated': lambda h, v: conv(h, v['next'], padding=((1, 2), (1, 2)), lhs_dilation=(2, 2)),
  'max-pooling': lambda h, v: lax.reduce_window(
    h, -np.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID'
  ),
  'mean-pooling': lambda h, v: lax.reduce_window(
    h, 0.0, lax.add, (1, 3, 3, 1), (1, 1, 1, 1), 'SAME'
  ),
  'tokens': lambda h, v: tokens(h),
  'rows of a matrix': lambda h, v: h.reshape(-1, C),
  'heads': lambda h, v: jnp.tanh(tokens(h).reshape(h.shape[0], -1, 2, C // 2)).reshape(h.shape),
  'attention': lambda h, v: attention(tokens(h)),
  'channels first': lambda h, v: jnp.tanh(h.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1),
  'concatenate channels': lambda h, v: jnp.concatenate([h, h * 2], -1)[..., :C],
  'concatenate rows': lambda h, v: jnp.concatenate([h, h * 2], 1),
  'class token': lambda h, v: jnp.concatenate([h.mean((1, 2))[:, None], tokens(h)], 1),
  'pad': lambda h, v: jnp.pad(h, ((0, 0), (1, 1), (2, 0), (0, 0))),
  'pad with ones': lambda h, v: jnp.pad(h, ((0, 0), (1, 1), (2, 0), (0, 0)), constant_values=1.0),
  'pad with the edge': lambda h, v: jnp.pad(h, ((0, 0), (1, 1), (2, 0), (0, 0)), mode='edge'),
  'slice': lambda h, v: h[:, 1:-1],
  'slice with steps': lambda h, v: h[:, ::2],
  'first row': lambda h, v: h[:, 0],
  'last row': lambda h, v: h[:, -1],
  'flip': lambda h, v: h[:, ::-1],
  'roll': lambda h, v: jnp.roll(h, 1, 1),
  'repeat': lambda h, v: jnp.repeat(h, 2, 1),
  'tile': lambda h, v: jnp.tile(h, (1, 2, 1, 1)),
  'resize': lambda h, v: jax.image.resize(
    h, (h.shape[0], h.shape[1] * 2, h.shape[2] * 2, C), 'bilinear'
  ),
  'cumsum': lambda h, v: jnp.cumsum(h, axis=1),
  'sort': lambda h, v: jnp.sort(h, 1),
  'argmax': lambda h, v: h * (jnp.argmax(h, 1, keepdims=True) + 1),
  'max': lambda h, v: h.max(1),
  'position': lambda h, v: h * rows(h),
  'mask by length': lambda h, v: jnp.where(rows(h) < h.shape[1] // 2, h, 0),
  'scan over rows': lambda h, v: lax.scan(
    lambda c, x: (jnp.tanh(c + x), c), h[:, 0], jnp.moveaxis(h, 1, 0)
  )[0],
  'stack': lambda h, v: jnp.stack([h, 2 * h], 1).sum(1),
  'split': lambda h, v: jnp.concatenate(jnp.split(h, 2, -1)[::-1], -1),
  'layer norm': lambda h, v: normalised(h, -1),
  'batch norm': lambda h, v: normalised(h, (0, 1, 2)),
  'group norm': lambda h, v: in_groups(h),
  'dynamic slice': lambda h, v: lax.dynamic_slice_in_dim(h, 1, 2, 1),
  'dynamic index': lambda h, v: lax.dynamic_index_in_dim(h, jnp.int32(h.sum() > 0), 1),
  'dynamic update': lambda h, v: lax.dynamic_update_slice_in_dim(h, h[:, :1] * 2, 1, 1),
  'take channels': lambda h, v: h[..., np.array([1, 0, 2, 3, 5, 4, 7, 6])],
  'set': lambda h, v: h.at[:, 0].set(1.0),
  'cond': lambda h, v: lax.cond(h.sum() > 0, lambda h: h * 2, lambda h: h * 3, h),
  'loop': lambda h, v: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c), h),
  'checkpoint': lambda h, v: jax.checkpoint(lambda h: jnp.sin(jnp.sin(h)))(h),
  'gelu': lambda h, v: jax.nn.gelu(h),
  'one hot': lambda h, v: h * jax.nn.one_hot(h.argmax(1), h.shape[1], axis=1, dtype=h.dtype),
  'vmap': lambda h, v: jax.vmap(lambda x: x - x.mean())(h),
  'dropout': lambda h, v: h * jax.random.bernoulli(jax.random.key(0), 0.5, h.shape),
  'windows': lambda h, v: windows(h),
}


def network(names):
  def f(variables, x):
    norm = variables['norm']
    h = conv(x, variables['first']) * norm['scale'][None, None, None]
    h = jax.nn.relu(h + norm['bias'][None, None, None])
    results = [OPERATIONS[name](h, variables) for name in names]
    return [jnp.tensordot(r, variables['out'], (r.ndim - 1, 0)) for r in results]

  return f


def any_size(*last, dtype=np.float64):
  even = ['mod(h, 2) == 0', 'mod(w, 2) == 0', 'h >= 4', 'w >= 4']
  return jax.ShapeDtypeStruct((*export.symbolic_shape('b, h, w', constraints=even), *last), dtype)


def shapes(plan):
  return {path: cut.thin_shape for path, cut in plan.cuts.items()}


def test_plans_for_any_size_are_those_of_one_size():
  for name in OPERATIONS:
    f = network([name])
    one = slim_jax.plan(f, VARIABLES, np.ones((1, 8, 8, 3)), dead=DEAD)
    plan = slim_jax.plan(f, VARIABLES, any_size(3), dead=DEAD)
    for path, cut in one.cuts.items():
      for here, there in zip(cut.indices, plan.cuts[path].indices, strict=True):
        np.testing.assert_array_equal(here, there, f'{name}: {path}')


@pytest.mark.parametrize('step', [5, pytest.param(1, marks=pytest.mark.slow)])
def test_one_export_runs_for_all_sizes(step):
  names = list(OPERATIONS)[::step]
  f = network(names)
  plan = slim_jax.plan(f, VARIABLES, any_size(3), dead=DEAD)
  thin, variables = slim_jax.thin(f, plan), plan.slice(VARIABLES)
  exported = export.export(jax.jit(lambda x: thin(variables, x)))(any_size(3))
  masked = slim_jax.mask(VARIABLES, DEAD)
  full = jax.jit(lambda x: f(masked, x))
  for size in ((1, 4, 6, 3), (2, 8, 4, 3)):
    x = RNG.normal(size=size)
    for name, a, b in zip(names, exported.call(x), full(x), strict=True):
      np.testing.assert_allclose(a, b, 1e-10, 1e-10, err_msg=name)


def test_an_index_that_may_be_out_of_bounds_keeps_its_channels():
  """`jnp.take` reads NaN there, which a network without some rows would show."""

  def f(variables, x):
    h = conv(x, variables['first']) * variables['norm']['scale'][None, None, None]
    h = jax.nn.relu(h + variables['norm']['bias'][None, None, None])
    return jnp.take(h, jnp.array([0, 5]), 1) @ variables['out']

  plan = slim_jax.plan(f, VARIABLES, any_size(3), dead=DEAD)
  thin, variables = slim_jax.thin(f, plan), plan.slice(VARIABLES)
  exported = export.export(jax.jit(lambda x: thin(variables, x)))(any_size(3))
  x = RNG.normal(size=(1, 4, 4, 3))
  np.testing.assert_allclose(exported.call(x), f(slim_jax.mask(VARIABLES, DEAD), x), 1e-10, 1e-10)


@pytest.mark.parametrize('name', ['resnet18', 'densenet'])
def test_networks_of_the_package(name):
  """The plan for any size is that of one size, and the thin network can be exported."""
  options = {'depth': 13} if name == 'densenet' else {}
  net = models.create(name, num_classes=10, **options)

  def f(variables, x):
    return net.apply(variables, x, train=False)

  one = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  variables = jax.eval_shape(lambda key, x: net.init(key, x, train=False), jax.random.key(0), one)
  scales = slim_jax.batch_norm_scales(variables)
  dead = jax.tree.map(
    lambda leaf, is_scale: np.arange(leaf.size) % 2 == 0 if is_scale else None, variables, scales
  )
  here = slim_jax.plan(f, variables, one, dead=dead)
  x = any_size(3, dtype=np.float32)
  plan = slim_jax.plan(f, variables, x, dead=dead)
  assert shapes(plan) == shapes(here) and plan.unknown == ()
  thin = slim_jax.thin(f, plan)
  exported = export.export(jax.jit(thin))(plan.slice(variables), x)
  assert exported.out_avals[0].shape == (x.shape[0], 10)


def test_a_file_for_images_of_any_size():
  f = network(['nothing', 'max-pooling', 'conv', 'mean'])
  plan = slim_jax.plan(f, VARIABLES, any_size(3), dead=DEAD)
  thin, variables = slim_jax.thin(f, plan), plan.slice(VARIABLES)
  content = stablehlo.convert(
    lambda image: thin(variables, image)[-1],
    ('height', 'width', 3),
    constraints=('height >= 4', 'width >= 4'),
    dtype='float64',
  )
  loaded = export.deserialize(bytearray(content))
  for size in ((1, 4, 5, 3), (2, 7, 4, 3)):
    x = RNG.normal(size=size)
    expected = f(slim_jax.mask(VARIABLES, DEAD), x)[-1]
    np.testing.assert_allclose(loaded.call(x), expected, 1e-10, 1e-10)
