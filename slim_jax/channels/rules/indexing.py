"""Reading and writing at indices: gather, dynamic_slice, dynamic_update_slice.

Axes taken in full pass through. An axis from which constant indices select is followed index by
index. One from which indices select that are only known at run time is read whole.
"""

from typing import Any, NamedTuple

from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Context, Fact, Rule, live_parts, register
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p

# gather


class GatherAxes(NamedTuple):
  """Axes of a gather, and the constant indices if there are any."""

  passing: tuple[tuple[int, int], ...]  # operand axis, result axis: taken in full
  batch: tuple[tuple[int, int], ...]  # indices axis, result axis
  selected: int | None  # operand axis followed by constant indices
  # The constant indices, in the shape of the result's batch axes; -1 where a zero is read instead.
  constant: np.ndarray | None
  sliced: tuple[tuple[int, int, int], ...]  # operand axis, result axis, constant start of one slice
  tied: tuple[tuple[int, int, int], ...]  # operand axis, indices axis, result axis: index by index


def gather_axes(eqn: Equation, facts: list[Fact]) -> GatherAxes:
  """Returns what the axes of a gather's operands and result are."""
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
    if sizes[i] == shape[i] and (i not in dims.start_index_map or not _drops(eqn))
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
    if jaxprs.is_fixed(shape[axis]) and known.size:
      inside = (0 <= known) & (known < shape[axis])
      if inside.all() or _reads_zero_beyond(eqn):
        selected, index = axis, np.where(inside, known, -1)[..., 0]
  tied = tuple(
    (i, j, outer[j])
    for i, j in zip(dims.operand_batching_dims, dims.start_indices_batching_dims, strict=True)
  )
  return GatherAxes(passing, batch, selected, index, _sliced(eqn, known, window), tied)


def _sliced(
  eqn: Equation, known: np.ndarray | None, window: list[int]
) -> tuple[tuple[int, int, int], ...]:
  """Axes of which one slice is taken, if all starts are constants within bounds."""
  dims, sizes = eqn.params['dimension_numbers'], eqn.params['slice_sizes']
  shape, mapped = eqn.in_avals[0].shape, dims.start_index_map
  if known is None or known.shape != (len(mapped),) or dims.operand_batching_dims:
    return ()
  starts = dict(zip(mapped, known.tolist(), strict=True))
  for i, start in starts.items():
    fixed = jaxprs.is_fixed(shape[i]) and jaxprs.is_fixed(sizes[i])
    if i not in window or not fixed or not 0 <= start <= shape[i] - sizes[i]:
      return ()
  return tuple(
    (i, o, starts[i]) for i, o in zip(window, dims.offset_dims, strict=True) if i in starts
  )


def _drops(eqn: Equation) -> bool:
  """Whether a slice out of bounds is not read: else a slice of all indices starts at the first."""
  return eqn.params['mode'] == lax.GatherScatterMode.FILL_OR_DROP


def _reads_zero_beyond(eqn: Equation) -> bool:
  """Whether an index out of bounds reads as 0."""
  return eqn.params['mode'] == lax.GatherScatterMode.FILL_OR_DROP and eqn.params['fill_value'] == 0


def _fills(eqn: Equation) -> bool:
  """Whether an index out of bounds reads as something other than 0 (by default as NaN)."""
  return _drops(eqn) and eqn.params['fill_value'] != 0


def _gather_support(ctx: Context) -> list[Region]:
  support, rank = ctx.supports[0], len(ctx.eqn.out_avals[0].shape)
  how = gather_axes(ctx.eqn, ctx.facts)
  if how.selected is None and not how.sliced and _fills(ctx.eqn):
    return [regions.whole(rank)]
  axes: list[Axis] = [None] * rank
  for i, o in how.passing:
    axes[o] = support.axes[i]
  for i, _, o in how.tied:
    axes[o] = support.axes[i]
  for i, o, start in how.sliced:
    stop = start + ctx.params['slice_sizes'][i]
    axes[o] = regions.at(support.axes[i], slice(start, stop))
  if how.selected is not None and how.constant is not None and how.constant.ndim == 1:
    held = regions.vector(support.axes[how.selected], ctx.eqn.in_avals[0].shape[how.selected])
    axes[how.batch[0][1]] = held[how.constant] & (how.constant >= 0)
  return [support.with_axes(axes)]


def _gather_reads(ctx: Context) -> list[Region]:
  how, (live,) = gather_axes(ctx.eqn, ctx.facts), ctx.live
  shape, indices_shape = (a.shape for a in ctx.eqn.in_avals)
  x: list[Axis] = [None] * len(shape)
  for i, o in how.passing:
    x[i] = live.axes[o]
  for i, _, o in how.tied:
    x[i] = live.axes[o]
  for i, o, start in how.sliced:
    size = ctx.params['slice_sizes'][i]
    read = np.zeros(shape[i], bool)
    read[start : start + size] = regions.vector(live.axes[o], size)
    x[i] = read
  if how.selected is not None:
    read = np.zeros(shape[how.selected], bool)
    wanted = _wanted(how, live)
    read[wanted[wanted >= 0]] = True
    x[how.selected] = read
  if how.selected is not None or how.sliced:
    return [regions.normal(x), regions.nothing(len(indices_shape))]
  indices: list[Axis] = [None] * len(indices_shape)
  for i, o in how.batch:
    indices[i] = live.axes[o]
  for _, j, o in how.tied:
    indices[j] = live.axes[o]
  return [regions.normal(x), regions.normal(indices)]


def _wanted(how: GatherAxes, live: Region) -> Any:
  """The constant indices of the live part of the result."""
  index = how.constant
  for i, o in how.batch:
    axis = live.axes[o]
    if axis is not None and index is not None:
      index = index.compress(axis, axis=i)
  return index


def _gather_evaluate(ctx: Context, x: Any, indices: Any) -> list[Any]:
  how, (live,) = gather_axes(ctx.eqn, ctx.facts), ctx.live
  if x is None:  # all that is wanted is out of bounds
    (aval,) = ctx.eqn.out_avals
    return [jnp.zeros(regions.shape_of(live, aval.shape), aval.dtype)]
  sizes: list[int] = list(ctx.params['slice_sizes'])
  have: list[Axis] = [None] * len(live.axes)
  for i, o in how.passing:
    sizes[i], have[o] = x.shape[i], live.axes[o]
  for _, o in how.batch:
    have[o] = live.axes[o]
  for _, _, o in how.tied:
    have[o] = live.axes[o]
  for i, o, _ in how.sliced:  # the operand is exactly what is wanted
    sizes[i], have[o] = x.shape[i], live.axes[o]
  if how.sliced:
    indices = np.zeros(ctx.eqn.in_avals[1].shape, ctx.eqn.in_avals[1].dtype)
  if how.selected is not None:
    # The operand arrives with the selected indices alone: count among those.
    size = ctx.eqn.in_avals[0].shape[how.selected]
    held = regions.vector(ctx.reads[0].axes[how.selected], size)
    wanted = _wanted(how, live)
    position = np.where(wanted < 0, held.sum(), (np.cumsum(held) - 1)[wanted])
    indices = position[..., None].astype(np.int32)
  results = jaxprs.bind(ctx.eqn, x, indices, slice_sizes=tuple(sizes))
  return live_parts(ctx, results, [regions.normal(have)])


register([p.gather_p], Rule(_gather_support, _gather_reads, _gather_evaluate))


# dynamic_slice(x, *starts): a start known beforehand makes it a slice.


def slice_starts(
  facts: list[Fact], shape: tuple[int, ...], sizes: tuple[int, ...]
) -> list[int | None]:
  """Where each axis starts, clamped as JAX clamps; None: known only at run time."""
  starts: list[int | None] = []
  for fact, n, size in zip(facts, shape, sizes, strict=True):
    if n == size:
      starts.append(0)
    elif fact.known is None or not (jaxprs.is_fixed(n) and jaxprs.is_fixed(size)):
      starts.append(None)
    else:
      starts.append(int(np.clip(fact.known, 0, n - size)))
  return starts


def _dynamic_slice_support(ctx: Context) -> list[Region]:
  support, sizes = ctx.supports[0], ctx.params['slice_sizes']
  starts = slice_starts(ctx.facts[1:], ctx.eqn.in_avals[0].shape, sizes)
  return [
    support.with_axes(
      None if start is None else regions.at(axis, slice(start, start + size))
      for axis, start, size in zip(support.axes, starts, sizes, strict=True)
    )
  ]


def _dynamic_slice_reads(ctx: Context) -> list[Region]:
  shape, sizes = ctx.eqn.in_avals[0].shape, ctx.params['slice_sizes']
  axes: list[Axis] = []
  for axis, start, n, size in zip(
    ctx.live[0].axes, slice_starts(ctx.facts[1:], shape, sizes), shape, sizes, strict=True
  ):
    if start is None or n == size:
      axes.append(None if start is None else axis)
    else:
      read = np.zeros(n, bool)
      read[start : start + size] = regions.vector(axis, size)
      axes.append(read)
  return [regions.normal(axes)] + [regions.whole(0)] * (len(ctx.facts) - 1)


def _dynamic_slice_evaluate(ctx: Context, x: Any, *starts: Any) -> list[Any]:
  at = list(starts)
  sizes, have = list(ctx.params['slice_sizes']), list(ctx.live[0].axes)
  for i, (n, size) in enumerate(zip(ctx.eqn.in_avals[0].shape, sizes, strict=True)):
    if n == size or ctx.reads[0].axes[i] is not None:  # the operand is exactly what is wanted
      at[i] = np.zeros((), ctx.eqn.in_avals[1 + i].dtype)
      sizes[i] = x.shape[i]
    else:
      have[i] = None
  results = jaxprs.bind(ctx.eqn, x, *at, slice_sizes=tuple(sizes))
  return live_parts(ctx, results, [regions.normal(have)])


register(
  [p.dynamic_slice_p], Rule(_dynamic_slice_support, _dynamic_slice_reads, _dynamic_slice_evaluate)
)


# dynamic_update_slice(x, update, *starts): axes that the update covers pass through.


def _covered(eqn: Equation, region: Region) -> Region:
  """The region with every axis that the update does not cover made whole."""
  x, update, *_ = (a.shape for a in eqn.in_avals)
  return region.with_axes(
    axis if n == m else None for axis, n, m in zip(region.axes, x, update, strict=True)
  )


def _update_support(ctx: Context) -> list[Region]:
  x, update, *_ = ctx.supports
  return [regions.union(_covered(ctx.eqn, x), _covered(ctx.eqn, update))]


def _update_reads(ctx: Context) -> list[Region]:
  starts = [regions.whole(0)] * (len(ctx.facts) - 2)
  return [_covered(ctx.eqn, ctx.live[0])] * 2 + starts


def _update_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  return live_parts(ctx, jaxprs.bind(ctx.eqn, *arrays), ctx.reads[:1])


register([p.dynamic_update_slice_p], Rule(_update_support, _update_reads, _update_evaluate))
