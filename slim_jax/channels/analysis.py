"""The two passes over a program and its thin evaluation.

    forward   facts: where each value may be non-zero (zeros flow down)
    backward  live:  what of each value somebody reads and is not zero (need flows up)
    run       the equations on the live parts alone

Each is one loop over the equations with the table of `rule`. They keep this invariant:
the thin array of a value is exactly the `live` region of the full value, and every
element that some equation reads outside the live region is zero.

Zeros are structural: they hold for every finite value of the other variables, as
`0 * x == 0` does. A network that multiplies a removed channel by infinity is not covered.
"""

from collections.abc import Iterator
import contextlib
from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import FULL_WIDTH, RULES, Fact
from slim_jax.jaxprs import Equation, Program


class Analysis(NamedTuple):
  """What the backward pass found.

  Attributes:
    live: per value number, the region to compute (for an input: the region that is read).
    reads: per equation, the region read of each operand; None when it does not run.
    facts: of every value, from `forward`.
  """

  live: list[Region]
  reads: list[list[Region] | None]
  facts: list[Fact]


def forward(
  program: Program, inputs: list[Fact], *, before: list[Fact] | None = None
) -> list[Fact]:
  """Facts of every value of the program.

  Args:
    program: the program.
    inputs: facts of its inputs.
    before: what was found with other inputs, if anything: what depends only on inputs that are
      as they were (the same objects) is not worked out again.
  """
  facts: list[Any] = [None] * len(program.avals)
  for number, fact in zip(program.inputs, inputs, strict=True):
    facts[number] = fact
  for number, value in program.constants.items():
    facts[number] = before[number] if before else constant(value, program.avals[number])
  for eqn in program.equations:
    if before and all(facts[i] is before[i] for i in eqn.inputs):
      for number in eqn.outputs:
        facts[number] = before[number]
      continue
    operands = [facts[i] for i in eqn.inputs]
    results = _fold(eqn, operands)
    if results is None:
      with _place(eqn):
        supports = RULES.get(eqn.primitive, FULL_WIDTH).support(eqn, operands)
      results = [
        Fact(regions.nothing() if 0 in aval.shape else support, _uniform(eqn, operands))
        for support, aval in zip(supports, eqn.out_avals, strict=True)
      ]
    for number, fact in zip(eqn.outputs, results, strict=True):
      facts[number] = fact
  return facts


def backward(
  program: Program, facts: list[Fact], demands: list[Region], *, widening: Any = None
) -> Analysis:
  """What must be computed so that the outputs can be read at `demands`.

  Args:
    program: the program.
    facts: of every value, from `forward`.
    demands: which region of each output is wanted.
    widening: of `widen`, where more may be computed than must be.
  """
  facts = list(facts)  # `widening` changes them on the way
  need = [regions.nothing()] * len(program.avals)
  reads: list[list[Region] | None] = [None] * len(program.equations)

  def want(number: int, demand: Region) -> None:
    need[number] = regions.union(need[number], demand)

  for number, demand in zip(program.outputs, demands, strict=True):
    want(number, demand)
  for k in reversed(range(len(program.equations))):
    eqn = program.equations[k]
    if widening:
      widening.results(eqn, need, facts)
    live = [regions.intersect(need[i], facts[i].support) for i in eqn.outputs]
    for number, l in zip(eqn.outputs, live, strict=True):
      need[number] = l
    if eqn.effects or not all(l.empty for l in live):
      rule = RULES.get(eqn.primitive, FULL_WIDTH)
      with _place(eqn):
        reads[k] = rule.reads(eqn, [facts[i] for i in eqn.inputs], live)
        if widening:
          wider = widening.operands(eqn, need, facts, live, reads[k])
          reads[k] = rule.reads(eqn, wider, live) if wider else reads[k]
      for number, read in zip(eqn.inputs, reads[k], strict=True):
        want(number, read)
  for number in [*program.inputs, *program.constants]:
    need[number] = regions.intersect(need[number], facts[number].support)
  return Analysis(need, reads, facts)


def run(
  program: Program, analysis: Analysis, arrays: list[Any], have: list[Region], demands: list[Region]
) -> list[Any]:
  """Evaluates the program thin.

  Args:
    program: what to evaluate.
    analysis: of `backward`, for the same demands.
    arrays: thin arrays of the inputs (anything where `have` is empty).
    have: which region of each input its array holds.
    demands: which region of each output to return.

  Returns:
    The demanded region of each output; None where the demand is empty.
  """
  held: dict[int, tuple[Any, Region]] = {}
  for number, array, region in zip(program.inputs, arrays, have, strict=True):
    if not region.empty:
      held[number] = array, region
  for number, value in program.constants.items():
    held[number] = value, regions.whole(np.ndim(value))

  def read(number: int, want: Region) -> Any:
    if want.empty:
      return None
    aval = program.avals[number]
    array, region = held.get(number) or (jax.ShapeDtypeStruct((), aval.dtype), regions.nothing())
    return regions.take(array, region, want, aval.shape)

  last = jaxprs.last_reads(program)
  for k, (eqn, reads) in enumerate(zip(program.equations, analysis.reads, strict=True)):
    if reads is not None:
      live = [analysis.live[i] for i in eqn.outputs]
      operands = [read(i, r) for i, r in zip(eqn.inputs, reads, strict=True)]
      evaluate = RULES.get(eqn.primitive, FULL_WIDTH).evaluate
      with _place(eqn), jax.named_scope(eqn.module) if eqn.module else contextlib.nullcontext():
        results = evaluate(eqn, [analysis.facts[i] for i in eqn.inputs], reads, live, *operands)
      for number, array, region in zip(eqn.outputs, results, live, strict=True):
        if not region.empty:
          held[number] = array, region
    for number in last.get(k, ()):
      held.pop(number, None)
  return [read(number, want) for number, want in zip(program.outputs, demands, strict=True)]


@contextlib.contextmanager
def _place(eqn: Equation) -> Iterator[None]:
  """Errors inside name the equation and its module path."""
  try:
    yield
  except Exception as error:
    error.add_note(f'In the thin form of {eqn}')
    raise


def without_rule(program: Program, analysis: Analysis) -> list[str]:
  """Operations that run at full width because no rule knows their primitive, in calls too."""
  found = []
  for eqn, reads in zip(program.equations, analysis.reads, strict=True):
    if reads is not None:
      found += _unknown(eqn) if eqn.primitive in RULES else [str(eqn)]
  return found


def _unknown(eqn: Equation) -> list[str]:
  """Those inside a call or a loop."""
  found = []
  for body in jaxprs.bodies(eqn):
    for inner in body.equations:
      inner = inner._replace(module='/'.join(filter(None, (eqn.module, inner.module))))
      found += _unknown(inner) if inner.primitive in RULES else [str(inner)]
  return found


def constant(value: Any, aval: Any) -> Fact:
  """The fact of a concrete array (nothing is known of captured tracers, keys and float0)."""
  if (
    isinstance(value, jax.core.Tracer)
    or aval.dtype == jax.dtypes.float0
    or jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended)
  ):
    return Fact(regions.whole(len(aval.shape)))
  array = np.asarray(value, aval.dtype)
  return Fact(regions.support_of(array), array if _is_small(aval) else None)


def _is_small(aval: Any) -> bool:
  """Whether a constant is worth knowing: scalars, and index arithmetic (integers)."""
  if jax.dtypes.issubdtype(aval.dtype, jax.dtypes.extended):
    return False
  if any(map(jax.export.is_symbolic_dim, aval.shape)):  # of an export for any batch
    return False
  size = int(np.prod(aval.shape))
  return size == 1 or (aval.dtype.kind in 'iub' and size <= 1 << 16)


def _fold(eqn: Equation, operands: list[Fact]) -> list[Fact] | None:
  """Computes index arithmetic at once, so that gathers see constant indices."""
  if eqn.effects or any(fact.known is None for fact in operands):
    return None
  if not all(map(_is_small, eqn.out_avals)) or (jaxprs.bodies(eqn) and not _is_light(eqn)):
    return None
  if any(fact.known.shape != aval.shape for fact, aval in zip(operands, eqn.in_avals, strict=True)):
    return None
  with jax.ensure_compile_time_eval():
    results = jaxprs.bind(eqn, *[fact.known for fact in operands])
    return [constant(np.asarray(r), a) for r, a in zip(results, eqn.out_avals, strict=True)]


def _uniform(eqn: Equation, operands: list[Fact]) -> np.ndarray | None:
  """The one scalar a result is made of, for operations that only repeat or rearrange."""
  if eqn.primitive in _REPEATS and operands[0].known is not None and operands[0].known.size == 1:
    return operands[0].known.reshape(())
  return None


_REPEATS = {
  jaxprs.primitives.broadcast_in_dim_p,
  jaxprs.primitives.reshape_p,
  jaxprs.primitives.copy_p,
}


def _is_light(eqn: Equation) -> bool:
  """Whether the bodies inside an equation are straight-line code (no loop to run)."""
  return eqn.primitive is jaxprs.primitives.custom_jvp_call_p
