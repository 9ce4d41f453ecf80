"""Pooling: windows that slide along some axes and leave the others alone.

An axis with window 1, stride 1 and no padding passes through; the others are read whole.
"""

from typing import Any

from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Fact, Rule, bind_fenced, cut, full_support, register
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def passing(eqn: Equation, region: Region) -> Region:
  """The region with every axis that windows slide along made whole."""
  if region.empty:
    return region
  dilation = eqn.params.get('base_dilation', (1,) * len(region.axes))
  rows = zip(
    eqn.params['window_dimensions'],
    eqn.params['window_strides'],
    eqn.params['padding'],
    dilation,
    strict=True,
  )
  return Region(
    tuple(
      axis if row == (1, 1, (0, 0), 1) else None
      for axis, row in zip(region.axes, rows, strict=True)
    )
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
    base == 1 and dilation == 1 and max(padding) < size for size, padding, base, dilation in rows
  )


def _sum_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  return [passing(eqn, facts[0].support)]


def _extremum_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support = facts[0].support
  if not _touches_data(eqn):
    support = regions.whole(len(eqn.in_avals[0].shape))
  return [passing(eqn, support)]


def _reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  wanted = regions.nothing()
  for region in live:
    wanted = regions.union(wanted, passing(eqn, region))
  # The general form has its initial values, scalars, behind the operands.
  return [wanted if a.shape else regions.whole(0) for a in eqn.in_avals]


def _evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  results = bind_fenced(eqn, lambda region: passing(eqn, region), facts, live, arrays)
  return cut(results, eqn, [reads[0]] * len(live), live)


register([p.reduce_window_sum_p], Rule(_sum_support, _reads, _evaluate))
register([p.reduce_window_max_p, p.reduce_window_min_p], Rule(_extremum_support, _reads, _evaluate))
register([p.reduce_window_p], Rule(full_support, _reads, _evaluate))


# Derivatives of max-pooling: what goes to, or comes from, the largest element of each window.


def _picked_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """Zero where what is moved is: the operand that windows look at only says where to."""
  return [passing(eqn, facts[0].support)]


register(
  [p.select_and_scatter_add_p, p.select_and_gather_add_p], Rule(_picked_support, _reads, _evaluate)
)
