"""Selection: which channels go."""

from typing import Any

import jax
import numpy as np

from slim_jax import batch_norms, tree


def select_global(variables: Any, *, fraction: float, min_channels: int = 0,
                  max_fraction: float = 1.0, per_layer: bool = False, scales: Any = None) -> Any:
  """Marks the channels with the smallest scales, as the paper does.

  All |scale| of the network are sorted together; a channel stays if its |scale| is strictly
  greater than `sorted[int(n * fraction)]`. `fraction=0` removes nothing.

  Args:
    variables: tree with the scales (concrete arrays).
    fraction: share of all channels to remove, in [0, 1).
    min_channels: at least so many channels of each layer stay (or all that it has): the
      largest of those that would go.
    max_fraction: at most this share of each layer goes, in [0, 1]; likewise.
    per_layer: apply the rule to each layer by itself instead of to all at once.
    scales: which leaves are scales, if not those `batch_norm_scales` finds: a tree of bools, a
      prefix of it, or a function that makes one of `variables`.

  Returns:
    A tree like `variables`: bool [channels] at each scale leaf, True = goes; None elsewhere.

  Raises:
    ValueError: for values out of range, scales that are not finite, or no scale at all.

  References:
    Liu et al., ICCV 2017, section 3; `max_fraction=0.5` is their multi-pass protocol.
  """
  if not 0 <= fraction < 1:
    raise ValueError(f'fraction must be in [0, 1), got {fraction}')
  if not 0 <= max_fraction <= 1:
    raise ValueError(f'max_fraction must be in [0, 1], got {max_fraction}')
  if min_channels < 0:
    raise ValueError(f'min_channels must be 0 or more, got {min_channels}')
  leaves = tree.flatten(variables)
  layers = {path: np.abs(np.asarray(leaves[path], np.float64)).ravel()
            for path in batch_norms.chosen(variables, scales)}
  for path, scale in layers.items():
    if not np.isfinite(scale).all():
      raise ValueError(f'{tree.show(path)} has scales that are not finite')
  everything = np.concatenate(list(layers.values()))
  dead = {}
  for path, scale in layers.items():
    goes = ~_above(scale, scale if per_layer else everything, fraction)
    spare = int(scale.size * max_fraction)
    spare = max(0, min(spare, scale.size - min_channels))
    dead[path] = _smallest(scale, goes, spare)
  return _with_none(variables, dead)


def _above(scale: np.ndarray, ranked: np.ndarray, fraction: float) -> np.ndarray:
  """Which scales are strictly above the threshold that `fraction` sets among `ranked`."""
  if fraction == 0 or not ranked.size:
    return np.ones(scale.shape, bool)
  return scale > np.sort(ranked)[int(ranked.size * fraction)]


def _smallest(scale: np.ndarray, goes: np.ndarray, most: int) -> np.ndarray:
  """`goes`, cut to the `most` channels with the smallest scales (the earlier of equal ones)."""
  order = [i for i in np.argsort(scale, kind='stable') if goes[i]]
  kept = np.zeros(scale.shape, bool)
  kept[order[:most]] = True
  return kept


def _with_none(variables: Any, dead: dict[tree.Path, np.ndarray]) -> Any:
  """A tree like `variables` with the vectors at their paths and None elsewhere."""
  vectors = [dead.get(path) for path in tree.flatten(variables)]
  return jax.tree.unflatten(jax.tree.structure(variables), vectors)
