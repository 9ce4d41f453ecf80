"""Writing at indices: scatter and its kin.

An axis that every update covers in full passes through. The others are read and written
whole, whatever the indices are.
"""

from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Fact, Rule, cut, register
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def _passing(eqn: Equation) -> list[tuple[int, int]]:
  """Pairs of operand axis and updates axis that are one."""
  dims = eqn.params['dimension_numbers']
  operand, _, updates = (a.shape for a in eqn.in_avals)
  indexed = (*dims.inserted_window_dims, *dims.operand_batching_dims)
  window = [i for i in range(len(operand)) if i not in indexed]
  return [
    (i, u)
    for i, u in zip(window, dims.update_window_dims, strict=True)
    if i not in dims.scatter_dims_to_operand_dims and operand[i] == updates[u]
  ]


def _kept(eqn: Equation, region: Region) -> Region:
  """The region with every axis that does not pass through made whole."""
  if region.empty:
    return region
  passing = dict(_passing(eqn))
  return Region(tuple(axis if i in passing else None for i, axis in enumerate(region.axes)))


def _from_updates(eqn: Equation, support: Region) -> Region:
  """Where updates may write something else than zero."""
  if support.empty:
    return support
  axes: list[Axis] = [None] * len(eqn.in_avals[0].shape)
  for i, u in _passing(eqn):
    axes[i] = support.axes[u]
  return Region(tuple(axes))


def _written_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  operand, _, updates = facts
  return [regions.union(operand.support, _from_updates(eqn, updates.support))]


def _multiplied_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  del eqn
  return [facts[0].support]


def _reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  operand = _kept(eqn, live[0])
  updates: list[Axis] = [None] * len(eqn.in_avals[2].shape)
  for i, u in _passing(eqn):
    updates[u] = operand.axes[i]
  return [operand, regions.whole(len(eqn.in_avals[1].shape)), Region(tuple(updates))]


def _evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  del facts
  return cut(jaxprs.bind(eqn, *arrays), eqn, [reads[0]], live)


register(
  [p.scatter_p, p.scatter_add_p, p.scatter_max_p, p.scatter_min_p],
  Rule(_written_support, _reads, _evaluate),
)
register([p.scatter_mul_p], Rule(_multiplied_support, _reads, _evaluate))
