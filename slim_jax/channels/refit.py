"""`reconstruct`: kernels that read cut channels are fitted again, so that their outputs stay.

With H the inputs of a layer in the thin network, on a batch for calibration, and Z its outputs in
the full network, the new kernel is the least-squares solution that stays near the old one:

    W' = argmin |Z - H W'|^2 + ridge * |W' - W|^2,   for the rows of W that are left

The full network and the masked one run side by side, operation by operation. So each layer is fitted
to the inputs that it gets once the layers before it are fitted.
"""

from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs, tree
from slim_jax.channels import programs
from slim_jax.channels.cuts import Cut
from slim_jax.channels.plan import Plan
from slim_jax.channels.rules import contraction
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p

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
  targets = {id(t.eqn): t for t in _targets(program, [plan.cuts[path] for path in leaves])}
  fitted: dict[tree.Path, Any] = {}

  def evaluate(eqn: Equation, *operands: Any) -> list[_Pair]:
    full, thin = ([_side(x, side) for x in operands] for side in (0, 1))
    want = jaxprs.bind(eqn, *full)
    target = targets.get(id(eqn))
    if target is not None:
      thin[target.side] = _fit(target, thin, want[0], ridge)
      path = leaves[target.leaf]
      fitted[path] = target.leaf_of(thin[target.side])
    got = jaxprs.bind(eqn, *thin)
    return list(zip(want, got, strict=True))

  others = jax.tree.leaves(args)
  given = list(zip(jax.tree.leaves(variables), jax.tree.leaves(masked), strict=True))
  jaxprs.run(program, given + list(zip(others, others)), evaluate)

  def merged(path: tree.Path, leaf: Any) -> Any:
    if path not in fitted:
      return leaf
    return jnp.where(_live(plan.cuts[path]), fitted[path], leaf).astype(leaf.dtype)

  return tree.map_with_path(merged, variables)


def _live(cut: Cut) -> np.ndarray:
  """Which elements of a variable are left, bool of its shape."""
  live = np.zeros(cut.shape, bool)
  live[np.ix_(*cut.indices)] = True
  return live


def _side(value: Any, side: int) -> Any:
  """The full or the masked value; constants are the same in both."""
  return value[side] if isinstance(value, tuple) else value


class _Target(NamedTuple):
  """A contraction whose kernel is fitted.

  Attributes:
    eqn: the contraction.
    side: which operand the kernel is.
    leaf: the number of the variable that the kernel is a cast, transpose or reshape of.
    changes: the operations between, from the contraction back to the variable.
    live: bool, of the kernel's shape: which of its elements are left.
  """

  eqn: Equation
  side: int
  leaf: int
  changes: list[Equation]
  live: np.ndarray

  def leaf_of(self, kernel: Any) -> Any:
    """The variable of a kernel."""
    for eqn in self.changes:
      (aval,) = eqn.in_avals
      if eqn.primitive is p.transpose_p:
        kernel = kernel.transpose(np.argsort(eqn.params['permutation']))
      kernel = kernel.reshape(aval.shape).astype(aval.dtype)
    return kernel


_CHANGES = (p.convert_element_type_p, p.copy_p, p.transpose_p, p.reshape_p)


def _targets(program: Program, cuts: list[Cut]) -> list[_Target]:
  """The contractions whose kernels lose some of their inputs."""
  made = {number: eqn for eqn in program.equations for number in eqn.outputs}
  reads = Counter((*program.outputs, *(i for eqn in program.equations for i in eqn.inputs)))
  place = {number: n for n, number in enumerate(program.inputs[: len(cuts)])}
  found = []
  for eqn in program.equations:
    for side in _kernels(eqn):
      number, changes = eqn.inputs[side], []
      while number in made and reads[number] == 1 and made[number].primitive in _CHANGES:
        changes.append(made[number])
        number = made[number].inputs[0]
      if number in place and reads[number] == 1:
        cut = cuts[place[number]]
        live = _live(cut)
        for change in reversed(changes):
          (live,) = map(np.asarray, jaxprs.bind(change, live)) if _moves(change) else (live,)
        target = _Target(eqn, side, place[number], changes, live)
        rows = _matrix(target, live).any(1)
        if rows.any() and not rows.all():
          found.append(target)
          break
  return found


def _moves(eqn: Equation) -> bool:
  return eqn.primitive in (p.transpose_p, p.reshape_p)


def _kernels(eqn: Equation) -> tuple[int, ...]:
  """Which operands of an equation may be kernels that can be fitted."""
  if eqn.primitive is p.conv_general_dilated_p:
    groups = eqn.params['feature_group_count'], eqn.params['batch_group_count']
    return (1,) if groups == (1, 1) else ()
  if eqn.primitive is p.dot_general_p and not contraction.dot_axes(eqn).batch:
    return (1, 0)
  return ()


def _matrix(target: _Target, kernel: Any) -> Any:
  """The kernel as [inputs, outputs]."""
  eqn = target.eqn
  if eqn.primitive is p.dot_general_p:
    dims = contraction.dot_axes(eqn)
    inner = [pair[target.side] for pair in dims.contract]
    order = [*inner, *dims.free[target.side]]
    count = len(inner)
  else:
    out, into, *spatial = eqn.params['dimension_numbers'].rhs_spec
    order, count = [into, *spatial, out], 1 + len(spatial)
  kernel = kernel.transpose(order)
  return kernel.reshape(int(np.prod(kernel.shape[:count])), -1)


def _unmatrix(target: _Target, matrix: Any, shape: tuple[int, ...]) -> Any:
  """Undoes `_matrix`."""
  order = _matrix(target, np.arange(int(np.prod(shape))).reshape(shape)).ravel()
  flat = np.empty(len(order), matrix.dtype)
  flat[order] = matrix.ravel()
  return flat.reshape(shape)


def _inputs(target: _Target, x: Any) -> Any:
  """What a contraction reads as [examples and places, inputs], for a part of the batch."""
  eqn = target.eqn
  if eqn.primitive is p.dot_general_p:
    dims, side = contraction.dot_axes(eqn), 1 - target.side
    x = x.transpose([*dims.free[side], *(pair[side] for pair in dims.contract)])
    return x.reshape(-1, int(np.prod(x.shape[len(dims.free[side]) :])))
  params, dims = eqn.params, eqn.params['dimension_numbers']
  kernel = eqn.in_avals[1].shape
  patches = lax.conv_general_dilated_patches(
    x,
    [kernel[i] for i in dims.rhs_spec[2:]],
    params['window_strides'],
    params['padding'],
    lhs_dilation=params['lhs_dilation'],
    rhs_dilation=params['rhs_dilation'],
    dimension_numbers=dims,
  )
  return jnp.moveaxis(patches, dims.out_spec[1], -1).reshape(
    -1, int(np.prod(kernel)) // kernel[dims.rhs_spec[0]]
  )


def _outputs(target: _Target, z: Any) -> Any:
  """Results of a contraction as [examples and places, outputs]."""
  eqn = target.eqn
  if eqn.primitive is p.dot_general_p:
    count = [len(free) for free in contraction.dot_axes(eqn).free]
    axes = list(range(z.ndim))
    z = z.transpose(axes[count[0] :] + axes[: count[0]]) if target.side == 0 else z
    return z.reshape(int(np.prod(z.shape[: count[1 - target.side]])), -1)
  channels = eqn.params['dimension_numbers'].out_spec[1]
  return jnp.moveaxis(z, channels, -1).reshape(-1, z.shape[channels])


def _fit(target: _Target, operands: list[Any], want: Any, ridge: float) -> Any:
  """The kernel, fitted on the masked inputs to the outputs of the full network."""
  x, kernel = operands[1 - target.side], np.asarray(operands[target.side])
  weights = _matrix(target, kernel).astype(np.float64)
  rows = np.flatnonzero(_matrix(target, target.live).any(1))
  left = weights[rows]
  gram, cross = np.zeros((len(rows), len(rows))), np.zeros(left.shape)
  for part, result in _in_parts(target, x, want):
    inputs = np.asarray(_inputs(target, part), np.float64)[:, rows]
    gram += inputs.T @ inputs
    cross += inputs.T @ (np.asarray(_outputs(target, result), np.float64) - inputs @ left)
  mean = np.trace(gram) / len(rows)
  if not np.isfinite(mean) or mean == 0:
    return operands[target.side]
  change = np.linalg.lstsq(gram + ridge * mean * np.eye(len(rows)), cross, rcond=None)[0]
  weights[rows] = left + change
  return jnp.asarray(_unmatrix(target, weights, kernel.shape), kernel.dtype)


def _in_parts(target: _Target, x: Any, want: Any) -> list[_Pair]:
  """Inputs and results in parts of the batch, as windows of convolutions take memory."""
  if target.eqn.primitive is p.dot_general_p:
    return [(x, want)]
  dims = target.eqn.params['dimension_numbers']
  kernel = target.eqn.in_avals[1].shape
  each = (
    np.prod(want.shape)
    // want.shape[dims.out_spec[0]]
    * np.prod(kernel)
    // kernel[dims.rhs_spec[0]] ** 2
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
