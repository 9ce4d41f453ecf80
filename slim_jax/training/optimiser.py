"""The optimiser of a stage: learning rate and strength by step, and the chain of transformations."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slim_jax import batch_norms
from slim_jax.runtime.config import Config
from slim_jax.sparsity import observe, pull, terms

PyTree = Any

SCHEDULES = ('piecewise', 'cosine')


def make_schedule(
  section: Config, *, epochs: int, steps_per_epoch: int, scale: float = 1.0
) -> optax.Schedule:
  """Learning rate by step.

  Drops happen at whole steps: a fraction of training is rounded to a step once,
  here, so that no comparison of floats can skip one.

  Args:
    section: `config.train` or `config.finetune`: learning_rate, schedule (a key
      of `SCHEDULES`), drops, drop_factor, warmup_epochs.
    epochs: length of the training.
    steps_per_epoch: optimiser steps in an epoch.
    scale: multiplies all learning rates.

  Returns:
    A function from steps, int32 of any shape, to learning rates, float32 of it.
  """
  steps = epochs * steps_per_epoch
  warmup = round(section.warmup_epochs * steps_per_epoch)
  drops = [round(fraction * steps) for fraction in section.drops]

  def piecewise(step: jax.Array) -> jax.Array:
    passed = [jnp.asarray(step >= drop, jnp.float32) for drop in drops]
    return section.drop_factor ** sum(passed, start=jnp.zeros([]))

  def cosine(step: jax.Array) -> jax.Array:
    return 0.5 * (1 + jnp.cos(math.pi * jnp.minimum(step, steps) / steps))

  decay = {'piecewise': piecewise, 'cosine': cosine}[section.schedule]

  def schedule(step: jax.Array) -> jax.Array:
    ramp = jnp.minimum((step + 1) / warmup, 1.0) if warmup else 1.0
    return scale * section.learning_rate * ramp * decay(step)

  return schedule


def make_strength(config: Config, strength: float, steps_per_epoch: int) -> float | optax.Schedule:
  """Strength by step: it rises to `strength` over `train.strength_warmup_epochs`."""
  warmup = round(config.train.strength_warmup_epochs * steps_per_epoch)
  if not warmup or not strength:
    return strength
  return lambda step: strength * jnp.minimum((step + 1) / warmup, 1.0)


def make_tx(
  config: Config,
  schedule: optax.Schedule,
  *,
  strength: float | optax.Schedule,
  term: str = 'l1',
  t: float = 0.0,
  weights: Any = None,
  mask: Any = batch_norms.scales,
) -> optax.GradientTransformation:
  """SGD with momentum, coupled weight decay and a term of sparsity; with the paper's:

      g = grad + weight_decay * w + strength * sign(w)    the last at scales only
      v = momentum * v + g
      w = w - schedule(step) * (g + momentum * v)         with Nesterov, else v

  The chain is the same with strength 0, so that the optimiser state of one stage
  fits the next.

  Args:
    config: weight_decay, momentum, nesterov.
    schedule: learning rate by step.
    strength: lambda of the paper.
    term: key of `terms.TERMS`.
    t: of 'polarization'.
    weights: of each scale, as `slim_jax.add_l1` takes them.
    mask: which leaves are scales, likewise.

  Returns:
    The optax transformation.
  """
  before, after = terms.parts(term, terms.Spec(strength, schedule, t, weights, mask))
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    *before,
    optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    *after,
  )


class Length(NamedTuple):
  """How long a stage trains."""

  steps: int
  epoch_steps: int


def strength(config: Config, schedule: optax.Schedule, length: Length) -> float:
  """The largest strength of a sparse stage, as `config.train` has it: by itself, or by its pull.

  Args:
    config: train, momentum, nesterov.
    schedule: learning rate by step.
    length: of the stage.
  """
  if not config.train.pull:
    return config.train.strength
  return config.train.pull / stage_pull(config, schedule, length, 1.0)


def stage_pull(config: Config, schedule: optax.Schedule, length: Length, highest: float) -> float:
  """Returns how far a sparse stage pulls a small scale; see `terms.term_pull`."""
  at = make_strength(config, highest, length.epoch_steps)
  if callable(at):
    at = pull.by_step(at, length.steps)
  return terms.term_pull(
    config.train.term,
    pull.by_step(schedule, length.steps),
    at,
    momentum=config.momentum,
    nesterov=config.nesterov,
    t=config.train.polarization_t,
  )


def make_sparse_tx(
  config: Config, schedule: optax.Schedule, length: Length, highest: float, weights: PyTree = None
) -> optax.GradientTransformation:
  """The optimiser of a sparse stage; with highest 0, of one whose state fits it.

  Args:
    config: train, momentum, nesterov, weight_decay.
    schedule: learning rate by step.
    length: of the stage.
    highest: the largest strength.
    weights: of each scale, as `slim_jax.add_l1` takes them.
  """
  return make_tx(
    config,
    schedule,
    strength=make_strength(config, highest, length.epoch_steps),
    term=config.train.term,
    t=config.train.polarization_t,
    weights=weights,
  )


def judge(
  config: Config, schedule: optax.Schedule, length: Length, highest: float, params: PyTree
) -> dict[str, Any]:
  """The pull beside the scales that it is to bring to zero: strength, pull, start, warning."""
  figures = {
    'strength': highest,
    'start': float(np.mean(observe.scales(params))),
    'pull': stage_pull(config, schedule, length, highest),
  }
  return {**figures, 'warning': pull.warning(**figures)}
