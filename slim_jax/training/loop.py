"""The training loop: compiled steps over epochs, from wherever a stage was left.

A stage is a function of its seed: the order of an epoch, the augmentation and the dropout of a step
follow from (key, step) alone. A run that continues from a checkpoint is therefore bit for bit the
run that was never interrupted.
"""

from collections.abc import Callable, Generator, Iterable, Mapping
import contextlib
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from slim_jax.data.stream import Data
from slim_jax.display import progress
from slim_jax.errors import SlimError
from slim_jax.runtime import devices, interrupt
from slim_jax.runtime.config import Config
from slim_jax.training import distillation, feed, losses, mixing, steps
from slim_jax.training.train_state import TrainState

PyTree = Any
# Sums of the metrics of an epoch, float32 [] by name, and the number of its steps.
Totals = dict[str, jax.Array]


class DivergedError(SlimError, RuntimeError):
  """A loss or a parameter is no longer finite; the message says where and what to try."""


class Task(NamedTuple):
  """One stage of training.

  Attributes:
    name: for people, such as 'sparse, pass 1'.
    epochs: how many.
    schedule: learning rate by step.
    key: typed random key [], from which everything random in the stage is derived.
    teacher: whose outputs are a part of the loss; None for nobody.
  """

  name: str
  epochs: int
  schedule: optax.Schedule
  key: jax.Array
  teacher: distillation.Teacher | None = None


class Epoch(NamedTuple):
  """A trained epoch, or its first steps if the run was asked to stop.

  Attributes:
    number: 1 for the first epoch of the stage.
    step: optimiser steps taken in the stage.
    state: on every device. The next step consumes it, so use it before asking for another epoch.
    loss: mean over the steps of the epoch; nats for classification.
    metrics: likewise the mean of each metric of the loss, such as 'accuracy', 0 to 1.
    learning_rate: of the last step.
    images_per_second: over the steps that this call has trained.
    totals: for `fit`, to continue within the epoch; empty if the epoch is complete.
  """

  number: int
  step: int
  state: TrainState
  loss: float
  metrics: dict[str, float]
  learning_rate: float
  images_per_second: float
  totals: dict[str, float]

  @property
  def is_complete(self) -> bool:
    """Whether all steps of the epoch have been taken."""
    return not self.totals


def fit(
  state: TrainState,
  train_data: Data,
  task: Task,
  *,
  config: Config,
  watch: interrupt.Watch,
  totals: Mapping[str, float] | None = None,
  objective: losses.Objective = losses.CLASSIFICATION,
  note: Callable[[], str] = str,
) -> Generator[Epoch, None, None]:
  """Trains from `state.step` to the end of the stage.

  Close the iterator (`contextlib.closing`) to stop early: it may hold worker processes.

  Args:
    state: where to start.
    train_data: the training split.
    task: the stage.
    config: batch_size, devices, accumulate_steps, steps_per_call, augment, log_every_steps.
    watch: asked after every call of the compiled step whether to stop.
    totals: `Epoch.totals` of an incomplete epoch that ended with `state`.
    objective: loss and metrics.
    note: returns something else to show beside the progress.

  Yields:
    Every epoch. An incomplete one is the last: the run was asked to stop.

  Raises:
    DivergedError: the loss, a parameter or a statistic is NaN or infinite.
  """
  epoch_steps = feed.steps_per_epoch(train_data, config)
  end = task.epochs * epoch_steps
  order_key, step_key = jax.random.split(task.key)
  places = devices.local(config.devices)
  batches = feed.create(train_data, config, key=order_key)
  run = make_step(
    batches, train_data, config, key=step_key, objective=objective, teacher=task.teacher
  )
  state, step = devices.replicate(state, places), int(state.step)
  with (
    progress.Progress(
      task.name, step=step, steps=end, epoch_steps=epoch_steps, batch_size=config.batch_size
    ) as shown,
    contextlib.closing(batches.steps(step)) as parts,
  ):
    while step < end:
      began, first = time.monotonic(), step
      last = (step // epoch_steps + 1) * epoch_steps
      sums = devices.replicate(
        _totals(objective.metrics, totals if step % epoch_steps else None), places
      )
      asked = False
      while step < last and not asked:
        count = min(config.steps_per_call, last - step)
        part, *_ = (next(parts) for _ in range(count))
        state, sums = run(state, sums, part, count)
        step += count
        watch.begin()
        if step % config.log_every_steps < count or step == last:
          shown.update(step, note=note(), **_means(sums, step, task))
        asked = step < last and bool(watch.asked())
      means = _means(sums, step, task)
      # The loss is that before the update of the last step.
      check_finite((state.params, state.batch_stats), _where('a parameter', step, task))
      elapsed = time.monotonic() - began
      yield Epoch(
        number=first // epoch_steps + 1,
        step=step,
        state=state,
        loss=means.pop('loss'),
        metrics=means,
        learning_rate=_rate(task, step),
        images_per_second=(step - first) * config.batch_size / elapsed,
        totals={name: float(x) for name, x in jax.device_get(sums).items()} if asked else {},
      )
      if asked:
        return


def make_step(
  batches: feed.Feed,
  train_data: Data,
  config: Config,
  *,
  key: jax.Array,
  objective: losses.Objective = losses.CLASSIFICATION,
  teacher: distillation.Teacher | None = None,
) -> Callable[..., tuple[TrainState, Totals]]:
  """Makes the compiled step, which takes its batch, augments, normalises and trains.

  Args:
    batches: where it takes its batch from.
    train_data: the training split, for mean and standard deviation.
    config: devices, augment, accumulate_steps, steps_per_call, label_smoothing, mixup, cutmix.
    key: typed random key [].
    objective: loss and metrics.
    teacher: whose outputs are a part of the loss; None for nobody.

  Returns:
    `(state, totals, part, count)` -> `(state, totals)` after `count` steps, at most
    steps_per_call. The state is donated. `totals` are the sums of the metrics of the epoch;
    `part` is what `batches.steps` yields for the first of the steps.
  """
  places = devices.local(config.devices)
  compiling = progress.first_time('compiling the training step')
  mixed = mixing.create(config, train_data.num_classes)
  loss = teacher.loss(objective.loss) if teacher else objective.loss

  def step(
    state: TrainState,
    totals: Totals,
    part: PyTree,
    device: jax.Array,
    shared: PyTree,
    key: jax.Array,
  ) -> tuple[TrainState, Totals]:
    shared, learned = shared
    batch, dropout_key = steps.prepare(
      batches.take(part, shared, state.step),
      device=device,
      augment=config.augment,
      mean=train_data.mean,
      std=train_data.std,
      key=jax.random.fold_in(key, state.step),
      mixed=mixed,
    )
    if teacher:
      batch['teacher'] = lax.stop_gradient(teacher.predict(learned, batch['image']))
    state, metrics = steps.train_step(
      state, batch, key=dropout_key, accumulate=config.accumulate_steps, loss=loss
    )
    return state, jax.tree.map(jnp.add, totals, {**metrics, 'steps': jnp.ones([])})

  def several(
    state: TrainState, totals: Totals, count: jax.Array, *rest
  ) -> tuple[TrainState, Totals]:
    if config.steps_per_call == 1:
      return step(state, totals, *rest)
    # A loop takes any count with one compilation: the last call of an epoch has fewer steps.
    return lax.fori_loop(0, count, lambda _, carry: step(*carry, *rest), (state, totals))

  mapped = devices.mapped(
    several,
    places,
    in_axes=(None, None, None, 0, 0, None, None),
    out_axes=(None, None),
    donate_argnums=(0,),
    training=True,
  )
  learned = teacher.variables if teacher else ()
  shared, key = devices.replicate(((batches.shared, learned), key), places)
  numbers = devices.split(devices.numbers(places), places)
  wait = devices.share_threads(places)

  def run(
    state: TrainState, totals: Totals, part: PyTree, count: int = 1
  ) -> tuple[TrainState, Totals]:
    with compiling():
      state, totals = mapped(state, totals, np.int32(count), part, numbers, shared, key)
    return state, jax.block_until_ready(totals) if wait else totals

  return run


def check_finite(values: PyTree, what: str) -> None:
  """Raises DivergedError, with `what` is not finite, unless all values are finite."""
  if not all(np.isfinite(x).all() for x in jax.tree.leaves(jax.device_get(values))):
    raise DivergedError(
      f'{what} is not finite. Try a smaller learning_rate, or warmup_epochs for this stage'
    )


def _where(what: str, step: int, task: Task) -> str:
  """Says where something is: in which stage, and at which step and learning rate."""
  return f'{task.name}: at step {step}, where the learning rate is {_rate(task, step):g}, {what}'


def _totals(names: Iterable[str], begun: Mapping[str, float] | None = None) -> Totals:
  """Returns the sums that an epoch starts with: zeros, or those it was interrupted with."""
  return {
    name: jnp.asarray((begun or {}).get(name, 0.0), jnp.float32)
    for name in ('loss', *names, 'steps')
  }


def _rate(task: Task, step: int) -> float:
  """Returns the learning rate of the step that led to `step`."""
  return float(np.asarray(task.schedule(step - 1)))


def _means(totals: Totals, step: int, task: Task) -> dict[str, float]:
  """Returns the means of the epoch so far; raises DivergedError if the loss is not finite.

  One bad step spoils the sum for the rest of the epoch, so no step escapes.
  """
  sums = jax.device_get(totals)
  check_finite(sums['loss'], _where('the loss', step, task))
  count = sums.pop('steps')
  return {name: float(value / count) for name, value in sums.items()}
