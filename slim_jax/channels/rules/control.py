"""Control flow: loops and branches whose bodies run thin.

What a loop carries keeps one region from iteration to iteration: it may be non-zero where
the start or any iteration makes it so, and is needed where the result or any iteration
needs it. Layers stacked along the axis that `scan` runs over share one body, so a channel
goes where it is dead in all of them.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

from jax import lax

from slim_jax import jaxprs
from slim_jax.channels import analysis, regions, rule
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import FULL_WIDTH, Fact, Rule, cut, present, register, restore
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


def _settle(start: list[Region], step: Callable[[list[Region]], list[Region]]) -> list[Region]:
  """The smallest regions that hold `start` and what `step` makes of them."""
  while True:
    grown = [regions.union(a, b) for a, b in zip(start, step(start), strict=True)]
    if all(regions.same(a, b) for a, b in zip(start, grown, strict=True)):
      return start
    start = grown


def _three(items: list[Any], first: int, second: int) -> tuple[list[Any], list[Any], list[Any]]:
  """The first so many, the next so many, and the rest."""
  return items[:first], items[first : first + second], items[first + second :]


def _unstack(region: Region) -> Region:
  """What one iteration sees of a region of stacked values."""
  return region if region.empty else Region(region.axes[1:])


def _stack(region: Region) -> Region:
  """The region over all iterations."""
  return region if region.empty else Region((None, *region.axes))


# scan


class _Scan(NamedTuple):
  """The parts of a scan: its body takes (constants, carry, slices), gives (carry, slices)."""

  body: Program
  constants: int
  carried: int

  def parts(self, items: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Constants, carry and stacked operands."""
    return _three(items, self.constants, self.carried)


def _scan(eqn: Equation) -> _Scan:
  return _Scan(jaxprs.body(eqn, 'jaxpr'), *jaxprs.scan_counts(eqn))


def _scan_facts(eqn: Equation, facts: list[Fact]) -> list[Fact]:
  """Of every value of the body, in any iteration."""
  scan = _scan(eqn)
  constants, start, stacked = scan.parts(facts)
  slices = [Fact(_unstack(fact.support)) for fact in stacked]

  def inside(carry: list[Region]) -> list[Fact]:
    return analysis.forward(scan.body, constants + [Fact(c) for c in carry] + slices)

  def step(carry: list[Region]) -> list[Region]:
    found = inside(carry)
    return [found[i].support for i in scan.body.outputs[: scan.carried]]

  return inside(_settle([fact.support for fact in start], step))


def _scan_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  scan, inside = _scan(eqn), _scan_facts(eqn, facts)
  carry = [inside[i].support for i in scan.parts(scan.body.inputs)[1]]
  return carry + [_stack(inside[i].support) for i in scan.body.outputs[scan.carried :]]


def _scan_analysis(
  eqn: Equation, facts: list[Fact], live: list[Region]
) -> tuple[Analysis, list[Region]]:
  """Of the body in any iteration, and what is carried from one to the next."""
  scan, inside = _scan(eqn), _scan_facts(eqn, facts)
  slices = [_unstack(l) for l in live[scan.carried :]]

  def back(carry: list[Region]) -> Analysis:
    return analysis.backward(scan.body, inside, carry + slices)

  def step(carry: list[Region]) -> list[Region]:
    found = back(carry)
    return [found.live[i] for i in scan.parts(scan.body.inputs)[1]]

  carry = _settle(live[: scan.carried], step)
  return back(carry), carry


def _scan_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  scan = _scan(eqn)
  found, carry = _scan_analysis(eqn, facts, live)
  constants, _, slices = scan.parts([found.live[i] for i in scan.body.inputs])
  return constants + carry + [_stack(s) for s in slices]


def _scan_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  if rule.untouched(reads, live):
    return jaxprs.bind(eqn, *arrays)
  scan = _scan(eqn)
  found, carry = _scan_analysis(eqn, facts, live)
  constant_reads, _, stacked_reads = scan.parts(reads)
  have = constant_reads + carry + [_unstack(r) for r in stacked_reads]
  demands = carry + [_unstack(l) for l in live[scan.carried :]]
  constants, start, stacked = scan.parts(list(arrays))
  wanted = rule.wanted(demands)
  carry_wanted, slices_wanted = wanted[: scan.carried], wanted[scan.carried :]

  def step(carried, slices):
    operands = constants + restore(carried, start) + restore(slices, stacked)
    results = analysis.run(scan.body, found, operands, have, demands)
    return (
      present(results[: scan.carried], carry_wanted),
      present(results[scan.carried :], slices_wanted),
    )

  end, slices = lax.scan(
    step,
    present(start, start),
    present(stacked, stacked),
    length=eqn.params['length'],
    reverse=eqn.params['reverse'],
    unroll=eqn.params['unroll'],
  )
  results = restore(end, carry_wanted) + restore(slices, slices_wanted)
  made = carry + [_stack(demand) for demand in demands[scan.carried :]]
  return cut(results, eqn, made, live)


register([p.scan_p], Rule(_scan_support, _scan_reads, _scan_evaluate))


# while


class _While(NamedTuple):
  """The parts of a while loop; operands are (constants of each, carry)."""

  condition: Program
  body: Program
  condition_constants: int
  body_constants: int

  def parts(self, items: list[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """Constants of the condition, constants of the body, carry."""
    return _three(items, self.condition_constants, self.body_constants)


def _while(eqn: Equation) -> _While:
  return _While(
    jaxprs.body(eqn, 'cond_jaxpr'),
    jaxprs.body(eqn, 'body_jaxpr'),
    eqn.params['cond_nconsts'],
    eqn.params['body_nconsts'],
  )


def _is_batched(eqn: Equation) -> bool:
  """Whether examples stop at different times (`vmap` of a loop): it runs at full width."""
  condition = _while(eqn).condition
  return bool(condition.avals[condition.outputs[0]].shape)


def _while_carry(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """Where what is carried may be non-zero, in any iteration."""
  loop = _while(eqn)
  _, constants, start = loop.parts(facts)

  def step(carry: list[Region]) -> list[Region]:
    found = analysis.forward(loop.body, constants + [Fact(c) for c in carry])
    return [found[i].support for i in loop.body.outputs]

  return _settle([fact.support for fact in start], step)


def _while_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  if _is_batched(eqn):
    return FULL_WIDTH.support(eqn, facts)
  return _while_carry(eqn, facts)


def _while_analyses(
  eqn: Equation, facts: list[Fact], live: list[Region]
) -> tuple[Analysis, Analysis, list[Region]]:
  """Of the condition and of the body, and what is carried."""
  loop = _while(eqn)
  condition_constants, body_constants, _ = loop.parts(facts)
  carried = [Fact(c) for c in _while_carry(eqn, facts)]
  condition = analysis.backward(
    loop.condition,
    analysis.forward(loop.condition, condition_constants + carried),
    [regions.whole(0)],
  )
  inside = analysis.forward(loop.body, body_constants + carried)

  def step(carry: list[Region]) -> list[Region]:
    found = analysis.backward(loop.body, inside, carry)
    return [
      regions.union(found.live[i], condition.live[j])
      for i, j in zip(
        loop.body.inputs[loop.body_constants :],
        loop.condition.inputs[loop.condition_constants :],
        strict=True,
      )
    ]

  carry = _settle(live, step)
  return condition, analysis.backward(loop.body, inside, carry), carry


def _while_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  if _is_batched(eqn):
    return FULL_WIDTH.reads(eqn, facts, live)
  loop = _while(eqn)
  condition, body, carry = _while_analyses(eqn, facts, live)
  return (
    [condition.live[i] for i in loop.condition.inputs[: loop.condition_constants]]
    + [body.live[i] for i in loop.body.inputs[: loop.body_constants]]
    + carry
  )


def _while_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  if _is_batched(eqn) or rule.untouched(reads, live):
    return FULL_WIDTH.evaluate(eqn, facts, reads, live, *arrays)
  loop = _while(eqn)
  condition, body, carry = _while_analyses(eqn, facts, live)
  condition_reads, body_reads, _ = loop.parts(reads)
  condition_constants, body_constants, start = loop.parts(list(arrays))

  def go_on(carried):
    (answer,) = analysis.run(
      loop.condition,
      condition,
      condition_constants + restore(carried, start),
      condition_reads + carry,
      [regions.whole(0)],
    )
    return answer

  def step(carried):
    return present(
      analysis.run(
        loop.body, body, body_constants + restore(carried, start), body_reads + carry, carry
      ),
      start,
    )

  end = lax.while_loop(go_on, step, present(start, start))
  return cut(restore(end, start), eqn, carry, live)


register([p.while_p], Rule(_while_support, _while_reads, _while_evaluate))


# cond: a branch reads what it needs to make its results; all operands are there for all.


def _cond_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  supports = []
  for branch in jaxprs.bodies(eqn):
    found = analysis.forward(branch, facts[1:])
    supports.append([found[i].support for i in branch.outputs])
  return _union(supports)


def _cond_analyses(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Analysis]:
  return [
    analysis.backward(branch, analysis.forward(branch, facts[1:]), live)
    for branch in jaxprs.bodies(eqn)
  ]


def _cond_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  found = _cond_analyses(eqn, facts, live)
  reads = [
    [a.live[i] for i in branch.inputs] for a, branch in zip(found, jaxprs.bodies(eqn), strict=True)
  ]
  return [regions.whole(0)] + _union(reads)


def _cond_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  if rule.untouched(reads, live):
    return jaxprs.bind(eqn, *arrays)
  index, *operands = arrays
  wanted = rule.wanted(live)

  def thin(branch: Program, found: Analysis) -> Callable[..., list[Any]]:
    def run(*given):
      return present(analysis.run(branch, found, restore(given, operands), reads[1:], live), wanted)

    return run

  thins = [
    thin(branch, found)
    for branch, found in zip(jaxprs.bodies(eqn), _cond_analyses(eqn, facts, live), strict=True)
  ]
  return restore(lax.switch(index, thins, *present(operands, operands)), wanted)


def _union(lists: list[list[Region]]) -> list[Region]:
  """Place by place, over all branches."""
  return [functools.reduce(regions.union, each) for each in zip(*lists, strict=True)]


register([p.cond_p], Rule(_cond_support, _cond_reads, _cond_evaluate))
