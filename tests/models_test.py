"""Models have the sizes, initial values and errors that their docstrings state."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree


def _init(model, shape, key=0):
  return jax.jit(lambda key, x: model.init(key, x, train=False))(
    jax.random.key(key), jnp.zeros(shape)
  )


def _shapes(model, shape):
  return jax.eval_shape(
    lambda key, x: model.init(key, x, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct(shape, jnp.float32),
  )


def _params(model, shape):
  return sum(leaf.size for leaf in jax.tree.leaves(_shapes(model, shape)['params']))


def _train(model):
  return lambda variables, x: model.apply(variables, x, train=True, mutable=['batch_stats'])


def _scales(model, shape):
  """Channels of every BatchNorm, by path."""
  return {
    path: leaf.size
    for path, leaf in tree.flatten(_shapes(model, shape)).items()
    if path[-1] == 'scale'
  }


_SLIMMED = (22, 62, 'M', 83, 119, 'M', 193, 168, 85, 40, 'M', 32, 32, 32, 32, 'M', 32, 32, 32, 38)


@pytest.mark.parametrize(
  'name, num_classes, arguments, expected',
  [
    ('vgg19', 10, {}, 20_035_018),
    ('vgg', 10, {}, 20_035_018),
    ('vgg19', 100, {}, 20_081_188),
    ('vgg', 10, {'widths': _SLIMMED}, 885_934),
    ('vgg16', 10, {}, 14_724_042),
    ('vgg13', 10, {}, 9_413_066),
    ('vgg11', 10, {}, 9_228_362),
  ],
)
def test_vgg_parameters(name, num_classes, arguments, expected):
  model = models.create(name, num_classes=num_classes, **arguments)
  assert _params(model, (1, 32, 32, 3)) == expected


# Parameters of the networks of the paper and its code, computed from the shapes of the layers.
# DenseNet-BC and the ResNets are compared with other implementations.
@pytest.mark.parametrize(
  'name, classes, arguments, size, params, macs',
  [
    ('vgg19', 10, {}, 32, 20_035_018, 398_136_320),
    ('vgg19', 100, {}, 32, 20_081_188, 398_182_400),
    ('preresnet164', 10, {}, 32, 1_703_258, 247_646_720),
    ('preresnet164', 100, {}, 32, 1_726_388, 247_669_760),
    ('densenet40', 10, {}, 32, 1_059_298, 282_917_328),
    ('densenet40', 100, {}, 32, 1_100_428, 282_958_368),
    ('densenet40', 10, {'stem': 16}, 32, 1_019_722, 264_812_928),
    ('densenet40', 100, {'stem': 16}, 32, 1_060_132, 264_853_248),
    ('densenet_bc100', 10, {}, 32, 769_162, None),
    ('vgg_a', 1000, {}, 224, 132_885_224, 7_609_090_048),
    ('resnet18', 1000, {}, 224, 11_689_512, None),
    ('resnet34', 1000, {}, 224, 21_797_672, None),
    ('resnet50', 1000, {}, 224, 25_557_032, 4_089_184_256),
    ('resnet101', 1000, {}, 224, 44_549_160, None),
    ('resnet152', 1000, {}, 224, 60_192_808, None),
  ],
)
def test_parameters_and_macs(name, classes, arguments, size, params, macs):
  model = models.create(name, num_classes=classes, **arguments)
  shape = (1, size, size, 3)
  assert _params(model, shape) == params
  if macs is not None:
    cost = slim_jax.count(
      lambda variables, x: model.apply(variables, x, train=False),
      _shapes(model, shape),
      jax.ShapeDtypeStruct(shape, jnp.float32),
    )
    assert (cost.params, cost.macs) == (params, macs)


@pytest.mark.parametrize(
  'name, size, layers, channels',
  [
    ('vgg19', 32, 16, 5504),
    ('preresnet164', 32, 163, 12_112),
    ('densenet40', 32, 39, 9360),
    ('vgg_a', 224, 10, 2752 + 8192),
    ('resnet50', 224, 53, 26_560),
  ],
)
def test_scales(name, size, layers, channels):
  scales = _scales(models.create(name, num_classes=10), (1, size, size, 3))
  assert (len(scales), sum(scales.values())) == (layers, channels)


def test_scales_on_the_stream_of_preresnet164():
  scales = _scales(models.create('preresnet164', num_classes=10), (1, 32, 32, 3))
  assert sum(n for path, n in scales.items() if 'BatchNorm_0' in path) == 8080


@pytest.mark.parametrize('depth', [20, 56, 110])
def test_depth_is_the_number_of_layers(depth):
  """The depth does not count projections."""
  shapes = _shapes(models.create('preresnet', num_classes=10, depth=depth), (1, 8, 8, 3))
  kernels = [path for path in tree.flatten(shapes['params']) if path[-1] == 'kernel']
  assert len([path for path in kernels if 'projection' not in path]) == depth
  assert len([path for path in kernels if 'projection' in path]) == 3


def test_mlp_parameters():
  # 784*500 + 500*300 + 300*10 weights, biases, and two BatchNorms.
  expected = 545_000 + 500 + 300 + 10 + 2 * (500 + 300)
  assert _params(models.create('mlp', num_classes=10), (1, 28, 28, 1)) == expected


_SMALL = [
  ('vgg', {'widths': (8, 'M', 16)}, (4, 12, 9, 3)),
  ('vgg', {'widths': (4, 'M'), 'dense_widths': (8,), 'conv_bias': True}, (4, 5, 7, 3)),
  ('mlp', {'widths': (32, 16)}, (4, 6, 6, 1)),
  ('preresnet', {'depth': 11, 'width': 4}, (4, 8, 8, 3)),
  ('densenet', {'depth': 7, 'growth': 4, 'stem': 4}, (4, 8, 8, 3)),
  (
    'densenet',
    {'depth': 10, 'growth': 2, 'stem': 4, 'bottleneck': True, 'compression': 0.5},
    (4, 8, 8, 3),
  ),
  ('resnet', {'blocks': (1, 1), 'width': 4}, (4, 16, 16, 3)),
  ('resnet', {'blocks': (1, 1), 'width': 4, 'bottleneck': False}, (4, 16, 16, 3)),
]
small = pytest.mark.parametrize('name, arguments, shape', _SMALL)


@small
def test_initial_values(name, arguments, shape):
  variables = _init(models.create(name, num_classes=5, **arguments), shape)
  assert set(variables) == {'params', 'batch_stats'}
  for path, leaf in tree.flatten(variables['params']).items():
    if path[-1] in ('scale', 'bias'):
      np.testing.assert_array_equal(leaf, 0.5 if path[-1] == 'scale' else 0)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}


def test_convolutions_are_he_normal_fan_out_without_bias():
  model = models.create('vgg', num_classes=2, widths=(16, 256))
  params = _init(model, (1, 4, 4, 3))['params']
  assert set(params) == {'Conv_0', 'BatchNorm_0', 'Conv_1', 'BatchNorm_1', 'Dense_0'}
  assert set(params['Conv_1']) == {'kernel'}
  kernel = np.asarray(params['Conv_1']['kernel'])
  std = np.sqrt(2 / (9 * 256))
  np.testing.assert_allclose(kernel.std(), std, rtol=0.02)
  assert np.abs(kernel).max() > 3 * std  # a truncated normal would not reach it


@small
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_dtype_is_of_the_computation(name, arguments, shape, dtype):
  model = models.create(name, num_classes=5, dtype=dtype, **arguments)
  variables = _shapes(model, shape)
  assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype('float32')}
  x = jax.ShapeDtypeStruct(shape, jnp.float32)
  logits, state = jax.eval_shape(_train(model), variables, x)
  assert (logits.shape, logits.dtype) == ((shape[0], 5), jnp.float32)
  assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype('float32')}
  used = {
    var.aval.dtype
    for eqn in jax.make_jaxpr(_train(model))(variables, x).eqns
    for var in eqn.outvars
    if eqn.primitive.name in ('conv_general_dilated', 'dot_general')
  }
  assert used == {jnp.dtype(dtype)}


@small
def test_train_uses_and_updates_batch_statistics(name, arguments, shape):
  model = models.create(name, num_classes=5, **arguments)
  variables = _init(model, shape)
  x = 3 + jax.random.normal(jax.random.key(1), shape)
  trained, state = jax.jit(_train(model))(variables, x)
  still = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x)
  assert not np.allclose(trained, still)
  for path, leaf in tree.flatten(state).items():
    assert not np.allclose(leaf, tree.flatten(variables)[path]), path
    if path[-1] == 'var':  # momentum 0.9: a tenth of the way from 1
      assert np.all(np.asarray(leaf) >= 0.9), path


@small
def test_axis_name_joins_the_statistics(name, arguments, shape):
  variables = _init(models.create(name, num_classes=5, **arguments), shape)
  x = jax.random.normal(jax.random.key(1), (2,) + shape)
  joined = models.create(name, num_classes=5, **arguments, axis_name='batch')
  plain = models.create(name, num_classes=5, **arguments)
  over, _ = jax.jit(jax.vmap(_train(joined), in_axes=(None, 0), axis_name='batch'))(variables, x)
  whole, _ = jax.jit(_train(plain))(variables, x.reshape(-1, *shape[1:]))
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


def test_a_flattening_network_wants_the_size_it_was_made_for():
  model = models.create('vgg', num_classes=3, widths=(4, 'M'), dense_widths=(8,))
  variables = _init(model, (1, 8, 8, 3))
  with pytest.raises(ValueError, match='takes 64 values, but the max-pools leave 5x4x4'):
    model.apply(variables, jnp.ones((1, 10, 8, 3)), train=False)


@pytest.mark.parametrize(
  'name, size', [('preresnet', (1, 3)), ('densenet', (4, 7)), ('resnet', (1, 3))]
)
def test_residual_and_dense_networks_take_any_size(name, size):
  arguments = next(arguments for other, arguments, _ in _SMALL if other == name)
  model = models.create(name, num_classes=3, **arguments)
  assert jax.eval_shape(
    lambda x: model.init_with_output(jax.random.key(0), x, train=False), jnp.ones((2, *size, 1))
  )[0].shape == (2, 3)


@pytest.mark.parametrize(
  'name, arguments, message',
  [
    ('preresnet', {'depth': 18}, r'PreResNet: depth must be 9n \+ 2.*got 18'),
    ('preresnet', {'depth': 2}, r'PreResNet: depth must be 9n \+ 2.*got 2'),
    ('preresnet', {'depth': 20.0}, 'depth must be a positive integer, got 20.0'),
    ('preresnet', {'width': 0}, 'width must be a positive integer, got 0'),
    ('densenet', {'depth': 41}, r'DenseNet: depth must be 3n \+ 4.*got 41'),
    ('densenet', {'depth': 37, 'bottleneck': True}, r'depth must be 6n \+ 4.*got 37'),
    ('densenet', {'growth': 0}, 'growth must be a positive integer, got 0'),
    ('densenet', {'stem': -1}, 'stem must be a positive integer, got -1'),
    ('densenet', {'compression': 2.0}, r'compression must be in \(0, 1\], got 2.0'),
    ('densenet', {'drop_rate': 1.0}, r'drop_rate must be in \[0, 1\), got 1.0'),
    ('resnet', {'width': 0}, 'ResNet: width must be a positive integer, got 0'),
    ('resnet', {'blocks': (1, 0)}, 'ResNet: blocks must be a positive integer, got 0'),
    ('vgg', {'dense_widths': (4, 'M')}, "dense_widths must be a positive integer, got 'M'"),
  ],
)
def test_wrong_arguments_are_refused(name, arguments, message):
  model = models.create(name, num_classes=10, **arguments)
  with pytest.raises(ValueError, match=message):
    _params(model, (1, 16, 16, 3))


@pytest.mark.parametrize('name', ['preresnet', 'densenet', 'resnet'])
def test_wrong_images_are_refused(name):
  model = models.create(name, num_classes=10)
  with pytest.raises(ValueError, match=r'batch, height, width, channels\], got \(1, 32, 32\)'):
    _params(model, (1, 32, 32))
  if name == 'densenet':
    with pytest.raises(ValueError, match='3x8 are too small; at least 4x4 is needed'):
      _params(model, (1, 3, 8, 3))


def test_drop_rate_drops_in_training_alone():
  model = models.create('densenet', num_classes=5, depth=7, growth=4, stem=4, drop_rate=0.5)
  variables = _init(model, (4, 8, 8, 3))
  x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3))

  @jax.jit
  def train(key):
    return model.apply(
      variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': jax.random.key(key)}
    )[0]

  np.testing.assert_array_equal(train(0), train(0))
  assert not np.allclose(train(0), train(1))
  jax.eval_shape(lambda x: model.apply(variables, x, train=False), x)  # needs no key


@pytest.mark.parametrize('name', ['vgg', 'mlp'])
@pytest.mark.parametrize('width', [0, -1, 'P', 1.5])
def test_wrong_widths_are_refused(name, width):
  model = models.create(name, num_classes=10, widths=(4, width))
  with pytest.raises(ValueError, match='widths must be positive integers'):
    _params(model, (1, 8, 8, 3))


def test_unknown_name_and_argument():
  with pytest.raises(ValueError, match="no model named 'lenet'.*vgg19.*mlp"):
    models.create('lenet', num_classes=10)
  with pytest.raises(
    TypeError,
    match='no argument depth; it takes axis_name, conv_bias, '
    'dense_norm, dense_widths, drop_rate, widths',
  ):
    models.create('vgg', num_classes=10, depth=19)
