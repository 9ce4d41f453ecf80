"""The optimiser of a stage: schedules of learning rate and strength, and the chain of optax."""

from typing import Any, NamedTuple

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
  """Makes the schedule of the learning rate.

  Fractions of training are rounded to steps once, here: no comparison of floats can miss a step.

  Args:
    section: `config.train` or `config.finetune`: learning_rate, schedule (one of `SCHEDULES`),
      drops, drop_factor, warmup_epochs.
    epochs: length of the training.
    steps_per_epoch: optimiser steps in an epoch.
    scale: multiplies all learning rates.

  Returns:
    A function from steps, int32 of any shape, to learning rates, float32 of the same shape.
  """
  steps, peak = epochs * steps_per_epoch, scale * section.learning_rate
  warmup = round(section.warmup_epochs * steps_per_epoch)
  if section.schedule == 'cosine':
    decay = optax.cosine_decay_schedule(peak, steps)
  else:
    drops = [round(fraction * steps) for fraction in section.drops]
    # Drops at the same step multiply.
    decay = optax.piecewise_constant_schedule(
      peak, {step: section.drop_factor ** drops.count(step) for step in drops}
    )
  return _warmed_up(decay, warmup)


def make_strength(config: Config, strength: float, steps_per_epoch: int) -> float | optax.Schedule:
  """Makes the strength by step, which rises to `strength` in `train.strength_warmup_epochs`."""
  warmup = round(config.train.strength_warmup_epochs * steps_per_epoch)
  if not warmup or not strength:
    return strength
  return _warmed_up(optax.constant_schedule(strength), warmup)


def _warmed_up(schedule: optax.Schedule, steps: int) -> optax.Schedule:
  """Returns a schedule whose values rise linearly from the first step, at 1 / steps, to `steps`."""
  if not steps:
    return schedule
  ramp = optax.linear_schedule(0.0, 1.0, steps)
  return lambda step: ramp(step + 1) * schedule(step)


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
  """Makes SGD with momentum, coupled weight decay and a sparsity term. With the paper's term:

      g = grad + weight_decay * w + strength * sign(w)    the last term at scales only
      v = momentum * v + g
      w = w - schedule(step) * (g + momentum * v)         with Nesterov, else v

  The chain has the same structure with strength 0, so the optimiser state of one stage fits the
  next.

  Args:
    config: weight_decay, momentum, nesterov.
    schedule: learning rate by step.
    strength: lambda of the paper.
    term: key of `terms.TERMS`.
    t: parameter of 'polarization'.
    weights: a factor for each scale, as `slim_jax.add_l1` takes them.
    mask: which leaves are scales, likewise.
  """
  before, after = terms.parts(term, terms.Spec(strength, schedule, t, weights, mask))
  return optax.chain(
    optax.add_decayed_weights(config.weight_decay),
    *before,
    optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
    *after,
  )


class Length(NamedTuple):
  """Optimiser steps of a stage, and of one of its epochs."""

  steps: int
  epoch_steps: int


def stage_strength(config: Config, schedule: optax.Schedule, length: Length) -> float:
  """Returns the highest strength of a sparse stage: `train.strength`, or that of `train.pull`.

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
  """Makes the optimiser of a sparse stage; with highest 0, one without sparsity whose state fits.

  Args:
    config: train, momentum, nesterov, weight_decay.
    schedule: learning rate by step.
    length: of the stage.
    highest: the highest strength.
    weights: a factor for each scale, as `slim_jax.add_l1` takes them.
  """
  return make_tx(
    config,
    schedule,
    strength=make_strength(config, highest, length.epoch_steps),
    term=config.train.term,
    t=config.train.polarization_t,
    weights=weights,
  )


def pull_figures(
  config: Config, schedule: optax.Schedule, length: Length, highest: float, params: PyTree
) -> dict[str, Any]:
  """Compares the pull of a sparse stage with the scales that it has to bring to zero.

  Returns:
    strength, the highest; start, the mean |scale| now; pull; and warning, '' if the pull suffices.
  """
  figures = {
    'strength': highest,
    'start': float(np.mean(observe.scales(params))),
    'pull': stage_pull(config, schedule, length, highest),
  }
  return {**figures, 'warning': pull.warning(**figures)}
