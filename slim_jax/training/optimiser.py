"""The optimiser of a stage: schedules of learning rate and strength, and the chain of optax."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from slim_jax import batch_norms
from slim_jax.runtime import parts
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
  term: str | terms.Term = 'l1',
  t: float = 0.0,
  weights: Any = None,
  mask: Any = batch_norms.scales,
) -> optax.GradientTransformation:
  """Makes an optimiser with a sparsity term. For SGD, with the paper's term:

      g = grad + weight_decay * w + strength * sign(w)    the last term at scales only
      v = momentum * v + g
      w = w - schedule(step) * (g + momentum * v)         with Nesterov, else v

  Other optimisers, such as Adam, divide gradients by their size, which would undo the strength. So
  their sparsity term is decoupled, as AdamW decouples weight decay: the step moves w further by
  -schedule(step) * strength * sign(w).

  The chain has the same structure with strength 0, so the optimiser state of one stage fits the
  next.

  Args:
    config: optimizer, weight_decay, momentum, nesterov, clip_norm.
    schedule: learning rate by step.
    strength: lambda of the paper.
    term: key of `terms.TERMS`, or a term.
    t: parameter of 'polarization'.
    weights: a factor for each scale, as `slim_jax.add_l1` takes them.
    mask: which leaves are scales, likewise; None for none.
  """
  # The structure of the state, which checkpoints have, is the same as ever without clipping.
  clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  if is_sgd(config):
    before, after = terms.parts(term, terms.Spec(strength, schedule, t, weights, mask))
    return optax.chain(
      *clip,
      optax.add_decayed_weights(config.weight_decay),
      *before,
      optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov),
      *after,
    )
  _, after = terms.parts(term, terms.Spec(strength, schedule, t, weights, mask))
  step_strength = _per_step(strength, schedule)
  decoupled, _ = terms.parts(term, terms.Spec(step_strength, schedule, t, weights, mask))
  return optax.chain(*clip, _other(config, schedule), *decoupled, *after)


def sparsity_term(config: Config) -> str | terms.Term:
  """Returns the term of `config.train.term`, a key of `terms.TERMS` or a person's own function.

  Raises:
    PartError: an own function cannot be found.
  """
  name = config.train.term
  return terms.own(parts.find(name, field='train.term')) if parts.is_name(name) else name


def is_sgd(config: Config) -> bool:
  """Returns whether the optimiser is SGD with the momentum of the config."""
  return config.optimizer.name == 'sgd'


def _per_step(strength: float | optax.Schedule, schedule: optax.Schedule) -> float | optax.Schedule:
  """Returns the strength of a term that is added to the step, which points downhill already."""
  if not callable(strength) and not strength:
    return strength

  def at(step: Any) -> Any:
    return -1 * schedule(step) * (strength(step) if callable(strength) else strength)

  return at


def _other(config: Config, schedule: optax.Schedule) -> optax.GradientTransformation:
  """Makes an optimiser of optax, or a person's own, with the arguments of the config.

  It gets `weight_decay` if its signature has it; otherwise weight decay is coupled, as for SGD.

  Raises:
    PartError: there is no such optimiser, or it does not take the arguments.
  """
  name = config.optimizer.name
  function = optimizer(name)
  own = {field: value for field, value in config.optimizer.items() if field != 'name'}
  decay = parts.accepted(function, {'weight_decay': config.weight_decay})
  arguments = {**decay, **own}
  if parts.accepted(function, {'learning_rate': schedule}):
    arguments['learning_rate'] = schedule
    tx = parts.call(function, name, field='optimizer.name', **arguments)
  else:
    # A transformation of gradients without a learning rate, such as `scale_by_adam`.
    tx = parts.call(function, name, field='optimizer.name', **arguments)
    tx = optax.chain(tx, optax.scale_by_learning_rate(schedule))
  if not isinstance(tx, optax.GradientTransformation):
    raise parts.PartError(
      f'config.optimizer.name={name!r} must return an optax.GradientTransformation, not '
      f'{type(tx).__name__}'
    )
  return tx if decay else optax.chain(optax.add_decayed_weights(config.weight_decay), tx)


def optimizer(name: str) -> Callable[..., Any]:
  """Returns a function of optax, or a person's own: 'adamw', 'lamb' or 'module:name'.

  Raises:
    PartError: there is no such function.
  """
  return parts.find(name if parts.is_name(name) else f'optax:{name}', field='optimizer.name')


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
    sparsity_term(config),
    pull.by_step(schedule, length.steps),
    at,
    # The decoupled term of another optimiser has no momentum.
    momentum=config.momentum if is_sgd(config) else 0.0,
    nesterov=config.nesterov and is_sgd(config),
    t=config.train.polarization_t,
  )


def make_sparse_tx(
  config: Config,
  schedule: optax.Schedule,
  length: Length,
  highest: float,
  weights: PyTree = None,
  mask: Any = batch_norms.scales,
) -> optax.GradientTransformation:
  """Makes the optimiser of a sparse stage; with highest 0, one without sparsity whose state fits.

  Args:
    config: train, momentum, nesterov, weight_decay.
    schedule: learning rate by step.
    length: of the stage.
    highest: the highest strength.
    weights: a factor for each scale, as `slim_jax.add_l1` takes them.
    mask: which leaves are scales, as in `make_tx`.
  """
  return make_tx(
    config,
    schedule,
    strength=make_strength(config, highest, length.epoch_steps),
    term=sparsity_term(config),
    t=config.train.polarization_t,
    weights=weights,
    mask=mask,
  )


def holding(
  tx: optax.GradientTransformation, mask: Callable[[PyTree], PyTree]
) -> optax.GradientTransformation:
  """Returns an optimiser that leaves some parameters as they are; its state is that of `tx`.

  Args:
    tx: the optimiser.
    mask: which parameters stay: a function that returns a tree of bools for a tree like them.
  """

  def held(values: PyTree) -> PyTree:
    return jax.tree.map(lambda x, stays: jnp.zeros_like(x) if stays else x, values, mask(values))

  def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
    # Before as well: their gradients would count in a norm of all gradients.
    updates, state = tx.update(held(updates), state, params)
    return held(updates), state

  return optax.GradientTransformation(tx.init, update)


def pull_figures(
  config: Config,
  schedule: optax.Schedule,
  length: Length,
  highest: float,
  params: PyTree,
  mask: Any = batch_norms.scales,
) -> dict[str, Any]:
  """Compares the pull of a sparse stage with the scales that it has to bring to zero.

  Returns:
    strength, the highest; start, the mean |scale| now; pull; and warning, '' if the pull suffices.
  """
  figures = {
    'strength': highest,
    'start': float(np.mean(observe.scales(params, mask))),
    'pull': stage_pull(config, schedule, length, highest),
  }
  return {**figures, 'warning': pull.warning(**figures)}
