"""Constraints of a selection: how many channels of each layer stay, whatever their scores.

The options and the patterns that name layers are described in `options.SelectionOptions`.
"""

from collections.abc import Iterable, Mapping
import difflib
import fnmatch
from typing import Any, NamedTuple

import numpy as np

from slim_jax import tree
from slim_jax.selection.options import SelectionOptions
from slim_jax.tree import Path


class Limits(NamedTuple):
  """What each layer may lose.

  Attributes:
    most: largest number of channels that are removed, by the path of the scale.
    keep: paths of the layers from which nothing is removed.
    multiple_of: what widths are rounded up to.
  """

  most: dict[Path, int]
  keep: set[Path]
  multiple_of: int


def resolve(sizes: Mapping[Path, int], options: SelectionOptions) -> Limits:
  """Returns the limits of each layer.

  Args:
    sizes: number of channels by the path of the scale.
    options: with the constraints.

  Raises:
    ValueError: a pattern matches no layer.
  """
  least = _by_layer(options.min_channels, sizes, 0, 'min_channels')
  share = _by_layer(options.max_fraction, sizes, 1.0, 'max_fraction')
  most = {
    path: int(max(0, min(int(size * share[path]), size - least[path])))
    for path, size in sizes.items()
  }
  patterns = [options.keep] if isinstance(options.keep, str) else list(options.keep)
  keep = {path for pattern in patterns for path in _matching(pattern, sizes, 'keep')}
  return Limits(most, keep, int(options.multiple_of))


def take_back(
  limits: Limits, labels: Mapping[Path, np.ndarray], score: np.ndarray, dead: np.ndarray
) -> np.ndarray:
  """Takes decisions with the largest scores back until every layer is within its limits.

  Args:
    limits: what `resolve` returns. `keep` is not used: nothing of such layers is among `dead`.
    labels: for each layer, the number of the decision about each channel, int [channels].
    score: of each decision, [decisions].
    dead: which decisions are to remove their channels, bool [decisions].

  Returns:
    Those of `dead` that remain, bool [decisions]. A decision taken back for one layer is taken back
    for all of its layers.
  """
  dead = dead.copy()
  for path, label in labels.items():
    dead[_excess(score, dead, label, limits.most[path])] = False
  changed = limits.multiple_of > 1
  while changed:  # what one layer takes back may widen another; all channels alive is a fixed point
    changed = False
    for label in labels.values():
      count = int(dead[label].sum())
      missing = -(len(label) - count) % limits.multiple_of
      if missing and count:
        dead[_excess(score, dead, label, max(0, count - missing))] = False
        changed = True
  return dead


def _excess(score: np.ndarray, dead: np.ndarray, label: np.ndarray, most: int) -> np.ndarray:
  """Returns the decisions with the largest scores by which a layer loses more than `most` channels.

  Of equal ones, those of later channels.
  """
  order = np.argsort(score[label], kind='stable')
  return label[order[dead[label[order]]][most:]]


def _by_layer(constraint: Any, paths: Iterable[Path], default: Any, name: str) -> dict[Path, Any]:
  """Returns the value of a constraint for each layer."""
  if not hasattr(constraint, 'items'):
    return dict.fromkeys(paths, constraint)
  values = dict.fromkeys(paths, default)
  for pattern, value in sorted(constraint.items(), key=lambda item: len(item[0])):
    values.update(dict.fromkeys(_matching(pattern, paths, name), value))
  return values


def _matching(pattern: str, paths: Iterable[Path], name: str) -> list[Path]:
  """Returns the layers that match a pattern; none is an error, since it is likely misspelt."""
  by_text = {tree.show(path): path for path in paths}
  matching = [path for text, path in by_text.items() if fnmatch.fnmatchcase(text, pattern)]
  if not matching:
    near = difflib.get_close_matches(pattern, by_text, n=3, cutoff=0.4)
    hint = f'the nearest are {", ".join(near)}' if near else f'there are {", ".join(by_text)}'[:500]
    raise ValueError(
      f'{name}: no layer matches {pattern!r}. A pattern must match the whole path of the scale; '
      f'{hint}'
    )
  return matching
