"""Encoded images and labels of a split, read by index from any source."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
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
  """An example as it is stored."""

  image: bytes  # PNG, JPEG or the like
  label: int  # 0 .. num_classes - 1
  where: str  # for messages: directory, index, split and, if there is one, file name


@dataclasses.dataclass(frozen=True, eq=False)
class Records:
  """The examples of a split by index. Small enough to be sent to worker processes.

  Attributes:
    source: reads the examples: `len(source)`, and `source.__getitems__(keys)`, which returns a
      list of dicts with `image` bytes, `label` int and optionally `file_name`.
    path: directory of the data set.
    title: data set and split, for messages.
    channels: number of channels of the images; None if it is not fixed.
    class_names: names of the classes; '0', '1', ... if the data set has none.
    digest: hash of the names and labels of the images, or of the files that hold them.
  """

  source: Any
  path: pathlib.Path
  title: str
  channels: int | None
  class_names: tuple[str, ...]
  digest: str

  def __len__(self) -> int:
    return len(self.source)

  @property
  def labels(self) -> np.ndarray | None:
    """Number of the class of each example, int32 [n]; None if only the examples themselves say."""
    return getattr(self.source, 'labels', None)

  def __getitem__(self, index: int) -> Record:
    (record,) = self.read([index])
    return record

  def read(self, keys: Sequence[int]) -> list[Record]:
    """Reads some examples.

    Args:
      keys: their indices.

    Returns:
      The examples, in the order of `keys`.

    Raises:
      DataError: an example cannot be read, or has no label.
    """
    try:
      examples = self.source.__getitems__(keys)
    except (RuntimeError, IndexError, KeyError, DecodeError) as error:
      raise _unreadable(self.path, self.title, error) from error
    return [self._record(key, example) for key, example in zip(keys, examples, strict=True)]

  def _record(self, key: int, example: Mapping[str, Any]) -> Record:
    name = example.get('file_name', '')
    name = name.decode(errors='replace') if isinstance(name, bytes) else name
    where = f'{self.path}: example {key} of {self.title}' + (f' ({name})' if name else '')
    label = int(example['label'])
    if not 0 <= label < len(self.class_names):
      raise DataError(
        f'{where} has the label {label}, outside '
        f'0..{len(self.class_names) - 1}; choose a split in which every '
        f'example is labelled'
      )
    return Record(example['image'], label, where)


def open_records(name: str, *, data_dir: str = '', split: str) -> Records:
  """Opens a split. Downloads and prepares the data set first if necessary.

  Args:
    name: name of the data set, see `slim_jax.data.load`.
    data_dir: directory of data sets, see `slim_jax.data.load`.
    split: in the notation of TFDS.

  Returns:
    The examples. Nothing is decoded yet.

  Raises:
    DataError: the data set, the split or a feature is missing or cannot be read.
  """
  if name.startswith(folder.PREFIX):
    source = folder.Folder(name.removeprefix(folder.PREFIX), split=split)
    return Records(source, source.path, split, None, source.class_names, source.digest)
  path = prepare.directory(name, data_dir=data_dir)
  builder = _builder(path)
  features = builder.info.features
  if not isinstance(features, tfds.features.FeaturesDict):
    raise DataError(f'{path}: the features are {features!r}, not a dict with `image` and `label`')
  image, label = _image_and_label(dict(features.items()), path)
  return Records(
    _source(builder, features, split, path),
    path,
    f'{name} {split}',
    image.shape[-1],
    tuple(label.names),
    _digest(builder, split),
  )


def _digest(builder: tfds.core.DatasetBuilder, split: str) -> str:
  """Returns a hash of the version of a data set, and of the parts of its files that are read."""
  parts = [
    (pathlib.Path(part.filename).name, part.skip, part.take, part.examples_in_shard)
    for part in builder.info.splits[split].file_instructions
  ]
  return hashlib.blake2b(repr((builder.info.full_name, parts)).encode(), digest_size=8).hexdigest()


def _builder(path: pathlib.Path) -> tfds.core.DatasetBuilder:
  try:
    return tfds.builder_from_directory(path)
  except (ValueError, json_format.ParseError) as error:
    raise DataError(
      f'{path}: dataset_info.json or features.json is damaged or missing; '
      f'prepare the data set again ({error})'
    ) from error


def _image_and_label(features: Mapping[str, Any], path: pathlib.Path) -> tuple[Any, Any]:
  """Returns the two features that are used; raises unless they are a uint8 image and a class."""
  image, label = features.get('image'), features.get('label')
  *_, channels = getattr(image, 'shape', None) or (None,)
  if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8:
    wrong = f'image is {image!r}, not tfds.features.Image() of uint8'
  elif channels not in (*CHANNELS, None):
    wrong = f'image has {channels} channels, not 1, 3 or 4'
  elif not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
    wrong = f'label is {label!r}, not tfds.features.ClassLabel() with its number of classes'
  else:
    return image, label
  raise DataError(
    f'{path}: {wrong}. The features are {", ".join(sorted(features))}; '
    f'prepare the data set with `image` and `label`'
  )


def _source(
  builder: Any,  # decorators of TFDS hide the signatures of its methods
  features: tfds.features.FeaturesDict,
  split: str,
  path: pathlib.Path,
) -> Any:
  """Opens the split for reading by index. Images stay encoded."""
  # TFDS would decode with OpenCV where it is installed, which reads some files differently from
  # PIL and is half as fast.
  decoders = {'image': tfds.decode.SkipDecoding()}
  formats = builder.info.available_file_formats()
  try:
    if formats & tfds.core.FileFormat.with_random_access():
      source: Any = builder.as_data_source(split, decoders=decoders)
    elif tfds.core.FileFormat.TFRECORD in formats:
      source = tfrecord.TfRecords(builder.info.splits[split].file_instructions, features, decoders)
    else:
      raise DataError(
        f'{path} is in the format {", ".join(sorted(each.value for each in formats))}, which '
        f'cannot be read without TensorFlow. If slim_jax can prepare the data set, give another '
        f'data_dir; otherwise convert it on a machine with TensorFlow: '
        f'tfds convert_format --dataset_version_dir={path} '
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


def _unreadable(path: pathlib.Path, title: str, error: Exception) -> DataError:
  return DataError(
    f'{path}: the files of {title!r} are damaged or missing '
    f'({error}). Remove the directory and prepare the data set again'
  )
