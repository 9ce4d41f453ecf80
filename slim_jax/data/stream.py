"""A split whose images are read, decoded and cropped when they are needed.

For data sets that do not fit into memory, or whose images differ in size. Grain does the work in
processes or threads, a whole batch at a time. The images of a batch and the crop of each image
depend only on the seed and the number of the step, not on the process or thread.
"""

import collections
from collections.abc import Callable, Generator
import contextlib
import dataclasses
import functools
import os
from typing import Any

from absl import flags
import grain
import numpy as np

from slim_jax.data import photos
from slim_jax.data.arrays import ArrayData
from slim_jax.data.batches import part_size
from slim_jax.data.errors import DataError
from slim_jax.data.records import Record, Records

# Mean and standard deviation of the channels of ImageNet, in pixel values. Used for photographs
# of any kind.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# Finished batches that each worker process holds.
_BUFFER = 2

# The most threads used without worker processes; each holds a batch.
_MOST_THREADS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class StreamData:
  """A split of a data set of photographs, on disk.

  Attributes:
    records: the encoded images.
    image_size: side of the square images, in pixels.
    workers: processes that decode; 0 for threads of this process.
  """

  records: Records
  image_size: int
  workers: int = 0

  def __len__(self) -> int:
    return len(self.records)

  @property
  def digest(self) -> str:
    """Hash of the names and labels of the images, or of the files that hold them."""
    return self.records.digest

  @property
  def num_classes(self) -> int:
    """Number of classes of the data set."""
    return len(self.records.class_names)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes; '0', '1', ... if the data set has none."""
    return self.records.class_names

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    return self.image_size, self.image_size, 3

  @property
  def dtype(self) -> np.dtype:
    """Dtype of the images."""
    return np.dtype(np.uint8)

  @property
  def label_shape(self) -> tuple[int, ...]:
    """Shape of the label of one image, the number of its class."""
    return ()

  @property
  def label_dtype(self) -> np.dtype:
    """Dtype of the labels."""
    return np.dtype(np.int32)

  @property
  def mean(self) -> np.ndarray:
    """Mean pixel value of ImageNet, float32 [3], to normalise with."""
    return np.array(MEAN, np.float32)

  @property
  def std(self) -> np.ndarray:
    """Standard deviation of the pixel values of ImageNet, float32 [3]."""
    return np.array(STD, np.float32)

  def train_batches(
    self,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
  ) -> Generator[dict[str, np.ndarray], None, None]:
    """Yields random sized crops of all images, in a new order each epoch, without end.

    An epoch has `len(self) // batch_size` steps; the images left over differ from epoch to epoch.
    Batch i of a call with `start` is batch `start + i` of a call without it, so no state is needed
    to continue. The parts of all processes together are the batches of a single process.

    Args:
      batch_size: number of images in a step, over all processes.
      seed: 0 .. 2**32 - 1, determines everything random.
      start: number of the first step.
      process_index: which part of each batch to take.
      process_count: number of parts.

    Yields:
      `image` uint8 [batch_size / process_count, image_size, image_size, 3] and `label` int32
      [batch_size / process_count]. Close the generator to end its processes.

    Raises:
      ValueError: the batch is larger than the split, or not divisible.
      DataError: an image cannot be read or decoded, or a worker process has ended.
    """
    if not 0 < batch_size <= len(self):
      raise ValueError(
        f'a batch of {batch_size} is larger than the data set of {len(self)} examples'
      )
    part = part_size(batch_size, process_count)
    crop = functools.partial(_train_example, size=self.image_size)
    # The generator of a crop is seeded with the index of its image in the sequence of all epochs
    # and processes.
    batches = (
      grain.MapDataset.source(self.records)
      .shuffle(seed=seed)[: len(self) // batch_size * batch_size]
      .repeat()
      .random_map(crop, seed=seed)
      .batch(part)
    )
    return self._run(batches[start * process_count + process_index :: process_count])

  def eval_batches(
    self, batch_size: int, *, process_index: int = 0, process_count: int = 1
  ) -> Generator[dict[str, np.ndarray], None, None]:
    """Yields central crops of all images, once and in order.

    Every process gets the same number of batches, all of one shape. The last ones are padded with
    zeros. `mask` marks the padding, so that sums weighted by `mask` are exact over the whole split.

    Args:
      batch_size: number of images in a step, over all processes.
      process_index: which part of each batch to take.
      process_count: number of parts.

    Yields:
      `image` and `label` as `train_batches` does, and `mask` float32, 1 for examples and 0 for
      padding.

    Raises:
      ValueError: the batch is not divisible.
      DataError: an image cannot be read or decoded, or a worker process has ended.
    """
    part = part_size(batch_size, process_count)
    padded = -(-len(self) // batch_size) * batch_size
    example = functools.partial(_eval_example, records=self.records, size=self.image_size)
    batches = grain.MapDataset.range(padded).map(example).batch(part)
    return self._run(batches[process_index::process_count])

  def _run(self, batches: grain.MapDataset) -> Generator[dict[str, np.ndarray], None, None]:
    threads = 0 if self.workers else min(os.cpu_count() or 1, _MOST_THREADS)
    dataset = batches.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if self.workers:
      if not flags.FLAGS.is_parsed():  # Grain reads its own flags, also in a notebook
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=_BUFFER)
      )
    return _closing(iter(dataset), self)


# A split of a data set: in memory, or read when it is needed.
Data = ArrayData | StreamData


def prefetch(
  batches: Generator[Any, None, None], put: Callable[[Any], Any], *, depth: int = 2
) -> Generator[Any, None, None]:
  """Puts batches on devices before they are needed.

  Args:
    batches: batches on the host; closed together with this generator.
    put: starts the transfer of a batch and returns the result, as `jax.device_put` does.
    depth: number of batches on devices that are not in use yet, at least 1. With 2, one is
      transferred while the previous step works on the other.

  Yields:
    `put(batch)` of each batch, in order.
  """
  queue: collections.deque[Any] = collections.deque()
  with contextlib.closing(batches):
    for batch in batches:
      queue.append(put(batch))
      if len(queue) == depth:
        yield queue.popleft()
    yield from queue


def _closing(iterator: Any, stream: StreamData) -> Generator[dict[str, np.ndarray], None, None]:
  """Yields from an iterator of Grain, and ends its processes and threads afterwards."""
  try:
    yield from iterator
  except RuntimeError as error:
    if not stream.workers:
      raise
    records = stream.records
    raise DataError(
      f'{records.path}: a worker process that reads {records.title} has ended '
      f'({error}). It may have run out of memory, or of shared memory (/dev/shm): try '
      f'fewer workers, or 0 for threads. A script that uses workers must start its work '
      f"under `if __name__ == '__main__':`"
    ) from error
  finally:
    iterator.close()


def _train_example(record: Record, rng: np.random.Generator, *, size: int) -> dict[str, Any]:
  image = photos.decode(
    record.image, functools.partial(photos.random_box, rng), size, where=record.where
  )
  return {'image': image, 'label': np.int32(record.label)}


def _eval_example(index: int, *, records: Records, size: int) -> dict[str, Any]:
  if index >= len(records):
    return {
      'image': np.zeros((size, size, 3), np.uint8),
      'label': np.int32(0),
      'mask': np.float32(0),
    }
  record = records[index]
  crop = functools.partial(photos.central_box, size=size)
  image = photos.decode(record.image, crop, size, where=record.where)
  return {'image': image, 'label': np.int32(record.label), 'mask': np.float32(1)}
