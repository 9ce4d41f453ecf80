"""The law, for the models of the paper: thin equals masked, in float64."""

from helpers import laws
from helpers.zoo import linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree

CASES = {
  'preresnet': (
    models.PreResNet(num_classes=5, depth=20, width=4, dtype=jnp.float64),
    (2, 8, 8, 3),
  ),
  'densenet': (
    models.DenseNet(num_classes=5, depth=13, growth=3, stem=6, drop_rate=0.2, dtype=jnp.float64),
    (2, 8, 8, 3),
  ),
  'densenet_bc': (
    models.DenseNet(
      num_classes=5, depth=16, growth=3, stem=6, bottleneck=True, compression=0.5, dtype=jnp.float64
    ),
    (2, 8, 8, 3),
  ),
  'vgg_a': (
    models.VGG(
      num_classes=5,
      widths=(8, 'M', 12, 8, 'M'),
      dense_widths=(16, 12),
      conv_bias=True,
      dtype=jnp.float64,
    ),
    (4, 8, 8, 3),
  ),
  'resnet50': (
    models.ResNet(num_classes=5, blocks=(2, 2), width=4, dtype=jnp.float64),
    (2, 16, 16, 3),
  ),
  'resnet18': (
    models.ResNet(num_classes=5, blocks=(2, 2), width=6, bottleneck=False, dtype=jnp.float64),
    (2, 16, 16, 3),
  ),
}


def _variables(model, shape, seed=0):
  """Random variables in float64, with a scale of every size and sign."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros(shape), train=False))

  def fill(path, leaf):
    value = rng.normal(size=leaf.shape)
    if path[-1] == 'kernel':
      value /= np.sqrt(np.prod(leaf.shape[:-1]))
    return jnp.asarray(abs(value) + 0.1 if path[-1] == 'var' else value, jnp.float64)

  return tree.map_with_path(fill, shapes)


@pytest.mark.parametrize(
  'name, emptied',
  [
    ('preresnet', ('Bottleneck_3', 'BatchNorm_1')),
    pytest.param('densenet', ('BatchNorm_1',), marks=pytest.mark.slow),
    pytest.param('densenet_bc', ('BatchNorm_1',), marks=pytest.mark.slow),
    pytest.param('vgg_a', (), marks=pytest.mark.slow),  # has no way around a layer
    pytest.param('resnet50', ('Block_3', 'BatchNorm_2'), marks=pytest.mark.slow),
    pytest.param('resnet18', ('Block_1', 'BatchNorm_0'), marks=pytest.mark.slow),
  ],
)
def test_thin_is_masked(x64, name, emptied):
  """With half of all channels gone, and one layer of a branch entirely."""
  model, shape = CASES[name]
  variables = _variables(model, shape)
  dead = slim_jax.select_global(variables, fraction=0.5, min_channels=1)
  emptied = ('params', *emptied, 'scale')
  dead = tree.map_with_path(lambda path, v: np.ones_like(v) if path == emptied else v, dead)
  x = jax.random.normal(jax.random.key(2), shape, jnp.float64)
  plan = laws.check(linen.functions(model, x)._replace(variables=variables), dead, 1e-11)
  thin, full = plan.slice(variables)['params'], variables['params']
  assert sum(leaf.size for leaf in jax.tree.leaves(thin)) < 0.8 * sum(
    leaf.size for leaf in jax.tree.leaves(full)
  )
  assert name == 'vgg_a' or not tree.flatten(thin)[emptied[1:]].size


def test_each_norm_on_the_stream_selects_its_own_channels(x64):
  """The 'channel selection' of the paper. The stream stays as long as a projection reads it."""
  model, shape = CASES['preresnet']
  variables = _variables(model, shape)
  dead = slim_jax.select_global(variables, fraction=0.4)
  plan = slim_jax.plan(
    lambda variables, x: model.apply(variables, x, train=False),
    variables,
    jax.ShapeDtypeStruct(shape, jnp.float64),
    dead=dead,
  )
  thin = tree.flatten(plan.slice(variables)['params'])
  full = tree.flatten(variables['params'])
  stays = {path[:-1]: ~v for path, v in tree.flatten(dead['params']).items()}
  for block in (f'Bottleneck_{i}' for i in range(6)):
    for k in range(3):
      live = stays[block, f'BatchNorm_{k}'].sum()
      assert thin[block, f'BatchNorm_{k}', 'scale'].size == live
      assert thin[block, f'Conv_{k}', 'kernel'].shape[2] == live
  last = stays['BatchNorm_0',]
  either = last | stays['Bottleneck_5', 'BatchNorm_0']
  # The paper keeps these whole, too; what nobody reads may go.
  outputs = {
    ('Bottleneck_5', 'Conv_2', 'kernel'): last.sum(),
    ('Bottleneck_4', 'Conv_2', 'kernel'): either.sum(),
    ('Bottleneck_4', 'projection', 'kernel'): either.sum(),
  }
  for path, leaf in full.items():
    if path[-2] in ('projection', 'Conv_2') or path[0] == 'Conv_0':
      assert thin[path].shape[-1] == outputs.get(path, leaf.shape[-1]), path
