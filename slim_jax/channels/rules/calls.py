"""Calls that mean more than their body: custom derivatives and rematerialisation.

The body is analysed as a program of its own; the thin call keeps the derivative rule
or the memory policy of the full one.
"""

from typing import Any

import jax
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import analysis, blocks
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.blocks import Block
from slim_jax.channels.rule import Fact, Rule, cut, full_support, read_whole, register
from slim_jax.jaxprs import Equation, Program, primitives as p


def _body(eqn: Equation) -> Program:
  """The one program inside the equation."""
  (body,) = jaxprs.bodies(eqn)
  return body


def _support(eqn: Equation, facts: list[Fact]) -> list[Block]:
  body = _body(eqn)
  inner = analysis.forward(body, facts)
  return [inner[i].support for i in body.outputs]


def _analyse(body: Program, facts: list[Fact], live: list[Block]) -> Analysis:
  return analysis.backward(body, analysis.forward(body, facts), live)


def _reads(eqn: Equation, facts: list[Fact], live: list[Block]) -> list[Block]:
  body = _body(eqn)
  inner = _analyse(body, facts, live)
  return [inner.live[i] for i in body.inputs]


def _thin(body: Program, facts: list[Fact], have: list[Block], live: list[Block]) -> Any:
  """The body as a function of the arrays that hold `have`, giving `live`."""
  inner = _analyse(body, facts, live)
  return lambda *arrays: analysis.run(body, inner, list(arrays), have, live)


def _fill(facts: list[Fact], arrays: tuple[Any, ...], avals: tuple[Any, ...]) -> list[Any]:
  """Operands that are not read become empty arrays, which transformations can carry."""
  del facts
  return [np.zeros((0,), aval.dtype) if a is None else a
          for a, aval in zip(arrays, avals, strict=True)]


def _call(f: Any, live: list[Block], arrays: list[Any]) -> list[Any]:
  """Calls `f` with the results that nobody wants left out."""
  wanted = iter(f(*arrays))
  return [None if block.empty else next(wanted) for block in live]


def _only(results: list[Any]) -> list[Any]:
  return [r for r in results if r is not None]


# custom_jvp: the thin derivative is the full rule, traced and made thin in turn.


def _custom_jvp_evaluate(eqn: Equation, facts: list[Fact], reads: list[Block], live: list[Block],
                         *arrays: Any) -> list[Any]:
  if all(block.is_whole for block in [*reads, *live]):
    return jaxprs.bind(eqn, *arrays)
  body = _thin(_body(eqn), facts, reads, live)
  thin = jax.custom_jvp(lambda *operands: _only(body(*operands)))

  @thin.defjvp
  def rule(primals, tangents):  # pylint: disable=unused-variable
    def full(*operands):
      return jaxprs.bind(eqn, *operands)

    moving = [jax.numpy.issubdtype(a.dtype, np.inexact) for a in eqn.in_avals]

    def derivative(operands, directions):
      given = iter(directions)
      return jax.jvp(full, operands, tuple(
          next(given) if m else np.zeros(a.shape, jax.dtypes.float0)
          for m, a in zip(moving, eqn.in_avals, strict=True)))

    operands = tuple(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in eqn.in_avals)
    directions = tuple(o for o, m in zip(operands, moving, strict=True) if m)
    program, (_, slopes) = jaxprs.trace(derivative, operands, directions)
    turning = [s.dtype != jax.dtypes.float0 for s in slopes]
    # A tangent is zero where its value is zero whatever the variables are.
    known = facts + [Fact(f.support) for f, m in zip(facts, moving, strict=True) if m]
    have = reads + [r for r, m in zip(reads, moving, strict=True) if m]
    want = live + [l if t else blocks.nothing() for l, t in zip(live, turning, strict=True)]
    results = _thin(program, known, have, want)(
        *primals, *[t for t, m in zip(tangents, moving, strict=True) if m])
    outs, slopes = results[:len(live)], results[len(live):]
    zeros = [np.zeros(o.shape, jax.dtypes.float0) if o is not None and not t else s
             for o, s, t in zip(outs, slopes, turning, strict=True)]
    return _only(outs), _only(zeros)

  return _call(thin, live, _fill(facts, arrays, eqn.in_avals))


register([p.custom_jvp_call_p], Rule(_support, _reads, _custom_jvp_evaluate))


# custom_vjp: the rule may mix every cotangent with every residual, so it runs at full width.
# Zeros pass only if its derivative keeps to itself what happens at zeros; see `_is_local`.


def _pullback(eqn: Equation) -> tuple[Program, int]:
  """The derivative rule as a program of (operands, cotangents), giving cotangents."""
  def full(*operands):
    return jaxprs.bind(eqn, *operands)

  def pull(operands, cotangents):
    return jax.vjp(full, *operands)[1](cotangents)

  structs = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in eqn.in_avals]
  slopes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in eqn.out_avals]
  return jaxprs.trace(pull, structs, slopes)[0], len(structs)


def _is_smooth(avals: tuple[Any, ...]) -> bool:
  return all(jax.numpy.issubdtype(a.dtype, np.inexact) for a in avals)


def _is_local(eqn: Equation, facts: list[Fact], support: list[Block]) -> bool:
  """Whether cotangents of elements that are zero never reach those of elements that are not.

  The masked network may send any cotangent to a removed channel; the thin one sends none.
  """
  if not _is_smooth(eqn.in_avals) or not _is_smooth(eqn.out_avals):
    return False
  program, operands = _pullback(eqn)
  known = [Fact(f.support) for f in facts] + [
      Fact(blocks.whole(len(a.shape))) for a in eqn.out_avals]
  found = _analyse(program, known, [f.support for f in facts])
  return all(blocks.contains(s, found.live[i])
             for s, i in zip(support, program.inputs[operands:], strict=True))


def _custom_vjp_support(eqn: Equation, facts: list[Fact]) -> list[Block]:
  support = _support(eqn, facts)
  if all(f.support.is_whole for f in facts) or _is_local(eqn, facts, support):
    return support
  return full_support(eqn, facts)


def _custom_vjp_evaluate(eqn: Equation, facts: list[Fact], reads: list[Block], live: list[Block],
                         *arrays: Any) -> list[Any]:
  del facts, reads
  have = [blocks.whole(len(a.shape)) for a in eqn.out_avals]
  return cut(jaxprs.bind(eqn, *arrays), eqn, have, live)


register([p.custom_vjp_call_p], Rule(_custom_vjp_support, read_whole, _custom_vjp_evaluate))


# remat: `jax.checkpoint` with the policy it came with.


def _remat_evaluate(eqn: Equation, facts: list[Fact], reads: list[Block], live: list[Block],
                    *arrays: Any) -> list[Any]:
  body = _thin(_body(eqn), facts, reads, live)
  thin = jax.checkpoint(lambda *operands: _only(body(*operands)), policy=eqn.params['policy'],
                        prevent_cse=eqn.params['prevent_cse'])
  return _call(thin, live, _fill(facts, arrays, eqn.in_avals))


register([p.remat_p], Rule(_support, _reads, _remat_evaluate))

