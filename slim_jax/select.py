"""Selection: which channels go."""

from typing import Any

import numpy as np

from slim_jax import batch_norms, tree


def select_global(variables: Any, *, fraction: float, min_channels: int = 0,
                  max_fraction: float = 1.0, per_layer: bool = False, tied: Any = None,
                  tied_by: str = 'sum', scales: Any = None) -> Any:
  """Marks the channels with the smallest scales, as the paper does.

  All |scale| of the network are sorted together; a channel stays if its |scale| is strictly
  greater than `sorted[int(n * fraction)]`. `fraction=0` removes nothing. A channel of stacked
  layers (scales [layers, channels]) goes where it is small in all of them.

  Args:
    variables: tree with the scales (concrete arrays).
    fraction: share of all channels to remove, in [0, 1).
    min_channels: at least so many channels of each layer stay (or all that it has): the
      largest of those that would go.
    max_fraction: at most this share of each layer goes, in [0, 1]; likewise.
    per_layer: apply the rule to each layer by itself instead of to all at once.
    tied: tree of int [channels] at each scale leaf, as `streams` gives: channels with one label go
      or stay together. Each counts as often as it has scales.
    tied_by: what tied channels are ranked by, the 'sum', 'mean' or 'max' of their |scale|. A sum
      over many layers outranks single channels. With `per_layer` they go if they would in each
      of their layers.
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
  if tied_by not in ('sum', 'mean', 'max'):
    raise ValueError(f"tied_by must be 'sum', 'mean' or 'max', got {tied_by!r}")
  leaves = tree.flatten(variables)
  scales_of = {path: _by_channel(leaves[path]) for path in batch_norms.chosen(variables, scales)}
  for path, scale in scales_of.items():
    if not np.isfinite(scale).all():
      raise ValueError(f'{tree.show(path)} has scales that are not finite')
  labels = _labels(scales_of, tied)
  score, size = _scores(scales_of, labels, tied_by)
  if per_layer:
    goes = np.ones(len(score), bool)
    for path, label in labels.items():
      stack = scales_of[path].shape[1]
      goes[label] &= ~_above(score[label], np.repeat(score[label], stack), fraction)
  else:
    goes = ~_above(score, np.repeat(score, size), fraction)
  for path, label in labels.items():
    spare = int(len(label) * max_fraction)
    spare = max(0, min(spare, len(label) - min_channels))
    goes[_excess(score, goes, label, spare)] = False
  return tree.like(variables, {path: goes[label] for path, label in labels.items()})


def _by_channel(leaf: Any) -> np.ndarray:
  """|scale| as [channels, layers]: of stacked layers more than one."""
  scale = np.abs(np.asarray(leaf, np.float64))
  axis = batch_norms.channel_axis(leaf)
  return np.moveaxis(scale, axis, 0).reshape(scale.shape[axis], -1)


def _labels(scales: dict[tree.Path, np.ndarray], tied: Any) -> dict[tree.Path, np.ndarray]:
  """For each layer the number of the decision that each channel belongs to, [channels]."""
  ends = np.cumsum([len(scale) for scale in scales.values()])
  if tied is None:
    return dict(zip(scales, np.split(np.arange(ends[-1]), ends[:-1])))
  given = tree.flatten(tied)
  for path, scale in scales.items():
    found = np.shape(given[path]) if path in given else 'nothing'
    if found != (len(scale),):
      raise ValueError(f'tied must have int[{len(scale)}] at {tree.show(path)}, it has {found}')
  _, dense = np.unique(np.concatenate([given[path] for path in scales]), return_inverse=True)
  return dict(zip(scales, np.split(dense, ends[:-1])))


def _scores(scales: dict[tree.Path, np.ndarray], labels: dict[tree.Path, np.ndarray],
            tied_by: str) -> tuple[np.ndarray, np.ndarray]:
  """What each decision is ranked by, and how many scales it is about."""
  count = max(label.max(initial=-1) for label in labels.values()) + 1
  score, size, members = np.zeros(count), np.zeros(count, int), np.zeros(count, int)
  gather = np.maximum if tied_by == 'max' else np.add
  for path, label in labels.items():
    gather.at(score, label, scales[path].max(axis=1))
    np.add.at(size, label, scales[path].shape[1])
    np.add.at(members, label, 1)
  return (score / members if tied_by == 'mean' else score), size


def _above(score: np.ndarray, ranked: np.ndarray, fraction: float) -> np.ndarray:
  """Which scores are strictly above the threshold that `fraction` sets among `ranked`."""
  if fraction == 0 or not ranked.size:
    return np.ones(score.shape, bool)
  return score > np.sort(ranked)[int(ranked.size * fraction)]


def _excess(score: np.ndarray, goes: np.ndarray, label: np.ndarray, most: int) -> np.ndarray:
  """Decisions to take back so that a layer loses `most` channels: those that rank highest.

  Of equal ones the later ones are taken back.
  """
  order = [i for i in np.argsort(score[label], kind='stable') if goes[label[i]]]
  return label[order[most:]]
