"""Guards of a selection: how much of each layer must stay, whatever its scores.

A guard is one number for all layers or a mapping from patterns to numbers, `{'*BatchNorm_0*': 16}`.
Patterns are those of `fnmatch` (`*`, `?`, `[seq]`; a `*` crosses '/'), held against the whole path
of a scale, 'params/BatchNorm_0/scale'. Where several match, the longest pattern counts (of equally
long ones the later): so '*' is a default, and the order of a config does not matter.
"""

from collections.abc import Iterable, Mapping
import difflib
import fnmatch
from typing import Any, NamedTuple

import numpy as np

from slim_jax import tree
from slim_jax.tree import Path


class Guards(NamedTuple):
  """What each layer may lose.

  Attributes:
    most: how many channels may go, by the path of the scale.
    keep: paths of the layers left alone.
    multiple_of: what widths are rounded up to.
  """

  most: dict[Path, int]
  keep: set[Path]
  multiple_of: int


def resolve(
  sizes: Mapping[Path, int],
  *,
  min_channels: Any = 0,
  max_fraction: Any = 1.0,
  keep: Iterable[str] = (),
  multiple_of: int = 1,
) -> Guards:
  """The guards of each layer.

  Args:
    sizes: number of channels by the path of the scale.
    min_channels: so many channels stay at least, or all: a number, or a mapping from patterns.
    max_fraction: at most this share goes, in [0, 1]: likewise.
    keep: patterns of layers left alone (one string is one pattern).
    multiple_of: what widths are rounded up to.

  Raises:
    ValueError: for values out of range, and for a pattern that matches no layer.
  """
  if int(multiple_of) != multiple_of or multiple_of < 1:
    raise ValueError(f'multiple_of must be a whole number, 1 or more, got {multiple_of}')
  for value in _values(min_channels):
    if not value >= 0:
      raise ValueError(f'min_channels must be 0 or more, got {value}')
  for value in _values(max_fraction):
    if not 0 <= value <= 1:
      raise ValueError(f'max_fraction must be in [0, 1], got {value}')
  least = _by_layer(min_channels, sizes, 0, 'min_channels')
  share = _by_layer(max_fraction, sizes, 1.0, 'max_fraction')
  most = {
    path: int(max(0, min(int(size * share[path]), size - least[path])))
    for path, size in sizes.items()
  }
  patterns = [keep] if isinstance(keep, str) else list(keep)
  kept = {path for pattern in patterns for path in _matching(pattern, sizes, 'keep')}
  return Guards(most, kept, int(multiple_of))


def take_back(
  guards: Guards, labels: Mapping[Path, np.ndarray], score: np.ndarray, goes: np.ndarray
) -> np.ndarray:
  """Takes channels back until every layer obeys its guards: those that rank highest.

  Args:
    guards: of `resolve`. `keep` is not looked at: such layers have nothing among `goes`.
    labels: for each layer the number of the decision of each channel, [channels].
    score: what each decision is ranked by, [decisions].
    goes: which decisions go, bool [decisions].

  Returns:
    What goes, bool [decisions]. A decision taken back for one layer is so for all of its layers.
  """
  goes = goes.copy()
  for path, label in labels.items():
    goes[_excess(score, goes, label, guards.most[path])] = False
  odd = guards.multiple_of > 1
  while odd:  # what one layer takes back may widen another; it ends where all are whole
    odd = False
    for label in labels.values():
      dead = int(goes[label].sum())
      more = -(len(label) - dead) % guards.multiple_of
      if more and dead:
        goes[_excess(score, goes, label, max(0, dead - more))] = False
        odd = True
  return goes


def _excess(score: np.ndarray, goes: np.ndarray, label: np.ndarray, most: int) -> np.ndarray:
  """Decisions to take back so that a layer loses `most` channels: those that rank highest.

  Of equal ones the later ones are taken back.
  """
  order = np.argsort(score[label], kind='stable')
  return label[order[goes[label[order]]][most:]]


def _values(guard: Any) -> list[Any]:
  return [value for _, value in guard.items()] if hasattr(guard, 'items') else [guard]


def _by_layer(guard: Any, paths: Iterable[Path], default: Any, name: str) -> dict[Path, Any]:
  """The value of a guard for each layer."""
  if not hasattr(guard, 'items'):
    return dict.fromkeys(paths, guard)
  found = dict.fromkeys(paths, default)
  for pattern, value in sorted(guard.items(), key=lambda item: len(item[0])):
    found.update(dict.fromkeys(_matching(pattern, paths, name), value))
  return found


def _matching(pattern: str, paths: Iterable[Path], name: str) -> list[Path]:
  """The layers that a pattern names; none is an error, for it is a misspelling."""
  shown = {tree.show(path): path for path in paths}
  matching = [path for text, path in shown.items() if fnmatch.fnmatchcase(text, pattern)]
  if not matching:
    near = difflib.get_close_matches(pattern, shown, n=3, cutoff=0.4)
    about = f'the nearest are {", ".join(near)}' if near else f'there are {", ".join(shown)}'[:500]
    raise ValueError(
      f'{name}: no layer matches {pattern!r}, which is held against the whole path '
      f'of the scale; {about}'
    )
  return matching
