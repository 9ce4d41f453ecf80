"""Prunes the network of a run: selects channels and removes them from every array."""

from typing import Any

from absl import logging
import jax
import jax.numpy as jnp

import slim_jax
from slim_jax import batch_norms, tree
from slim_jax.runs.errors import PruneError
from slim_jax.runs.network import Network
from slim_jax.runs.run import Run
from slim_jax.runs.stages import Stage
from slim_jax.runtime import parts, processes
from slim_jax.runtime.config import Config
from slim_jax.selection import constraints, ranking
from slim_jax.selection.options import SelectionOptions
from slim_jax.training.train_state import TrainState, variables_of

PyTree = Any


def prune(run: Run, stage: Stage, net: Network, state: TrainState) -> tuple[Network, TrainState]:
  """Selects channels, and slices parameters, statistics and optimiser state.

  Writes the plan of the new network to the workdir.

  Args:
    run: the run.
    stage: the 'pruned' stage.
    net: the network, which may be thin already.
    state: its state.

  Returns:
    The thinner network and its state.

  Raises:
    PruneError: the network cannot be pruned as the config says.
  """
  variables = variables_of(state)
  try:
    plan = _plan(run, net, variables)
  except ValueError as error:
    raise PruneError(f'config.prune: {error}') from error
  run.workdir.save_plan(plan, stage)
  processes.wait('plan')
  # All processes read the plan of the first: with a measured budget each would find another one.
  plan = run.workdir.plan_after(stage) or plan
  # A plan refers to the original network; this one leads from the current network to the new one.
  further = plan if net.plan is None else plan.relative_to(net.plan)
  thin = further.slice(variables)
  opt_state = further['params'].slice_opt_state(state.tx, state.opt_state, state.params)
  net = run.network(plan)
  return net, state.replace(
    params=thin['params'], batch_stats=thin['batch_stats'], opt_state=opt_state, apply_fn=net.apply
  )


def select_dead(
  net: Network, variables: PyTree, image: jax.ShapeDtypeStruct, prune: Config
) -> PyTree:
  """Selects the channels to remove.

  Args:
    net: the network.
    variables: its variables.
    image: shape of an image.
    prune: `config.prune`.

  Returns:
    Dead channels in the form of `slim_jax.select_global`.

  Raises:
    ValueError: the options cannot be fulfilled.
    PartError: an own score cannot be found.
  """
  options: dict[str, Any] = dict(
    per_layer=prune.per_layer,
    strict=prune.strict,
    min_channels=prune.min_channels,
    max_fraction=prune.max_fraction,
    keep=prune.keep,
    multiple_of=prune.multiple_of,
    scales=batch_norms.scales,
  )
  if prune.tied:
    options |= {'tied': slim_jax.streams(net.predict, variables, image), 'tied_by': prune.tied}
  if prune.score:
    score = parts.find(prune.score, field='prune.score')
    options['scores'] = score(net.predict, variables, image)
  if not prune.target:
    return slim_jax.select_global(variables, fraction=prune.fraction, **options)
  name, _, value = prune.target.partition(':')
  if name in ('gap', 'threshold'):
    return slim_jax.select_global(variables, threshold=float(value) if value else name, **options)
  # Latency is measured, which needs an image; the other budgets are counted from its shape.
  x = jnp.zeros(image.shape, image.dtype) if name == 'latency' else image
  return slim_jax.select_budget(net.predict, variables, x, target=prune.target, **options)


def unlike_asked(dead: PyTree, prune: Config, variables: PyTree) -> str:
  """Returns how the share that is removed differs from the fraction; '' within one channel.

  Args:
    dead: what `select_dead` returns.
    prune: `config.prune`.
    variables: of the network.
  """
  if prune.target:
    return ''
  carriers = ranking.carriers(variables)
  marks = {
    path: mark[~carriers[path]] if path in carriers else mark
    for path, mark in tree.flatten(dead).items()
  }
  sizes = {path: mark.size for path, mark in marks.items()}
  kept = constraints.resolve(sizes, SelectionOptions(keep=prune.keep)).keep
  ranked = [mark for path, mark in marks.items() if path not in kept]
  together = [mark.size for mark in ranked] if prune.per_layer else [sum(m.size for m in ranked)]
  asked = sum(int(size * prune.fraction) + 1 for size in together) if prune.fraction else 0
  removed, total = sum(int(mark.sum()) for mark in ranked), sum(mark.size for mark in ranked)
  if abs(removed - asked) <= 1:
    return ''
  return (
    f'prune.fraction={prune.fraction:g} asks for {asked} of {total} channels, {removed} '
    f'({removed / total:.1%}) are removed: equal scales (prune.strict), tied channels or the '
    'limits of layers make the difference'
  )


def _plan(run: Run, net: Network, variables: PyTree) -> slim_jax.Plan:
  """Returns the plan of the pruned network, which refers to the original network."""
  prune = run.config.prune
  dead = select_dead(net, variables, run.image, prune)
  if difference := unlike_asked(dead, prune, variables):
    logging.warning('%s', difference)
  key = jax.eval_shape(lambda: jax.random.key(0))
  plan = slim_jax.plan(
    net.predict,
    variables,
    run.image,
    dead=dead,
    bias=prune.bias,
    also=[(net.train, (run.image, key), (None, 'batch_stats'))],
  )
  return plan if net.plan is None else net.plan.then(plan)
