"""`reconstruct`: kernels that read cut channels are fitted again, so that their outputs stay.

With H the inputs of a layer in the thin network, on a batch for calibration, and Z its outputs in
the full network, the new kernel is the least-squares solution that stays near the old one:

    W' = argmin |Z - H W'|^2 + ridge * |W' - W|^2,   for the rows of W that are left

The full network and the masked one run side by side, operation by operation. So each layer is fitted
to the inputs that it gets once the layers before it are fitted.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs, tree
from slim_jax.channels import kernels, programs
from slim_jax.channels.cuts import Cut
from slim_jax.channels.kernels import Kernel
from slim_jax.channels.plan import Plan
from slim_jax.jaxprs import Equation, Program

_Pair = tuple[Any, Any]  # a value of the full network and of the masked one
_ROWS = 1 << 22  # elements of inputs that are looked at together


def reconstruct(
  f: Callable[..., Any], variables: Any, *args: Any, plan: Plan, ridge: float = 1e-3
) -> Any:
  """Fits kernels that lose inputs to the outputs that they had, on a batch for calibration.

      variables = slim_jax.reconstruct(apply, variables, batch, plan=plan)
      thin_variables = plan.slice(variables)

  This costs one run of the network and needs no labels. Dense layers, convolutions without groups
  and projections of attention heads are fitted; kernels that several operations read, and those
  inside loops, stay as they are. Estimate BatchNorm statistics again afterwards.

  Args:
    f: `f(variables, *args)`, inference.
    variables: tree of arrays of the original shapes; with gates, those that `fold` returns.
    *args: further arguments: a batch of some hundred examples.
    plan: of the variables: what is removed.
    ridge: how strongly kernels stay as they are, as a share of the mean square of the inputs.

  Returns:
    Variables of the same shapes, with other values at live indices of the fitted kernels.

  Raises:
    ValueError: the variables do not fit the plan, or `ridge` is negative.

  References:
    He et al., Channel pruning for accelerating very deep neural networks, ICCV 2017.
  """
  if not ridge >= 0:
    raise ValueError(f'ridge must be 0 or more, got {ridge}')
  masked = plan.expand(plan.slice(variables))
  program, _ = programs.trace(f, variables, *args)
  leaves = list(tree.flatten(variables))
  targets = _targets(program, [plan.cuts[path] for path in leaves])
  fitted: dict[tree.Path, Any] = {}

  def evaluate(eqn: Equation, *operands: Any) -> list[_Pair]:
    full, thin = ([_side(x, side) for x in operands] for side in (0, 1))
    want = jaxprs.bind(eqn, *full)
    target = targets.get(id(eqn))
    if target is not None:
      kernel = target.kernel
      thin[kernel.side] = _fit(target, thin, want[0], ridge)
      fitted[leaves[kernel.leaf]] = kernel.leaf_of(thin[kernel.side])
    got = jaxprs.bind(eqn, *thin)
    return list(zip(want, got, strict=True))

  others = jax.tree.leaves(args)
  given = list(zip(jax.tree.leaves(variables), jax.tree.leaves(masked), strict=True))
  jaxprs.run(program, given + list(zip(others, others)), evaluate)

  def merged(path: tree.Path, leaf: Any) -> Any:
    if path not in fitted:
      return leaf
    # `plan.slice` moves the constants of removed channels into kernels; the fitted ones have them.
    moved = functools.reduce(lambda array, fold: fold.apply(array), plan.folds.get(path, ()), leaf)
    return jnp.where(plan.cuts[path].is_live, fitted[path] - (moved - leaf), leaf).astype(
      leaf.dtype
    )

  return tree.map_with_path(merged, variables)


def _side(value: Any, side: int) -> Any:
  """The full or the masked value; constants are the same in both."""
  return value[side] if isinstance(value, tuple) else value


class _Target(NamedTuple):
  """A kernel that is fitted, and which of its elements are left, bool of its shape."""

  kernel: Kernel
  live: np.ndarray


def _targets(program: Program, cuts: list[Cut]) -> dict[int, _Target]:
  """The kernels that lose some of their inputs, by the identity of their contraction."""
  found: dict[int, _Target] = {}
  for kernel in kernels.find(program, len(cuts)):
    if kernel.is_alone and id(kernel.eqn) not in found:
      live = kernel.of_leaf(cuts[kernel.leaf].is_live)
      rows = kernel.matrix(live).any(1)
      if rows.any() and not rows.all():
        found[id(kernel.eqn)] = _Target(kernel, live)
  return found


def _fit(target: _Target, operands: list[Any], want: Any, ridge: float) -> Any:
  """The kernel, fitted on the masked inputs to the outputs of the full network."""
  kernel = target.kernel
  x, array = operands[1 - kernel.side], np.asarray(operands[kernel.side])
  weights = kernel.matrix(array).astype(np.float64)
  rows = np.flatnonzero(kernel.matrix(target.live).any(1))
  left = weights[rows]
  gram, cross = np.zeros((len(rows), len(rows))), np.zeros(left.shape)
  for part, result in _in_parts(kernel, x, want):
    inputs = np.asarray(kernel.inputs(part), np.float64)[:, rows]
    gram += inputs.T @ inputs
    cross += inputs.T @ (np.asarray(kernel.outputs(result), np.float64) - inputs @ left)
  mean = np.trace(gram) / len(rows)
  if not np.isfinite(mean) or mean == 0:
    return operands[kernel.side]
  change = np.linalg.lstsq(gram + ridge * mean * np.eye(len(rows)), cross, rcond=None)[0]
  weights[rows] = left + change
  return jnp.asarray(kernel.unmatrix(weights, array.shape), array.dtype)


def _in_parts(kernel: Kernel, x: Any, want: Any) -> list[_Pair]:
  """Inputs and results in parts of the batch, as windows of convolutions take memory."""
  if kernel.is_dot:
    return [(x, want)]
  dims = kernel.eqn.params['dimension_numbers']
  shape = kernel.eqn.in_avals[1].shape
  each = (
    np.prod(want.shape)
    // want.shape[dims.out_spec[0]]
    * np.prod(shape)
    // shape[dims.rhs_spec[0]] ** 2
  )
  size = max(1, int(_ROWS // max(each, 1)))
  batch = x.shape[dims.lhs_spec[0]]
  return [
    (
      lax.slice_in_dim(x, low, min(low + size, batch), axis=dims.lhs_spec[0]),
      lax.slice_in_dim(want, low, min(low + size, batch), axis=dims.out_spec[0]),
    )
    for low in range(0, batch, size)
  ]
