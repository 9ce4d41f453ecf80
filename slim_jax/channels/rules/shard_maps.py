"""`shard_map`: a body that every device runs on its part of the arrays.

All devices hold the same region of their part. So an index of an axis that is divided among devices
is removed where the index at its place is removed in every part, and parts stay equally long.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from slim_jax import jaxprs, shardings
from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import (
  Context,
  Fact,
  Rule,
  live_parts,
  nonempty,
  present,
  register,
  restore,
)
from slim_jax.jaxprs import Equation


def _parts(eqn: Equation, specs: Sequence[Any], avals: Sequence[Any]) -> list[list[int]]:
  """Of each array, into how many parts each of its axes is divided."""
  return [
    [shardings.devices(eqn.params['mesh'], names) for names in shardings.padded(spec, len(a.shape))]
    for spec, a in zip(specs, avals, strict=True)
  ]


def in_parts(eqn: Equation) -> list[list[int]]:
  """Returns, of each operand, into how many parts each of its axes is divided."""
  return _parts(eqn, eqn.params['in_specs'], eqn.in_avals)


def out_parts(eqn: Equation) -> list[list[int]]:
  """Returns, of each result, into how many parts each of its axes is divided."""
  return _parts(eqn, eqn.params['out_specs'], eqn.out_avals)


def _each(
  change: Callable[[Axis, int], Axis], items: Sequence[Region], parts: Sequence[Sequence[int]]
) -> list[Region]:
  return [
    region.with_axes(map(change, region.axes, counts))
    for region, counts in zip(items, parts, strict=True)
  ]


def _facts(ctx: Context) -> list[Fact]:
  """Facts of the inputs of the body, on any device."""
  parts = in_parts(ctx.eqn)
  supports = _each(regions.united, ctx.supports, parts)
  return [
    Fact(support, fact.known if set(counts) <= {1} else None)
    for support, fact, counts in zip(supports, ctx.facts, parts, strict=True)
  ]


def within_mesh(eqn: Equation, find: Callable[[], Any]) -> Any:
  """Returns `find()` where the axes of the mesh are known: rules may trace what is inside."""
  found = []

  def body() -> tuple[()]:
    found.append(find())
    return ()

  jax.eval_shape(_mapped(eqn, body, (), ()))
  return found[0]


def _mapped(eqn: Equation, f: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
  return jax.shard_map(
    f,
    mesh=eqn.params['mesh'],
    in_specs=in_specs,
    out_specs=out_specs,
    axis_names=eqn.params['newly_manual_axes'],
    check_vma=eqn.params['check_vma'],
  )


def _support(ctx: Context) -> list[Region]:
  body, facts = programs.body(ctx.eqn, 'jaxpr'), _facts(ctx)
  inside = within_mesh(ctx.eqn, lambda: analysis.forward(body, facts, walk=ctx.walk))
  supports = [inside[i].support for i in body.outputs]
  return _each(regions.repeated, supports, out_parts(ctx.eqn))


def _analysis(ctx: Context) -> Analysis:
  """Of the body."""
  body, facts = programs.body(ctx.eqn, 'jaxpr'), _facts(ctx)
  demands = _each(regions.united, ctx.live, out_parts(ctx.eqn))
  return analysis.analyse(body, facts, demands, walk=ctx.walk)


def _reads(ctx: Context) -> list[Region]:
  needed = within_mesh(ctx.eqn, lambda: _analysis(ctx))
  inputs = programs.body(ctx.eqn, 'jaxpr').inputs
  return _each(regions.repeated, [needed.live[i] for i in inputs], in_parts(ctx.eqn))


def _evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  eqn = ctx.eqn
  if ctx.is_untouched:
    return jaxprs.bind(eqn, *arrays)
  body = programs.body(eqn, 'jaxpr')
  have = _each(regions.united, ctx.reads, in_parts(eqn))
  demands = _each(regions.united, ctx.live, out_parts(eqn))
  wanted = nonempty(demands)

  def thin(*given: Any) -> Any:
    needed = _analysis(ctx)
    results = analysis.run(body, needed, restore(given, arrays), have, demands)
    return tuple(present(results, wanted))

  in_specs, out_specs = (
    tuple(present(eqn.params[name], by))
    for name, by in (('in_specs', arrays), ('out_specs', wanted))
  )
  results = _mapped(eqn, thin, in_specs, out_specs)(*present(arrays, arrays))
  held = _each(regions.repeated, demands, out_parts(eqn))
  return live_parts(ctx, restore(results, wanted), held)


register([jaxprs.shard_map_p], Rule(_support, _reads, _evaluate))
