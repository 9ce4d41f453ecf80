"""Reading and writing at indices: gather, dynamic_slice, dynamic_update_slice.

Axes taken in full pass through. An axis that constant indices select from is followed
index by index; one that indices known only at run time select from is read whole.
"""

from typing import Any, NamedTuple

from jax import lax
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Fact, Rule, cut, register
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p

# gather


class _Gather(NamedTuple):
  passing: tuple[tuple[int, int], ...]  # operand axis, result axis: taken in full
  batch: tuple[tuple[int, int], ...]  # indices axis, result axis
  selected: int | None  # operand axis followed by constant indices
  index: np.ndarray | None  # the constant indices, in the shape of the result's batch axes


def _gather(eqn: Equation, facts: list[Fact]) -> _Gather:
  dims, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
  shape, rank = eqn.in_avals[0].shape, len(eqn.out_avals[0].shape)
  window = [
    i
    for i in range(len(shape))
    if i not in dims.collapsed_slice_dims and i not in dims.operand_batching_dims
  ]
  passing = tuple(
    (i, o)
    for i, o in zip(window, dims.offset_dims, strict=True)
    if sizes[i] == shape[i] and i not in dims.start_index_map
  )
  outer = [o for o in range(rank) if o not in dims.offset_dims]
  batch = tuple((i, o) for i, o in enumerate(outer) if i not in dims.start_indices_batching_dims)
  selected = index = None
  known = facts[1].known
  if (
    known is not None
    and known.shape == eqn.in_avals[1].shape
    and len(dims.start_index_map) == 1
    and not dims.operand_batching_dims
    and dims.collapsed_slice_dims == dims.start_index_map
  ):
    (axis,) = dims.start_index_map
    if known.size and 0 <= known.min() and known.max() < shape[axis]:
      selected, index = axis, known[..., 0]
  return _Gather(passing, batch, selected, index)


def _fills(eqn: Equation) -> bool:
  """Whether an index out of bounds reads as something else than 0 (by default as NaN)."""
  return eqn.params['mode'] == lax.GatherScatterMode.FILL_OR_DROP and eqn.params['fill_value'] != 0


def _gather_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support, rank = facts[0].support, len(eqn.out_avals[0].shape)
  how = _gather(eqn, facts)
  if how.selected is None and _fills(eqn):
    return [regions.whole(rank)]
  if support.empty:
    return [support]
  axes: list[Axis] = [None] * rank
  for i, o in how.passing:
    axes[o] = support.axes[i]
  if how.selected is not None and how.index.ndim == 1 and support.axes[how.selected] is not None:
    axes[how.batch[0][1]] = support.axes[how.selected][how.index]
  return [regions.normal(axes)]


def _gather_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  how = _gather(eqn, facts)
  x: list[Axis] = [None] * len(eqn.in_avals[0].shape)
  for i, o in how.passing:
    x[i] = live[0].axes[o]
  if how.selected is not None:
    read = np.zeros(eqn.in_avals[0].shape[how.selected], bool)
    read[_wanted(how, live[0])] = True
    x[how.selected] = read
    return [regions.normal(x), regions.nothing()]
  indices: list[Axis] = [None] * len(eqn.in_avals[1].shape)
  for i, o in how.batch:
    indices[i] = live[0].axes[o]
  return [regions.normal(x), Region(tuple(indices))]


def _wanted(how: _Gather, live: Region) -> np.ndarray:
  """The constant indices of the live part of the result."""
  index = how.index
  for i, o in how.batch:
    if live.axes[o] is not None:
      index = index.compress(live.axes[o], axis=i)
  return index


def _gather_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  how = _gather(eqn, facts)
  x, indices = arrays
  sizes, have = list(eqn.params['slice_sizes']), [None] * len(live[0].axes)
  for i, o in how.passing:
    sizes[i], have[o] = x.shape[i], live[0].axes[o]
  for _, o in how.batch:
    have[o] = live[0].axes[o]
  if how.selected is not None:
    # The operand arrives with the selected indices alone: count among those.
    held = regions.vector(reads[0].axes[how.selected], eqn.in_avals[0].shape[how.selected])
    indices = (np.cumsum(held) - 1)[_wanted(how, live[0])][..., None].astype(np.int32)
  return cut(
    jaxprs.bind(eqn, x, indices, slice_sizes=tuple(sizes)), eqn, [Region(tuple(have))], live
  )


register([p.gather_p], Rule(_gather_support, _gather_reads, _gather_evaluate))


# dynamic_slice(x, *starts): a start known beforehand makes it a slice.


def _starts(facts: list[Fact], shape: tuple[int, ...], sizes: tuple[int, ...]) -> list[int | None]:
  """Where each axis starts, clamped as JAX clamps; None: known only at run time."""
  starts: list[int | None] = []
  for fact, n, size in zip(facts, shape, sizes, strict=True):
    if n == size:
      starts.append(0)
    else:
      starts.append(None if fact.known is None else int(np.clip(fact.known, 0, n - size)))
  return starts


def _dynamic_slice_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support, sizes = facts[0].support, eqn.params['slice_sizes']
  if support.empty:
    return [support]
  starts = _starts(facts[1:], eqn.in_avals[0].shape, sizes)
  return [
    regions.normal(
      None if axis is None or start is None else axis[start : start + size]
      for axis, start, size in zip(support.axes, starts, sizes, strict=True)
    )
  ]


def _dynamic_slice_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  shape, sizes = eqn.in_avals[0].shape, eqn.params['slice_sizes']
  axes: list[Axis] = []
  for axis, start, n, size in zip(
    live[0].axes, _starts(facts[1:], shape, sizes), shape, sizes, strict=True
  ):
    if start is None:
      axes.append(None)
    else:
      read = np.zeros(n, bool)
      read[start : start + size] = regions.vector(axis, size)
      axes.append(read)
  return [regions.normal(axes)] + [regions.whole(0)] * (len(facts) - 1)


def _dynamic_slice_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  x, *starts = arrays
  sizes, have = list(eqn.params['slice_sizes']), list(live[0].axes)
  for i, (n, size) in enumerate(zip(eqn.in_avals[0].shape, sizes, strict=True)):
    if n == size or reads[0].axes[i] is not None:  # the operand is exactly what is wanted
      starts[i] = np.zeros((), eqn.in_avals[1 + i].dtype)
      sizes[i] = x.shape[i]
    else:
      have[i] = None
  return cut(
    jaxprs.bind(eqn, x, *starts, slice_sizes=tuple(sizes)), eqn, [Region(tuple(have))], live
  )


register(
  [p.dynamic_slice_p], Rule(_dynamic_slice_support, _dynamic_slice_reads, _dynamic_slice_evaluate)
)


# dynamic_update_slice(x, update, *starts): axes that the update covers pass through.


def _covered(eqn: Equation, region: Region) -> Region:
  if region.empty:
    return region
  return Region(
    tuple(
      axis if n == m else None
      for axis, n, m in zip(region.axes, eqn.in_avals[0].shape, eqn.in_avals[1].shape, strict=True)
    )
  )


def _update_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  return [regions.union(*(_covered(eqn, f.support) for f in facts[:2]))]


def _update_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  return [_covered(eqn, live[0])] * 2 + [regions.whole(0)] * (len(facts) - 2)


def _update_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  return cut(jaxprs.bind(eqn, *arrays), eqn, [reads[0]], live)


register([p.dynamic_update_slice_p], Rule(_update_support, _update_reads, _update_evaluate))
