"""VGG with batch normalisation, in the forms used on CIFAR, on SVHN and on ImageNet.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition" (ICLR 2015), with the dense layers, the BatchNorm and the initialisation of
Liu et al., "Learning efficient convolutional networks through network slimming"
(ICCV 2017); and with dense layers as in the first paper, as torchvision has them.
"""

from collections.abc import Sequence
import functools
import math
import numbers
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.models import layers

# Output channels of each 3x3 convolution; 'M' is a 2x2 max-pool.
WIDTHS = {
  'vgg11': (64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512),
  'vgg13': (64, 64, 'M', 128, 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512),
  'vgg16': (64, 64, 'M', 128, 128, 'M', 256, 256, 256, 'M', 512, 512, 512, 'M', 512, 512, 512),
  'vgg19': (64, 64, 'M', 128, 128, 'M', *4 * [256], 'M', *4 * [512], 'M', *4 * [512]),
  'vgg_a': (64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512, 'M'),
}


class VGG(nn.Module):
  """Convolutions and max-pools, then dense layers.

  Every convolution is 3x3 with padding 1, followed by BatchNorm and ReLU. By default
  the average over all pixels and a linear layer follow. On 32x32 images with four
  max-pools this is the 2x2 average pool of the original. With `dense_widths` the image is
  flattened instead, so the parameters fit one image size only.

  Attributes:
    num_classes: length of the logits.
    widths: output channels of each convolution in order, 'M' for a max-pool;
      `WIDTHS` has those of VGG-11, 13, 16 and 19, and of VGG-A for ImageNet.
    dense_widths: units of each dense layer before the last one; each has a ReLU. VGG-A
      has (4096, 4096).
    conv_bias: whether convolutions have a bias, as in VGG-A.
    dense_norm: whether the dense layers before the last one have BatchNorm, as in the
      network slimming paper; those of torchvision do not.
    drop_rate: of the dropout after each of these dense layers, in [0, 1); training then
      needs a key named 'dropout'.
    dtype: of the computation; parameters and batch statistics are float32.
    axis_name: mapped axis over which BatchNorm averages its statistics, or None
      for statistics of the local batch.
  """

  num_classes: int
  widths: Sequence[int | str] = WIDTHS['vgg19']
  dense_widths: Sequence[int] = ()
  conv_bias: bool = False
  dense_norm: bool = True
  drop_rate: float = 0.0
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
      ValueError: the images are too small for the max-pools or, with `dense_widths`,
        do not have the size that the parameters fit; a width is not a positive integer
        (or 'M'); or `drop_rate` is out of range.
    """
    self._check(x)
    norm = functools.partial(
      layers.BatchNorm, use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name
    )
    x = jnp.asarray(x, self.dtype)
    for width in self.widths:
      if isinstance(width, str):
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        continue
      x = layers.Conv(width, (3, 3), padding=1, use_bias=self.conv_bias, dtype=self.dtype)(x)
      x = nn.relu(norm()(x))
    x = self._flatten(x) if self.dense_widths else jnp.mean(x, axis=(1, 2))
    for width in self.dense_widths:
      x = layers.Dense(width, dtype=self.dtype)(x)
      x = nn.relu(norm()(x) if self.dense_norm else x)
      x = nn.Dropout(self.drop_rate, deterministic=not train)(x)
    x = layers.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _check(self, x: jax.Array) -> None:
    for width in self.widths:
      if width != 'M' and (not isinstance(width, numbers.Integral) or int(width) <= 0):
        raise ValueError(
          f"VGG: widths must be positive integers or 'M' (a 2x2 max-pool), got "
          f'{width!r} in {tuple(self.widths)}'
        )
    for width in self.dense_widths:
      layers.check_positive(model='VGG', dense_widths=width)
    if not 0 <= self.drop_rate < 1:
      raise ValueError(f'VGG: drop_rate must be in [0, 1), got {self.drop_rate}')
    layers.check_images(x, model='VGG')
    pools = sum(width == 'M' for width in self.widths)
    height, width = x.shape[1:3]
    if any(jaxprs.at_least(size, 2**pools) is False for size in (height, width)):
      raise ValueError(
        f'VGG: images of {height}x{width} are too small for {pools} max-pools, '
        f'which need at least {2**pools}x{2**pools}; use larger images or '
        f"widths with fewer 'M' than {tuple(self.widths)}"
      )

  def _flatten(self, x: jax.Array) -> jax.Array:
    """Returns [batch, height * width * channels], checked against the first dense layer."""
    flat = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    if self.has_variable('params', 'Dense_0'):
      rows = self.get_variable('params', 'Dense_0')['kernel'].shape[0]
      if rows != flat.shape[1]:
        raise ValueError(
          f'VGG: the first dense layer takes {rows} values, but the max-pools leave '
          f'{"x".join(map(str, x.shape[1:]))}; use images of the size that the parameters '
          f'were made for'
        )
    return flat
