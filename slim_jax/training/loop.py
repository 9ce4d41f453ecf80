"""The loop around the steps of `train`: epochs, devices, progress, checkpoints.

A run is a function of its seed: the order of an epoch, the augmentation and the
dropout of a step follow from (key, step) alone, so that a run that continues from a
checkpoint is bit for bit the one that was never interrupted.
"""

from collections.abc import Callable, Mapping
import contextlib
import time
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

from slim_jax.data.stream import Data
from slim_jax.display import progress
from slim_jax.errors import SlimError
from slim_jax.runtime import devices, interrupt
from slim_jax.runtime.config import Config
from slim_jax.training import checkpoint, evaluation, feed, train_state
from slim_jax.training.steps import train_step

PyTree = Any


class DivergedError(SlimError, RuntimeError):
  """The loss is not finite any more; the message says where and what to try."""


class Task(NamedTuple):
  """One stage of training.

  Attributes:
    name: for people, such as 'sparse, pass 1'.
    epochs: how many.
    schedule: learning rate by step.
    key: typed random key [], of which everything random in the stage is derived.
  """

  name: str
  epochs: int
  schedule: optax.Schedule
  key: jax.Array


def fit(
  state: train_state.TrainState,
  train_data: Data,
  task: Task,
  *,
  config: Config,
  manager: ocp.CheckpointManager,
  seconds: float = 0.0,
  totals: Mapping[str, float] | None = None,
  record: Callable[..., None] = lambda **_: None,
  evaluate: Callable[[PyTree], evaluation.Result] | None = None,
  validate: Callable[[PyTree], evaluation.Result] | None = None,
  describe: Callable[[PyTree], dict[str, Any]] | None = None,
) -> tuple[train_state.TrainState, float]:
  """Trains from `state.step` to the end of the stage.

  Args:
    state: where to start.
    train_data: the training split.
    task: the stage.
    config: batch_size, devices, accumulate_steps, steps_per_call, augment, log_every_steps,
      checkpoint_every_epochs, eval_every_epochs.
    manager: keeps the checkpoints; the last step is always saved.
    seconds: time spent on the stage before.
    totals: of the epoch that `state` has begun, as a checkpoint has them.
    record: called once an epoch with epoch, step, loss, accuracy, learning_rate,
      images_per_second, and test_accuracy and test_loss where evaluated, likewise
      valid_accuracy and valid_loss.
    evaluate: variables -> `evaluation.Result`, called every `eval_every_epochs`.
    validate: likewise, called before every checkpoint, which keeps the accuracy as its
      score; so the manager keeps the best one.
    describe: parameters -> further metrics, called once an epoch.

  Returns:
    The trained state, on every device, and the seconds spent on the stage.

  Raises:
    DivergedError: the loss is NaN or infinite. The checkpoints before stay.
    CheckpointError: a checkpoint cannot be written.
    Preempted: SIGTERM came; a checkpoint has been saved.
  """
  began = time.monotonic() - seconds
  epoch_steps = feed.steps_per_epoch(train_data, config)
  steps = task.epochs * epoch_steps
  order_key, step_key = jax.random.split(task.key)
  places = devices.local(config.devices)
  batches = feed.create(train_data, config, key=order_key)
  run = make_step(batches, train_data, config, key=step_key)
  state, step = devices.replicate(state, places), int(state.step)
  with (
    progress.Progress(task.name, step=step, steps=steps, batch_size=config.batch_size) as shown,
    interrupt.watch() as watch,
    contextlib.closing(batches.steps(step)) as parts,
  ):
    while step < steps:
      epoch, epoch_began = step // epoch_steps, time.monotonic()
      sums = devices.replicate(_zeros(totals if step % epoch_steps else None), places)
      first, last = step, (epoch + 1) * epoch_steps
      while step < last:
        count = min(config.steps_per_call, last - step)
        part, *_ = (next(parts) for _ in range(count))
        state, sums = run(state, sums, part, count)
        step += count
        watch.begin()
        if step % config.log_every_steps < count or step == last:
          means = _means(sums, step, task, manager)
          shown.update(step, **means)
        if step < last and watch.asked():
          _means(sums, step, task, manager)  # what has diverged is not saved
          checkpoint.save(
            manager,
            step,
            state,
            seconds=time.monotonic() - began,
            totals={name: float(x) for name, x in jax.device_get(sums).items()},
          )
          _stop(manager, step, task)
      elapsed = time.monotonic() - epoch_began
      save = _due(epoch, config.checkpoint_every_epochs) or step == steps
      scores: dict[str, Any] = describe(state.params) if describe is not None else {}
      if evaluate is not None and _due(epoch, config.eval_every_epochs):
        scores['test_accuracy'], scores['test_loss'] = evaluate(train_state.variables_of(state))
      if validate is not None and save:
        scores['valid_accuracy'], scores['valid_loss'] = validate(train_state.variables_of(state))
      # Before the checkpoint: a record beyond the last checkpoint can be dropped, one
      # that is missing before it cannot be made again.
      record(
        epoch=epoch + 1,
        step=step,
        **means,
        **scores,
        learning_rate=float(task.schedule(step - 1)),
        images_per_second=(last - first) * config.batch_size / elapsed,
      )
      stop = watch.asked()
      if save or stop:
        checkpoint.save(
          manager, step, state, seconds=time.monotonic() - began, score=scores.get('valid_accuracy')
        )
      if stop:
        _stop(manager, step, task)
  checkpoint.wait(manager)
  return state, time.monotonic() - began


def make_step(
  batches: feed.Feed, train_data: Data, config: Config, *, key: jax.Array
) -> Callable[..., tuple[train_state.TrainState, PyTree]]:
  """The compiled step: takes its batch, augments, normalises and trains.

  Args:
    batches: what it takes its batch from.
    train_data: the training split, for mean and standard deviation.
    config: devices, augment, accumulate_steps and steps_per_call.
    key: typed random key [].

  Returns:
    `(state, totals, part, count)` -> `(state, totals)` after `count` steps, at most
    steps_per_call. The state is donated. totals has the sums of the metrics of the epoch and the
    number of steps; part is what `batches.steps` has for the first of the steps.
  """
  places = devices.local(config.devices)
  compiling = progress.first_time('compiling the training step')

  def step(
    state: train_state.TrainState,
    totals: PyTree,
    part: PyTree,
    device: jax.Array,
    shared: PyTree,
    key: jax.Array,
  ) -> tuple[train_state.TrainState, PyTree]:
    batch, dropout_key = feed.prepared(
      batches.take(part, shared, state.step),
      train_data,
      config,
      device,
      jax.random.fold_in(key, state.step),
    )
    state, metrics = train_step(state, batch, key=dropout_key, accumulate=config.accumulate_steps)
    return state, jax.tree.map(jnp.add, totals, {**metrics, 'steps': jnp.ones([])})

  def steps(
    state: train_state.TrainState,
    totals: PyTree,
    part: PyTree,
    device: jax.Array,
    shared: PyTree,
    key: jax.Array,
    count: jax.Array,
  ) -> tuple[train_state.TrainState, PyTree]:
    if config.steps_per_call == 1:
      return step(state, totals, part, device, shared, key)
    # Any count with one compilation: the last call of an epoch has fewer.
    return lax.fori_loop(
      0, count, lambda _, carry: step(*carry, part, device, shared, key), (state, totals)
    )

  mapped = devices.mapped(
    steps,
    places,
    in_axes=(None, None, 0, 0, None, None, None),
    out_axes=(None, None),
    donate_argnums=(0,),
    training=True,
  )
  shared, key = devices.replicate((batches.shared, key), places)
  numbers = devices.split(devices.numbers(places), places)
  wait = devices.share_threads(places)

  def run(state: train_state.TrainState, totals: PyTree, part: PyTree, count: int = 1):
    with compiling():
      state, totals = mapped(state, totals, part, numbers, shared, key, np.int32(count))
    return state, jax.block_until_ready(totals) if wait else totals

  return run


def _due(epoch: int, every: int) -> bool:
  """Whether what happens every so many epochs, 0 for never, follows this one."""
  return every > 0 and (epoch + 1) % every == 0


def _zeros(begun: Mapping[str, float] | None = None) -> PyTree:
  """Sums of the metrics of an epoch: none yet, or those it has begun with."""
  return {
    name: jnp.asarray((begun or {}).get(name, 0.0), jnp.float32)
    for name in ('loss', 'accuracy', 'steps')
  }


def _stop(manager: ocp.CheckpointManager, step: int, task: Task) -> None:
  """Raises Preempted when what was saved is written."""
  checkpoint.wait(manager)
  raise interrupt.Preempted(
    f'{task.name}: stopped at step {step}, as SIGTERM asks, and saved; the same command continues'
  )


def _means(
  totals: PyTree, step: int, task: Task, manager: ocp.CheckpointManager
) -> dict[str, float]:
  """Means of the epoch so far; raises DivergedError where they are not finite.

  One bad step spoils the sum for the rest of the epoch, so that nothing escapes.
  """
  totals = jax.device_get(totals)
  if not np.isfinite(totals['loss']):
    rate = float(task.schedule(step - 1))
    saved = manager.latest_step()
    raise DivergedError(
      f'{task.name}: the loss is not finite at step {step}, where the learning rate '
      f'is {rate:g}. Try a smaller learning_rate, or warmup_epochs for this stage'
      + (
        f'; the checkpoint of step {saved} stays in {manager.directory}.'
        if saved is not None
        else '.'
      )
    )
  return {name: float(totals[name] / totals['steps']) for name in ('loss', 'accuracy')}
