"""Exact evaluation of a network over a whole split."""

import collections
from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax import data
from slim_jax.data.stream import Data
from slim_jax.display import progress
from slim_jax.runtime import devices
from slim_jax.training import losses, steps

PyTree = Any

# Batches in flight: enough to hide the host, and few in the memory of the device.
_IN_FLIGHT = 2


class Result(NamedTuple):
  """Exact means over a whole split.

  Attributes:
    loss: of the loss; nats for classification.
    metrics: of each metric of the loss, such as 'accuracy', 0 to 1.
  """

  loss: float
  metrics: dict[str, float]

  def value(self, name: str) -> float:
    """Returns the figure of a name, 'loss' or that of a metric."""
    return {'loss': self.loss, **self.metrics}[name]


def make_evaluate(
  predict: Callable[..., Any],
  *,
  mean: np.ndarray,
  std: np.ndarray,
  batch_size: int,
  places: devices.Devices | None = None,
  objective: losses.Objective = losses.CLASSIFICATION,
) -> Callable[..., Result]:
  """Makes a function that evaluates variables exactly over a whole split.

  Args:
    predict: `(variables, image)` -> outputs, in inference mode.
    mean: float [channels], of the training split.
    std: float [channels], likewise.
    batch_size: images at a time over all devices of the run, rounded up to a multiple of their
      number.
    places: the devices of this process; None for all.
    objective: loss and metrics.

  Returns:
    `(variables, split_data)` -> `Result`.
  """
  places = places or devices.local()
  size = math.ceil(batch_size / devices.total(places))

  def step(variables: PyTree, batch: PyTree) -> PyTree:
    batch = {**batch, 'image': data.normalize(batch['image'], mean, std)}
    return steps.eval_step(predict, variables, batch, loss=objective.loss)

  mapped = devices.mapped(step, places, in_axes=(None, 0), out_axes=None)
  compiling = progress.first_time('compiling the evaluation')
  ahead = 0 if devices.share_threads(places) else _IN_FLIGHT

  def evaluate(variables: PyTree, split_data: Data) -> Result:
    variables = devices.replicate(variables, places)
    sums: collections.defaultdict[str, float] = collections.defaultdict(float)
    in_flight: collections.deque[PyTree] = collections.deque()

    def finish(count: int) -> None:
      """Adds up the results of all batches but the last `count`."""
      while len(in_flight) > count:
        part = jax.device_get(in_flight.popleft())
        sums.update({name: sums[name] + float(value) for name, value in part.items()})

    batches = split_data.eval_batches(
      size * devices.total(places),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    count = math.ceil(len(split_data) / (size * devices.total(places)))
    for batch in progress.each(batches, 'evaluating', total=count):
      batch = jax.tree.map(lambda x: x.reshape(len(places), size, *x.shape[1:]), batch)
      with compiling():
        in_flight.append(mapped(variables, batch))
      finish(ahead)
    finish(0)
    total = sums.pop('count')
    means = {name: value / total for name, value in sums.items()}
    return Result(means.pop('loss'), means)

  return evaluate
