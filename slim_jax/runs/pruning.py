"""The cut of a run: which channels go, and all that belongs to them."""

from typing import Any

import jax
import jax.numpy as jnp

import slim_jax
from slim_jax.runs import checks, context, network
from slim_jax.runs.context import Run
from slim_jax.runs.network import Network
from slim_jax.runs.stages import Stage
from slim_jax.runtime import processes
from slim_jax.runtime.config import Config
from slim_jax.training import train_state

PyTree = Any


def prune(
  run: Run, stage: Stage, net: Network, state: train_state.TrainState
) -> tuple[Network, train_state.TrainState]:
  """Selects channels and slices parameters, statistics and optimiser state."""
  config, image = run.config, context.image(run.train_data)
  num_classes = run.train_data.num_classes
  variables = train_state.variables_of(state)
  original = network.create(config, num_classes)
  try:
    dead, full = select_dead(net, variables, image, config.prune), variables
    if net.plan is not None:
      dead, full = net.plan.lift(dead), net.plan.expand(variables)
    plan = slim_jax.plan(original.predict, full, image, dead=dead, bias=config.prune.bias)
  except ValueError as error:
    raise checks.PruneError(f'config.prune: {error}') from error
  run.workdir.save_plan(plan, stage)
  processes.wait('plan')
  plan = run.workdir.plan_after(stage)  # of the first process: a measured budget has several
  cut = plan if net.plan is None else plan.relative_to(net.plan)
  thin = cut.slice(variables)
  opt_state = cut['params'].slice_opt_state(state.tx, state.opt_state, state.params)
  net = network.create(config, num_classes, plan)
  return net, state.replace(
    params=thin['params'], batch_stats=thin['batch_stats'], opt_state=opt_state, apply_fn=net.apply
  )


def select_dead(
  net: Network, variables: PyTree, image: jax.ShapeDtypeStruct, prune: Config
) -> PyTree:
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
    per_layer=prune.per_layer,
    min_channels=prune.min_channels,
    max_fraction=prune.max_fraction,
    keep=prune.keep,
    multiple_of=prune.multiple_of,
  )
  if prune.tied:
    options |= {'tied': slim_jax.streams(net.predict, variables, image), 'tied_by': prune.tied}
  if not prune.target:
    return slim_jax.select_global(variables, fraction=prune.fraction, **options)
  name, _, value = prune.target.partition(':')
  if name in ('gap', 'threshold'):
    return slim_jax.select_global(variables, threshold=float(value) if value else name, **options)
  # Time is measured, which takes an image; all else is counted from its shape.
  image = jnp.zeros(image.shape, image.dtype) if name == 'latency' else image
  return slim_jax.select_budget(net.predict, variables, image, target=prune.target, **options)
