"""ResNet for ImageNet, with the stride of a bottleneck on its 3x3 convolution.

He et al., "Deep residual learning for image recognition" (CVPR 2016), in the variant
known as v1.5 (https://arxiv.org/abs/1706.02677, section 5.1). The network slimming paper
does not use it; the initialisation is that of its networks.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax.models import layers

# Blocks of each stage, and whether they are bottlenecks.
STAGES = {
  'resnet18': ((2, 2, 2, 2), False),
  'resnet34': ((3, 4, 6, 3), False),
  'resnet50': ((3, 4, 6, 3), True),
  'resnet101': ((3, 4, 23, 3), True),
  'resnet152': ((3, 8, 36, 3), True),
}


class Block(nn.Module):
  """Convolutions with BatchNorm, added to the input; ReLU between them and after.

  Attributes:
    width: output channels of the 3x3 convolutions.
    conv: makes a convolution.
    norm: makes a BatchNorm.
    bottleneck: whether the convolutions are 1x1, 3x3 and 1x1 to 4 * width channels,
      instead of two of 3x3.
    stride: of the first 3x3 convolution.
  """

  width: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  bottleneck: bool = True
  stride: int = 1

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [batch, ceil(height / stride), ceil(width / stride), outputs]."""
    strides = (self.stride, self.stride)
    if self.bottleneck:
      outputs = 4 * self.width
      y = nn.relu(self.norm()(self.conv(self.width, (1, 1))(x)))
      y = nn.relu(self.norm()(self.conv(self.width, (3, 3), strides, padding=1)(y)))
      y = self.norm()(self.conv(outputs, (1, 1))(y))
    else:
      outputs = self.width
      y = nn.relu(self.norm()(self.conv(self.width, (3, 3), strides, padding=1)(x)))
      y = self.norm()(self.conv(outputs, (3, 3), padding=1)(y))
    if self.stride > 1 or x.shape[-1] != outputs:
      x = self.conv(outputs, (1, 1), strides, name='projection')(x)
      x = self.norm(name='projection_norm')(x)
    return nn.relu(x + y)


class ResNet(nn.Module):
  """A 7x7 convolution and a max-pool, stages of blocks, average, linear.

  Every stage but the first halves the image size and doubles the channels.

  Attributes:
    num_classes: length of the logits.
    blocks: number of blocks of each stage; `STAGES` has those of ResNet-18 to 152.
    bottleneck: whether blocks are bottlenecks.
    width: output channels of the first convolution and of the 3x3 convolutions of the
      first stage.
    dtype: of the computation; parameters and batch statistics are float32.
    axis_name: mapped axis over which BatchNorm averages its statistics, or None
      for statistics of the local batch.
  """

  num_classes: int
  blocks: Sequence[int] = STAGES['resnet50'][0]
  bottleneck: bool = True
  width: int = 64
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits.

    Args:
      x: normalised images, float [batch, height, width, channels].
      train: whether BatchNorm uses, and with `mutable=['batch_stats']` updates
        from, the statistics of this batch.

    Returns:
      Logits [batch, num_classes] in `dtype`, but at least float32.

    Raises:
      ValueError: `width` or one of `blocks` is not a positive integer, or `x` does not
        have these axes.
    """
    self._check(x)
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    norm = functools.partial(
      layers.BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name
    )
    x = jnp.asarray(x, self.dtype)
    x = nn.relu(norm()(conv(self.width, (7, 7), (2, 2), padding=3)(x)))
    padding: Any = ((1, 1), (1, 1))  # Flax annotates it as a string
    x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=padding)
    for stage, blocks in enumerate(self.blocks):
      for block in range(blocks):
        x = Block(
          self.width * 2**stage,
          conv,
          norm,
          bottleneck=self.bottleneck,
          stride=2 if block == 0 and stage > 0 else 1,
        )(x)
    x = jnp.mean(x, axis=(1, 2))
    x = layers.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _check(self, x: jax.Array) -> None:
    layers.check_images(x, model='ResNet')
    layers.check_positive(model='ResNet', width=self.width)
    for blocks in self.blocks:
      layers.check_positive(model='ResNet', blocks=blocks)
