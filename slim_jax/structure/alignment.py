"""`align`: layers stacked under one scan each keep their own units.

All layers of a stack run one program, so they lose the same indices. But which unit of a layer has
which index is arbitrary: permuting the units of a layer alike in all of its variables leaves the
function unchanged. If every layer has its units in the order of their scores, units with the same
index are of the same rank in all layers, and each layer keeps its own best ones.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import tree
from slim_jax.structure.gates import check
from slim_jax.structure.unit import Place, Units, UnitsError


def align(variables: Any, units: Units, scores: Mapping[str, Any]) -> Any:
  """Permutes the units of each layer of a stack by their scores, largest first.

      scores = slim_jax.scores.unit_norm(variables, units)
      variables = slim_jax.align(variables, units, scores)
      scores = slim_jax.align(scores, units, scores)      # now in the order of the units

  The function of the variables is unchanged, up to the order of floating-point sums. Give momentum
  and the like to `align` too, with the same scores.

  Args:
    variables: tree of arrays; or gates, scores or anything else by the unit's name, arrays of the
      shapes of the gates.
    units: of `slim_jax.units`.
    scores: by the unit's name, [layers, size], of the units that are to change places. Entries for
      units that are not stacked, [size], are left out: nothing is gained there.

  Returns:
    The variables, each layer's units in the order of their scores; or the entries by name likewise.

  Raises:
    UnitsError: a unit's places matter, as those of rotary pairs do, whose constants differ; scores
      have the wrong shape or no unit; or the variables are not those of the units.
  """
  orders = _orders(units, scores)
  if isinstance(variables, Mapping) and variables.keys() <= units.keys():
    return {
      name: _taken(array, orders[name], 0, 1) if name in orders else array
      for name, array in variables.items()
    }
  check(variables, units)
  moves: dict[tree.Path, list[tuple[Place, np.ndarray]]] = {}
  for name, order in orders.items():
    for place in units[name].places:
      moves.setdefault(place.path, []).append((place, order))

  def permuted(path: tree.Path, leaf: Any) -> Any:
    for place, order in moves.get(path, ()):
      assert place.layers is not None  # the unit is stacked
      index = np.stack([_index(place.member, of_layer) for of_layer in order])
      leaf = _taken(leaf, index, place.layers, place.axis)
    return leaf

  return tree.map_with_path(permuted, variables)


def _orders(units: Units, scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The order of the units of each layer, int [layers, size], of stacked units."""
  orders = {}
  for name, score in scores.items():
    if name not in units:
      raise UnitsError(f'scores: there is no unit {name!r}')
    unit = units[name]
    if np.shape(score) != unit.shape:
      raise UnitsError(f'scores at {name!r} must have shape {unit.shape}, got {np.shape(score)}')
    if unit.layers and unit.fixed:
      raise UnitsError(
        f'{name!r} cannot be aligned: {unit.fixed}, so its units cannot change places. '
        'Leave it out of scores.'
      )
    if unit.layers:
      orders[name] = np.argsort(-np.asarray(score, np.float64), axis=-1, kind='stable')
  return orders


def _index(member: np.ndarray, order: np.ndarray) -> np.ndarray:
  """Where each index of an axis comes from when unit `order[u]` takes the place of unit u."""
  index = np.arange(len(member))
  places = np.argsort(member[member >= 0], kind='stable').reshape(len(order), -1)
  mine = np.flatnonzero(member >= 0)
  index[mine[places]] = mine[places[order]]
  return index


def _taken(leaf: Any, index: np.ndarray, layers: int, axis: int) -> Any:
  """A leaf whose layer l has index[l] of itself along an axis."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf
  shape = [1] * np.ndim(leaf)
  shape[layers], shape[axis] = index.shape
  index = index if layers < axis else index.T
  take = np.take_along_axis if isinstance(leaf, np.ndarray) else jnp.take_along_axis
  return take(leaf, index.reshape(shape), axis)
