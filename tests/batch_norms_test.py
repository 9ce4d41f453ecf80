"""BatchNorm scales of every library are recognised, and those of other norms are not."""

import os
import re

os.environ.setdefault('KERAS_BACKEND', 'jax')

from flax import nnx
import flax.linen as nn
from helpers import zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import batch_norms, models, tree

IMAGE = jnp.ones((2, 8, 8, 3))


def scales(variables):
  named = tree.flatten(slim_jax.batch_norm_scales(variables))
  assert jax.tree.structure(variables) == jax.tree.structure(slim_jax.batch_norm_scales(variables))
  return ['/'.join(path) for path, is_scale in named.items() if is_scale]


def statistics(variables):
  return ['/'.join(p) for norm in batch_norms.find(variables) for p in norm.statistics]


class Linen(nn.Module):
  @nn.compact
  def __call__(self, x):
    x = nn.BatchNorm(True)(nn.Conv(4, (3, 3))(x))
    x = nn.GroupNorm(2)(nn.LayerNorm()(x))
    x = nn.BatchNorm(True, use_scale=False)(x)
    return nn.BatchNorm(True, use_bias=False, name='last')(x)


def test_the_scale_of_a_block_is_no_norm():
  """ConvNeXt has one beside its layers; a norm has nothing inside."""
  net = models.ConvNeXt(num_classes=2, patch=2, widths=(4,), neurons=((8,),), kernel=3)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), IMAGE, train=False))
  assert shapes['params']['Block_0']['gamma'].shape == (4,)
  assert not scales(shapes) and not scales(shapes['params'])
  block = {'BatchNorm_0': {'scale': jnp.ones(4)}, 'scale': jnp.ones(4), 'bias': jnp.ones(4)}
  assert scales({'Block_0': block}) == ['Block_0/BatchNorm_0/scale']
  with pytest.raises(ValueError, match='no BatchNorm scale'):
    slim_jax.add_l1(1e-4).init(shapes['params'])


def test_linen():
  variables = Linen().init(jax.random.key(0), IMAGE)
  assert scales(variables) == ['params/BatchNorm_0/scale', 'params/last/scale']
  assert scales({'model': variables}) == [
    'model/params/BatchNorm_0/scale',
    'model/params/last/scale',
  ]
  assert scales((variables['params'], variables['batch_stats'])) == [
    '0/BatchNorm_0/scale',
    '0/last/scale',
  ]
  # Among parameters alone, other norms are recognised by their names.
  assert scales(variables['params']) == ['BatchNorm_0/scale', 'last/scale']
  first, last = batch_norms.find(variables)
  assert first.bias == ('params', 'BatchNorm_0', 'bias') and last.bias is None
  assert statistics(variables)[:2] == [
    'batch_stats/BatchNorm_0/mean',
    'batch_stats/BatchNorm_0/var',
  ]


def test_a_batch_norm_by_itself():
  assert scales(nn.BatchNorm(True).init(jax.random.key(0), IMAGE)) == ['params/scale']


def test_nnx():
  class Net(nnx.Module):
    def __init__(self, rngs):
      self.conv = nnx.Conv(3, 4, (3, 3), rngs=rngs)
      self.norm1 = nnx.BatchNorm(4, rngs=rngs)
      self.norm2 = nnx.LayerNorm(4, rngs=rngs)
      self.block = nnx.List([nnx.BatchNorm(4, rngs=rngs)])

  _, state = nnx.split(Net(nnx.Rngs(0)))
  paths = list(scales(state))
  assert [path.removesuffix('/value') for path in paths] == ['block/0/scale', 'norm1/scale']
  assert len(statistics(state)) == 4


def test_haiku():
  hk = pytest.importorskip('haiku')

  def net(x):
    x = hk.BatchNorm(True, True, 0.9)(hk.Conv2D(4, 3)(x), is_training=True)
    return hk.LayerNorm(-1, True, True)(x)

  params, state = hk.transform_with_state(net).init(jax.random.key(0), IMAGE)
  assert scales((params, state)) == ['0/batch_norm/scale']
  assert scales(params) == ['batch_norm/scale']
  assert sorted(name.split('/')[-1] for name in statistics((params, state))) == [
    'average',
    'average',
    'counter',
    'counter',
    'hidden',
    'hidden',
  ]
  # Scales are [1, 1, 1, channels]; a dead vector refers to the long axis.
  dead = jax.tree.map(lambda _: None, (params, state))
  dead[0]['batch_norm']['scale'] = jnp.array([True, False, False, True])
  masked = slim_jax.mask((params, state), dead)
  assert masked[0]['batch_norm']['scale'].ravel().tolist() == [0, 1, 1, 0]


def test_haiku_with_channels_first(x64):
  """Scales are [1, channels, 1, 1], so their last axis is not that of the channels."""
  hk = pytest.importorskip('haiku')

  def net(x, is_training):
    for width in (6, 8):
      x = hk.Conv2D(width, 3, data_format='NCHW', with_bias=False)(x)
      norm = hk.BatchNorm(True, True, 0.9, data_format='NC...')
      x = jax.nn.relu(norm(x, is_training))
    return hk.Linear(5)(x.mean((2, 3)))

  x = jax.random.normal(jax.random.key(1), (2, 3, 8, 8), jnp.float64)
  f = hk.without_apply_rng(hk.transform_with_state(net))
  shapes = jax.eval_shape(lambda: f.init(jax.random.key(0), x, True))
  variables = zoo.randomise(shapes, jnp.float64, 0)
  apply = lambda variables, x: f.apply(*variables, x, False)[0]
  dead = slim_jax.select_global(variables, fraction=0.5)
  vectors = [dead[0][name]['scale'] for name in ('batch_norm', 'batch_norm_1')]
  left = [int((~vector).sum()) for vector in vectors]
  assert [vector.shape for vector in vectors] == [(6,), (8,)] and 0 < sum(left) < 14

  masked = slim_jax.mask(variables, dead)
  for name, vector in zip(('batch_norm', 'batch_norm_1'), vectors):
    for leaf in ('scale', 'offset'):
      assert ((masked[0][name][leaf].ravel() == 0) == vector).all()
  plan = slim_jax.plan(apply, variables, x, dead=dead)
  thin = plan.slice(variables)
  assert thin[0]['batch_norm']['scale'].shape == (1, left[0], 1, 1)
  assert thin[0]['conv2_d_1']['w'].shape == (3, 3, left[0], left[1])
  got = slim_jax.thin(apply, plan)(thin, x)
  np.testing.assert_allclose(got, apply(masked, x), rtol=1e-12, atol=1e-12)


def test_equinox():
  eqx = pytest.importorskip('equinox')
  model, state = eqx.nn.make_with_state(
    lambda key: eqx.nn.Sequential(
      [
        eqx.nn.Conv2d(3, 4, 3, key=key),
        eqx.nn.BatchNorm(4, 'batch', mode='batch'),
        eqx.nn.LayerNorm(4),
      ]
    )
  )(jax.random.key(0))
  params, _ = eqx.partition(model, eqx.is_inexact_array)
  assert scales(params) == ['layers/1/weight']
  assert scales((params, state)) == ['0/layers/1/weight']
  # Statistics have numbers for names; the module's markers refer to them.
  shapes = [
    leaf.shape
    for path, leaf in tree.flatten((params, state)).items()
    if tree.show(path) in statistics((params, state))
  ]
  assert sorted(shapes) == [(), (4,), (4,)]


def test_a_tree_that_can_be_called_is_a_tree():
  """Equinox modules have `__call__`, so a module of bools is both."""
  eqx = pytest.importorskip('equinox')
  params, _ = eqx.partition(eqx.nn.MLP(8, 3, 16, 1, key=jax.random.key(0)), eqx.is_inexact_array)
  chosen = tree.map_with_path(lambda path, _: path[-2:] == ('0', 'bias'), params)
  assert callable(chosen)
  at_bias = lambda params: chosen
  for mask in (chosen, at_bias, jax.tree_util.Partial(at_bias)):
    assert batch_norms.chosen(params, mask) == [('layers', '0', 'bias')]
    dead = slim_jax.select_global(params, fraction=0.5, scales=mask)
    assert dead.layers[0].bias.sum() == 9 and dead.layers[1].bias is None
    tx = slim_jax.add_l1(0.5, mask)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zeros, tx.init(params), params)
    assert (updates.layers[0].bias == 0.5 * jnp.sign(params.layers[0].bias)).all()
    assert not updates.layers[0].weight.any() and not updates.layers[1].bias.any()


def test_keras():
  keras = pytest.importorskip('keras')
  model = keras.Sequential(
    [
      keras.layers.Input((8, 8, 3)),
      keras.layers.Conv2D(4, 3),
      keras.layers.BatchNormalization(),
      keras.layers.LayerNormalization(),
    ]
  )
  assert scales((model.trainable_variables, model.non_trainable_variables)) == ['0/2']
  arrays = {v.path: v.value for v in model.variables}
  (gamma,) = scales(arrays)  # Keras numbers its layers
  assert re.fullmatch(r'sequential(_\d+)?/batch_normalization(_\d+)?/gamma', gamma)
  assert len(statistics(arrays)) == 2


def test_pytorch_names():
  state_dict = {
    'features.0': {'weight': jnp.ones((4, 3, 3, 3))},
    'features.1': {
      'weight': jnp.ones(4),
      'bias': jnp.ones(4),
      'running_mean': jnp.ones(4),
      'running_var': jnp.ones(4),
    },
    'ln': {'weight': jnp.ones(4), 'bias': jnp.ones(4)},
  }
  assert scales(state_dict) == ['features.1/weight']


def test_mask_zeroes_scale_and_bias_and_keeps_dtypes():
  variables = Linen().init(jax.random.key(0), IMAGE)
  variables['params']['BatchNorm_0']['bias'] = jnp.arange(1, 5, dtype=jnp.bfloat16)
  dead = jax.tree.map(lambda _: None, variables)
  dead['params']['BatchNorm_0']['scale'] = jnp.array([False, True, False, True])
  masked = slim_jax.mask(variables, dead)['params']['BatchNorm_0']
  assert masked['scale'].tolist() == [1, 0, 1, 0]
  assert masked['bias'].tolist() == [1, 0, 3, 0] and masked['bias'].dtype == jnp.bfloat16


class Layer(nn.Module):
  @nn.compact
  def __call__(self, x, _):
    return nn.LayerNorm()(nn.BatchNorm(use_running_average=True)(x)), None


def test_stacked_layers():
  """Layers that share a body have scales [layers, channels], and one decision per channel."""
  stack = nn.scan(
    Layer, variable_axes={'params': 0, 'batch_stats': 0}, split_rngs={'params': True}, length=3
  )()
  variables = stack.init(jax.random.key(0), jnp.ones((2, 4)), None)
  assert scales(variables) == ['params/BatchNorm_0/scale']
  assert scales(variables['params']) == ['BatchNorm_0/scale']
  assert len(statistics(variables)) == 2
  dead = jax.tree.map(lambda _: None, variables)
  for vector in (
    [False, True, False, True],
    [[False, True, True, True], [True, True, False, True], [False, True, True, True]],
  ):
    dead['params']['BatchNorm_0']['scale'] = np.array(vector)
    masked = slim_jax.mask(variables, dead)['params']['BatchNorm_0']
    assert masked['scale'].tolist() == [[1, 0, 1, 0]] * 3
  dead['params']['BatchNorm_0']['scale'] = np.zeros((2, 4), bool)
  with pytest.raises(ValueError, match=r'must be bool\[4\], it is bool\[2, 4\]'):
    slim_jax.mask(variables, dead)
