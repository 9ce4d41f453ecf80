"""A folder of images with a directory for each class, as a data set."""

import collections
from collections.abc import Collection, Sequence
import hashlib
import os
import pathlib
import re
from typing import Any

from absl import logging
import numpy as np
import PIL.features

from slim_jax.data import splits
from slim_jax.data.errors import DataError

# Prefix of the names of data sets that are folders: 'folder:/path'.
PREFIX = 'folder:'

_SUFFIXES = (
  *('.jpg', '.jpeg', '.jpe', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff'),
  *('.ppm', '.pgm'),
)

# Names of the directories of splits, in upper or lower case. Any name of a split means its directory.
_SPLITS = {
  'train': ('train', 'training'),
  'val': ('val', 'valid', 'validation'),
  'test': ('test', 'testing'),
}

# A larger file is no photograph, and would have to fit in memory.
_MOST_BYTES = 2**28

_LAYOUT = (
  'Lay it out as SPLIT/CLASS/IMAGE, with the splits train and val, or as '
  "CLASS/IMAGE, with the splits 'train[:90%]' and 'train[90%:]'"
)


class Folder:
  """The images of a split of a folder, read by index.

  The layout is `SPLIT/CLASS/.../IMAGE` if directories have names of splits (train or training; val,
  valid or validation; test or testing; in upper or lower case) and hold directories of classes. Each
  of these is a split, and has any of its names. Otherwise the layout is `CLASS/.../IMAGE`, and the
  whole folder is the split 'train', to be used in parts.

  Classes are numbered in the order of their names. They are those of the training split; other
  splits may lack some. The order of the images depends only on their names and is as good as random,
  so a part such as 'train[90%:]' holds images of every class, always the same ones. Files that are
  no images are counted and named in a warning.

  Args:
    path: path of the folder.
    split: in the notation of TFDS, such as 'train', 'val[:1000]' or 'train[90%:]'.

  Attributes:
    path: absolute path of the folder.
    class_names: names of the classes, in order.

  Raises:
    DataError: there is no such folder or split, there are fewer than two classes, a class has no
      images to train on, or a split has a class that the training split lacks.
  """

  def __init__(self, path: str, *, split: str):
    self.path = pathlib.Path(path).expanduser().resolve()
    if not self.path.is_dir():
      raise DataError(
        f"no folder {self.path}; give the directory of the images as '{PREFIX}/PATH'. {_LAYOUT}"
      )
    there = _splits(self.path)
    # An unlabelled test set is often a plain directory of images. If no split has classes, the
    # directories are classes themselves, and one of them happens to have the name of a split.
    labelled = {name: path for name, path in there.items() if _directories(path)}
    only_splits = len(_directories(self.path)) == len(there)
    self._splits = labelled or (there if only_splits else {}) or {'train': self.path}
    self.class_names = self._classes()
    # Names are bytes of one length. A million Python strings would take several times the memory,
    # and every worker process gets a copy.
    self._names, self._labels = self._take(split)
    if not len(self._labels):
      raise DataError(f'{self.path}: the split {split!r} is empty')

  def __len__(self) -> int:
    return len(self._labels)

  @property
  def digest(self) -> str:
    """Hash of the names and labels of the images, in order."""
    state = hashlib.blake2b(digest_size=8)
    for array in (self._names, self._labels):
      state.update(array.tobytes())
    return state.hexdigest()

  @property
  def labels(self) -> np.ndarray:
    """Number of the class of each image, int32 [n]."""
    return self._labels

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Reads some images; raises DataError naming a file that cannot be read."""
    return [self._read(os.fsdecode(self._names[key]), self._labels[key]) for key in keys]

  def _read(self, name: str, label: np.integer) -> dict[str, Any]:
    path = self.path / name
    try:
      with open(path, 'rb') as file:
        size = os.fstat(file.fileno()).st_size
        if size > _MOST_BYTES:
          raise DataError(
            f'{path} has {size / 2**20:,.0f} MiB, more than the {_MOST_BYTES / 2**20:.0f} of any '
            'image that is read; reduce or remove it'
          )
        image = file.read()
    except OSError as error:
      raise DataError(f'{path} cannot be read: {error}') from error
    return {'image': image, 'label': int(label), 'file_name': name}

  def _classes(self) -> tuple[str, ...]:
    """Returns the names of the classes: those of the training split."""
    classes = {name: _directories(path) for name, path in self._splits.items()}
    (first, names), *others = classes.items()
    if not any(classes.values()):
      raise DataError(f'{self.path} has no directories of classes. {_LAYOUT}')
    for other, theirs in others:
      if surplus := set(theirs) - set(names):
        raise DataError(
          f'{self.path}: {other} has classes that {first} lacks: {_some(surplus)}. Add them to '
          f'{first}, or remove the split or the directories that are not used'
        )
    if len(names) < 2:
      raise DataError(
        f'{self._splits[first]} has one class, {names[0]!r}; a classifier needs two. {_LAYOUT}'
      )
    return tuple(names)

  def _take(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns names and labels of a split, of a part of one, or of a sum of these."""
    spec = re.sub(r'[A-Za-z]\w*', lambda name: self._named(name[0]), split)
    orders = {name: self._order(name) for name in self._splits if name in spec or 'all' in spec}
    sizes = {name: len(labels) for name, (_, labels) in orders.items()}
    parts = splits.resolve(spec, sizes, source=str(self.path), known=tuple(self._splits))
    taken = [
      (names[part], labels[part]) for name, part in parts for names, labels in [orders[name]]
    ]
    names, labels = zip(*taken)
    return np.concatenate(names), np.concatenate(labels)

  def _named(self, name: str) -> str:
    """Returns the split that a name means, or the name itself."""
    if name in self._splits:
      return name
    return next((split for split in self._splits if _meaning(split) == _meaning(name)), name)

  def _order(self, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns names relative to the folder, bytes [n], and labels, int32 [n], in order."""
    names, labels = [], []
    others: list[str] = []
    for label, name in enumerate(self.class_names):
      images, left_out = _files(self._splits[split] / name)
      others += left_out
      if not images and split == next(iter(self._splits)):
        raise DataError(
          f'{self._splits[split] / name} is the directory of a class and holds no '
          f'images ({", ".join(_suffixes())}); fill it or remove it'
        )
      names += [os.fsencode(os.path.relpath(path, self.path)) for path in images]
      labels += [label] * len(images)
    if others:
      logging.warning(
        '%s: %d files of %s are left out, because they are no images that can be read: %s',
        self.path,
        len(others),
        split,
        _by_suffix(others),
      )
    if not names:
      return np.array([], 'S1'), np.array([], np.int32)
    digests = [hashlib.blake2b(name, digest_size=8).digest() for name in names]
    order = sorted(range(len(names)), key=lambda index: (digests[index], names[index]))
    return np.array(names)[order], np.array(labels, np.int32)[order]


def _splits(path: pathlib.Path) -> dict[str, pathlib.Path]:
  """Returns the directories whose names are those of splits, the training split first."""
  order = list(_SPLITS)
  names = [name for name in _directories(path) if _meaning(name) in order]
  return {name: path / name for name in sorted(names, key=lambda name: order.index(_meaning(name)))}


def _meaning(name: str) -> str:
  """Returns the split that a name is one of the names of, or the name itself."""
  return next((split for split, names in _SPLITS.items() if name.lower() in names), name)


def _directories(path: pathlib.Path) -> list[str]:
  return sorted(
    each.name for each in path.iterdir() if each.is_dir() and not each.name.startswith('.')
  )


def _files(directory: pathlib.Path) -> tuple[list[str], list[str]]:
  """Returns the paths of the images below a directory, and those of other files.

  Pipes and devices, which could be read without end, are other files.
  """
  images, others = [], []
  for parent, _, files in os.walk(directory):
    for name in files:
      path = os.path.join(parent, name)
      if not name.startswith('.'):
        is_image = name.lower().endswith(_suffixes()) and os.path.isfile(path)
        (images if is_image else others).append(path)
  return images, others


def _suffixes() -> tuple[str, ...]:
  """Returns the suffixes of images that PIL reads here."""
  return (*_SUFFIXES, '.avif') if PIL.features.check('avif') else _SUFFIXES


def _by_suffix(paths: Sequence[str]) -> str:
  """Returns how many files there are of each suffix, with the name of one."""
  kinds = collections.defaultdict(list)
  for path in paths:
    kinds[os.path.splitext(path)[1].lower() or 'without suffix'].append(path)
  largest = sorted(kinds.items(), key=lambda kind: -len(kind[1]))
  return ', '.join(f'{len(files)} {suffix} ({files[0]})' for suffix, files in largest[:5])


def _some(names: Collection[str]) -> str:
  listed = sorted(names)
  return (
    ', '.join(listed[:5]) + (f' and {len(listed) - 5} more' if listed[5:] else '') or 'nothing else'
  )
