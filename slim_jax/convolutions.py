"""Convolutions as XLA compiles them well on a CPU.

A convolution is a sum over the taps t of its kernel,

    y[n, p, o] = sum_t sum_c x[n, stride p + dilation t - padding, c] k[t, c, o]

For the CPU, XLA has fast code for many convolutions, but not for these:

  depthwise     become dense, with a kernel that is mostly zeros: 10 to 200 times the time, and
                memory quadratic in the channels. Here: one product of elements a tap.
  tiny inputs   a kernel larger than its input (the last stage of VGG-19 on CIFAR: 3x3 on 2x2)
                runs some 60 times slower than others. Here: one product of matrices a tap.
  odd widths    channels or outputs that are no multiple of 4, as pruning leaves them, take up to
                twice the time of the next multiple. Here: zeros up to it.
  pointwise     a kernel of one tap is a product of matrices, and twice as fast as one.
  few outputs   of many channels, as in a DenseNet: bound by gathering patches. Here: one product
                of matrices whose columns are taps and outputs, then the sum of the shifted taps.
  gradients     of the kernel, over large images: a convolution with a window as large as the
                image. Here: dk[t] = sum_np x[n, p + t] y'[n, p], a product of matrices whose
                columns are the taps.

The last two go through some images at a time, so that their matrices stay in the cache. Beside
convolutions: sums over windows that do not overlap, as in average pooling, are sums of slices here;
and channels are selected element by element, because XLA would transpose the array to make of them
rows, and what is around it, too; their slopes are put back by a product with a matrix of ones and
zeros, where there are few.
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
# Results for an image from which on the gradient of a kernel is taken tap by tap.
_LARGE = 256
# So many channels for each output make few outputs.
_FEW = 8
# So many selected channels are put back by a product of matrices.
_SMALL = 128
# Of a gather: those whose result follows from the indices alone.
_FAST_MODES = lax.GatherScatterMode.PROMISE_IN_BOUNDS, lax.GatherScatterMode.FILL_OR_DROP
# Rows of the matrices that are multiplied at a time.
_ROWS = 1024


def for_cpu(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """The same function, with convolutions that XLA compiles well on a CPU.

  Depthwise and pointwise convolutions, those whose kernel is larger than their input, those with
  few outputs of many channels, the gradients of kernels over large images, sums over windows side
  by side and selections of channels are computed by other operations: the same numbers, up to the
  order of the sums. Where JAX's default backend is another, and where there are none of these,
  nothing changes. Inside `scan`, `while`, `cond`, `jax.checkpoint` and custom derivatives they
  stay as they are.

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
  """A faster way to compute the equation on a CPU, `(eqn, *operands)` -> y, if there is one."""
  if eqn.primitive is primitives.reduce_window_sum_p:
    return _sums if _is_tiled(eqn) else None
  if eqn.primitive is primitives.gather_p:
    return _selection if _is_of_channels(eqn) else None
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
  if is_plain and isinstance(batch, int) and (is_large or _has_few_outputs(eqn)):
    return _with_gradient
  return None if not any(_missing(eqn)) else _aligned


def _has_few_outputs(eqn: Equation) -> bool:
  """Of a convolution without dilation."""
  outputs, channels = (eqn.in_avals[1].shape[i] for i in eqn.params['dimension_numbers'].rhs_spec[:2])
  return _is_dense(eqn) and _FEW * outputs <= channels


def _is_dense(eqn: Equation) -> bool:
  return all(step == 1 for step in eqn.params['window_strides'])


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
  x = jnp.repeat(_padded(x, eqn.params['padding']), multiplier, axis=-1).astype(dtype)
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


def _missing(eqn: Equation) -> tuple[int, int]:
  """How many more channels and outputs make widths that vectors divide well."""
  outputs, channels = (eqn.in_avals[1].shape[i] for i in eqn.params['dimension_numbers'].rhs_spec[:2])
  return -channels % 4 if channels > 4 else 0, -outputs % 8 if outputs % 4 else 0


def _aligned(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
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


def _with_gradient(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """The convolution itself, with another way to the gradient of its kernel."""
  plain = functools.partial(_aligned, eqn)
  convolve = functools.partial(_few_outputs, eqn) if _has_few_outputs(eqn) else plain

  def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, Any]:
    return convolve(x, kernel), (x, kernel)

  def back(operands: Any, slope: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = operands
    _, pull = jax.vjp(lambda x: plain(x, kernel), x)
    return *pull(slope), _kernel_gradient(eqn, x, slope)

  fast = jax.custom_vjp(convolve)
  fast.defvjp(forward, back)
  return fast(x, kernel)


@_channels_last
def _few_outputs(eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...],
                 dtype: Any) -> jax.Array:
  """Products first, which read each element once, then the sum of the shifted taps."""
  *window, channels, outputs = kernel.shape
  columns = jnp.moveaxis(kernel, -2, 0).reshape(channels, -1)
  taps = list(itertools.product(*map(range, window)))
  parts, size = _parts(x.shape)

  def part(x: jax.Array) -> jax.Array:
    products = lax.dot_general(x.reshape(-1, channels), columns, (((1,), (0,)), ((), ())),
                               precision=eqn.params['precision'], preferred_element_type=dtype)
    products = _padded(products.reshape(*x.shape[:-1], -1), eqn.params['padding'])
    return sum(products[(*_reads(eqn, tap, spatial), slice(n * outputs, (n + 1) * outputs))]
               for n, tap in enumerate(taps))

  def add(k: jax.Array, y: jax.Array) -> jax.Array:
    done = part(lax.dynamic_slice_in_dim(x, k * size, size))
    return lax.dynamic_update_slice_in_dim(y, done, k * size, 0)

  return lax.fori_loop(0, parts, add, jnp.zeros((x.shape[0], *spatial, outputs), dtype))


def _kernel_gradient(eqn: Equation, x: jax.Array, slope: jax.Array) -> jax.Array:
  """sum_np x[n, stride p + t] slope[n, p] for each tap t, in the layout of the kernel."""
  dims, aval = eqn.params['dimension_numbers'], eqn.in_avals[1]
  order = _kernel_last(dims.rhs_spec)
  *window, channels, outputs = (aval.shape[i] for i in order)
  x, slope = x.transpose(_last(dims.lhs_spec)), slope.transpose(_last(dims.out_spec))
  taps = list(itertools.product(*map(range, window)))
  if _is_dense(eqn) and 2 * outputs <= channels:  # the taps of the narrow side make fewer columns
    rows, columns, pads = x, slope, _pads_back(eqn, slope, window, x.shape[1:-1])
    reads = [_reads(eqn, [n - 1 - t for n, t in zip(window, tap)], x.shape[1:-1]) for tap in taps]
  else:
    rows, columns, pads = slope, x, eqn.params['padding']
    reads = [_reads(eqn, tap, slope.shape[1:-1]) for tap in taps]
  total = _sum_of_outer(rows, columns, pads, reads, eqn.params['precision'],
                        jnp.promote_types(aval.dtype, jnp.float32))
  total = total.reshape(-1, *window, columns.shape[-1])  # of rows, taps, of columns
  to = -2 if rows is x else -1
  return jnp.moveaxis(total, 0, to).transpose(_inverse(order)).astype(aval.dtype)


def _sum_of_outer(rows: jax.Array, columns: jax.Array, pads: Sequence[tuple[int, int]],
                  reads: Sequence[tuple[slice, ...]], precision: Any, dtype: Any) -> jax.Array:
  """sum_np rows[n, p]^T [columns[n, read][p] for each read], columns padded: some images at a time.

  The loop reads the arrays as they are: cut up or padded before it, XLA would make them twice.
  """
  parts, size = _parts(rows.shape)

  def add(k: jax.Array, total: jax.Array) -> jax.Array:
    left, right = (lax.dynamic_slice_in_dim(a, k * size, size) for a in (rows, columns))
    right = _padded(right, pads)
    right = jnp.concatenate([right[read] for read in reads], -1)
    flat = [a.reshape(-1, a.shape[-1]) for a in (left, right)]
    return total + lax.dot_general(*flat, (((0,), (0,)), ((), ())), precision=precision,
                                   preferred_element_type=dtype)

  zero = jnp.zeros((rows.shape[-1], len(reads) * columns.shape[-1]), dtype)
  return lax.fori_loop(0, parts, add, zero)


def _pads_back(eqn: Equation, slope: jax.Array, window: Sequence[int],
               size: Sequence[int]) -> list[tuple[int, int]]:
  """Pads the slope of results so that tap t of input q reads index q - t + width - 1 (stride 1)."""
  return [(n - 1 - low, length + low - results) for n, (low, _), length, results in zip(
      window, eqn.params['padding'], size, slope.shape[1:-1], strict=True)]


def _padded(x: jax.Array, pads: Sequence[tuple[int, int]]) -> jax.Array:
  """x [batch, spatial..., channels] with zeros around it; less than nothing cuts it."""
  return lax.pad(x, jnp.zeros([], x.dtype),
                 [(0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0)])


def _reads(eqn: Equation, tap: Sequence[int], spatial: Sequence[int]) -> tuple[slice, ...]:
  """What a tap reads of the padded input."""
  return (slice(None), *(
      slice(t * dilation, t * dilation + (n - 1) * stride + 1, stride)
      for t, n, stride, dilation in zip(tap, spatial, eqn.params['window_strides'],
                                        eqn.params['rhs_dilation'], strict=True)))


def _parts(shape: tuple[int, ...]) -> tuple[int, int]:
  """How many parts of how many images, of a shape [batch, spatial..., channels]."""
  most = max(1, math.prod(shape[:-1]) // _ROWS)
  count = max(d for d in range(1, min(shape[0], most) + 1) if shape[0] % d == 0)
  return count, shape[0] // count


def _is_tiled(eqn: Equation) -> bool:
  """Whether windows lie side by side, no element in two of them, and none is padded."""
  (x,), params = eqn.in_avals, eqn.params
  window = params['window_dimensions']
  return (window == params['window_strides'] and not any(map(any, params['padding']))
          and all(step == 1 for name in ('base_dilation', 'window_dilation')
                  for step in params[name])
          and jnp.issubdtype(x.dtype, jnp.floating) and 0 not in eqn.out_avals[0].shape
          and math.prod(window) <= _MOST_TAPS
          and all(n == 1 or isinstance(size, int) for n, size in zip(window, x.shape)))


def _sums(eqn: Equation, x: jax.Array) -> jax.Array:
  """The sum of strided slices, one for each place in a window."""
  window, out = eqn.params['window_dimensions'], eqn.out_avals[0].shape
  return _with_gradient_of(eqn, lambda x: sum(
      x[tuple(slice(at, at + n * (count - 1) + 1, n) if n > 1 else slice(None)
              for at, n, count in zip(tap, window, out))]
      for tap in itertools.product(*map(range, window))), x)


def _is_of_channels(eqn: Equation) -> bool:
  """Whether a gather selects indices of the last of three or more axes."""
  (x, index), params = eqn.in_avals, eqn.params
  *spatial, last = range(len(x.shape))
  numbers = params['dimension_numbers']
  return (len(spatial) > 1 and jnp.issubdtype(x.dtype, jnp.floating)
          and all(isinstance(n, int) for n in x.shape) and math.prod(x.shape) < 1 << 31
          and numbers.offset_dims == tuple(spatial) and not numbers.operand_batching_dims
          and numbers.collapsed_slice_dims == numbers.start_index_map == (last,)
          and params['slice_sizes'] == (*x.shape[:-1], 1) and len(index.shape) == 2
          and params['mode'] in _FAST_MODES)


def _selection(eqn: Equation, x: jax.Array, index: jax.Array) -> jax.Array:
  """Channels `index` [count, 1]; those that are not there read as the fill value."""
  fill, channels, count = eqn.params['fill_value'], x.shape[-1], index.shape[0]

  def select(x: jax.Array, index: jax.Array) -> jax.Array:
    rows, index = x.size // channels, index.T.astype(jnp.int32)
    at = lax.broadcasted_iota(jnp.int32, (rows, count), 0) * channels + index.clip(0, channels - 1)
    y = jnp.asarray(x).reshape(-1).at[at].get(mode='promise_in_bounds')
    if eqn.params['mode'] is lax.GatherScatterMode.FILL_OR_DROP:
      y = jnp.where((index >= 0) & (index < channels), y, jnp.nan if fill is None else fill)
    return y.reshape(*x.shape[:-1], count)

  def back(slope: jax.Array, index: jax.Array) -> jax.Array:
    is_there = (index >= 0) & (index < channels)
    slope = jnp.where(is_there.T.reshape((1,) * (slope.ndim - 1) + (-1,)), slope, 0)
    one_hot = (index == jnp.arange(channels, dtype=index.dtype)[None]).astype(slope.dtype)
    rows = jnp.dot(slope.reshape(-1, count), one_hot, precision='highest')
    return rows.reshape(*slope.shape[:-1], channels)

  return _with_gradient_of(eqn, select, x, index, back=back if count <= _SMALL else None)


def _with_gradient_of(eqn: Equation, fast: Callable[..., jax.Array], x: jax.Array,
                      *index: jax.Array, back: Callable[..., jax.Array] | None = None) -> jax.Array:
  """`fast(x, *index)`, linear in x, with the gradient of the equation as it was, or `back`."""
  full = jax.ShapeDtypeStruct(x.shape, x.dtype)

  def transposed(slope: jax.Array, *index: jax.Array) -> jax.Array:
    (found,) = jax.linear_transpose(lambda x: jaxprs.bind(eqn, x, *index)[0], full)(slope)
    return found

  def pull(index: Sequence[jax.Array], slope: jax.Array) -> tuple[jax.Array | None, ...]:
    return (back or transposed)(slope, *index), *(None for _ in index)

  run = jax.custom_vjp(fast)
  run.defvjp(lambda x, *index: (fast(x, *index), index), pull)
  return run(x, *index)
