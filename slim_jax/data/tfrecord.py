"""Records of TFRecord files by index, without TensorFlow.

TFDS writes this format unless told otherwise, so that data sets are often there in it
already. It has no index: one is made by walking through the files once, a few
microseconds for each record on a local disk.
"""

from collections.abc import Mapping, Sequence
import os
import struct
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

# A record: its length, a checksum of that, the bytes, a checksum of those.
_LENGTH = struct.Struct('<Q')
_HEADER, _FOOTER = _LENGTH.size + 4, 4


class TfRecords:
  """Examples of a split that TFDS has prepared as tfrecord.

  Args:
    instructions: of `builder.info.splits[split].file_instructions`.
    features: of the data set.
    decoders: as TFDS takes them.

  Raises:
    RuntimeError: a file is missing or does not hold what it should.
  """

  def __init__(
    self,
    instructions: Sequence[Any],
    features: tfds.features.FeaturesDict,
    decoders: Mapping[str, Any],
  ):
    self._files = [os.fspath(one.filename) for one in instructions]
    self._features, self._decoders = features, decoders
    places = [_places(one) for one in instructions]
    self._file = np.repeat(np.arange(len(places), dtype=np.int32), [len(part) for part in places])
    self._place = np.concatenate([*places, np.empty((0, 2), np.int64)])

  def __len__(self) -> int:
    return len(self._file)

  def __getitems__(self, keys: Sequence[int]) -> list[dict[str, Any]]:
    """Reads some examples; raises RuntimeError where a file cannot be read."""
    return [
      self._features.deserialize_example_np(self._bytes(key), decoders=self._decoders)
      for key in keys
    ]

  def _bytes(self, key):
    # Opened each time: simple, safe in threads, and little beside reading an image.
    offset, length = self._place[key]
    try:
      with open(self._files[self._file[key]], 'rb') as file:
        file.seek(offset)
        return file.read(length)
    except OSError as error:
      raise RuntimeError(str(error)) from error


def _places(instruction):
  """Offset and length of the records of a file that a split takes, int64 [n, 2]."""
  path, found, offset = os.fspath(instruction.filename), [], 0
  try:
    with open(path, 'rb', buffering=0) as file:
      size = os.fstat(file.fileno()).st_size
      while offset + _HEADER <= size and len(found) < instruction.examples_in_shard:
        file.seek(offset)
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        found.append((offset + _HEADER, length))
        offset += _HEADER + length + _FOOTER
  except OSError as error:
    raise RuntimeError(str(error)) from error
  if offset != size or len(found) != instruction.examples_in_shard:
    raise RuntimeError(
      f'{path} does not hold {instruction.examples_in_shard} records in {size} bytes'
    )
  part = found[instruction.skip : instruction.skip + instruction.take]
  return np.array(part, np.int64).reshape(-1, 2)
