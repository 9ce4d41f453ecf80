"""ResNet with pre-activation bottlenecks, in the form used on CIFAR and SVHN.

He et al., "Identity mappings in deep residual networks" (ECCV 2016), with the
projections and the initialisation of Liu et al., "Learning efficient convolutional
networks through network slimming" (ICCV 2017).
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax.models import layers


class Bottleneck(nn.Module):
  """BatchNorm, ReLU and convolution three times, added to the input.

  Attributes:
    width: output channels of the first two convolutions; the third has 4 * width.
    conv: makes a convolution.
    norm: makes a BatchNorm.
    stride: of the 3x3 convolution in the middle.
    project: whether the input goes through a 1x1 convolution before it is added. It
      reads the input itself, without BatchNorm and ReLU.
  """

  width: int
  conv: Callable[..., nn.Module]
  norm: Callable[..., nn.Module]
  stride: int = 1
  project: bool = False

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [batch, ceil(height / stride), ceil(width / stride), 4 * width]."""
    strides = (self.stride, self.stride)
    y = self.conv(self.width, (1, 1))(nn.relu(self.norm()(x)))
    y = self.conv(self.width, (3, 3), strides, padding=1)(nn.relu(self.norm()(y)))
    y = self.conv(4 * self.width, (1, 1))(nn.relu(self.norm()(y)))
    if self.project:
      x = self.conv(4 * self.width, (1, 1), strides, name='projection')(x)
    return x + y


class PreResNet(nn.Module):
  """A 3x3 convolution, three stages of bottlenecks, BatchNorm, ReLU, average, linear.

  The second and the third stage halve the image size and double the channels. On 32x32
  images the average is the 8x8 average pool of the original. All blocks are bottlenecks,
  so depths 56 and 110 are not the networks of basic blocks with these names.

  Attributes:
    num_classes: length of the logits.
    depth: 9n + 2 for n bottlenecks in each stage; the paper has 164.
    width: output channels of the first convolution and of the first two convolutions of
      each bottleneck of the first stage.
    dtype: of the computation; parameters and batch statistics are float32.
    axis_name: mapped axis over which BatchNorm averages its statistics, or None
      for statistics of the local batch.
  """

  num_classes: int
  depth: int = 164
  width: int = 16
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
      ValueError: `depth` is not 9n + 2, `width` is not positive, or `x` does not have
        these axes.
    """
    self._check(x)
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    norm = functools.partial(
      layers.BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name
    )
    x = jnp.asarray(x, self.dtype)
    x = conv(self.width, (3, 3), padding=1)(x)
    for stage in range(3):
      for block in range((self.depth - 2) // 9):
        first = block == 0
        x = Bottleneck(
          self.width * 2**stage, conv, norm, project=first, stride=2 if first and stage > 0 else 1
        )(x)
    x = nn.relu(norm()(x))
    x = jnp.mean(x, axis=(1, 2))
    x = layers.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _check(self, x: jax.Array) -> None:
    layers.check_images(x, model='PreResNet')
    layers.check_positive(model='PreResNet', depth=self.depth, width=self.width)
    if self.depth < 11 or (self.depth - 2) % 9:
      raise ValueError(
        f'PreResNet: depth must be 9n + 2, such as 20, 56, 110 or 164, got {self.depth}'
      )
