"""The file of a plan: an .npz file of index sets, with a JSON of all that is no array.

    head              JSON: version, leaves, unknown, reasons
    N.I               index set of axis I of leaf N, bool [size]; an axis without one is whole
    N.filled.I, N.support.I      likewise, of its other regions
    N.foldK.sources, N.foldK.weights

`read` believes nothing: a file that passes is a plan, if not necessarily of the network at hand.
"""

from collections.abc import Mapping, Sequence
import json
import os
from typing import Any, BinaryIO, NamedTuple, TypeGuard

import numpy as np

from slim_jax import npz, tree
from slim_jax.channels import regions
from slim_jax.channels.cuts import Cut, Fold
from slim_jax.channels.regions import Region
from slim_jax.errors import SlimError
from slim_jax.tree import Path

VERSION = 1

# Bytes that a plan may unpack to: thirty times the plan of a network of 8 billion parameters.
_MOST = 2**28
# Axes of an array in NumPy and JAX.
_MOST_AXES = 64

_MISSING = np.zeros((), bool)  # for an array that is not there; it passes no check


class PlanError(SlimError, ValueError):
  """A file is not a plan, is damaged, or a newer version wrote it; the message says which."""


class Content(NamedTuple):
  """What a file holds, as the attributes of `Plan`."""

  cuts: dict[Path, Cut]
  unknown: tuple[str, ...]
  reasons: dict[Path, str]
  folds: dict[Path, tuple[Fold, ...]]


def write(
  file: Any,
  cuts: Mapping[Path, Cut],
  unknown: Sequence[str],
  reasons: Mapping[Path, str],
  folds: Mapping[Path, tuple[Fold, ...]],
) -> None:
  """Writes the attributes of a plan to an open file."""
  arrays, leaves = {}, []
  for n, (leaf, cut) in enumerate(cuts.items()):
    of_leaf = folds.get(leaf, ())
    leaves.append(
      {
        'path': leaf,
        'shape': cut.shape,
        'empty': cut.live.empty,
        'filled': None if regions.same(cut.filled, cut.live) else cut.filled.empty,
        'support': cut.support.empty,
        'folds': [[fold.axis, fold.carrier] for fold in of_leaf],
      }
    )
    for i, fold in enumerate(of_leaf):
      arrays |= {f'{n}.fold{i}.sources': fold.sources, f'{n}.fold{i}.weights': fold.weights}
    arrays |= _axes(f'{n}', cut.live) | _axes(f'{n}.support', cut.support)
    if leaves[-1]['filled'] is not None:
      arrays |= _axes(f'{n}.filled', cut.filled)
  head = {
    'version': VERSION,
    'leaves': leaves,
    'unknown': unknown,
    'reasons': [[list(leaf), why] for leaf, why in reasons.items()],
  }
  arrays['head'] = np.array(json.dumps(head))
  np.savez_compressed(file, **arrays)


def read(path: str | os.PathLike[str] | BinaryIO) -> Content:
  """Reads a file, given by name or open.

  Raises:
    FileNotFoundError: there is no such file.
    PlanError: it is not a plan, is damaged, or a newer version wrote it.
  """
  name = path if isinstance(path, (str, os.PathLike)) else getattr(path, 'name', 'the file')
  try:
    return _content(npz.read(path, most=_MOST))
  except (npz.NpzError, PlanError, RecursionError, ValueError) as error:
    raise PlanError(f'{name} is not a plan, or is damaged: {error}') from error


def _content(arrays: dict[str, np.ndarray]) -> Content:
  head = _head(arrays.pop('head', None))
  cuts, folds = {}, {}
  for n, leaf in enumerate(head['leaves']):
    path = _path(leaf)
    where = tree.show(path)
    _expect(path not in cuts, f'{where} is there twice')
    cuts[path] = _cut(n, leaf, arrays, where)
    if of_leaf := _folds(n, leaf, arrays, where):
      folds[path] = of_leaf
  _expect(not arrays, f'it has arrays that belong to no leaf: {", ".join(sorted(arrays)[:3])}')
  reasons = {}
  for entry in head.get('reasons', ()):
    _expect(
      isinstance(entry, list) and len(entry) == 2 and _are(str, entry[0]) and _is_text(entry[1]),
      'a reason has no path or no text',
    )
    reasons[tuple(entry[0])] = entry[1]
  return Content(cuts, tuple(head['unknown']), reasons, folds)


def _head(array: np.ndarray | None) -> dict[str, Any]:
  _expect(
    array is not None and array.shape == () and array.dtype.kind == 'U', 'its head is missing'
  )
  head = json.loads(str(array))
  _expect(isinstance(head, dict), 'its head is no table')
  version = head.get('version')
  _expect(_is_whole(version) and version >= 1, f'it has no version, but {version!r}')
  _expect(
    version <= VERSION, f'a newer slim_jax wrote it (format {version}; this one knows {VERSION})'
  )
  for name in ('leaves', 'unknown', 'reasons'):
    _expect(isinstance(head.get(name, []), list), f'its {name} are no list')
  _expect('leaves' in head and _are(str, head.get('unknown')), 'leaves or operations are missing')
  return head


def _path(leaf: Any) -> Path:
  _expect(isinstance(leaf, dict) and _are(str, leaf.get('path')), 'a leaf has no path')
  return tuple(leaf['path'])


def _cut(number: int, leaf: dict[str, Any], arrays: dict[str, np.ndarray], where: str) -> Cut:
  """Takes a cut out of the arrays; in files of earlier versions the live region is all."""
  shape: Any = leaf.get('shape')
  _expect(
    isinstance(shape, list)
    and len(shape) <= _MOST_AXES
    and all(_is_whole(size) and 0 <= size < 2**63 for size in shape),
    f'{where} has the shape {shape!r}',
  )
  shape = tuple(shape)

  def region(name: str, empty: Any) -> Region:
    _expect(isinstance(empty, bool), f'{where}: it is not said whether a region is empty')
    axes = tuple(_axis(arrays.pop(f'{name}.{i}', None), n, where) for i, n in enumerate(shape))
    _expect(not (empty and any(axis is not None for axis in axes)), f'{where}: empty, and not')
    return regions.nothing(len(shape)) if empty else Region(axes)

  live = region(f'{number}', leaf.get('empty'))
  if 'support' not in leaf:
    return Cut.of(shape, live)
  filled = leaf.get('filled')
  filled = live if filled is None else region(f'{number}.filled', filled)
  _expect(regions.contains(live, filled), f'{where}: more is filled than is live')
  return Cut(shape, live, filled, region(f'{number}.support', leaf['support']))


def _axis(axis: np.ndarray | None, size: int, where: str) -> np.ndarray | None:
  """Checks an index set: bools, some True and some False."""
  if axis is not None:
    _expect(
      axis.dtype == bool and axis.shape == (size,),
      f'{where}: indices of an axis of {size} are {axis.dtype.name}{list(axis.shape)}',
    )
    _expect(bool(axis.any()) and not axis.all(), f'{where}: all or none of an axis is named')
  return axis


def _folds(
  number: int, leaf: dict[str, Any], arrays: dict[str, np.ndarray], where: str
) -> tuple[Fold, ...]:
  folds, shape = leaf.get('folds', []), leaf['shape']
  _expect(isinstance(folds, list), f'{where}: its folds are no list')
  result = []
  for i, entry in enumerate(folds):
    _expect(
      isinstance(entry, list)
      and len(entry) == 2
      and all(map(_is_whole, entry))
      and 0 <= entry[0] < len(shape)
      and -1 <= entry[1] < shape[entry[0]],
      f'{where}: a fold has the axis and carrier {entry!r}',
    )
    axis, carrier = entry
    sources = arrays.pop(f'{number}.fold{i}.sources', _MISSING)
    weights = arrays.pop(f'{number}.fold{i}.weights', _MISSING)
    _expect(
      sources.ndim == 1
      and np.issubdtype(sources.dtype, np.integer)
      and bool(np.all((sources >= 0) & (sources < shape[axis])))
      and bool(np.all(np.diff(sources.astype(np.int64)) > 0)),
      f'{where}: the sources of a fold are not increasing indices of its axis',
    )
    _expect(
      weights.dtype == np.float64
      and weights.shape == sources.shape
      and bool(np.all(np.isfinite(weights))),
      f'{where}: a fold needs a finite weight for each source',
    )
    result.append(Fold(axis, sources, weights, carrier))
  return tuple(result)


def _axes(name: str, region: Region) -> dict[str, np.ndarray]:
  """Returns the index sets of a region by the names under which a file keeps them."""
  if region.empty:
    return {}
  return {f'{name}.{i}': axis for i, axis in enumerate(region.axes) if axis is not None}


def _expect(holds: bool, otherwise: str) -> None:
  if not holds:
    raise PlanError(otherwise)


def _is_whole(value: Any) -> TypeGuard[int]:
  return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
  return isinstance(value, str)


def _are(type_: type, values: Any) -> bool:
  return isinstance(values, list) and all(isinstance(value, type_) for value in values)
