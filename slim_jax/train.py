"""State, optimiser and steps of training: pure functions over the axis 'batch'.

Nothing here knows of pruning. A thin network trains like any other, through an
`apply_fn` of thin arguments.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import struct
import jax
from jax import lax
import jax.numpy as jnp
import ml_collections
import optax

from slim_jax import batch_norms
from slim_jax import terms

PyTree = Any

SCHEDULES = ('piecewise', 'cosine')


class TrainState(struct.PyTreeNode):
  """What training changes, and the two functions that change it.

  Attributes:
    step: int32 [], optimiser steps taken in this stage.
    params: parameters, float32.
    batch_stats: running statistics of BatchNorm; {} for a model without any.
    opt_state: state of `tx`.
    apply_fn: `(params, batch_stats, image, key)` -> `(logits, batch_stats)`, in
      training mode; key seeds dropout and the like.
    tx: optax transformation of the gradients.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree
  apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
  tx: optax.GradientTransformation = struct.field(pytree_node=False)


def create_state(apply_fn: Callable[..., Any], variables: PyTree,
                 tx: optax.GradientTransformation) -> TrainState:
  """A state at step 0.

  Args:
    apply_fn: see `TrainState`.
    variables: {'params': ..., 'batch_stats': ...}; the statistics may be absent.
    tx: optax transformation of the gradients.

  Returns:
    The state, with a fresh optimiser state.
  """
  return TrainState(
      step=jnp.zeros([], jnp.int32), params=variables['params'],
      batch_stats=variables.get('batch_stats', {}),
      opt_state=tx.init(variables['params']), apply_fn=apply_fn, tx=tx)


def make_schedule(section: ml_collections.ConfigDict, *, epochs: int,
                  steps_per_epoch: int, scale: float = 1.0) -> optax.Schedule:
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


def make_strength(config: ml_collections.ConfigDict, strength: float,
                  steps_per_epoch: int) -> float | optax.Schedule:
  """Strength by step: it rises to `strength` over `train.strength_warmup_epochs`."""
  warmup = round(config.train.strength_warmup_epochs * steps_per_epoch)
  if not warmup or not strength:
    return strength
  return lambda step: strength * jnp.minimum((step + 1) / warmup, 1.0)


def make_tx(config: ml_collections.ConfigDict, schedule: optax.Schedule, *,
            strength: float | optax.Schedule, term: str = 'l1', t: float = 0.0,
            weights: Any = None, mask: Any = batch_norms.scales) -> optax.GradientTransformation:
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
      optax.add_decayed_weights(config.weight_decay), *before,
      optax.sgd(schedule, momentum=config.momentum, nesterov=config.nesterov), *after)


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Cross-entropy of each example, in nats.

  Args:
    logits: float [batch, classes].
    label: int [batch].

  Returns:
    float32 [batch].
  """
  return optax.softmax_cross_entropy_with_integer_labels(
      logits.astype(jnp.float32), label)


def train_step(state: TrainState, batch: dict[str, jax.Array], *, key: jax.Array,
               accumulate: int = 1) -> tuple[TrainState, dict[str, jax.Array]]:
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
      step=state.step + 1, params=optax.apply_updates(state.params, updates),
      batch_stats=batch_stats, opt_state=opt_state)
  return state, metrics


def _mean(tree: PyTree) -> PyTree:
  """The mean over the mapped axis. Of one device XLA would copy all of it."""
  return tree if lax.axis_size('batch') == 1 else lax.pmean(tree, 'batch')


def _mean_over_parts(gradient: Callable[..., Any], batch_stats: PyTree,
                     parts: tuple[jax.Array, jax.Array, jax.Array],
                     count: int) -> tuple[PyTree, PyTree]:
  """`gradient` of one part after the other: statistics after the last, the mean of the rest."""
  image, label, key = parts
  parts = (*(x.reshape(count, -1, *x.shape[1:]) for x in (image, label)),
           jax.random.split(key, count))
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype),
                       jax.eval_shape(gradient, batch_stats, first)[1])

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


def eval_step(predict: Callable[..., jax.Array], variables: PyTree,
              batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
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
  return lax.psum({'loss': jnp.sum(loss), 'correct': jnp.sum(correct * mask),
                   'count': jnp.sum(mask)}, 'batch')
