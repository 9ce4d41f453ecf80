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
from flax import linen as nn
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
from slim_jax import loop
from slim_jax import models
from slim_jax import report
from slim_jax import train
from slim_jax import tree
from slim_jax.workdir import read_json
from slim_jax.workdir import Stage
from slim_jax.workdir import Workdir
from slim_jax.workdir import WorkdirError

PyTree = Any

# Fields that may change between two calls of a run: no figure depends on them.
HARMLESS = ('data_dir', 'eval_batch_size', 'eval_every_epochs', 'log_every_steps',
            'checkpoint_every_epochs', 'keep_checkpoints')


class Network(NamedTuple):
  """The functions of a network, of thin variables where there is a plan.

  Attributes:
    apply: `(params, batch_stats, image, key)` -> `(logits, batch_stats)`, training.
    predict: `(variables, image)` -> logits.
    plan: what is left of the original network, None for all of it.
  """
  apply: Callable[..., Any]
  predict: Callable[..., Any]
  plan: slim_jax.Plan | None


class Run(NamedTuple):
  """What every stage needs; `init` makes the variables of the original network."""
  config: ml_collections.ConfigDict
  workdir: Workdir
  train_data: data.ArrayData
  test_data: data.ArrayData
  init: Callable[[], PyTree]


def run(config: ml_collections.ConfigDict,
        workdir: str | pathlib.Path) -> list[dict[str, Any]]:
  """Runs the method, or what is left of it.

  Args:
    config: see configs/digits.py for every field.
    workdir: directory of this run, made if it does not exist.

  Returns:
    A record of each stage, in order: pass, stage, accuracy (0 to 1), loss (nats),
    params, macs (of one image), seconds, widths (channels by path of the scale).

  Raises:
    ConfigError: the config cannot work.
    DataError: the data cannot be had.
    WorkdirError: the directory holds a run with another config. `HARMLESS` fields
      may differ, and those that no stage has used yet.
    DivergedError: the loss is not finite any more.
    CheckpointError: checkpoints are damaged, or not of this run.
  """
  check.check_config(config)
  workdir = Workdir(pathlib.Path(workdir).resolve())
  records = workdir.records()
  workdir.compare('config.json', to_json(config), free=_unused_fields(workdir, records))
  done = [Stage(record['pass'], record['stage']) for record in records]
  todo = [stage for stage in stages(config) if stage not in done]
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
  """The network that the last complete stage of a run left.

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
  records = workdir.records()
  if not records:
    raise WorkdirError(f'{workdir.path} holds no run with a complete stage')
  config = ml_collections.ConfigDict(read_json(workdir.path / 'config.json'))
  dataset = read_json(workdir.path / 'dataset.json')
  last = Stage(records[-1]['pass'], records[-1]['stage'])
  net = _network(config, dataset['num_classes'], workdir.plan_after(last))
  arrays = checkpoint.read(workdir.checkpoints(last))
  variables = {name: arrays[name] for name in ('params', 'batch_stats')}
  mean, std = (np.asarray(dataset[name], np.float32) for name in ('mean', 'std'))

  def apply(variables: PyTree, image: jax.Array) -> jax.Array:
    return net.predict(variables, data.normalize(image, mean, std))

  return apply, jax.tree.map(jnp.asarray, variables)


def stages(config: ml_collections.ConfigDict) -> list[Stage]:
  """The stages of a run, in order."""
  result = [Stage(0, 'baseline')] if config.baseline_epochs else []
  for number in range(1, config.passes + 1):
    result += [Stage(number, 'sparse'), Stage(number, 'pruned')]
    if config.finetune.epochs:
      result.append(Stage(number, 'finetuned'))
  return result


def to_json(config: ml_collections.ConfigDict) -> dict[str, Any]:
  """The config as JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


def _open(config: ml_collections.ConfigDict, workdir: Workdir) -> Run:
  train_data, test_data = (
      data.load(config.dataset, data_dir=config.data_dir, split=split)
      for split in (config.train_split, config.test_split))
  check.check_data(config, train_data, test_data)
  init = jax.jit(functools.partial(_init, config, train_data))
  check.check_network(init)
  dataset = {'image': list(train_data.image.shape[1:]),
             'num_classes': train_data.num_classes,
             'class_names': list(train_data.class_names),
             'mean': train_data.mean.tolist(), 'std': train_data.std.tolist()}
  workdir.compare('dataset.json', dataset)
  report.write_json(workdir.path / 'dataset.json', dataset)
  return Run(config, workdir, train_data, test_data, init)


def _run_stage(context: Run, stage: Stage) -> dict[str, Any]:
  """Runs, or continues, one stage to its end; returns its record."""
  config, workdir = context.config, context.workdir
  began = time.monotonic()
  previous = _previous(config, stage)
  net = _network(config, context.train_data.num_classes,
                 None if previous is None else workdir.plan_after(previous))
  tx, task = _training(context, stage)
  state = _start(context, net, tx, previous)
  if stage.name == 'pruned':
    net, state = _prune(context, stage, net, state)
  evaluate = loop.make_evaluate(
      net.predict, context.test_data, mean=context.train_data.mean,
      std=context.train_data.std, batch_size=config.eval_batch_size)
  with checkpoint.open_manager(workdir.checkpoints(stage),
                               keep=config.keep_checkpoints) as manager:
    if stage.name == 'pruned':
      checkpoint.save(manager, 0, state, seconds=0.0)
      seconds = time.monotonic() - began
    else:
      state, seconds = _train(context, stage, state, task, manager, evaluate)
  result = evaluate(loop.variables_of(state))
  logging.info('%s: accuracy %.2f%%, loss %.4f', stage, 100 * result.accuracy, result.loss)
  variables = jax.eval_shape(lambda: loop.variables_of(state))
  cost = slim_jax.count(net.predict, variables, _image(context.train_data))
  return {'pass': stage.number, 'stage': stage.name, 'accuracy': result.accuracy,
          'loss': result.loss, 'params': cost.params, 'macs': cost.macs,
          'seconds': seconds, 'widths': _widths(variables)}


def _train(context: Run, stage: Stage, state: train.TrainState, task: loop.Task,
           manager: ocp.CheckpointManager, evaluate: Callable[[PyTree], loop.Result],
           ) -> tuple[train.TrainState, float]:
  restored = checkpoint.restore(manager, state)
  seconds = 0.0
  if restored is not None:
    state, seconds = restored
    logging.info('%s: continues from step %d', stage, state.step)
  record = context.workdir.recorder(stage, step=int(state.step))
  return loop.fit(state, context.train_data, task, config=context.config,
                  manager=manager, seconds=seconds, record=record, evaluate=evaluate)


def _prune(context: Run, stage: Stage, net: Network,
           state: train.TrainState) -> tuple[Network, train.TrainState]:
  """Selects channels and slices parameters, statistics and optimiser state."""
  config = context.config
  variables = loop.variables_of(state)
  dead = slim_jax.select_global(variables, **config.prune)
  original = _network(config, context.train_data.num_classes, None)
  try:
    plan = slim_jax.plan(original.predict, jax.eval_shape(context.init),
                         _image(context.train_data),
                         dead=dead if net.plan is None else net.plan.lift(dead))
  except ValueError as error:
    raise check.ConfigError(f'config.prune: {error}') from error
  cut = plan if net.plan is None else plan.relative_to(net.plan)
  context.workdir.save_plan(plan, stage)
  thin = cut.slice(variables)
  opt_state = cut['params'].slice_opt_state(state.tx, state.opt_state, state.params)
  net = _network(config, context.train_data.num_classes, plan)
  return net, state.replace(params=thin['params'], batch_stats=thin['batch_stats'],
                            opt_state=opt_state, apply_fn=net.apply)


def _model(config: ml_collections.ConfigDict, num_classes: int) -> nn.Module:
  arguments = {name: value for name, value in config.model.items() if name != 'name'}
  return models.create(config.model.name, num_classes=num_classes,
                       dtype=jnp.dtype(config.dtype), **arguments)


def _network(config: ml_collections.ConfigDict, num_classes: int,
             plan: slim_jax.Plan | None) -> Network:
  """The network of a config, thin if there is a plan."""
  model = _model(config, num_classes)

  def apply(params: PyTree, batch_stats: PyTree, image: jax.Array,
            key: jax.Array) -> tuple[jax.Array, PyTree]:
    logits, state = model.apply(
        {'params': params, 'batch_stats': batch_stats}, image, train=True,
        mutable=['batch_stats'], rngs={'dropout': key})
    return logits, state['batch_stats']

  def predict(variables: PyTree, image: jax.Array) -> jax.Array:
    return model.apply(variables, image, train=False)

  if plan is not None:
    apply = slim_jax.thin(apply, plan, ins=('params', 'batch_stats', None, None),
                          outs=(None, 'batch_stats'))
    predict = slim_jax.thin(predict, plan)
  return Network(apply, predict, plan)


def _training(context: Run, stage: Stage) -> tuple[optax.GradientTransformation, loop.Task]:
  """Optimiser and task of a stage.

  The optimiser of 'pruned' only holds the state that it passes on.
  """
  config = context.config
  section = config.finetune if stage.name == 'finetuned' else config.train
  epochs = config.baseline_epochs if stage.name == 'baseline' else section.epochs
  strength = config.train.strength if stage.name == 'sparse' else 0.0
  schedule = train.make_schedule(
      section, epochs=epochs,
      steps_per_epoch=loop.steps_per_epoch(context.train_data, config))
  # The baseline and the first sparse stage see the same images in the same order.
  stream = 2 * max(stage.number, 1) + (stage.name == 'finetuned')
  key = jax.random.fold_in(jax.random.key(config.seed), stream)
  return (train.make_tx(config, schedule, strength=strength),
          loop.Task(str(stage), epochs, schedule, key))


def _previous(config: ml_collections.ConfigDict, stage: Stage) -> Stage | None:
  """The stage whose network this one starts from; None for new weights."""
  if stage.number == 0 or stage == Stage(1, 'sparse'):
    return None
  order = stages(config)
  return order[order.index(stage) - 1]


def _start(context: Run, net: Network, tx: optax.GradientTransformation,
           previous: Stage | None) -> train.TrainState:
  """The state that a stage starts from: at step 0, momentum kept."""
  if previous is None:
    return train.create_state(net.apply, context.init(), tx)
  directory = context.workdir.checkpoints(previous)
  arrays = checkpoint.read(directory)
  like = train.create_state(net.apply, arrays, tx)
  state = checkpoint.fit(arrays, like, name=str(directory))
  zero = jnp.zeros([], jnp.int32)
  return state.replace(step=zero,
                       opt_state=optax.tree_utils.tree_set(state.opt_state, count=zero))


def _init(config: ml_collections.ConfigDict, train_data: data.ArrayData) -> PyTree:
  image = jnp.zeros(_image(train_data).shape)
  return _model(config, train_data.num_classes).init(
      jax.random.key(config.seed), image, train=False)


def _image(train_data: data.ArrayData) -> jax.ShapeDtypeStruct:
  """One normalised image."""
  return jax.ShapeDtypeStruct((1, *train_data.image.shape[1:]), jnp.float32)


def _widths(variables: PyTree) -> dict[str, int]:
  """Channels of each BatchNorm, by the path of its scale."""
  leaves = tree.flatten(variables)
  return {tree.show(norm.scale): leaves[norm.scale].size
          for norm in batch_norms.find(variables)}


def _unused_fields(workdir: Workdir, records: list[dict[str, Any]]) -> tuple[str, ...]:
  """Fields and sections of the config that nothing that is there depends on."""
  free = list(HARMLESS)
  if not any(record['stage'] == 'pruned' for record in records):
    free.append('prune')
  if (all(record['pass'] <= 1 for record in records)
      and not workdir.checkpoints(Stage(1, 'finetuned')).exists()):
    free.append('finetune')
  return tuple(free)
