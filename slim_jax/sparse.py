"""A stage with sparsity: its strength, its optimiser, and what is seen of its scales."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
import optax

from slim_jax import batch_norms
from slim_jax import pull
from slim_jax import sparsity
from slim_jax import terms
from slim_jax import train
from slim_jax import tree

PyTree = Any

# |scale| below which a channel is as good as gone, for the figure that reports its share.
SMALL = 0.01
# |scale| below which shares are shown as training goes.
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)


class Length(NamedTuple):
  """How long a stage trains."""
  steps: int
  epoch_steps: int


def strength(config: ml_collections.ConfigDict, schedule: optax.Schedule,
             length: Length) -> float:
  """The largest strength of a sparse stage, as `config.train` has it: by itself, or by its pull.

  Args:
    config: train, momentum, nesterov.
    schedule: learning rate by step.
    length: of the stage.
  """
  if not config.train.pull:
    return config.train.strength
  return config.train.pull / reach(config, schedule, length, 1.0)


def reach(config: ml_collections.ConfigDict, schedule: optax.Schedule, length: Length,
          highest: float) -> float:
  """How far a small scale is pulled in such a stage; see `terms.reach`."""
  at = train.make_strength(config, highest, length.epoch_steps)
  if callable(at):
    at = pull.by_step(at, length.steps)
  return terms.reach(config.train.term, pull.by_step(schedule, length.steps), at,
                     momentum=config.momentum, nesterov=config.nesterov,
                     t=config.train.polarization_t)


def make_tx(config: ml_collections.ConfigDict, schedule: optax.Schedule, length: Length,
            highest: float, weights: PyTree = None) -> optax.GradientTransformation:
  """The optimiser of a sparse stage; with highest 0, of one whose state fits it.

  Args:
    config: train, momentum, nesterov, weight_decay.
    schedule: learning rate by step.
    length: of the stage.
    highest: the largest strength.
    weights: of each scale, as `slim_jax.add_l1` takes them.
  """
  return train.make_tx(
      config, schedule, strength=train.make_strength(config, highest, length.epoch_steps),
      term=config.train.term, t=config.train.polarization_t, weights=weights)


def judge(config: ml_collections.ConfigDict, schedule: optax.Schedule, length: Length,
          highest: float, params: PyTree) -> dict[str, Any]:
  """The pull beside the scales that it is to bring to zero: strength, pull, start, warning."""
  figures = {'strength': highest, 'start': float(np.mean(scales(params))),
             'pull': reach(config, schedule, length, highest)}
  return {**figures, 'warning': pull.warning(**figures)}


def shares(params: PyTree) -> dict[str, dict[str, float]]:
  """{'scales_below': {threshold: share of all |scale|}}, for a line of metrics."""
  found = sparsity.scale_shares(params, THRESHOLDS)
  return {'scales_below': {f'{threshold:g}': float(share) for threshold, share in found.items()}}


def say(found: Mapping[str, Mapping[str, float]]) -> str:
  """`shares` for people."""
  return 'scales below ' + ', '.join(
      f'{threshold}: {share:.1%}' for threshold, share in found['scales_below'].items())


def by_layer(params: PyTree) -> dict[str, np.ndarray]:
  """|scale| of each BatchNorm, float [channels], by its path in the variables."""
  leaves = tree.flatten(params)
  return {tree.show(('params', *path)): np.abs(np.ravel(leaves[path]))
          for path in batch_norms.chosen(params)}


def scales(variables: PyTree) -> np.ndarray:
  """|scale| of all BatchNorms, float [channels]."""
  leaves = tree.flatten(variables)
  return np.concatenate([np.abs(np.ravel(leaves[path]))
                         for path in batch_norms.chosen(variables)])
