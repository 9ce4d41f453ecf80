"""Pooling: windows that slide along some axes and leave the others alone.

An axis with window 1, stride 1 and no padding passes through; the others are read whole.
"""

import functools
from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Rule, bind_fenced, full_support, live_parts, register
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def passing(eqn: Equation, region: Region) -> Region:
  """The region with every axis that windows slide along made whole."""
  dilation = eqn.params.get('base_dilation', (1,) * len(region.axes))
  rows = zip(
    eqn.params['window_dimensions'],
    eqn.params['window_strides'],
    eqn.params['padding'],
    dilation,
    strict=True,
  )
  return region.with_axes(
    axis if row == (1, 1, (0, 0), 1) else None for axis, row in zip(region.axes, rows, strict=True)
  )


def _touches_data(eqn: Equation) -> bool:
  """Whether every window holds an element of the operand: an empty maximum is -inf, not 0."""
  rows = zip(
    eqn.params['window_dimensions'],
    eqn.params['padding'],
    eqn.params['base_dilation'],
    eqn.params['window_dilation'],
    strict=True,
  )
  return all(
    base == dilation == 1 and all(jaxprs.at_least(size, side + 1) for side in padding)
    for size, padding, base, dilation in rows
  )


def _passing_support(ctx: Context) -> list[Region]:
  """Sums, and what the first operand's elements are moved to."""
  return [passing(ctx.eqn, ctx.supports[0])]


def _extremum_support(ctx: Context) -> list[Region]:
  return _passing_support(ctx) if _touches_data(ctx.eqn) else full_support(ctx)


def _reads(ctx: Context) -> list[Region]:
  live = passing(ctx.eqn, functools.reduce(regions.union, ctx.live))
  # The general form has its initial values, scalars, behind the operands.
  return [live if a.shape else regions.whole(0) for a in ctx.eqn.in_avals]


def _evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  results = bind_fenced(ctx, lambda region: passing(ctx.eqn, region), arrays)
  return live_parts(ctx, results, [ctx.reads[0]] * len(ctx.live))


register([p.reduce_window_sum_p], Rule(_passing_support, _reads, _evaluate))
register([p.reduce_window_max_p, p.reduce_window_min_p], Rule(_extremum_support, _reads, _evaluate))
register([p.reduce_window_p, p.select_and_scatter_p], Rule(full_support, _reads, _evaluate))

# Derivatives of max-pooling: the operand that windows look at only says where to move elements.
register(
  [p.select_and_scatter_add_p, p.select_and_gather_add_p], Rule(_passing_support, _reads, _evaluate)
)
