"""Counts of known networks, of single operations and of control flow."""

import flax.linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models

IMAGE = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)


def shapes_and_apply(module, image):
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros(image.shape), train=False)
  )
  return shapes, lambda v, x: module.apply(v, x, train=False)


@pytest.mark.parametrize(
  'classes, params, macs', [(10, 20_035_018, 398_136_320), (100, 20_081_188, 398_182_400)]
)
def test_vgg19(classes, params, macs):
  variables, apply = shapes_and_apply(models.create('vgg19', num_classes=classes), IMAGE)
  cost = slim_jax.count(apply, variables, IMAGE)
  assert (cost.params, cost.macs) == (params, macs)


SLIMMED = (22, 62, 'M', 83, 119, 'M', 193, 168, 85, 40, 'M', 32, 32, 32, 32, 'M', 32, 32, 32, 38)


def test_slimmed_vgg19():
  """The paper's slimmed VGG-19, built with these widths and pruned to them."""
  narrow = models.create('vgg', num_classes=10, widths=SLIMMED)
  variables, apply = shapes_and_apply(narrow, IMAGE)
  built = slim_jax.count(apply, variables, IMAGE)
  assert built.params == 885_934
  assert round(100 * (1 - built.macs / 398_136_320), 1) == 77.2

  variables, apply = shapes_and_apply(models.create('vgg19', num_classes=10), IMAGE)
  dead = jax.tree.map(lambda _: None, variables)
  for i, width in enumerate(w for w in SLIMMED if w != 'M'):
    norm = f'BatchNorm_{i}'
    size = variables['params'][norm]['scale'].shape[0]
    dead['params'][norm]['scale'] = np.random.default_rng(i).permutation(size) >= width
  plan = slim_jax.plan(apply, variables, IMAGE, dead=dead)
  cut = slim_jax.count(slim_jax.thin(apply, plan), plan.slice(variables), IMAGE)
  assert (cut.params, cut.macs) == (built.params, built.macs)


def test_by_module_and_equation():
  variables, apply = shapes_and_apply(
    models.create('mlp', num_classes=10), jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32)
  )
  cost = slim_jax.count(apply, variables, jax.ShapeDtypeStruct((1, 28, 28, 1), jnp.float32))
  assert cost.by_module == {
    'MLP/Dense_0': 784 * 500,
    'MLP/Dense_1': 500 * 300,
    'MLP/Dense_2': 300 * 10,
  }
  assert cost.macs == 545_000
  assert cost.params == 545_000 + 500 + 300 + 10 + 2 * 800
  assert cost.param_bytes == 4 * cost.params
  assert 'dot_general' in cost.equations[0].equation


@pytest.mark.parametrize(
  'function, shapes, macs',
  [
    (lambda a, b: a @ b, [(2, 3), (3, 5)], 30),
    (lambda a, b: jnp.einsum('bij,bjk->bik', a, b), [(4, 2, 3), (4, 3, 5)], 120),
    (lambda k, x: nn_conv(x, k), [(3, 3, 2, 8), (1, 5, 5, 2)], 25 * 9 * 2 * 8),
    (lambda k, x: nn_conv(x, k, feature_group_count=4), [(3, 3, 1, 4), (1, 5, 5, 4)], 25 * 9 * 4),
    (
      lambda k, x: nn_conv(x, k, lhs_dilation=(2, 2), padding=((1, 2), (1, 2))),
      [(3, 3, 2, 8), (1, 4, 4, 2)],
      16 * 9 * 2 * 8,
    ),
  ],
)
def test_contractions(function, shapes, macs):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  assert slim_jax.count(function, *args).macs == macs


def nn_conv(x, kernel, padding='SAME', **options):
  return lax.conv_general_dilated(
    x, kernel, (1, 1), padding, dimension_numbers=('NHWC', 'HWIO', 'NHWC'), **options
  )


def test_control_flow():
  w, x = jnp.ones((3, 3)), jnp.ones((2, 3))

  def loop(w, x):
    return lax.scan(lambda h, _: (h @ w, None), x, length=7)[0]

  assert slim_jax.count(loop, w, x).macs == 7 * 18

  def branch(w, x):
    return lax.cond(x.sum() > 0, lambda: x @ w @ w, lambda: x @ w)

  assert slim_jax.count(branch, w, x).macs == 36

  def endless(w, x):
    return lax.while_loop(lambda h: h.sum() < 0, lambda h: h @ w, x)

  cost = slim_jax.count(endless, w, x)
  assert (cost.macs, cost.loops) == (18, 1)
  assert slim_jax.count(jax.checkpoint(lambda w, x: nn.relu(x @ w)), w, x).macs == 18


def test_activation_bytes():
  cost = slim_jax.count(
    lambda w, x: nn.max_pool(nn_conv(x, w), (2, 2), (2, 2)),
    jnp.ones((3, 3, 2, 8)),
    jnp.ones((1, 4, 4, 2)),
  )
  assert cost.activation_bytes == 4 * (16 * 8 + 4 * 8)


def test_value_bytes():
  """Calls and loops count as the operations inside them."""
  w, x = jnp.ones((3, 3)), jnp.ones((2, 3))
  assert slim_jax.count(lambda w, x: jnp.sin(x @ w) + x, w, x).value_bytes == 3 * 24
  assert slim_jax.count(lambda w, x: jax.jit(jnp.sin)(x @ w), w, x).value_bytes == 2 * 24
  relu = slim_jax.count(lambda w, x: nn.relu(x @ w), w, x)
  assert relu.value_bytes == 2 * 24

  def loop(w, x):
    return lax.scan(lambda h, _: (h @ w, None), x, length=7)[0]

  assert slim_jax.count(loop, w, x).value_bytes == 7 * 24
  halves = slim_jax.count(lambda w, x: x.astype(jnp.bfloat16) * 2, w, x)
  assert halves.value_bytes == 2 * 12
