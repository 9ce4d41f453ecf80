"""Architectures for the laws: small, of every kind, written as their authors would.

Nothing here knows of pruning. Each `Case` is a Linen module and an input shape.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import models


class Case(NamedTuple):
  name: str
  module: Callable[[Any], nn.Module]  # of a dtype
  shape: tuple[int, ...]


class Net(nn.Module):
  """Layers in one place: `self.bn(x)` is a BatchNorm in the right dtype and mode."""
  dtype: Any

  def layers(self, train):
    """Constructors of convolution, BatchNorm and dense layer for this call."""
    kinds = dict(dtype=self.dtype, param_dtype=self.dtype)
    conv = functools.partial(nn.Conv, use_bias=False, **kinds)
    bn = functools.partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, **kinds)
    return conv, bn, functools.partial(nn.Dense, **kinds)


class PreActivationResNet(Net):
  """Bottlenecks whose BatchNorms read a shared stream: 'channel selection' in the paper."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = conv(8, (3, 3))(x)
    for planes, stride in ((4, 1), (8, 2)):
      for block in range(2):
        stride_ = stride if block == 0 else 1
        y = conv(planes, (1, 1))(nn.relu(bn()(x)))
        y = conv(planes, (3, 3), stride_)(nn.relu(bn()(y)))
        y = conv(4 * planes, (1, 1))(nn.relu(bn()(y)))
        x = y + (conv(4 * planes, (1, 1), stride_)(x) if block == 0 else x)
    return dense(5)(nn.relu(bn()(x)).mean((1, 2)))


class ResNet(Net):
  """Post-activation: the stream itself is normalised and rectified."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(bn()(conv(8, (7, 7), 2)(x)))
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    for planes, stride in ((8, 1), (16, 2)):
      for block in range(2):
        y = nn.relu(bn()(conv(planes, (3, 3), stride if block == 0 else 1)(x)))
        y = bn()(conv(planes, (3, 3))(y))
        if block == 0:
          x = bn()(conv(planes, (1, 1), stride)(x))
        x = nn.relu(x + y)
    return dense(5)(x.mean((1, 2)))


class DenseNet(Net):
  """Every layer reads the concatenation of all before it."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = conv(8, (3, 3))(x)
    for block in range(2):
      for _ in range(3):
        y = conv(4, (3, 3))(nn.relu(bn()(x)))
        y = nn.Dropout(0.2, deterministic=not train)(y)
        x = jnp.concatenate([x, y], -1)
      if block == 0:
        x = nn.avg_pool(conv(x.shape[-1], (1, 1))(nn.relu(bn()(x))), (2, 2), (2, 2))
    return dense(5)(nn.relu(bn()(x)).mean((1, 2)))


class InvertedResidual(Net):
  """MobileNet-style blocks: depthwise convolution, squeeze-and-excite, linear bottleneck."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu6(bn()(conv(8, (3, 3), 2)(x)))
    for stride in (1, 2):
      y = nn.silu(bn()(conv(24, (1, 1))(x)))
      y = nn.silu(bn()(conv(24, (3, 3), stride, feature_group_count=24)(y)))
      gate = y.mean((1, 2), keepdims=True)
      gate = nn.Conv(6, (1, 1), dtype=self.dtype, param_dtype=self.dtype)(gate)
      gate = nn.Conv(24, (1, 1), dtype=self.dtype, param_dtype=self.dtype)(nn.silu(gate))
      y = bn()(conv(8, (1, 1))(y * nn.sigmoid(gate)))
      x = x + y if stride == 1 else y
    return dense(5)(nn.hard_swish(bn()(conv(32, (1, 1))(x))).mean((1, 2)))


class Grouped(Net):
  """ResNeXt-style grouped convolutions and a channel shuffle."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(bn()(conv(16, (3, 3))(x)))
    y = nn.relu(bn()(conv(16, (1, 1))(x)))
    y = nn.relu(bn()(conv(32, (3, 3), feature_group_count=4)(y)))
    n, h, w, c = y.shape
    y = y.reshape(n, h, w, 4, c // 4).swapaxes(3, 4).reshape(n, h, w, c)
    x = nn.relu(x + bn()(conv(16, (1, 1))(y)))
    x = nn.relu(bn()(conv(32, (3, 3), 2, feature_group_count=16)(x)))
    return dense(5)(x.reshape(n, -1))


class UNet(Net):
  """Skip concatenation, transposed convolution, resizing."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, _ = self.layers(train)
    skip = nn.relu(bn()(conv(8, (3, 3))(x)))
    x = nn.relu(bn()(conv(12, (3, 3))(nn.max_pool(skip, (2, 2), (2, 2)))))
    n, h, w, c = x.shape
    up = jax.image.resize(x, (n, 2 * h, 2 * w, c), 'bilinear')
    x = nn.ConvTranspose(8, (2, 2), (2, 2), dtype=self.dtype, param_dtype=self.dtype)(x)
    x = jnp.concatenate([skip, nn.relu(bn()(x)), up], -1)
    x = nn.relu(bn()(conv(8, (3, 3))(x)))
    return conv(2, (1, 1))(x)


class Pieces(Net):
  """Rearranged channels: split, constant index, reversal, padding, remat, NCHW in between."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(bn()(conv(12, (3, 3))(x)))
    a, b, c = jnp.split(x, (4, 7), -1)
    x = jnp.concatenate([c, a[..., ::-1], b, x[..., np.array([3, 3, 0, 11])]], -1)
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 2)))
    x = bn()(nn.remat(nn.Conv)(8, (3, 3), padding='VALID', dtype=self.dtype,
                               param_dtype=self.dtype)(x))
    x = nn.leaky_relu(x).transpose(0, 3, 1, 2)
    x = jax.lax.reduce_window(x, np.zeros((), x.dtype), jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2),
                              'VALID')
    x = nn.gelu(dense(10)(x.reshape(x.shape[0], -1)))
    return dense(5)(nn.tanh(bn()(x)))


CASES = [
    Case('vgg19', lambda dtype: models.VGG(
        widths=tuple(w if w == 'M' else w // 16 for w in models.WIDTHS['vgg19']), num_classes=5,
        dtype=dtype), (2, 32, 32, 3)),
    Case('mlp', lambda dtype: models.MLP(widths=(24, 16), num_classes=5, dtype=dtype),
         (8, 5, 5, 1)),
    Case('preactivation_resnet', PreActivationResNet, (2, 8, 8, 3)),
    Case('resnet', ResNet, (2, 16, 16, 3)),
    Case('densenet', DenseNet, (2, 8, 8, 3)),
    Case('inverted_residual', InvertedResidual, (2, 8, 8, 3)),
    Case('grouped', Grouped, (2, 8, 8, 3)),
    Case('unet', UNet, (2, 8, 8, 3)),
    Case('pieces', Pieces, (8, 8, 8, 3)),
]


class Model(NamedTuple):
  """A case made concrete.

  Attributes:
    infer: (variables, x) -> output.
    train: (variables, x, key) -> (output, {'batch_stats': ...}).
    variables: with random scales, biases and statistics, none of them zero.
    x: an input.
  """
  infer: Callable[..., Any]
  train: Callable[..., Any]
  variables: Any
  x: Any


def build(case: Case, dtype: Any, seed: int = 0) -> Model:
  """The case as pure functions, in one dtype."""
  module = case.module(dtype)
  key = jax.random.key(seed)
  x = jax.random.normal(key, case.shape, dtype)
  shapes = jax.eval_shape(lambda: module.init({'params': key, 'dropout': key}, x, train=False))
  variables = randomise(shapes, dtype, seed)

  def infer(variables, x):
    return module.apply(variables, x, train=False)

  def train(variables, x, key):
    return module.apply(variables, x, train=True, mutable=['batch_stats'], rngs={'dropout': key})

  return Model(infer, train, variables, x)


def randomise(shapes: Any, dtype: Any, seed: int) -> Any:
  """Random variables of these shapes: scales and variances positive, kernels of unit gain."""
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    name = path[-1].key
    if name in ('scale', 'var'):
      value = rng.uniform(0.3, 1.5, leaf.shape)
    elif name == 'kernel':
      value = rng.normal(size=leaf.shape) / np.sqrt(max(1, np.prod(leaf.shape[:-1])))
    else:
      value = 0.3 * rng.normal(size=leaf.shape)
    return jnp.asarray(value, dtype)

  return jax.tree_util.tree_map_with_path(fill, shapes)
