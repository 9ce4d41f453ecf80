"""Operations that move axes about without arithmetic: transpose, broadcast, reshape...

The operand arrives as exactly the elements that the result consists of. Evaluation then only
rewrites the parameters that name a shape.
"""

from collections.abc import Iterable, Sequence
import math
from typing import Any

from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions, shuffle
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Context, Rule, live_parts, read_whole, register, run_thin
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p

# transpose: result axis i is operand axis permutation[i].


def _transpose_support(ctx: Context) -> list[Region]:
  (support,) = ctx.supports
  return [support.with_axes(support.axes[i] for i in ctx.params['permutation'])]


def _transpose_reads(ctx: Context) -> list[Region]:
  (live,) = ctx.live
  return [live.with_axes(live.axes[i] for i in np.argsort(ctx.params['permutation']))]


register([p.transpose_p], Rule(_transpose_support, _transpose_reads, run_thin))


# rev: indices of the named axes run backwards.


def _reversed(ctx: Context, region: Region) -> Region:
  dimensions, backwards = ctx.params['dimensions'], slice(None, None, -1)
  return region.with_axes(
    regions.at(axis, backwards) if i in dimensions else axis for i, axis in enumerate(region.axes)
  )


register(
  [p.rev_p],
  Rule(
    lambda ctx: [_reversed(ctx, ctx.supports[0])],
    lambda ctx: [_reversed(ctx, ctx.live[0])],
    run_thin,
  ),
)


# permute: indices of one axis change places.


def _permute_support(ctx: Context) -> list[Region]:
  (support,), axis, index = ctx.supports, ctx.params['axis'], ctx.params['index']
  return [regions.along(support, axis, regions.at(support.axes[axis], index))]


def _permute_reads(ctx: Context) -> list[Region]:
  (live,), axis, index = ctx.live, ctx.params['axis'], ctx.params['index']
  read = np.zeros(len(index), bool)
  read[index[regions.vector(live.axes[axis], len(index))]] = True
  return [regions.along(live, axis, read)]


def _permute_evaluate(ctx: Context, x: Any) -> list[Any]:
  axis, index, wanted = ctx.params['axis'], ctx.params['index'], ctx.live[0].axes
  if wanted[axis] is None:
    split, order, _ = ctx.params['steps']
    parts = split.out_avals[0].shape[axis : axis + len(split.out_avals[0].shape) - x.ndim + 1]
    y = lax.reshape(x, (*x.shape[:axis], *parts, *x.shape[axis + 1 :]))
    return [lax.reshape(lax.transpose(y, order.params['permutation']), x.shape)]
  # The operand arrives with the wanted indices alone: count among those.
  held = regions.vector(ctx.reads[0].axes[axis], len(index))
  places = (np.cumsum(held) - 1)[index[wanted[axis]]].astype(np.int32)
  at = (slice(None),) * axis + (places,)
  return [jnp.asarray(x).at[at].get(mode='promise_in_bounds', unique_indices=True)]


register([shuffle.permute_p], Rule(_permute_support, _permute_reads, _permute_evaluate))


# squeeze: axes of size 1 are dropped.


def _squeeze_support(ctx: Context) -> list[Region]:
  (support,), dropped = ctx.supports, ctx.params['dimensions']
  return [support.with_axes(axis for i, axis in enumerate(support.axes) if i not in dropped)]


def _squeeze_reads(ctx: Context) -> list[Region]:
  (live,), dropped = ctx.live, ctx.params['dimensions']
  axes = iter(live.axes)
  rank = len(ctx.eqn.in_avals[0].shape)
  return [live.with_axes(None if i in dropped else next(axes) for i in range(rank))]


register([p.squeeze_p], Rule(_squeeze_support, _squeeze_reads, run_thin))


# broadcast_in_dim: operand axis i is result axis broadcast_dimensions[i], or stretches from 1.


def kept_axes(eqn: Equation) -> list[tuple[int, int]]:
  """Pairs of operand axis and result axis whose indices are tied."""
  shape, out = eqn.in_avals[0].shape, eqn.params['shape']
  return [(i, o) for i, o in enumerate(eqn.params['broadcast_dimensions']) if shape[i] == out[o]]


def _broadcast_support(ctx: Context) -> list[Region]:
  support = ctx.supports[0]
  axes: list[Axis] = [None] * len(ctx.params['shape'])
  for i, o in kept_axes(ctx.eqn):
    axes[o] = support.axes[i]
  return [support.with_axes(axes)]


def _broadcast_reads(ctx: Context) -> list[Region]:
  (live,) = ctx.live
  axes: list[Axis] = [None] * len(ctx.eqn.in_avals[0].shape)
  for i, o in kept_axes(ctx.eqn):
    axes[i] = live.axes[o]
  return [live.with_axes(axes)] + [regions.whole(0) for _ in ctx.facts[1:]]


def _broadcast_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  shape = regions.shape_of(ctx.live[0], ctx.params['shape'])
  return jaxprs.bind(ctx.eqn, *arrays, shape=shape)


register([p.broadcast_in_dim_p], Rule(_broadcast_support, _broadcast_reads, _broadcast_evaluate))


# bitcast_convert_type: elements become several smaller ones along a new last axis, or the reverse.


def _recast(region: Region, rank: int) -> Region:
  axes = list(region.axes)
  return region.with_axes([*axes, None] if rank > len(axes) else axes[:rank])


def _bitcast_support(ctx: Context) -> list[Region]:
  return [_recast(ctx.supports[0], len(ctx.eqn.out_avals[0].shape))]


def _bitcast_reads(ctx: Context) -> list[Region]:
  return [_recast(ctx.live[0], len(ctx.eqn.in_avals[0].shape))]


def _bitcast_evaluate(ctx: Context, array: Any) -> list[Any]:
  have = _recast(ctx.reads[0], len(ctx.eqn.out_avals[0].shape))
  return live_parts(ctx, jaxprs.bind(ctx.eqn, array), [have])


register([p.bitcast_convert_type_p], Rule(_bitcast_support, _bitcast_reads, _bitcast_evaluate))


# tile: every axis is repeated as a whole.


def _tiled(axes: Iterable[Axis], reps: Sequence[int]) -> list[Axis]:
  return [None if a is None else np.tile(a, n) for a, n in zip(axes, reps, strict=True)]


def _tile_support(ctx: Context) -> list[Region]:
  (support,) = ctx.supports
  return [support.with_axes(_tiled(support.axes, ctx.params['reps']))]


def _tile_reads(ctx: Context) -> list[Region]:
  (live,), shape = ctx.live, ctx.eqn.in_avals[0].shape
  return [
    regions.normal(
      None if axis is None else np.ravel(axis.reshape(reps, size).any(0))
      for axis, reps, size in zip(live.axes, ctx.params['reps'], shape, strict=True)
    )
  ]


def _tile_evaluate(ctx: Context, array: Any) -> list[Any]:
  have = ctx.reads[0].with_axes(_tiled(ctx.reads[0].axes, ctx.params['reps']))
  return live_parts(ctx, jaxprs.bind(ctx.eqn, array), [have])


register(jaxprs.tile_ps, Rule(_tile_support, _tile_reads, _tile_evaluate))


# reshape: both shapes fall into groups of axes with equal products; a group of more than one
# axis on either side is merged to one flat axis and split again.


def groups(shape: Sequence[int], out: Sequence[int]) -> list[tuple[list[int], list[int]]]:
  """Smallest runs of axes of `shape` and of `out` that hold the same elements.

  Where sizes are symbols, runs are found from both ends; what is not to be told between is one.
  """
  front, i, j = _aligned(shape, out)
  if i == len(shape) and j == len(out):
    return front
  back, left, right = _aligned(shape[i:][::-1], out[j:][::-1])
  last = len(shape) - 1, len(out) - 1
  turned = [
    ([last[0] - k for k in reversed(a)], [last[1] - k for k in reversed(b)]) for a, b in back
  ]
  between = [*range(i, len(shape) - left)], [*range(j, len(out) - right)]
  return [*front, between, *reversed(turned)]


def _aligned(
  shape: Sequence[int], out: Sequence[int]
) -> tuple[list[tuple[list[int], list[int]]], int, int]:
  """Runs from the front, and where both shapes go on if symbols do not tell."""
  result: list[tuple[list[int], list[int]]] = []
  i = j = 0
  while i < len(shape) or j < len(out):
    start = i, j
    n = m = 1
    if i < len(shape):
      n, i = shape[i], i + 1
    if j < len(out):
      m, j = out[j], j + 1
    while n != m:
      behind = _is_behind(n, m)
      if behind is None:
        return result, *start
      if j == len(out) or (behind and i < len(shape)):
        n, i = n * shape[i], i + 1
      else:
        m, j = m * out[j], j + 1
    result.append(([*range(start[0], i)], [*range(start[1], j)]))
  return result, i, j


def _is_behind(n: Any, m: Any) -> bool | None:
  """Whether a product n is yet to grow to m; None if symbols do not tell."""
  if jaxprs.is_fixed(n) and jaxprs.is_fixed(m):
    return n < m
  if m % n == 0 or n % m == 0:
    return m % n == 0
  return None


def _flat(axes: list[Axis], sizes: list[int]) -> Axis:
  """The index set of the merged axis."""
  if all(axis is None for axis in axes):
    return None
  merged = np.ones((1,), bool)
  for axis, size in zip(axes, sizes, strict=True):
    merged = np.outer(merged, regions.vector(axis, size)).ravel()
  return merged


def _split(flat: Axis, sizes: list[int]) -> list[Axis]:
  """The smallest index sets whose product holds `flat`, split to axes of `sizes`."""
  if flat is None:
    return [None] * len(sizes)
  grid = flat.reshape(sizes)
  dims = range(len(sizes))
  return [np.ravel(grid.any(axis=tuple(d for d in dims if d != i))) for i in dims]


def _through(region: Region, shape: Sequence[int], out: Sequence[int]) -> Region:
  """The smallest region of `out` that holds a region of `shape`."""
  axes: list[Axis] = [None] * len(out)
  if region.empty or region.is_whole:
    return region.with_axes(axes)
  for left, right in groups(shape, out):
    sizes = [*(shape[i] for i in left), *(out[j] for j in right)]
    if len(sizes) > 2 and not all(map(jaxprs.is_fixed, sizes)):
      continue
    flat = _flat([region.axes[i] for i in left], [shape[i] for i in left])
    for j, axis in zip(right, _split(flat, [out[j] for j in right]), strict=True):
      axes[j] = axis
  return regions.normal(axes)


def _has_elements(eqn: Equation) -> bool:
  return 0 not in eqn.in_avals[0].shape


def _order(eqn: Equation) -> Sequence[int]:
  """The order in which the axes of the operand are read."""
  return eqn.params['dimensions'] or range(len(eqn.in_avals[0].shape))


def _ordered(eqn: Equation) -> list[int]:
  """Sizes of the operand's axes, in this order."""
  return [eqn.in_avals[0].shape[i] for i in _order(eqn)]


def _reshape_support(ctx: Context) -> list[Region]:
  support, out = ctx.supports[0], ctx.eqn.out_avals[0].shape
  if not _has_elements(ctx.eqn):
    return [support.with_axes((None,) * len(out))]
  turned = support.with_axes(support.axes[i] for i in _order(ctx.eqn))
  return [_through(turned, _ordered(ctx.eqn), out)]


def _reshape_reads(ctx: Context) -> list[Region]:
  if not _has_elements(ctx.eqn):
    return read_whole(ctx)
  read = _through(ctx.live[0], ctx.eqn.out_avals[0].shape, _ordered(ctx.eqn))
  read = read.with_axes(read.axes[i] for i in np.argsort(_order(ctx.eqn)))
  return [read] + [regions.whole(0) for _ in ctx.facts[1:]]


def _reshape_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  shape, out, order = _ordered(ctx.eqn), ctx.eqn.out_avals[0].shape, _order(ctx.eqn)
  if not _has_elements(ctx.eqn):
    return live_parts(ctx, jaxprs.bind(ctx.eqn, *arrays), [regions.whole(len(out))])
  have, want, sizes = [], [], []
  for left, right in groups(shape, out):
    have.append(_flat([ctx.reads[0].axes[order[i]] for i in left], [shape[i] for i in left]))
    want.append(_flat([ctx.live[0].axes[j] for j in right], [out[j] for j in right]))
    sizes.append(math.prod(shape[i] for i in left))
  (array,) = arrays
  thin = regions.shape_of(ctx.live[0], out)
  if all(map(regions.same_axis, have, want)):
    return [lax.reshape(array, thin, ctx.params['dimensions'])]
  counts = [regions.width(h, n) for h, n in zip(have, sizes, strict=True)]
  merged = lax.reshape(array, counts, ctx.params['dimensions'])
  return [lax.reshape(regions.take(merged, Region(tuple(have)), Region(tuple(want)), sizes), thin)]


register([p.reshape_p], Rule(_reshape_support, _reshape_reads, _reshape_evaluate))
