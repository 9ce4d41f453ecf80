"""Calls and control flow: the programs inside tie the axes outside."""

from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import programs
from slim_jax.channels.rule import Context
from slim_jax.channels.rules import shard_maps
from slim_jax.costs import counting
from slim_jax.jaxprs import primitives as p
from slim_jax.structure import terms
from slim_jax.structure.terms import Term
from slim_jax.structure.trace import Axis, Structure, Transfer, Value
from slim_jax.structure.transfers.common import where


def _call(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  (body,) = programs.bodies(ctx.eqn)
  return found.inside(body, operands, ctx.facts)


def _unified(found: Structure, ctx: Context, one: list[Value], other: list[Value]) -> list[Value]:
  """The same values seen from two sides."""
  for a, b in zip(one, other, strict=True):
    for x, y in zip(a.axes, b.axes, strict=True):
      found.same(x.term, y.term, where(ctx.eqn))
  return [a._replace(is_data=a.is_data or b.is_data) for a, b in zip(one, other, strict=True)]


def _carry(values: list[Value]) -> list[Value]:
  """What a loop carries depends on the data, if not at the start."""
  return [Value(tuple(Axis(axis.term) for axis in v.axes), True) for v in values]


def _scan(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  eqn = ctx.eqn
  constants, carried = jaxprs.scan_counts(eqn)
  start = _carry(operands[constants : constants + carried])
  stacked = operands[constants + carried :]
  over_layers = any(a.sources for v in stacked if not v.is_data for a in v.axes)
  for value in stacked:
    found.pin('scanned over', value.axes[0].term)
    for source in value.axes[0].sources:
      found.stacked[source] = id(eqn)
  if not over_layers:
    found.note('carried', *(axis.term for value in start for axis in value.axes))
  slices = [value._replace(axes=value.axes[1:]) for value in stacked]
  body, outside = programs.body(eqn, 'jaxpr'), found.runs
  found.runs *= counting.body_runs(eqn)
  results = found.inside(body, operands[:constants] + start + slices)
  found.runs = outside
  length = Axis(Term(eqn.params['length']))
  found.pin('scanned over', length.term)
  layers = [value._replace(axes=(length, *value.axes)) for value in results[carried:]]
  return _unified(found, ctx, start, results[:carried]) + layers


def _while(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  eqn = ctx.eqn
  first = eqn.params['cond_nconsts']
  second = first + eqn.params['body_nconsts']
  carry = _carry(operands[second:])
  found.note('carried', *(axis.term for value in carry for axis in value.axes))
  found.inside(programs.body(eqn, 'cond_jaxpr'), operands[:first] + carry)
  results = found.inside(programs.body(eqn, 'body_jaxpr'), operands[first:second] + carry)
  return _unified(found, ctx, carry, results)


def _cond(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  branches = [
    found.inside(branch, operands[1:], ctx.facts[1:]) for branch in programs.bodies(ctx.eqn)
  ]
  results = branches[0]
  for other in branches[1:]:
    results = _unified(found, ctx, results, other)
  return [value._replace(is_data=value.is_data or operands[0].is_data) for value in results]


def _shard_map(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  """Devices hold parts of axes, from which they lose the same places."""
  eqn, body = ctx.eqn, programs.body(ctx.eqn, 'jaxpr')
  inner = []
  for value, counts in zip(operands, shard_maps.in_parts(eqn), strict=True):
    axes = [_part(found, ctx, axis, n) for axis, n in zip(value.axes, counts, strict=True)]
    inner.append(value._replace(axes=tuple(axes)))
  outside = found.runs
  found.runs *= counting.body_runs(eqn)
  made = shard_maps.within_mesh(eqn, lambda: found.inside(body, inner))
  found.runs = outside
  results = []
  for value, counts in zip(made, shard_maps.out_parts(eqn), strict=True):
    devices = [Term(n) for n in counts]
    found.pin('', *devices)
    axes = [
      axis._replace(term=terms.product((device, axis.term)))
      for axis, device in zip(value.axes, devices, strict=True)
    ]
    results.append(value._replace(axes=tuple(axes)))
  return results


def _part(found: Structure, ctx: Context, axis: Axis, count: int) -> Axis:
  """The part of an axis that one device holds."""
  if count == 1:
    return axis
  try:
    devices, part = terms.split(axis.term, axis.term.size // count)
    found.pin('', devices)
  except terms.SizesError:
    part = Term(axis.term.size // count)
    found.pin(f'divided among devices{where(ctx.eqn)}', axis.term, part)
  return axis._replace(term=part)


CONTROL: dict[Any, Transfer] = {
  **dict.fromkeys(jaxprs.CARRYING, _call),
  **dict.fromkeys(jaxprs.composite_ps, _call),
  p.scan_p: _scan,
  p.while_p: _while,
  p.cond_p: _cond,
  jaxprs.shard_map_p: _shard_map,
}
