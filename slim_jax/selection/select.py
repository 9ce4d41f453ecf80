"""Selection by a cutoff: channels are ranked, and those with the smallest scores removed.

ranking       the decisions about channels, their scores and their order
cutoff        a function from the ranked scores to the number of decisions that are removed
constraints   take decisions back where a layer would lose too much
"""

from collections.abc import Callable
from typing import Any, Unpack
import warnings

import numpy as np

from slim_jax import batch_norms, tree
from slim_jax.channels.dead import along
from slim_jax.selection import constraints
from slim_jax.selection.options import SelectionKeywords, SelectionOptions
from slim_jax.selection.ranking import carriers, rank

# From the scores of decisions, ascending, and the number of scales that each is about, to the number
# of decisions that are removed.
Cutoff = Callable[[np.ndarray, np.ndarray], int]

_NEGLIGIBLE = 1e-6  # of the largest score: about float32's precision


def select_global(
  variables: Any,
  *,
  fraction: float | None = None,
  threshold: float | str | None = None,
  **options: Unpack[SelectionKeywords],
) -> Any:
  """Marks the channels with the smallest scales, as in the paper.

  All |scale| of the network are sorted together. A channel stays if its |scale| is strictly
  greater than `sorted[int(n * fraction)]`, so `int(n * fraction) + 1` are removed; `fraction=0`
  removes nothing. Of the channels whose |scale| equals that threshold, as many are removed as this
  number takes, or all with `strict=True`, which is the paper's rule to the letter. They are many
  only where scales are exactly equal: not yet trained, clipped, or zero after proximal steps. A
  channel of stacked layers, scales [layers, channels], is removed if it is small in all of them.
  A channel whose scale and running statistics are exactly zero and whose bias is not is not ranked:
  `plan(..., bias='keep')` left it to emit a constant.

  Args:
    variables: tree with the scales (concrete arrays).
    fraction: share of all channels to remove, in [0, 1). Give either this or `threshold`.
    threshold: largest score that is removed: a number, or 'gap' for the lower end of the widest gap
      between neighbours among the sorted logarithms of the scores, where scores below 1e-6 of the
      largest count as that. If all are equal there is no gap, and nothing is removed.
    **options: `min_channels`, `max_fraction`, `keep`, `multiple_of`, `per_layer`, `strict`, `tied`,
      `tied_by`, `scores` and `scales`: see `slim_jax.selection.options.SelectionOptions`.

  Returns:
    A tree like `variables`: bool [channels] at each scale leaf, True = removed; None elsewhere.

  Raises:
    ValueError: a value is out of range, scales or scores are not finite, a tree does not fit the
      variables, a pattern matches no layer, or there is no scale.

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
  if fraction is not None and threshold is None:
    cutoff = by_fraction(fraction)
  elif threshold is not None and fraction is None:
    cutoff = by_threshold(threshold)
  else:
    raise ValueError(f'give either fraction or threshold: they are {fraction} and {threshold}')
  return selector(variables, **options)(cutoff)


def by_fraction(fraction: float) -> Cutoff:
  """Returns the paper's cutoff, at `sorted[int(n * fraction)]`; for 0, one that removes nothing."""
  if not 0 <= fraction < 1:
    raise ValueError(f'fraction must be in [0, 1), got {fraction}')

  def cutoff(score: np.ndarray, size: np.ndarray) -> int:
    if fraction == 0 or not score.size:
      return 0
    ends = np.cumsum(size)
    return int(np.searchsorted(ends, int(ends[-1] * fraction), side='right')) + 1

  return cutoff


def by_threshold(threshold: float | str) -> Cutoff:
  """Returns the cutoff at a number, or at the widest 'gap'."""
  if threshold == 'gap':
    return lambda score, size: _up_to(_gap(score), score)
  if isinstance(threshold, str) or not np.isfinite(threshold):
    raise ValueError(f"threshold must be a finite number or 'gap', got {threshold!r}")
  return lambda score, size: _up_to(float(threshold), score)


def _up_to(threshold: float, score: np.ndarray) -> int:
  """Returns how many of ascending scores are at most a threshold."""
  return int(np.searchsorted(score, threshold, side='right'))


def _gap(ranked: np.ndarray) -> float:
  """Returns the lower end of the widest gap between the logarithms of neighbours."""
  largest = ranked.max(initial=0)
  levels = np.unique(np.maximum(ranked, _NEGLIGIBLE * largest))
  if largest <= 0 or len(levels) < 2:
    return -np.inf
  return levels[np.argmax(np.diff(np.log(levels)))]


def selector(variables: Any, **options: Unpack[SelectionKeywords]) -> Callable[[Cutoff], Any]:
  """Ranks channels once, for callers that try several cutoffs.

  Returns:
    A function of a cutoff that returns what `select_global` returns. A cutoff comes from
    `by_fraction` or `by_threshold`, or is any function from the decisions that are ranked together,
    their scores, ascending float [n], and sizes, int [n], to the number that is removed.
  """
  settings = SelectionOptions(**options)
  ranking = rank(variables, settings)
  if settings.scales is None and (unranked := batch_norms.pulled_only(variables)):
    warnings.warn(unranked, stacklevel=3)
  score, labels, leaves = ranking.score, ranking.labels, tree.flatten(variables)
  limits = constraints.resolve({path: len(label) for path, label in labels.items()}, settings)
  free = np.ones(len(score), bool)
  for path in limits.keep:
    free[labels[path]] = False
  for path, constant in carriers(variables).items():
    if path in labels:
      free[labels[path][constant]] = False

  def smallest(cutoff: Cutoff, size: np.ndarray) -> np.ndarray:
    """Returns which decisions a cutoff removes of those with a size, bool [decisions]."""
    order = ranking.order(np.flatnonzero(size))
    count = cutoff(score[order], size[order])
    if settings.strict and count:
      count = _up_to(float(score[order[count - 1]]), score[order])
    removed = np.zeros(len(score), bool)
    removed[order[:count]] = True
    return removed

  def select(cutoff: Cutoff) -> Any:
    if settings.per_layer:
      dead = free.copy()
      for path, label in labels.items():
        size = np.bincount(label, minlength=len(score)) * ranking.stacks[path]
        dead[label] &= smallest(cutoff, size * free)[label]
    else:
      dead = smallest(cutoff, ranking.size * free)
    dead = constraints.take_back(limits, labels, score, dead)
    return tree.like(
      variables,
      {path: along(leaves[path], ranking.axes[path], dead[labels[path]]) for path in labels},
    )

  return select
