"""Operations that `for_cpu` replaces give the same numbers and gradients, for any window."""

import functools

from flax import linen as nn
from helpers import laws, zoo
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import jaxprs
from slim_jax.cpu import parts, winograd

NHWC, NCHW = ('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW')
# Size of the image, of the kernel, strides, padding, dilation.
WINDOWS = {
  'same': ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
  'one_pixel': ((1, 1), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
  'strided': ((2, 3), (5, 4), (2, 3), ((2, 2), (1, 3)), (1, 1)),
  'dilated': ((4, 2), (3, 3), (1, 1), ((3, 2), (2, 2)), (3, 2)),
  'far_padding': ((2, 2), (3, 3), (2, 1), ((5, 4), (0, 6)), (1, 1)),
  'cropped': ((5, 5), (3, 7), (1, 1), ((-1, 1), (3, 3)), (1, 1)),
  'pointwise': ((5, 4), (1, 1), (2, 1), ((0, 0), (0, 0)), (1, 1)),
}
# Windows for which at most the gradient of the kernel is computed in another way.
LARGE = {
  'same': ((16, 17), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1)),
  'strided': ((33, 32), (4, 3), (2, 1), ((2, 1), (0, 0)), (1, 1)),
  'cropped': ((20, 20), (3, 3), (1, 1), ((-1, 1), (0, 1)), (1, 1)),
  'more_padding': ((16, 16), (3, 2), (1, 1), ((2, 1), (0, 3)), (1, 1)),
}

SMALL = ((5, 4), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))


def convolution(x, kernel, *, window, layout, groups=1):
  _, _, strides, padding, dilation = window
  return lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    rhs_dilation=dilation,
    dimension_numbers=layout,
    feature_group_count=groups,
  )


def operands(window, layout, channels, outputs, groups, dtype=jnp.float64):
  size, kernel, *_ = window
  keys = jax.random.split(jax.random.key(0))
  x = jax.random.normal(keys[0], (2, *size, channels), dtype)
  k = jax.random.normal(keys[1], (*kernel, channels // groups, outputs), dtype)
  if layout is NCHW:
    x, k = x.transpose(0, 3, 1, 2), k.transpose(3, 2, 0, 1)
  return x, k


def primitives_of(f, *args):
  return {str(eqn.primitive) for eqn in jaxprs.trace(f, *args)[0].equations}


def assert_alike(f, fast, *args, slope=None, tolerance=1e-12):
  """Checks that two functions have the same results and gradients up to rounding."""
  want, back = jax.vjp(f, *args)
  got, fast_back = jax.vjp(fast, *args)
  assert got.dtype == want.dtype
  np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)
  slope = want if slope is None else slope
  for a, b in zip(fast_back(slope), back(slope), strict=True):
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=10 * tolerance)


each_layout = pytest.mark.parametrize(
  'layout', [pytest.param(NHWC, id='NHWC'), pytest.param(NCHW, id='NCHW', marks=pytest.mark.slow)]
)


@each_layout
@pytest.mark.parametrize('groups', [1, 6], ids=['dense', 'depthwise'])
@pytest.mark.parametrize('name', WINDOWS)
def test_taps_compute_the_convolution_and_its_gradients(name, groups, layout, x64):
  window = WINDOWS[name]
  x, k = operands(window, layout, 6, 12, groups)
  f = functools.partial(convolution, window=window, layout=layout, groups=groups)
  fast = slim_jax.for_cpu(f)
  assert 'conv_general_dilated' not in primitives_of(fast, x, k)
  assert_alike(f, fast, x, k)


@each_layout
@pytest.mark.parametrize('outputs', [4, 2], ids=['wide', 'narrow'])
@pytest.mark.parametrize('name', LARGE)
def test_gradients_of_kernels_over_large_images(name, outputs, layout, x64):
  window = LARGE[name]
  x, k = operands(window, layout, 6, outputs, 1)
  x = jnp.concatenate([x, 2 * x, 3 * x])  # six images: two or three at a time
  f = functools.partial(convolution, window=window, layout=layout)
  fast = slim_jax.for_cpu(f)
  want = f(x, k)
  np.testing.assert_array_equal(fast(x, k), want)
  by_columns = outputs == 2 and name != 'strided'
  assert by_columns == ('scan' in primitives_of(lambda x, k: jax.vjp(fast, x, k)[1](want), x, k))
  assert_alike(f, fast, x, k, tolerance=1e-11)


@pytest.fixture
def few_tiles(monkeypatch):
  """Small convolutions use Winograd's algorithm too, in parts of two images of up to 36 tiles."""
  monkeypatch.setattr(winograd, '_CHANNELS', 8)
  monkeypatch.setattr(winograd, '_TILES', 18)
  monkeypatch.setattr(parts, '_ROWS', 288)
  monkeypatch.setattr(parts, 'all_cores', lambda: 1)


@each_layout
@pytest.mark.parametrize(
  'size, padding',
  [
    ((6, 4), ((1, 1), (1, 1))),
    ((12, 12), ((1, 1), (1, 1))),
    ((6, 8), ((0, 0), (0, 0))),
    ((8, 8), ((2, 0), (3, 1))),
    ((8, 10), ((-1, 1), (4, -2))),
  ],
  ids=str,
)
def test_winograd_and_its_gradients(size, padding, layout, few_tiles, x64):
  window = (size, (3, 3), (1, 1), padding, (1, 1))
  x, k = operands(window, layout, 8, 12, 1)
  x = jnp.concatenate([x, 2 * x, 3 * x])
  f = functools.partial(convolution, window=window, layout=layout)
  fast = slim_jax.for_cpu(f)
  (eqn,) = jaxprs.trace(f, x, k)[0].equations
  assert winograd.is_faster(eqn)
  count, _ = parts.number((6, *size, 8))
  assert (count > 1) == (size == (12, 12))
  assert_alike(f, fast, x, k, tolerance=1e-11)


@pytest.mark.parametrize(
  'change',
  [
    {'channels': 7},
    {'outputs': 7},
    {'size': (7, 8)},
    {'size': (2, 8)},
    {'batch': 1},
    {'kernel': (3, 5)},
    {'strides': (2, 1)},
    {'padding': ((1, 1), (0, 1))},
    {'dilation': (1, 2)},
    {'dtype': jnp.bfloat16},
    {'precision': 'highest'},
  ],
  ids=str,
)
def test_where_winograd_does_not_help(change, few_tiles):
  shape = {
    'channels': 8,
    'outputs': 8,
    'size': (8, 8),
    'batch': 2,
    'kernel': (3, 3),
    'strides': (1, 1),
    'padding': ((1, 1), (1, 1)),
    'dilation': (1, 1),
    'dtype': jnp.float32,
    'precision': None,
  }

  def is_faster(change):
    of = {**shape, **change}
    x = jnp.zeros((of['batch'], *of['size'], of['channels']), of['dtype'])
    k = jnp.zeros((*of['kernel'], of['channels'], of['outputs']), of['dtype'])
    (eqn,) = jaxprs.trace(
      lambda x, k: lax.conv_general_dilated(
        x,
        k,
        of['strides'],
        of['padding'],
        rhs_dilation=of['dilation'],
        dimension_numbers=NHWC,
        precision=of['precision'],
      ),
      x,
      k,
    )[0].equations
    return winograd.is_faster(eqn)

  assert is_faster({}) and not is_faster(change)


@each_layout
@pytest.mark.parametrize(
  'window',
  [LARGE['same'], LARGE['cropped'], LARGE['more_padding'], SMALL],
  ids=['same', 'cropped', 'more_padding', 'small'],
)
def test_few_outputs_are_sums_of_shifted_products(window, layout, x64):
  x, k = operands(window, layout, 24, 3, 1)
  f = functools.partial(convolution, window=window, layout=layout)
  fast = slim_jax.for_cpu(f)
  assert 'conv_general_dilated' not in primitives_of(fast, x, k)
  assert_alike(f, fast, x, k, tolerance=1e-11)


@pytest.mark.parametrize(
  'window, strides, padding',
  [
    ((2, 2), (2, 2), 'VALID'),
    ((2, 3), (2, 3), 'VALID'),
    ((7, 9), (7, 9), 'VALID'),
    ((2, 2), (1, 2), 'VALID'),
    ((2, 2), (2, 2), 'SAME'),
  ],
)
@pytest.mark.parametrize('size', [(8, 9), (7, 9), (1, 9)])
def test_average_pooling(window, strides, padding, size, x64):
  x = jax.random.normal(jax.random.key(0), (2, *size, 3))
  f = functools.partial(nn.avg_pool, window_shape=window, strides=strides, padding=padding)
  fast = slim_jax.for_cpu(f)
  assert_alike(f, fast, x, tolerance=1e-13)
  is_tiled = window == strides and padding == 'VALID' and all(n <= m for n, m in zip(window, size))
  assert is_tiled == ('reduce_window_sum' not in primitives_of(fast, x))


@pytest.mark.parametrize('padding', ['VALID', 'SAME', ((2, 0), (1, 2))], ids=str)
@pytest.mark.parametrize(
  'window, strides',
  [((2, 2), (2, 2)), ((3, 3), (2, 2)), ((3, 2), (1, 3)), ((5, 5), (1, 1)), ((2, 1), (2, 2))],
)
def test_max_pooling_and_its_gradient(window, strides, padding, x64):
  x = jax.random.normal(jax.random.key(0), (2, 7, 8, 3))
  x = jnp.round(2 * jax.nn.relu(x))  # many maxima are shared: the first gets the slope
  f = functools.partial(nn.max_pool, window_shape=window, strides=strides, padding=padding)
  fast = slim_jax.for_cpu(f)
  want = f(x)
  np.testing.assert_array_equal(fast(x), want)
  slope = jax.random.normal(jax.random.key(1), want.shape)
  assert_alike(f, fast, x, slope=slope, tolerance=1e-13)
  with_gradient = primitives_of(lambda x: jax.vjp(fast, x)[1](slope), x)
  assert not any('select_and' in name for name in with_gradient)


def test_maxima_of_dilated_windows_stay():
  def f(x):
    return lax.reduce_window(
      x, -jnp.inf, lax.max, (1, 3, 1), (1, 1, 1), 'VALID', window_dilation=(1, 2, 1)
    )

  assert 'reduce_window_max' in primitives_of(slim_jax.for_cpu(f), jnp.ones((2, 8, 3)))


@pytest.mark.parametrize(
  'how',
  [{'mode': 'promise_in_bounds'}, {'mode': 'fill'}, {'mode': 'fill', 'fill_value': 0}],
  ids=str,
)
def test_channels_are_selected_one_by_one(how, x64):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  index = jnp.array([4, 0, 3] if how['mode'] == 'promise_in_bounds' else [4, 7, 0, 5, 3])

  def f(x, index):
    return x.at[..., index].get(**how)

  fast = slim_jax.for_cpu(f)
  (gather,) = [
    eqn
    for eqn in jaxprs.trace(fast, x, index)[0].equations
    if str(eqn.primitive) in ('gather', 'custom_vjp_call')
  ]
  assert str(gather.primitive) == 'custom_vjp_call'
  want, back = jax.vjp(f, x, index)
  got, fast_back = jax.vjp(fast, x, index)
  np.testing.assert_array_equal(got, want)
  np.testing.assert_array_equal(fast_back(want)[0], back(want)[0])
  both = jnp.stack([index, index[::-1]])
  np.testing.assert_array_equal(jax.vmap(fast, (None, 0))(x, both), jax.vmap(f, (None, 0))(x, both))


@pytest.mark.parametrize('groups', [1, 16], ids=['dense', 'depthwise'])
def test_sums_of_half_precision_are_held_in_single(groups):
  window = ((2, 2), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
  x, k = operands(window, NHWC, 16, 16, groups, jnp.bfloat16)
  f = functools.partial(convolution, window=window, layout=NHWC, groups=groups)
  got, want = slim_jax.for_cpu(f)(x, k), f(x.astype(jnp.float32), k.astype(jnp.float32))
  assert got.dtype == jnp.bfloat16
  np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))


def test_other_convolutions_and_functions_stay():
  window = ((8, 8), (3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1))
  for groups in (1, 2):
    x, k = operands(window, NHWC, 6, 6, groups, jnp.float32)
    f = functools.partial(convolution, window=window, layout=NHWC, groups=groups)
    assert 'conv_general_dilated' in primitives_of(slim_jax.for_cpu(f), x, k)
  assert primitives_of(slim_jax.for_cpu(jnp.sin), 1.0) == {'sin'}


def test_on_other_backends_nothing_changes(monkeypatch):
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  window = WINDOWS['same']
  x, k = operands(window, NHWC, 6, 6, 6, jnp.float32)
  f = functools.partial(convolution, window=window, layout=NHWC, groups=6)
  assert 'conv_general_dilated' in primitives_of(slim_jax.for_cpu(f), x, k)


def test_a_thin_network_and_its_gradients_stay_the_same(x64):
  model = zoo.build(zoo.case('inverted_residual'), jnp.float64)
  dead = laws.random_dead(model.variables, 0.5)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  thin, variables = slim_jax.thin(model.infer, plan), plan.slice(model.variables)

  def loss(f, variables):
    return jnp.sum(f(variables, model.x) ** 2)

  fast = slim_jax.for_cpu(thin)
  assert 'conv_general_dilated' in primitives_of(thin, variables, model.x)
  value, grads = jax.jit(jax.value_and_grad(lambda v: loss(fast, v), allow_int=True))(variables)
  want, full = jax.jit(jax.value_and_grad(lambda v: loss(thin, v), allow_int=True))(variables)
  assert abs(value - want) < 1e-10 * abs(want)
  assert laws.distance(grads, full) < 1e-10


@pytest.mark.parametrize('widths', [(5, 6), (7, 13), (9, 12), (12, 9), (3, 5), (8, 16)], ids=str)
@pytest.mark.parametrize('size', [6, 16], ids=['small', 'large'])
@pytest.mark.parametrize('spec', [('NHWC', 'HWIO', 'NHWC'), ('NCHW', 'OIHW', 'NCHW')], ids=str)
def test_odd_widths_are_filled_up(widths, size, spec, x64):
  channels, outputs = widths
  shapes = {
    'NHWC': (2, size, size, channels),
    'NCHW': (2, channels, size, size),
    'HWIO': (3, 3, channels, outputs),
    'OIHW': (outputs, channels, 3, 3),
  }
  x, k = (jax.random.normal(jax.random.key(i), shapes[spec[i]]) for i in (0, 1))

  def f(x, k):
    return jax.lax.conv_general_dilated(x, k, (1, 1), 'SAME', dimension_numbers=spec)

  fast = slim_jax.for_cpu(f)
  program, _ = jaxprs.trace(lambda x, k: jax.vjp(fast, x, k)[0], x, k)
  made = [
    eqn.in_avals[1].shape
    for eqn in program.equations
    if str(eqn.primitive) == 'conv_general_dilated'
  ]
  for shape in made:
    inside, outside = (shape[spec[1].index(name)] for name in 'IO')
    assert inside % 4 == 0 or inside < 4
    assert outside % 4 == 0
  want, back = jax.vjp(f, x, k)
  got, fast_back = jax.vjp(fast, x, k)
  assert made and laws.distance(got, want) < 1e-12
  assert laws.distance(fast_back(want), back(want)) < 1e-12
