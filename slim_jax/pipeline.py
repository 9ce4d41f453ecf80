"""The method, stage by stage: train with sparsity, prune, fine-tune, and again.

A stage starts from the checkpoint that the one before it left, and is complete when
it stands in `Workdir.records`; so whenever a run ends, the same call continues it. The
last checkpoint with plan, config and normalisation is a model by itself: `load`.
"""

from collections.abc import Callable
import functools
import json
import pathlib
import time
from typing import Any, NamedTuple

from absl import logging
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import orbax.checkpoint as ocp

import slim_jax
from slim_jax import batch_norms
from slim_jax import check
from slim_jax import checkpoint
from slim_jax import data
from slim_jax import devices
from slim_jax import feed
from slim_jax import loop
from slim_jax import network
from slim_jax import plot
from slim_jax import report
from slim_jax import sparse
from slim_jax import stages
from slim_jax import train
from slim_jax import tree
from slim_jax.network import Network
from slim_jax.workdir import read_json
from slim_jax.workdir import Stage
from slim_jax.workdir import Workdir
from slim_jax.workdir import WorkdirError

PyTree = Any


class Run(NamedTuple):
  """What every stage needs."""
  config: ml_collections.ConfigDict
  workdir: Workdir
  train_data: loop.Data
  test_data: loop.Data
  valid_data: loop.Data | None


def run(config: ml_collections.ConfigDict, workdir: str | pathlib.Path, *,
        last: Stage | None = None) -> list[dict[str, Any]]:
  """Runs the method, or what is left of it.

  Args:
    config: see configs/digits.py for every field.
    workdir: directory of this run, made if it does not exist.
    last: the stage to stop after; None for all of them.

  Returns:
    A record of each stage, in order: pass, stage, accuracy (0 to 1), loss (nats),
    params, macs (of one image), seconds, widths (channels by path of the scale); of
    sparse stages also strength, pull, start (mean |scale| before), warning ('' if the
    pull suffices) and small_scales (share of |scale| below `sparse.SMALL`); and best_epoch of a
    stage whose model was chosen on `valid_split`.

  Raises:
    ConfigError: the config cannot work.
    DataError: the data cannot be had.
    WorkdirError: the directory holds a run with another config. Fields of
      `stages.HARMLESS` may differ, and those that no stage has used yet.
    DivergedError: the loss is not finite any more.
    Preempted: SIGTERM came while a stage trained.
    CheckpointError: checkpoints are damaged, or not of this run.
  """
  check.check_config(config)
  workdir = Workdir(pathlib.Path(workdir).resolve())
  with workdir.locked():
    return _run(config, workdir, last)


def _run(config: ml_collections.ConfigDict, workdir: Workdir,
         last: Stage | None) -> list[dict[str, Any]]:
  records = workdir.records()
  workdir.compare('config.json', to_json(config),
                  free=stages.unused_fields(config, workdir, records))
  done = [Stage(record['pass'], record['stage']) for record in records]
  order = stages.of(config)
  order = order[:order.index(last) + 1] if last else order
  todo = [stage for stage in order if stage not in done]
  if todo:
    for stage in done:
      logging.info('%s: complete', stage)
    context = _open(config, workdir)
    report.write_json(workdir.path / 'config.json', to_json(config))
    for stage in todo:
      records.append(_run_stage(context, stage))
      workdir.write_records(records)
  else:
    logging.info('This run is complete already: %s', workdir.path)
  report.write_summary(workdir.path / 'summary.json', to_json(config), records)
  return records


def load(workdir: str | pathlib.Path) -> tuple[Callable[..., jax.Array], PyTree]:
  """The network that the last complete stage of a run left, but for stages from scratch.

  Args:
    workdir: directory of a run, wherever it has been moved.

  Returns:
    (apply, variables): `apply(variables, image)` gives logits float32 [n, classes] for
    images uint8 [n, height, width, channels] as the data set has them; normalisation
    is inside. A function like any other: wrap it in `jax.jit`.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
    CheckpointError: no checkpoint of the stage can be read.
  """
  workdir = Workdir(pathlib.Path(workdir).resolve())
  done = [Stage(record['pass'], record['stage']) for record in workdir.records()]
  done = [stage for stage in done if not stage.is_scratch]
  if not done:
    raise WorkdirError(f'{workdir.path} holds no run with a complete stage')
  config = ml_collections.ConfigDict(read_json(workdir.path / 'config.json'))
  dataset = read_json(workdir.path / 'dataset.json')
  net = network.create(config, dataset['num_classes'], workdir.plan_after(done[-1]))
  arrays = checkpoint.read(workdir.checkpoints(done[-1]))
  variables = {name: arrays[name] for name in ('params', 'batch_stats')}
  mean, std = (np.asarray(dataset[name], np.float32) for name in ('mean', 'std'))

  def apply(variables: PyTree, image: jax.Array) -> jax.Array:
    return net.predict(variables, data.normalize(image, mean, std))

  return apply, jax.tree.map(jnp.asarray, variables)


class Sparse(NamedTuple):
  """What a complete sparse stage has left, to look at.

  Attributes:
    context: config, directory and data.
    net: the network.
    state: its parameters and statistics; the optimiser state is a fresh one.
    evaluate: what `loop.make_evaluate` returns for the network.
    image: shape of one normalised image.
  """
  context: Run
  net: Network
  state: train.TrainState
  evaluate: Callable[..., loop.Result]
  image: jax.ShapeDtypeStruct


def open_sparse(config: ml_collections.ConfigDict, workdir: str | pathlib.Path) -> Sparse:
  """Opens the last complete sparse stage of a run.

  Args:
    config: that of the run; what comes after the stage may differ.
    workdir: directory of the run.

  Raises:
    WorkdirError: no run with such a stage, or one with another config.
    As `run` for all else.
  """
  workdir = Workdir(pathlib.Path(workdir).resolve())
  done = [Stage(record['pass'], record['stage']) for record in workdir.records()]
  done = [stage for stage in done if stage.name == 'sparse']
  if not done:
    raise WorkdirError(f'{workdir.path} holds no run with a complete sparse stage: call '
                       'slim_jax.main with this config and workdir first')
  later = list(stages.LATER)[list(stages.LATER).index('sparse') + 1:]
  workdir.compare('config.json', to_json(config), free=(
      *stages.HARMLESS, 'passes', *(name for stage in later for name in stages.LATER[stage])))
  context = _open(config, workdir)
  net = network.create(config, context.train_data.num_classes, workdir.plan_after(done[-1]))
  arrays = checkpoint.read(workdir.checkpoints(done[-1]))
  variables = {name: arrays[name] for name in ('params', 'batch_stats')}
  state = train.create_state(net.apply, jax.tree.map(jnp.asarray, variables), optax.identity())
  return Sparse(context, net, state, _evaluator(context, net), _image(context.train_data))


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


def _open(config: ml_collections.ConfigDict, workdir: Workdir) -> Run:
  train_data, test_data, valid_data = (
      data.load(config.dataset, data_dir=config.data_dir, split=split,
                image_size=config.image_size, workers=config.workers) if split else None
      for split in (config.train_split, config.test_split, config.valid_split))
  for split_data, name in ((test_data, 'test_split'), (valid_data, 'valid_split')):
    if split_data is not None:
      check.check_data(config, train_data, split_data, name)
  net = network.create(config, train_data.num_classes)
  check.check_network(lambda: net.shapes(_image(train_data)))
  dataset = {'image': list(train_data.shape),
             'num_classes': train_data.num_classes,
             'class_names': list(train_data.class_names),
             'mean': train_data.mean.tolist(), 'std': train_data.std.tolist()}
  workdir.compare('dataset.json', dataset)
  report.write_json(workdir.path / 'dataset.json', dataset)
  return Run(config, workdir, train_data, test_data, valid_data)


def _run_stage(context: Run, stage: Stage) -> dict[str, Any]:
  """Runs, or continues, one stage to its end; returns its record."""
  config, workdir = context.config, context.workdir
  began = time.monotonic()
  previous = stages.previous(config, stage)
  net = network.create(config, context.train_data.num_classes,
                       _plan_before(workdir, stage, previous))
  task = _task(context, stage, net)
  length = _length(context, task.epochs)
  strength = (sparse.strength(config, task.schedule, length) if stage.name == 'sparse' else 0.0)
  state = _start(context, stage, net, _optimiser(context, stage, net, task, strength), previous)
  extra = {}
  if stage.name == 'pruned':
    net, state = _prune(context, stage, net, state)
  elif stage.name == 'recalibrated':
    state = loop.make_recalibrate(context.train_data, config=config, key=task.key)(state)
  elif stage.name == 'sparse':
    extra = sparse.judge(config, task.schedule, length, strength, state.params)
    if extra['warning']:
      logging.warning('%s: %s', stage, extra['warning'])
  evaluate = _evaluator(context, net)
  with checkpoint.open_manager(workdir.checkpoints(stage),
                               keep=config.keep_checkpoints) as manager:
    if stage.name in stages.AT_ONCE:
      checkpoint.save(manager, 0, state, seconds=0.0)
      seconds = time.monotonic() - began
    else:
      state, seconds = _train(context, stage, state, task, manager, evaluate)
  if _is_chosen(context, stage):
    arrays = checkpoint.read(workdir.checkpoints(stage))
    state = checkpoint.fit(arrays, state, name=str(stage))
    extra['best_epoch'] = int(state.step) // feed.steps_per_epoch(context.train_data, config)
  result = evaluate(loop.variables_of(state), context.test_data)
  logging.info('%s: accuracy %.2f%%, loss %.4f', stage, 100 * result.accuracy, result.loss)
  if stage.name == 'sparse':
    plot.shares([(line['epoch'], line['scales_below']) for line in workdir.lines(stage)
                 if 'scales_below' in line], workdir.path / f'sparsity-{stage.number}.png')
    extra['small_scales'] = float(np.mean(sparse.scales(state.params) < sparse.SMALL))
  variables = jax.eval_shape(lambda: loop.variables_of(state))
  cost = slim_jax.count(net.predict, variables, _image(context.train_data))
  return {'pass': stage.number, 'stage': stage.name, 'accuracy': result.accuracy,
          'loss': result.loss, 'params': cost.params, 'macs': cost.macs,
          'seconds': seconds, 'widths': _widths(variables), **extra}


def _evaluator(context: Run, net: Network) -> Callable[..., loop.Result]:
  return loop.make_evaluate(
      net.predict, mean=context.train_data.mean, std=context.train_data.std,
      batch_size=context.config.eval_batch_size, places=devices.local(context.config.devices))


def _train(context: Run, stage: Stage, state: train.TrainState, task: loop.Task,
           manager: ocp.CheckpointManager, evaluate: Callable[..., loop.Result],
           ) -> tuple[train.TrainState, float]:
  restored = checkpoint.restore(manager, state)
  seconds, totals = 0.0, None
  if restored is not None:
    state, seconds, totals = restored
    logging.info('%s: continues from step %d', stage, state.step)
  validate = None
  if _is_chosen(context, stage):
    validate = functools.partial(evaluate, split_data=context.valid_data)
  return loop.fit(state, context.train_data, task, config=context.config,
                  manager=manager, seconds=seconds, totals=totals,
                  record=context.workdir.recorder(stage, step=int(state.step)),
                  describe=functools.partial(_describe, stage) if stage.name == 'sparse' else None,
                  evaluate=functools.partial(evaluate, split_data=context.test_data),
                  validate=validate)


def _describe(stage: Stage, params: PyTree) -> dict[str, Any]:
  """How sparse the scales are, said and for the metrics."""
  found = sparse.shares(params)
  logging.info('%s: %s', stage, sparse.say(found))
  return found


def _is_chosen(context: Run, stage: Stage) -> bool:
  """Whether the model of a stage is the best of its checkpoints on `valid_split`.

  That of a sparse stage is always the last one: scales shrink up to the end.
  """
  return context.valid_data is not None and stage.name not in ('sparse', *stages.AT_ONCE)


def _prune(context: Run, stage: Stage, net: Network,
           state: train.TrainState) -> tuple[Network, train.TrainState]:
  """Selects channels and slices parameters, statistics and optimiser state."""
  config, image = context.config, _image(context.train_data)
  num_classes = context.train_data.num_classes
  variables = loop.variables_of(state)
  original = network.create(config, num_classes)
  try:
    dead, full = select_dead(net, variables, image, config.prune), variables
    if net.plan is not None:
      dead, full = net.plan.lift(dead), net.plan.expand(variables)
    plan = slim_jax.plan(original.predict, full, image, dead=dead, bias=config.prune.bias)
  except ValueError as error:
    raise check.PruneError(f'config.prune: {error}') from error
  cut = plan if net.plan is None else plan.relative_to(net.plan)
  context.workdir.save_plan(plan, stage)
  thin = cut.slice(variables)
  opt_state = cut['params'].slice_opt_state(state.tx, state.opt_state, state.params)
  net = network.create(config, num_classes, plan)
  return net, state.replace(params=thin['params'], batch_stats=thin['batch_stats'],
                            opt_state=opt_state, apply_fn=net.apply)


def select_dead(net: Network, variables: PyTree, image: jax.ShapeDtypeStruct,
                prune: ml_collections.ConfigDict) -> PyTree:
  """Which channels go.

  Args:
    net: the network.
    variables: its variables.
    image: shape of an image.
    prune: `config.prune`.

  Returns:
    As `slim_jax.select_global`.

  Raises:
    ValueError: it cannot be done as asked.
  """
  options: dict[str, Any] = dict(
      per_layer=prune.per_layer, min_channels=prune.min_channels, max_fraction=prune.max_fraction,
      keep=prune.keep, multiple_of=prune.multiple_of)
  if prune.tied:
    options |= {'tied': slim_jax.streams(net.predict, variables, image), 'tied_by': prune.tied}
  if prune.target:
    return slim_jax.select_budget(net.predict, variables, image, target=prune.target, **options)
  return slim_jax.select_global(variables, fraction=prune.fraction, **options)


def _task(context: Run, stage: Stage, net: Network) -> loop.Task:
  """What a stage trains; one that does not train only holds the state that it passes on."""
  config = context.config
  section = config.finetune if stage.name == 'finetuned' else config.train
  epochs = section.epochs
  if stage.name == 'baseline':
    epochs = config.baseline_epochs
  elif stage.name == 'scratch-b':
    epochs = round(epochs * _full_macs(context) / _macs(context, net))
  epoch_steps = feed.steps_per_epoch(context.train_data, config)
  scale = config.batch_size / (config.base_batch_size or config.batch_size)
  schedule = train.make_schedule(section, epochs=epochs, steps_per_epoch=epoch_steps,
                                 scale=scale)
  # The baseline and the first sparse stage see the same images in the same order.
  stream = 2 * max(stage.number, 1) + (stage.name == 'finetuned')
  if stage.is_scratch:
    stream = stage.name == 'scratch-b'
  key = jax.random.fold_in(jax.random.key(config.seed), stream)
  return loop.Task(str(stage), epochs, schedule, key)


def _length(context: Run, epochs: int) -> sparse.Length:
  epoch_steps = feed.steps_per_epoch(context.train_data, context.config)
  return sparse.Length(epochs * epoch_steps, epoch_steps)


def _optimiser(context: Run, stage: Stage, net: Network, task: loop.Task,
               strength: float) -> optax.GradientTransformation:
  config, length = context.config, _length(context, task.epochs)
  if stage.number == 0 or stage.is_scratch:  # no part of the method: its term may change yet
    return train.make_tx(config, task.schedule, strength=0.0)
  weights, image = None, _image(context.train_data)
  if strength and config.train.weigh_macs:
    weights = slim_jax.macs_per_channel(net.predict, net.shapes(image), image)['params']
  return sparse.make_tx(config, task.schedule, length, strength, weights)


def _plan_before(workdir: Workdir, stage: Stage, previous: Stage | None):
  """What the network that a stage starts from is of the original one."""
  if stage.is_scratch:
    return workdir.plan_after(stage)
  return None if previous is None else workdir.plan_after(previous)


def _start(context: Run, stage: Stage, net: Network, tx: optax.GradientTransformation,
           previous: Stage | None) -> train.TrainState:
  """The state that a stage starts from: at step 0, momentum kept."""
  if previous is None:
    key = jax.random.key(context.config.seed)
    if stage.is_scratch:  # new weights, not a part of those that the pruned network had
      key = jax.random.fold_in(key, 1 + (stage.name == 'scratch-b'))
    return train.create_state(net.apply, net.init(key, _image(context.train_data)), tx)
  directory = context.workdir.checkpoints(previous)
  arrays = checkpoint.read(directory)
  like = train.create_state(net.apply, arrays, tx)
  state = checkpoint.fit(arrays, like, name=str(directory))
  zero = jnp.zeros([], jnp.int32)
  return state.replace(step=zero,
                       opt_state=optax.tree_utils.tree_set(state.opt_state, count=zero))


def _image(train_data: loop.Data) -> jax.ShapeDtypeStruct:
  """One normalised image."""
  return jax.ShapeDtypeStruct((1, *train_data.shape), jnp.float32)


def _macs(context: Run, net: Network) -> int:
  image = _image(context.train_data)
  return slim_jax.count(net.predict, net.shapes(image), image).macs


def _full_macs(context: Run) -> int:
  return _macs(context, network.create(context.config, context.train_data.num_classes))


def _widths(variables: PyTree) -> dict[str, int]:
  """Channels of each BatchNorm, by the path of its scale."""
  leaves = tree.flatten(variables)
  return {tree.show(norm.scale): leaves[norm.scale].size
          for norm in batch_norms.find(variables)}
