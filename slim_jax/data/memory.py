"""Reads a split of small images into memory."""

import numpy as np

from slim_jax.data import images
from slim_jax.data.arrays import ArrayData, channel_statistics
from slim_jax.data.errors import DataError
from slim_jax.data.records import Record, Records
from slim_jax.display import progress

# Records read at once: enough to amortise the call, few enough for a steady bar.
_READ = 500

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}

_OTHER_SIZES = (
  'Give image_size, such as 224, to crop and scale images of any size while they are read'
)


def read(records: Records) -> ArrayData:
  """Reads and decodes all examples of a split.

  Raises:
    DataError: an example cannot be read, the images differ in size, or memory is too small.
  """
  image, label = _read(records)
  mean, std = channel_statistics(image)
  return ArrayData(
    image=image,
    label=label,
    num_classes=len(records.class_names),
    class_names=records.class_names,
    mean=mean,
    std=std,
  )


def _read(records: Records) -> tuple[np.ndarray, np.ndarray]:
  """Returns images and labels; all images must have the size of the first."""
  n = len(records)
  channels = records.channels or _channels(records)
  first = _decode(records[0], channels)
  image, label = _allocate((n, *first.shape), records), np.empty(n, np.int32)
  starts = range(0, n, _READ)
  for start in progress.each(starts, f'reading {records.title}', total=len(starts)):
    keys = range(start, min(start + _READ, n))
    for key, record in zip(keys, records.read(list(keys))):
      pixels = _decode(record, channels)
      if pixels.shape != first.shape:
        raise DataError(
          f'{records.path}: the images of {records.title} are not all of one size: '
          f'example 0 is {_size(first)}, example {key} is {_size(pixels)}. '
          f'{_OTHER_SIZES}, or prepare the data set with images of one size'
        )
      image[key] = pixels
      label[key] = record.label
  return image, label


def _channels(records: Records) -> int:
  """Returns the number of channels of a split that does not fix it.

  A split of grey images has 1, any other split 3.
  """
  for start in range(0, len(records), _READ):
    for record in records.read(list(range(start, min(start + _READ, len(records))))):
      with images.opened(record.image, record.where) as picture:
        if not images.is_grey(picture):
          return 3
  return 1


def _allocate(shape: tuple[int, ...], records: Records) -> np.ndarray:
  try:
    return np.empty(shape, np.uint8)
  except MemoryError as error:
    raise DataError(
      f'{records.path}: the {shape[0]} images of {records.title} need '
      f'{np.prod(shape, dtype=float) / 1e9:.0f} GB of memory. {_OTHER_SIZES}'
    ) from error


def _decode(record: Record, channels: int) -> np.ndarray:
  """Returns uint8 [height, width, channels]."""
  with images.opened(record.image, record.where) as picture:
    pixels = np.asarray(images.convert(images.upright(picture), _MODES[channels]))
  return pixels if pixels.ndim == 3 else pixels[..., None]


def _size(image: np.ndarray) -> str:
  return 'x'.join(str(length) for length in image.shape)
