"""What a rule is, the table of rules, and the sound default.

A primitive that is not in the table gets `FULL_WIDTH`: every operand is read whole, with zeros
where channels were removed, and the live part of each result is taken. This costs speed, never
correctness.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jax import lax
import numpy as np

from slim_jax import jaxprs, shardings
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.jaxprs import Equation, Program


class Fact(NamedTuple):
  """What is known of a value before the network runs.

  Attributes:
    support: outside this region the value is zero.
    known: the value itself where it is a small constant (indices, literals): an array of the
      value's shape, or a scalar when all elements are that scalar. None: not known.
  """

  support: Region
  known: np.ndarray | None = None

  @property
  def key(self) -> Hashable:
    """Equal for equal facts."""
    known = self.known
    return self.support.key, None if known is None else (known.shape, known.tobytes())


class Context(NamedTuple):
  """One equation under analysis: everything that a rule is told.

  Attributes:
    eqn: the equation.
    facts: what is known of each operand.
    live: the region to compute of each result; [] while `Rule.support` is asked.
    reads: the region read of each operand; [] until `Rule.evaluate`.
    walk: the analysis, for programs inside the equation (see `analysis.forward` and `analyse`).
  """

  eqn: Equation
  facts: list[Fact]
  live: list[Region]
  reads: list[Region]
  walk: 'Walk'

  @property
  def params(self) -> dict[str, Any]:
    """Parameters of the equation."""
    return self.eqn.params

  @property
  def supports(self) -> list[Region]:
    """Where each operand may be non-zero."""
    return [fact.support for fact in self.facts]

  @property
  def is_untouched(self) -> bool:
    """Whether everything is read and live, so that the operation can run as it is.

    Not so where types say how values are sharded: bodies inside were traced with these types, and
    run without them (see `shardings.automatic`).
    """
    avals = *self.eqn.in_avals, *self.eqn.out_avals
    return all(region.is_whole for region in [*self.reads, *self.live]) and not any(
      map(shardings.is_explicit, avals)
    )


class Rule(NamedTuple):
  """How one primitive treats channels: three functions of a `Context`.

  Attributes:
    support: `support(ctx)` returns, for each result, the region outside which it is zero for
      every value of the operands that `ctx.facts` allow.
    reads: `reads(ctx)` returns, for each operand, the region that determines the results at
      `ctx.live`. What is outside may have any value that the facts allow. At least one result
      is live, unless the equation has effects.
    evaluate: `evaluate(ctx, *arrays)` returns, for each result, an array of its live region,
      given arrays of the `ctx.reads` of the operands. An operand of which nothing is read is
      None; so may be a result that is not live.
  """

  support: Callable[[Context], list[Region]]
  reads: Callable[[Context], list[Region]]
  evaluate: Callable[..., list[Any]]


RULES: dict[Any, Rule] = {}
"""The table: rules by primitive."""


def register(primitives: Iterable[Any], rule: Rule) -> None:
  """Enters one rule for a family of primitives."""
  for primitive in primitives:
    if primitive in RULES:
      raise ValueError(f'{primitive} has a rule already')
    RULES[primitive] = rule


class Walk:
  """One analysis: its table of rules, and the results for programs met on the way.

  A program inside an equation is asked about several times: by the rule's `support`, `reads` and
  `evaluate`, and by each iteration that settles a loop. Each question is answered once, so the
  work of nested loops and calls grows linearly with depth.

  Args:
    rules: the table of rules, by primitive.
  """

  def __init__(self, rules: Mapping[Any, Rule] = RULES):
    self.rules = rules
    self._answers: dict[Hashable, Any] = {}

  def rule(self, eqn: Equation) -> Rule:
    """The rule of the equation's primitive, or the default."""
    return self.rules.get(eqn.primitive, FULL_WIDTH)

  def once(
    self,
    pass_: str,
    program: Program,
    inputs: Sequence[Fact],
    demands: Sequence[Region],
    find: Callable[[], Any],
  ) -> Any:
    """Returns `find()`, computed the first time that a pass asks about these facts and demands."""
    key = (
      pass_,
      id(program),
      tuple(fact.key for fact in inputs),
      tuple(region.key for region in demands),
    )
    if key not in self._answers:
      self._answers[key] = program, find()  # the program is kept so that its id stays its own
    return self._answers[key][1]


def full_support(ctx: Context) -> list[Region]:
  """Nothing is known to be zero."""
  return [regions.whole(len(a.shape)) for a in ctx.eqn.out_avals]


def read_whole(ctx: Context) -> list[Region]:
  """Every operand is read whole."""
  return [regions.whole(len(a.shape)) for a in ctx.eqn.in_avals]


def run_whole(ctx: Context, *arrays: Any) -> list[Any]:
  """Runs at full width and takes the live part of the results."""
  return live_parts(ctx, jaxprs.bind(ctx.eqn, *arrays), full_support(ctx))


def run_thin(ctx: Context, *arrays: Any) -> list[Any]:
  """Runs the same operation on thin operands: no parameter of it names a shape."""
  return jaxprs.bind(ctx.eqn, *arrays)


FULL_WIDTH = Rule(full_support, read_whole, run_whole)


def live_parts(ctx: Context, results: Iterable[Any], have: Sequence[Region]) -> list[Any]:
  """The live part of results of which the regions `have` were computed."""
  return [
    None if live.empty else regions.take(result, held, live, aval.shape)
    for result, held, live, aval in zip(results, have, ctx.live, ctx.eqn.out_avals, strict=True)
  ]


def nonempty(items: Sequence[Region]) -> list[Region | None]:
  """None in place of empty regions, as `present` and `restore` take it."""
  return [None if region.empty else region for region in items]


def present(items: Sequence[Any], by: Sequence[Any]) -> list[Any]:
  """The items for which `by` is not None: those that can pass through a transformation."""
  return [item for item, flag in zip(items, by, strict=True) if flag is not None]


def restore(items: Sequence[Any], by: Sequence[Any]) -> list[Any]:
  """Undoes `present`: None in the gaps."""
  rest = iter(items)
  return [None if flag is None else next(rest) for flag in by]


def bind_fenced(
  ctx: Context, along: Callable[[Region], Region], arrays: Sequence[Any]
) -> list[Any]:
  """Runs an operation with windows, behind barriers where zeros are put back along them.

  XLA's simplifier folds a window that slides over a padded axis of size 1 wrongly (on CPU, to a
  constant along the axis). One live index put back, or taken out and differentiated, is that.

  Args:
    ctx: of the operation.
    along: makes the axes of a region whole that the windows slide along.
    arrays: the operands.
  """
  eqn = ctx.eqn
  narrow = [s for s, a in zip(ctx.supports, eqn.in_avals, strict=True) if a.shape] + ctx.live
  if all(regions.same(along(region), region) for region in narrow):
    return jaxprs.bind(eqn, *arrays)
  return lax.optimization_barrier(jaxprs.bind(eqn, *lax.optimization_barrier(tuple(arrays))))
