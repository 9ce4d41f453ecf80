"""The networks of the PyTorch implementation, as arrays by PyTorch's names."""

from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import models

# The networks of the PyTorch implementation, written again by the names of their arrays in
# PyTorch's layout: images [batch, channels, height, width]. A function of a network calls
# `layer.conv(name, x)` and so on; the same function lists the shapes and computes.


class Shapes:
  """Lists what the layers hold, in the order of the modules."""

  def __init__(self):
    self.arrays = {}

  def conv(self, name, x, width, size, stride=1):
    self.arrays[f'{name}.weight'] = (width, x[0], size, size)
    return (width,)

  def norm(self, name, x, select=True):
    for leaf in ('weight', 'bias', 'running_mean', 'running_var'):
      self.arrays[f'{name}.{leaf}'] = x
    self.arrays[f'{name}.num_batches_tracked'] = ()
    if select:
      self.arrays[name.rpartition('bn')[0] + 'select.indexes'] = x
    return x

  def linear(self, name, x, classes):
    self.arrays[f'{name}.weight'] = (classes, x[0])
    self.arrays[f'{name}.bias'] = (classes,)

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


def random_weights(network, seed=0):
  """Arrays of a network; scales of either sign, to one digit, so that many are equal."""
  rng = np.random.default_rng(seed)
  shapes = Shapes()
  network(shapes, (3,))
  arrays = {}
  for name, shape in shapes.arrays.items():
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
