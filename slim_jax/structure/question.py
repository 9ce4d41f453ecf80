"""Asks the analysis what dies with a unit, and so decides where its gates go.

A gate is best multiplied into the readers of a channel: what nobody reads is not computed. Where a
norm reads a channel too, its makers have to be zero. So there are several choices, and the analysis
says which of them lets everything of a unit go. One question asks for one unit of every kind at once.
"""

from collections.abc import Iterable
import itertools
from typing import NamedTuple

from slim_jax.channels import analysis, planning, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Fact, Walk
from slim_jax.structure.candidates import Candidate, Spot


class Answer(NamedTuple):
  """Which of a candidate's spots get the gates, and which go with a unit: positions in its list."""

  gated: frozenset[int]
  gone: frozenset[int]


def settle(traced: planning.Traced, candidates: list[Candidate]) -> dict[Candidate, Answer]:
  """Returns where the gates of each candidate go; without those that the analysis keeps."""
  base = _needed(traced, [])
  choices = {candidate: choices_of(candidate) for candidate in candidates}
  tried: dict[Candidate, list[Answer]] = {candidate: [] for candidate in candidates}
  pending = candidates
  for k in itertools.count():
    pending = [c for c in pending if k < len(choices[c]) and not _is_complete(c, tried[c])]
    if not pending:
      break
    live = _needed(traced, [c.spots[i] for c in pending for i in choices[c][k]])
    for candidate in pending:
      gone = frozenset(
        i
        for i, spot in enumerate(candidate.spots)
        if not (_is_read(base, spot) and _is_read(live, spot))
      )
      tried[candidate].append(Answer(frozenset(choices[candidate][k]), gone))
  best = {c: max(answers, key=lambda a: len(a.gone)) for c, answers in tried.items() if answers}
  return {c: answer for c, answer in best.items() if _is_enough(c, answer)}


def _is_complete(candidate: Candidate, tried: list[Answer]) -> bool:
  return any(len(answer.gone) == len(candidate.spots) for answer in tried)


def _is_enough(candidate: Candidate, answer: Answer) -> bool:
  """Whether a unit goes. Something of an expert may stay: the router, which compares them all."""
  batch = {i for i, spot in enumerate(candidate.spots) if 'batch' in spot.roles}
  return _is_complete(candidate, [answer]) or (bool(batch) and batch <= answer.gone)


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
    module = spots[kernels[0]].path[:-1]
    options += [kernels[:1], [i for i in makers if spots[i].path[:-1] == module]]
  options.append(makers)
  if 'mixed' not in notes:
    scales = [i for i in able if i not in {*readers, *makers, *batch}]
    options += [makers + scales, makers + scales + readers]
  options.append(readers)
  return [list(option) for option in dict.fromkeys(map(_sorted, options)) if option]


def _sorted(option: list[int]) -> tuple[int, ...]:
  return tuple(sorted(set(option)))


def _needed(traced: planning.Traced, zero: Iterable[Spot]) -> list[Region]:
  """What is read of each input when the first unit's indices are zero at these spots."""
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
  needed = analysis.backward(program, facts, demands, walk=walk)
  return [needed.live[i] for i in program.inputs]


def _is_read(live: list[Region], spot: Spot) -> bool:
  """Whether an index of the first unit is read."""
  region, size = live[spot.variable], len(spot.member)
  return bool(regions.vector(region.axes[spot.axis], size)[spot.member == 0].any())
