"""DenseNet, in the form used on CIFAR and SVHN.

Huang et al., "Densely connected convolutional networks" (CVPR 2017), with the
initialisation of Liu et al., "Learning efficient convolutional networks through network
slimming" (ICCV 2017).
"""

import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax.models import layers


class DenseNet(nn.Module):
  """A 3x3 convolution, three dense blocks, BatchNorm, ReLU, average, linear.

  A layer of a block is BatchNorm, ReLU and 3x3 convolution; its output is appended to
  its input. Between blocks there are BatchNorm, ReLU, 1x1 convolution and 2x2 average
  pool. On 32x32 images the last average is the 8x8 average pool of the original.

  Attributes:
    num_classes: length of the logits.
    depth: 3n + 4 for n layers in each block, 6n + 4 with `bottleneck`; the paper has 40.
    growth: number of channels that a layer appends.
    stem: output channels of the first convolution. The authors' PyTorch code has 24;
      the number of parameters in the paper corresponds to 16.
    compression: output channels of a 1x1 convolution between blocks as a share of its
      inputs, in (0, 1]; rounded down, but at least one channel.
    bottleneck: whether a layer starts with BatchNorm, ReLU and a 1x1 convolution to
      4 * growth channels; with compression 0.5 this is DenseNet-BC.
    drop_rate: of the dropout at the end of a layer, in [0, 1); training then needs a
      key named 'dropout'.
    dtype: of the computation; parameters and batch statistics are float32.
    axis_name: mapped axis over which BatchNorm averages its statistics, or None
      for statistics of the local batch.
  """

  num_classes: int
  depth: int = 40
  growth: int = 12
  stem: int = 24
  compression: float = 1.0
  bottleneck: bool = False
  drop_rate: float = 0.0
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits.

    Args:
      x: normalised images, float [batch, height, width, channels], 4x4 or larger.
      train: whether BatchNorm uses, and with `mutable=['batch_stats']` updates
        from, the statistics of this batch; and whether dropout drops.

    Returns:
      Logits [batch, num_classes] in `dtype`, but at least float32.

    Raises:
      ValueError: the images are too small, or an attribute is out of range.
    """
    self._check(x)
    conv = functools.partial(layers.Conv, dtype=self.dtype)
    norm = functools.partial(
      layers.BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name
    )
    x = jnp.asarray(x, self.dtype)
    x = conv(self.stem, (3, 3), padding=1)(x)
    for block in range(3):
      if block > 0:
        width = max(1, int(x.shape[-1] * self.compression))
        x = conv(width, (1, 1))(nn.relu(norm()(x)))
        x = nn.avg_pool(x, (2, 2), strides=(2, 2))
      for _ in range((self.depth - 4) // (6 if self.bottleneck else 3)):
        y = nn.relu(norm()(x))
        if self.bottleneck:
          y = nn.relu(norm()(self._drop(conv(4 * self.growth, (1, 1))(y), train)))
        y = self._drop(conv(self.growth, (3, 3), padding=1)(y), train)
        x = jnp.concatenate([x, y], axis=-1)
    x = nn.relu(norm()(x))
    x = jnp.mean(x, axis=(1, 2))
    x = layers.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _drop(self, x: jax.Array, train: bool) -> jax.Array:
    return nn.Dropout(self.drop_rate, deterministic=not train)(x)

  def _check(self, x: jax.Array) -> None:
    layers.check_images(x, model='DenseNet', smallest=4)  # halved twice
    layers.check_positive(model='DenseNet', depth=self.depth, growth=self.growth, stem=self.stem)
    step = 6 if self.bottleneck else 3
    if self.depth < step + 4 or (self.depth - 4) % step:
      raise ValueError(f'DenseNet: depth must be {step}n + 4, such as 40 or 100, got {self.depth}')
    if not 0 < self.compression <= 1:
      raise ValueError(f'DenseNet: compression must be in (0, 1], got {self.compression}')
    if not 0 <= self.drop_rate < 1:
      raise ValueError(f'DenseNet: drop_rate must be in [0, 1), got {self.drop_rate}')
