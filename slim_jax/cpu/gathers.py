"""Selections of channels in a form that XLA compiles well on a CPU.

The gather is element by element, because for a gather of channels XLA would transpose the array,
and the operations around it. The gradients of few channels are put back by a product with a one-hot
matrix.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax.cpu.linear import with_gradient_of
from slim_jax.jaxprs import Equation

# The gradients of up to this many selected channels are put back by a matrix product.
_SMALL = 128
# Modes of a gather in which only the indices determine the result.
_FAST_MODES = lax.GatherScatterMode.PROMISE_IN_BOUNDS, lax.GatherScatterMode.FILL_OR_DROP


def is_of_channels(eqn: Equation) -> bool:
  """Returns whether a gather selects indices of the last of three or more axes."""
  (x, index), params = eqn.in_avals, eqn.params
  *spatial, last = range(len(x.shape))
  numbers = params['dimension_numbers']
  return (
    len(spatial) > 1
    and jnp.issubdtype(x.dtype, jnp.floating)
    and all(isinstance(n, int) for n in x.shape)
    and math.prod(x.shape) < 1 << 31
    and numbers.offset_dims == tuple(spatial)
    and not numbers.operand_batching_dims
    and numbers.collapsed_slice_dims == numbers.start_index_map == (last,)
    and params['slice_sizes'] == (*x.shape[:-1], 1)
    and len(index.shape) == 2
    and params['mode'] in _FAST_MODES
  )


def select_channels(eqn: Equation, x: jax.Array, index: jax.Array) -> jax.Array:
  """Returns channels `index` [count, 1]; those out of range have the fill value."""
  fill, channels, count = eqn.params['fill_value'], x.shape[-1], index.shape[0]

  def select(x: jax.Array, index: jax.Array) -> jax.Array:
    rows, index = x.size // channels, index.T.astype(jnp.int32)
    at = lax.broadcasted_iota(jnp.int32, (rows, count), 0) * channels + index.clip(0, channels - 1)
    y = jnp.asarray(x).reshape(-1).at[at].get(mode='promise_in_bounds')
    if eqn.params['mode'] is lax.GatherScatterMode.FILL_OR_DROP:
      y = jnp.where((index >= 0) & (index < channels), y, jnp.nan if fill is None else fill)
    return y.reshape(*x.shape[:-1], count)

  def back(slope: jax.Array, index: jax.Array) -> jax.Array:
    in_range = (index >= 0) & (index < channels)
    slope = jnp.where(in_range.T.reshape((1,) * (slope.ndim - 1) + (-1,)), slope, 0)
    one_hot = (index == jnp.arange(channels, dtype=index.dtype)[None]).astype(slope.dtype)
    rows = jnp.dot(slope.reshape(-1, count), one_hot, precision='highest')
    return rows.reshape(*slope.shape[:-1], channels)

  return with_gradient_of(eqn, select, x, index, back=back if count <= _SMALL else None)
