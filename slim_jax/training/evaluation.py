"""Evaluation of a network, exactly, over the whole of a split."""

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
from slim_jax.training import steps

PyTree = Any

# Batches of an evaluation that the device has before it is asked for the results of an earlier one:
# enough that it never waits for the host, and few in its memory.
_EVALUATED_AHEAD = 2


class Result(NamedTuple):
  """What `make_evaluate` returns: exact means over a whole split."""

  accuracy: float  # 0 to 1
  loss: float  # nats


def make_evaluate(
  predict: Callable[..., jax.Array],
  *,
  mean: np.ndarray,
  std: np.ndarray,
  batch_size: int,
  places: devices.Devices | None = None,
) -> Callable[..., Result]:
  """A function that evaluates variables, exactly, over the whole of a split.

  Args:
    predict: `(variables, image)` -> logits, in inference mode.
    mean: float [channels], of the split that was trained on.
    std: float [channels], likewise.
    batch_size: images at a time over all devices of the run, rounded up to a multiple of them.
    places: the devices of this process; None for all.

  Returns:
    `(variables, split_data)` -> `Result`.
  """
  places = places or devices.local()
  size = math.ceil(batch_size / devices.total(places))

  def step(variables: PyTree, batch: PyTree) -> PyTree:
    batch = {**batch, 'image': data.normalize(batch['image'], mean, std)}
    return steps.eval_step(predict, variables, batch)

  mapped = devices.mapped(step, places, in_axes=(None, 0), out_axes=None)
  compiling = progress.first_time('compiling the evaluation')
  ahead = 0 if devices.share_threads(places) else _EVALUATED_AHEAD

  def evaluate(variables: PyTree, split_data: Data) -> Result:
    variables = devices.replicate(variables, places)
    sums = {'loss': 0.0, 'correct': 0.0, 'count': 0.0}
    at_work: collections.deque[PyTree] = collections.deque()

    def finish(count: int) -> None:
      """Adds up what has been computed, but for the last so many batches."""
      while len(at_work) > count:
        part = jax.device_get(at_work.popleft())
        sums.update({name: sums[name] + float(part[name]) for name in sums})

    batches = split_data.eval_batches(
      size * devices.total(places),
      process_index=jax.process_index(),
      process_count=jax.process_count(),
    )
    count = math.ceil(len(split_data) / (size * devices.total(places)))
    for batch in progress.each(batches, 'evaluating', total=count):
      batch = jax.tree.map(lambda x: x.reshape(len(places), size, *x.shape[1:]), batch)
      with compiling():
        at_work.append(mapped(variables, batch))
      finish(ahead)
    finish(0)
    return Result(accuracy=sums['correct'] / sums['count'], loss=sums['loss'] / sums['count'])

  return evaluate
