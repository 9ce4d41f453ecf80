"""Flax Linen."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from helpers.zoo.model import Model


def functions(module: nn.Module, x: Any) -> Model:
  """A Linen module, called with `train`, as pure functions of its variables."""
  key = jax.random.key(0)
  shapes = jax.eval_shape(lambda: module.init({'params': key, 'dropout': key}, x, train=False))
  states = [name for name in shapes if name != 'params']

  def infer(variables, x):
    return module.apply(variables, x, train=False)

  def train(variables, x, key):
    return module.apply(variables, x, train=True, mutable=states, rngs={'dropout': key})

  return Model(infer, train, shapes, x, (None, {name: name for name in states}), 'params')


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
      for _ in range(2):
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
    x = bn()(
      nn.remat(nn.Conv)(8, (3, 3), padding='VALID', dtype=self.dtype, param_dtype=self.dtype)(x)
    )
    x = nn.leaky_relu(x).transpose(0, 3, 1, 2)
    x = jax.lax.reduce_window(
      x, np.zeros((), x.dtype), jax.lax.add, (1, 1, 2, 2), (1, 1, 2, 2), 'VALID'
    )
    x = nn.gelu(dense(10)(x.reshape(x.shape[0], -1)))
    return dense(5)(nn.tanh(bn()(x)))


class BottleneckResNet(Net):
  """ResNet v1.5 as in Flax's ImageNet example: the stride is at the 3x3 convolution."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(bn(name='bn_init')(conv(8, (7, 7), 2, padding=[(3, 3), (3, 3)])(x)))
    x = nn.max_pool(x, (3, 3), (2, 2), 'SAME')
    for stage, blocks in enumerate((2, 1)):
      filters = 4 * 2**stage
      for block in range(blocks):
        stride = 2 if stage and not block else 1
        y = nn.relu(bn()(conv(filters, (1, 1))(x)))
        y = nn.relu(bn()(conv(filters, (3, 3), stride)(y)))
        y = bn(scale_init=nn.initializers.zeros_init())(conv(4 * filters, (1, 1))(y))
        if x.shape != y.shape:
          x = bn(name=f'norm_proj_{stage}')(conv(4 * filters, (1, 1), stride)(x))
        x = nn.relu(x + y)
    return dense(5)(x.mean((1, 2)))


class ResNeXt(Net):
  """Bottlenecks with grouped convolutions, each branch gated by squeeze-and-excite if asked."""

  excite: bool

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(bn()(conv(8, (3, 3))(x)))
    for width, stride in ((8, 1), (12, 2)):
      y = nn.relu(bn()(conv(width, (1, 1))(x)))
      y = nn.relu(bn()(conv(width, (3, 3), stride, feature_group_count=4)(y)))
      y = bn()(conv(2 * width, (1, 1))(y))
      if self.excite:
        gate = nn.sigmoid(dense(2 * width)(nn.relu(dense(3)(y.mean((1, 2))))))
        y = y * gate[:, None, None]
      x = nn.relu(y + bn()(conv(2 * width, (1, 1), stride)(x)))
    return dense(5)(x.mean((1, 2)))


def shuffle(x, groups):
  """Channel shuffle: transposes [groups, channels of a group]."""
  n, h, w, c = x.shape
  return x.reshape(n, h, w, groups, c // groups).swapaxes(3, 4).reshape(n, h, w, c)


class ShuffleNet(Net):
  """ShuffleNet v1: grouped 1x1 convolutions, shuffled; the strided unit concatenates."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(bn()(conv(8, (3, 3))(x)))
    for stride in (2, 1):
      c = x.shape[-1]
      y = nn.relu(bn()(conv(c, (1, 1), feature_group_count=2)(x)))
      y = bn()(conv(c, (3, 3), stride, feature_group_count=c)(shuffle(y, 2)))
      y = bn()(conv(c, (1, 1), feature_group_count=2)(y))
      if stride == 2:
        x = nn.relu(jnp.concatenate([nn.avg_pool(x, (3, 3), (2, 2), 'SAME'), y], -1))
      else:
        x = nn.relu(x + y)
    return dense(5)(x.mean((1, 2)))


class ShuffleNetV2(Net):
  """ShuffleNet v2: half of the channels pass by, then the halves are shuffled together."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(bn()(conv(8, (3, 3))(x)))
    for stride in (2, 1, 1):
      left, right = (x, x) if stride == 2 else jnp.split(x, 2, -1)
      c = right.shape[-1]
      if stride == 2:
        left = bn()(conv(c, (3, 3), 2, feature_group_count=c)(left))
        left = nn.relu(bn()(conv(c, (1, 1))(left)))
      right = nn.relu(bn()(conv(c, (1, 1))(right)))
      right = bn()(conv(c, (3, 3), stride, feature_group_count=c)(right))
      right = nn.relu(bn()(conv(c, (1, 1))(right)))
      x = shuffle(jnp.concatenate([left, right], -1), 2)
    return dense(5)(x.mean((1, 2)))


class Inception(Net):
  """Branches of several depths, concatenated; factorised and pooled ones among them."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)

    def unit(x, width, *size, stride=1):
      return nn.relu(bn()(conv(width, size, stride)(x)))

    x = unit(x, 8, 3, 3)
    for _ in range(2):
      x = jnp.concatenate(
        [
          unit(x, 4, 1, 1),
          unit(unit(x, 4, 1, 1), 6, 5, 5),
          unit(unit(unit(x, 4, 1, 1), 4, 1, 7), 6, 7, 1),
          unit(nn.avg_pool(x, (3, 3), (1, 1), 'SAME'), 4, 1, 1),
        ],
        -1,
      )
    x = jnp.concatenate([unit(x, 6, 3, 3, stride=2), nn.max_pool(x, (3, 3), (2, 2), 'SAME')], -1)
    return dense(5)(x.mean((1, 2)))


class Layer(Net):
  """One of a stack: a pre-activation block, in the form that `nn.scan` wants."""

  train: bool

  @nn.compact
  def __call__(self, x, _):
    conv, bn, _ = self.layers(self.train)
    y = conv(12, (3, 3))(nn.relu(bn()(x)))
    return x + conv(8, (1, 1))(nn.relu(bn()(y))), x.mean((1, 2))


class Scanned(Net):
  """Three layers that share a body, their variables stacked; each hands out a mean."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    stack = nn.scan(
      Layer, variable_axes={'params': 0, 'batch_stats': 0}, split_rngs={'params': True}, length=3
    )
    x, means = stack(self.dtype, train)(conv(8, (3, 3))(x), None)
    x = nn.relu(bn()(x)).mean((1, 2)) + means.sum(0)
    return dense(5)(x)


class FlatNorm(Net):
  """BatchNorm on the very input, and between flattened images and dense layers."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(conv(6, (3, 3))(bn()(x)))
    x = bn()(x.reshape(x.shape[0], -1))
    x = nn.relu(dense(12)(x))
    return dense(5)(bn()(x))


class Mixer(Net):
  """MLP-Mixer: LayerNorm only, so nothing can die but the neurons one names."""

  @nn.compact
  def __call__(self, x, train):
    conv, _, dense = self.layers(train)
    x = conv(8, (4, 4), 4)(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    for block in range(2):
      y = nn.LayerNorm(dtype=self.dtype)(x).swapaxes(1, 2)
      y = dense(x.shape[1])(nn.gelu(dense(6, name=f'neurons_{block}_tokens')(y)))
      x = x + y.swapaxes(1, 2)
      y = nn.LayerNorm(dtype=self.dtype)(x)
      x = x + dense(x.shape[2])(nn.gelu(dense(12, name=f'neurons_{block}')(y)))
    return dense(5)(nn.LayerNorm(dtype=self.dtype)(x).mean(1))


class ViT(Net):
  """Vision transformer with a class token and learned positions."""

  @nn.compact
  def __call__(self, x, train):
    conv, _, dense = self.layers(train)
    normal = nn.initializers.normal()
    x = conv(8, (4, 4), 4)(x)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    first = self.param('cls', normal, (1, 1, 8), self.dtype)
    x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, 8)), x], 1)
    x = x + self.param('positions', normal, (1, x.shape[1], 8), self.dtype)
    for block in range(2):
      y = nn.LayerNorm(dtype=self.dtype)(x)
      x = x + nn.MultiHeadDotProductAttention(
        2, dtype=self.dtype, param_dtype=self.dtype, deterministic=not train
      )(y)
      y = nn.LayerNorm(dtype=self.dtype)(x)
      y = dense(8)(nn.gelu(dense(16, name=f'neurons_{block}')(y)))
      x = x + nn.Dropout(0.1, deterministic=not train)(y)
    return dense(5)(nn.LayerNorm(dtype=self.dtype)(x)[:, 0])
