r"""The pull: how far an L1 penalty moves a scale over a whole training.

A scale that gets no gradient from the task moves towards zero by about

.. math:: \frac{\lambda}{1 - \mu} \sum_t \eta_t

where lambda is the strength, mu the momentum and eta the learning rate. Scales become sparse only
if this distance exceeds their starting value, 0.5 in the paper. A shorter training therefore needs
a larger strength. Trainings that differ in length, batch size or learning rate are comparable if
their pulls are equal, not their strengths. The paper's pull is 6.6 for VGG-19 on CIFAR and 0.66
for ResNet-164 and DenseNet-40. The pulls of the other penalties follow from this one, see `terms`.
"""

import numpy as np
import optax

from slim_jax.sparsity import observe


def by_step(schedule: optax.Schedule, steps: int) -> np.ndarray:
  """Returns the values of a schedule at the first `steps` steps, float64 [steps]."""
  return np.asarray(np.broadcast_to(schedule(np.arange(steps)), steps), np.float64)


def l1_pull(
  rates: np.ndarray, *, strength: float | np.ndarray, momentum: float = 0.0, nesterov: bool = False
) -> float:
  """Returns how far SGD moves a scale whose only gradient is that of the L1 penalty.

  The momentum starts at zero, so the distance is slightly smaller than the sum in the module's
  docstring. Weight decay would add to it and is not included. A scale that reaches zero stays
  near it.

  Args:
    rates: learning rate of each step, float [steps].
    strength: lambda, as in `slim_jax.add_l1`: one for all steps, or float [steps].
    momentum: of SGD, in [0, 1).
    nesterov: whether the momentum is Nesterov's.

  Returns:
    The distance, in units of the scales; proportional to `strength`.
  """
  # The velocity is v_t = mu v_{t-1} + lambda_t. SGD moves by v_t, with Nesterov by lambda_t + mu v_t.
  strengths = np.broadcast_to(strength, len(rates)).astype(np.float64).tolist()
  velocity = distance = 0.0
  for rate, now in zip(np.asarray(rates, np.float64).tolist(), strengths, strict=True):
    velocity = momentum * velocity + now
    distance += rate * (now + momentum * velocity if nesterov else velocity)
  return distance


def warning(*, start: float, pull: float, strength: float) -> str:
  """Returns a warning if the pull is too small to bring scales from `start` to zero, else ''.

  Args:
    start: mean |scale| before the training.
    pull: distance that `l1_pull` returns.
    strength: lambda. With 0 no sparsity is wanted, so there is no warning.
  """
  if not strength or pull >= start * (
    1 - 1e-6
  ):  # a pull that was asked for is met but for rounding
    return ''
  return (
    f'no sparsity can be expected: the L1 term pulls a scale by {pull:.3g} in all, and '
    f'scales start at {start:.3g}. Set config.train.strength to '
    f'{strength * start / pull:.2g} or more (it is {strength:.2g}), or config.train.pull to '
    f'{start:.2g} or more'
  )


def excess(small: float, *, fraction: float) -> str:
  """Returns a warning if far more scales are small than channels are to be removed, else ''.

  Such a network has lost channels that it needs, and the pruning cannot give them back.

  Args:
    small: share of the scales below `observe.SMALL`.
    fraction: share of the channels to remove.
  """
  if small <= (1 + fraction) / 2:
    return ''
  return (
    f'{small:.0%} of the scales are below {observe.SMALL:g} and {fraction:.0%} of the channels are to '
    'go: the penalty takes channels that are in use. Lower config.train.strength or '
    'config.train.pull, to a half at first'
  )
