"""Weights of the PyTorch implementation: the same outputs, and the same channels selected."""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree
from slim_jax.models import from_torch

# The networks of the PyTorch implementation, written again by the names of their arrays in
# PyTorch's layout: images [batch, channels, height, width]. A function of a network calls
# `layer.conv(name, x)` and so on; the same function lists the shapes and computes.


class Shapes:
  """Lists what the layers hold, in the order of the modules."""

  def __init__(self):
    self.found = {}

  def conv(self, name, x, width, size, stride=1):
    self.found[f'{name}.weight'] = (width, x[0], size, size)
    return (width,)

  def norm(self, name, x, select=True):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      self.found[f'{name}.{leaf}'] = x
    self.found[f'{name}.num_batches_tracked'] = ()
    if select:
      self.found[name.rpartition('bn')[0] + 'select.indexes'] = x
    return x

  def linear(self, name, x, classes):
    self.found[f'{name}.weight'] = (classes, x[0])
    self.found[f'{name}.bias'] = (classes,)

  def add(self, x, y):
    assert x == y
    return x

  def concatenate(self, x, y):
    return (x[0] + y[0],)

  def max_pool(self, x):
    return x

  average_pool = max_pool


class Arrays:
  """Computes, in inference."""

  def __init__(self, arrays):
    self.arrays = arrays

  def conv(self, name, x, width, size, stride=1):
    return lax.conv_general_dilated(
      x,
      jnp.asarray(self.arrays[f'{name}.weight']),
      (stride, stride),
      [(size // 2,) * 2] * 2,
      dimension_numbers=('NCHW', 'OIHW', 'NCHW'),
    )

  def norm(self, name, x, select=True):
    weight, bias, mean, var = (
      jnp.asarray(self.arrays[f'{name}.{leaf}']).reshape(1, -1, 1, 1)
      for leaf in ('weight', 'bias', 'running_mean', 'running_var')
    )
    return jnp.maximum((x - mean) / jnp.sqrt(var + 1e-5) * weight + bias, 0)

  def linear(self, name, x, classes):
    x = x.mean((2, 3))
    return x @ self.arrays[f'{name}.weight'].T + self.arrays[f'{name}.bias'][None]

  def add(self, x, y):
    return x + y

  def concatenate(self, x, y):
    return jnp.concatenate([x, y], 1)

  def max_pool(self, x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max((3, 5))

  def average_pool(self, x):
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).mean((3, 5))


def vgg(layer, x, widths, classes):
  position = 0
  for width in widths:
    if width == 'M':
      x = layer.max_pool(x)
      position += 1
    else:
      x = layer.conv(f'feature.{position}', x, width, 3)
      x = layer.norm(f'feature.{position + 1}', x, select=False)
      position += 3
  return layer.linear('classifier', x, classes)


def resnet(layer, x, depth, width, classes):
  x = layer.conv('conv1', x, width, 3)
  for stage in range(3):
    planes = width * 2**stage
    for block in range((depth - 2) // 9):
      name = f'layer{stage + 1}.{block}'
      stride = 2 if stage and not block else 1
      y = layer.conv(f'{name}.conv1', layer.norm(f'{name}.bn1', x), planes, 1)
      y = layer.norm(f'{name}.bn2', y, select=False)
      y = layer.conv(f'{name}.conv2', y, planes, 3, stride)
      y = layer.norm(f'{name}.bn3', y, select=False)
      y = layer.conv(f'{name}.conv3', y, 4 * planes, 1)
      if not block:
        x = layer.conv(f'{name}.downsample.0', x, 4 * planes, 1, stride)
      x = layer.add(y, x)
  return layer.linear('fc', layer.norm('bn', x), classes)


def densenet(layer, x, depth, growth, classes):
  x = layer.conv('conv1', x, 2 * growth, 3)
  for block in (1, 2, 3):
    for i in range((depth - 4) // 3):
      name = f'dense{block}.{i}'
      y = layer.conv(f'{name}.conv1', layer.norm(f'{name}.bn1', x), growth, 3)
      x = layer.concatenate(x, y)
    if block < 3:
      width = 2 * growth + block * (depth - 4) // 3 * growth
      y = layer.conv(f'trans{block}.conv1', layer.norm(f'trans{block}.bn1', x), width, 1)
      x = layer.average_pool(y)
  return layer.linear('fc', layer.norm('bn', x), classes)


_WIDTHS = (6, 8, 'M', 12, 10, 'M', 16)
NETWORKS = {
  'vgg': (lambda layer, x: vgg(layer, x, _WIDTHS, 5), models.VGG(num_classes=5, widths=_WIDTHS)),
  'resnet': (
    lambda layer, x: resnet(layer, x, 20, 4, 5),
    models.PreResNet(num_classes=5, depth=20, width=4),
  ),
  'densenet': (
    lambda layer, x: densenet(layer, x, 13, 4, 5),
    models.DenseNet(num_classes=5, depth=13, growth=4, stem=8),
  ),
}
networks = pytest.mark.parametrize('name', NETWORKS)


def random_weights(network, seed=0):
  """Arrays of a network; scales of either sign, to one digit, so that many are equal."""
  rng = np.random.default_rng(seed)
  shapes = Shapes()
  network(shapes, (3,))
  arrays = {}
  for name, shape in shapes.found.items():
    value = rng.normal(size=shape)
    if name.endswith('num_batches_tracked'):
      arrays[name] = np.int64(7)
      continue
    if name.endswith('indexes'):
      value = np.ones(shape)
    elif name.endswith('running_var'):
      value = rng.uniform(0.5, 2, shape)
    elif len(shape) > 1:
      value /= np.sqrt(np.prod(shape[1:]))
    elif name.endswith('weight'):
      value = np.round(value, 1)
    arrays[name] = value.astype(np.float32)
  return arrays


def norms(arrays):
  """Names of the BatchNorms, in the order of the modules."""
  return [name.removesuffix('.running_mean') for name in arrays if name.endswith('running_mean')]


def masks(arrays, fraction):
  """Which channels the rule of the paper keeps, by BatchNorm: above the one threshold."""
  scales = {name: abs(arrays[f'{name}.weight']) for name in norms(arrays)}
  everything = np.sort(np.concatenate(list(scales.values())))
  threshold = everything[int(everything.size * fraction)]
  return {name: scale > threshold for name, scale in scales.items()}


def module_with(variables, mean):
  """The path of our BatchNorm that holds such running means, found without any name."""
  (found,) = (
    path[1:-1]
    for path, leaf in tree.flatten(variables).items()
    if path[-1] == 'mean' and leaf.shape == mean.shape and np.all(leaf == mean)
  )
  return found


def images(dtype=jnp.float32):
  return jax.random.normal(jax.random.key(3), (2, 8, 8, 3), dtype)


def close(got, want):
  np.testing.assert_allclose(got, want, atol=1e-5 * float(np.abs(want).max()))


@networks
def test_outputs_are_those_of_pytorch(name):
  network, model = NETWORKS[name]
  arrays = random_weights(network)
  variables = from_torch.from_state_dict(model, arrays)
  x = images()
  want = jax.jit(lambda x: network(Arrays(arrays), x.transpose(0, 3, 1, 2)))(x)
  got = jax.jit(lambda variables, x: model.apply(variables, x, train=False))(variables, x)
  assert float(jnp.std(want)) > 0.1
  close(got, want)


@networks
def test_the_tree_is_that_of_init(name):
  network, model = NETWORKS[name]
  variables = from_torch.from_state_dict(model, random_weights(network))
  like = jax.eval_shape(lambda: model.init(jax.random.key(0), images(), train=False))
  assert jax.tree.map(lambda a: (a.shape, a.dtype), variables) == jax.tree.map(
    lambda a: (a.shape, a.dtype), like
  )


@networks
@pytest.mark.parametrize('fraction', [0.1, 0.4, 0.7])
def test_the_channels_kept_are_those_of_the_rule(name, fraction):
  network, model = NETWORKS[name]
  arrays = random_weights(network)
  variables = from_torch.from_state_dict(model, arrays)
  dead = slim_jax.select_global(variables, fraction=fraction)['params']
  kept = masks(arrays, fraction)
  assert len(kept) == len(jax.tree.leaves(dead))
  for norm, keeps in kept.items():
    path = module_with(variables, arrays[f'{norm}.running_mean'])
    np.testing.assert_array_equal(tree.flatten(dead)[*path, 'scale'], ~keeps, err_msg=norm)


@networks
def test_the_thin_network_is_the_masked_one_of_pytorch(name):
  network, model = NETWORKS[name]
  arrays = random_weights(network)
  variables, x = from_torch.from_state_dict(model, arrays), images()
  dead = slim_jax.select_global(variables, fraction=0.4)
  plan = slim_jax.plan(
    lambda variables, x: model.apply(variables, x, train=False), variables, x, dead=dead
  )
  for norm, keeps in masks(arrays, 0.4).items():
    for leaf in ('weight', 'bias'):
      arrays[f'{norm}.{leaf}'] = arrays[f'{norm}.{leaf}'] * keeps
  want = jax.jit(lambda x: network(Arrays(arrays), x.transpose(0, 3, 1, 2)))(x)
  thin = slim_jax.thin(lambda variables, x: model.apply(variables, x, train=False), plan)
  close(jax.jit(thin)(plan.slice(variables), x), want)


@pytest.mark.parametrize(
  'network, model, scales',
  [
    (lambda layer, x: vgg(layer, x, models.WIDTHS['vgg19'], 10), 'vgg19', 5504),
    (lambda layer, x: resnet(layer, x, 164, 16, 10), 'preresnet164', 12_112),
    (lambda layer, x: densenet(layer, x, 40, 12, 10), 'densenet40', 9360),
  ],
)
def test_networks_of_the_paper_import_by_default(network, model, scales):
  shapes = Shapes()
  network(shapes, (3,))
  arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.found.items()}
  variables = from_torch.from_state_dict(models.create(model, num_classes=10), arrays)
  assert (
    sum(leaf.size for path, leaf in tree.flatten(variables).items() if path[-1] == 'scale')
    == scales
  )


def test_names_may_have_a_prefix_and_no_selection():
  network, model = NETWORKS['resnet']
  arrays = random_weights(network)
  variables = from_torch.from_state_dict(model, arrays)
  other = {
    f'module.{name}': value
    for name, value in arrays.items()
    if 'select' not in name and 'num_batches_tracked' not in name
  }
  jax.tree.map(np.testing.assert_array_equal, variables, from_torch.from_state_dict(model, other))


def test_all_that_does_not_fit_is_listed_at_once():
  network, model = NETWORKS['resnet']
  arrays = random_weights(network)
  del arrays['layer2.1.bn3.running_var'], arrays['fc.bias']
  arrays['layer4.0.conv1.weight'] = np.zeros((1, 1, 1, 1), np.float32)
  arrays['conv1.weight'] = np.zeros((4, 3, 5, 5), np.float32)
  arrays['bn.weight'] = arrays['bn.weight'][:-1]
  arrays['layer1.0.select.indexes'] = np.array([1, 0, 1, 1], np.float32)
  with pytest.raises(ValueError) as error:
    from_torch.from_state_dict(model, arrays)
  assert str(error.value).splitlines() == [
    'the weights do not fit the model:',
    '  missing: fc.bias, layer2.1.bn3.running_var',
    '  unexpected: layer4.0.conv1.weight',
    '  of another shape: bn.weight is [63], not [64], '
    'conv1.weight is [4, 3, 5, 5], not [4, 3, 3, 3]',
    '  leaves out channels, so it is of a pruned network: layer1.0.select.indexes',
  ]


@pytest.mark.parametrize(
  'model',
  [
    models.MLP(num_classes=10),
    models.VGG(num_classes=10, dense_widths=(8,)),
    models.DenseNet(num_classes=10, bottleneck=True),
  ],
)
def test_models_without_a_counterpart_are_refused(model):
  with pytest.raises(TypeError, match='no network of the PyTorch implementation'):
    from_torch.from_state_dict(model, {})
