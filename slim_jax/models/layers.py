"""Layers with the settings of Liu et al. (ICCV 2017), for all models here.

Each is a Linen layer with other defaults; models pass `dtype` and the other arguments.
"""

from collections.abc import Sequence
import functools
import numbers
from typing import Any

from flax import linen as nn
import jax

from slim_jax import jaxprs

he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')

# No bias, since BatchNorm adds one.
half = nn.initializers.constant(0.5)

Conv = functools.partial(nn.Conv, use_bias=False, kernel_init=he_fan_out)
# Scales start at 0.5. `momentum` is the weight of the old value, as in Flax.
BatchNorm = functools.partial(nn.BatchNorm, momentum=0.9, epsilon=1e-5, scale_init=half)
Dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(0.01))


def check_images(x: jax.Array, *, model: str, smallest: int = 1) -> None:
  """Checks the input of a convolutional model.

  Args:
    x: images [batch, height, width, channels].
    model: name of the model, for the error.
    smallest: smallest height and width that it takes.

  Raises:
    ValueError: `x` does not have these axes, or the images are too small.
  """
  if x.ndim != 4:
    raise ValueError(f'{model}: images must be [batch, height, width, channels], got {x.shape}')
  height, width = x.shape[1:3]
  if any(jaxprs.at_least(size, smallest) is False for size in (height, width)):  # or symbols
    raise ValueError(
      f'{model}: images of {height}x{width} are too small; at least {smallest}x{smallest} is needed'
    )


def check_positive(*, model: str, **attributes: int) -> None:
  """Checks attributes of a model that must be positive integers.

  Raises:
    ValueError: one is not.
  """
  for name, value in attributes.items():
    if not (isinstance(value, numbers.Integral) and value > 0):
      raise ValueError(f'{model}: {name} must be a positive integer, got {value!r}')


def zipped(*, model: str, **attributes: Sequence[Any]) -> list[tuple[Any, ...]]:
  """Returns the entries of attributes that have one for each block or stage.

  Raises:
    ValueError: their lengths differ.
  """
  if len({len(values) for values in attributes.values()}) > 1:
    lengths = ', '.join(f'{name} has {len(values)}' for name, values in attributes.items())
    raise ValueError(f'{model}: {" and ".join(attributes)} must be of one length: {lengths}')
  return list(zip(*attributes.values(), strict=True))
