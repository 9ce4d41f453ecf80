"""Encoded images and labels of a split, read by index, wherever they are kept."""

from collections.abc import Sequence
import dataclasses
import pathlib
from typing import Any, NamedTuple

from google.protobuf import json_format
from google.protobuf.message import DecodeError
import numpy as np
import tensorflow_datasets as tfds

from slim_jax.data import folder, prepare, tfrecord
from slim_jax.data.errors import DataError

CHANNELS = (1, 3, 4)


class Record(NamedTuple):
  """An example as it is kept."""

  image: bytes  # PNG, JPEG or the like
  label: int  # 0 .. num_classes - 1
  where: str  # for messages: directory, number, split and, if it has one, file name


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """The examples of a split by index; small, so that processes can be given it.

  Attributes:
    source: what reads them: `len(source)`, and `source.__getitems__(keys)`, a list of
      dicts with `image` bytes, `label` int and perhaps `file_name`.
    path: directory they are in.
    title: data set and split, for messages.
    channels: of the images, None where any number goes.
    class_names: '0', '1', ... where the data set has none.
  """

  source: Any
  path: pathlib.Path
  title: str
  channels: int | None
  class_names: tuple[str, ...]

  def __len__(self) -> int:
    return len(self.source)

  def __getitem__(self, index: int) -> Record:
    (record,) = self.read([index])
    return record

  def read(self, keys: Sequence[int]) -> list[Record]:
    """Reads some examples.

    Args:
      keys: their indices.

    Returns:
      The examples, in that order.

    Raises:
      DataError: they cannot be read, or one is not labelled.
    """
    try:
      found = self.source.__getitems__(keys)
    except (RuntimeError, IndexError, KeyError, DecodeError) as error:
      raise _unreadable(self.path, self.title, error) from error
    return [self._record(key, one) for key, one in zip(keys, found, strict=True)]

  def _record(self, key, found):
    name = found.get('file_name', '')
    name = name.decode(errors='replace') if isinstance(name, bytes) else name
    where = f'{self.path}: example {key} of {self.title}' + (f' ({name})' if name else '')
    label = int(found['label'])
    if not 0 <= label < len(self.class_names):
      raise DataError(
        f'{where} has the label {label}, outside '
        f'0..{len(self.class_names) - 1}; choose a split in which every '
        f'example is labelled'
      )
    return Record(found['image'], label, where)


def open_records(name: str, *, data_dir: str = '', split: str) -> Records:
  """Opens a split, downloading and preparing the data set if it must be.

  Args:
    name: as `slim_jax.data.load` takes it.
    data_dir: likewise.
    split: in the notation of TFDS.

  Returns:
    The examples. Nothing is decoded yet.

  Raises:
    DataError: data set, split or features are not there, or cannot be read.
  """
  if name.startswith(folder.PREFIX):
    source = folder.Folder(name.removeprefix(folder.PREFIX), split=split)
    return Records(source, source.path, split, None, source.class_names)
  path = prepare.directory(name, data_dir=data_dir)
  builder = _builder(path)
  features = dict(builder.info.features.items())
  _check_features(features, path)
  return Records(
    _source(builder, split, path),
    path,
    f'{name} {split}',
    features['image'].shape[-1],
    tuple(features['label'].names),
  )


def _builder(path):
  try:
    return tfds.builder_from_directory(path)
  except (ValueError, json_format.ParseError) as error:
    raise DataError(
      f'{path}: dataset_info.json or features.json is damaged or '
      f'missing; prepare the data set again ({error})'
    ) from error


def _check_features(features, path):
  """Raises unless there is a uint8 image and a class label."""
  image, label = features.get('image'), features.get('label')
  if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
    wrong = f'image is {image!r}, not tfds.features.Image() of uint8'
  elif image.shape[-1] not in (*CHANNELS, None):
    wrong = f'image has {image.shape[-1]} channels, not 1, 3 or 4'
  elif not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
    wrong = f'label is {label!r}, not tfds.features.ClassLabel() with its number of classes'
  else:
    return
  raise DataError(
    f'{path}: {wrong}. The features are {", ".join(sorted(features))}; '
    f'prepare the data set with `image` and `label`'
  )


def _source(builder, split, path):
  """Opens the split for reading by index, images left encoded."""
  # Decoding is left out because TFDS takes OpenCV where it is installed, which
  # reads some files otherwise than PIL does; and PIL alone is twice as fast.
  decoders = {'image': tfds.decode.SkipDecoding()}
  formats = builder.info.available_file_formats()
  try:
    if formats & tfds.core.FileFormat.with_random_access():
      source = builder.as_data_source(split, decoders=decoders)
    elif tfds.core.FileFormat.TFRECORD in formats:
      source = tfrecord.TfRecords(
        builder.info.splits[split].file_instructions, builder.info.features, decoders
      )
    else:
      raise DataError(
        f'{path} is in the format {builder.info.file_format.value}, which cannot be '
        f'read without TensorFlow. Give another data_dir, to have a data set that '
        f'slim_jax knows prepared afresh; or convert it where TensorFlow is '
        f'installed: tfds convert_format --dataset_version_dir={path} '
        f'--out_file_format=array_record --out_dir=NEW_DATA_DIR'
      )
  except (ValueError, KeyError) as error:
    raise DataError(
      f'{path} has no split {split!r}. It has '
      f'{", ".join(builder.info.splits)}, and parts and sums of them such as '
      f"'train[:1000]' or 'train+test' ({error})"
    ) from error
  except RuntimeError as error:
    raise _unreadable(path, split, error) from error
  if not len(source):
    raise DataError(f'{path}: the split {split!r} is empty')
  return source


def _unreadable(path, title, error):
  return DataError(
    f'{path}: the files of {title!r} are damaged or missing '
    f'({error}). Remove the directory and prepare the data set again'
  )
