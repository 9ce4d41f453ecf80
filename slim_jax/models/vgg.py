"""VGG with batch normalisation, in the form used on CIFAR and SVHN.

Simonyan and Zisserman, "Very deep convolutional networks for large-scale image
recognition" (ICLR 2015), with the single linear layer, the BatchNorm and the
initialisation of Liu et al., "Learning efficient convolutional networks through
network slimming" (ICCV 2017).
"""

from collections.abc import Sequence
import numbers
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

# Output channels of each 3x3 convolution; 'M' is a 2x2 max-pool.
WIDTHS = {
    'vgg11': (64, 'M', 128, 'M', 256, 256, 'M', 512, 512, 'M', 512, 512),
    'vgg13': (64, 64, 'M', 128, 128, 'M', 256, 256, 'M', 512, 512, 'M',
              512, 512),
    'vgg16': (64, 64, 'M', 128, 128, 'M', 256, 256, 256, 'M', 512, 512, 512, 'M',
              512, 512, 512),
    'vgg19': (64, 64, 'M', 128, 128, 'M', 256, 256, 256, 256, 'M',
              512, 512, 512, 512, 'M', 512, 512, 512, 512),
}

_he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class VGG(nn.Module):
  """Convolutions, max-pools, one average over what remains, one linear layer.

  Every convolution is 3x3 with padding 1 and no bias, followed by BatchNorm and
  ReLU. On 32x32 images with four max-pools the last average is the 2x2 average
  pool of the original.

  Attributes:
    num_classes: length of the logits.
    widths: output channels of each convolution in order, 'M' for a max-pool;
      `WIDTHS` has those of VGG-11, 13, 16 and 19.
    dtype: of the computation; parameters and batch statistics are float32.
    axis_name: mapped axis over which BatchNorm averages its statistics, or None
      for statistics of the local batch.
  """

  num_classes: int
  widths: Sequence[int | str] = WIDTHS['vgg19']
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
      ValueError: the images are too small for the max-pools, or `widths` is not
        made of positive integers and 'M'.
    """
    self._check(x)
    x = jnp.asarray(x, self.dtype)
    for width in self.widths:
      if width == 'M':
        x = nn.max_pool(x, (2, 2), strides=(2, 2))
        continue
      x = nn.Conv(width, (3, 3), padding=1, use_bias=False, dtype=self.dtype,
                  kernel_init=_he_fan_out)(x)
      x = nn.BatchNorm(use_running_average=not train, momentum=0.9, epsilon=1e-5,
                       dtype=self.dtype, axis_name=self.axis_name,
                       scale_init=nn.initializers.constant(0.5))(x)
      x = nn.relu(x)
    x = jnp.mean(x, axis=(1, 2))
    x = nn.Dense(self.num_classes, dtype=self.dtype,
                 kernel_init=nn.initializers.normal(0.01))(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _check(self, x: jax.Array) -> None:
    for width in self.widths:
      if width != 'M' and not (isinstance(width, numbers.Integral) and width > 0):
        raise ValueError(
            f"VGG: widths must be positive integers or 'M' (a 2x2 max-pool), got "
            f'{width!r} in {tuple(self.widths)}')
    if x.ndim != 4:
      raise ValueError(
          f'VGG: images must be [batch, height, width, channels], got {x.shape}')
    pools = sum(width == 'M' for width in self.widths)
    height, width = x.shape[1:3]
    if min(height, width) < 2**pools:
      raise ValueError(
          f'VGG: images of {height}x{width} are too small for {pools} max-pools, '
          f'which need at least {2**pools}x{2**pools}; use larger images or '
          f"widths with fewer 'M' than {tuple(self.widths)}")
