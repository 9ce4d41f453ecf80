"""Operations along some axes that treat every slice across them alike.

Sums skip the zeros of what they sum. All others read the axes they work along whole, zeros put
back: a maximum must see the zeros, and its gradient the ties.
"""

from collections.abc import Sequence
import functools
from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import (
  Context,
  Rule,
  bind_fenced,
  full_support,
  live_parts,
  register,
  run_thin,
)
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def drop(region: Region, axes: Sequence[int]) -> Region:
  """The region without some axes."""
  return region.with_axes(a for i, a in enumerate(region.axes) if i not in axes)


def insert(region: Region, axes: Sequence[int], index_sets: Sequence[Axis]) -> Region:
  """The region with `index_sets` put in as new axes at the positions `axes`."""
  given, rest = dict(zip(axes, index_sets, strict=True)), iter(region.axes)
  rank = len(region.axes) + len(axes)
  return region.with_axes(given[i] if i in given else next(rest) for i in range(rank))


# Reductions: the result has the other axes.


def _kept_support(ctx: Context) -> list[Region]:
  return [drop(ctx.supports[0], ctx.params['axes'])]


def _nonempty_support(ctx: Context) -> list[Region]:
  """An empty maximum is -inf and an empty product 1: not zero."""
  has_terms = all(jaxprs.at_least(ctx.eqn.in_avals[0].shape[i], 1) for i in ctx.params['axes'])
  return _kept_support(ctx) if has_terms else full_support(ctx)


def _sum_reads(ctx: Context) -> list[Region]:
  axes = sorted(ctx.params['axes'])
  return [insert(ctx.live[0], axes, [ctx.supports[0].axes[i] for i in axes])]


def _whole_reads(ctx: Context) -> list[Region]:
  axes = sorted(ctx.params['axes'])
  return [insert(ctx.live[0], axes, [None] * len(axes))]


register([p.reduce_sum_p, p.reduce_or_p, p.reduce_xor_p], Rule(_kept_support, _sum_reads, run_thin))
register(
  [p.reduce_max_p, p.reduce_min_p, p.reduce_prod_p, p.reduce_and_p],
  Rule(_nonempty_support, _whole_reads, run_thin),
)
register([p.argmax_p, p.argmin_p], Rule(full_support, _whole_reads, run_thin))


# reduce: any monoid, perhaps of several operands; the operands' initial values, scalars, follow.


def _monoid_reads(ctx: Context) -> list[Region]:
  axes = sorted(ctx.params['dimensions'])
  read = insert(functools.reduce(regions.union, ctx.live), axes, [None] * len(axes))
  return [read] * len(ctx.live) + [regions.whole(0)] * len(ctx.live)


def _monoid_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  have = drop(ctx.reads[0], ctx.params['dimensions'])
  return live_parts(ctx, jaxprs.bind(ctx.eqn, *arrays), [have] * len(ctx.live))


register([p.reduce_p], Rule(full_support, _monoid_reads, _monoid_evaluate))


# Cumulative sums and sorting: the axis stays, in the order of the operation.


def _along(eqn: Equation) -> int:
  """The axis that the operation works along."""
  for name in ('axis', 'dimension', 'reduction_dimension'):
    if name in eqn.params:
      return eqn.params[name] % len(eqn.in_avals[0].shape)
  return len(eqn.in_avals[0].shape) - 1  # top_k before it had an axis


def _whole_along(eqn: Equation, region: Region) -> Region:
  return regions.along(region, _along(eqn), None)


def _slicewise_support(ctx: Context) -> list[Region]:
  """A zero slice stays zero (results may permute their own operand, or sum it)."""
  return [_whole_along(ctx.eqn, support) for support in ctx.supports]


def _slicewise_reads(ctx: Context) -> list[Region]:
  live = functools.reduce(regions.union, ctx.live)
  return [_whole_along(ctx.eqn, live)] * len(ctx.facts)


def _slicewise_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  results = bind_fenced(ctx, lambda region: _whole_along(ctx.eqn, region), arrays)
  return live_parts(ctx, results, [ctx.reads[0]] * len(ctx.live))


register(
  [p.cumsum_p, p.cummax_p, p.cummin_p, p.cumprod_p, p.sort_p],
  Rule(_slicewise_support, _slicewise_reads, _slicewise_evaluate),
)
register(
  [p.cumlogsumexp_p, p.top_k_p, p.approx_top_k_p],
  Rule(full_support, _slicewise_reads, _slicewise_evaluate),
)
