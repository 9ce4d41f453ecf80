"""`for_cpu`: a function whose slow operations are others that XLA compiles well on a CPU."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.cpu import convolutions, gradients, pooling, selection, winograd
from slim_jax.cpu.options import is_default
from slim_jax.jaxprs import Equation, primitives

PyTree = Any

# More taps than this would make more operations than they save.
_MOST_TAPS = 128


def for_cpu(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """The same function, of operations that XLA compiles well on a CPU.

  Depthwise and pointwise convolutions, those that are mostly padding, 3x3 of many channels, those
  with few outputs of many channels and the gradients of their kernels, sums over windows side by
  side, the gradients of maxima over windows and selections of channels are computed by other
  operations: the same numbers, up to the order of the sums, those of 3x3 convolutions up to a few
  roundings (with `jax.default_matmul_precision('highest')` they stay as they are). Where JAX's
  default backend is another, and where there are none of these, nothing changes. Inside `scan`, `while`, `cond`, `jax.checkpoint` and custom derivatives
  they stay as they are.

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
    if not is_default():
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
  find = _WAYS.get(eqn.primitive)
  return find(eqn) if find else None


def _of_convolution(eqn: Equation) -> Callable[..., jax.Array] | None:
  (x, kernel), dims = eqn.in_avals, eqn.params['dimension_numbers']
  window = [kernel.shape[i] for i in dims.rhs_spec[2:]]
  if (
    eqn.params['batch_group_count'] != 1
    or math.prod(window) > _MOST_TAPS
    or any(step != 1 for step in eqn.params['lhs_dilation'])
    or not jnp.issubdtype(x.dtype, jnp.floating)
    or x.dtype != kernel.dtype
  ):
    return None
  groups = eqn.params['feature_group_count']
  if groups > 1:
    return convolutions.depthwise if groups == x.shape[dims.lhs_spec[1]] else None
  if winograd.is_faster(eqn):
    return winograd.convolution
  if all(n == 1 for n in window) or convolutions.is_mostly_padding(eqn):
    return convolutions.products
  if gradients.is_by_columns(eqn):
    return gradients.with_gradient
  return convolutions.aligned if convolutions.is_odd(eqn) else None


def _of_sums(eqn: Equation) -> Callable[..., jax.Array] | None:
  is_small = math.prod(eqn.params['window_dimensions']) <= _MOST_TAPS
  return pooling.sums if is_small and pooling.is_tiled(eqn) else None


def _of_maxima(eqn: Equation) -> Callable[..., jax.Array] | None:
  is_small = 1 < math.prod(eqn.params['window_dimensions']) <= _MOST_TAPS
  return pooling.maxima if is_small and pooling.is_plain(eqn) else None


def _of_gather(eqn: Equation) -> Callable[..., jax.Array] | None:
  return selection.selection if selection.is_of_channels(eqn) else None


_WAYS = {
  primitives.conv_general_dilated_p: _of_convolution,
  primitives.reduce_window_sum_p: _of_sums,
  primitives.reduce_window_max_p: _of_maxima,
  primitives.gather_p: _of_gather,
}
