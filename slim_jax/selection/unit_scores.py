"""Scores of units: what ranks the gates of `slim_jax.gate` if they were not trained."""

from typing import Any, Literal

import numpy as np

from slim_jax import shardings, tree
from slim_jax.structure.unit import Place, Unit, Units

_ROLES = {
  'readers': ('reader',),
  'makers': ('maker', 'batch'),
  'all': ('reader', 'maker', 'batch', 'norm', 'scale', 'bias'),
}


def unit_norm(
  variables: Any,
  units: Units,
  *,
  ord: float = 2,  # pylint: disable=redefined-builtin
  of: Literal['readers', 'makers', 'all'] = 'all',
) -> dict[str, np.ndarray]:
  """Returns the mean size of the weights that go with a unit: (mean |w|^ord)^(1/ord).

  Means make units of different sizes comparable: a head has more weights than a neuron.

  Args:
    variables: tree of arrays.
    units: of `slim_jax.units`.
    ord: order of the norm, positive: 1, 2, ...
    of: which weights: of kernels that read the channels, of kernels that make them, or all of them,
      biases and scales too. Units that have none of these are scored by all.

  Returns:
    By the unit's name, float64 [size], or [layers, size] of stacked layers: `scores=` of
    `select_global(gates, scales=True, ...)`.

  Raises:
    ValueError: `ord` is not positive, or `of` is something else.

  References:
    Li et al., ICLR 2017 (ord=1); over everything that goes together: Fang et al., CVPR 2023.
  """
  if not ord > 0:
    raise ValueError(f'ord must be positive, got {ord}')
  if of not in _ROLES:
    raise ValueError(f'of must be one of {", ".join(_ROLES)}, got {of!r}')
  leaves = tree.flatten(variables)
  scores = {}
  for name, unit in units.items():
    places = [place for place in unit.places if place.role in _ROLES[of]] or unit.places
    sums = [
      _summed(shardings.on_host(leaves[place.path], np.float64), unit, place, ord)
      for place in places
    ]
    powers, counts = (np.sum(part, axis=0) for part in zip(*sums, strict=True))
    scores[name] = (powers / counts) ** (1 / ord)
  return scores


def _summed(
  leaf: np.ndarray,
  unit: Unit,
  place: Place,
  ord: float,  # pylint: disable=redefined-builtin
) -> tuple[np.ndarray, np.ndarray]:
  """Sums of powers of a variable's elements by unit, and numbers of elements."""
  kept = [place.axis] if place.layers is None or not unit.layers else [place.layers, place.axis]
  powers = np.abs(leaf) ** ord
  others = tuple(i for i in range(leaf.ndim) if i not in kept)
  by_index = np.moveaxis(powers.sum(axis=others, keepdims=True), kept, range(len(kept)))
  rows = by_index.reshape(-1, len(place.member))
  mine = place.member >= 0
  member = place.member[mine]
  total = [np.bincount(member, row[mine], unit.size) for row in rows]
  count = np.bincount(member, minlength=unit.size) * (leaf.size / rows.size)
  return np.reshape(total, unit.shape), np.broadcast_to(count, unit.shape)
