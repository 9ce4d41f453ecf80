"""The state that a stage starts from: new weights, `config.init_from`, or the previous stage."""

from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import optax

from slim_jax.display import progress
from slim_jax.runs import gated, network, pretrained, results, stages
from slim_jax.runs.network import Network
from slim_jax.runs.run import Run
from slim_jax.runs.stages import Stage
from slim_jax.runtime.config import Config
from slim_jax.training import checkpoint
from slim_jax.training.train_state import TrainState, create_state, restart_averages, variables_of

PyTree = Any

# States of optax whose `count` is that of a schedule.
_OF_SCHEDULES = ('ScaleByScheduleState', 'InjectHyperparamsState', 'InjectStatefulHyperparamsState')


def state(
  run: Run, stage: Stage, net: Network, tx: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Any]]:
  """Returns the state that a stage starts from, at step 0, and what to record about it.

  Momentum is kept from stage to stage.

  Args:
    run: the run.
    stage: the stage.
    net: the network that the stage starts from.
    tx: optax transformation of the gradients.

  Raises:
    ConfigError: the weights of `init_from` do not fit the network.
    CheckpointError: the checkpoint that the previous stage ended with cannot be read, or does not
      fit.
  """
  previous = stages.previous(run.config, stage)
  if previous is None:
    return _new_state(run, stage, net, tx)
  return _state_after(run, previous, net, tx), {}


def is_pretrained(config: Config, stage: Stage) -> bool:
  """Returns whether a stage starts from the weights of `config.init_from`."""
  return bool(config.init_from) and not stage.is_scratch and stages.previous(config, stage) is None


def check_pretrained(run: Run) -> None:
  """Raises ConfigError unless the weights of `config.init_from` fit the network."""
  _pretrained(run, run.network().shapes(run.image))


def _new_state(
  run: Run, stage: Stage, net: Network, tx: optax.GradientTransformation
) -> tuple[TrainState, dict[str, Any]]:
  key = jax.random.key(run.config.seed)
  if stage.is_scratch:  # not a part of the weights that the unpruned network started from
    key = jax.random.fold_in(key, 1 + (stage.name == 'scratch-b'))
  with progress.phase('initialising the network'):
    variables, facts = net.inner.init(key, run.image), {}
  if is_pretrained(run.config, stage):
    loaded = _pretrained(run, variables)
    _log_pretrained(run, stage, loaded)
    variables, facts = loaded.variables, {'new_head': list(loaded.new)}
  if net.units is not None:
    variables = gated.opened(variables, net.units)
  return create_state(net.apply, variables, tx, ema_decay=run.config.ema_decay), facts


def _state_after(
  run: Run, previous: Stage, net: Network, tx: optax.GradientTransformation
) -> TrainState:
  name = str(run.workdir.checkpoints(previous))

  def create(variables: PyTree) -> TrainState:
    return create_state(net.apply, variables, tx, ema_decay=run.config.ema_decay)

  arrays = results.read(run.workdir, previous)
  if net.units is None or previous.name == 'sparse':
    result = checkpoint.fit(arrays, jax.eval_shape(create, net.shapes(run.image)), name=name)
  else:  # a later pass begins: the network before it has no gates
    like = net.inner.shapes(run.image)
    saved = checkpoint.evaluated(arrays)
    variables = checkpoint.fit({part: saved.get(part, {}) for part in like}, like, name=name)
    result = create(gated.opened(jax.tree.map(jnp.asarray, variables), net.units))
    opt_state = gated.grafted(result.opt_state, arrays['opt_state'])
    result = result.replace(opt_state=opt_state)
  zero = jnp.zeros([], jnp.int32)
  # Schedules begin again. Adam's own count goes on, since its means do.
  opt_state = optax.tree_utils.tree_set(
    result.opt_state,
    lambda path, _: getattr(path[-1], 'tuple_name', '') in _OF_SCHEDULES,
    count=zero,
  )
  # The averages were the result of the previous stage.
  return restart_averages(result.replace(step=zero, opt_state=opt_state, **variables_of(result)))


def _pretrained(run: Run, variables: PyTree) -> pretrained.Pretrained:
  """Loads the weights of `init_from` for new variables, or for their shapes."""
  data = run.train_data
  model = network.model_of(run.config, data.num_classes).module
  return pretrained.load(run.config.init_from, model, variables, data.shape)


def _log_pretrained(run: Run, stage: Stage, loaded: pretrained.Pretrained) -> None:
  logging.info('%s: starts from the weights of %s', stage, run.config.init_from)
  if loaded.new:
    logging.info(
      '%s: the weights are for another number of classes than %d, so the head is new: %s',
      stage,
      run.train_data.num_classes,
      ', '.join(loaded.new),
    )
