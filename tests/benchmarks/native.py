"""The networks at given widths, built natively: what a thin network is measured against.

Every convolution, BatchNorm and dense layer has the shape that it has in the thin network, so that
the variables of the one fit the other and the arithmetic is the same. Only where the thin network
reads some channels of a stream, here it reads the last so many of them: a slice in place of a
gather, and zeros behind what is narrower than the stream that it is added to. (The last, because
what a dense layer appends must be read by the next one, or the compiler drops the layer.)
"""

from collections.abc import Mapping
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax import models
from slim_jax.models import layers


def create(name: str, params: Any) -> nn.Module:
  """The network of these widths.

  Args:
    name: of `networks.NETWORKS`.
    params: parameters of the thin network, arrays or shapes.
  """
  classes = params['Dense_0']['kernel'].shape[1]
  if name == 'vgg19':
    widths, number = [], 0
    for width in models.WIDTHS['vgg19']:
      widths.append('M' if width == 'M' else params[f'Conv_{number}']['kernel'].shape[3])
      number += width != 'M'
    return models.VGG(classes, widths=tuple(widths))
  shapes = jax.tree.map(lambda leaf: tuple(leaf.shape), params)
  return {'preresnet164': PreResNet, 'densenet40': DenseNet, 'resnet50': ResNet}[name](
    classes, _frozen(shapes)
  )


def _frozen(shapes: Any) -> Any:
  """Shapes by path in a form that can be hashed, as attributes of modules must be."""
  return nn.FrozenDict(shapes)


class _Native(nn.Module):
  """A module whose layers have the widths in `shapes`, the shapes of its parameters."""

  num_classes: int
  shapes: Mapping[str, Any]

  def out(self, name: str) -> int:
    """Output channels of a convolution."""
    return self.shapes[name]['kernel'][3]

  def read(self, x: jax.Array, name: str) -> jax.Array:
    """The last channels of a stream, as many as a BatchNorm takes."""
    return x[..., x.shape[-1] - self.shapes[name]['scale'][0] :]


def _tools(train: bool):
  return layers.Conv, functools.partial(layers.BatchNorm, use_running_average=not train)


class _Bottleneck(_Native):
  """See `models.preresnet.Bottleneck`."""

  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    conv, norm = _tools(train)
    strides = (self.stride, self.stride)
    y = nn.relu(norm()(self.read(x, 'BatchNorm_0')))
    y = nn.relu(norm()(conv(self.out('Conv_0'), (1, 1))(y)))
    y = nn.relu(norm()(conv(self.out('Conv_1'), (3, 3), strides, padding=1)(y)))
    y = conv(self.out('Conv_2'), (1, 1))(y)
    if 'projection' in self.shapes:
      x = conv(self.out('projection'), (1, 1), strides, name='projection')(x)
    return x[..., : y.shape[-1]] + y


class PreResNet(_Native):
  """See `models.PreResNet`."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    conv, norm = _tools(train)
    x = conv(self.out('Conv_0'), (3, 3), padding=1)(x)
    blocks = sum(name.startswith('Bottleneck') for name in self.shapes)
    for i in range(blocks):
      shapes = self.shapes[f'Bottleneck_{i}']
      stride = 2 if i and 'projection' in shapes else 1
      x = _Bottleneck(self.num_classes, shapes, stride=stride, name=f'Bottleneck_{i}')(
        x, train=train
      )
    x = nn.relu(norm()(self.read(x, 'BatchNorm_0')))
    return layers.Dense(self.num_classes)(jnp.mean(x, (1, 2)))


class DenseNet(_Native):
  """See `models.DenseNet`, without bottlenecks."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    conv, norm = _tools(train)
    x = conv(self.out('Conv_0'), (3, 3), padding=1)(x)
    convs = sum(name.startswith('Conv') for name in self.shapes)
    for i in range(1, convs):
      y = nn.relu(norm()(self.read(x, f'BatchNorm_{i - 1}')))
      if self.shapes[f'Conv_{i}']['kernel'][0] == 1:
        x = nn.avg_pool(conv(self.out(f'Conv_{i}'), (1, 1))(y), (2, 2), (2, 2))
      else:
        y = conv(self.out(f'Conv_{i}'), (3, 3), padding=1)(y)
        x = jnp.concatenate([x, y], axis=-1)
    x = nn.relu(norm()(self.read(x, f'BatchNorm_{convs - 1}')))
    return layers.Dense(self.num_classes)(jnp.mean(x, (1, 2)))


class _Block(_Native):
  """See `models.resnet.Block`, with bottlenecks; `width` is that of the stream behind it."""

  width: int = 0
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    conv, norm = _tools(train)
    strides = (self.stride, self.stride)
    y = nn.relu(norm()(conv(self.out('Conv_0'), (1, 1))(x)))
    y = nn.relu(norm()(conv(self.out('Conv_1'), (3, 3), strides, padding=1)(y)))
    y = norm()(conv(self.out('Conv_2'), (1, 1))(y))
    if 'projection' in self.shapes:
      x = conv(self.out('projection'), (1, 1), strides, name='projection')(x)
      x = norm(name='projection_norm')(x)
    return nn.relu(_padded(x, self.width) + _padded(y, self.width))


class ResNet(_Native):
  """See `models.ResNet`, with bottlenecks."""

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    conv, norm = _tools(train)
    x = nn.relu(norm()(conv(self.out('Conv_0'), (7, 7), (2, 2), padding=3)(x)))
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
    blocks = [
      self.shapes[f'Block_{i}']
      for i in range(sum(name.startswith('Block') for name in self.shapes))
    ]
    widths = [block['Conv_0']['kernel'][2] for block in blocks[1:]]
    for i, (block, width) in enumerate(zip(blocks, [*widths, self.shapes['Dense_0']['kernel'][0]])):
      stride = 2 if i and 'projection' in block else 1
      x = _Block(self.num_classes, block, width=width, stride=stride, name=f'Block_{i}')(
        x, train=train
      )
    return layers.Dense(self.num_classes)(jnp.mean(x, (1, 2)))


def _padded(x: jax.Array, width: int) -> jax.Array:
  return jnp.pad(x, ((0, 0),) * 3 + ((0, width - x.shape[-1]),))
