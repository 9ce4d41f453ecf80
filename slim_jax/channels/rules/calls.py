"""Calls that mean more than their body: custom derivatives and rematerialisation.

The body is analysed as a program of its own; the thin call keeps the derivative rule
or the memory policy of the full one.
"""

from typing import Any

import jax
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import analysis, regions, rule
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import (
  Fact,
  Rule,
  cut,
  full_support,
  present,
  read_whole,
  register,
  restore,
)
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


def _body(eqn: Equation) -> Program:
  """The one program inside the equation."""
  (body,) = jaxprs.bodies(eqn)
  return body


def _support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  body = _body(eqn)
  inner = analysis.forward(body, facts)
  return [inner[i].support for i in body.outputs]


def _analyse(body: Program, facts: list[Fact], live: list[Region]) -> Analysis:
  return analysis.backward(body, analysis.forward(body, facts), live)


def _reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  body = _body(eqn)
  inner = _analyse(body, facts, live)
  return [inner.live[i] for i in body.inputs]


def _thin(body: Program, facts: list[Fact], have: list[Region], live: list[Region]) -> Any:
  """The body as a function of the arrays that hold `have`, giving `live`."""
  inner = _analyse(body, facts, live)
  return lambda *arrays: analysis.run(body, inner, list(arrays), have, live)


# custom_jvp: the thin derivative is the full rule, made thin in turn. It need not be
# the derivative of the body: what it reads is read, and a result whose tangent may move where
# the value is zero does not count as zero there.


def _moving(avals: Any) -> list[Any]:
  """True for each that has a tangent, None for the others."""
  return [True if jaxprs.moves(aval) else None for aval in avals]


def _with_tangents(eqn: Equation, facts: list[Fact]) -> list[Fact]:
  """A tangent is zero where its value is zero whatever the variables are."""
  return facts + [Fact(f.support) for f in present(facts, _moving(eqn.in_avals))]


def _custom_jvp_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support = _support(eqn, facts)
  if all(region.is_whole for region in support):
    return support
  program = jaxprs.once(eqn, jaxprs.derivative, plain=True)
  inner = analysis.forward(program, _with_tangents(eqn, facts))
  slopes = iter(program.outputs[len(support) :])
  return [
    s if t is None else regions.union(s, inner[next(slopes)].support)
    for s, t in zip(support, _moving(eqn.out_avals), strict=True)
  ]


def _custom_jvp_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  read = _reads(eqn, facts, live)
  if all(region.is_whole for region in read):
    return read
  program = jaxprs.once(eqn, jaxprs.derivative, plain=True)
  turning = _moving(eqn.out_avals)
  inner = _analyse(program, _with_tangents(eqn, facts), live + present(live, turning))
  values, slopes = program.inputs[: len(read)], iter(program.inputs[len(read) :])
  read = [regions.union(r, inner.live[i]) for r, i in zip(read, values, strict=True)]
  return [
    r if m is None else regions.union(r, inner.live[next(slopes)])
    for r, m in zip(read, _moving(eqn.in_avals), strict=True)
  ]


def _custom_jvp_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  if rule.untouched(reads, live):
    return jaxprs.bind(eqn, *arrays)
  body = _thin(_body(eqn), facts, reads, live)
  wanted = rule.wanted(live)

  @jax.custom_jvp
  def thin(*operands):
    return present(body(*restore(operands, arrays)), wanted)

  @thin.defjvp
  def derivative(primals, tangents):  # pylint: disable=unused-variable
    program = jaxprs.once(eqn, jaxprs.derivative, plain=False)
    moving, turning = _moving(eqn.in_avals), _moving(eqn.out_avals)
    inner = _thin(
      program,
      _with_tangents(eqn, facts),
      reads + present(reads, moving),
      live + present(live, turning),
    )
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


# custom_vjp: the thin call pulls cotangents back by the full rule made thin, if that keeps to
# itself what happens at zeros; a rule that does not, as one that sums cotangents over channels,
# runs at full width and lets no zeros through.


def _pullback(eqn: Equation, *, plain: bool) -> Program:
  """The derivative rule as a program of (operands, cotangents), giving cotangents."""

  def full(*operands):
    return jaxprs.bind(eqn, *operands)

  def pull(operands, cotangents):
    return jax.vjp(full, *operands)[1](cotangents)

  structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in eqn.in_avals]
  slopes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in eqn.out_avals]
  return jaxprs.flatten(jax.make_jaxpr(pull)(structs, slopes), plain=plain)


def _is_local(eqn: Equation, facts: list[Fact], support: list[Region]) -> bool:
  """Whether cotangents of elements that are zero never reach those of elements that are not.

  The masked network may send any cotangent to a removed channel; the thin one sends none.
  """
  if not all(map(jaxprs.moves, (*eqn.in_avals, *eqn.out_avals))):
    return False
  if all(f.support.is_whole for f in facts):
    return True
  program = jaxprs.once(eqn, _pullback, plain=True)
  known = [Fact(f.support) for f in facts] + [
    Fact(regions.whole(len(a.shape))) for a in eqn.out_avals
  ]
  found = _analyse(program, known, [f.support for f in facts])
  return all(
    regions.contains(s, found.live[i])
    for s, i in zip(support, program.inputs[len(facts) :], strict=True)
  )


def _custom_vjp_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support = _support(eqn, facts)
  if all(f.support.is_whole for f in facts) or _is_local(eqn, facts, support):
    return support
  return full_support(eqn, facts)


def _with_cotangents(facts: list[Fact], live: list[Region]) -> list[Fact]:
  """Where nobody reads a result no cotangent comes from."""
  return [Fact(f.support) for f in facts] + [Fact(l) for l in live]


def _custom_vjp_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  if not _is_local(eqn, facts, _support(eqn, facts)):
    return read_whole(eqn, facts, live)
  read = _reads(eqn, facts, live)
  if all(region.is_whole for region in read):
    return read
  # What gets a cotangent is there, and what it takes to work that out.
  program = jaxprs.once(eqn, _pullback, plain=True)
  known = _with_cotangents(facts, live)
  inner = analysis.forward(program, known)
  pulled = [
    regions.intersect(inner[i].support, f.support)
    for i, f in zip(program.outputs, facts, strict=True)
  ]
  read = [regions.union(r, c) for r, c in zip(read, pulled, strict=True)]
  found = analysis.backward(program, inner, pulled)
  return [regions.union(r, found.live[i]) for r, i in zip(read, program.inputs)]


def _custom_vjp_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  if all(region.is_whole for region in reads):
    have = [regions.whole(len(a.shape)) for a in eqn.out_avals]
    return cut(jaxprs.bind(eqn, *arrays), eqn, have, live)
  body = _thin(_body(eqn), facts, reads, live)
  wanted = rule.wanted(live)

  @jax.custom_vjp
  def thin(*operands):
    return present(body(*restore(operands, arrays)), wanted)

  def forward(*operands):
    return thin(*operands), operands

  def back(operands, cotangents):
    program = jaxprs.once(eqn, _pullback, plain=False)
    pull = _thin(program, _with_cotangents(facts, live), reads + live, reads)
    return tuple(present(pull(*restore(operands, arrays), *restore(cotangents, wanted)), arrays))

  thin.defvjp(forward, back)
  return restore(thin(*present(arrays, arrays)), wanted)


register([p.custom_vjp_call_p], Rule(_custom_vjp_support, _custom_vjp_reads, _custom_vjp_evaluate))


# remat: `jax.checkpoint` with the policy it came with.


def _remat_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  body = _thin(_body(eqn), facts, reads, live)
  wanted = rule.wanted(live)

  def thin(*operands):
    return present(body(*restore(operands, arrays)), wanted)

  thin = jax.checkpoint(thin, policy=eqn.params['policy'], prevent_cse=eqn.params['prevent_cse'])
  return restore(thin(*present(arrays, arrays)), wanted)


register([p.remat_p], Rule(_support, _reads, _remat_evaluate))
