"""One step of training, calibration or evaluation: pure functions over the mapped axis 'batch'.

A thin network trains like any other: its `apply_fn` takes thin parameters.
"""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax

from slim_jax import data
from slim_jax.training import losses, mixing
from slim_jax.training.train_state import TrainState, averaged

PyTree = Any
Batch = losses.Batch

# A number that no image has, for the key of mixing.
_MIXING = 2**31


def prepare(
  batch: Batch,
  *,
  device: jax.Array,
  augment: Mapping[str, Any],
  mean: np.ndarray,
  std: np.ndarray,
  key: jax.Array,
  mixed: mixing.Mixing | None = None,
) -> tuple[Batch, jax.Array]:
  """Augments and normalises the images of this device.

  The key of an image follows from its place in the whole batch, so its augmentation does not
  depend on the number of devices.

  Args:
    batch: this device's 'image' uint8 [n, height, width, channels] and 'label' [n, ...]. Labels of
      pixels, [n, height, width, ...], are mirrored with their image.
    device: int32 [], number of this device among all. The index along the mapped axis may be in
      another order.
    augment: `config.augment`.
    mean: float [channels], of the training split.
    std: float [channels], likewise.
    key: typed random key [] of this step.
    mixed: how images and labels are mixed afterwards; None for not at all.

  Returns:
    (the batch, a key for the dropout of this device).
  """
  count = len(batch['label'])
  augment_key, dropout_key = jax.random.split(key)
  keys = jax.vmap(jax.random.fold_in, (None, 0))(augment_key, device * count + jnp.arange(count))
  image = jax.vmap(lambda key, one: data.augment(key, one[None], **augment)[0])(
    keys, batch['image']
  )
  batch = {**batch, 'image': data.normalize(image, mean, std)}
  if data.is_of_pixels(batch['label'].shape, image.shape):
    batch['label'] = jax.vmap(functools.partial(data.augment_pixels, **augment))(
      keys, batch['label']
    )
  if mixed is not None:
    mixing_key = jax.random.fold_in(jax.random.fold_in(augment_key, _MIXING), device)
    batch = mixing.mix(mixing_key, batch, mixed)
  return batch, jax.random.fold_in(dropout_key, device)


def train_step(
  state: TrainState,
  batch: Batch,
  *,
  key: jax.Array,
  accumulate: int = 1,
  loss: losses.Loss = losses.classification,
) -> tuple[TrainState, dict[str, jax.Array]]:
  """Takes one step of gradient descent on the mean loss over the mapped axis 'batch'.

  Unless the model averages over the axis by itself, every device normalises by the statistics of
  its own images, and the running statistics are the mean over devices. Likewise each of the
  accumulated parts is normalised by its own statistics.

  Args:
    state: the state, the same on every device.
    batch: this device's 'image' float [n, height, width, channels], normalised,
      and 'label' [n, ...], int [n] for classification.
    key: this device's key for this step.
    accumulate: number of parts into which the images are divided, for batches that do not fit in
      memory. The gradient is the mean over the parts.
    loss: of the outputs of the network and a batch, see `losses`.

  Returns:
    The next state, and the means of 'loss' and of each metric over this batch, float32 [], the same
    on every device.
  """

  def gradient(batch_stats: PyTree, part: tuple[Batch, jax.Array]):
    examples, key = part

    def loss_fn(params: PyTree) -> tuple[jax.Array, Any]:
      outputs, after = state.apply_fn(params, batch_stats, examples['image'], key)
      each, metrics = loss(outputs, examples)
      return jnp.mean(each), (metrics, after)

    (mean, (metrics, after)), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
    means = {name: jnp.mean(values.astype(jnp.float32)) for name, values in metrics.items()}
    return after, (grads, {'loss': mean, **means})

  parts = batch, key
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
  return averaged(state), metrics


def _mean(tree: PyTree) -> PyTree:
  """Returns the mean over the mapped axis."""
  # For one device XLA would copy the whole tree.
  return tree if lax.axis_size('batch') == 1 else lax.pmean(tree, 'batch')


def _mean_over_parts(
  gradient: Callable[..., Any], batch_stats: PyTree, parts: tuple[Batch, jax.Array], count: int
) -> tuple[PyTree, PyTree]:
  """Calls `gradient` part after part; returns the last statistics and the mean of the rest."""
  batch, key = parts
  batch = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
  parts = batch, jax.random.split(key, count)
  first = jax.tree.map(lambda x: x[0], parts)
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(gradient, batch_stats, first)[1]
  )

  def add(carry: tuple[PyTree, PyTree], part: Any) -> tuple[tuple[PyTree, PyTree], None]:
    batch_stats, sums = carry
    batch_stats, terms = gradient(batch_stats, part)
    return (batch_stats, jax.tree.map(jnp.add, sums, terms)), None

  (batch_stats, sums), _ = lax.scan(add, (batch_stats, zeros), parts)
  return batch_stats, jax.tree.map(lambda x: x / count, sums)


def batch_statistics(state: TrainState, image: jax.Array, *, key: jax.Array) -> PyTree:
  """Returns the statistics by which BatchNorm normalises one batch.

  Running statistics move to `momentum * old + (1 - momentum) * batch`. The results for old = 0 and
  old = 1 determine both momentum and batch, so this works for any model. XLA computes what does
  not depend on `old` only once.

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

  return _mean(jax.tree.map(lambda low, high: low / (1 - (high - low)), after(0.0), after(1.0)))


def eval_step(
  predict: Callable[..., Any],
  variables: PyTree,
  batch: Batch,
  *,
  loss: losses.Loss = losses.classification,
) -> dict[str, jax.Array]:
  """Sums loss and metrics over the examples of a batch that count.

  Args:
    predict: `(variables, image)` -> outputs, in inference mode.
    variables: {'params': ..., 'batch_stats': ...}.
    batch: this device's 'image', 'label' as in `train_step`, and 'mask' float32
      [n], 0 for an example that only fills the batch and 1 otherwise.
    loss: see `losses`.

  Returns:
    'loss', each metric, and 'count', float32 [], summed over the mapped axis 'batch'.
  """
  mask = batch['mask']
  each, metrics = loss(predict(variables, batch['image']), batch)
  # An image that fills the batch may have any outputs, and 0 times NaN is NaN.
  sums = {
    name: jnp.sum(jnp.where(mask > 0, values.astype(jnp.float32), 0.0))
    for name, values in {'loss': each, **metrics}.items()
  }
  return lax.psum({**sums, 'count': jnp.sum(mask)}, 'batch')
