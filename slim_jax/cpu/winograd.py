"""Convolutions with windows of 3x3 by fewer multiplications, on a CPU.

Four results of a 3x3 convolution, side by side in a square, read a tile of 4x4 elements. Winograd's
F(2x2, 3x3) has 16 products for them instead of 36:

    y = A^T [(G k G^T) * (B^T x B)] A        sums over channels are taken inside the brackets

Each of the 16 is a product of matrices, [tiles, channels] with [channels, outputs], some images at a
time so that what stands between them stays in the cache. What is saved outweighs the sums around it
where there are many channels, and many tiles for each transformed kernel. The gradient of the
operand is a convolution of this kind, too; that of the kernel is what linear algebra makes of the
formula, read backward.

The numbers are those of a convolution up to rounding, which is a few times that of its sums: terms
are added to a sum and taken out of it again. Where somebody asks for the highest precision, and in
half precision, convolutions stay as they are.

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

# Channels and outputs from which on it is faster.
_CHANNELS = 128
# Tiles from which on, for the transformation of the kernel.
_TILES = 256

# Along an axis of the tile.
_Arrays = Sequence[jax.Array]


def _of_operand(x: _Arrays) -> list[jax.Array]:
  """B^T x."""
  return [x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]]


def _of_kernel(k: _Arrays) -> list[jax.Array]:
  """G k."""
  ends, middle = (k[0] + k[2]) / 2, k[1] / 2
  return [k[0], ends + middle, ends - middle, k[2]]


def _of_products(m: _Arrays) -> list[jax.Array]:
  """A^T m."""
  return [m[0] + m[1] + m[2], m[1] - m[2] - m[3]]


def _of_slopes(y: _Arrays) -> list[jax.Array]:
  """A y: slopes of products from those of results."""
  return [y[0], y[0] + y[1], y[0] - y[1], -y[1]]


def _back_to_kernel(u: _Arrays) -> list[jax.Array]:
  """G^T u: slopes of the kernel from those of the transformed kernel."""
  both = (u[1] + u[2]) / 2
  return [u[0] + both, (u[1] - u[2]) / 2, both + u[3]]


def _along_both(
  step: Callable[[_Arrays], list[jax.Array]], square: Sequence[_Arrays]
) -> list[list[jax.Array]]:
  """A transformation of the columns of a square of arrays, and of the rows of that."""
  columns = [step(column) for column in zip(*square)]
  return [step(row) for row in zip(*columns)]


def is_faster(eqn: Equation) -> bool:
  """Whether a dense convolution has a 3x3 window, many channels, and many tiles."""
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
  """The convolution, and its gradients in the same way."""
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
  """x [n, height, width, c] and kernel [3, 3, c, o], or [3, 3, o, c] if transposed -> [n, ..., o].

  The kernel is transposed when it has been transformed: XLA would transform it element by element.
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
  """x [n, height, width, c] and slope [n, ..., o] -> [3, 3, c, o]."""

  def part(x: jax.Array, slope: jax.Array) -> list[list[jax.Array]]:
    slopes = _along_both(_of_slopes, [[slope[:, i::2, j::2] for j in (0, 1)] for i in (0, 1)])
    return [
      [_flat(tile).T @ _flat(y) for tile, y in zip(*rows)] for rows in zip(_tiles(x, pads), slopes)
    ]

  zeros = jnp.zeros((x.shape[-1], slope.shape[-1]), x.dtype)
  total = parts.summed(part, [[zeros] * 4] * 4, x, slope, cores=parts.all_cores())
  return jnp.stack([jnp.stack(row) for row in _along_both(_back_to_kernel, total)])


def _tiles(x: jax.Array, pads: Sequence[tuple[int, int]]) -> list[list[jax.Array]]:
  """B^T x B of each tile, [n, rows of tiles, tiles in a row, channels] for each of 4x4 elements."""
  x = convolutions.padded(x, pads)
  height, width = (side - 2 for side in x.shape[1:-1])
  return _along_both(
    _of_operand,
    [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)],
  )


def _flat(x: jax.Array) -> jax.Array:
  """[..., channels] as a matrix."""
  return x.reshape(-1, x.shape[-1])
