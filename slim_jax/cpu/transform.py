"""`for_cpu`: replaces operations of a function that XLA compiles poorly on a CPU."""

from collections.abc import Callable
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.cpu import convolutions, gathers, gradients, pooling, winograd
from slim_jax.cpu.options import is_default
from slim_jax.jaxprs import Equation, primitives

PyTree = Any

# With more taps than this, the additional operations outweigh the gain.
_MOST_TAPS = 128


def for_cpu(f: Callable[..., PyTree]) -> Callable[..., PyTree]:
  """Returns the same function with operations that XLA compiles well on a CPU.

  These are replaced: depthwise and pointwise convolutions, convolutions of mostly padding, 3x3
  convolutions of many channels, convolutions with few outputs of many channels and the gradients of
  their kernels, sums over adjacent windows, gradients of maxima over windows, and selections of
  channels. The results are the same up to the order of sums; those of 3x3 convolutions are up to a
  few roundings less accurate, and with `jax.default_matmul_precision('highest')` these are not
  replaced. Nothing changes if JAX's default backend is not the CPU, or inside `scan`, `while`,
  `cond`, `jax.checkpoint` and custom derivatives.

  Apply it last, to the function that is compiled: `count` and `plan` read the original convolutions
  better. Derivatives are taken in reverse mode (`grad`, `vjp`), not in forward mode (`jvp`).

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
    A function to wrap in `jit`, `grad`, `vmap` or `pmap`. Outside `jit`, every call traces `f`.
  """

  @functools.wraps(f)
  def fast(*args: Any, **kwargs: Any) -> PyTree:
    if not is_default():
      return f(*args, **kwargs)
    program, results = jaxprs.trace(f, *args, **kwargs)
    if not any(map(_faster, program.equations)):
      return f(*args, **kwargs)
    leaves = jaxprs.run(program, jax.tree.leaves((args, kwargs)), _run)
    return jax.tree.unflatten(jax.tree.structure(results), leaves)

  return fast


def _run(eqn: Equation, *arrays: Any) -> list[Any]:
  """Evaluates an equation, by a faster function if there is one."""
  faster = _faster(eqn)
  return [faster(eqn, *arrays)] if faster else jaxprs.bind(eqn, *arrays)


def _faster(eqn: Equation) -> Callable[..., jax.Array] | None:
  """Returns a function `(eqn, *operands)` -> y that is faster on a CPU, if there is one."""
  choose = _CHOICES.get(eqn.primitive)
  return choose(eqn) if choose else None


def _of_convolution(eqn: Equation) -> Callable[..., jax.Array] | None:
  (x, kernel), dims = eqn.in_avals, eqn.params['dimension_numbers']
  window = [kernel.shape[i] for i in dims.rhs_spec[2:]]
  if (
    eqn.params['batch_group_count'] != 1
    or math.prod(window) > _MOST_TAPS
    or any(step != 1 for step in eqn.params['lhs_dilation'])
    or not jnp.issubdtype(x.dtype, jnp.floating)
    or x.dtype != kernel.dtype
    or not all(jaxprs.is_fixed(x.shape[i]) for i in dims.lhs_spec[2:])
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
  is_small = math.prod(eqn.params['window_dimensions']) <= _MOST_TAPS and _has_sizes(eqn)
  return pooling.sums if is_small and pooling.is_tiled(eqn) else None


def _of_maxima(eqn: Equation) -> Callable[..., jax.Array] | None:
  is_small = 1 < math.prod(eqn.params['window_dimensions']) <= _MOST_TAPS
  return pooling.maxima if is_small and _has_sizes(eqn) and pooling.is_plain(eqn) else None


def _has_sizes(eqn: Equation) -> bool:
  """Returns whether the axes that windows slide along have sizes that are numbers."""
  windows = zip(eqn.params['window_dimensions'], eqn.in_avals[0].shape, strict=True)
  return all(window == 1 or jaxprs.is_fixed(size) for window, size in windows)


def _of_gather(eqn: Equation) -> Callable[..., jax.Array] | None:
  return gathers.select_channels if gathers.is_of_channels(eqn) else None


# By primitive, the function that chooses how to compute an equation.
_CHOICES = {
  primitives.conv_general_dilated_p: _of_convolution,
  primitives.reduce_window_sum_p: _of_sums,
  primitives.reduce_window_max_p: _of_maxima,
  primitives.gather_p: _of_gather,
}
