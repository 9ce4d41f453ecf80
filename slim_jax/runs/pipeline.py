"""The method, stage by stage: train with sparsity, prune, fine-tune, and again.

A stage starts from the checkpoint that the one before it left, and is complete when
it stands in `Workdir.records`; so whenever a run ends, the same call continues it. What
complete stages have left is opened again by `finished`.
"""

from collections.abc import Callable, Iterator
import contextlib
import time
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp

import slim_jax
from slim_jax import batch_norms, tree
from slim_jax.display import plot, progress, tables
from slim_jax.runs import checks, context, network, pretrained, pruning, recording, schema, stages
from slim_jax.runs.context import Run
from slim_jax.runs.network import Network
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files, interrupt, processes, versions
from slim_jax.runtime.config import Config
from slim_jax.sparsity import observe
from slim_jax.training import (
  checkpoint,
  evaluation,
  feed,
  loop,
  optimiser,
  recalibration,
  train_state,
)

PyTree = Any
# How to evaluate a network, by how often it has been cut.
Evaluators = dict[int, Callable[..., evaluation.Result]]


def run(
  config: Config, workdir: files.PathLike, *, last: Stage | None = None
) -> list[dict[str, Any]]:
  """Runs the method, or what is left of it.

  Args:
    config: see `default` for every field; fields that it lacks get their defaults.
    workdir: directory of this run, made if it does not exist.
    last: the stage to stop after; None for all of them.

  Returns:
    A record of each stage, in order: pass, stage, accuracy (0 to 1), loss (nats),
    params, macs (of one image), seconds, widths (channels by path of the scale); of
    sparse stages also strength, pull, start (mean |scale| before), warning ('' if the
    pull suffices) and small_scales (share of |scale| below `sparse.SMALL`); best_epoch of a
    stage whose model was chosen on `valid_split`; and of stages that start from
    `config.init_from` new_head (paths of what is drawn anew) and, where nothing is,
    start_accuracy, of the weights as they came.

  Raises:
    ConfigError: the config cannot work.
    DataError: the data cannot be had.
    WorkdirError: the directory holds a run with another config. Fields of
      `stages.HARMLESS` may differ, and those that no stage has used yet.
    DivergedError: the loss is not finite any more.
    Preempted: SIGTERM came while a stage trained.
    CheckpointError: checkpoints are damaged, or not of this run.
  """
  config = schema.complete(config)
  checks.check_config(config)
  workdir = Workdir(files.path_of(workdir))
  with workdir.locked():
    return _run(config, workdir, last)


def _run(config: Config, workdir: Workdir, last: Stage | None) -> list[dict[str, Any]]:
  records = workdir.records()

  def begun(stage: Stage) -> bool:
    # Of what is done again in no time only a complete stage counts.
    trained = stage.name not in stages.AT_ONCE and workdir.checkpoints(stage).exists()
    return trained or any(record['stage'] == stage.name for record in records)

  workdir.compare('config.json', context.to_json(config), free=stages.unused_fields(config, begun))
  done = [Stage.of(record) for record in records]
  order = stages.of(config)
  order = order[: order.index(last) + 1] if last else order
  todo = [stage for stage in order if stage not in done]
  processes.wait('run')  # all have seen what is there
  if todo:
    for stage in done:
      logging.info('%s: complete', stage)
    elsewhere = any(_is_from_elsewhere(config, stage) for stage in todo)
    if elsewhere:
      pretrained.read(config.init_from)  # so that no data are prepared in vain
    opened = context.open_run(config, workdir)
    if elsewhere:
      _pretrained(
        opened,
        network.create(config, opened.train_data.num_classes).shapes(
          context.image(opened.train_data)
        ),
      )
    files.write_json(workdir.path / 'config.json', context.to_json(config))
    workdir.started(versions.of_process())
    evaluators: Evaluators = {}
    for stage in todo:
      records.append(_run_stage(opened, stage, evaluators))
      processes.wait(str(stage))
      workdir.write_records(records)
      recording.write_csv(workdir)
      recording.write_table(workdir, records)
  else:
    logging.info('This run is complete already: %s', workdir.path)
  tables.write_summary(workdir.path / 'summary.json', context.to_json(config), records)
  return records


def _run_stage(opened: Run, stage: Stage, evaluators: Evaluators) -> dict[str, Any]:
  """Runs, or continues, one stage to its end; returns its record."""
  config, workdir = opened.config, opened.workdir
  began = time.monotonic()
  previous = stages.previous(config, stage)
  net = network.create(
    config, opened.train_data.num_classes, _plan_before(workdir, stage, previous)
  )
  task = _task(opened, stage, net)
  epoch_steps = feed.steps_per_epoch(opened.train_data, config)
  length = optimiser.Length(task.epochs * epoch_steps, epoch_steps)
  strength = (
    optimiser.stage_strength(config, task.schedule, length) if stage.name == 'sparse' else 0.0
  )
  tx = _optimiser(opened, stage, net, task.schedule, length, strength)
  state, extra = _start(opened, stage, net, tx, previous)
  if stage.name == 'pruned':
    with progress.phase('selecting and removing channels'):
      net, state = pruning.prune(opened, stage, net, state)
  elif stage.name == 'recalibrated':
    state = recalibration.make_recalibrate(opened.train_data, config=config, key=task.key)(state)
  elif stage.name == 'sparse':
    extra |= optimiser.pull_figures(config, task.schedule, length, strength, state.params)
    if extra['warning']:
      logging.warning('%s: %s', stage, extra['warning'])
  # Stages that leave the same network share what is compiled to evaluate it.
  evaluate = evaluators.setdefault(stage.cuts, context.evaluator(opened, net))
  if extra.get('new_head') == []:
    came = evaluate(train_state.variables_of(state), opened.test_data)
    extra['start_accuracy'] = came.accuracy
    logging.info('%s: starts with accuracy %.2f%%', stage, 100 * came.accuracy)
  with checkpoint.open_manager(workdir.checkpoints(stage), keep=config.keep_checkpoints) as manager:
    if stage.name in stages.AT_ONCE:
      checkpoint.save(manager, 0, state, seconds=0.0)
      seconds = time.monotonic() - began
    else:
      state, seconds = _train(opened, stage, state, task, manager, evaluate)
  if _is_chosen(opened, stage):
    arrays = checkpoint.read(workdir.checkpoints(stage))
    state = checkpoint.fit(arrays, state, name=str(stage))
    extra['best_epoch'] = int(state.step) // epoch_steps
  result = evaluate(train_state.variables_of(state), opened.test_data)
  logging.info('%s: accuracy %.2f%%, loss %.4f', stage, 100 * result.accuracy, result.loss)
  if stage.name == 'sparse':
    processes.wait('metrics')
    plot.save(
      plot.shares(
        [
          (line['epoch'], line['scales_below'])
          for line in workdir.lines(stage)
          if 'scales_below' in line
        ]
      ),
      workdir.path / f'sparsity-{stage.number}.png',
    )
    extra['small_scales'] = float(np.mean(observe.scales(state.params) < observe.SMALL))
  variables = jax.eval_shape(lambda: train_state.variables_of(state))
  cost = slim_jax.count(net.predict, variables, context.image(opened.train_data))
  return {
    'pass': stage.number,
    'stage': stage.name,
    'accuracy': result.accuracy,
    'loss': result.loss,
    'params': cost.params,
    'macs': cost.macs,
    'seconds': seconds,
    'widths': _widths(variables),
    **extra,
  }


def _train(
  opened: Run,
  stage: Stage,
  state: train_state.TrainState,
  task: loop.Task,
  manager: ocp.CheckpointManager,
  evaluate: Callable[..., evaluation.Result],
) -> tuple[train_state.TrainState, float]:
  """Trains a stage to its end, from its last checkpoint if there is one.

  Returns:
    The trained state, and the seconds spent on the stage.
  """
  restored = checkpoint.restore(manager, state)
  seconds, totals = 0.0, None
  if restored is not None:
    state, seconds, totals = restored
    logging.info('%s: continues from step %d', stage, state.step)
  began = time.monotonic() - seconds
  with (
    recording.recorder(opened.workdir, stage, step=int(state.step)) as record,
    interrupt.watch() as watch,
    _diverging(manager),
    contextlib.closing(
      loop.fit(state, opened.train_data, task, config=opened.config, watch=watch, totals=totals)
    ) as epochs,
  ):
    for epoch in epochs:
      state, score = epoch.state, None
      due = epoch.is_complete and (
        _is_due(epoch, opened.config.checkpoint_every_epochs) or epoch.number == task.epochs
      )
      if epoch.is_complete:
        # Before the checkpoint: a record beyond the last checkpoint can be dropped, one
        # that is missing before it cannot be made again.
        scores = _scores(opened, stage, epoch, evaluate, validated=due)
        record(**_metrics(epoch, scores))
        score = scores.get('valid_accuracy')
      stop = not epoch.is_complete or watch.asked()
      if due or stop:
        checkpoint.save(
          manager,
          epoch.step,
          state,
          seconds=time.monotonic() - began,
          score=score,
          totals=epoch.totals,
        )
      if stop:
        checkpoint.wait(manager)
        raise interrupt.Preempted(
          f'{stage}: stopped at step {epoch.step}, as SIGTERM asks, and saved; '
          'the same command continues'
        )
  checkpoint.wait(manager)
  return state, time.monotonic() - began


@contextlib.contextmanager
def _diverging(manager: ocp.CheckpointManager) -> Iterator[None]:
  """Adds to a `DivergedError` which checkpoint stays."""
  try:
    yield
  except loop.DivergedError as error:
    saved = manager.latest_step()
    if saved is None:
      raise
    raise loop.DivergedError(
      f'{error}; the checkpoint of step {saved} stays in {manager.directory}'
    ) from error


def _is_due(epoch: loop.Epoch, every: int) -> bool:
  """Whether what happens every so many epochs, 0 for never, follows this one."""
  return every > 0 and epoch.number % every == 0


def _scores(
  opened: Run,
  stage: Stage,
  epoch: loop.Epoch,
  evaluate: Callable[..., evaluation.Result],
  *,
  validated: bool,
) -> dict[str, Any]:
  """Evaluates the network after an epoch, as often as the config asks; describes its scales."""
  result = _describe(stage, epoch.state.params) if stage.name == 'sparse' else {}
  variables = train_state.variables_of(epoch.state)
  if _is_due(epoch, opened.config.eval_every_epochs):
    result['test_accuracy'], result['test_loss'] = evaluate(variables, opened.test_data)
  if validated and _is_chosen(opened, stage):
    result['valid_accuracy'], result['valid_loss'] = evaluate(variables, opened.valid_data)
  return result


def _metrics(epoch: loop.Epoch, scores: dict[str, Any]) -> dict[str, Any]:
  """What is recorded of an epoch."""
  return {
    'epoch': epoch.number,
    'step': epoch.step,
    'loss': epoch.loss,
    'accuracy': epoch.accuracy,
    **scores,
    'learning_rate': epoch.learning_rate,
    'images_per_second': epoch.images_per_second,
  }


def _describe(stage: Stage, params: PyTree) -> dict[str, Any]:
  """Measures how sparse the scales are, logs it, and returns it for the metrics."""
  shares = observe.shares(params)
  logging.info('%s: %s', stage, observe.say(shares))
  return {**shares, 'scales': observe.by_layer(params)}


def _is_chosen(opened: Run, stage: Stage) -> bool:
  """Whether the model of a stage is the best of its checkpoints on `valid_split`.

  That of a sparse stage is always the last one: scales shrink up to the end.
  """
  return opened.valid_data is not None and stage.name not in ('sparse', *stages.AT_ONCE)


def _task(opened: Run, stage: Stage, net: Network) -> loop.Task:
  """What a stage trains; one that does not train only holds the state that it passes on."""
  config = opened.config
  section = config.finetune if stage.name == 'finetuned' else config.train
  epochs = section.epochs
  if stage.name == 'baseline':
    epochs = config.baseline_epochs
  elif stage.name == 'scratch-b':
    epochs = round(epochs * context.full_macs(opened) / context.macs(opened, net))
  epoch_steps = feed.steps_per_epoch(opened.train_data, config)
  scale = config.batch_size / (config.base_batch_size or config.batch_size)
  schedule = optimiser.make_schedule(
    section, epochs=epochs, steps_per_epoch=epoch_steps, scale=scale
  )
  # The baseline and the first sparse stage see the same images in the same order.
  stream = 2 * max(stage.number, 1) + (stage.name == 'finetuned')
  if stage.is_scratch:
    stream = stage.name == 'scratch-b'
  key = jax.random.fold_in(jax.random.key(config.seed), stream)
  return loop.Task(str(stage), epochs, schedule, key)


def _optimiser(
  opened: Run,
  stage: Stage,
  net: Network,
  schedule: optax.Schedule,
  length: optimiser.Length,
  strength: float,
) -> optax.GradientTransformation:
  config = opened.config
  if stage.number == 0 or stage.is_scratch:  # no part of the method: its term may change yet
    return optimiser.make_tx(config, schedule, strength=0.0)
  weights, image = None, context.image(opened.train_data)
  if strength and config.train.weigh_macs:
    weights = slim_jax.macs_per_channel(net.predict, net.shapes(image), image)['params']
  return optimiser.make_sparse_tx(config, schedule, length, strength, weights)


def _plan_before(workdir: Workdir, stage: Stage, previous: Stage | None):
  """What the network that a stage starts from is of the original one."""
  if stage.is_scratch:
    return workdir.plan_after(stage)
  return None if previous is None else workdir.plan_after(previous)


def _is_from_elsewhere(config: Config, stage: Stage) -> bool:
  """Whether a stage starts from `init_from`: as any that starts from new weights, but scratch."""
  return (
    bool(config.init_from) and not stage.is_scratch and (stages.previous(config, stage) is None)
  )


def _start(
  opened: Run, stage: Stage, net: Network, tx: optax.GradientTransformation, previous: Stage | None
) -> tuple[train_state.TrainState, dict[str, Any]]:
  """The state that a stage starts from, at step 0, momentum kept; and what to record of it."""
  image = context.image(opened.train_data)
  if previous is None:
    key = jax.random.key(opened.config.seed)
    if stage.is_scratch:  # new weights, not a part of those that the pruned network had
      key = jax.random.fold_in(key, 1 + (stage.name == 'scratch-b'))
    with progress.phase('initialising the network'):
      variables, extra = net.init(key, image), {}
    if _is_from_elsewhere(opened.config, stage):
      variables, extra = _from_elsewhere(opened, stage, variables)
    return train_state.create_state(net.apply, variables, tx), extra
  directory = opened.workdir.checkpoints(previous)
  arrays = checkpoint.read(directory)
  like = jax.eval_shape(
    lambda variables: train_state.create_state(net.apply, variables, tx), net.shapes(image)
  )
  state = checkpoint.fit(arrays, like, name=str(directory))
  zero = jnp.zeros([], jnp.int32)
  return state.replace(
    step=zero, opt_state=optax.tree_utils.tree_set(state.opt_state, count=zero)
  ), {}


def _from_elsewhere(opened: Run, stage: Stage, fresh: PyTree) -> tuple[PyTree, dict[str, Any]]:
  """The weights of `init_from`, and what a record says of them."""
  found = _pretrained(opened, fresh)
  logging.info('%s: starts from the weights of %s', stage, opened.config.init_from)
  if found.new:
    logging.info(
      '%s: they are for another number of classes than %d, so the head is drawn anew: %s',
      stage,
      opened.train_data.num_classes,
      ', '.join(found.new),
    )
  return found.variables, {'new_head': list(found.new)}


def _pretrained(opened: Run, fresh: PyTree) -> pretrained.Pretrained:
  """The weights of `init_from`, if they fit; `fresh` may be shapes."""
  data = opened.train_data
  return pretrained.load(
    opened.config.init_from, network.model_of(opened.config, data.num_classes), fresh, data.shape
  )


def _widths(variables: PyTree) -> dict[str, int]:
  """Channels of each BatchNorm, by the path of its scale."""
  leaves = tree.flatten(variables)
  return {tree.show(norm.scale): leaves[norm.scale].size for norm in batch_norms.find(variables)}
