"""The two passes over a program, and its thin evaluation.

    forward   facts: where each value may be non-zero (zeros flow down)
    backward  live:  the region of each value that is read and not zero (need flows up)
    run       the equations on the live regions alone

Each is one loop over the equations with a table of rules. Together they keep this invariant: the
thin array of a value is exactly the `live` region of the full value, and every element that is
read outside the live region is zero.

Zeros are structural: they hold for every finite value of the other variables, as `0 * x == 0` does.
A network that multiplies a removed channel by infinity is not covered.
"""

from collections.abc import Iterator, Sequence
import contextlib
from typing import Any, NamedTuple, Protocol

import jax
from jax.core import Tracer
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs, shardings
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Fact, Walk
from slim_jax.jaxprs import Equation, Program


class Analysis(NamedTuple):
  """The result of the backward pass.

  Attributes:
    live: per value number, the region to compute (for an input: the region that is read).
    reads: per equation, the region read of each operand; None when it does not run.
    facts: of every value, from `forward`.
    walk: the table of rules, and what is known of programs inside equations.
  """

  live: list[Region]
  reads: list[list[Region] | None]
  facts: list[Fact]
  walk: Walk


class Widening(Protocol):
  """A choice to compute more than is needed where that costs less; see `widen`.

  It may change `need` and `facts`, which are by value number: more of both does no harm.
  """

  def results(self, eqn: Equation, need: list[Region], facts: list[Fact]) -> None:
    """Called before an equation is asked what it reads."""

  def operands(self, ctx: Context, need: list[Region], facts: list[Fact]) -> list[Fact] | None:
    """Facts by which to read the operands if not by their own; `ctx.reads` is known."""


def unknown(program: Program) -> list[Fact]:
  """Returns the facts of the inputs of a program of which nothing is known."""
  return [Fact(regions.whole(len(program.avals[i].shape))) for i in program.inputs]


def forward(
  program: Program,
  inputs: Sequence[Fact],
  *,
  walk: Walk | None = None,
  before: list[Fact] | None = None,
) -> list[Fact]:
  """Finds the facts of every value of the program.

  Args:
    program: the program.
    inputs: facts of its inputs.
    walk: the analysis that this is a part of, with its table of rules. Default: a new one with
      the full table.
    before: facts of every value for other inputs: what depends only on inputs that did not change
      (the same objects) is taken from there.

  Returns:
    Facts by value number. Do not change the list: it may be handed out again.
  """
  walk = walk or Walk()
  if before is not None:
    return _forward(program, inputs, walk, before)
  return walk.once('forward', program, inputs, (), lambda: _forward(program, inputs, walk, None))


def _forward(
  program: Program, inputs: Sequence[Fact], walk: Walk, before: list[Fact] | None
) -> list[Fact]:
  facts: list[Any] = [None] * len(program.avals)
  for number, fact in zip(program.inputs, inputs, strict=True):
    facts[number] = fact
  for number, value in program.constants.items():
    facts[number] = before[number] if before else constant(value, program.avals[number])
  for eqn in program.equations:
    operands = [facts[i] for i in eqn.inputs]
    if before and all(fact is before[i] for fact, i in zip(operands, eqn.inputs)):
      results = [before[i] for i in eqn.outputs]
    else:
      results = _fold(eqn, operands) or _followed(Context(eqn, operands, [], [], walk))
    for number, fact in zip(eqn.outputs, results, strict=True):
      facts[number] = fact
  return facts


def _followed(ctx: Context) -> list[Fact]:
  """Facts of the results by the rule of the equation."""
  with _named_in_errors(ctx.eqn):
    supports = ctx.walk.rule(ctx.eqn).support(ctx)
  uniform = _uniform(ctx)
  return [
    Fact(regions.nothing(len(aval.shape)) if 0 in aval.shape else support, uniform)
    for support, aval in zip(supports, ctx.eqn.out_avals, strict=True)
  ]


def backward(
  program: Program,
  facts: list[Fact],
  demands: Sequence[Region],
  *,
  walk: Walk | None = None,
  widening: Widening | None = None,
) -> Analysis:
  """Finds what must be computed so that the outputs can be read at `demands`.

  Args:
    program: the program.
    facts: of every value, from `forward`.
    demands: which region of each output is wanted.
    walk: as in `forward`; the same one saves work.
    widening: where to compute more than is needed, if anywhere.
  """
  walk = walk or Walk()
  facts = list(facts)  # `widening` changes them on the way
  need = [regions.nothing(len(aval.shape)) for aval in program.avals]
  reads: list[list[Region] | None] = [None] * len(program.equations)

  def want(numbers: Sequence[int], demands: Sequence[Region]) -> None:
    for number, demand in zip(numbers, demands, strict=True):
      need[number] = regions.union(need[number], demand)

  def keep_nonzero(numbers: Sequence[int]) -> list[Region]:
    for number in numbers:
      need[number] = regions.intersect(need[number], facts[number].support)
    return [need[number] for number in numbers]

  want(program.outputs, demands)
  for k in reversed(range(len(program.equations))):
    eqn = program.equations[k]
    if widening:
      widening.results(eqn, need, facts)
    live = keep_nonzero(eqn.outputs)
    if eqn.effects or not all(region.empty for region in live):
      with _named_in_errors(eqn):
        ctx = Context(eqn, [facts[i] for i in eqn.inputs], live, [], walk)
        read = walk.rule(eqn).reads(ctx)
        if widening:
          wider = widening.operands(ctx._replace(reads=read), need, facts)
          read = walk.rule(eqn).reads(ctx._replace(facts=wider)) if wider else read
      want(eqn.inputs, read)
      reads[k] = read
  keep_nonzero([*program.inputs, *program.constants])
  return Analysis(need, reads, facts, walk)


def analyse(
  program: Program, inputs: Sequence[Fact], demands: Sequence[Region], *, walk: Walk | None = None
) -> Analysis:
  """Runs both passes: `backward` on the facts that `forward` finds.

  Args:
    program: the program.
    inputs: facts of its inputs.
    demands: which region of each output is wanted.
    walk: as in `forward`.
  """
  walk = walk or Walk()

  def find() -> Analysis:
    return backward(program, forward(program, inputs, walk=walk), demands, walk=walk)

  return walk.once('analyse', program, inputs, demands, find)


def run(
  program: Program,
  analysis: Analysis,
  arrays: Sequence[Any],
  have: Sequence[Region],
  demands: Sequence[Region],
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
    zero = jax.ShapeDtypeStruct((), aval.dtype), regions.nothing(len(aval.shape))
    array, region = held.get(number, zero)
    return shardings.as_varying(regions.take(array, region, want, aval.shape), aval)

  last = jaxprs.last_reads(program)
  for k, (eqn, reads) in enumerate(zip(program.equations, analysis.reads, strict=True)):
    if reads is not None:
      live = [analysis.live[i] for i in eqn.outputs]
      ctx = Context(eqn, [analysis.facts[i] for i in eqn.inputs], live, reads, analysis.walk)
      operands = [read(i, r) for i, r in zip(eqn.inputs, reads, strict=True)]
      if operands and all(x is None for x in operands) and all(region.empty for region in live):
        results: list[Any] = [None] * len(live)  # its effect is to name an axis
      else:
        with _named_in_errors(eqn), jaxprs.scope(eqn):
          results = analysis.walk.rule(eqn).evaluate(ctx, *operands)
      for number, array, region in zip(eqn.outputs, results, live, strict=True):
        if not region.empty:
          held[number] = array, region
    for number in last.get(k, ()):
      held.pop(number, None)
  return [read(number, want) for number, want in zip(program.outputs, demands, strict=True)]


@contextlib.contextmanager
def _named_in_errors(eqn: Equation) -> Iterator[None]:
  """Errors inside name the equation and its module path."""
  try:
    yield
  except Exception as error:
    error.add_note(f'In the thin form of {eqn}')
    raise


def without_rule(program: Program, analysis: Analysis) -> list[str]:
  """Operations that run at full width because their primitive has no rule, in calls too."""
  rules, names = analysis.walk.rules, []

  def inside(eqn: Equation) -> None:
    if eqn.primitive not in rules:
      names.append(str(eqn))
      return
    for body in jaxprs.bodies(eqn):
      for inner in body.equations:
        inside(inner._replace(module='/'.join(filter(None, (eqn.module, inner.module)))))

  for eqn, reads in zip(program.equations, analysis.reads, strict=True):
    if reads is not None:
      inside(eqn)
  return names


def constant(value: Any, aval: Any) -> Fact:
  """The fact of a concrete array (nothing is known of captured tracers, keys and float0)."""
  if (
    isinstance(value, Tracer)
    or jax.dtypes.float0 in (aval.dtype, getattr(value, 'dtype', None))
    or jnp.issubdtype(aval.dtype, jax.dtypes.extended)
  ):
    return Fact(regions.whole(len(aval.shape)))
  array = np.asarray(value, aval.dtype)
  return Fact(regions.support_of(array), array if _is_small(aval) else None)


def _is_small(aval: Any) -> bool:
  """Whether a constant is worth knowing: scalars, and index arithmetic (integers)."""
  if jnp.issubdtype(aval.dtype, jax.dtypes.extended):
    return False
  if not all(map(jaxprs.is_fixed, aval.shape)):
    return False
  size = int(np.prod(aval.shape))
  return size == 1 or (aval.dtype.kind in 'iub' and size <= 1 << 16)


def _fold(eqn: Equation, operands: list[Fact]) -> list[Fact] | None:
  """Computes index arithmetic at once, so that gathers see constant indices."""
  known = [fact.known for fact in operands if fact.known is not None]
  if eqn.effects or len(known) < len(operands) or not all(map(_is_small, eqn.out_avals)):
    return None
  if any(value.shape != aval.shape for value, aval in zip(known, eqn.in_avals, strict=True)):
    return None
  if eqn.primitive in (jaxprs.dim_as_value_p, jaxprs.platform_index_p):
    return None
  if eqn.primitive in _SAME:  # not run: within `shard_map` alone has it a meaning
    return [constant(known[0], eqn.out_avals[0])]
  if jaxprs.bodies(eqn) and not _is_light(eqn):
    return None
  with jax.ensure_compile_time_eval():
    results = jaxprs.bind_constants(eqn, *known)
    return [constant(np.asarray(r), a) for r, a in zip(results, eqn.out_avals, strict=True)]


def _uniform(ctx: Context) -> np.ndarray | None:
  """The one scalar that a result consists of, for operations that only repeat or rearrange."""
  if ctx.eqn.primitive in _REPEATS:
    known = ctx.facts[0].known
    if known is not None and known.size == 1:
      return known.reshape(())
  return None


_SAME = {jaxprs.pvary_p, jaxprs.reshard_p}
"""Operations that give their operand, of another type."""

_REPEATS = {
  *_SAME,
  jaxprs.primitives.broadcast_in_dim_p,
  jaxprs.primitives.reshape_p,
  jaxprs.primitives.copy_p,
}


def _is_light(eqn: Equation) -> bool:
  """Whether the bodies inside an equation are straight-line code (no loop to run)."""
  return eqn.primitive is jaxprs.primitives.custom_jvp_call_p
