"""ConvNeXt.

Liu et al., "A ConvNet for the 2020s" (CVPR 2022).
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax.models import layers


class Block(nn.Module):
  """A depthwise convolution, LayerNorm, two dense layers and a scale, added to the input.

  Attributes:
    neurons: units of the hidden layer.
    kernel: side of the depthwise convolution.
    layer_scale: what the scales of the added channels start at.
    dtype: of the computation.
  """

  neurons: int
  kernel: int = 7
  layer_scale: float = 1e-6
  dtype: Any = jnp.float32

  @property
  def gamma_init(self) -> jax.nn.initializers.Initializer:
    return nn.initializers.constant(self.layer_scale)

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [batch, height, width, channels] for inputs of this shape."""
    width, size = x.shape[-1], (self.kernel, self.kernel)
    y = nn.Conv(width, size, feature_group_count=width, dtype=self.dtype, name='depthwise')(x)
    y = nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)(y)
    y = nn.gelu(nn.Dense(self.neurons, dtype=self.dtype)(y))
    y = nn.Dense(width, dtype=self.dtype)(y)
    gamma = self.param('gamma', self.gamma_init, (width,))
    return x + y * jnp.asarray(gamma, self.dtype)[None, None, None]


class ConvNeXt(nn.Module):
  """A convolution of patches, stages of blocks, the mean over the image, linear.

  Every stage but the first halves the image size.

  Attributes:
    num_classes: length of the logits.
    patch: side of the patches of the first convolution, in pixels.
    widths: channels of the stream in each stage.
    neurons: units of the hidden layer of each block of each stage; 4 times the width in the paper.
    kernel: side of the depthwise convolutions.
    layer_scale: what the scales of the added channels start at.
    dtype: of the computation; parameters are float32.
  """

  num_classes: int
  patch: int = 4
  widths: Sequence[int] = (96, 192, 384, 768)
  neurons: Sequence[Sequence[int]] = ((384,) * 3, (768,) * 3, (1536,) * 9, (3072,) * 3)
  kernel: int = 7
  layer_scale: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits.

    Args:
      x: normalised images, float [batch, height, width, channels].
      train: makes no difference.

    Returns:
      Logits [batch, num_classes] in `dtype`, but at least float32.

    Raises:
      ValueError: an attribute is not a positive integer, `widths` and `neurons` differ in length,
        or `x` does not have these axes or is too small.
    """
    del train
    self._check(x)
    x = jnp.asarray(x, self.dtype)
    for stage, (width, neurons) in enumerate(zip(self.widths, self.neurons, strict=True)):
      size = (2, 2) if stage else (self.patch, self.patch)
      x = self._norm()(x) if stage else x
      x = nn.Conv(width, size, size, padding='VALID', dtype=self.dtype)(x)
      x = x if stage else self._norm()(x)
      for count in neurons:
        x = Block(count, self.kernel, self.layer_scale, self.dtype)(x)
    x = self._norm()(x.mean((1, 2)))
    x = layers.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _norm(self) -> nn.LayerNorm:
    return nn.LayerNorm(epsilon=1e-6, dtype=self.dtype)

  def _check(self, x: jax.Array) -> None:
    layers.check_positive(model='ConvNeXt', patch=self.patch, kernel=self.kernel)
    stages = layers.zipped(model='ConvNeXt', widths=self.widths, neurons=self.neurons)
    for width, neurons in stages:
      layers.check_positive(model='ConvNeXt', widths=width)
      for count in neurons:
        layers.check_positive(model='ConvNeXt', neurons=count)
    smallest = self.patch * 2 ** (len(stages) - 1)
    layers.check_images(x, model='ConvNeXt', smallest=smallest)
