"""Matrix products of groups of rows: ragged_dot_general, as mixtures of experts use it.

An axis that falls into groups, and the axis of groups, are read whole. Along the others it is a
product like `dot_general`.
"""

from typing import Any, NamedTuple

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Context, Rule, live_parts, register
from slim_jax.jaxprs import Equation


class _Ragged(NamedTuple):
  """Axes of the operands; those of the result are groups (perhaps), batch, free, free."""

  contract: tuple[tuple[int, int], ...]
  batch: tuple[tuple[int, int], ...]
  free: tuple[tuple[int, ...], ...]
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
  return _Ragged(pairs[0], pairs[1], free, whole, groups)


def _held(dims: _Ragged, ctx: Context) -> tuple[Region, Region]:
  """The supports of both factors, axes in groups whole."""
  lhs, rhs = (
    region.with_axes(None if i in whole else axis for i, axis in enumerate(region.axes))
    for region, whole in zip(ctx.supports, dims.whole)
  )
  return lhs, rhs


def _support(ctx: Context) -> list[Region]:
  dims = _ragged(ctx.eqn)
  lhs, rhs = _held(dims, ctx)
  terms = regions.normal(
    (regions.both(lhs.axes[i], rhs.axes[j]) for i, j in dims.contract), empty=lhs.empty or rhs.empty
  )
  return [
    terms.with_axes(
      [None] * dims.groups
      + [regions.both(lhs.axes[i], rhs.axes[j]) for i, j in dims.batch]
      + [lhs.axes[i] for i in dims.free[0]]
      + [rhs.axes[j] for j in dims.free[1]]
    )
  ]


def _reads(ctx: Context) -> list[Region]:
  dims = _ragged(ctx.eqn)
  lhs, rhs = _held(dims, ctx)
  read: tuple[dict[int, Axis], dict[int, Axis]] = ({}, {})
  for i, j in dims.contract:
    read[0][i] = read[1][j] = regions.both(lhs.axes[i], rhs.axes[j])
  axes = iter(ctx.live[0].axes[dims.groups :])
  for i, j in dims.batch:
    read[0][i] = read[1][j] = next(axes)
  for side in (0, 1):
    for i in dims.free[side]:
      read[side][i] = next(axes)
  factors = [
    regions.normal(None if i in whole else found.get(i) for i in range(len(aval.shape)))
    for found, whole, aval in zip(read, dims.whole, ctx.eqn.in_avals)
  ]
  return factors + [regions.whole(len(a.shape)) for a in ctx.eqn.in_avals[2:]]


def _evaluate(ctx: Context, lhs: Any, rhs: Any, *sizes: Any) -> list[Any]:
  dims, (left, right) = _ragged(ctx.eqn), ctx.reads[:2]
  have = regions.normal(
    [None] * dims.groups
    + [left.axes[i] for i, _ in dims.batch]
    + [left.axes[i] for i in dims.free[0]]
    + [right.axes[j] for j in dims.free[1]]
  )
  return live_parts(ctx, jaxprs.bind(ctx.eqn, lhs, rhs, *sizes), [have])


register([jaxprs.ragged_dot_general_p], Rule(_support, _reads, _evaluate))
