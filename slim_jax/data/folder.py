"""A folder of images with a directory for each class, as a data set."""

from collections.abc import Collection, Iterator, Sequence
import hashlib
import os
import pathlib
from typing import Any

import numpy as np

from slim_jax.data import splits
from slim_jax.data.errors import DataError

# Prefix of the names of data sets that are folders: 'folder:/path'.
PREFIX = 'folder:'

SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')

_SPLITS = ('train', 'val', 'valid', 'validation', 'test')

_LAYOUT = (
  'Lay it out as SPLIT/CLASS/IMAGE, with the splits train and val, or as '
  "CLASS/IMAGE, with the splits 'train[:90%]' and 'train[90%:]'"
)


class Folder:
  """The images of a split of a folder, read by index.

  The layout is `SPLIT/CLASS/.../IMAGE` if any of the directories train, val, valid, validation and
  test holds directories of classes; each of these that does is a split. Otherwise it is `CLASS/.../IMAGE`, and the whole folder is the split 'train', to be used in
  parts. Classes are numbered in the order of their names. The order of the images depends only on
  their names and is as good as random, so a part such as 'train[90%:]' holds images of every
  class, always the same ones.

  Args:
    path: path of the folder.
    split: in the notation of TFDS, such as 'train', 'val[:1000]' or 'train[90%:]'.

  Attributes:
    path: absolute path of the folder.
    class_names: names of the classes, in order.

  Raises:
    DataError: there is no such folder or split, there are no classes, a class has no images, or
      the splits differ in their classes.
  """

  def __init__(self, path: str, *, split: str):
    self.path = pathlib.Path(path).expanduser().resolve()
    if not self.path.is_dir():
      raise DataError(
        f"no folder {self.path}; give the directory of the images as '{PREFIX}/PATH'. {_LAYOUT}"
      )
    there = {name: self.path / name for name in _SPLITS if (self.path / name).is_dir()}
    # An unlabelled test set is often a plain directory of images. If no split has classes, the
    # directories are classes themselves, and one of them happens to have the name of a split.
    labelled = {name: path for name, path in there.items() if _directories(path)}
    only_splits = set(_directories(self.path)) == there.keys()
    self._splits = labelled or (there if only_splits else {}) or {'train': self.path}
    self.class_names = self._classes()
    # Names are bytes of one length. A million Python strings would take several times the memory,
    # and every worker process gets a copy.
    self._names, self._labels = self._take(split)
    if not len(self._labels):
      raise DataError(f'{self.path}: the split {split!r} is empty')

  def __len__(self) -> int:
    return len(self._labels)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Reads some images; raises DataError naming a file that cannot be read."""
    return [self._read(os.fsdecode(self._names[key]), self._labels[key]) for key in keys]

  def _read(self, name: str, label: np.integer) -> dict[str, Any]:
    try:
      image = (self.path / name).read_bytes()
    except OSError as error:
      raise DataError(f'{self.path / name} cannot be read: {error}') from error
    return {'image': image, 'label': int(label), 'file_name': name}

  def _classes(self) -> tuple[str, ...]:
    """Returns the names of the classes, which must be the same in every split."""
    classes = {name: _directories(path) for name, path in self._splits.items()}
    (first, names), *others = classes.items()
    if not any(classes.values()):
      raise DataError(f'{self.path} has no directories of classes. {_LAYOUT}')
    for other, theirs in others:
      if theirs != names:
        raise DataError(
          f'{self.path}: the classes of {first} and {other} differ. Only {first} has '
          f'{_some(set(names) - set(theirs))}; only {other} has '
          f'{_some(set(theirs) - set(names))}. Give both the same directories, or '
          f'remove the split that is not used'
        )
    return tuple(names)

  def _take(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns names and labels of a split, of a part of one, or of a sum of these."""
    orders = {name: self._order(name) for name in self._splits if name in split or 'all' in split}
    sizes = {name: len(labels) for name, (_, labels) in orders.items()}
    parts = splits.resolve(split, sizes, source=str(self.path), known=tuple(self._splits))
    taken = [
      (names[part], labels[part]) for name, part in parts for names, labels in [orders[name]]
    ]
    names, labels = zip(*taken)
    return np.concatenate(names), np.concatenate(labels)

  def _order(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns names relative to the folder, bytes [n], and labels, int32 [n], in order."""
    names, labels = [], []
    for label, name in enumerate(self.class_names):
      images = list(_images(self._splits[split] / name))
      if not images:
        raise DataError(
          f'{self._splits[split] / name} is the directory of a class and holds no '
          f'images ({", ".join(SUFFIXES)}); fill it or remove it'
        )
      names += [os.fsencode(os.path.relpath(path, self.path)) for path in images]
      labels += [label] * len(images)
    digests = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
    order = sorted(range(len(names)), key=lambda index: (digests[index], names[index]))
    return np.array(names)[order], np.array(labels, np.int32)[order]


def _directories(path: pathlib.Path) -> list[str]:
  return sorted(
    each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith('.')
  )


def _images(directory: pathlib.Path) -> Iterator[str]:
  for parent, _, files in os.walk(directory):
    for name in files:
      if name.lower().endswith(SUFFIXES) and not name.startswith('.'):
        yield os.path.join(parent, name)


def _some(names: Collection[str]) -> str:
  listed = sorted(names)
  return (
    ', '.join(listed[:5]) + (f' and {len(listed) - 5} more' if listed[5:] else '') or 'nothing else'
  )
