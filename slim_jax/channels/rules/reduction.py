"""Operations along some axes that treat every slice across them alike.

Sums skip the zeros of what they sum. Everything else reads the axes it works along
whole, zeros put back: a maximum must see the zeros, and its gradient the ties.
"""

from collections.abc import Sequence
from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Fact, Rule, bind_fenced, cut, full_support, register, run_thin
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def drop(region: Region, axes: Sequence[int]) -> Region:
  """The region without some axes."""
  if region.empty:
    return region
  return Region(tuple(a for i, a in enumerate(region.axes) if i not in axes))


def insert(region: Region, axes: Sequence[int], index_sets: Sequence[Axis]) -> Region:
  """The region with `index_sets` put in as new axes at the positions `axes`."""
  given, rest = dict(zip(axes, index_sets, strict=True)), iter(region.axes)
  rank = len(region.axes) + len(axes)
  return regions.normal(given[i] if i in given else next(rest) for i in range(rank))


# Reductions: the axes are gone from the result.


def _kept_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  return [drop(facts[0].support, eqn.params['axes'])]


def _sum_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  axes = sorted(eqn.params['axes'])
  return [insert(live[0], axes, [facts[0].support.axes[i] for i in axes])]


def _whole_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  axes = sorted(eqn.params['axes'])
  return [insert(live[0], axes, [None] * len(axes))]


register([p.reduce_sum_p, p.reduce_or_p, p.reduce_xor_p], Rule(_kept_support, _sum_reads, run_thin))
register(
  [p.reduce_max_p, p.reduce_min_p, p.reduce_prod_p, p.reduce_and_p],
  Rule(
    lambda eqn, facts: _kept_support(eqn, facts) if _has_terms(eqn) else full_support(eqn, facts),
    _whole_reads,
    run_thin,
  ),
)
register([p.argmax_p, p.argmin_p], Rule(full_support, _whole_reads, run_thin))


def _has_terms(eqn: Equation) -> bool:
  """An empty maximum is -inf and an empty product 1: not zero."""
  return all(eqn.in_avals[0].shape[i] for i in eqn.params['axes'])


# Cumulative sums and sorting: the axis stays, in the order of the operation.


def _along(eqn: Equation) -> int:
  """The axis that the operation works along."""
  for name in ('axis', 'dimension'):
    if name in eqn.params:
      return eqn.params[name] % len(eqn.in_avals[0].shape)
  return len(eqn.in_avals[0].shape) - 1  # top_k before it had an axis


def _slicewise_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """A zero slice stays zero (results may permute their own operand, or sum it)."""
  return [regions.along(fact.support, _along(eqn), None) for fact in facts]


def _slicewise_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  wanted = regions.nothing()
  for region in live:
    wanted = regions.union(wanted, regions.along(region, _along(eqn), None))
  return [wanted] * len(facts)


def _slicewise_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  results = bind_fenced(
    eqn, lambda region: regions.along(region, _along(eqn), None), facts, live, arrays
  )
  return cut(results, eqn, [reads[0]] * len(live), live)


register(
  [p.cumsum_p, p.cummax_p, p.cummin_p, p.cumprod_p, p.sort_p],
  Rule(_slicewise_support, _slicewise_reads, _slicewise_evaluate),
)
register([p.cumlogsumexp_p, p.top_k_p], Rule(full_support, _slicewise_reads, _slicewise_evaluate))


# Collectives over named axes (`lax.psum(x, 'batch')`) leave the array's own axes alone. Inside a
# `vmap` of that name the axis is one of the array's, and is gone from the result.


def _positions(eqn: Equation) -> list[int]:
  """Which of the array's own axes are reduced (a barrier has none)."""
  return sorted(axis for axis in eqn.params.get('axes', ()) if isinstance(axis, int))


def _collective_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  return [drop(f.support, _positions(eqn)) for f in facts]


def _collective_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  axes = _positions(eqn)
  return [l if l.empty else insert(l, axes, [None] * len(axes)) for l in live]


def _collective_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  given = [a for a in arrays if a is not None]
  running = iter(jaxprs.bind(eqn, *given) if given else ())  # an effect runs even if all is dead
  results = [None if a is None else next(running) for a in arrays]
  return cut(results, eqn, [drop(r, _positions(eqn)) for r in reads], live)


register(
  [p.psum_p, p.pmax_p, p.pmin_p, jaxprs.optimization_barrier_p],
  Rule(_collective_support, _collective_reads, _collective_evaluate),
)
