"""Convolutions in a form that XLA compiles well on a CPU.

A convolution is a sum over the taps t of its kernel,

    y[n, p, o] = sum_t sum_c x[n, stride p + dilation t - padding, c] k[t, c, o]

XLA has fast code for many convolutions on a CPU, but not for these:

  depthwise     XLA makes them dense, with a kernel of mostly zeros: 10 to 200 times the time, and
                memory quadratic in the channels. Here: one elementwise product per tap.
  tiny inputs   If the kernel is larger than the input (the last stage of VGG-19 on CIFAR has 3x3 on
                2x2), XLA takes about 60 times as long as usual. If the input is hardly larger, most
                products are with padding. Here: one matrix product per tap.
  odd widths    If the number of channels or outputs is no multiple of 4, as pruning leaves them, XLA
                takes up to twice the time of the next multiple. Here: zeros up to the multiple.
  pointwise     A kernel of one tap is a matrix product, which is twice as fast.
  few outputs   With few outputs of many channels, as in a DenseNet, gathering patches takes most of
                the time. Here: one matrix product whose columns are taps and outputs, then the sum
                of the shifted taps, for a few images at a time, which fit the cache.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import operator
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.cpu import parts
from slim_jax.jaxprs import Equation

# Outputs are few if there are at least this many channels per output.
_FEW = 8
# A convolution is mostly padding if a smaller share of its products reads the input itself.
_INSIDE = 0.75


def is_mostly_padding(eqn: Equation) -> bool:
  """Returns whether enough products are with padding that leaving them out pays."""
  share = 1.0
  for width, size, results, *rest in _axes(eqn):
    reads = sum(results - sum(missed) for _, _, missed in _inside(width, size, results, *rest))
    share *= reads / (width * results)
    if width > size:
      return True
  return share < _INSIDE


def _axes(eqn: Equation) -> list[tuple[Any, ...]]:
  """Returns the arguments of `_inside` for each spatial axis."""
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


def channels_last(channels_last_f: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """Returns `f(eqn, x, kernel)` for any layout, given a function for channels last.

  Args:
    channels_last_f: called with the equation, x [batch, spatial..., channels], the kernel
      [spatial..., channels, outputs], the spatial shape of the result and the dtype of sums. Sums
      of half precision are in single precision, as in a convolution.
  """

  @functools.wraps(channels_last_f)
  def compute(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    dims, out = eqn.params['dimension_numbers'], eqn.out_avals[0]
    y = channels_last_f(
      eqn,
      x.transpose(last(dims.lhs_spec)),
      kernel.transpose(kernel_last(dims.rhs_spec)),
      tuple(out.shape[i] for i in dims.out_spec[2:]),
      jnp.promote_types(out.dtype, jnp.float32),
    )
    return y.transpose(inverse(last(dims.out_spec))).astype(out.dtype)

  return compute


def last(spec: Sequence[int]) -> tuple[int, ...]:
  """Returns axes (batch, feature, spatial...) in the order batch, spatial..., feature."""
  return spec[0], *spec[2:], spec[1]


def kernel_last(spec: Sequence[int]) -> tuple[int, ...]:
  """Returns axes (output, input, spatial...) in the order spatial..., input, output."""
  return *spec[2:], spec[1], spec[0]


def inverse(order: Sequence[int]) -> list[int]:
  """Returns the inverse permutation."""
  return [order.index(i) for i in range(len(order))]


@channels_last
def depthwise(
  eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Convolves each channel by itself. The input is padded once, so its gradient is one sum too."""
  multiplier = kernel.shape[-1] // eqn.params['feature_group_count']
  x = jnp.repeat(padded(x, eqn.params['padding']), multiplier, axis=-1).astype(dtype)

  def of_tap(tap: tuple[int, ...]) -> jax.Array:
    part = x[read(eqn, tap, spatial)]
    return part * lax.broadcast(kernel[tap][0].astype(dtype), part.shape[:-1])

  taps = itertools.product(*map(range, kernel.shape[:-2]))
  return functools.reduce(operator.add, map(of_tap, taps))


@channels_last
def products(
  eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Convolves by one matrix product per tap, without the products with padding."""

  def of_tap(axes: Sequence[tuple[int, slice, tuple[int, int]]]) -> jax.Array:
    tap, reads, pads = zip(*axes)
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
    return product

  taps = list(itertools.product(*(_inside(*axis) for axis in _axes(eqn))))
  if not taps:  # all results read nothing but padding
    return jnp.zeros((x.shape[0], *spatial, kernel.shape[-1]), dtype)
  return functools.reduce(operator.add, map(of_tap, taps))


def _inside(
  width: int, size: int, results: int, padding: tuple[int, int], stride: int, dilation: int
) -> list[tuple[int, slice, tuple[int, int]]]:
  """Returns each tap along an axis, what it reads of the input, and how many results it misses."""
  taps = []
  for tap in range(width):
    at = tap * dilation - padding[0]  # the index that the first result reads
    first, last = max(0, -(at // stride)), min(results, (size - 1 - at) // stride + 1)
    if first < last:
      reads = slice(at + first * stride, at + (last - 1) * stride + 1, stride)
      taps.append((tap, reads, (first, results - last)))
  return taps


def widths(eqn: Equation) -> tuple[int, int]:
  """Returns the numbers of outputs and channels of a convolution's kernel."""
  outputs, channels, *_ = eqn.params['dimension_numbers'].rhs_spec
  return eqn.in_avals[1].shape[outputs], eqn.in_avals[1].shape[channels]


def _missing(eqn: Equation) -> tuple[int, int]:
  """Returns how many channels and outputs to add so that vectors divide the widths well."""
  outputs, channels = widths(eqn)
  return -channels % 4 if channels > 4 else 0, -outputs % 8 if outputs % 4 else 0


def is_odd(eqn: Equation) -> bool:
  """Returns whether vectors do not divide the widths well."""
  return any(_missing(eqn))


def aligned(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """Convolves with added channels and outputs of zeros."""
  dims, (channels, outputs) = eqn.params['dimension_numbers'], _missing(eqn)
  x = _longer(x, {dims.lhs_spec[1]: channels})
  kernel = _longer(kernel, {dims.rhs_spec[1]: channels, dims.rhs_spec[0]: outputs})
  (y,) = jaxprs.bind(eqn, x, kernel)
  return lax.slice(y, [0] * y.ndim, eqn.out_avals[0].shape) if outputs else y


def _longer(x: jax.Array, more: dict[int, int]) -> jax.Array:
  """Appends zeros to axes; `more` has their numbers by axis."""
  if not any(more.values()):
    return x
  return lax.pad(x, jnp.zeros([], x.dtype), [(0, more.get(i, 0), 0) for i in range(x.ndim)])


def has_few_outputs(eqn: Equation) -> bool:
  """Returns whether there are few outputs for the number of channels."""
  outputs, channels = widths(eqn)
  return _FEW * outputs <= channels


@channels_last
def few_outputs(
  eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...], dtype: Any
) -> jax.Array:
  """Convolves by one matrix product, which reads each element once, and a sum of shifted taps."""
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
    shifted = (
      products[(*read(eqn, tap, spatial), slice(n * outputs, (n + 1) * outputs))]
      for n, tap in enumerate(taps)
    )
    return functools.reduce(operator.add, shifted)

  return parts.joined(part, x, (x.shape[0], *spatial, outputs), dtype)


def padded(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
  """Pads x [batch, spatial..., channels] with zeros; negative pads cut it."""
  return lax.pad(
    x, jnp.zeros([], x.dtype), [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)]
  )


def read(eqn: Equation, tap: Sequence[int], spatial: Sequence[int]) -> tuple[slice, ...]:
  """Returns the slices of the padded input that a tap reads."""
  return (
    slice(None),
    *(
      slice(t * dilation, t * dilation + (n - 1) * stride + 1, stride)
      for t, n, stride, dilation in zip(
        tap, spatial, eqn.params['window_strides'], eqn.params['rhs_dilation'], strict=True
      )
    ),
  )
