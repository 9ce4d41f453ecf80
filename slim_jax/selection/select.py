"""Selection: which channels go.

Scores are ranked, a cutoff says from which score on they stay, guards take some back:

    ranking   which channels are one decision, and its score
    cutoff    from the scores ranked together to a threshold: what is strictly above it stays
    guards    what every layer keeps whatever its scores
"""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from slim_jax import tree
from slim_jax.selection import constraints
from slim_jax.selection.ranking import rank

Cutoff = Callable[[np.ndarray], float]

_NEGLIGIBLE = 1e-6  # of the largest score: about float32's precision


def select_global(
  variables: Any,
  *,
  fraction: float | None = None,
  threshold: float | str | None = None,
  min_channels: Any = 0,
  max_fraction: Any = 1.0,
  keep: Iterable[str] = (),
  multiple_of: int = 1,
  per_layer: bool = False,
  tied: Any = None,
  tied_by: str = 'sum',
  scores: Any = None,
  scales: Any = None,
) -> Any:
  """Marks the channels with the smallest scales, as the paper does.

  All |scale| of the network are sorted together; a channel stays if its |scale| is strictly
  greater than `sorted[int(n * fraction)]`. `fraction=0` removes nothing. A channel of stacked
  layers (scales [layers, channels]) goes where it is small in all of them.

  Args:
    variables: tree with the scales (concrete arrays).
    fraction: share of all channels to remove, in [0, 1). Give this or `threshold`.
    threshold: what is at most this large goes: a number, or 'gap': the lower side of the widest
      gap between neighbours in the sorted logarithms of the scores, where those below 1e-6 of
      the largest count as that. Where all are equal there is no gap, and nothing goes.
    min_channels: at least so many channels of each layer stay (or all that it has): the
      largest of those that would go. A number, or a mapping from patterns of layers to numbers,
      `{'*BatchNorm_0/*': 16}`: see `slim_jax.guards`; layers that no pattern matches are free.
    max_fraction: at most this share of each layer goes, in [0, 1]; likewise.
    keep: patterns of layers left alone. Their channels, and those tied to them, are not ranked:
      `fraction` is of the others.
    multiple_of: widths are rounded up to a multiple of this (or to all that the layer has), the
      largest of those that would go taken back. A layer that loses every channel is left so.
    per_layer: apply the rule to each layer by itself instead of to all at once.
    tied: tree of int [channels] at each scale leaf, as `streams` gives: channels with one label go
      or stay together. Each counts as often as it has scales.
    tied_by: what tied channels are ranked by, the 'sum', 'mean' or 'max' of their |scale|. A sum
      over many layers outranks single channels. With `per_layer` they go if they would in each
      of their layers.
    scores: what ranks channels in place of |scale|: a tree of float [channels], or of the shape
      of the scale, at each scale leaf, as those of `slim_jax.scores`. The larger stay.
    scales: which leaves are scales, if not those `batch_norm_scales` finds: a tree of bools, a
      prefix of it, or a function that makes one of `variables`.

  Returns:
    A tree like `variables`: bool [channels] at each scale leaf, True = goes; None elsewhere.

  Raises:
    ValueError: for values out of range, scales or scores that are not finite or do not fit,
      patterns that match no layer, or no scale at all.

  Example:
    >>> import jax.numpy as jnp, slim_jax
    >>> variables = {'BatchNorm_0': {'scale': jnp.array([0.5, 0, -0.3, 0.1]), 'bias': jnp.ones(4)}}
    >>> dead = slim_jax.select_global(variables, fraction=0.25)
    >>> dead['BatchNorm_0']['scale'].tolist()
    [False, True, False, True]

  References:
    Liu et al., ICCV 2017, section 3; `max_fraction=0.5` is their multi-pass protocol. The gap:
    Zhuang et al., NeurIPS 2020 (polarization).
  """
  if (fraction is None) == (threshold is None):
    raise ValueError(f'give fraction or threshold: they are {fraction} and {threshold}')
  cutoff = by_fraction(fraction) if threshold is None else by_threshold(threshold)
  return selector(
    variables,
    min_channels=min_channels,
    max_fraction=max_fraction,
    keep=keep,
    multiple_of=multiple_of,
    per_layer=per_layer,
    tied=tied,
    tied_by=tied_by,
    scores=scores,
    scales=scales,
  )(cutoff)


def by_fraction(fraction: float) -> Cutoff:
  """The paper's threshold, `sorted[int(n * fraction)]`; below everything for 0."""
  if not 0 <= fraction < 1:
    raise ValueError(f'fraction must be in [0, 1), got {fraction}')

  def cutoff(ranked: np.ndarray) -> float:
    if fraction == 0 or not ranked.size:
      return -np.inf
    return np.sort(ranked)[int(ranked.size * fraction)]

  return cutoff


def by_threshold(threshold: float | str) -> Cutoff:
  """A given threshold, or 'gap'."""
  if threshold == 'gap':
    return _gap
  if isinstance(threshold, str) or not np.isfinite(threshold):
    raise ValueError(f"threshold must be a finite number or 'gap', got {threshold!r}")
  return lambda ranked: threshold


def _gap(ranked: np.ndarray) -> float:
  """The lower side of the widest gap between logarithms of neighbours."""
  largest = ranked.max(initial=0)
  levels = np.unique(np.maximum(ranked, _NEGLIGIBLE * largest))
  if largest <= 0 or len(levels) < 2:
    return -np.inf
  return levels[np.argmax(np.diff(np.log(levels)))]


def selector(
  variables: Any,
  *,
  min_channels: Any = 0,
  max_fraction: Any = 1.0,
  keep: Iterable[str] = (),
  multiple_of: int = 1,
  per_layer: bool = False,
  tied: Any = None,
  tied_by: str = 'sum',
  scores: Any = None,
  scales: Any = None,
) -> Callable[[Cutoff], Any]:
  """`select_global` up to the cutoff, for callers that try several.

  Returns:
    A function of a cutoff: what `select_global` returns, for `by_fraction` or `by_threshold`, or
    any function from the scores that are ranked together, float [n], to a threshold.
  """
  ranking = rank(variables, tied=tied, tied_by=tied_by, scores=scores, scales=scales)
  score, labels = ranking.score, ranking.labels
  guard = constraints.resolve(
    {path: len(label) for path, label in labels.items()},
    min_channels=min_channels,
    max_fraction=max_fraction,
    keep=keep,
    multiple_of=multiple_of,
  )
  free = np.ones(len(score), bool)
  for path in guard.keep:
    free[labels[path]] = False

  def select(cutoff: Cutoff) -> Any:
    if per_layer:
      goes = free.copy()
      for path, label in labels.items():
        ranked = np.repeat(score[label[free[label]]], ranking.stacks[path])
        goes[label] &= ~(score[label] > cutoff(ranked))
    else:
      goes = free & ~(score > cutoff(np.repeat(score[free], ranking.size[free])))
    goes = constraints.take_back(guard, labels, score, goes)
    return tree.like(variables, {path: goes[label] for path, label in labels.items()})

  return select
