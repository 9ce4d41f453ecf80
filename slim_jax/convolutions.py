"""Convolutions as XLA compiles them well on a CPU.

A convolution is a sum over the taps t of its kernel,

    y[n, p, o] = sum_t sum_c x[n, stride p + dilation t - padding, c] k[t, c, o]

For the CPU, XLA has fast code for many convolutions, but not for these:

  depthwise     become dense, with a kernel that is mostly zeros: 10 to 200 times the time, and
                memory quadratic in the channels. Here: one product of elements a tap.
  tiny inputs   a kernel larger than its input (the last stage of VGG-19 on CIFAR: 3x3 on 2x2)
                runs some 60 times slower than others. Here: one product of matrices a tap.
  pointwise     a kernel of one tap is a product of matrices, and twice as fast as one.
  gradients     of the kernel, over large images: a convolution with a window as large as the
                image. Here: dk[t] = sum_np x[n, p + t] y'[n, p], a product of matrices whose
                columns are the taps, for some images at a time, so that they stay in the cache.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
import math
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.jaxprs import Equation, primitives

PyTree = Any

# More taps than this would make more operations than they save.
_MOST_TAPS = 128
# Results for an image from which on the gradient of a kernel is taken tap by tap, and the rows of
# the matrices that are multiplied at a time.
_LARGE = 256
_ROWS = 1024


def for_cpu(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """The same function, with convolutions that XLA compiles well on a CPU.

  Depthwise and pointwise convolutions, those whose kernel is larger than their input, and the
  gradients of kernels over large images are computed by other operations: the same numbers, up to
  the order of the sums. Where JAX's default backend is another, and where there are no such
  convolutions, nothing changes. Inside `scan`, `while`, `cond`, `jax.checkpoint` and custom
  derivatives they stay as they are.

  Apply it last, to what is compiled: `count` and `plan` read convolutions better as they were.
  Derivatives are taken in reverse (`grad`, `vjp`), not forward (`jvp`).

  Args:
    f: a function of pytrees of arrays.

  Example:
    >>> import jax, jax.numpy as jnp, slim_jax
    >>> from slim_jax import models
    >>> net, x = models.create('vgg19', num_classes=10), jnp.ones((1, 32, 32, 3))
    >>> variables = jax.eval_shape(lambda: net.init(jax.random.key(0), x, train=False))
    >>> apply = slim_jax.for_cpu(lambda variables, x: net.apply(variables, x, train=False))
    >>> jax.eval_shape(jax.jit(apply), variables, x).shape
    (1, 10)

  Returns:
    A function like it: wrap it in `jit`, `grad`, `vmap`, `pmap`. Outside `jit` every call traces
    `f` anew.
  """
  @functools.wraps(f)
  def fast(*args: Any, **kwargs: Any) -> PyTree:
    if jax.default_backend() != 'cpu':
      return f(*args, **kwargs)
    program, results = jaxprs.trace(f, *args, **kwargs)
    if not any(map(_way, program.equations)):
      return f(*args, **kwargs)
    found = jaxprs.run(program, jax.tree.leaves((args, kwargs)), _run)
    return jax.tree.unflatten(jax.tree.structure(results), found)

  return fast


def _run(eqn: Equation, *arrays: Any) -> list[Any]:
  way = _way(eqn)
  return [way(eqn, *arrays)] if way else jaxprs.bind(eqn, *arrays)


def _way(eqn: Equation) -> Callable[..., jax.Array] | None:
  """A faster way to compute the equation on a CPU, `(eqn, x, kernel)` -> y, if there is one."""
  if eqn.primitive is not primitives.conv_general_dilated_p:
    return None
  (x, kernel), dims = eqn.in_avals, eqn.params['dimension_numbers']
  window = [kernel.shape[i] for i in dims.rhs_spec[2:]]
  if (eqn.params['batch_group_count'] != 1 or math.prod(window) > _MOST_TAPS
      or any(step != 1 for step in eqn.params['lhs_dilation'])
      or not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype != kernel.dtype):
    return None
  groups = eqn.params['feature_group_count']
  if groups > 1:
    return _depthwise if groups == x.shape[dims.lhs_spec[1]] else None
  if all(n == 1 for n in window) or any(
      n > x.shape[i] for n, i in zip(window, dims.lhs_spec[2:], strict=True)):
    return _products
  is_large = math.prod(eqn.out_avals[0].shape[i] for i in dims.out_spec[2:]) >= _LARGE
  is_plain = all(step == 1 for step in eqn.params['rhs_dilation'])
  batch = x.shape[dims.lhs_spec[0]]
  return _with_gradient if is_large and is_plain and isinstance(batch, int) else None


def _channels_last(way: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
  """`way(eqn, x, kernel, spatial, dtype)` for any layout.

  It gets x [batch, spatial..., channels], kernel [spatial..., channels, outputs], the spatial
  shape of its result and the dtype of sums: of half precision they are held in single, as a
  convolution holds them.
  """
  @functools.wraps(way)
  def compute(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
    dims, out = eqn.params['dimension_numbers'], eqn.out_avals[0]
    y = way(eqn, x.transpose(_last(dims.lhs_spec)), kernel.transpose(_kernel_last(dims.rhs_spec)),
            tuple(out.shape[i] for i in dims.out_spec[2:]),
            jnp.promote_types(out.dtype, jnp.float32))
    return y.transpose(_inverse(_last(dims.out_spec))).astype(out.dtype)

  return compute


def _last(spec: Sequence[int]) -> tuple[int, ...]:
  """Axes (batch, feature, spatial...) in the order batch, spatial..., feature."""
  return spec[0], *spec[2:], spec[1]


def _kernel_last(spec: Sequence[int]) -> tuple[int, ...]:
  """Axes (output, input, spatial...) in the order spatial..., input, output."""
  return *spec[2:], spec[1], spec[0]


def _inverse(order: Sequence[int]) -> list[int]:
  return [order.index(i) for i in range(len(order))]


@_channels_last
def _depthwise(eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...],
               dtype: Any) -> jax.Array:
  """Channels do not mix. The input is padded once: its gradient is then one sum, too."""
  multiplier = kernel.shape[-1] // eqn.params['feature_group_count']
  x = jnp.repeat(_padded(eqn, x), multiplier, axis=-1).astype(dtype)
  total = None
  for tap in itertools.product(*map(range, kernel.shape[:-2])):
    part = x[_reads(eqn, tap, spatial)]
    product = part * lax.broadcast(kernel[tap][0].astype(dtype), part.shape[:-1])
    total = product if total is None else total + product
  return total


@_channels_last
def _products(eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...],
              dtype: Any) -> jax.Array:
  """Products with padding are left out: of tiny inputs they would be half of them."""
  params = eqn.params
  along = [_inside(*each) for each in zip(
      kernel.shape[:-2], x.shape[1:-1], spatial, params['padding'], params['window_strides'],
      params['rhs_dilation'], strict=True)]
  total = None
  for taps in itertools.product(*along):
    tap, reads, pads = zip(*taps)
    part = x[(slice(None), *reads)]
    product = lax.dot_general(part.reshape(-1, part.shape[-1]), kernel[tap],
                              (((1,), (0,)), ((), ())), precision=params['precision'],
                              preferred_element_type=dtype)
    product = product.reshape(*part.shape[:-1], -1)
    if any(map(any, pads)):
      product = jnp.pad(product, ((0, 0), *pads, (0, 0)))
    total = product if total is None else total + product
  if total is None:  # all results read nothing but padding
    return jnp.zeros((x.shape[0], *spatial, kernel.shape[-1]), dtype)
  return total


def _inside(width: int, size: int, results: int, padding: tuple[int, int], stride: int,
            dilation: int) -> list[tuple[int, slice, tuple[int, int]]]:
  """Along an axis: each tap, what of the input it reads, and how many results it misses."""
  found = []
  for tap in range(width):
    at = tap * dilation - padding[0]  # what the first result reads
    first, last = max(0, -(at // stride)), min(results, (size - 1 - at) // stride + 1)
    if first < last:
      reads = slice(at + first * stride, at + (last - 1) * stride + 1, stride)
      found.append((tap, reads, (first, results - last)))
  return found


def _with_gradient(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The convolution itself, with another way to the gradient of its kernel."""
  def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jaxprs.bind(eqn, x, kernel)[0]

  def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return convolve(x, kernel), (x, kernel)

  def back(operands: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    _, pull = jax.vjp(lambda x: convolve(x, kernel), x)
    return *pull(slope), _kernel_gradient(eqn, x, slope)

  fast = jax.custom_vjp(convolve)
  fast.defvjp(forward, back)
  return fast(x, kernel)


def _kernel_gradient(eqn: Equation, x: jax.Array, slope: jax.Array) -> jax.Array:
  """sum_np x[n, stride p + t] slope[n, p] for each tap t, in the layout of the kernel."""
  dims, aval = eqn.params['dimension_numbers'], eqn.in_avals[1]
  order = _kernel_last(dims.rhs_spec)
  *window, channels, outputs = (aval.shape[i] for i in order)
  x, slope = x.transpose(_last(dims.lhs_spec)), slope.transpose(_last(dims.out_spec))
  taps = list(itertools.product(*map(range, window)))
  is_dense = all(step == 1 for step in eqn.params['window_strides'])
  if is_dense and 2 * outputs <= channels:  # the taps of the narrow side make fewer columns
    rows, columns = x, _padded_back(eqn, slope, window, x.shape[1:-1])
    reads = [_reads(eqn, [n - 1 - t for n, t in zip(window, tap)], x.shape[1:-1]) for tap in taps]
  else:
    rows, columns = slope, _padded(eqn, x)
    reads = [_reads(eqn, tap, slope.shape[1:-1]) for tap in taps]
  total = _sum_of_outer(rows, columns, reads, eqn.params['precision'],
                        jnp.promote_types(aval.dtype, jnp.float32))
  total = total.reshape(-1, *window, columns.shape[-1])  # of rows, taps, of columns
  to = -2 if rows is x else -1
  return jnp.moveaxis(total, 0, to).transpose(_inverse(order)).astype(aval.dtype)


def _sum_of_outer(rows: jax.Array, columns: jax.Array, reads: Sequence[tuple[slice, ...]],
                  precision: Any, dtype: Any) -> jax.Array:
  """sum_np rows[n, p]^T [columns[n, read][p] for each read]: some images at a time."""
  batch = rows.shape[0]
  parts = _divisor(batch, max(1, math.prod(rows.shape[:-1]) // _ROWS))

  def add(total: jax.Array, part: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
    left, right = part
    right = jnp.concatenate([right[read] for read in reads], -1)
    flat = [a.reshape(-1, a.shape[-1]) for a in (left, right)]
    return total + lax.dot_general(*flat, (((0,), (0,)), ((), ())), precision=precision,
                                   preferred_element_type=dtype), None

  zero = jnp.zeros((rows.shape[-1], len(reads) * columns.shape[-1]), dtype)
  total, _ = lax.scan(add, zero, tuple(
      a.reshape(parts, batch // parts, *a.shape[1:]) for a in (rows, columns)))
  return total


def _padded_back(eqn: Equation, slope: jax.Array, window: Sequence[int],
                 size: Sequence[int]) -> jax.Array:
  """The slope of results, so that tap t of input q reads index q - t + width - 1 (stride 1)."""
  pads = [(n - 1 - low, length + low - results, 0) for n, (low, _), length, results in zip(
      window, eqn.params['padding'], size, slope.shape[1:-1], strict=True)]
  return lax.pad(slope, jnp.zeros([], slope.dtype), [(0, 0, 0), *pads, (0, 0, 0)])


def _padded(eqn: Equation, x: jax.Array) -> jax.Array:
  """x [batch, spatial..., channels] with its padding."""
  return lax.pad(x, jnp.zeros([], x.dtype),
                 [(0, 0, 0), *((low, high, 0) for low, high in eqn.params['padding']), (0, 0, 0)])


def _reads(eqn: Equation, tap: Sequence[int], spatial: Sequence[int]) -> tuple[slice, ...]:
  """What a tap reads of the padded input."""
  return (slice(None), *(
      slice(t * dilation, t * dilation + (n - 1) * stride + 1, stride)
      for t, n, stride, dilation in zip(tap, spatial, eqn.params['window_strides'],
                                        eqn.params['rhs_dilation'], strict=True)))


def _divisor(n: int, at_most: int) -> int:
  """The largest divisor of n up to a bound."""
  return max(d for d in range(1, min(n, at_most) + 1) if n % d == 0)
