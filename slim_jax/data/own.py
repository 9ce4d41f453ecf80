"""A person's own data: a function 'module:name', or an .npz file.

The function is called with the name of a split and returns its images, labels and class names:

    def load(split):
      ...
      return images, labels, ('cat', 'dog')

An .npz file has the arrays `train_image` and `train_label`, `test_image` and `test_label`, and so
on (or x_train and y_train, as in the files of Keras), and, if it likes, `class_names`.

Images are [n, height, width, channels] or [n, height, width], uint8 or floating. Labels are [n, ...]
as the loss of the run needs them: the number of the class for classification.
"""

import pathlib
import re
from typing import NamedTuple

import numpy as np

from slim_jax import npz
from slim_jax.data import folder, splits
from slim_jax.data.arrays import ArrayData, channel_statistics
from slim_jax.data.errors import DataError
from slim_jax.runtime import files, parts

SUFFIX = '.npz'

# Classes for which names are made up from the labels.
_MOST_CLASSES = 10**6

_ARRAYS = re.compile(r'(?:x_(?P<keras>\w+)|(?P<name>\w+)_image)')


class Split(NamedTuple):
  """Images, labels and class names of a split, as they come."""

  image: np.ndarray
  label: np.ndarray
  class_names: tuple[str, ...]


def is_own(name: str) -> bool:
  """Returns whether `config.dataset` names a function or an .npz file."""
  return name.endswith(SUFFIX) or (parts.is_name(name) and not name.startswith(folder.PREFIX))


def load(name: str, *, split: str) -> ArrayData:
  """Loads a split of own data.

  Args:
    name: 'module:name' of a function, which must return the same arrays at every call, or the path
      of an .npz file.
    split: in the notation of TFDS. The function gets the names of splits, never parts of them.

  Returns:
    The split in memory. Labels keep their shape; integers become int32, other numbers float32.

  Raises:
    DataError: there is no such split, or its arrays are not images and labels.
    PartError: the function cannot be found.
  """
  whole = _from_file(name, split) if name.endswith(SUFFIX) else _from_function(name, split)
  checked = {key: _checked(value, f'{name}, split {key!r}') for key, value in whole.items()}
  sizes = {key: len(value.label) for key, value in checked.items()}
  taken = [
    (checked[key], part)
    for key, part in splits.resolve(split, sizes, source=f'config.dataset={name}')
  ]
  image = np.concatenate([one.image[part] for one, part in taken])
  label = np.concatenate([one.label[part] for one, part in taken])
  if not len(label):
    raise DataError(f'{name}: the split {split!r} is empty')
  class_names = taken[0][0].class_names
  mean, std = channel_statistics(image)
  return ArrayData(image, label, len(class_names), class_names, mean, std)


def _from_function(name: str, split: str) -> dict[str, Split]:
  function = parts.find(name, field='dataset')
  result = {}
  for key in splits.names(split):
    returned = function(key)
    if not isinstance(returned, (tuple, list)) or len(returned) != 3:
      raise DataError(
        f'{name}({key!r}) must return images, labels and class names; it returned '
        f'{type(returned).__name__}'
        + (f' of {len(returned)}' if isinstance(returned, (tuple, list)) else '')
      )
    image, label, class_names = returned
    result[key] = Split(np.asarray(image), np.asarray(label), tuple(map(str, class_names)))
  return result


def _from_file(name: str, split: str) -> dict[str, Split]:
  path = pathlib.Path(name).expanduser()
  try:
    arrays = npz.read(path, most=files.memory())
  except (OSError, npz.NpzError) as error:
    raise DataError(f'config.dataset={name} cannot be read: {error}') from error
  found = {}
  for key in arrays:
    if match := _ARRAYS.fullmatch(key):
      number = match['keras'] or match['name']
      labels = f'y_{number}' if match['keras'] else f'{number}_label'
      if labels not in arrays:
        raise DataError(f'{name} has {key}, but no {labels}')
      found[number] = arrays[key], arrays[labels]
  wanted = splits.names(split)
  if missing := [key for key in wanted if key not in found]:
    raise DataError(
      f'{name} has no split {missing[0]!r}: it needs the arrays {missing[0]}_image and '
      f'{missing[0]}_label. It holds {", ".join(arrays) or "nothing"}'
    )
  given = arrays.get('class_names')
  class_names = _class_names(given, [label for _, label in found.values()])
  return {key: Split(found[key][0], found[key][1], class_names) for key in wanted}


def _class_names(given: np.ndarray | None, labels: list[np.ndarray]) -> tuple[str, ...]:
  """Returns the names in a file, or '0', '1', ...: one for each class or each output."""
  if given is not None:
    return tuple(map(str, given.ravel()))
  if all(np.issubdtype(label.dtype, np.integer) and label.ndim != 2 for label in labels):
    count = 1 + max(int(label.max(initial=0)) for label in labels)
    if count > _MOST_CLASSES:
      raise DataError(
        f'labels up to {count - 1:,} are no numbers of classes: if they are, the file needs '
        'class_names'
      )
  else:
    count = labels[0].shape[1] if labels[0].ndim > 1 else 1
  return tuple(map(str, range(count)))


def _checked(split: Split, where: str) -> Split:
  image, label = split.image, split.label
  if image.ndim == 3:
    image = image[..., None]
  if image.ndim != 4 or not (image.dtype == np.uint8 or np.issubdtype(image.dtype, np.floating)):
    raise DataError(
      f'{where}: images must be [n, height, width, channels] of uint8 or floating numbers, not '
      f'{image.dtype}{list(image.shape)}'
    )
  if not np.issubdtype(label.dtype, np.number) and label.dtype != bool:
    raise DataError(f'{where}: labels must be numbers, not {label.dtype}')
  if label.shape[:1] != image.shape[:1]:
    raise DataError(
      f'{where}: there are {len(image)} images, but labels of shape {list(label.shape)}'
    )
  if not split.class_names:
    raise DataError(f'{where}: there must be a name for each class, or for each output')
  for name, array in (('images', image), ('labels', label)):
    if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
      raise DataError(f'{where}: {name} must be finite')
  limits = np.iinfo(np.int32)
  if np.issubdtype(label.dtype, np.integer) and not np.all(
    (label >= limits.min) & (label <= limits.max)
  ):
    raise DataError(f'{where}: labels that are integers must be of 32 bits')
  exact = image.dtype == np.uint8
  whole = np.issubdtype(label.dtype, np.integer)
  return Split(
    image if exact else image.astype(np.float32),
    label.astype(np.int32 if whole else np.float32),
    split.class_names,
  )
