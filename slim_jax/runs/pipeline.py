"""The method, stage by stage: train with sparsity, prune, fine-tune, and repeat.

  config -> `stages.of`          which stages there are
         -> `run.open_run`       data and network, checked against the config
         -> `run` (here)         each stage that is not complete yet:
              `recipes`          its epochs, learning rate, random key and optimiser
              `starting`         the state that it starts from
              `train_stage`      trains it;  `pruning`: prunes it;  recalibrates it
              `recording`        its metrics;  `summary`: its row of the table
         -> `finished.load`      the thin network

A stage starts from the checkpoint of the stage before it, and is complete when it is in
`Workdir.records`. A run that ended at any moment is therefore continued by the same call.
"""

from collections.abc import Callable
import time
from typing import Any

from absl import logging
import jax
import numpy as np

import slim_jax
from slim_jax import batch_norms, tree
from slim_jax.display import plot, progress, quantities
from slim_jax.runs import (
  checks,
  gated,
  pretrained,
  pruning,
  recipes,
  recording,
  results,
  schema,
  stages,
  starting,
  summary,
  train_stage,
)
from slim_jax.runs.network import Network
from slim_jax.runs.recipes import Recipe
from slim_jax.runs.run import Run, config_to_json, described, open_run
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files, processes, versions
from slim_jax.runtime.config import Config
from slim_jax.sparsity import observe
from slim_jax.structure import native
from slim_jax.training import (
  checkpoint,
  evaluation,
  integrity,
  loop,
  losses,
  optimiser,
  recalibration,
)
from slim_jax.training.train_state import TrainState, restart_averages, variables_of

PyTree = Any
Evaluate = Callable[..., evaluation.Result]

# Fields that may differ between the processes of a run.
_OF_A_MACHINE = ('data_dir', 'workers', 'devices', 'track')


def run(
  config: Config,
  workdir: files.PathLike,
  *,
  last: Stage | None = None,
  after_stage: Callable[[], None] | None = None,
) -> list[dict[str, Any]]:
  """Runs the stages of a config that are not complete yet.

  Args:
    config: see `default` for every field; missing fields get their defaults.
    workdir: directory of the run; made if it does not exist.
    last: the stage to stop after; None for all stages.
    after_stage: called when a stage is complete and another one follows, in every process; it must
      not raise.

  Returns:
    A record of each stage, in order: pass, stage, the metrics of the loss (accuracy, 0 to 1, for
    classification), loss (nats), params, macs (of one image), seconds and widths (channels by path
    of the scale). Records of other losses have metrics, their names, and judge, the name of the
    figure that judges, with a minus where smaller is better. Records of sparse stages also
    have strength, pull, start (mean |scale| before), warning ('' if the pull suffices) and
    small_scales (share of |scale| below `observe.SMALL`). Stages whose checkpoint is chosen on
    `valid_split` have best_epoch. Stages that start from `config.init_from` have new_head (paths
    of new leaves) and, if there are none, start_accuracy (start_NAME of the judging figure) of the
    loaded weights.

  Raises:
    ConfigError: the config cannot work.
    DataError: the data cannot be loaded.
    LossError: the loss does not fit labels or outputs.
    PartError: a person's own part cannot be found or used.
    WorkdirError: the directory holds a run with another config. Fields of `stages.HARMLESS` may
      differ, and fields that no stage has used yet.
    DivergedError: the loss is not finite.
    Preempted: a signal arrived while a stage trained; a checkpoint has been saved.
    CheckpointError: checkpoints are damaged, or belong to another run.
  """
  config = schema.complete(config)
  checks.check_config(config)
  here = Workdir(files.path_of(workdir))
  with here.locked():
    return _run(config, here, last, after_stage)


def _run(
  config: Config, workdir: Workdir, last: Stage | None, after_stage: Callable[[], None] | None
) -> list[dict[str, Any]]:
  records = workdir.records()
  complete = [Stage.of(record) for record in records]
  workdir.check_unchanged(
    'config.json',
    config_to_json(config),
    free=stages.unused_fields(config, lambda stage: _has_begun(workdir, stage, complete)),
  )
  order = stages.of(config)
  order = order[: order.index(last) + 1] if last else order
  todo = [stage for stage in order if stage not in complete]
  # Processes that read different files, or have different flags, would wait for each other for ever.
  everywhere = {name: value for name, value in config.items() if name not in _OF_A_MACHINE}
  processes.check_same('stages to run', f'{records} {list(map(str, todo))}')
  processes.check_same('config', f'{everywhere}')
  processes.wait('run')  # until all processes have read the directory
  if todo:
    for stage in complete:
      logging.info('%s: complete', stage)
    opened = _open(config, workdir, todo)
    evaluators: dict[tuple[int, bool], Evaluate] = {}
    for stage in todo:
      records.append(_run_stage(opened, stage, evaluators))
      processes.wait(str(stage))
      workdir.write_records(records)
      recording.write_csv(workdir)
      recording.write_table(workdir, records)
      processes.wait(f'{stage} recorded')  # the next stage of every process reads the record
      if after_stage and stage != todo[-1]:
        after_stage()
  else:
    logging.info('This run is complete already: %s', workdir.path)
  summary.write(workdir.path / 'summary.json', config_to_json(config), records)
  return records


def _has_begun(workdir: Workdir, stage: Stage, complete: list[Stage]) -> bool:
  """Returns whether anything of a stage would be kept if the run continued.

  A stage without training is repeated unless it is complete.
  """
  if stage.name not in stages.AT_ONCE and workdir.checkpoints(stage).exists():
    return True
  return any(each.name == stage.name for each in complete)


def _open(config: Config, workdir: Workdir, todo: list[Stage]) -> Run:
  """Opens a run and writes the files that describe it."""
  uses_pretrained = any(starting.is_pretrained(config, stage) for stage in todo)
  if uses_pretrained:
    pretrained.read(config.init_from)  # before data are prepared, which may take hours
  opened = open_run(config, workdir)
  if uses_pretrained:
    starting.check_pretrained(opened)
  files.write_json(workdir.path / 'config.json', config_to_json(config))
  workdir.add_start(versions.of_process())
  return opened


def _run_stage(
  run: Run, stage: Stage, evaluators: dict[tuple[int, bool], Evaluate]
) -> dict[str, Any]:
  """Runs a stage to its end, from its last checkpoint if there is one; returns its record.

  Args:
    run: the run.
    stage: the stage.
    evaluators: evaluators by how often their network has been pruned and whether it has gates; one
      is added if missing. Stages with the same network share one, and so its compiled code.
  """
  began = time.monotonic()
  net = run.network(_plan_before(run, stage), gates=stage.has_gates(run.config))
  recipe = recipes.create(run, stage, net)
  state, facts = starting.state(run, stage, net, recipe.tx)
  if jax.process_count() > 1:
    processes.check_same(f'state that {stage} starts from', integrity.digest(state))
  if stage.name in stages.AT_ONCE:
    # An interrupted call may have pruned with other options. Deleted only now that the stage before
    # could be read, so that a damaged run is left as it is.
    run.workdir.discard(stage)
  net, state, more = _before_training(run, stage, net, state, recipe)
  facts |= more
  network = stage.prunings, net.units is not None
  evaluate = evaluators.setdefault(network, run.evaluator(net))
  if facts.get('new_head') == []:
    judge = run.objective.figure.name
    value = evaluate(variables_of(state), run.test_data).value(judge)
    facts[f'start_{judge}'] = value
    logging.info('%s: starts with %s %s', stage, judge, quantities.show(judge, value))
  directory = run.workdir.checkpoints(stage)
  with checkpoint.open_manager(directory, keep=run.config.keep_checkpoints) as manager:
    if stage.name in stages.AT_ONCE:
      checkpoint.save(manager, 0, state, seconds=0.0)
      seconds = time.monotonic() - began
    else:
      state, seconds = train_stage.train(run, stage, state, recipe.task, manager, evaluate)
      last_epoch = int(state.step) // recipe.length.epoch_steps
      if last_epoch < recipe.task.epochs:
        facts['stopped_epoch'] = last_epoch
  if train_stage.is_chosen(run, stage):
    state = checkpoint.fit(checkpoint.read(directory), state, name=str(stage))
    facts['best_epoch'] = int(state.step) // recipe.length.epoch_steps
  if stage.name == 'sparse':
    _draw_shares(run, stage)
    facts['small_scales'] = float(
      np.mean(observe.scales(variables_of(state)['params'], net.scales) < observe.SMALL)
    )
    excess = train_stage.excess(run.config.prune, facts['small_scales'])
    facts['warning'] = facts['warning'] or excess
  result = evaluate(variables_of(state), run.test_data)
  loop.check_finite(result.loss, f'{stage}: the test loss')
  shown = ''.join(f'{name} {quantities.show(name, x)}, ' for name, x in result.metrics.items())
  logging.info('%s: %sloss %.4f', stage, shown, result.loss)
  return _record(run, stage, net, state, result, seconds) | facts


def _plan_before(run: Run, stage: Stage) -> slim_jax.Plan | None:
  """Returns the plan of the network that a stage starts from; None if it is not pruned."""
  previous = stage if stage.is_scratch else stages.previous(run.config, stage)
  return None if previous is None else run.workdir.plan_after(previous)


def _before_training(
  run: Run, stage: Stage, net: Network, state: TrainState, recipe: Recipe
) -> tuple[Network, TrainState, dict[str, Any]]:
  """Does the work of a stage without training, or judges the strength of a sparse stage.

  Returns:
    The network, its state, and what to record.
  """
  if stage.name == 'pruned':
    with progress.phase('selecting and removing channels'):
      net, state, facts = pruning.prune(run, stage, net, state)
      return net, restart_averages(state), facts
  if stage.name == 'recalibrated':
    recalibrate = recalibration.make_recalibrate(
      run.train_data, config=run.config, key=recipe.task.key
    )
    return net, restart_averages(recalibrate(state)), {}
  if stage.name == 'sparse':
    facts = optimiser.pull_figures(
      run.config, recipe.task.schedule, recipe.length, recipe.strength, state.params, net.scales
    )
    if facts['warning']:
      logging.warning('%s: %s', stage, facts['warning'])
    if stage.number == 1 and (unranked := batch_norms.pulled_only(variables_of(state))):
      logging.warning('%s: %s', stage, unranked)
    return net, state, facts
  return net, state, {}


def _draw_shares(run: Run, stage: Stage) -> None:
  """Draws sparsity-N.png from the metrics of a sparse stage."""
  processes.wait('metrics')
  shares = [
    (line['epoch'], line['scales_below'])
    for line in run.workdir.metrics(stage)
    if 'scales_below' in line
  ]
  plot.save(plot.shares(shares), run.workdir.path / f'sparsity-{stage.number}.png')


def _record(
  run: Run, stage: Stage, net: Network, state: TrainState, result: evaluation.Result, seconds: float
) -> dict[str, Any]:
  variables = jax.eval_shape(lambda: variables_of(state))
  if net.units is not None:  # gates are folded before anybody uses the network
    net, (variables, _) = net.inner, gated.parted(variables, net.units)
  cost = slim_jax.count(net.predict, variables, run.image)
  return {
    'pass': stage.number,
    'stage': stage.name,
    **result.metrics,
    'loss': result.loss,
    'params': cost.params,
    'macs': cost.macs,
    'seconds': seconds,
    'widths': _widths(run, net, variables),
    **_described(run.objective),
    'result': results.describe(run.workdir, stage, state, run.config, described(run.train_data)),
  }


def _described(objective: losses.Objective) -> dict[str, Any]:
  """Returns the names of metrics and judging figure, for other losses than classification."""
  if objective.metrics == losses.CLASSIFICATION.metrics and objective.figure.name == 'accuracy':
    return {}
  return {'metrics': list(objective.metrics), 'judge': objective.figure.text}


def _widths(run: Run, net: Network, variables: PyTree) -> dict[str, int]:
  """Returns the number of channels of each BatchNorm, or of units, by the path of its scale."""
  if run.units is not None:
    left = native.units_left(run.units, net.plan)
    return {tree.show(gated.path(name)): int(alive.sum()) for name, alive in left.items()}
  leaves = tree.flatten(variables)
  return {tree.show(norm.scale): leaves[norm.scale].size for norm in batch_norms.find(variables)}
