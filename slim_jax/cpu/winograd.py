"""3x3 convolutions with fewer multiplications, for a CPU.

A square of 2x2 results of a 3x3 convolution reads a tile of 4x4 elements. Winograd's F(2x2, 3x3)
computes it with 16 products instead of 36:

    y = A^T [(G k G^T) * (B^T x B)] A        with sums over channels inside the brackets

Each of the 16 is a matrix product, [tiles, channels] with [channels, outputs], for a few images at a
time, so that intermediate arrays stay in the cache. The gain exceeds the cost of the additions if
there are many channels, and many tiles per transformed kernel. The gradient of the operand is a
convolution of the same kind. The gradient of the kernel is the transpose of the formula.

The results have a few times the rounding error of a plain convolution, since terms are added to
sums and subtracted again. With precision 'highest' and in half precision convolutions are not
replaced.

References:
  Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016.
"""

from collections.abc import Callable, Sequence
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax.cpu import convolutions, parts
from slim_jax.jaxprs import Equation

# It is faster from this number of channels and outputs.
_CHANNELS = 128
# It is faster from this number of tiles, which pay for transforming the kernel.
_TILES = 256

# The arrays along one axis of a tile.
_Arrays = Sequence[jax.Array] | jax.Array


def _of_operand(x: _Arrays) -> list[jax.Array]:
  """Returns B^T x."""
  return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _of_kernel(k: _Arrays) -> list[jax.Array]:
  """Returns G k."""
  ends, middle = (k[0] + k[2]) / 2, k[1] / 2
  return [k[0], ends + middle, ends - middle, k[2]]


def _of_products(m: _Arrays) -> list[jax.Array]:
  """Returns A^T m."""
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _of_slopes(y: _Arrays) -> list[jax.Array]:
  """Returns A y: gradients of the products from those of the results."""
  return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _back_to_kernel(u: _Arrays) -> list[jax.Array]:
  """Returns G^T u: gradients of the kernel from those of the transformed kernel."""
  both = (u[1] + u[2]) / 2
  return [u[0] + both, (u[1] - u[2]) / 2, both + u[3]]


def _along_both(
  step: Callable[[_Arrays], list[jax.Array]], square: Sequence[_Arrays] | jax.Array
) -> list[list[jax.Array]]:
  """Transforms the columns of a square of arrays, then the rows of the result."""
  columns = [step(column) for column in zip(*square)]
  return [step(row) for row in zip(*columns)]


def is_faster(eqn: Equation) -> bool:
  """Returns whether a dense convolution has a 3x3 window, many channels, and many tiles."""
  (x, kernel), (y,), params = eqn.in_avals, eqn.out_avals, eqn.params
  dims = params['dimension_numbers']
  sides = [
    aval.shape[i] for aval, spec in ((x, dims.lhs_spec), (y, dims.out_spec)) for i in spec[2:]
  ]
  return (
    tuple(kernel.shape[i] for i in dims.rhs_spec[2:]) == (3, 3)
    and all(step == 1 for name in ('window_strides', 'rhs_dilation') for step in params[name])
    and min(convolutions.widths(eqn)) >= _CHANNELS
    and all(isinstance(n, int) for n in x.shape)
    and all(side >= 4 and side % 2 == 0 for side in sides)
    and math.prod(y.shape[i] for i in (dims.out_spec[0], *dims.out_spec[2:])) >= 4 * _TILES
    and x.dtype == y.dtype
    and x.dtype in (jnp.float32, jnp.float64)
    and params['precision'] in (None, (lax.Precision.DEFAULT,) * 2)
  )


@convolutions.channels_last
def convolution(
  eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Convolves, and computes the gradients in the same way."""
  del spatial, dtype
  pads = eqn.params['padding']
  back_pads = [(2 - low, 2 - high) for low, high in pads]

  def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return _convolve(x, kernel, pads), (x, kernel)

  def back(operands: tuple[jax.Array, jax.Array], slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    return (
      _convolve(slope, jnp.flip(kernel, (0, 1)), back_pads, transposed=True),
      _kernel_gradient(x, slope, pads),
    )

  fast = jax.custom_vjp(lambda x, kernel: _convolve(x, kernel, pads))
  fast.defvjp(forward, back)
  return fast(x, kernel)


def _convolve(
  x: jax.Array, kernel: jax.Array, pads: Sequence[tuple[int, int]], *, transposed: bool = False
) -> jax.Array:
  """Convolves x [n, height, width, c] with a kernel [3, 3, c, o], or [3, 3, o, c] if transposed.

  The kernel is transposed after it is transformed; otherwise XLA would transform it element by
  element.
  """
  kernels = _along_both(_of_kernel, kernel)
  if transposed:
    kernels = [[k.T for k in row] for row in kernels]
  sides = [n + low + high - 2 for n, (low, high) in zip(x.shape[1:-1], pads)]
  outputs = kernels[0][0].shape[1]

  def part(x: jax.Array) -> jax.Array:
    products = [
      [_flat(tile) @ k for tile, k in zip(*rows)] for rows in zip(_tiles(x, pads), kernels)
    ]
    square = _along_both(_of_products, products)
    shape = (x.shape[0], sides[0] // 2, sides[1] // 2, outputs)
    rows = [jnp.stack([y.reshape(shape) for y in row], 3) for row in square]
    return jnp.stack(rows, 2).reshape(x.shape[0], *sides, outputs)

  return parts.joined(part, x, (x.shape[0], *sides, outputs), x.dtype, cores=parts.all_cores())


def _kernel_gradient(x: jax.Array, slope: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
  """Returns the kernel's gradient [3, 3, c, o] from x [n, height, width, c] and slope [n, ..., o]."""

  def part(x: jax.Array, slope: jax.Array) -> list[list[jax.Array]]:
    slopes = _along_both(_of_slopes, [[slope[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)])
    return [
      [_flat(tile).T @ _flat(y) for tile, y in zip(*rows)] for rows in zip(_tiles(x, pads), slopes)
    ]

  zeros = jnp.zeros((x.shape[-1], slope.shape[-1]), x.dtype)
  total = parts.summed(part, [[zeros] * 4] * 4, x, slope, cores=parts.all_cores())
  return jnp.stack([jnp.stack(row) for row in _along_both(_back_to_kernel, total)])


def _tiles(x: jax.Array, pads: Sequence[tuple[int, int]]) -> list[list[jax.Array]]:
  """Returns B^T x B of all tiles: for each of 4x4 elements, [n, rows, columns, channels] of tiles."""
  x = convolutions.padded(x, pads)
  height, width = (side - 2 for side in x.shape[1:-1])
  return _along_both(
    _of_operand,
    [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)],
  )


def _flat(x: jax.Array) -> jax.Array:
  """Reshapes [..., channels] to a matrix."""
  return x.reshape(-1, x.shape[-1])
