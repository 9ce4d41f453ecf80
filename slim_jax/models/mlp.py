"""The multilayer perceptron of the network slimming paper (ICCV 2017)."""

from collections.abc import Sequence
import math
import numbers
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax.models import layers


class MLP(nn.Module):
  """Dense, BatchNorm, ReLU for each hidden layer, then a linear layer.

  Attributes:
    num_classes: length of the logits.
    widths: units of each hidden layer; the default with 28x28 images is the
      784-500-300-10 network of the paper.
    dtype: of the computation; parameters and batch statistics are float32.
    axis_name: mapped axis over which BatchNorm averages its statistics, or None
      for statistics of the local batch.
  """

  num_classes: int
  widths: Sequence[int] = (500, 300)
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits.

    Args:
      x: normalised images or features, float [batch, ...]; flattened.
      train: whether BatchNorm uses, and with `mutable=['batch_stats']` updates
        from, the statistics of this batch.

    Returns:
      Logits [batch, num_classes] in `dtype`, but at least float32.

    Raises:
      ValueError: a width is not a positive integer.
    """
    for width in self.widths:
      if not (isinstance(width, numbers.Integral) and width > 0):
        raise ValueError(
          f'MLP: widths must be positive integers, got {width!r} in {tuple(self.widths)}'
        )
    x = jnp.asarray(x, self.dtype)
    x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
    for width in self.widths:
      x = layers.Dense(width, dtype=self.dtype, kernel_init=layers.he_fan_out)(x)
      x = layers.BatchNorm(
        use_running_average=not train, dtype=self.dtype, axis_name=self.axis_name
      )(x)
      x = nn.relu(x)
    x = layers.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
