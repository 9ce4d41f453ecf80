"""`custom_linear_solve`: what it solves along some axes passes through along the others.

The equation holds programs for the product, its transpose and both solutions. A set of indices of
the unknowns is closed if none of these mixes it with others. Solving for a closed set alone is exact,
and so are its derivatives.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from jax import lax
import jax.numpy as jnp

from slim_jax import jaxprs
from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import (
  FULL_WIDTH,
  Context,
  Fact,
  Rule,
  full_support,
  live_parts,
  nonempty,
  present,
  register,
  restore,
)
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p

_NAMES = ('matvec', 'vecmat', 'solve', 'transpose_solve')


class _Body(NamedTuple):
  """One of the programs, and where its constants are among the operands."""

  program: Program
  constants: slice


def _bodies(eqn: Equation) -> dict[str, _Body]:
  lengths = eqn.params['const_lengths']
  held = [name for name in _NAMES if getattr(eqn.params['jaxprs'], name) is not None]
  found, start = dict(zip(held, programs.bodies(eqn), strict=True)), 0
  result = {}
  for name in held:
    count = getattr(lengths, name)
    result[name] = _Body(found[name], slice(start, start + count))
    start += count
  return result


def _unknowns(eqn: Equation) -> slice:
  """Where the right-hand sides are among the operands."""
  count = sum(getattr(eqn.params['const_lengths'], name) or 0 for name in _NAMES)
  return slice(count, len(eqn.in_avals))


def _is_plain(eqn: Equation) -> bool:
  """Whether the results are the unknowns and nothing else."""
  sides = eqn.in_avals[_unknowns(eqn)]
  return [a.shape for a in sides] == [a.shape for a in eqn.out_avals]


def _grown(
  ctx: Context, start: Sequence[Region], step: Callable[[_Body, list[Region]], list[Region]]
) -> list[Region]:
  """The smallest regions of the unknowns that hold `start` and are closed under a step."""
  now = list(start)
  while True:
    grown = now
    for body in jaxprs.once(ctx.eqn, _bodies).values():
      grown = list(map(regions.union, grown, step(body, grown)))
    if all(map(regions.same, grown, now)):
      return grown
    now = grown


def _support(ctx: Context) -> list[Region]:
  if not _is_plain(ctx.eqn):
    return full_support(ctx)

  def step(body: _Body, now: list[Region]) -> list[Region]:
    facts = ctx.facts[body.constants] + list(map(Fact, now))
    inner = analysis.forward(body.program, facts, walk=ctx.walk)
    return [inner[i].support for i in body.program.outputs]

  return _grown(ctx, ctx.supports[_unknowns(ctx.eqn)], step)


def _inside(ctx: Context, body: _Body, unknowns: Sequence[Region]) -> list[Fact]:
  """What is known of the operands of a body: of the unknowns nothing."""
  return ctx.facts[body.constants] + [Fact(regions.whole(len(r.axes))) for r in unknowns]


def _body_reads(ctx: Context, body: _Body, now: list[Region]) -> list[Region]:
  needed = analysis.analyse(body.program, _inside(ctx, body, now), now, walk=ctx.walk)
  return [needed.live[i] for i in body.program.inputs]


def _closed(ctx: Context, wanted: Sequence[Region]) -> list[Region]:
  return _grown(ctx, wanted, lambda body, now: _body_reads(ctx, body, now)[-len(now) :])


def _reads(ctx: Context) -> list[Region]:
  if not _is_plain(ctx.eqn):
    return FULL_WIDTH.reads(ctx)
  closed = _closed(ctx, ctx.live)
  constants = [
    region
    for body in jaxprs.once(ctx.eqn, _bodies).values()
    for region in _body_reads(ctx, body, closed)[: -len(closed)]
  ]
  return constants + closed


def _evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  bodies, at = jaxprs.once(ctx.eqn, _bodies), _unknowns(ctx.eqn)
  if ctx.is_untouched or not _is_plain(ctx.eqn):
    return FULL_WIDTH.evaluate(ctx, *arrays)
  closed = ctx.reads[at]
  held = nonempty(closed)
  if sum(map(bool, held)) > 1:
    arrays = tuple(_alike(arrays))

  def thin(name: str) -> Callable[[list[Any]], list[Any]]:
    program, where = bodies[name]
    needed = analysis.analyse(program, _inside(ctx, bodies[name], closed), closed, walk=ctx.walk)
    have = [*ctx.reads[where], *closed]

    def run(unknowns: list[Any]) -> list[Any]:
      given = [*arrays[where], *restore(unknowns, held)]
      return present(analysis.run(program, needed, given, have, closed), held)

    return run

  transposed = thin('transpose_solve') if 'transpose_solve' in bodies else None
  solved = lax.custom_linear_solve(
    thin('matvec'),
    present(arrays[at], held),
    lambda _, sides: thin('solve')(sides),
    None if transposed is None else lambda _, sides: transposed(sides),
  )
  return live_parts(ctx, restore(solved, held), closed)


def _alike(arrays: Sequence[Any]) -> Sequence[Any]:
  """Arrays that all have a derivative if one of them has, though it may be zero.

  JAX transposes a solution only if all of its right-hand sides have one. In the full network they
  may, and a part of one may be constant.
  """
  is_float = [x is not None and jnp.issubdtype(x.dtype, jnp.inexact) for x in arrays]
  first = sum(jnp.real(x[(0,) * x.ndim]) for x, floats in zip(arrays, is_float) if floats)

  def tied(x: Any) -> Any:
    other = jnp.broadcast_to(jnp.asarray(first, x.dtype), x.shape)
    return lax.select(jnp.zeros(x.shape, bool), other, x)

  return [tied(x) if floats else x for x, floats in zip(arrays, is_float, strict=True)]


register([p.linear_solve_p], Rule(_support, _reads, _evaluate))
