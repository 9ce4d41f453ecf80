"""The sparsity terms that `config.train.term` names, and how far each pulls a scale.

A term is one or two transformations of `penalties` at their places in the optimiser's chain. To
add one, write its transformation in `penalties` and its entry in `TERMS`.
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
  """The arguments from which a term is made.

  Attributes:
    strength: lambda, a float or a schedule. A stage without sparsity has the float 0; its
      optimiser state has the structure of a sparse stage's.
    learning_rate: the optimiser's schedule.
    t: `polarization_t` of the config.
    weights: weight of each scale, as in `slim_jax.add_l1`.
    mask: which leaves are scales, as in `slim_jax.add_l1`; None if there are none, so that the
      term does nothing.
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
    before: makes the transformations of gradients, which come before momentum.
    after: makes the transformations of the step, which come after the learning rate.
    force: the slope of the penalty at a small scale, in units of the strength; a function of t.
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
  # At a scale below the mean both parts of the penalty have slopes of the same sign.
  'polarization': Term(before=_polarization, after=_clip, force=lambda t: 1.0 + t),
}


def parts(term: str | Term, spec: Spec) -> tuple[Transformations, Transformations]:
  """Returns a term's transformations before the momentum and after the learning rate."""
  term = TERMS[term] if isinstance(term, str) else term
  before, after = term.before(spec), term.after(spec)
  if spec.mask is None:  # the places in the chain stay, so that states can be compared
    return [optax.identity() for _ in before], [optax.identity() for _ in after]
  return before, after


def own(function: Callable[[Spec], Any]) -> Term:
  """Returns the term that a person's own function makes.

  Args:
    function: returns, for a `Spec`, a transformation of the gradients, which comes before momentum;
      or a pair of one before momentum and one of the step, after the learning rate, either of which
      may be None. The strength is 0.0 in stages without sparsity, whose state must have the same
      structure.
  """

  def made(spec: Spec, number: int) -> Transformations:
    result = function(spec)
    # A transformation is a tuple as well, of a type of its own.
    pair: tuple[Any, Any] = result if type(result) is tuple else (result, None)
    return [] if pair[number] is None else [pair[number]]

  return Term(before=lambda spec: made(spec, 0), after=lambda spec: made(spec, 1))


def term_pull(
  term: str | Term,
  rates: np.ndarray,
  strength: float | np.ndarray,
  *,
  momentum: float,
  nesterov: bool,
  t: float = 0.0,
) -> float:
  """Returns how far a term moves a small scale of weight 1 that gets no gradient from the task.

  Args:
    term: key of `TERMS`, or a term. The force of an own term is taken to be that of L1.
    rates: learning rate of each step, float [steps].
    strength: lambda, one for all steps or float [steps].
    momentum: of the optimiser.
    nesterov: whether the momentum is Nesterov's.
    t: `polarization_t` of the config.

  Returns:
    The distance, in units of the scales; proportional to `strength`.
  """
  term = TERMS[term] if isinstance(term, str) else term
  if term.before is _nothing:  # the term changes the step itself, which momentum does not see
    momentum, nesterov = 0.0, False
  return term.force(t) * pull.l1_pull(
    rates, strength=strength, momentum=momentum, nesterov=nesterov
  )
