"""Layers as Liu et al. (ICCV 2017) set them up, for all models here.

Each is a layer of Linen with other defaults; `dtype` and the rest are given where it
is used.
"""

import functools
import numbers

from flax import linen as nn
import jax

he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# No bias, since BatchNorm adds one.
Conv = functools.partial(nn.Conv, use_bias=False, kernel_init=he_fan_out)
# Scales start at a half. `momentum` is the share of the old value, as Flax has it.
BatchNorm = functools.partial(
  nn.BatchNorm, momentum=0.9, epsilon=1e-5, scale_init=nn.initializers.constant(0.5)
)
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))


def check_images(x: jax.Array, *, model: str, smallest: int = 1) -> None:
  """Checks what a convolutional model is given.

  Args:
    x: images [batch, height, width, channels].
    model: its name, for the error.
    smallest: height and width that it needs.

  Raises:
    ValueError: `x` has other axes, or is too small.
  """
  if x.ndim != 4:
    raise ValueError(f'{model}: images must be [batch, height, width, channels], got {x.shape}')
  height, width = x.shape[1:3]
  if min(height, width) < smallest:
    raise ValueError(
      f'{model}: images of {height}x{width} are too small, it needs at least {smallest}x{smallest}'
    )


def check_positive(*, model: str, **attributes: int) -> None:
  """Checks attributes of a model that count something.

  Raises:
    ValueError: one is not a positive integer.
  """
  for name, value in attributes.items():
    if not (isinstance(value, numbers.Integral) and value > 0):
      raise ValueError(f'{model}: {name} must be a positive integer, got {value!r}')
