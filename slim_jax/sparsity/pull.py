r"""How far the L1 term can pull a scale in the time that it has.

A scale that gets no gradient from the task moves towards zero by

.. math:: \frac{\lambda}{1 - \mu} \sum_t \eta_t

in all: lambda the strength, mu the momentum, eta the learning rates. Sparsity appears only if that
is more than where scales start, 0.5 in the paper. So a shorter training needs a larger strength,
and the pull, not the strength, is what training of another length, batch size or learning rate has
in common with the paper's: 6.6 for its VGG-19 on CIFAR, 0.66 for its ResNet-164 and DenseNet-40.
"""

import numpy as np
import optax


def by_step(schedule: optax.Schedule, steps: int) -> np.ndarray:
  """What a schedule has for each of the first `steps` steps, float64 [steps]."""
  return np.asarray(np.broadcast_to(schedule(np.arange(steps)), steps), np.float64)


def l1_pull(
  rates: np.ndarray, *, strength: float | np.ndarray, momentum: float = 0.0, nesterov: bool = False
) -> float:
  """How far SGD moves a scale that gets no gradient but that of the L1 term.

  Momentum starts at rest, which takes a few steps off the sum above. Weight decay, which pulls
  too, is left out. A scale that reaches zero stays near it.

  Args:
    rates: learning rate of each step, float [steps].
    strength: lambda, as `slim_jax.add_l1` takes it; or of each step, float [steps].
    momentum: of SGD, in [0, 1).
    nesterov: whether the momentum is Nesterov's.

  Returns:
    The distance, in units of the scales; proportional to `strength`.
  """
  # A step of SGD is the momentum v_t = mu v_{t-1} + lambda_t; Nesterov's is lambda_t + mu v_t.
  strengths = np.broadcast_to(strength, len(rates)).astype(np.float64).tolist()
  velocity = distance = 0.0
  for rate, now in zip(np.asarray(rates, np.float64).tolist(), strengths, strict=True):
    velocity = momentum * velocity + now
    distance += rate * (now + momentum * velocity if nesterov else velocity)
  return distance


def warning(*, start: float, pull: float, strength: float) -> str:
  """What to say when the pull does not reach from `start` to zero; '' when it does.

  Args:
    start: mean |scale| before the training.
    pull: see `l1_pull`.
    strength: lambda; with 0 no sparsity is wanted, and nothing is said.
  """
  if not strength or pull >= start:
    return ''
  return (
    f'no sparsity can be expected: the L1 term pulls a scale by {pull:.3g} in all, and '
    f'scales start at {start:.3g}. Set config.train.strength to '
    f'{strength * start / pull:.2g} or more (it is {strength:.2g}), or config.train.pull to '
    f'{start:.2g} or more'
  )
