"""Loads a split: small images into memory, photographs as a stream."""

import dataclasses
import io

import numpy as np
import PIL.Image

from slim_jax.data.errors import DataError
from slim_jax.data.records import Records, open_records
from slim_jax.data.stream import StreamData
from slim_jax.display import progress

# Records read at once: enough to amortise the call, few enough for a steady bar.
_READ = 500

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}

_OTHER_SIZES = (
  'Give image_size, such as 224, to have images of any size cropped and scaled as they are read'
)


@dataclasses.dataclass(frozen=True, eq=False)
class ArrayData:
  """A split of a data set of images, in host memory.

  Attributes:
    image: uint8 [n, height, width, channels].
    label: int32 [n], each in 0 .. num_classes - 1.
    num_classes: number of classes of the data set.
    class_names: their names, '0', '1', ... where the data set has none.
    mean: float32 [channels], mean pixel value (0 to 255) of this split.
      Normalise every split with that of the one trained on.
    std: float32 [channels], standard deviation of the same, 1 where it is zero.
  """

  image: np.ndarray
  label: np.ndarray
  num_classes: int
  class_names: tuple[str, ...]
  mean: np.ndarray
  std: np.ndarray

  def __len__(self) -> int:
    return len(self.label)

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    return self.image.shape[1:]

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns `{'image': image, 'label': label}`, to be put on a device."""
    return {'image': self.image, 'label': self.label}


Data = ArrayData | StreamData


def load(
  name: str, *, data_dir: str = '', split: str, image_size: int = 0, workers: int = 0
) -> ArrayData | StreamData:
  """Loads one split, downloading and preparing the data set if it must be.

  Args:
    name: 'digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100', 'svhn_cropped' or
      'imagenet2012'; or any data set in `data_dir` that was prepared as array_record
      or tfrecord and has an `image` and a class `label`: 'name', 'name/config' or
      'name:version'; or 'folder:/path', a folder of images with a directory for each
      class.
    data_dir: TFDS directory, `~/tensorflow_datasets` if empty; or the directory
      of one prepared data set.
    split: in the notation of TFDS, such as 'train', 'test[:1000]' or 'train+extra'. A
      folder has the splits train, val, valid, validation and test that it has
      directories of; if it has none of them, all of it is 'train'.
    image_size: 0 to read the split into memory, with images as they are and all of
      one size; or the side in pixels to which photographs of any size are cropped and
      scaled, as they are read.
    workers: processes that decode photographs; 0 for threads of this process.

  Returns:
    `ArrayData`, the whole split, or `StreamData` where there is an `image_size`. It is
    in the order of the files, which TFDS has shuffled.

  Raises:
    DataError: the data set, the split or the features needed are not there, or
      cannot be downloaded or read. The message says what to do.
  """
  records = open_records(name, data_dir=data_dir, split=split)
  if image_size:
    return StreamData(records, image_size, workers)
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


def channel_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and standard deviation of each channel, exact before rounding.

  Args:
    image: uint8 [n, height, width, channels].

  Returns:
    Two float32 [channels], in pixel values (0 to 255); the deviation is 1 where
    a channel is constant, so that one can divide by it.
  """
  values = np.arange(256)
  mean, std = [], []
  for channel in np.moveaxis(image, -1, 0):
    counts = sum(
      np.bincount(part.ravel(), minlength=256)
      for part in np.array_split(channel, 1 + len(channel) // 4096)
    )
    average = counts @ values / counts.sum()
    mean.append(average)
    std.append(np.sqrt(counts @ (values - average) ** 2 / counts.sum()) or 1)
  return np.array(mean, np.float32), np.array(std, np.float32)


def _read(records: Records):
  """Reads and decodes all records; returns images and labels."""
  channels, n = records.channels, len(records)
  image, label = None, np.empty(n, np.int32)
  starts = range(0, n, _READ)
  for start in progress.each(starts, f'reading {records.title}', total=len(starts)):
    keys = range(start, min(start + _READ, n))
    for key, record in zip(keys, records.read(list(keys))):
      one = _decode(record, channels)
      if image is None:
        channels = one.shape[-1]
        image = _allocate((n, *one.shape), records)
      if one.shape != image.shape[1:]:
        raise DataError(
          f'{records.path}: the images of {records.title} are not all of one size: '
          f'example 0 is {_size(image[0])}, example {key} is {_size(one)}. '
          f'{_OTHER_SIZES}, or prepare the data set with images of one size'
        )
      image[key] = one
      label[key] = record.label
  return image, label


def _allocate(shape, records):
  try:
    return np.empty(shape, np.uint8)
  except MemoryError as error:
    raise DataError(
      f'{records.path}: the {shape[0]} images of {records.title} need '
      f'{np.prod(shape, dtype=float) / 1e9:.0f} GB of memory. '
      f'{_OTHER_SIZES}'
    ) from error


def _decode(record, channels):
  """Returns uint8 [height, width, channels]; as the file is, if None."""
  try:
    with PIL.Image.open(io.BytesIO(record.image)) as picture:
      mode = (
        _MODES[channels]
        if channels
        else (picture.mode if picture.mode in _MODES.values() else 'RGB')
      )
      pixels = np.asarray(picture if picture.mode == mode else picture.convert(mode))
  except (OSError, SyntaxError, ValueError) as error:
    raise DataError(
      f'{record.where} is not an image that can be decoded ({error}); prepare the data set again'
    ) from error
  return pixels if pixels.ndim == 3 else pixels[..., None]


def _size(image):
  return 'x'.join(str(length) for length in image.shape)
