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
  asked = _Asked(traced, [base[i] for i in traced.trace[0].inputs])
  read = [c for c in candidates if asked.read(c)]
  answers = asked.together(read)
  if len(answers) < len(read):  # what was asked for in vain may have helped others
    doubtful = asked.differ(answers)
    answers = {c: a for c, a in answers.items() if c not in doubtful}
    for candidate in doubtful:
      answers |= asked.together([candidate])
  return Settled(answers, [c for c in read if c not in answers])


class _Asked:
  """The questions about one program."""

  def __init__(self, traced: planning.Traced, base: list[Region]):
    self.traced = traced
    self.base = base

  def read(self, candidate: Candidate) -> list[int]:
    """The spots that are read with nothing dead."""
    return [i for i, spot in enumerate(candidate.spots) if _is_read(self.base, spot)]

  def together(self, candidates: list[Candidate]) -> dict[Candidate, Answer]:
    """The best answers for candidates, whose choices are asked for at once."""
    choices = {candidate: choices_of(candidate) for candidate in candidates}
    tried: dict[Candidate, list[Answer]] = {candidate: [] for candidate in candidates}
    pending = candidates
    for k in itertools.count():
      pending = [c for c in pending if k < len(choices[c]) and not self._is_done(c, tried[c])]
      if not pending:
        break
      for c, gone in self._gone({c: choices[c][k] for c in pending}).items():
        tried[c].append(Answer(frozenset(choices[c][k]), gone))
        choices[c] += self._with_readers(c, tried[c][-1])
    shown = {c: [a for a in answers if _shows(c, a)] for c, answers in tried.items()}
    best = {c: max(a, key=lambda a: len(a.gone)) for c, a in shown.items() if a}
    return {c: a for c, a in best.items() if _is_enough(c, a, self.read(c))}

  def _with_readers(self, candidate: Candidate, answer: Answer) -> list[list[int]]:
    """The same spots and the readers that stay, as of embeddings that read NaN out of bounds."""
    stay = set(self.read(candidate)) - answer.gone
    if not stay or 'mixed' in candidate.notes or not answer.gone > answer.gated:
      return []
    spots = [candidate.spots[i] for i in stay]
    only_readers = all('reader' in spot.roles and spot.can_have_gate for spot in spots)
    makes = any({'maker', 'bias'} & candidate.spots[i].roles for i in answer.gated)
    return [sorted(answer.gated | stay)] if only_readers and makes else []

  def differ(self, answers: dict[Candidate, Answer]) -> list[Candidate]:
    """The candidates of which less goes when only the answers' gates are zero."""
    gone = self._gone({c: sorted(a.gated) for c, a in answers.items()})
    return [c for c, a in answers.items() if not a.gone <= gone[c]]

  def _is_done(self, candidate: Candidate, tried: list[Answer]) -> bool:
    size = len(self.read(candidate))
    return any(len(a.gone) == size and _shows(candidate, a) for a in tried)

  def _gone(self, gated: dict[Candidate, list[int]]) -> dict[Candidate, frozenset[int]]:
    """The spots that go when one unit of each candidate is zero at these spots."""
    needed = regions_needed(self.traced, [c.spots[i] for c, spots in gated.items() for i in spots])
    live = [needed[i] for i in self.traced.trace[0].inputs]
    return {c: frozenset(i for i in self.read(c) if not _is_read(live, c.spots[i])) for c in gated}


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
