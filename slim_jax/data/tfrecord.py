"""Reads TFRecord files by index, without TensorFlow.

TFDS writes this format by default, so prepared data sets often have it. The format has no index:
one is made by reading through the files once, a few microseconds per record on a local disk.
"""

from collections.abc import Mapping, Sequence
import os
import struct
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# A record is its length, a checksum of the length, the bytes, and a checksum of the bytes.
_LENGTH = struct.Struct('<Q')
_HEADER, _FOOTER = _LENGTH.size + 4, 4


class TfRecords:
  """Examples of a split that TFDS has prepared as tfrecord.

  Args:
    instructions: `builder.info.splits[split].file_instructions`.
    features: features of the data set.
    decoders: decoders in the form that TFDS takes.

  Raises:
    RuntimeError: a file is missing, or does not hold the expected number of records.
  """

  def __init__(
    self,
    instructions: Sequence[Any],
    features: tfds.features.FeaturesDict,
    decoders: Mapping[str, Any],
  ):
    self._files = [os.fspath(each.filename) for each in instructions]
    self._features, self._decoders = features, decoders
    spans = [_spans(each) for each in instructions]
    self._file = np.repeat(np.arange(len(spans), dtype=np.int32), [len(part) for part in spans])
    self._span = np.concatenate([*spans, np.empty((0, 2), np.int64)])

  def __len__(self) -> int:
    return len(self._file)

  def __getitems__(self, keys: Sequence[int]) -> list[Any]:
    """Reads some examples, dicts by feature; raises RuntimeError if a file cannot be read."""
    return [
      self._features.deserialize_example_np(self._bytes(key), decoders=self._decoders)
      for key in keys
    ]

  def _bytes(self, key: int) -> bytes:
    # Opened each time: simple, safe in threads, and cheap beside reading an image.
    offset, length = self._span[key]
    try:
      with open(self._files[self._file[key]], 'rb') as file:
        file.seek(offset)
        return file.read(length)
    except OSError as error:
      raise RuntimeError(str(error)) from error


def _spans(instruction: Any) -> np.ndarray:
  """Returns offset and length of the records that a split takes from a file, int64 [n, 2]."""
  path, offset, size = os.fspath(instruction.filename), 0, 0
  spans: list[tuple[int, int]] = []
  try:
    with open(path, 'rb', buffering=0) as file:
      size = os.fstat(file.fileno()).st_size
      while offset + _HEADER <= size and len(spans) < instruction.examples_in_shard:
        file.seek(offset)
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        spans.append((offset + _HEADER, length))
        offset += _HEADER + length + _FOOTER
  except OSError as error:
    raise RuntimeError(str(error)) from error
  if offset != size or len(spans) != instruction.examples_in_shard:
    raise RuntimeError(
      f'{path} does not hold {instruction.examples_in_shard} records in {size} bytes'
    )
  part = spans[instruction.skip : instruction.skip + instruction.take]
  return np.array(part, np.int64).reshape(-1, 2)
