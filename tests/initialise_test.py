"""New variables have the right shapes and deviations, full and thin, and depend on the key only."""

from flax import linen as nn
from helpers.trees import same
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree
from slim_jax.models import initialise

IMAGE = jax.ShapeDtypeStruct((1, 8, 8, 3), jnp.float32)


@pytest.mark.parametrize(
  'name, arguments',
  [
    ('vgg', {'widths': (8, 'M', 16), 'dense_widths': (20,), 'conv_bias': True}),
    ('densenet', {'depth': 7, 'growth': 2}),
    ('resnet', {'blocks': (1, 1), 'width': 4}),
    ('mlp', {'widths': (300, 200)}),
  ],
)
def test_weights_are_those_of_init_but_for_the_numbers(name, arguments):
  module = models.create(name, num_classes=10, **arguments)
  new = initialise.variables(module, IMAGE, key=jax.random.key(0))
  want = module.init(jax.random.key(0), jnp.zeros(IMAGE.shape), train=False)
  assert jax.tree.structure(new) == jax.tree.structure(want)
  for path, leaf in tree.flatten(want).items():
    other = tree.flatten(new)[path]
    assert other.shape == leaf.shape and other.dtype == leaf.dtype, path
    if np.ptp(leaf) == 0:
      np.testing.assert_array_equal(other, leaf)
    else:
      np.testing.assert_allclose(other.std(), leaf.std(), rtol=6 / np.sqrt(leaf.size))


def test_key_decides():
  module = models.create('vgg', num_classes=10, widths=(8, 8))
  one, again, other = (
    initialise.variables(module, IMAGE, key=jax.random.key(seed)) for seed in (0, 0, 1)
  )
  assert same(one, again) and not same(one['params'], other['params'])
  kernels = [one['params'][name]['kernel'] for name in ('Conv_0', 'Conv_1')]
  assert not np.array_equal(kernels[0], kernels[1][:, :, :3])


def test_thin_weights_have_the_deviation_of_the_thin_shape():
  """He initialisation by fan-out: fewer outputs have larger weights. The last layer differs."""
  module = models.create('vgg', num_classes=10, widths=(16, 64))
  full = initialise.variables(module, IMAGE, key=jax.random.key(0))
  dead = tree.map_with_path(
    lambda path, x: np.arange(x.size) % 4 > 0 if path[-1] == 'scale' else None, full
  )
  plan = slim_jax.plan(lambda v, x: module.apply(v, x, train=False), full, IMAGE, dead=dead)
  thin = initialise.variables(module, IMAGE, key=jax.random.key(1), plan=plan)
  assert jax.tree.map(np.shape, thin) == jax.tree.map(np.shape, plan.slice(full))
  kernel = thin['params']['Conv_1']['kernel']
  assert kernel.shape == (3, 3, 4, 16)
  np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (9 * 16)), rtol=0.15)
  np.testing.assert_allclose(thin['params']['Dense_0']['kernel'].std(), 0.01, rtol=0.3)
  assert np.all(thin['params']['BatchNorm_0']['scale'] == 0.5)


def test_layer_without_channels_and_parameter_without_initialiser():
  class Net(nn.Module):
    """Has a parameter that no layer initialises."""

    @nn.compact
    def __call__(self, x, *, train):
      gate = self.param('gate', nn.initializers.normal(1.0), (8,))
      y = nn.BatchNorm(use_running_average=not train)(nn.Conv(8, (3, 3))(x))
      z = nn.BatchNorm(use_running_average=not train)(nn.Conv(4, (3, 3))(x))
      return nn.Dense(3)((y * gate.reshape(1, 1, 1, 8)).mean((1, 2))) + z.mean((1, 2, 3))[:, None]

  module = Net()
  full = initialise.variables(module, IMAGE, key=jax.random.key(0))
  want = module.lazy_init(jax.random.key(0), IMAGE, train=False)
  np.testing.assert_array_equal(full['params']['gate'], want['params']['gate'])
  dead = jax.tree.map(lambda x: None, full)
  dead['params']['BatchNorm_0']['scale'] = np.arange(8) > 2
  dead['params']['BatchNorm_1']['scale'] = np.ones(4, bool)
  plan = slim_jax.plan(lambda v, x: module.apply(v, x, train=False), full, IMAGE, dead=dead)
  thin = initialise.variables(module, IMAGE, key=jax.random.key(0), plan=plan)
  assert jax.tree.map(np.shape, thin) == jax.tree.map(np.shape, plan.slice(full))
  np.testing.assert_array_equal(thin['params']['gate'], want['params']['gate'][:3])
  assert thin['params']['Conv_1']['kernel'].size == 0
