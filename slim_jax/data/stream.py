"""A split whose images are read, decoded and cropped as they are needed.

For data sets that do not fit into memory, or whose images are not of one size. The
work is done in processes or threads by Grain, a whole batch at a time; which batch
holds which images, and how each is cropped, follows from the seed and the number of the
step alone, not from who does it.
"""

import collections
from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import functools
import os
from typing import Any

from absl import flags
import grain
import numpy as np

from slim_jax.data import photos
from slim_jax.data.errors import DataError
from slim_jax.data.records import Record, Records

# Mean and standard deviation of the channels of ImageNet, in pixel values; they serve
# for photographs of any kind.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)

# Batches that a worker process has ready beside the one it works on.
_BUFFER = 2

# Threads without worker processes: each holds a batch.
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
  def num_classes(self) -> int:
    """Number of classes of the data set."""
    return len(self.records.class_names)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Their names, '0', '1', ... where the data set has none."""
    return self.records.class_names

  @property
  def shape(self) -> tuple[int, int, int]:
    """Height, width and channels of an image."""
    return self.image_size, self.image_size, 3

  @property
  def mean(self) -> np.ndarray:
    """Mean to normalise with, float32 [3], in pixel values: that of ImageNet."""
    return np.array(MEAN, np.float32)

  @property
  def std(self) -> np.ndarray:
    """Standard deviation, likewise."""
    return np.array(STD, np.float32)

  def train_batches(
    self,
    batch_size: int,
    *,
    seed: int,
    start: int = 0,
    process_index: int = 0,
    process_count: int = 1,
  ) -> Iterator[dict[str, np.ndarray]]:
    """Random sized crops of all images, in a new order each epoch, without end.

    An epoch is `len(self) // batch_size` steps; the images left over differ from
    epoch to epoch. Batches from step `start` on are those of a call from step 0 with
    as many left out, so that nothing has to be kept to continue; and the parts of all
    processes together are the batches of one.

    Args:
      batch_size: images of a step, over all processes.
      seed: 0 .. 2**32 - 1. Everything random follows from it.
      start: number of the first step.
      process_index: which part of each batch to take.
      process_count: number of parts.

    Yields:
      `image` uint8 [batch_size / process_count, image_size, image_size, 3] and `label`
      int32 of as many. Close the iterator to end its processes.

    Raises:
      ValueError: the batch is larger than the split, or not divisible.
      DataError: an image cannot be read or decoded, or a worker process is gone.
    """
    if not 0 < batch_size <= len(self):
      raise ValueError(
        f'a batch of {batch_size} is larger than the data set of {len(self)} examples'
      )
    part = part_size(batch_size, process_count)
    crop = functools.partial(_train_example, size=self.image_size)
    # The generator of a crop is seeded by the place of its image among those of all
    # epochs and processes.
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
  ) -> Iterator[dict[str, np.ndarray]]:
    """Central crops of all images, once and in order.

    Every process gets as many batches, all of one shape. What is missing in the last
    ones is filled up with zeros, which `mask` marks, so that sums weighted by `mask`
    are exact over the whole split.

    Args:
      batch_size: images of a step, over all processes.
      process_index: which part of each batch to take.
      process_count: number of parts.

    Yields:
      `image` and `label` as `train_batches` does, and `mask` float32, 1 for examples
      and 0 for filling.

    Raises:
      ValueError: the batch is not divisible.
      DataError: an image cannot be read or decoded, or a worker process is gone.
    """
    part = part_size(batch_size, process_count)
    filled = -(-len(self) // batch_size) * batch_size
    example = functools.partial(_eval_example, records=self.records, size=self.image_size)
    batches = grain.MapDataset.range(filled).map(example).batch(part)
    return self._run(batches[process_index::process_count])

  def _run(self, batches):
    threads = 0 if self.workers else min(os.cpu_count() or 1, _MOST_THREADS)
    dataset = batches.to_iter_dataset(
      grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    )
    if self.workers:
      if not flags.FLAGS.is_parsed():  # as in a notebook; Grain asks for its own
        flags.FLAGS.mark_as_parsed()
      dataset = dataset.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=_BUFFER)
      )
    return _closing(iter(dataset), self)


def prefetch(batches: Iterator[Any], put: Callable[[Any], Any], *, depth: int = 2) -> Iterator[Any]:
  """Puts batches on devices before they are asked for.

  Args:
    batches: on the host; closed with this iterator.
    put: starts the transfer of a batch and returns what it becomes, as
      `jax.device_put` does.
    depth: batches on devices that are not in use yet, at least 1. With 2, one is
      transferred while the step before works on the other.

  Yields:
    `put(batch)` of each batch, in order.
  """
  queue = collections.deque()
  with contextlib.closing(batches):
    for batch in batches:
      queue.append(put(batch))
      if len(queue) == depth:
        yield queue.popleft()
    yield from queue


def _closing(iterator, stream):
  """Yields from an iterator of Grain, and ends its processes and threads with it."""
  try:
    yield from iterator
  except RuntimeError as error:
    if not stream.workers:
      raise
    records = stream.records
    raise DataError(
      f'{records.path}: a worker process that reads {records.title} has ended '
      f'({error}). It may have run out of memory, or of shared memory (/dev/shm): try '
      f"fewer workers, or 0 for threads. A script of one's own that uses workers must "
      f"start under `if __name__ == '__main__':`"
    ) from error
  finally:
    iterator.close()


def part_size(batch_size: int, process_count: int) -> int:
  """Images of a batch that each process takes; ValueError if it cannot be divided."""
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(f'a batch of {batch_size} cannot be divided among {process_count} processes')
  return batch_size // process_count


def _train_example(record: Record, rng: np.random.Generator, *, size: int):
  image = photos.decode(
    record.image, functools.partial(photos.random_box, rng), size, where=record.where
  )
  return {'image': image, 'label': np.int32(record.label)}


def _eval_example(index: int, *, records: Records, size: int):
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
