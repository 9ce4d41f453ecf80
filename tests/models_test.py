"""Tests of slim_jax.models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from slim_jax import models


def _init(model, shape, key=0):
  return jax.jit(lambda key, x: model.init(key, x, train=False))(
      jax.random.key(key), jnp.zeros(shape))


def _params(model, shape):
  variables = jax.eval_shape(
      lambda key, x: model.init(key, x, train=False),
      jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))
  return sum(leaf.size for leaf in jax.tree.leaves(variables['params']))


_SLIMMED = (22, 62, 'M', 83, 119, 'M', 193, 168, 85, 40, 'M', 32, 32, 32, 32, 'M',
            32, 32, 32, 38)


@pytest.mark.parametrize('name, num_classes, arguments, expected', [
    ('vgg19', 10, {}, 20_035_018),
    ('vgg', 10, {}, 20_035_018),
    ('vgg19', 100, {}, 20_081_188),
    ('vgg', 10, {'widths': _SLIMMED}, 885_934),
    ('vgg16', 10, {}, 14_724_042),
    ('vgg13', 10, {}, 9_413_066),
    ('vgg11', 10, {}, 9_228_362),
])
def test_vgg_parameters(name, num_classes, arguments, expected):
  model = models.create(name, num_classes=num_classes, **arguments)
  assert _params(model, (1, 32, 32, 3)) == expected


def test_vgg19_scales():
  model = models.create('vgg19', num_classes=10)
  variables = jax.eval_shape(
      lambda key, x: model.init(key, x, train=False),
      jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32))
  scales = [layer['scale'].size for layer in variables['params'].values()
            if 'scale' in layer]
  assert (len(scales), sum(scales)) == (16, 5504)


def test_mlp_parameters():
  # 784*500 + 500*300 + 300*10 weights, biases, and two BatchNorms.
  expected = 545_000 + 500 + 300 + 10 + 2 * (500 + 300)
  assert _params(models.create('mlp', num_classes=10), (1, 28, 28, 1)) == expected


_SMALL = [('vgg', (8, 'M', 16), (4, 12, 9, 3)), ('mlp', (32, 16), (4, 6, 6, 1))]


@pytest.mark.parametrize('name, widths, shape', _SMALL)
def test_initial_values(name, widths, shape):
  variables = _init(models.create(name, num_classes=5, widths=widths), shape)
  assert set(variables) == {'params', 'batch_stats'}
  for path, layer in variables['params'].items():
    if path.startswith('BatchNorm'):
      np.testing.assert_array_equal(layer['scale'], 0.5)
    if 'bias' in layer:
      np.testing.assert_array_equal(layer['bias'], 0)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_convolutions_are_he_normal_fan_out_without_bias():
  model = models.create('vgg', num_classes=2, widths=(16, 256))
  params = _init(model, (1, 4, 4, 3))['params']
  assert set(params) == {'Conv_0', 'BatchNorm_0', 'Conv_1', 'BatchNorm_1', 'Dense_0'}
  assert set(params['Conv_1']) == {'kernel'}
  kernel = np.asarray(params['Conv_1']['kernel'])
  std = np.sqrt(2 / (9 * 256))
  np.testing.assert_allclose(kernel.std(), std, rtol=0.02)
  assert np.abs(kernel).max() > 3 * std  # A truncated normal stops short of it.


@pytest.mark.parametrize('name, widths, shape', _SMALL)
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_dtype_is_of_the_computation(name, widths, shape, dtype):
  model = models.create(name, num_classes=5, dtype=dtype, widths=widths)
  variables = _init(model, shape)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  x = jax.random.normal(jax.random.key(1), shape)
  logits, state = model.apply(variables, x, train=True, mutable=['batch_stats'])
  assert (logits.shape, logits.dtype) == ((shape[0], 5), jnp.float32)
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}
  used = {var.aval.dtype for eqn in jax.make_jaxpr(
      lambda x: model.apply(variables, x, train=False))(x).eqns
          for var in eqn.outvars if eqn.primitive.name in
          ('conv_general_dilated', 'dot_general')}
  assert used == {jnp.dtype(dtype)}


@pytest.mark.parametrize('name, widths, shape', _SMALL)
def test_train_uses_and_updates_batch_statistics(name, widths, shape):
  model = models.create(name, num_classes=5, widths=widths)
  variables = _init(model, shape)
  x = 3 + jax.random.normal(jax.random.key(1), shape)
  trained, state = model.apply(variables, x, train=True, mutable=['batch_stats'])
  still = model.apply(variables, x, train=False)
  assert not np.allclose(trained, still)
  before, after = variables['batch_stats'], state['batch_stats']
  assert not np.allclose(before['BatchNorm_0']['mean'], after['BatchNorm_0']['mean'])
  # momentum 0.9: the variance moves a tenth of the way from 1.
  assert np.all(np.asarray(after['BatchNorm_0']['var']) >= 0.9)


@pytest.mark.parametrize('name, widths, shape', _SMALL)
def test_axis_name_joins_the_statistics(name, widths, shape):
  variables = _init(models.create(name, num_classes=5, widths=widths), shape)
  x = jax.random.normal(jax.random.key(1), (2,) + shape)
  joined = models.create(name, num_classes=5, widths=widths, axis_name='batch')
  plain = models.create(name, num_classes=5, widths=widths)
  over, _ = jax.vmap(
      lambda x: joined.apply(variables, x, train=True, mutable=['batch_stats']),
      axis_name='batch')(x)
  whole, _ = plain.apply(variables, x.reshape(-1, *shape[1:]), train=True,
                         mutable=['batch_stats'])
  np.testing.assert_allclose(over.reshape(whole.shape), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('size', [(4, 4), (5, 7), (32, 32)])
@pytest.mark.parametrize('channels', [1, 3])
def test_vgg_takes_any_size(size, channels):
  model = models.create('vgg', num_classes=3, widths=[4, 'M', 4, 'M', 4])
  shape = (2, *size, channels)
  assert model.apply(_init(model, shape), jnp.ones(shape), train=False).shape == (2, 3)


def test_too_small_images_are_refused():
  model = models.create('vgg19', num_classes=10)
  with pytest.raises(ValueError, match='8x32 are too small for 4 max-pools.*16x16'):
    _params(model, (1, 8, 32, 3))
  with pytest.raises(ValueError, match='batch, height, width, channels'):
    _params(model, (1, 32, 32))


@pytest.mark.parametrize('name', ['vgg', 'mlp'])
@pytest.mark.parametrize('width', [0, -1, 'P', 1.5])
def test_wrong_widths_are_refused(name, width):
  model = models.create(name, num_classes=10, widths=(4, width))
  with pytest.raises(ValueError, match='widths must be positive integers'):
    _params(model, (1, 8, 8, 3))


def test_unknown_name_and_argument():
  with pytest.raises(ValueError, match="no model named 'resnet'.*vgg19.*mlp"):
    models.create('resnet', num_classes=10)
  with pytest.raises(TypeError, match='no argument depth; it takes axis_name, widths'):
    models.create('vgg', num_classes=10, depth=19)
