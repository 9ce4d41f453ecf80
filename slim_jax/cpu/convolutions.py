"""Convolutions as XLA compiles them well on a CPU.

A convolution is a sum over the taps t of its kernel,

    y[n, p, o] = sum_t sum_c x[n, stride p + dilation t - padding, c] k[t, c, o]

For the CPU, XLA has fast code for many convolutions, but not for these:

  depthwise     become dense, with a kernel that is mostly zeros: 10 to 200 times the time, and
                memory quadratic in the channels. Here: one product of elements a tap.
  tiny inputs   a kernel larger than its input (the last stage of VGG-19 on CIFAR: 3x3 on 2x2)
                runs some 60 times slower than others, and where the input is hardly larger much
                of what is computed is padding. Here: one product of matrices a tap.
  odd widths    channels or outputs that are no multiple of 4, as pruning leaves them, take up to
                twice the time of the next multiple. Here: zeros up to it.
  pointwise     a kernel of one tap is a product of matrices, and twice as fast as one.
  few outputs   of many channels, as in a DenseNet: bound by gathering patches. Here: one product
                of matrices whose columns are taps and outputs, then the sum of the shifted taps,
                some images at a time, so that the matrices stay in the cache.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.cpu import parts
from slim_jax.jaxprs import Equation

# So many channels for each output make few outputs.
_FEW = 8
# Share of the products that are not with padding from which on a convolution is one.
_INSIDE = 0.75


def is_mostly_padding(eqn: Equation) -> bool:
  """Whether so much of a convolution is padding that it pays to leave that out."""
  share = 1.0
  for width, size, results, *rest in _axes(eqn):
    reads = sum(results - sum(missed) for _, _, missed in _inside(width, size, results, *rest))
    share *= reads / (width * results)
    if width > size:
      return True
  return share < _INSIDE


def _axes(eqn: Equation) -> list[tuple[Any, ...]]:
  """Along each spatial axis the arguments of `_inside`."""
  (x, kernel), (y,), params = eqn.in_avals, eqn.out_avals, eqn.params
  lhs, rhs, out = params['dimension_numbers']
  return [
    (kernel.shape[k], x.shape[i], y.shape[o], *rest)
    for k, i, o, *rest in zip(
      rhs[2:],
      lhs[2:],
      out[2:],
      params['padding'],
      params['window_strides'],
      params['rhs_dilation'],
      strict=True,
    )
  ]


def channels_last(way: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`way(eqn, x, kernel, spatial, dtype)` for any layout.

  It gets x [batch, spatial..., channels], kernel [spatial..., channels, outputs], the spatial
  shape of its result and the dtype of sums: of half precision they are held in single, as a
  convolution holds them.
  """

  @functools.wraps(way)
  def compute(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    dims, out = eqn.params['dimension_numbers'], eqn.out_avals[0]
    y = way(
      eqn,
      x.transpose(last(dims.lhs_spec)),
      kernel.transpose(kernel_last(dims.rhs_spec)),
      tuple(out.shape[i] for i in dims.out_spec[2:]),
      jnp.promote_types(out.dtype, jnp.float32),
    )
    return y.transpose(inverse(last(dims.out_spec))).astype(out.dtype)

  return compute


def last(spec: Sequence[int]) -> tuple[int, ...]:
  """Axes (batch, feature, spatial...) in the order batch, spatial..., feature."""
  return spec[0], *spec[2:], spec[1]


def kernel_last(spec: Sequence[int]) -> tuple[int, ...]:
  """Axes (output, input, spatial...) in the order spatial..., input, output."""
  return *spec[2:], spec[1], spec[0]


def inverse(order: Sequence[int]) -> list[int]:
  """The permutation that undoes another."""
  return [order.index(i) for i in range(len(order))]


@channels_last
def depthwise(
  eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Channels do not mix. The input is padded once: its gradient is then one sum, too."""
  multiplier = kernel.shape[-1] // eqn.params['feature_group_count']
  x = jnp.repeat(padded(x, eqn.params['padding']), multiplier, axis=-1).astype(dtype)
  total = None
  for tap in itertools.product(*map(range, kernel.shape[:-2])):
    part = x[read(eqn, tap, spatial)]
    product = part * lax.broadcast(kernel[tap][0].astype(dtype), part.shape[:-1])
    total = product if total is None else total + product
  return total


@channels_last
def products(
  eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Products with padding are left out: of tiny inputs they would be half of them."""
  along = [_inside(*each) for each in _axes(eqn)]
  total = None
  for taps in itertools.product(*along):
    tap, reads, pads = zip(*taps)
    part = x[(slice(None), *reads)]
    product = lax.dot_general(
      part.reshape(-1, part.shape[-1]),
      kernel[tap],
      (((1,), (0,)), ((), ())),
      precision=eqn.params['precision'],
      preferred_element_type=dtype,
    )
    product = product.reshape(*part.shape[:-1], -1)
    if any(map(any, pads)):
      product = jnp.pad(product, ((0, 0), *pads, (0, 0)))
    total = product if total is None else total + product
  if total is None:  # all results read nothing but padding
    return jnp.zeros((x.shape[0], *spatial, kernel.shape[-1]), dtype)
  return total


def _inside(
  width: int, size: int, results: int, padding: tuple[int, int], stride: int, dilation: int
) -> list[tuple[int, slice, tuple[int, int]]]:
  """Along an axis: each tap, what of the input it reads, and how many results it misses."""
  found = []
  for tap in range(width):
    at = tap * dilation - padding[0]  # what the first result reads
    first, last = max(0, -(at // stride)), min(results, (size - 1 - at) // stride + 1)
    if first < last:
      reads = slice(at + first * stride, at + (last - 1) * stride + 1, stride)
      found.append((tap, reads, (first, results - last)))
  return found


def widths(eqn: Equation) -> tuple[int, int]:
  """Outputs and channels of its kernel."""
  outputs, channels, *_ = eqn.params['dimension_numbers'].rhs_spec
  return eqn.in_avals[1].shape[outputs], eqn.in_avals[1].shape[channels]


def _missing(eqn: Equation) -> tuple[int, int]:
  """How many more channels and outputs make widths that vectors divide well."""
  outputs, channels = widths(eqn)
  return -channels % 4 if channels > 4 else 0, -outputs % 8 if outputs % 4 else 0


def is_odd(eqn: Equation) -> bool:
  """Whether its widths are such as vectors do not divide well."""
  return any(_missing(eqn))


def aligned(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The convolution with channels and outputs of zeros beside its own."""
  dims, (channels, outputs) = eqn.params['dimension_numbers'], _missing(eqn)
  x = _longer(x, {dims.lhs_spec[1]: channels})
  kernel = _longer(kernel, {dims.rhs_spec[1]: channels, dims.rhs_spec[0]: outputs})
  (y,) = jaxprs.bind(eqn, x, kernel)
  return lax.slice(y, [0] * y.ndim, eqn.out_avals[0].shape) if outputs else y


def _longer(x: jax.Array, more: dict[int, int]) -> jax.Array:
  """Zeros at the end of axes: how many, by axis."""
  if not any(more.values()):
    return x
  return lax.pad(x, jnp.zeros([], x.dtype), [(0, more.get(i, 0), 0) for i in range(x.ndim)])


def has_few_outputs(eqn: Equation) -> bool:
  """Of many channels."""
  outputs, channels = widths(eqn)
  return _FEW * outputs <= channels


@channels_last
def few_outputs(
  eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Products first, which read each element once, then the sum of the shifted taps."""
  *window, channels, outputs = kernel.shape
  columns = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1)
  taps = list(itertools.product(*map(range, window)))

  def part(x: jax.Array) -> jax.Array:
    products = lax.dot_general(
      x.reshape(-1, channels),
      columns,
      (((1,), (0,)), ((), ())),
      precision=eqn.params['precision'],
      preferred_element_type=dtype,
    )
    products = padded(products.reshape(*x.shape[:-1], -1), eqn.params['padding'])
    return sum(
      products[(*read(eqn, tap, spatial), slice(n * outputs, (n + 1) * outputs))]
      for n, tap in enumerate(taps)
    )

  return parts.joined(part, x, (x.shape[0], *spatial, outputs), dtype)


def padded(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
  """x [batch, spatial..., channels] with zeros around it; less than nothing cuts it."""
  return lax.pad(
    x, jnp.zeros([], x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
  )


def read(eqn: Equation, tap: Sequence[int], spatial: Sequence[int]) -> tuple[slice, ...]:
  """What a tap reads of the padded input."""
  return (
    slice(None),
    *(
      slice(t * dilation, t * dilation + (n - 1) * stride + 1, stride)
      for t, n, stride, dilation in zip(
        tap, spatial, eqn.params['window_strides'], eqn.params['rhs_dilation'], strict=True
      )
    ),
  )
