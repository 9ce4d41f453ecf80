"""Folds the biases that removed channels leave behind into the kernels that read them.

A channel whose BatchNorm scale is zero still emits a constant: `act(bias)`, the same at every
position of every image. A convolution of many such channels equals a convolution of one of them with
the sum of their kernels, each times its constant. That holds near the border too, where zeros come
in, which a larger bias of the convolution would get wrong. So one channel stays and carries them all.

Ye et al., "Rethinking the smaller-norm-less-informative assumption in channel pruning of
convolution layers" (ICLR 2018) fold these constants into what follows, as a bias.
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs, shardings
from slim_jax.channels import analysis, programs, regions, shuffle
from slim_jax.channels.cuts import Fold
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Fact, Walk, full_support
from slim_jax.channels.rules import elementwise
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


class _Meeting(NamedTuple):
  """A contraction of some value with a variable: the axes they share, and which variable."""

  value: int
  value_axis: int
  leaf: int
  leaf_axis: int


def find(
  program: Program,
  before: list[Fact],
  after: list[Fact],
  leaves: list[Any],
  data: Mapping[int, Any],
  walk: Walk,
) -> dict[int, Fold]:
  """Finds which constants each kernel can take over.

  Args:
    program: of the full network.
    before: facts with nothing dead.
    after: facts where dead scales are zero and their biases are not.
    leaves: the variables, concrete arrays, in the order of the first inputs.
    data: further inputs, by value number: arrays or shapes.
    walk: the analysis that this is a part of.

  Returns:
    Folds by position of the kernel among the leaves. A kernel that is used twice, or changed by
    other operations first, has none.
  """
  moving = {number: regions.whole(len(program.avals[number].shape)) for number in data}
  first, then = (dependence(program, facts, moving, walk) for facts in (before, after))
  wanted: dict[_Meeting, np.ndarray] = {}
  for meeting in _meetings(program, then, len(leaves)):
    number, axis = meeting.value, meeting.value_axis
    size = program.avals[number].shape[axis]
    fixed = _fixed(after, then, number, axis, size) & ~_fixed(before, first, number, axis, size)
    if fixed.any():
      wanted[meeting] = fixed
  folds = {}
  for meeting, (low, high) in zip(wanted, _ranges(program, after, wanted, leaves, data, walk)):
    sources = np.flatnonzero(wanted[meeting])
    # A constant under a slice of zeros does not matter; a slice that an earlier fold emptied stays so.
    kernel = np.moveaxis(shardings.on_host(leaves[meeting.leaf]), meeting.leaf_axis, 0)[sources]
    used = kernel.reshape(len(sources), -1).any(1)
    constants = np.where(used, low, 0.0)
    same = ~used | (np.isfinite(low) & (low == high))
    if same.any():
      folds[meeting.leaf] = _fold(meeting.leaf_axis, sources[same], constants[same])
  return folds


def _fold(axis: int, sources: np.ndarray, constants: np.ndarray) -> Fold:
  strongest = int(np.argmax(np.abs(constants)))
  if constants[strongest] == 0:
    return Fold(axis, sources, constants, -1)
  return Fold(axis, sources, constants / constants[strongest], int(sources[strongest]))


def _fixed(
  facts: list[Fact], moving: list[Region], number: int, axis: int, size: int
) -> np.ndarray:
  """bool [size]: indices along an axis at which a value is a constant other than zero."""
  held, moves = (region.axes[axis] for region in (facts[number].support, moving[number]))
  return regions.vector(held, size) & ~regions.vector(moves, size)


def _ranges(
  program: Program,
  facts: list[Fact],
  wanted: Mapping[_Meeting, np.ndarray],
  leaves: list[Any],
  data: Mapping[int, Any],
  walk: Walk,
) -> list[tuple[np.ndarray, np.ndarray]]:
  """Smallest and largest element at each wanted index, float64 [n] each."""
  if not wanted:
    return []
  numbers, demands = [], []
  for meeting, index_set in wanted.items():
    rank = len(program.avals[meeting.value].shape)
    numbers.append(meeting.value)
    demands.append(regions.along(regions.whole(rank), meeting.value_axis, index_set))
  part = program._replace(outputs=numbers)
  nonzero = [regions.intersect(demand, facts[n].support) for n, demand in zip(numbers, demands)]
  needed = analysis.backward(part, facts, nonzero, walk=walk)
  have = [needed.live[n] for n in program.inputs]

  @jax.jit
  def run(arrays):
    values = analysis.run(part, needed, arrays, have, demands)
    ranges = []
    for value, meeting in zip(values, wanted):
      others = tuple(i for i in range(value.ndim) if i != meeting.value_axis)
      ranges.append((value.min(others), value.max(others)))
    return ranges

  with shardings.untyped(map(_concrete, (*leaves, *data.values()))) as given:
    ranges = run(
      [
        None if r.empty else regions.take(array, regions.whole(len(r.axes)), r, array.shape)
        for array, r in zip(given, have, strict=True)
      ]
    )
  return jax.tree.map(lambda x: shardings.on_host(x, np.float64), ranges)


def _concrete(array: Any) -> Any:
  """An array of a shape; constants do not depend on its values."""
  return jnp.zeros(array.shape, array.dtype) if isinstance(array, jax.ShapeDtypeStruct) else array


def _meetings(program: Program, moving: list[Region], count: int) -> Iterator[_Meeting]:
  """Contractions along one axis of a value with one of the first `count` inputs, used once."""
  made = {number: eqn for eqn in program.equations for number in eqn.outputs}
  readers: dict[int, int] = {}
  for number in (*program.outputs, *(i for eqn in program.equations for i in eqn.inputs)):
    readers[number] = readers.get(number, 0) + 1
  position = {number: n for n, number in enumerate(program.inputs[:count])}

  def leaf(number: int, axis: int) -> tuple[int, int] | None:
    """The variable that a value is a cast or a transpose of, and the variable's axis."""
    while readers[number] == 1 and moving[number].empty:
      if number in position:
        return position[number], axis
      eqn = made.get(number)
      if eqn is None or eqn.primitive not in (p.convert_element_type_p, p.copy_p, p.transpose_p):
        return None
      if eqn.primitive is p.transpose_p:
        axis = eqn.params['permutation'][axis]
      number = eqn.inputs[0]
    return None

  for eqn in program.equations:
    for side, axes in _contracted(eqn):
      kernel = leaf(eqn.inputs[1 - side], axes[1 - side])
      if kernel is not None and eqn.inputs[0] != eqn.inputs[1]:
        yield _Meeting(eqn.inputs[side], axes[side], *kernel)
        break


def _contracted(eqn: Equation) -> list[tuple[int, tuple[int, int]]]:
  """Each operand of a contraction that may be the value, and the one axis of both that is summed."""
  if eqn.primitive is p.conv_general_dilated_p:
    if eqn.params['feature_group_count'] == 1 == eqn.params['batch_group_count']:
      dims = eqn.params['dimension_numbers']
      return [(0, (dims.lhs_spec[1], dims.rhs_spec[1]))]
  if eqn.primitive is p.dot_general_p:
    (left, right), batch = eqn.params['dimension_numbers']
    if len(left) == 1 and not batch[0]:
      return [(0, (left[0], right[0])), (1, (left[0], right[0]))]
  return []


# Dependence on the data is followed by the same rules as being non-zero.


def dependence(
  program: Program, facts: list[Fact], moving: Mapping[int, Region], walk: Walk
) -> list[Region]:
  """Returns, for each value, the region outside which it is the same for all data.

  Args:
    program: any.
    facts: of its values.
    moving: the region of each input that is data or depends on them.
    walk: the analysis that this is a part of.
  """
  depends = [regions.nothing(len(aval.shape)) for aval in program.avals]
  for number, region in moving.items():
    depends[number] = region
  for eqn in program.equations:
    moves = [depends[i] for i in eqn.inputs]
    if not all(region.empty for region in moves):
      ctx = Context(eqn, [facts[i] for i in eqn.inputs], [], [], walk)
      for number, region in zip(eqn.outputs, _moved(ctx, moves), strict=True):
        depends[number] = regions.intersect(region, facts[number].support)
  return depends


def _moved(ctx: Context, moves: list[Region]) -> list[Region]:
  """Where the results depend on the data, when the operands do at `moves`."""
  eqn, rule = ctx.eqn, ctx.walk.rule(ctx.eqn)
  alike = ctx._replace(facts=list(map(Fact, moves)))
  if rule.reads is elementwise.reads:
    return elementwise.any_nonzero(alike)
  if eqn.primitive in _LINEAR:
    return rule.support(alike)
  if eqn.primitive in _PRODUCTS:
    left, right = ctx.facts
    terms = [[Fact(moves[0]), right], [left, Fact(moves[1])]]
    supports = [rule.support(ctx._replace(facts=term))[0] for term in terms]
    return [functools.reduce(regions.union, supports)]
  if eqn.primitive in jaxprs.CARRYING:
    (body,) = programs.bodies(eqn)
    inside = analysis.forward(body, ctx.facts, walk=ctx.walk)
    inner = dependence(body, inside, dict(zip(body.inputs, moves)), ctx.walk)
    return [inner[i] for i in body.outputs]
  return full_support(ctx)


# Their results depend on the data only where an operand does.
_LINEAR = {
  p.broadcast_in_dim_p,
  p.concatenate_p,
  p.pad_p,
  p.reduce_max_p,
  p.reduce_min_p,
  p.reduce_sum_p,
  p.reduce_window_max_p,
  p.reduce_window_sum_p,
  p.reshape_p,
  p.rev_p,
  p.slice_p,
  p.squeeze_p,
  p.transpose_p,
  shuffle.permute_p,
  jaxprs.split_p,
}
_PRODUCTS = {p.conv_general_dilated_p, p.dot_general_p}
