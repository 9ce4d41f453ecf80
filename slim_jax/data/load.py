"""Reads a split of a TFDS data set into memory, without TensorFlow."""

import dataclasses
import io
import sys

from google.protobuf import json_format
from google.protobuf.message import DecodeError
import numpy as np
import PIL.Image
import tensorflow_datasets as tfds
import tqdm

from slim_jax.data import prepare
from slim_jax.data.errors import DataError

# Records read at once: enough to amortise the call, few enough for a steady bar.
_READ = 500

_MODES = {1: 'L', 3: 'RGB', 4: 'RGBA'}


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

  def arrays(self) -> dict[str, np.ndarray]:
    """Returns `{'image': image, 'label': label}`, to be put on a device."""
    return {'image': self.image, 'label': self.label}


def load(name: str, *, data_dir: str = '', split: str) -> ArrayData:
  """Loads one split, downloading and preparing the data set if it must be.

  Args:
    name: 'digits', 'mnist', 'fashion_mnist', 'cifar10', 'cifar100' or
      'svhn_cropped'; or any data set in `data_dir` that was prepared as
      array_record and has an `image`, all of one size, and a class `label`:
      'name', 'name/config' or 'name:version'.
    data_dir: TFDS directory, `~/tensorflow_datasets` if empty; or the directory
      of one prepared data set.
    split: of TFDS, such as 'train', 'test[:1000]' or 'train+extra'.

  Returns:
    The whole split. It is in the order of the files, which TFDS has shuffled.

  Raises:
    DataError: the data set, the split or the features needed are not there, or
      cannot be downloaded or read. The message says what to do.
  """
  path = prepare.directory(name, data_dir=data_dir)
  builder = _open(path)
  _check_features(builder.info.features, path)
  source = _source(builder, split, path)
  image, label = _read(source, f'{name} {split}', path)
  feature = builder.info.features['label']
  outside = np.flatnonzero((label < 0) | (label >= feature.num_classes))
  if outside.size:
    raise DataError(
        f'{path}, split {split!r}: example {outside[0]} has the label '
        f'{label[outside[0]]}, outside 0..{feature.num_classes - 1}; choose a split '
        f'in which every example is labelled')
  mean, std = channel_statistics(image)
  return ArrayData(image=image, label=label, num_classes=feature.num_classes,
                   class_names=tuple(feature.names), mean=mean, std=std)


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
    counts = sum(np.bincount(part.ravel(), minlength=256)
                 for part in np.array_split(channel, 1 + len(channel) // 4096))
    average = counts @ values / counts.sum()
    mean.append(average)
    std.append(np.sqrt(counts @ (values - average)**2 / counts.sum()) or 1)
  return np.array(mean, np.float32), np.array(std, np.float32)


def _open(path):
  try:
    builder = tfds.builder_from_directory(path)
  except (ValueError, json_format.ParseError) as error:
    raise DataError(f'{path}: dataset_info.json or features.json is damaged or '
                    f'missing; prepare the data set again ({error})') from error
  readable = tfds.core.FileFormat.with_random_access()
  if not builder.info.available_file_formats() & readable:
    raise DataError(
        f'{path} is in the format {builder.info.file_format.value}, which cannot be '
        f'read without TensorFlow. Give another data_dir, to have a data set that '
        f'slim_jax knows prepared afresh; or convert it where TensorFlow is '
        f'installed: tfds convert_format --dataset_version_dir={path} '
        f'--out_file_format=array_record --out_dir=NEW_DATA_DIR')
  return builder


def _check_features(features, path):
  """Raises unless there is a uint8 image and a class label."""
  features = dict(features.items())
  image, label = features.get('image'), features.get('label')
  if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
    wrong = f'image is {image!r}, not tfds.features.Image() of uint8'
  elif image.shape[-1] not in (*_MODES, None):
    wrong = f'image has {image.shape[-1]} channels, not 1, 3 or 4'
  elif not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
    wrong = (f'label is {label!r}, not tfds.features.ClassLabel() with its number of '
             f'classes')
  else:
    return
  raise DataError(f'{path}: {wrong}. The features are {", ".join(sorted(features))}; '
                  f'prepare the data set with `image` and `label`')


def _source(builder, split, path):
  """Opens the split for reading by index, images left encoded."""
  # Decoding is left out because TFDS takes OpenCV where it is installed, which
  # reads some files otherwise than PIL does; and PIL alone is twice as fast.
  try:
    source = builder.as_data_source(
        split, decoders={'image': tfds.decode.SkipDecoding()})
  except ValueError as error:
    raise DataError(
        f'{path} has no split {split!r}. It has '
        f'{", ".join(builder.info.splits)}, and parts and sums of them such as '
        f"'train[:1000]' or 'train+test' ({error})") from error
  except RuntimeError as error:
    raise _unreadable(path, split, error) from error
  if not len(source):
    raise DataError(f'{path}: the split {split!r} is empty')
  return source


def _read(source, title, path):
  """Reads and decodes all records; returns images and labels."""
  channels = source.dataset_info.features['image'].shape[-1]
  n = len(source)
  image, label = None, np.empty(n, np.int32)
  with tqdm.tqdm(total=n, desc=title, unit=' images', leave=False,
                 disable=not sys.stderr.isatty()) as bar:
    for start in range(0, n, _READ):
      keys = list(range(start, min(start + _READ, n)))
      try:
        records = source.__getitems__(keys)
      except (RuntimeError, IndexError, KeyError, DecodeError) as error:
        raise _unreadable(path, source.split, error) from error
      for key, record in zip(keys, records):
        one = _decode(record['image'], channels, f'{path}: example {key} of {title}')
        if image is None:
          channels = one.shape[-1]
          image = np.empty((n, *one.shape), np.uint8)
        if one.shape != image.shape[1:]:
          raise DataError(
              f'{path}: the images of {title} are not all of one size: example 0 is '
              f'{_size(image[0])}, example {key} is {_size(one)}. Prepare the data '
              f'set with images of one size')
        image[key] = one
        label[key] = record['label']
      bar.update(len(keys))
  return image, label


def _decode(encoded, channels, where):
  """Returns uint8 [height, width, channels]; as the file is, if None."""
  try:
    with PIL.Image.open(io.BytesIO(encoded)) as picture:
      mode = _MODES[channels] if channels else (
          picture.mode if picture.mode in _MODES.values() else 'RGB')
      pixels = np.asarray(
          picture if picture.mode == mode else picture.convert(mode))
  except (OSError, SyntaxError, ValueError) as error:
    raise DataError(f'{where} is not an image that can be decoded ({error}); prepare '
                    f'the data set again') from error
  return pixels if pixels.ndim == 3 else pixels[..., None]


def _size(image):
  return 'x'.join(str(length) for length in image.shape)


def _unreadable(path, split, error):
  return DataError(f'{path}: the files of the split {split!r} are damaged or missing '
                   f'({error}). Remove the directory and prepare the data set again')
