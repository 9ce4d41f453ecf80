"""How a stage trains: epochs, learning rate, random key and optimiser."""

from typing import NamedTuple

import jax
import optax

import slim_jax
from slim_jax.runs import finished, gated, stages
from slim_jax.runs.network import Network
from slim_jax.runs.run import Run
from slim_jax.runs.stages import Stage
from slim_jax.training import distillation, feed, loop, optimiser


class Recipe(NamedTuple):
  """How a stage trains. A stage without training needs it for its optimiser state only.

  Attributes:
    task: name, epochs, learning rate and random key.
    length: optimiser steps of the stage and of an epoch.
    strength: largest strength of the sparsity term; 0 in all but sparse stages.
    tx: optax transformation of the gradients.
  """

  task: loop.Task
  length: optimiser.Length
  strength: float
  tx: optax.GradientTransformation


def create(run: Run, stage: Stage, net: Network) -> Recipe:
  """Returns the recipe of a stage that starts from the network `net`."""
  task = _task(run, stage, net)
  epoch_steps = feed.steps_per_epoch(run.train_data, run.config)
  length = optimiser.Length(task.epochs * epoch_steps, epoch_steps)
  strength = 0.0
  if stage.name == 'sparse':
    strength = optimiser.stage_strength(run.config, task.schedule, length)
  return Recipe(
    task, length, strength, _optimiser(run, stage, net, task.schedule, length, strength)
  )


def _task(run: Run, stage: Stage, net: Network) -> loop.Task:
  config = run.config
  section = config.finetune if stage.name == 'finetuned' else config.train
  # A stage without training has no epochs, but needs a schedule for its optimiser state.
  epochs = stages.epochs(config, stage) or section.epochs
  if stage.name == 'scratch-b':  # as much arithmetic as training the unpruned network takes
    epochs = round(epochs * run.macs(run.network()) / run.macs(net))
  schedule = optimiser.make_schedule(
    section,
    epochs=epochs,
    steps_per_epoch=feed.steps_per_epoch(run.train_data, config),
    scale=config.batch_size / (config.base_batch_size or config.batch_size),
  )
  key = jax.random.fold_in(jax.random.key(config.seed), _key_number(stage))
  return loop.Task(str(stage), epochs, schedule, key, _teacher(run, stage))


def _teacher(run: Run, stage: Stage) -> distillation.Teacher | None:
  """Returns the baseline, as the teacher of a stage of fine-tuning."""
  section = run.config.finetune
  if not section.distill or stage.name != 'finetuned':
    return None
  net, variables = finished.restore(
    run.config, run.workdir, Stage(0, 'baseline'), run.train_data.num_classes, run.train_data.shape
  )
  difference = distillation.DIFFERENCES[run.config.loss]
  return distillation.Teacher(
    net.infer, variables, section.distill, section.temperature, difference
  )


def _key_number(stage: Stage) -> int:
  """Returns the number that gives a stage its own random key.

  The baseline and the first sparse stage share theirs: they see the same images in the same order.
  """
  if stage.is_scratch:
    return int(stage.name == 'scratch-b')
  return 2 * max(stage.number, 1) + (stage.name == 'finetuned')


def _optimiser(
  run: Run,
  stage: Stage,
  net: Network,
  schedule: optax.Schedule,
  length: optimiser.Length,
  strength: float,
) -> optax.GradientTransformation:
  if stage.number == 0 or stage.is_scratch:  # independent of the term, which may still change
    return optimiser.make_tx(run.config, schedule, strength=0.0, mask=net.scales)
  weights = None
  if strength and run.config.train.weigh_macs:
    shapes = net.shapes(run.image)
    weights = slim_jax.macs_per_channel(net.predict, shapes, run.image, scales=net.scales)['params']
  tx = optimiser.make_sparse_tx(run.config, schedule, length, strength, weights, net.scales)
  # Gates without a penalty stay 1: the network trains as it does without them.
  return tx if net.units is None or strength else optimiser.holding(tx, gated.scales)
