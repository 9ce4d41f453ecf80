"""What to call a unit, from how its channels are used."""

import numpy as np

from slim_jax.structure.candidates import Candidate


def of(candidates: list[Candidate]) -> dict[Candidate, str]:
  """Returns the kind of each candidate; see `unit.Unit`."""
  beside = _beside(candidates)
  first = {candidate: _kind(candidate, beside[candidate]) for candidate in candidates}
  return {
    candidate: 'kv_groups'
    if kind == 'heads' and any(first[other] == 'query_heads' for other in beside[candidate])
    else kind
    for candidate, kind in first.items()
  }


def _beside(candidates: list[Candidate]) -> dict[Candidate, list[Candidate]]:
  """The candidates of which elements of a variable belong to the candidate, too."""
  by_variable: dict[int, dict[Candidate, None]] = {}
  for candidate in candidates:
    for spot in candidate.spots:
      by_variable.setdefault(spot.variable, {})[candidate] = None
  return {
    candidate: [
      other
      for n in dict.fromkeys(spot.variable for spot in candidate.spots)
      for other in by_variable[n]
      if other is not candidate and _meet(candidate, other, n)
    ]
    for candidate in candidates
  }


def _meet(a: Candidate, b: Candidate, variable: int) -> bool:
  """Whether elements of a variable belong to both."""
  of_a, of_b = ([s for s in c.spots if s.variable == variable] for c in (a, b))
  return any(
    x.axis != y.axis or bool(((x.member >= 0) & (y.member >= 0)).any()) for x in of_a for y in of_b
  )


def _kind(candidate: Candidate, beside: list[Candidate]) -> str:
  notes = candidate.notes
  if any('batch' in spot.roles for spot in candidate.spots):
    return 'experts'
  if 'carried' in notes:
    return 'hidden'
  if notes & {'batched', 'contracted', 'free'}:
    return _of_attention(candidate, beside)
  of_norm = _of_norm(candidate, beside)
  if of_norm or 'added' in notes:
    return of_norm or 'stream'
  return 'channels' if 'conv' in notes else 'neurons'


def _of_attention(candidate: Candidate, beside: list[Candidate]) -> str:
  """The kind of channels along which two values of the network are multiplied."""
  notes = candidate.notes
  if 'batched' in notes:  # with keys repeated for several queries: [group, query]
    return 'query_heads' if any(_is_within(candidate, o) for o in beside) else 'heads'
  if 'contracted' in notes:
    if 'free' in notes:
      return 'head_dims'
    paired = 'positions' in notes and any(_is_paired(spot.member) for spot in candidate.spots)
    return 'rotary_pairs' if paired else 'query_key_dims'
  queries = any('contracted' in o.notes and 'batched' not in o.notes for o in beside)
  return 'query_heads' if queries else 'value_dims'


def _is_within(candidate: Candidate, other: Candidate) -> bool:
  """Whether the other's heads hold those of the candidate, and have keys of their own."""
  own, wider = ({spot.variable for spot in c.spots} for c in (candidate, other))
  return 'batched' in other.notes and own < wider


def _is_paired(member: np.ndarray) -> bool:
  """Whether several indices of the axis go together."""
  return int(np.count_nonzero(member == 0)) > 1


def _of_norm(candidate: Candidate, beside: list[Candidate]) -> str:
  """The kind of channels of a GroupNorm, which sums over the positions of each group."""
  inside = {'summed' in other.notes for other in beside if _share_axis(candidate, other)}
  summed = 'summed' in candidate.notes
  if (not summed) in inside:
    return 'group_positions' if summed else 'norm_groups'
  return ''


def _share_axis(a: Candidate, b: Candidate) -> bool:
  """Whether an axis of a variable is a product of both."""
  members = {(spot.variable, spot.axis): spot.member for spot in b.spots}
  return any(
    bool(((spot.member >= 0) & (members[spot.variable, spot.axis] >= 0)).any())
    for spot in a.spots
    if (spot.variable, spot.axis) in members
  )
