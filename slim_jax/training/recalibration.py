"""New BatchNorm statistics for a network that has been cut."""

from collections.abc import Callable
import contextlib
from typing import Any

import jax
import jax.numpy as jnp

from slim_jax.data.stream import Data
from slim_jax.display import progress
from slim_jax.runtime import devices
from slim_jax.runtime.config import Config
from slim_jax.training import feed, steps, train_state

PyTree = Any


def make_recalibrate(
  train_data: Data, *, config: Config, key: jax.Array
) -> Callable[[train_state.TrainState], train_state.TrainState]:
  """Makes a function that estimates BatchNorm statistics with the current weights.

  The running statistics of a network that was cut describe the activations before the cut, and
  average over the weights of many steps.

  Args:
    train_data: the training split.
    config: recalibrate_batches (at most an epoch of them), batch_size, devices, augment.
    key: typed random key [].

  Returns:
    state -> the state with the mean of the statistics of the batches, on every device. Every call
    uses the same batches.

  References:
    Li et al., EagleEye, ECCV 2020.
  """
  places = devices.local(config.devices)
  order_key, step_key = jax.random.split(key)
  batches = feed.create(train_data, config, key=order_key)
  count = min(config.recalibrate_batches, feed.steps_per_epoch(train_data, config))

  def step(
    state: train_state.TrainState,
    totals: PyTree,
    part: PyTree,
    device: jax.Array,
    number: jax.Array,
    shared: PyTree,
    key: jax.Array,
  ) -> PyTree:
    batch, key = steps.prepare(
      batches.take(part, shared, number),
      device=device,
      augment=config.augment,
      mean=train_data.mean,
      std=train_data.std,
      key=jax.random.fold_in(key, number),
    )
    statistics = steps.batch_statistics(state, batch['image'], key=key)
    return jax.tree.map(lambda total, x: total + x / count, totals, statistics)

  mapped = devices.mapped(
    step, places, in_axes=(None, None, 0, 0, None, None, None), out_axes=None, training=True
  )
  shared, step_key = devices.replicate((batches.shared, step_key), places)
  numbers = devices.split(devices.numbers(places), places)

  def recalibrate(state: train_state.TrainState) -> train_state.TrainState:
    state = devices.replicate(state, places)
    totals = jax.tree.map(jnp.zeros_like, state.batch_stats)
    with contextlib.closing(batches.steps(0)) as parts:
      for number, part in progress.each(zip(range(count), parts), 'recalibrating', total=count):
        totals = jax.block_until_ready(
          mapped(state, totals, part, numbers, jnp.asarray(number), shared, step_key)
        )
    return state.replace(batch_stats=totals)

  return recalibrate
