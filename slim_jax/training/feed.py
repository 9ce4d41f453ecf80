"""Where a training step takes its batch from: device memory, or a stream from disk.

Either way the batch of a step depends on the key and the number of the step alone, so a run that
continues sees the batches that it would have seen.
"""

from collections.abc import Callable, Generator
import contextlib
import itertools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import data
from slim_jax.data.stream import Data, StreamData, prefetch
from slim_jax.runtime import devices
from slim_jax.runtime.config import Config

PyTree = Any


class Feed(NamedTuple):
  """Batches for the compiled step.

  Attributes:
    shared: arrays that every device needs whole; they are put there once.
    steps: returns an iterator over the arrays of each step, given the number of the first one:
      [devices, ...] on the devices. Close it.
    take: `(arrays of this device, shared, step)` -> its 'image' and 'label', before augmentation;
      called inside the compiled step.
  """

  shared: PyTree
  steps: Callable[[int], Generator[PyTree, None, None]]
  take: Callable[[PyTree, PyTree, jax.Array], dict[str, jax.Array]]


def create(train_data: Data, config: Config, *, key: jax.Array) -> Feed:
  """Makes the feed of a split.

  Args:
    train_data: the training split.
    config: batch_size, over all devices of all processes, and devices.
    key: typed random key [].
  """
  if isinstance(train_data, StreamData):
    return _stream(train_data, config, key)
  return _memory(train_data, config, key)


def steps_per_epoch(train_data: Data, config: Config) -> int:
  """Returns the number of whole batches in the split.

  An epoch leaves out the remaining images, which are others in each epoch.
  """
  return len(train_data) // config.batch_size


def calibration(
  train_data: Data, config: Config, *, key: jax.Array, count: int
) -> list[dict[str, np.ndarray]]:
  """Returns batches for calibration, the same in every process.

  Args:
    train_data: the training split.
    config: batch_size.
    key: typed random key [].
    count: number of batches; at most those of an epoch.

  Returns:
    For each, 'image', float32 and normalised, without augmentation (photographs are cropped), and
    'label'.
  """
  size = config.batch_size
  count = min(count, steps_per_epoch(train_data, config))
  if isinstance(train_data, StreamData):
    stream = train_data.train_batches(size, seed=int(jax.random.bits(key)))
    with contextlib.closing(stream):
      batches = list(itertools.islice(stream, count))
  else:
    order = np.asarray(data.epoch_order(key, len(train_data)))
    arrays = train_data.arrays()
    batches = [
      {name: array[order[i * size : (i + 1) * size]] for name, array in arrays.items()}
      for i in range(count)
    ]
  mean, std = train_data.mean, train_data.std
  return [
    {**batch, 'image': np.asarray(data.normalize(jnp.asarray(batch['image']), mean, std))}
    for batch in batches
  ]


def _memory(train_data: data.ArrayData, config: Config, key: jax.Array) -> Feed:
  """Puts all images on every device; a step needs the order of its epoch."""
  places = devices.local(config.devices)
  size = config.batch_size // devices.total(places)
  epoch_steps = steps_per_epoch(train_data, config)

  def put_order(epoch: int) -> jax.Array:
    order = np.asarray(data.epoch_order(jax.random.fold_in(key, epoch), len(train_data)))
    order = order[: epoch_steps * config.batch_size]
    # Batch i is the same set of images on any number of devices.
    order = order.reshape(epoch_steps, -1, size).swapaxes(0, 1)[devices.numbers(places)]
    return devices.split(order.reshape(len(places), -1), places)

  def steps(first: int) -> Generator[jax.Array, None, None]:
    epoch, step = divmod(first, epoch_steps)
    while True:
      order = put_order(epoch)
      for _ in range(step, epoch_steps):
        yield order
      epoch, step = epoch + 1, 0

  def take(order: jax.Array, arrays: PyTree, step: jax.Array) -> dict[str, jax.Array]:
    return data.take_batch(arrays, order, step % epoch_steps * size, size)

  return Feed(train_data.arrays(), steps, take)


def _stream(train_data: StreamData, config: Config, key: jax.Array) -> Feed:
  """Decodes images on the host; a step needs its own."""
  places = devices.local(config.devices)
  seed = int(jax.random.bits(key))

  def put(batch: PyTree) -> PyTree:
    return devices.split(
      jax.tree.map(lambda x: x.reshape(len(places), -1, *x.shape[1:]), batch), places
    )

  def steps(first: int) -> Generator[PyTree, None, None]:
    # A generator: no worker process starts before the first step.
    yield from prefetch(
      train_data.train_batches(
        config.batch_size,
        seed=seed,
        start=first,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
      ),
      put,
    )

  def take(batch: PyTree, shared: PyTree, step: jax.Array) -> dict[str, jax.Array]:
    del shared, step
    return dict(batch)

  return Feed((), steps, take)
