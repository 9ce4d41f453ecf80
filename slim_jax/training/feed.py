"""Where a training step takes its batch from: device memory, or a stream from disk.

Either way the batch of a step follows from the key and the number of the step alone, so that
a run that continues sees what it would have seen.
"""

from collections.abc import Callable, Iterator
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
    shared: arrays that every device needs whole, put there once.
    steps: from the number of the first step, an iterator over what each step from there on needs,
      [devices, ...] on the devices. Close it.
    take: `(part of this device, shared, step)` -> its 'image' and 'label', before augmentation;
      called inside the compiled step.
  """

  shared: PyTree
  steps: Callable[[int], Iterator[PyTree]]
  take: Callable[[PyTree, PyTree, jax.Array], dict[str, jax.Array]]


def create(train_data: Data, config: Config, *, key: jax.Array) -> Feed:
  """The feed of a split.

  Args:
    train_data: the training split.
    config: batch_size, over all devices of all processes, and devices.
    key: typed random key [].
  """
  make = _stream if isinstance(train_data, StreamData) else _memory
  return make(train_data, config, key)


def steps_per_epoch(train_data: Data, config: Config) -> int:
  """Whole batches in the split; what is left over differs from epoch to epoch."""
  return len(train_data) // config.batch_size


def _memory(train_data: data.ArrayData, config: Config, key: jax.Array) -> Feed:
  """All images lie on every device; a step needs the order of the epoch."""
  places = devices.local(config.devices)
  size = config.batch_size // devices.total(places)
  epoch_steps = steps_per_epoch(train_data, config)

  def put_order(epoch: int) -> jax.Array:
    order = np.asarray(data.epoch_order(jax.random.fold_in(key, epoch), len(train_data)))
    order = order[: epoch_steps * config.batch_size]
    # Batch i is the same set of images on any number of devices.
    order = order.reshape(epoch_steps, -1, size).swapaxes(0, 1)[devices.numbers(places)]
    return devices.split(order.reshape(len(places), -1), places)

  def steps(first: int) -> Iterator[jax.Array]:
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
  """A step needs its images, which come decoded from the host."""
  places = devices.local(config.devices)
  seed = int(jax.random.bits(key))

  def put(batch: PyTree) -> PyTree:
    return devices.split(
      jax.tree.map(lambda x: x.reshape(len(places), -1, *x.shape[1:]), batch), places
    )

  def steps(first: int) -> Iterator[PyTree]:
    # A generator, so that no process starts where no step is left.
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


def prepared(
  batch: PyTree, train_data: Data, config: Config, device: jax.Array, key: jax.Array
) -> tuple[PyTree, jax.Array]:
  """A batch augmented and normalised, inside a compiled step, and a key for dropout.

  Every image has a key by its place in the whole batch, so that the number of devices does not
  matter to what is done to it. `device` is the number of this one among all; the index along the
  mapped axis may have another order.
  """
  count = len(batch['label'])
  augment_key, dropout_key = jax.random.split(key)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, device * count + jnp.arange(count))
  image = jax.vmap(lambda key, one: data.augment(key, one[None], **config.augment)[0])(
    keys, batch['image']
  )
  return (
    {**batch, 'image': data.normalize(image, train_data.mean, train_data.std)},
    jax.random.fold_in(dropout_key, device),
  )
