"""State, optimiser and steps of training: pure functions over the axis 'batch'.

Nothing here knows of pruning. A thin network trains like any other, through an
`apply_fn` of thin arguments.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from slim_jax.training.train_state import TrainState

PyTree = Any


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Cross-entropy of each example, in nats.

  Args:
    logits: float [batch, classes].
    label: int [batch].

  Returns:
    float32 [batch].
  """
  return optax.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), label)


def train_step(
  state: TrainState, batch: dict[str, jax.Array], *, key: jax.Array, accumulate: int = 1
) -> tuple[TrainState, dict[str, jax.Array]]:
  """One step of gradient descent on the mean over the mapped axis 'batch'.

  Args:
    state: the state, the same on every device.
    batch: this device's 'image' float [n, height, width, channels], normalised,
      and 'label' int [n].
    key: this device's key for this step.
    accumulate: in how many parts, one after the other, the images are computed, for batches that
      do not fit. The gradient is the mean over all of them.

  Returns:
    The next state and {'loss', 'accuracy'} float32 [] of this batch; each is the
    same on every device. Unless the model averages over the axis by itself, every device
    normalises by the statistics of its own images, and the running statistics are their mean over
    devices. Each part of the images is normalised by its own statistics.
  """

  def gradient(batch_stats: PyTree, part: tuple[jax.Array, jax.Array, jax.Array]):
    image, label, key = part

    def loss_fn(params: PyTree) -> tuple[jax.Array, Any]:
      logits, after = state.apply_fn(params, batch_stats, image, key)
      return jnp.mean(cross_entropy(logits, label)), (logits, after)

    (loss, (logits, after)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    accuracy = jnp.mean(jnp.argmax(logits, -1) == label)
    return after, (grads, {'loss': loss, 'accuracy': accuracy})

  parts = batch['image'], batch['label'], key
  if accumulate == 1:
    batch_stats, (grads, metrics) = gradient(state.batch_stats, parts)
  else:
    batch_stats, (grads, metrics) = _mean_over_parts(gradient, state.batch_stats, parts, accumulate)
  grads, batch_stats, metrics = _mean((grads, batch_stats, metrics))
  updates, opt_state = state.tx.update(grads, state.opt_state, state.params)
  state = state.replace(
    step=state.step + 1,
    params=optax.apply_updates(state.params, updates),
    batch_stats=batch_stats,
    opt_state=opt_state,
  )
  return state, metrics


def _mean(tree: PyTree) -> PyTree:
  """The mean over the mapped axis. Of one device XLA would copy all of it."""
  return tree if lax.axis_size('batch') == 1 else lax.pmean(tree, 'batch')


def _mean_over_parts(
  gradient: Callable[..., Any],
  batch_stats: PyTree,
  parts: tuple[jax.Array, jax.Array, jax.Array],
  count: int,
) -> tuple[PyTree, PyTree]:
  """`gradient` of one part after the other: statistics after the last, the mean of the rest."""
  image, label, key = parts
  parts = (
    *(x.reshape(count, -1, *x.shape[1:]) for x in (image, label)),
    jax.random.split(key, count),
  )
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, batch_stats, first)[1]
  )

  def add(carry: tuple[PyTree, PyTree], part: Any) -> tuple[tuple[PyTree, PyTree], None]:
    batch_stats, sums = carry
    batch_stats, found = gradient(batch_stats, part)
    return (batch_stats, jax.tree.map(jnp.add, sums, found)), None

  (batch_stats, sums), _ = lax.scan(add, (batch_stats, zeros), parts)
  return batch_stats, jax.tree.map(lambda x: x / count, sums)


def batch_statistics(state: TrainState, image: jax.Array, *, key: jax.Array) -> PyTree:
  """The statistics by which BatchNorm normalises one batch.

  Running statistics move by `momentum * old + (1 - momentum) * batch`: from the answers to 0 and
  to 1 follow momentum and batch, so that nothing need be known of the model. Both come from one
  pass: what does not depend on `old` is computed once.

  Args:
    state: the state, the same on every device.
    image: this device's images, float [n, height, width, channels], normalised.
    key: this device's key.

  Returns:
    Like `state.batch_stats`, the mean over the mapped axis 'batch'.
  """

  def after(old: float) -> PyTree:
    stats = jax.tree.map(lambda x: jnp.full_like(x, old), state.batch_stats)
    return state.apply_fn(state.params, stats, image, key)[1]

  found = jax.tree.map(lambda low, high: low / (1 - (high - low)), after(0.0), after(1.0))
  return _mean(found)


def eval_step(
  predict: Callable[..., jax.Array], variables: PyTree, batch: dict[str, jax.Array]
) -> dict[str, jax.Array]:
  """Sums over the examples of a batch that the mask does not exclude.

  Args:
    predict: `(variables, image)` -> logits, in inference mode.
    variables: {'params': ..., 'batch_stats': ...}.
    batch: this device's 'image', 'label' as in `train_step`, and 'mask' float32
      [n], 0 where an example only fills the batch and 1 elsewhere.

  Returns:
    {'loss', 'correct', 'count'} float32 [], summed over the mapped axis 'batch'.
  """
  logits = predict(variables, batch['image'])
  mask = batch['mask']
  correct = jnp.argmax(logits, -1) == batch['label']
  # A filling image may give any logits, and NaN times 0 would spoil the sum.
  loss = jnp.where(mask > 0, cross_entropy(logits, batch['label']), 0.0)
  return lax.psum(
    {'loss': jnp.sum(loss), 'correct': jnp.sum(correct * mask), 'count': jnp.sum(mask)}, 'batch'
  )
