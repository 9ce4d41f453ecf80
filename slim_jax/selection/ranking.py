"""What is ranked: decisions, each about one channel or several tied ones, and their scores."""

from typing import Any, NamedTuple

import numpy as np

from slim_jax import batch_norms, tree
from slim_jax.tree import Path


class Ranking(NamedTuple):
  """The decisions of a selection.

  Attributes:
    labels: by the path of a scale, the number of the decision of each channel, int [channels].
    stacks: by the path of a scale, how many layers are stacked in it.
    score: what each decision is ranked by, float64 [decisions].
    size: how many scales each decision is about, int [decisions].
  """

  labels: dict[Path, np.ndarray]
  stacks: dict[Path, int]
  score: np.ndarray
  size: np.ndarray


def rank(
  variables: Any, *, tied: Any = None, tied_by: str = 'sum', scores: Any = None, scales: Any = None
) -> Ranking:
  """The decisions about the channels of a network; for the arguments see `select_global`.

  Raises:
    ValueError: no scale, scales or scores that are not finite, `tied` or `scores` that do not fit.
  """
  if tied_by not in ('sum', 'mean', 'max'):
    raise ValueError(f"tied_by must be 'sum', 'mean' or 'max', got {tied_by!r}")
  leaves = tree.flatten(variables)
  chosen = {path: leaves[path] for path in batch_norms.chosen(variables, scales)}
  if scores is None:
    found = {
      path: _finite(path, np.abs(_by_channel(leaf, leaf)), 'scales')
      for path, leaf in chosen.items()
    }
  else:
    found = _given(chosen, scores)
  labels = _labels(found, tied)
  stacks = {path: score.shape[1] for path, score in found.items()}
  return Ranking(labels, stacks, *_gathered(found, labels, tied_by))


def _by_channel(array: Any, leaf: Any) -> np.ndarray:
  """What stands at a scale leaf, as [channels, layers]: of stacked layers more than one."""
  values = np.asarray(array, np.float64)
  axis = batch_norms.channel_axis(leaf)
  return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _finite(path: Path, values: np.ndarray, what: str) -> np.ndarray:
  if not np.isfinite(values).all():
    raise ValueError(f'{tree.show(path)} has {what} that are not finite')
  return values


def _given(chosen: dict[Path, Any], scores: Any) -> dict[Path, np.ndarray]:
  """The scores that stand at the scales, as [channels, layers]."""
  given, found = tree.flatten(scores), {}
  if extra := [tree.show(path) for path in given if path not in chosen]:
    raise ValueError(f'scores stand where no scale is: {", ".join(extra)[:500]}')
  for path, leaf in chosen.items():
    whole = tuple(leaf.shape)
    channels = whole[batch_norms.channel_axis(leaf)]
    shape = np.shape(given[path]) if path in given else 'nothing'
    if shape not in (whole, (channels,)):
      raise ValueError(f'scores must have float[{channels}] at {tree.show(path)}, it has {shape}')
    if shape == whole:
      values = _by_channel(given[path], leaf)
    else:  # one score for the stacked layers together: it counts as often as there are layers
      stack = int(np.prod(whole)) // max(1, channels)
      values = np.repeat(np.asarray(given[path], np.float64)[:, None], stack, axis=1)
    found[path] = _finite(path, values, 'scores')
  return found


def _labels(scores: dict[Path, np.ndarray], tied: Any) -> dict[Path, np.ndarray]:
  """For each layer the number of the decision that each channel belongs to, [channels]."""
  ends = np.cumsum([len(score) for score in scores.values()])
  if tied is None:
    return dict(zip(scores, np.split(np.arange(ends[-1]), ends[:-1])))
  given = tree.flatten(tied)
  for path, score in scores.items():
    found = np.shape(given[path]) if path in given else 'nothing'
    if found != (len(score),):
      raise ValueError(f'tied must have int[{len(score)}] at {tree.show(path)}, it has {found}')
  _, dense = np.unique(np.concatenate([given[path] for path in scores]), return_inverse=True)
  return dict(zip(scores, np.split(dense, ends[:-1])))


def _gathered(
  scores: dict[Path, np.ndarray], labels: dict[Path, np.ndarray], tied_by: str
) -> tuple[np.ndarray, np.ndarray]:
  """What each decision is ranked by, and how many scales it is about."""
  count = max(label.max(initial=-1) for label in labels.values()) + 1
  size, members = np.zeros(count, int), np.zeros(count, int)
  score = np.full(count, -np.inf) if tied_by == 'max' else np.zeros(count)
  gather = np.maximum if tied_by == 'max' else np.add
  for path, label in labels.items():
    gather.at(score, label, scores[path].max(axis=1))
    np.add.at(size, label, scores[path].shape[1])
    np.add.at(members, label, 1)
  return (score / members if tied_by == 'mean' else score), size
