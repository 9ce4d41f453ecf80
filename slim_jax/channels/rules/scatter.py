"""Writing at indices: scatter in all its forms.

An axis that every update covers in full passes through. The others are read and written whole,
whatever the indices are.
"""

from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Context, Rule, live_parts, register
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def _passing(eqn: Equation) -> list[tuple[int, int]]:
  """Pairs of operand axis and updates axis that every update covers in full."""
  dims = eqn.params['dimension_numbers']
  operand, _, updates = (a.shape for a in eqn.in_avals)
  indexed = (*dims.inserted_window_dims, *dims.operand_batching_dims)
  window = [i for i in range(len(operand)) if i not in indexed]
  return [
    (i, u)
    for i, u in zip(window, dims.update_window_dims, strict=True)
    if i not in dims.scatter_dims_to_operand_dims and operand[i] == updates[u]
  ]


def _tied(eqn: Equation) -> list[tuple[int, int, int]]:
  """Operand axis, indices axis and updates axis that are one: each index writes to its own."""
  dims = eqn.params['dimension_numbers']
  outer = [u for u in range(len(eqn.in_avals[2].shape)) if u not in dims.update_window_dims]
  return [
    (i, j, outer[j])
    for i, j in zip(dims.operand_batching_dims, dims.scatter_indices_batching_dims, strict=True)
  ]


def _pairs(eqn: Equation) -> list[tuple[int, int]]:
  """Pairs of operand axis and updates axis that are one."""
  return _passing(eqn) + [(i, u) for i, _, u in _tied(eqn)]


def _kept(eqn: Equation, region: Region) -> Region:
  """The region with every axis that does not pass through made whole."""
  passing = dict(_pairs(eqn))
  return region.with_axes(axis if i in passing else None for i, axis in enumerate(region.axes))


def _from_updates(eqn: Equation, support: Region) -> Region:
  """Where updates may write something other than zero."""
  axes: list[Axis] = [None] * len(eqn.in_avals[0].shape)
  for i, u in _pairs(eqn):
    axes[i] = support.axes[u]
  return support.with_axes(axes)


def _written_support(ctx: Context) -> list[Region]:
  operand, _, updates = ctx.supports
  return [regions.union(operand, _from_updates(ctx.eqn, updates))]


def _multiplied_support(ctx: Context) -> list[Region]:
  return ctx.supports[:1]


def _reads(ctx: Context) -> list[Region]:
  operand = _kept(ctx.eqn, ctx.live[0])
  _, rank, updates = (len(a.shape) for a in ctx.eqn.in_avals)
  axes: list[Axis] = [None] * updates
  indices: list[Axis] = [None] * rank
  for i, u in _pairs(ctx.eqn):
    axes[u] = operand.axes[i]
  for i, j, _ in _tied(ctx.eqn):
    indices[j] = operand.axes[i]
  return [operand, operand.with_axes(indices), operand.with_axes(axes)]


def _evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  return live_parts(ctx, jaxprs.bind(ctx.eqn, *arrays), ctx.reads[:1])


register(
  [p.scatter_p, p.scatter_add_p, *jaxprs.scatter_sub_ps, p.scatter_max_p, p.scatter_min_p],
  Rule(_written_support, _reads, _evaluate),
)
register([p.scatter_mul_p], Rule(_multiplied_support, _reads, _evaluate))
