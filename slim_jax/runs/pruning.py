"""Prunes the network of a run: selects channels and removes them from every array."""

from collections.abc import Callable
from typing import Any

from absl import logging
import jax
import jax.numpy as jnp
import numpy as np

import slim_jax
from slim_jax import tree
from slim_jax.display import progress
from slim_jax.runs import gated, recipes, scoring
from slim_jax.runs.errors import PruneError
from slim_jax.runs.network import Network
from slim_jax.runs.run import Run
from slim_jax.runs.stages import Stage
from slim_jax.runtime import processes
from slim_jax.runtime.config import Config
from slim_jax.selection import constraints, ranking
from slim_jax.selection.options import SelectionOptions
from slim_jax.training.train_state import TrainState, variables_of

PyTree = Any


def prune(
  run: Run, stage: Stage, net: Network, state: TrainState
) -> tuple[Network, TrainState, dict[str, Any]]:
  """Selects channels or units, and slices parameters, statistics and optimiser state.

  Gates are multiplied into the parameters. Writes the plan of the new network to the workdir.

  Args:
    run: the run.
    stage: the 'pruned' stage.
    net: the network, which may be thin already, with its gates if it has some.
    state: its state.

  Returns:
    The thinner network without gates, its state, and what to record.

  Raises:
    PruneError: the network cannot be pruned as the config says.
  """
  variables, tx, opt_state = variables_of(state), state.tx, state.opt_state
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
  if net.units is not None:
    variables, net = gated.folded(variables, net.units), net.inner
    tx = recipes.create(run, stage, net).tx
    opt_state = gated.grafted(tx.init(variables['params']), opt_state)
  opt_state = further['params'].slice_opt_state(tx, opt_state, variables['params'])
  variables, facts = _reconstructed(run, net, variables, further)
  thin = further.slice(variables)
  net = run.network(plan)
  state = state.replace(
    params=thin['params'], batch_stats=thin['batch_stats'], opt_state=opt_state, apply_fn=net.apply
  )
  return net, state, facts


def select_dead(
  net: Network,
  variables: PyTree,
  image: jax.ShapeDtypeStruct,
  prune: Config,
  *,
  calibration: scoring.Calibration | None = None,
) -> PyTree:
  """Selects the channels to remove.

  Args:
    net: the network.
    variables: its variables.
    image: shape of an image.
    prune: `config.prune`.
    calibration: what scores may need.

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
    scales=net.scales,
  )
  if prune.tied:
    labels = slim_jax.streams(net.predict, variables, image, scales=net.scales)
    options |= {'tied': labels, 'tied_by': prune.tied}
  if prune.score:
    options['scores'] = scoring.of(
      prune.score, net, variables, image, calibration, prune.calibration_batches
    )
  if not prune.target:
    return slim_jax.select_global(variables, fraction=prune.fraction, **options)
  name, _, value = prune.target.partition(':')
  if name in ('gap', 'threshold'):
    return slim_jax.select_global(variables, threshold=float(value) if value else name, **options)
  # Latency is measured, which needs an image; the other budgets are counted from its shape.
  x = jnp.zeros(image.shape, image.dtype) if name == 'latency' else image
  return slim_jax.select_budget(net.predict, variables, x, target=prune.target, **options)


def calibration(run: Run) -> scoring.Calibration:
  """Returns what scores of a run's network may need."""
  return scoring.Calibration(run.calibration, run.objective.loss)


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
  dead = select_dead(net, variables, run.image, prune, calibration=calibration(run))
  if difference := unlike_asked(dead, prune, variables):
    logging.warning('%s', difference)
  plan = planned(net, variables, dead, run.image, prune.bias)
  return plan if net.plan is None else net.plan.then(plan)


def planned(
  net: Network, variables: PyTree, dead: PyTree, image: jax.ShapeDtypeStruct, bias: str
) -> slim_jax.Plan:
  """Returns the plan from the variables of a network, without gates, to those that stay.

  Args:
    net: the network, with its gates if it has some.
    variables: its variables.
    dead: what `select_dead` returns.
    image: shape of an image.
    bias: `prune.bias`.

  Raises:
    ValueError: the outputs would not depend on the image.
  """
  key = jax.eval_shape(lambda: jax.random.key(0))
  units, inner = net.units, net.inner
  if units is None:
    also = [(net.train, (image, key), (None, 'batch_stats'))]
    return slim_jax.plan(net.predict, variables, image, dead=dead, bias=bias, also=also)

  def folding(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda both, *args: f(slim_jax.fold(both[0], both[1], units), *args)

  both, (_, of_units) = gated.parted(variables, units), gated.parted(dead, units)
  plan = slim_jax.plan(
    folding(inner.predict),
    both,
    image,
    dead=(None, of_units),
    also=[(folding(inner.train), (image, key), (None, '0/batch_stats'))],
  )
  return slim_jax.without_gates(plan, of_units, units)


def _reconstructed(
  run: Run, net: Network, variables: PyTree, plan: slim_jax.Plan
) -> tuple[PyTree, dict[str, Any]]:
  """Fits the kernels that lose inputs to the outputs that they had, if the config asks for it."""
  count = run.config.prune.reconstruct_batches
  if not count:
    return variables, {}
  images = np.concatenate([batch['image'] for batch in run.calibration(count)])
  with progress.phase('fitting kernels to the outputs that they had'):
    fitted = slim_jax.reconstruct(net.predict, variables, images, plan=plan)
  # The machines of several processes may round differently.
  return processes.same(fitted), {'reconstruct_images': len(images)}
