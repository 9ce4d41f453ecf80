"""Collectives over named axes, of `vmap` or of the devices of a mesh.

All devices hold the same region of an array. Where a collective moves indices between devices, an
index of an axis is kept on all devices if it is kept on any.
"""

from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Rule, live_parts, register
from slim_jax.channels.rules.elementwise import any_nonzero, elementwise
from slim_jax.channels.rules.reduction import drop, insert
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p

# Sums and extrema (`lax.psum(x, 'batch')`) leave the array's own axes alone. Inside a
# `vmap` of that name the axis is one of the array's, and the result does not have it.


def _positions(eqn: Equation) -> list[int]:
  """The array's own axes that are reduced (a barrier has none)."""
  return sorted(axis for axis in eqn.params.get('axes', ()) if isinstance(axis, int))


def _collective_support(ctx: Context) -> list[Region]:
  return [drop(support, _positions(ctx.eqn)) for support in ctx.supports]


def _collective_reads(ctx: Context) -> list[Region]:
  axes = _positions(ctx.eqn)
  return [insert(live, axes, [None] * len(axes)) for live in ctx.live]


def _collective_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  given = [a for a in arrays if a is not None]
  # An effect runs even if no result is live.
  running = iter(jaxprs.bind(ctx.eqn, *given) if given else ())
  results = [None if a is None else next(running) for a in arrays]
  return live_parts(ctx, results, [drop(read, _positions(ctx.eqn)) for read in ctx.reads])


register(
  [p.psum_p, p.pmax_p, p.pmin_p, jaxprs.psum_invariant_p, jaxprs.optimization_barrier_p],
  Rule(_collective_support, _collective_reads, _collective_evaluate),
)


# The same region on the way from device to device.

register([p.ppermute_p, jaxprs.pvary_p], elementwise(any_nonzero))


# all_gather: the parts of all devices become one axis, or a new one. reduce_scatter (`psum_scatter`)
# is the reverse: each device gets its part of the sum.


def _layout(eqn: Equation) -> tuple[int, int, bool]:
  """The axis, its number of parts, and whether the parts have the axis too."""
  axis = 'all_gather_dimension' if 'all_gather_dimension' in eqn.params else 'scatter_dimension'
  return eqn.params[axis], eqn.params['axis_size'], eqn.params['tiled']


def _together(eqn: Equation, part: Region) -> Region:
  axis, count, tiled = _layout(eqn)
  if not tiled:
    return insert(part, [axis], [None])
  return regions.along(part, axis, regions.repeated(part.axes[axis], count))


def _apart(eqn: Equation, whole: Region) -> Region:
  axis, count, tiled = _layout(eqn)
  if not tiled:
    return drop(whole, [axis])
  return regions.along(whole, axis, regions.united(whole.axes[axis], count))


def _gather_evaluate(ctx: Context, array: Any) -> list[Any]:
  return live_parts(ctx, jaxprs.bind(ctx.eqn, array), [_together(ctx.eqn, ctx.reads[0])])


register(
  [p.all_gather_p, jaxprs.all_gather_invariant_p],
  Rule(
    lambda ctx: [_together(ctx.eqn, ctx.supports[0])],
    lambda ctx: [_apart(ctx.eqn, ctx.live[0])],
    _gather_evaluate,
  ),
)
register(
  [jaxprs.reduce_scatter_p],
  Rule(
    lambda ctx: [_apart(ctx.eqn, ctx.supports[0])],
    lambda ctx: [_together(ctx.eqn, ctx.live[0])],
    lambda ctx, array: jaxprs.bind(ctx.eqn, array),
  ),
)


# all_to_all: an axis is split among devices, another put together of what they send.


def _sent(ctx: Context, region: Region, split: int, concat: int) -> Region:
  """What all devices hold if they split and put together as many parts as there are."""
  if split == concat:
    return regions.along(region, split, None)
  count = ctx.eqn.in_avals[0].shape[ctx.params['split_axis']]
  count //= ctx.eqn.out_avals[0].shape[ctx.params['split_axis']]
  axes = list(region.axes)
  axes[split] = regions.united(axes[split], count)
  axes[concat] = regions.repeated(axes[concat], count)
  return region.with_axes(axes)


def _all_to_all_support(ctx: Context) -> list[Region]:
  return [_sent(ctx, ctx.supports[0], ctx.params['split_axis'], ctx.params['concat_axis'])]


def _all_to_all_reads(ctx: Context) -> list[Region]:
  (live,), split, concat = ctx.live, ctx.params['split_axis'], ctx.params['concat_axis']
  return [_sent(ctx, live, concat, split)]


def _all_to_all_evaluate(ctx: Context, array: Any) -> list[Any]:
  held = _sent(ctx, ctx.reads[0], ctx.params['split_axis'], ctx.params['concat_axis'])
  return live_parts(ctx, jaxprs.bind(ctx.eqn, array), [held])


register([p.all_to_all_p], Rule(_all_to_all_support, _all_to_all_reads, _all_to_all_evaluate))
