"""What is ranked: decisions, each about one channel or several tied ones, and their scores."""

from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax import batch_norms, shardings, tree
from slim_jax.channels import dead
from slim_jax.selection.options import SelectionOptions
from slim_jax.tree import Path


class Ranking(NamedTuple):
  """The decisions of a selection.

  Attributes:
    labels: by the path of a scale, the number of the decision about each channel, int [channels].
    axes: by the path of a scale, the axis of its channels.
    stacks: by the path of a scale, the number of layers stacked in it.
    score: score of each decision, float64 [decisions].
    size: number of scales that each decision is about, int [decisions].
    place: where the first channel of each decision is in its layer: index / channels, float64
      [decisions]. Decisions are numbered by layers and channels.
  """

  labels: dict[Path, np.ndarray]
  axes: dict[Path, int]
  stacks: dict[Path, int]
  score: np.ndarray
  size: np.ndarray
  place: np.ndarray

  def order(self, numbers: np.ndarray) -> np.ndarray:
    """Returns decisions in the order in which they are removed; ascending numbers are expected."""
    return numbers[np.lexsort((self.place[numbers], self.score[numbers]))]


def rank(variables: Any, options: SelectionOptions) -> Ranking:
  """Returns the decisions about the channels of a network.

  Raises:
    ValueError: there is no scale, scales or scores are not finite, or `tied` or `scores` do not fit
      the variables.
  """
  leaves = tree.flatten(variables)
  axes = dead.chosen(variables, options.scales)
  if options.scores is None:
    scores = {
      path: _finite(path, np.abs(_by_channel(leaves[path], axis)), 'scales')
      for path, axis in axes.items()
    }
  else:
    axes = _named_axes(axes, leaves, options.scores)
    scores = _given(axes, leaves, options.scores)
  biases = dead.bias_of_each(leaves)
  for path in axes:
    if not dead.is_scale(path, leaves[path], leaves.get(biases.get(path, ()))):
      scores[path] = scores[path].max(axis=1, keepdims=True)  # of a kernel, an output counts once
  labels = _labels(scores, options.tied)
  stacks = {path: score.shape[1] for path, score in scores.items()}
  return Ranking(labels, axes, stacks, *_gathered(scores, labels, options.tied_by), _places(labels))


def carriers(variables: Any) -> dict[Path, np.ndarray]:
  """Returns the channels of which `bias='keep'` left the bias alone, by the path of the scale.

  Their scale and running statistics are exactly zero, and their bias is not: they emit a constant.

  Args:
    variables: arrays. Among parameters without statistics, none is found.

  Returns:
    Bool [channels], for the BatchNorms that have such channels.
  """
  leaves, found = tree.flatten(variables), {}
  for norm in batch_norms.find(variables):
    shape = leaves[norm.scale].shape
    statistics = [leaves[path] for path in norm.statistics if leaves[path].shape == shape]
    if norm.bias is None or len(statistics) < 2 or leaves[norm.bias].shape != shape:
      continue
    arrays = [leaves[norm.scale], *statistics, leaves[norm.bias]]
    if any(isinstance(array, jax.ShapeDtypeStruct) for array in arrays):
      continue
    axis = batch_norms.channel_axis(leaves[norm.scale])
    zero = [~_by_channel(array, axis).any(axis=1) for array in arrays]
    constant = np.logical_and.reduce(zero[:-1]) & ~zero[-1]
    if constant.any():
      found[norm.scale] = constant
  return found


def _by_channel(array: Any, axis: int) -> np.ndarray:
  """Returns an array of the shape of a scale leaf as [channels, stacked layers]."""
  values = shardings.on_host(array, np.float64)
  return np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)


def _finite(path: Path, values: np.ndarray, what: str) -> np.ndarray:
  if not np.isfinite(values).all():
    raise ValueError(f'{tree.show(path)} has {what} that are not finite')
  return values


def _named_axes(axes: dict[Path, int], leaves: dict[Path, Any], scores: Any) -> dict[Path, int]:
  """Returns the axes of channels, where scores such as [1, heads, 1] name others."""
  given = tree.flatten(scores)

  def axis(path: Path, usual: int) -> int:
    score, leaf = given.get(path), leaves[path]
    if score is None or np.ndim(score) < 2 or np.shape(score) == tuple(leaf.shape):
      return usual
    named = dead.named_axis(score, leaf)
    return usual if named is None else named

  return {path: axis(path, usual) for path, usual in axes.items()}


def _given(axes: dict[Path, int], leaves: dict[Path, Any], scores: Any) -> dict[Path, np.ndarray]:
  """Returns the scores at the scales, as [channels, stacked layers]."""
  given, by_channel = tree.flatten(scores), {}
  if extra := [tree.show(path) for path in given if path not in axes]:
    raise ValueError(f'scores must be None where there is no scale: {", ".join(extra)[:500]}')
  for path, axis in axes.items():
    whole = tuple(leaves[path].shape)
    channels = whole[axis]
    shape = np.shape(given[path]) if path in given else 'nothing'
    single = tuple(channels if i == axis else 1 for i in range(len(whole)))
    if shape not in (whole, (channels,), single):
      raise ValueError(f'scores must have float[{channels}] at {tree.show(path)}, it has {shape}')
    if shape == whole:
      values = _by_channel(given[path], axis)
    else:  # one score for all stacked layers is ranked once per layer
      stack = int(np.prod(whole)) // max(1, channels)
      values = np.repeat(shardings.on_host(given[path], np.float64).reshape(-1, 1), stack, axis=1)
    by_channel[path] = _finite(path, values, 'scores')
  return by_channel


def _labels(scores: dict[Path, np.ndarray], tied: Any) -> dict[Path, np.ndarray]:
  """Returns, for each layer, the number of the decision about each channel, int [channels]."""
  ends = np.cumsum([len(score) for score in scores.values()])
  if tied is None:
    return dict(zip(scores, np.split(np.arange(ends[-1]), ends[:-1])))
  given = tree.flatten(tied)
  for path, score in scores.items():
    shape = np.shape(given[path]) if path in given else 'nothing'
    if shape == 'nothing' or np.size(given[path]) != len(score) or max(shape) != len(score):
      raise ValueError(f'tied must have int[{len(score)}] at {tree.show(path)}, it has {shape}')
  together = np.concatenate([np.ravel(given[path]) for path in scores])
  _, first, dense = np.unique(together, return_index=True, return_inverse=True)
  by_appearance = np.argsort(np.argsort(first))
  return dict(zip(scores, np.split(by_appearance[dense], ends[:-1])))


def _gathered(
  scores: dict[Path, np.ndarray], labels: dict[Path, np.ndarray], tied_by: str
) -> tuple[np.ndarray, np.ndarray]:
  """Returns the score of each decision, and the number of scales that it is about."""
  count = max(label.max(initial=-1) for label in labels.values()) + 1
  size, members = np.zeros(count, int), np.zeros(count, int)
  score = np.full(count, -np.inf) if tied_by == 'max' else np.zeros(count)
  gather = np.maximum if tied_by == 'max' else np.add
  for path, label in labels.items():
    gather.at(score, label, scores[path].max(axis=1))
    np.add.at(size, label, scores[path].shape[1])
    np.add.at(members, label, 1)
  return (score / members if tied_by == 'mean' else score), size


def _places(labels: dict[Path, np.ndarray]) -> np.ndarray:
  """Returns where the first channel of each decision is in its layer, as a share of the layer."""
  channels = np.concatenate(list(labels.values()))
  places = np.concatenate([np.arange(len(label)) / len(label) for label in labels.values()])
  _, first = np.unique(channels, return_index=True)
  return places[first]
