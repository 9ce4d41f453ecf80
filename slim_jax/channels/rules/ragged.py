"""Matrix products of groups of rows: ragged_dot_general, as mixtures of experts use it.

An axis that falls into groups, and the axis of groups, are read whole. Along the others it is a
product like `dot_general`.
"""

from typing import Any, NamedTuple

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Rule, live_parts, register
from slim_jax.channels.rules.contraction import DotAxes, product_reads, product_support
from slim_jax.jaxprs import Equation


class _Ragged(NamedTuple):
  """Axes of the operands; those of the result are groups (perhaps), batch, free, free."""

  dims: DotAxes
  whole: tuple[frozenset[int], frozenset[int]]  # of each operand: in groups, or the groups
  groups: int  # how many axes of the result are groups


def _ragged(eqn: Equation) -> _Ragged:
  numbers = eqn.params['ragged_dot_dimension_numbers']
  (contract, batch), ragged = numbers.dot_dimension_numbers, set(numbers.lhs_ragged_dimensions)
  pairs = [tuple(zip(*axes, strict=True)) for axes in (contract, batch)]
  partners = {j for pair in pairs for i, j in pair if i in ragged}
  rhs_groups = set(numbers.rhs_group_dimensions)
  taken = [
    {i for pair in pairs for i, _ in pair},
    {j for pair in pairs for _, j in pair} | rhs_groups,
  ]
  free = tuple(
    tuple(i for i in range(len(aval.shape)) if i not in used)
    for aval, used in zip(eqn.in_avals, taken)
  )
  groups = int(bool(ragged & set(contract[0])))
  whole = frozenset(ragged), frozenset(partners | rhs_groups)
  return _Ragged(DotAxes(pairs[0], pairs[1], free), whole, groups)


def _held(ragged: _Ragged, ctx: Context) -> tuple[Region, Region]:
  """The supports of both factors, axes in groups whole."""
  lhs, rhs = (
    region.with_axes(None if i in whole else axis for i, axis in enumerate(region.axes))
    for region, whole in zip(ctx.supports, ragged.whole)
  )
  return lhs, rhs


def _support(ctx: Context) -> list[Region]:
  ragged = _ragged(ctx.eqn)
  product = product_support(ragged.dims, *_held(ragged, ctx))
  return [product.with_axes([None] * ragged.groups + list(product.axes))]


def _reads(ctx: Context) -> list[Region]:
  ragged = _ragged(ctx.eqn)
  read = product_reads(ragged.dims, *_held(ragged, ctx), ctx.live[0].axes[ragged.groups :])
  factors = [
    regions.normal(None if i in whole else found.get(i) for i in range(len(aval.shape)))
    for found, whole, aval in zip(read, ragged.whole, ctx.eqn.in_avals)
  ]
  return factors + [regions.whole(len(a.shape)) for a in ctx.eqn.in_avals[2:]]


def _evaluate(ctx: Context, lhs: Any, rhs: Any, *sizes: Any) -> list[Any]:
  ragged, (left, right) = _ragged(ctx.eqn), ctx.reads[:2]
  have = regions.normal(
    [None] * ragged.groups
    + [left.axes[i] for i, _ in ragged.dims.batch]
    + [left.axes[i] for i in ragged.dims.free[0]]
    + [right.axes[j] for j in ragged.dims.free[1]]
  )
  return live_parts(ctx, jaxprs.bind(ctx.eqn, lhs, rhs, *sizes), [have])


register([jaxprs.ragged_dot_general_p], Rule(_support, _reads, _evaluate))
