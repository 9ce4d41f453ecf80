"""Gradients of kernels in a form that XLA compiles well on a CPU.

XLA computes the gradient of a kernel as a convolution with a window as large as the image. For few
outputs and large images the gradient of each tap t is here

    dk[t] = sum_np x[n, p + t] y'[n, p]

where y' is the gradient of the result. All taps together are one matrix product, with a column per
tap and output, computed for a few images at a time.
"""

from collections.abc import Sequence
import functools
import itertools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax.cpu import convolutions, parts
from slim_jax.jaxprs import Equation

# Images with at least this many results per output count as large.
_LARGE = 256


def is_by_columns(eqn: Equation) -> bool:
  """Returns whether a matrix product computes the gradient of a convolution's kernel."""
  dims = eqn.params['dimension_numbers']
  outputs, channels = convolutions.widths(eqn)
  is_large = math.prod(eqn.out_avals[0].shape[i] for i in dims.out_spec[2:]) >= _LARGE
  return (
    all(step == 1 for name in ('window_strides', 'rhs_dilation') for step in eqn.params[name])
    and isinstance(eqn.in_avals[0].shape[dims.lhs_spec[0]], int)
    and 2 * outputs <= channels
    and (is_large or convolutions.has_few_outputs(eqn))
  )


def with_gradient(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Returns a convolution whose kernel's gradient is a matrix product."""
  plain = functools.partial(convolutions.aligned, eqn)
  few = convolutions.has_few_outputs(eqn)
  convolve = functools.partial(convolutions.few_outputs, eqn) if few else plain

  def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return convolve(x, kernel), (x, kernel)

  def back(operands: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    _, transpose = jax.vjp(lambda x: plain(x, kernel), x)
    return *transpose(slope), _kernel_gradient(eqn, x, slope)

  fast = jax.custom_vjp(convolve)
  fast.defvjp(forward, back)
  return fast(x, kernel)


def _kernel_gradient(eqn: Equation, x: jax.Array, slope: jax.Array) -> jax.Array:
  """Returns sum_np x[n, p + t] slope[n, p] for each tap t, in the layout of the kernel."""
  dims, aval = eqn.params['dimension_numbers'], eqn.in_avals[1]
  order = convolutions.kernel_last(dims.rhs_spec)
  *window, channels, outputs = (aval.shape[i] for i in order)
  x = x.transpose(convolutions.last(dims.lhs_spec))
  slope = slope.transpose(convolutions.last(dims.out_spec))
  taps = list(itertools.product(*map(range, window)))
  pads = _pads_back(eqn, slope, window, x.shape[1:-1])
  reads = [
    convolutions.read(eqn, [n - 1 - t for n, t in zip(window, tap)], x.shape[1:-1]) for tap in taps
  ]
  dtype = jnp.promote_types(aval.dtype, jnp.float32)

  def part(x: jax.Array, slope: jax.Array) -> jax.Array:
    padded = convolutions.padded(slope, pads)
    columns = jnp.concatenate([padded[read] for read in reads], -1)
    return lax.dot_general(
      x.reshape(-1, x.shape[-1]),
      columns.reshape(-1, columns.shape[-1]),
      (((0,), (0,)), ((), ())),
      precision=eqn.params['precision'],
      preferred_element_type=dtype,
    )

  zeros = jnp.zeros((channels, len(taps) * outputs), dtype)
  total = parts.summed(part, zeros, x, slope).reshape(channels, *window, outputs)
  return jnp.moveaxis(total, 0, -2).transpose(convolutions.inverse(order)).astype(aval.dtype)


def _pads_back(
  eqn: Equation, slope: jax.Array, window: Sequence[int], size: Sequence[int]
) -> list[tuple[int, int]]:
  """Returns pads of the results' gradient with which tap t of input q reads q - t + width - 1."""
  return [
    (n - 1 - low, length + low - results)
    for n, (low, _), length, results in zip(
      window, eqn.params['padding'], size, slope.shape[1:-1], strict=True
    )
  ]
