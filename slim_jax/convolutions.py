"""Convolutions as sums over the taps of their kernel, where XLA compiles those better on a CPU.

For the CPU, XLA has fast code for most convolutions but not for two kinds:

  depthwise     becomes a dense convolution, whose kernel is mostly zeros: 10 to 200 times
                the time, and memory quadratic in the channels
  tiny inputs   a kernel that is larger than its input (the last stage of VGG-19 on CIFAR: 3x3 on
                2x2) runs some 60 times slower than others

A convolution is also a sum over the taps of its kernel: of the input, shifted, times one
position of the kernel,

    y[n, p, o] = sum_t sum_c x[n, stride p + dilation t - padding, c] k[t, c, o]

which is a product for each tap: of matrices, or where channels do not mix, of elements.
"""

from collections.abc import Callable
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


def for_cpu(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """The same function, with convolutions that XLA compiles well on a CPU.

      apply = slim_jax.for_cpu(lambda variables, x: model.apply(variables, x, train=False))
      logits = jax.jit(apply)(variables, x)

  Depthwise convolutions, and those whose kernel is larger than their input, become sums over the
  taps of the kernel: the same numbers up to the order of the sums, derivatives too. Where JAX's
  default backend is another, and where there are no such convolutions, nothing changes. Inside
  `scan`, `while`, `cond`, `jax.checkpoint` and custom derivatives they stay as they are.

  Apply it last, to what is compiled: `count` and `plan` read convolutions better as they were.

  Args:
    f: a function of pytrees of arrays.

  Returns:
    A function like it: wrap it in `jit`, `grad`, `vmap`, `pmap`. Outside `jit` every call traces
    `f` anew.
  """
  @functools.wraps(f)
  def fast(*args: Any, **kwargs: Any) -> PyTree:
    if jax.default_backend() != 'cpu':
      return f(*args, **kwargs)
    program, results = jaxprs.trace(f, *args, **kwargs)
    if not any(map(_is_slow, program.equations)):
      return f(*args, **kwargs)
    found = jaxprs.run(program, jax.tree.leaves((args, kwargs)), _run)
    return jax.tree.unflatten(jax.tree.structure(results), found)

  return fast


def _run(eqn: Equation, *arrays: Any) -> list[Any]:
  return [_sum_of_taps(eqn, *arrays)] if _is_slow(eqn) else jaxprs.bind(eqn, *arrays)


def _is_slow(eqn: Equation) -> bool:
  """Whether XLA's code for a CPU is slow here, and a sum over the taps can stand for it."""
  if eqn.primitive is not primitives.conv_general_dilated_p:
    return False
  (x, kernel), dims = eqn.in_avals, eqn.params['dimension_numbers']
  window = [kernel.shape[i] for i in dims.rhs_spec[2:]]
  groups = eqn.params['feature_group_count']
  if (eqn.params['batch_group_count'] != 1 or math.prod(window) > _MOST_TAPS
      or any(step != 1 for step in eqn.params['lhs_dilation'])
      or not jnp.issubdtype(x.dtype, jnp.floating) or x.dtype != kernel.dtype):
    return False
  is_depthwise = groups > 1 and groups == x.shape[dims.lhs_spec[1]]
  is_tiny = groups == 1 and any(
      size > x.shape[i] for size, i in zip(window, dims.lhs_spec[2:], strict=True))
  return is_depthwise or is_tiny


def _sum_of_taps(eqn: Equation, x: jax.Array, kernel: jax.Array) -> jax.Array:
  """What the convolution computes."""
  dims, out = eqn.params['dimension_numbers'], eqn.out_avals[0]
  x = x.transpose(dims.lhs_spec[0], *dims.lhs_spec[2:], dims.lhs_spec[1])
  kernel = kernel.transpose(*dims.rhs_spec[2:], *dims.rhs_spec[1::-1])
  spatial = tuple(out.shape[i] for i in dims.out_spec[2:])
  sum_of = _of_elements if eqn.params['feature_group_count'] > 1 else _of_matrices
  # Sums of half precision are held in single, as a convolution holds them.
  y = sum_of(eqn, x, kernel, spatial, jnp.promote_types(out.dtype, jnp.float32))
  where = [0] * y.ndim  # of batch, spatial..., feature
  for axis, at in enumerate((dims.out_spec[0], *dims.out_spec[2:], dims.out_spec[1])):
    where[at] = axis
  return y.transpose(where).astype(out.dtype)


def _of_elements(eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...],
                 dtype: Any) -> jax.Array:
  """Channels do not mix. The input is padded once: its gradient is then one sum, too."""
  params = eqn.params
  multiplier = kernel.shape[-1] // params['feature_group_count']
  x = lax.pad(x, jnp.zeros([], x.dtype),
              [(0, 0, 0), *((low, high, 0) for low, high in params['padding']), (0, 0, 0)])
  x = jnp.repeat(x, multiplier, axis=-1).astype(dtype)
  total = None
  for tap in itertools.product(*map(range, kernel.shape[:-2])):
    reads = tuple(slice(t * dilation, t * dilation + (n - 1) * stride + 1, stride)
                  for t, n, stride, dilation in zip(
                      tap, spatial, params['window_strides'], params['rhs_dilation'], strict=True))
    part = x[(slice(None), *reads)]
    product = part * lax.broadcast(kernel[tap][0].astype(dtype), part.shape[:-1])
    total = product if total is None else total + product
  return total


def _of_matrices(eqn: Equation, x: jax.Array, kernel: jax.Array, spatial: tuple[int, ...],
                 dtype: Any) -> jax.Array:
  """Products with padding are left out: of tiny inputs they would be half of them."""
  params = eqn.params
  along = [_inside(*each) for each in zip(
      kernel.shape[:-2], x.shape[1:-1], spatial, params['padding'], params['window_strides'],
      params['rhs_dilation'], strict=True)]
  total = jnp.zeros((x.shape[0], *spatial, kernel.shape[-1]), dtype)
  for taps in itertools.product(*along):
    tap, reads, pads = zip(*taps)
    part = x[(slice(None), *reads)]
    product = lax.dot_general(part, kernel[tap], (((part.ndim - 1,), (0,)), ((), ())),
                              precision=params['precision'],
                              preferred_element_type=dtype)
    total += jnp.pad(product, ((0, 0), *pads, (0, 0)))
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
