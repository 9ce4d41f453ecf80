"""The sparsity terms that a config can name: the parts of an optimiser, and how far they pull.

To add one: write its transformation in `sparsity` and its entry in `TERMS`.
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import numpy as np
import optax

from slim_jax import batch_norms
from slim_jax.sparsity import penalties, pull

Transformations = list[optax.GradientTransformation]


class Spec(NamedTuple):
  """What a term is made from.

  Attributes:
    strength: lambda, a float or a schedule; the float 0 for a stage without sparsity, whose
      optimiser state must fit that of the stage with it.
    learning_rate: schedule of the optimiser.
    t: `polarization_t` of the config.
    weights: of each scale, as `slim_jax.add_l1` takes them.
    mask: which leaves are scales, likewise.
  """

  strength: float | optax.Schedule
  learning_rate: optax.Schedule
  t: float = 0.0
  weights: Any = None
  mask: Any = batch_norms.scales


def _nothing(spec: Spec) -> Transformations:
  del spec
  return []


@dataclasses.dataclass(frozen=True)
class Term:
  """A sparsity term.

  Attributes:
    before: what changes gradients, ahead of momentum.
    after: what changes the step, behind the learning rate.
    force: by how many times the strength a small scale is drawn to zero.
  """

  before: Callable[[Spec], Transformations] = _nothing
  after: Callable[[Spec], Transformations] = _nothing
  force: Callable[[float], float] = lambda t: 1.0


def _l1(spec: Spec) -> Transformations:
  return [penalties.add_l1(spec.strength, spec.mask, weights=spec.weights)]


def _proximal(spec: Spec) -> Transformations:
  return [
    penalties.soft_threshold(spec.strength, spec.learning_rate, spec.mask, weights=spec.weights)
  ]


def _polarization(spec: Spec) -> Transformations:
  return [penalties.add_polarization(spec.strength, spec.t, spec.mask, weights=spec.weights)]


def _clip(spec: Spec) -> Transformations:
  bounds = (0.0, 1.0) if callable(spec.strength) or spec.strength else (-np.inf, np.inf)
  return [penalties.clip_scales(*bounds, spec.mask)]


TERMS = {
  'l1': Term(before=_l1),
  'proximal': Term(after=_proximal),
  # Of a scale below the mean both parts of the penalty have the same direction.
  'polarization': Term(before=_polarization, after=_clip, force=lambda t: 1.0 + t),
}


def parts(name: str, spec: Spec) -> tuple[Transformations, Transformations]:
  """What stands before the momentum and what stands behind the learning rate."""
  return TERMS[name].before(spec), TERMS[name].after(spec)


def reach(
  name: str,
  rates: np.ndarray,
  strength: float | np.ndarray,
  *,
  momentum: float,
  nesterov: bool,
  t: float = 0.0,
) -> float:
  """How far a term pulls a small scale of weight 1 that the task leaves alone.

  Args:
    name: key of `TERMS`.
    rates: learning rate of each step, float [steps].
    strength: lambda, or that of each step, float [steps].
    momentum: of the optimiser.
    nesterov: whether it is Nesterov's.
    t: `polarization_t` of the config.

  Returns:
    The distance, in units of the scales; proportional to `strength`.
  """
  term = TERMS[name]
  if term.before is _nothing:
    momentum, nesterov = 0.0, False  # the step of its own is not in the momentum
  return term.force(t) * pull.l1_pull(
    rates, strength=strength, momentum=momentum, nesterov=nesterov
  )
