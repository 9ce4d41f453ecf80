"""Asks the analysis what dies with a unit, and so decides where its gates go.

A gate is best multiplied into the readers of a channel: what nobody reads is not computed. Where a
norm reads a channel too, its makers have to be zero. So there are several choices, and the analysis
says which of them lets everything of a unit go, more than what is zero itself. One question asks for one unit of every kind at once.
"""

from collections.abc import Iterable, Sequence
import itertools
from typing import NamedTuple

from slim_jax.channels import analysis, planning, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Fact, Walk
from slim_jax.structure.candidates import Candidate, Spot
from slim_jax.structure.unit import names_of


class Answer(NamedTuple):
  """Which of a candidate's spots get the gates, and which go with a unit: positions in its list."""

  gated: frozenset[int]
  gone: frozenset[int]


class Settled(NamedTuple):
  """The candidates that go, and those of which too much is still needed.

  Candidates of which nothing is read, even with nothing dead, are neither.
  """

  answers: dict[Candidate, Answer]
  refused: list[Candidate]


def settle(traced: planning.Traced, base: Sequence[Region], candidates: list[Candidate]) -> Settled:
  """Decides where the gates of each candidate go.

  Args:
    traced: the function.
    base: the region of every value that is needed with nothing dead.
    candidates: what may go.
  """
  base = [base[i] for i in traced.trace[0].inputs]
  read = {c: [i for i, spot in enumerate(c.spots) if _is_read(base, spot)] for c in candidates}
  choices = {candidate: choices_of(candidate) for candidate in candidates}
  tried: dict[Candidate, list[Answer]] = {
    candidate: [] for candidate in candidates if read[candidate]
  }
  pending = list(tried)
  for k in itertools.count():
    pending = [c for c in pending if k < len(choices[c])]
    if not pending:
      break
    zero = [c.spots[i] for c in pending for i in choices[c][k]]
    needed = regions_needed(traced, zero)
    live = [needed[i] for i in traced.trace[0].inputs]
    for candidate in list(pending):
      gone = frozenset(i for i in read[candidate] if not _is_read(live, candidate.spots[i]))
      tried[candidate].append(Answer(frozenset(choices[candidate][k]), gone))
      if len(gone) == len(read[candidate]) and _shows(candidate, tried[candidate][-1]):
        pending.remove(candidate)
  tried = {c: [a for a in answers if _shows(c, a)] for c, answers in tried.items()}
  best = {c: max(answers, key=lambda a: len(a.gone)) for c, answers in tried.items() if answers}
  answers = {c: a for c, a in best.items() if _is_enough(c, a, read[c])}
  return Settled(answers, [c for c in tried if c not in answers])


def _shows(candidate: Candidate, answer: Answer) -> bool:
  """Whether more goes than what is zero itself, as one of two values that are multiplied may be."""
  return answer.gone > answer.gated or bool(candidate.notes & {'batched', 'contracted'})


def _is_enough(candidate: Candidate, answer: Answer, read: list[int]) -> bool:
  """Whether a unit goes. Something of an expert may stay: the router, which compares them all."""
  batch = {i for i, spot in enumerate(candidate.spots) if 'batch' in spot.roles}
  return len(answer.gone) == len(read) or (bool(batch) and batch <= answer.gone)


def choices_of(candidate: Candidate) -> list[list[int]]:
  """Returns which spots may get the gates, the best first.

  A zero takes part in a comparison: where channels are compared, nothing may be zero but what meets
  the result.
  """
  spots, notes = candidate.spots, candidate.notes
  able = [i for i, spot in enumerate(spots) if spot.can_have_gate]
  batch = [i for i in able if 'batch' in spots[i].roles]
  readers = [i for i in able if 'reader' in spots[i].roles]
  kernels = [i for i in able if 'maker' in spots[i].roles]
  makers = [i for i in able if i in kernels or ('bias' in spots[i].roles and i not in readers)]
  options = [[i] for i in batch]
  if 'ordered' in notes or (batch and 'mixed' in notes):
    return options  # of experts, the router stays
  if readers and 'summed' not in notes:
    options.append(readers)
  if not readers and kernels:  # of query-key dimensions one side is enough
    module = names_of(spots[kernels[0]].path)[:-1]
    beside = [i for i in makers if names_of(spots[i].path)[:-1] == module]
    options += [kernels[:1], beside]
  options.append(makers)
  if 'mixed' not in notes:
    scales = [i for i in able if i not in {*readers, *makers, *batch}]
    options.append(makers + scales)
  options += [readers, *([i] for i in readers)]  # two factors of one kernel read each other
  return [list(option) for option in dict.fromkeys(map(_sorted, options)) if option]


def _sorted(option: list[int]) -> tuple[int, ...]:
  return tuple(sorted(set(option)))


def regions_needed(traced: planning.Traced, zero: Iterable[Spot] = ()) -> list[Region]:
  """Returns what is needed of each value when the first unit's indices are zero at these spots."""
  program, _ = traced.trace
  before = traced.whole_facts()
  inputs = [before[i] for i in program.inputs]
  for spot in zero:
    support = inputs[spot.variable].support
    left = regions.both(support.axes[spot.axis], spot.member != 0)
    inputs[spot.variable] = Fact(regions.along(support, spot.axis, left))
  walk = Walk(traced.walk.rules)
  facts = analysis.forward(program, inputs, walk=walk, before=before)
  demands = [regions.whole(len(program.avals[i].shape)) for i in program.outputs]
  return analysis.backward(program, facts, demands, walk=walk).live


def _is_read(live: list[Region], spot: Spot) -> bool:
  """Whether an index of the first unit is read."""
  region, size = live[spot.variable], len(spot.member)
  return bool(regions.vector(region.axes[spot.axis], size)[spot.member == 0].any())
