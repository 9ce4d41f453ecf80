"""Control flow: loops and branches whose bodies run thin.

What a loop carries keeps one region from iteration to iteration: it may be non-zero where the
start or any iteration makes it so, and is needed where the result or any iteration needs it.
Layers stacked along the axis that `scan` runs over share one body, so a channel is removed where it
is dead in all of them.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

from jax import lax

from slim_jax import jaxprs
from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import (
  FULL_WIDTH,
  Context,
  Fact,
  Rule,
  live_parts,
  nonempty,
  present,
  register,
  restore,
)
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


def _settle(start: list[Region], step: Callable[[list[Region]], list[Region]]) -> list[Region]:
  """The smallest regions that hold `start` and what `step` makes of them."""
  while True:
    grown = [regions.union(a, b) for a, b in zip(start, step(start), strict=True)]
    if all(map(regions.same, start, grown)):
      return start
    start = grown


def _three(items: Sequence[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
  """The first few, the next few, and the rest."""
  items = list(items)
  return items[:first], items[first : first + second], items[first + second :]


def _unstack(region: Region) -> Region:
  """What one iteration sees of a region of stacked values."""
  return region.with_axes(region.axes[1:])


def _stack(region: Region) -> Region:
  """The region over all iterations."""
  return region.with_axes((None, *region.axes))


# scan


class _Scan(NamedTuple):
  """The parts of a scan: its body takes (constants, carry, slices), gives (carry, slices)."""

  body: Program
  constants: int
  carried: int

  def parts(self, items: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Constants, carry and stacked operands."""
    return _three(items, self.constants, self.carried)


def _scan(eqn: Equation) -> _Scan:
  return _Scan(programs.body(eqn, 'jaxpr'), *jaxprs.scan_counts(eqn))


def _scan_inputs(ctx: Context) -> list[Fact]:
  """Facts of the inputs of the body, in any iteration."""
  scan = _scan(ctx.eqn)
  constants, start, stacked = scan.parts(ctx.facts)
  slices = [Fact(_unstack(fact.support)) for fact in stacked]

  def inputs(carry: list[Region]) -> list[Fact]:
    return constants + list(map(Fact, carry)) + slices

  def step(carry: list[Region]) -> list[Region]:
    inside = analysis.forward(scan.body, inputs(carry), walk=ctx.walk)
    return [inside[i].support for i in scan.body.outputs[: scan.carried]]

  return inputs(_settle([fact.support for fact in start], step))


def _scan_support(ctx: Context) -> list[Region]:
  scan, inputs = _scan(ctx.eqn), _scan_inputs(ctx)
  inside = analysis.forward(scan.body, inputs, walk=ctx.walk)
  carry = [fact.support for fact in scan.parts(inputs)[1]]
  return carry + [_stack(inside[i].support) for i in scan.body.outputs[scan.carried :]]


def _scan_analysis(ctx: Context) -> tuple[Analysis, list[Region]]:
  """Of the body in any iteration, and what is carried from one to the next."""
  scan, inputs = _scan(ctx.eqn), _scan_inputs(ctx)
  slices = [_unstack(region) for region in ctx.live[scan.carried :]]

  def back(carry: list[Region]) -> Analysis:
    return analysis.analyse(scan.body, inputs, carry + slices, walk=ctx.walk)

  def step(carry: list[Region]) -> list[Region]:
    live = back(carry).live
    return [live[i] for i in scan.parts(scan.body.inputs)[1]]

  carry = _settle(ctx.live[: scan.carried], step)
  return back(carry), carry


def _scan_reads(ctx: Context) -> list[Region]:
  scan = _scan(ctx.eqn)
  needed, carry = _scan_analysis(ctx)
  constants, _, slices = scan.parts([needed.live[i] for i in scan.body.inputs])
  return constants + carry + [_stack(s) for s in slices]


def _scan_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  if ctx.is_untouched:
    return jaxprs.bind(ctx.eqn, *arrays)
  scan = _scan(ctx.eqn)
  needed, carry = _scan_analysis(ctx)
  constant_reads, _, stacked_reads = scan.parts(ctx.reads)
  have = constant_reads + carry + [_unstack(r) for r in stacked_reads]
  demands = carry + [_unstack(live) for live in ctx.live[scan.carried :]]
  constants, start, stacked = scan.parts(arrays)
  wanted = nonempty(demands)
  carry_wanted, slices_wanted = wanted[: scan.carried], wanted[scan.carried :]

  def step(carried, slices):
    operands = constants + restore(carried, start) + restore(slices, stacked)
    results = analysis.run(scan.body, needed, operands, have, demands)
    return (
      present(results[: scan.carried], carry_wanted),
      present(results[scan.carried :], slices_wanted),
    )

  slices_given = present(stacked, stacked)
  end, slices = lax.scan(
    step,
    present(start, start),
    slices_given,
    length=None if slices_given else ctx.params['length'],  # which may be a symbol
    reverse=ctx.params['reverse'],
    unroll=ctx.params['unroll'],
  )
  results = restore(end, carry_wanted) + restore(slices, slices_wanted)
  return live_parts(ctx, results, carry + [_stack(demand) for demand in demands[scan.carried :]])


register([p.scan_p], Rule(_scan_support, _scan_reads, _scan_evaluate))


# while


class _While(NamedTuple):
  """The parts of a while loop; operands are (constants of each, carry)."""

  condition: Program
  body: Program
  condition_constants: int
  body_constants: int

  def parts(self, items: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Constants of the condition, constants of the body, carry."""
    return _three(items, self.condition_constants, self.body_constants)


def _while(eqn: Equation) -> _While:
  return _While(
    programs.body(eqn, 'cond_jaxpr'),
    programs.body(eqn, 'body_jaxpr'),
    eqn.params['cond_nconsts'],
    eqn.params['body_nconsts'],
  )


def _is_batched(eqn: Equation) -> bool:
  """Whether examples stop at different times (`vmap` of a loop): it runs at full width."""
  condition = _while(eqn).condition
  return bool(condition.avals[condition.outputs[0]].shape)


def _while_carry(ctx: Context) -> list[Region]:
  """Where what is carried may be non-zero, in any iteration."""
  loop = _while(ctx.eqn)
  _, constants, start = loop.parts(ctx.facts)

  def step(carry: list[Region]) -> list[Region]:
    inside = analysis.forward(loop.body, constants + list(map(Fact, carry)), walk=ctx.walk)
    return [inside[i].support for i in loop.body.outputs]

  return _settle([fact.support for fact in start], step)


def _while_support(ctx: Context) -> list[Region]:
  return FULL_WIDTH.support(ctx) if _is_batched(ctx.eqn) else _while_carry(ctx)


def _while_analyses(ctx: Context) -> tuple[Analysis, Analysis, list[Region]]:
  """Of the condition and of the body, and what is carried."""
  loop = _while(ctx.eqn)
  condition_constants, body_constants, _ = loop.parts(ctx.facts)
  carried = list(map(Fact, _while_carry(ctx)))
  condition = analysis.analyse(
    loop.condition, condition_constants + carried, [regions.whole(0)], walk=ctx.walk
  )
  asked = [condition.live[i] for i in loop.condition.inputs[loop.condition_constants :]]

  def back(carry: list[Region]) -> Analysis:
    return analysis.analyse(loop.body, body_constants + carried, carry, walk=ctx.walk)

  def step(carry: list[Region]) -> list[Region]:
    live = back(carry).live
    inside = [live[i] for i in loop.body.inputs[loop.body_constants :]]
    return list(map(regions.union, inside, asked))

  carry = _settle(ctx.live, step)
  return condition, back(carry), carry


def _while_reads(ctx: Context) -> list[Region]:
  if _is_batched(ctx.eqn):
    return FULL_WIDTH.reads(ctx)
  loop = _while(ctx.eqn)
  condition, body, carry = _while_analyses(ctx)
  return (
    [condition.live[i] for i in loop.condition.inputs[: loop.condition_constants]]
    + [body.live[i] for i in loop.body.inputs[: loop.body_constants]]
    + carry
  )


def _while_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  if _is_batched(ctx.eqn) or ctx.is_untouched:
    return FULL_WIDTH.evaluate(ctx, *arrays)
  loop = _while(ctx.eqn)
  condition, body, carry = _while_analyses(ctx)
  condition_reads, body_reads, _ = loop.parts(ctx.reads)
  condition_constants, body_constants, start = loop.parts(arrays)

  def go_on(carried):
    operands = condition_constants + restore(carried, start)
    have = condition_reads + carry
    (answer,) = analysis.run(loop.condition, condition, operands, have, [regions.whole(0)])
    return answer

  def step(carried):
    operands = body_constants + restore(carried, start)
    return present(analysis.run(loop.body, body, operands, body_reads + carry, carry), start)

  end = lax.while_loop(go_on, step, present(start, start))
  return live_parts(ctx, restore(end, start), carry)


register([p.while_p], Rule(_while_support, _while_reads, _while_evaluate))


# cond: a branch reads what it needs to make its results; all branches get all operands.


def _cond_support(ctx: Context) -> list[Region]:
  supports = []
  for branch in programs.bodies(ctx.eqn):
    inside = analysis.forward(branch, ctx.facts[1:], walk=ctx.walk)
    supports.append([inside[i].support for i in branch.outputs])
  return _union(supports)


def _cond_analyses(ctx: Context) -> list[tuple[Program, Analysis]]:
  return [
    (branch, analysis.analyse(branch, ctx.facts[1:], ctx.live, walk=ctx.walk))
    for branch in programs.bodies(ctx.eqn)
  ]


def _cond_reads(ctx: Context) -> list[Region]:
  reads = [[needed.live[i] for i in branch.inputs] for branch, needed in _cond_analyses(ctx)]
  return [regions.whole(0)] + _union(reads)


def _cond_evaluate(ctx: Context, index: Any, *operands: Any) -> list[Any]:
  if ctx.is_untouched:
    return jaxprs.bind(ctx.eqn, index, *operands)
  wanted = nonempty(ctx.live)

  def thin(branch: Program, needed: Analysis) -> Callable[..., list[Any]]:
    def run(*given):
      arrays = restore(given, operands)
      return present(analysis.run(branch, needed, arrays, ctx.reads[1:], ctx.live), wanted)

    return run

  thins = [thin(branch, needed) for branch, needed in _cond_analyses(ctx)]
  given, platforms = present(operands, operands), ctx.params.get('branches_platforms')
  if platforms is None:
    return restore(lax.switch(index, thins, *given), wanted)
  by_name = {name: f for names, f in zip(platforms, thins) for name in names or ()}
  default = dict(zip(platforms, thins)).get(None)
  return restore(lax.platform_dependent(*given, default=default, **by_name), wanted)


def _union(lists: list[list[Region]]) -> list[Region]:
  """Place by place, over all branches."""
  return [functools.reduce(regions.union, each) for each in zip(*lists, strict=True)]


register([p.cond_p], Rule(_cond_support, _cond_reads, _cond_evaluate))
