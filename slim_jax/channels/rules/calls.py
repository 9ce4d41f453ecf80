"""Calls that mean more than their body: custom derivatives and rematerialisation.

The body is analysed as a program of its own. The thin call keeps the derivative rule or the memory
policy of the full one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs, shardings
from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import (
  FULL_WIDTH,
  RULES,
  Context,
  Fact,
  Rule,
  full_support,
  live_parts,
  nonempty,
  present,
  read_whole,
  register,
  restore,
)
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


def _body(eqn: Equation) -> Program:
  """The one program inside the equation."""
  (body,) = programs.bodies(eqn)
  return body


def _support(ctx: Context) -> list[Region]:
  body = _body(ctx.eqn)
  inner = analysis.forward(body, ctx.facts, walk=ctx.walk)
  return [inner[i].support for i in body.outputs]


def _reads(ctx: Context) -> list[Region]:
  body = _body(ctx.eqn)
  return _read(body, analysis.analyse(body, ctx.facts, ctx.live, walk=ctx.walk))


def _read(body: Program, needed: Analysis) -> list[Region]:
  """What the body reads of its inputs."""
  return [needed.live[i] for i in body.inputs]


def _thin(
  ctx: Context, body: Program, facts: list[Fact], have: list[Region], live: list[Region]
) -> Callable[..., list[Any]]:
  """The body as a function of the arrays that hold `have`, giving `live`."""
  needed = analysis.analyse(body, facts, live, walk=ctx.walk)
  return lambda *arrays: analysis.run(body, needed, arrays, have, live)


def _united(a: Sequence[Region], b: Sequence[Region]) -> list[Region]:
  return [regions.union(x, y) for x, y in zip(a, b, strict=True)]


# custom_jvp: the thin derivative is the full rule, made thin in turn. It need not be the derivative
# of the body: what it reads is read, and a result whose tangent may be non-zero where the value is
# zero does not count as zero there.


def _moving(avals: Any) -> list[Any]:
  """True for each that has a tangent, None for the others."""
  return [True if jaxprs.moves(aval) else None for aval in avals]


def _with_tangents(ctx: Context) -> list[Fact]:
  """A tangent is zero where its value is zero whatever the variables are."""
  return ctx.facts + [Fact(f.support) for f in present(ctx.facts, _moving(ctx.eqn.in_avals))]


def _derivative(eqn: Equation, *, plain: bool) -> Program:
  find = jaxprs.derivative if eqn.primitive is p.custom_jvp_call_p else _pushed
  return programs.merged(find(eqn, plain=plain))


def _pushed(eqn: Equation, *, plain: bool) -> Program:
  """Does what `jaxprs.derivative` does, by differentiating the call."""

  def push(operands: list[Any], slopes: list[Any]) -> Any:
    given = iter(slopes)
    tangents = [
      next(given) if jaxprs.moves(a) else np.zeros(a.shape, jax.dtypes.float0) for a in eqn.in_avals
    ]
    results, pushed = jax.jvp(lambda *xs: jaxprs.bind(eqn, *xs), operands, tangents)
    return results, [t for t, a in zip(pushed, eqn.out_avals, strict=True) if jaxprs.moves(a)]

  structs = list(map(jaxprs.struct, eqn.in_avals))
  slopes = [s for s, a in zip(structs, eqn.in_avals, strict=True) if jaxprs.moves(a)]
  with shardings.as_typed(eqn.in_avals):
    return jaxprs.flatten(jax.make_jaxpr(push)(structs, slopes), plain=plain)


def _custom_jvp_support(ctx: Context) -> list[Region]:
  support = _support(ctx)
  if all(region.is_whole for region in support):
    return support
  program = jaxprs.once(ctx.eqn, _derivative, plain=True)
  inner = analysis.forward(program, _with_tangents(ctx), walk=ctx.walk)
  slopes = iter(program.outputs[len(support) :])
  return [
    s if t is None else regions.union(s, inner[next(slopes)].support)
    for s, t in zip(support, _moving(ctx.eqn.out_avals), strict=True)
  ]


def _custom_jvp_reads(ctx: Context) -> list[Region]:
  read = _reads(ctx)
  if all(region.is_whole for region in read):
    return read
  program = jaxprs.once(ctx.eqn, _derivative, plain=True)
  demands = ctx.live + present(ctx.live, _moving(ctx.eqn.out_avals))
  inner = _read(program, analysis.analyse(program, _with_tangents(ctx), demands, walk=ctx.walk))
  values, slopes = inner[: len(read)], iter(inner[len(read) :])
  return [
    r if m is None else regions.union(r, next(slopes))
    for r, m in zip(_united(read, values), _moving(ctx.eqn.in_avals), strict=True)
  ]


def _custom_jvp_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  eqn, reads, live = ctx.eqn, ctx.reads, ctx.live
  if ctx.is_untouched:
    return jaxprs.bind(eqn, *arrays)
  body = _thin(ctx, _body(eqn), ctx.facts, reads, live)
  wanted = nonempty(live)

  @jax.custom_jvp
  def thin(*operands):
    return present(body(*restore(operands, arrays)), wanted)

  @thin.defjvp
  def derivative(primals, tangents):  # pylint: disable=unused-variable
    program = jaxprs.once(eqn, _derivative, plain=False)
    moving, turning = _moving(eqn.in_avals), _moving(eqn.out_avals)
    have, demands = reads + present(reads, moving), live + present(live, turning)
    inner = _thin(ctx, program, _with_tangents(ctx), have, demands)
    slopes = present(restore(tangents, arrays), moving)
    results = inner(*restore(primals, arrays), *slopes)
    outs = present(results[: len(live)], wanted)
    slopes = present(restore(results[len(live) :], turning), wanted)
    return outs, [
      np.zeros(o.shape, jax.dtypes.float0) if s is None else s
      for o, s in zip(outs, slopes, strict=True)
    ]

  return restore(thin(*present(arrays, arrays)), wanted)


register([p.custom_jvp_call_p], Rule(_custom_jvp_support, _custom_jvp_reads, _custom_jvp_evaluate))


# custom_vjp: the thin call pulls cotangents back by the full rule made thin, if the rule keeps
# cotangents of zeros to themselves. A rule that does not, as one that sums cotangents over channels,
# runs at full width and lets no zeros through.


def _pullback(eqn: Equation, *, plain: bool) -> Program:
  """The derivative rule as a program of (operands, cotangents), giving cotangents."""

  def full(*operands):
    return jaxprs.bind(eqn, *operands)

  def pull(operands, cotangents):
    return jax.vjp(full, *operands)[1](cotangents)

  structs, slopes = ([jaxprs.struct(a) for a in avals] for avals in (eqn.in_avals, eqn.out_avals))
  with shardings.as_typed((*eqn.in_avals, *eqn.out_avals)):
    traced = jax.make_jaxpr(pull)(structs, slopes)
  return programs.merged(jaxprs.flatten(traced, plain=plain))


def _is_local(ctx: Context, support: list[Region]) -> bool:
  """Whether cotangents of elements that are zero never reach those of elements that are not.

  The masked network may send any cotangent to a removed channel; the thin one sends none.
  """
  if not all(map(jaxprs.moves, (*ctx.eqn.in_avals, *ctx.eqn.out_avals))):
    return False
  if all(region.is_whole for region in ctx.supports):
    return True
  program = jaxprs.once(ctx.eqn, _pullback, plain=True)
  facts = list(map(Fact, ctx.supports + full_support(ctx)))
  needed = analysis.analyse(program, facts, ctx.supports, walk=ctx.walk)
  cotangents = _read(program, needed)[len(ctx.facts) :]
  return all(map(regions.contains, support, cotangents))


def _custom_vjp_support(ctx: Context) -> list[Region]:
  support = _support(ctx)
  if all(region.is_whole for region in ctx.supports) or _is_local(ctx, support):
    return support
  return full_support(ctx)


def _with_cotangents(ctx: Context) -> list[Fact]:
  """A result that is not read has no cotangent."""
  return list(map(Fact, ctx.supports + ctx.live))


def _custom_vjp_reads(ctx: Context) -> list[Region]:
  if not _is_local(ctx, _support(ctx)):
    return read_whole(ctx)
  read = _reads(ctx)
  if all(region.is_whole for region in read):
    return read
  # An operand is read where it gets a cotangent, and where that cotangent is computed from it.
  program = jaxprs.once(ctx.eqn, _pullback, plain=True)
  facts = _with_cotangents(ctx)
  inner = analysis.forward(program, facts, walk=ctx.walk)
  pulled = [
    regions.intersect(inner[i].support, support)
    for i, support in zip(program.outputs, ctx.supports, strict=True)
  ]
  needed = analysis.analyse(program, facts, pulled, walk=ctx.walk)
  return _united(_united(read, pulled), _read(program, needed)[: len(read)])


def _custom_vjp_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  eqn, reads, live = ctx.eqn, ctx.reads, ctx.live
  if all(region.is_whole for region in reads):
    return live_parts(ctx, jaxprs.bind(eqn, *arrays), full_support(ctx))
  body = _thin(ctx, _body(eqn), ctx.facts, reads, live)
  wanted = nonempty(live)

  @jax.custom_vjp
  def thin(*operands):
    return present(body(*restore(operands, arrays)), wanted)

  def forward(*operands):
    return thin(*operands), operands

  def back(operands, cotangents):
    program = jaxprs.once(eqn, _pullback, plain=False)
    pull = _thin(ctx, program, _with_cotangents(ctx), reads + live, reads)
    return tuple(present(pull(*restore(operands, arrays), *restore(cotangents, wanted)), arrays))

  thin.defvjp(forward, back)
  return restore(thin(*present(arrays, arrays)), wanted)


register([p.custom_vjp_call_p], Rule(_custom_vjp_support, _custom_vjp_reads, _custom_vjp_evaluate))


# call_hi_primitive, since JAX 0.12: a call whose derivative is for one shape. It is analysed as a call
# that carries a derivative of either kind, and run at its full shape, with zeros put back.


def _how(eqn: Equation) -> str:
  """How a call can be differentiated: 'forwards', 'backwards', or '' if in neither way."""
  for way, find in (('forwards', _derivative), ('backwards', _pullback)):
    try:
      jaxprs.once(eqn, find, plain=True)
    except Exception:  # pylint: disable=broad-exception-caught  # what a person's rule raises
      continue
    return way
  return ''


_BY_DERIVATIVE = {
  'forwards': RULES[p.custom_jvp_call_p],
  'backwards': RULES[p.custom_vjp_call_p],
  '': FULL_WIDTH,
}


def _carrying(ctx: Context) -> Rule:
  return _BY_DERIVATIVE[jaxprs.once(ctx.eqn, _how)]


def _full_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  full = [
    jnp.zeros(aval.shape, aval.dtype)
    if array is None
    else regions.take(array, have, regions.whole(len(aval.shape)), aval.shape)
    for array, have, aval in zip(arrays, ctx.reads, ctx.eqn.in_avals, strict=True)
  ]
  return live_parts(ctx, jaxprs.bind(ctx.eqn, *full), full_support(ctx))


register(
  jaxprs.hi_primitive_ps,
  Rule(
    lambda ctx: _carrying(ctx).support(ctx), lambda ctx: _carrying(ctx).reads(ctx), _full_evaluate
  ),
)


# composite: an operation with a name, by which an export may know it; custom_vmap_call: one with a
# batching rule of its own. The thin one is its body.


def _composite_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  if ctx.is_untouched:
    return jaxprs.bind(ctx.eqn, *arrays)
  return _thin(ctx, _body(ctx.eqn), ctx.facts, ctx.reads, ctx.live)(*arrays)


register(
  [*jaxprs.composite_ps, jaxprs.custom_vmap_call_p], Rule(_support, _reads, _composite_evaluate)
)


# remat: `jax.checkpoint` with the policy of the call.


def _remat_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  body = _thin(ctx, _body(ctx.eqn), ctx.facts, ctx.reads, ctx.live)
  wanted, params = nonempty(ctx.live), ctx.params

  def thin(*operands):
    return present(body(*restore(operands, arrays)), wanted)

  thin = jax.checkpoint(thin, policy=params['policy'], prevent_cse=params['prevent_cse'])
  return restore(thin(*present(arrays, arrays)), wanted)


register([p.remat_p], Rule(_support, _reads, _remat_evaluate))
