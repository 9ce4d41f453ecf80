"""Biases that removed channels leave behind, and the kernels that can take them over.

A channel whose BatchNorm scale is zero still sends its bias on: `act(bias)`, the same at every
place of every image. What a convolution makes of many such channels, it makes of one of them
under the sum of their kernels, each times its constant; near the border too, where zeros come in,
which a larger bias of the convolution would get wrong. So one channel stays as the carrier of all.

Ye et al., "Rethinking the smaller-norm-less-informative assumption in channel pruning of
convolution layers" (ICLR 2018) fold these constants into what follows, as a bias.
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import analysis, regions
from slim_jax.channels.plan import Fold
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import RULES, Fact
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
) -> dict[int, Fold]:
  """Which kernels can take over what.

  Args:
    program: of the full network.
    before: facts with nothing dead.
    after: facts with dead scales zero, and their biases not.
    leaves: the variables, concrete arrays, in the order of the first inputs.
    data: further inputs, by value number: arrays or shapes.

  Returns:
    Folds by position of the kernel among the leaves. A kernel that is used twice has none, nor
    has one that other operations change first.
  """
  moving = {number: regions.whole(len(program.avals[number].shape)) for number in data}
  first, then = (dependence(program, facts, moving) for facts in (before, after))
  wanted: dict[_Meeting, np.ndarray] = {}
  for meeting in _meetings(program, then, len(leaves)):
    number, axis = meeting.value, meeting.value_axis
    size = program.avals[number].shape[axis]
    fixed = _fixed(after, then, number, axis, size) & ~_fixed(before, first, number, axis, size)
    if fixed.any():
      wanted[meeting] = fixed
  folds = {}
  for meeting, (low, high) in zip(wanted, _ranges(program, after, wanted, leaves, data)):
    sources = np.flatnonzero(wanted[meeting])
    # Under a slice of zeros it does not matter; and what an earlier fold emptied stays empty.
    kernel = np.moveaxis(np.asarray(leaves[meeting.leaf]), meeting.leaf_axis, 0)[sources]
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
  """bool [size]: indices along an axis at which a value is not zero, and whatever the data."""
  held, moves = facts[number].support, moving[number]
  if held.empty:
    return np.zeros(size, bool)
  held = regions.vector(held.axes[axis], size)
  return held if moves.empty else held & ~regions.vector(moves.axes[axis], size)


def _ranges(
  program: Program,
  facts: list[Fact],
  wanted: Mapping[_Meeting, np.ndarray],
  leaves: list[Any],
  data: Mapping[int, Any],
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
  found = analysis.backward(
    part,
    facts,
    [regions.intersect(demand, facts[n].support) for n, demand in zip(numbers, demands)],
  )
  have = [found.live[n] for n in program.inputs]
  given = [*leaves, *data.values()]
  arrays = [
    None
    if region.empty
    else regions.take(_concrete(array), regions.whole(len(region.axes)), region, array.shape)
    for array, region in zip(given, have, strict=True)
  ]

  @jax.jit
  def run(arrays):
    values = analysis.run(part, found, arrays, have, demands)
    ranges = []
    for value, meeting in zip(values, wanted):
      others = tuple(i for i in range(value.ndim) if i != meeting.value_axis)
      ranges.append((value.min(others), value.max(others)))
    return ranges

  return jax.tree.map(functools.partial(np.asarray, dtype=np.float64), run(arrays))


def _concrete(array: Any) -> Any:
  """An array of a shape: no constant depends on what is in it."""
  return jnp.zeros(array.shape, array.dtype) if isinstance(array, jax.ShapeDtypeStruct) else array


def _meetings(program: Program, moving: list[Region], count: int) -> Iterator[_Meeting]:
  """Where one of the first `count` inputs, used once, is contracted along one axis with a value."""
  made = {number: eqn for eqn in program.equations for number in eqn.outputs}
  readers: dict[int, int] = {}
  for number in (*program.outputs, *(i for eqn in program.equations for i in eqn.inputs)):
    readers[number] = readers.get(number, 0) + 1
  position = {number: n for n, number in enumerate(program.inputs[:count])}

  def leaf(number: int, axis: int) -> tuple[int, int] | None:
    """The variable that a value is, but for its type and the order of its axes."""
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
  """Which operand of a contraction may be the value, and the one axis of each that is summed."""
  if eqn.primitive is p.conv_general_dilated_p:
    if eqn.params['feature_group_count'] == 1 == eqn.params['batch_group_count']:
      dims = eqn.params['dimension_numbers']
      return [(0, (dims.lhs_spec[1], dims.rhs_spec[1]))]
  if eqn.primitive is p.dot_general_p:
    (left, right), batch = eqn.params['dimension_numbers']
    if len(left) == 1 and not batch[0]:
      return [(0, (left[0], right[0])), (1, (left[0], right[0]))]
  return []


# Where values depend on the data. What moves when the data do is followed as what is not zero.


def dependence(program: Program, facts: list[Fact], moving: Mapping[int, Region]) -> list[Region]:
  """Outside which region each value is the same whatever the data are.

  Args:
    program: any.
    facts: of its values.
    moving: which inputs are data, or depend on them, and where.
  """
  found = [regions.nothing()] * len(program.avals)
  for number, region in moving.items():
    found[number] = region
  for eqn in program.equations:
    moves = [found[i] for i in eqn.inputs]
    if not all(region.empty for region in moves):
      results = _moved(eqn, [facts[i] for i in eqn.inputs], moves)
      for number, region in zip(eqn.outputs, results, strict=True):
        found[number] = regions.intersect(region, facts[number].support)
  return found


def _moved(eqn: Equation, facts: list[Fact], moves: list[Region]) -> list[Region]:
  rule = RULES.get(eqn.primitive)
  if rule is not None and rule.reads is elementwise.reads:
    return elementwise.any_nonzero(eqn, [Fact(region) for region in moves])
  if eqn.primitive in _LINEAR:
    return rule.support(eqn, [Fact(region) for region in moves])
  if eqn.primitive in _PRODUCTS:
    left, right = facts
    terms = [(Fact(moves[0]), right), (left, Fact(moves[1]))]
    return [functools.reduce(regions.union, (rule.support(eqn, list(term))[0] for term in terms))]
  if eqn.primitive in _CALLS:
    (body,) = jaxprs.bodies(eqn)
    inner = dependence(body, analysis.forward(body, facts), dict(zip(body.inputs, moves)))
    return [inner[i] for i in body.outputs]
  return [regions.whole(len(aval.shape)) for aval in eqn.out_avals]


# Their results move only where one of their operands does.
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
  jaxprs.permute_p,
  jaxprs.split_p,
}
_PRODUCTS = {p.conv_general_dilated_p, p.dot_general_p}
_CALLS = {p.custom_jvp_call_p, p.custom_vjp_call_p, p.remat_p}
