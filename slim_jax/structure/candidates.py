"""Candidates for units: the atoms of variables' axes that nothing pins."""

from collections.abc import Iterable
import dataclasses
from typing import NamedTuple

import jax
import numpy as np

from slim_jax import jaxprs
from slim_jax.structure import terms
from slim_jax.structure.terms import Term
from slim_jax.structure.trace import Structure
from slim_jax.tree import Path


class Spot(NamedTuple):
  """An axis of a variable that holds an atom.

  Attributes:
    variable: its number among the leaves.
    axis: of the variable.
    path: of the variable.
    member: int32 [axis size]: which index of the atom each index belongs to, -1 for none.
    roles: how the axis is used; see `trace.Structure`.
    can_have_gate: whether a gate may be multiplied into the variable.
  """

  variable: int
  axis: int
  path: Path
  member: np.ndarray
  roles: set[str]
  can_have_gate: bool


@dataclasses.dataclass(eq=False)
class Candidate:
  """An atom, where it is, and how it is used; see `transfers` for the notes."""

  atom: Term
  spots: list[Spot]
  notes: set[str]


class Candidates(NamedTuple):
  """Candidates, and why other axes of variables stay whole, by path."""

  found: list[Candidate]
  whole: dict[Path, list[str]]

  def refuse(self, candidate: Candidate) -> None:
    """Notes why the analysis removes too little with a candidate."""
    compared = candidate.notes & {'mixed', 'ordered'}
    why = 'is compared as a whole' if compared else 'is needed as a whole'
    for spot in candidate.spots:
      _add(self.whole, spot.path, spot.axis, why)


def _add(whole: dict[Path, list[str]], path: Path, axis: int, why: str) -> None:
  text = f'axis {axis} {why}'
  if why and text not in whole.setdefault(path, []):
    whole[path].append(text)


def of(
  structure: Structure,
  axes: list[tuple[Term, ...]],
  leaves: dict[Path, jax.ShapeDtypeStruct],
  statistics: set[Path],
) -> Candidates:
  """Returns the candidates among the variables.

  Args:
    structure: what was found of the program.
    axes: terms of the variables' axes.
    leaves: the variables.
    statistics: variables that get no gates.
  """
  pins, notes = _resolved(structure.pins), _resolved(structure.notes)
  found: dict[Term, Candidate] = {}
  whole: dict[Path, list[str]] = {}
  members = terms.Members()
  for n, ((path, leaf), own) in enumerate(zip(leaves.items(), axes, strict=True)):
    able = path not in statistics and jaxprs.moves(leaf)
    for i, term in enumerate(own):
      for atom in dict.fromkeys(terms.atoms(term)):
        member = _member(members, term, atom)
        if member is None:
          pins.setdefault(atom, ['is tied to itself in two ways'])
        if atom in pins:
          _add(whole, path, i, next(filter(None, pins[atom]), ''))
        if member is not None:
          candidate = found.setdefault(atom, Candidate(atom, [], set(notes.get(atom, ()))))
          roles = structure.roles.get((n, i), {'maker'})
          candidate.spots.append(Spot(n, i, path, member, roles, able))
  return Candidates([c for c in found.values() if c.atom not in pins], whole)


def _member(members: terms.Members, term: Term, atom: Term) -> np.ndarray | None:
  try:
    return members.of(term, atom)
  except terms.SizesError:
    return None


def _resolved(noted: Iterable[tuple[Term, str]]) -> dict[Term, list[str]]:
  """What was noted of each atom, without repetitions."""
  found: dict[Term, dict[str, None]] = {}
  for term, note in dict.fromkeys((terms.find(term), note) for term, note in noted):
    for atom in terms.atoms(term):
      found.setdefault(atom, {})[note] = None
  return {atom: list(notes) for atom, notes in found.items()}


def macs_of(structure: Structure, kept: dict[Term, set[tuple[int, int]]]) -> dict[Term, int]:
  """Returns the multiply-accumulates that go with one of each atom.

  Args:
    structure: what was found of the program.
    kept: by atom, axes of variables from which nothing goes although they hold it.
  """
  macs = dict.fromkeys(kept, 0.0)
  for contraction in structure.contractions:
    inside = {atom for term in contraction.axes for atom in terms.atoms(term)}
    for atom in inside & kept.keys():
      if kept[atom].isdisjoint(contraction.sources):
        macs[atom] += contraction.macs * terms.share(terms.product(contraction.axes), atom)
  return {atom: round(count) for atom, count in macs.items()}
