"""Losses and their metrics: what a network is trained for, and by which figure it is judged.

A loss is a function of the outputs of the network and of a batch,

    loss(outputs, batch) -> (loss float [n], {name: float [n]})

with one loss and one value of each metric for each example. Their means over a split are what the
run records, under the names of the metrics. `config.loss` names one of `LOSSES` or a person's own
function, 'module:name'.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slim_jax.errors import SlimError
from slim_jax.runtime import parts
from slim_jax.runtime.config import Config

PyTree = Any
Batch = dict[str, jax.Array]
Loss = Callable[[Any, Batch], tuple[jax.Array, dict[str, jax.Array]]]

# What lines of metrics and records hold beside the metrics of the loss.
_TAKEN = {
  'pass', 'stage', 'epoch', 'step', 'time', 'loss', 'count', 'steps', 'params', 'macs', 'seconds',
  'widths', 'scales', 'scales_below', 'learning_rate', 'images_per_second',
}  # fmt: skip


class LossError(SlimError):
  """A loss does not fit the labels or the outputs; the message says what it must return."""


class Figure(NamedTuple):
  """The figure that judges a network: which checkpoint is best, and what a cut costs.

  Attributes:
    name: of a metric, or 'loss'.
    larger_is_better: whether it is.
  """

  name: str
  larger_is_better: bool

  @property
  def text(self) -> str:
    """The figure as `config.judge` and records name it, with a minus if smaller is better."""
    return self.name if self.larger_is_better else f'-{self.name}'

  def score(self, value: float) -> float:
    """Returns a value of the figure as a score, of which the larger is better."""
    return value if self.larger_is_better else -value


def cross_entropy(logits: jax.Array, label: jax.Array) -> jax.Array:
  """Returns the cross-entropy of each example, in nats.

  Args:
    logits: float [..., classes].
    label: int [...], the number of the class; or float [..., classes], its probabilities.

  Returns:
    float32 [...].
  """
  logits = logits.astype(jnp.float32)
  if jnp.issubdtype(label.dtype, jnp.floating):
    return optax.softmax_cross_entropy(logits, label)
  return optax.softmax_cross_entropy_with_integer_labels(logits, label)


def classification(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the cross-entropy of one class for each image; the metric is 'accuracy'.

  Args:
    logits: float [n, classes].
    batch: 'label' int [n], or float [n, classes], the probability of each class.
  """
  label = batch['label']
  hardest = jnp.argmax(label, -1) if jnp.issubdtype(label.dtype, jnp.floating) else label
  return cross_entropy(logits, label), {'accuracy': jnp.argmax(logits, -1) == hardest}


def multi_label(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the mean binary cross-entropy of several labels for each image.

  The metrics are 'label_accuracy', the share of the labels that are right, and 'exact_accuracy',
  the share of the images whose labels are all right.

  Args:
    logits: float [n, labels].
    batch: 'label' [n, labels] of 0 and 1.
  """
  label = batch['label'].astype(jnp.float32)
  loss = optax.sigmoid_binary_cross_entropy(logits.astype(jnp.float32), label)
  right = (logits > 0) == (label > 0.5)
  return loss.mean(-1), {'label_accuracy': right.mean(-1), 'exact_accuracy': right.all(-1)}


def regression(outputs: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the mean squared error; the metric is 'absolute_error', the mean of it.

  Args:
    outputs: float [n, numbers].
    batch: 'label' [n, numbers], or [n] for one number.
  """
  label = batch['label'].astype(jnp.float32).reshape(outputs.shape)
  error = (outputs.astype(jnp.float32) - label).reshape(len(label), -1)
  return jnp.mean(error**2, -1), {'absolute_error': jnp.mean(jnp.abs(error), -1)}


def segmentation(logits: jax.Array, batch: Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
  """Returns the mean cross-entropy of the pixels; the metric is 'pixel_accuracy'.

  Pixels with a negative label count for nothing.

  Args:
    logits: float [n, height, width, classes].
    batch: 'label' int [n, height, width].
  """
  label = batch['label']
  counts = (label >= 0).astype(jnp.float32)
  total = jnp.maximum(counts.sum((1, 2)), 1.0)
  loss = cross_entropy(logits, jnp.maximum(label, 0)) * counts
  right = (jnp.argmax(logits, -1) == label) * counts
  return loss.sum((1, 2)) / total, {'pixel_accuracy': right.sum((1, 2)) / total}


class Objective(NamedTuple):
  """What a network is trained for.

  Attributes:
    loss: of the outputs and a batch.
    metrics: the names of its metrics.
    figure: what judges the network.
  """

  loss: Loss
  metrics: tuple[str, ...]
  figure: Figure


CLASSIFICATION = Objective(classification, ('accuracy',), Figure('accuracy', True))

LOSSES = {
  'classification': CLASSIFICATION,
  'multi_label': Objective(
    multi_label, ('label_accuracy', 'exact_accuracy'), Figure('label_accuracy', True)
  ),
  'regression': Objective(regression, ('absolute_error',), Figure('absolute_error', False)),
  'segmentation': Objective(segmentation, ('pixel_accuracy',), Figure('pixel_accuracy', True)),
}


def find(config: Config) -> Loss:
  """Returns the loss of a config.

  Raises:
    PartError: an own loss cannot be found.
  """
  return (
    LOSSES[config.loss].loss if config.loss in LOSSES else parts.find(config.loss, field='loss')
  )


def judge(config: Config) -> Figure:
  """Returns the figure of `config.judge`; '' is that of the loss, 'loss' for an own function."""
  if name := config.judge:
    return Figure(name.removeprefix('-'), not name.startswith('-') and name != 'loss')
  return LOSSES[config.loss].figure if config.loss in LOSSES else Figure('loss', False)


def create(config: Config, outputs: PyTree, batch: PyTree) -> Objective:
  """Returns the objective of a config, after checking by shapes that it fits.

  Args:
    config: loss and judge.
    outputs: shapes of the outputs of the network for the batch.
    batch: shapes of a batch of two examples or more.

  Raises:
    LossError: the loss does not fit, or there is no figure named `config.judge`.
    PartError: an own loss cannot be found.
  """
  loss, figure = find(config), judge(config)
  metrics = check(loss, outputs, batch, config.loss)
  if figure.name not in ('loss', *metrics):
    raise LossError(
      f'config.judge={config.judge!r} is none of the figures of config.loss={config.loss!r}: '
      + ', '.join(('loss', *metrics))
    )
  return Objective(loss, metrics, figure)


def check(loss: Loss, outputs: PyTree, batch: PyTree, name: str) -> tuple[str, ...]:
  """Checks what a loss returns, by shapes alone.

  Args:
    loss: the function.
    outputs: shapes of the outputs of the network.
    batch: shapes of a batch of at least two examples.
    name: `config.loss`, for messages.

  Returns:
    The names of the metrics.

  Raises:
    LossError: the loss does not take outputs and labels of these shapes, or returns anything but
      (loss [n], {name: [n]}).
  """
  count = batch['label'].shape[0]
  shown = (
    f'config.loss={name!r} with outputs {_shapes(outputs)} and labels {_shapes(batch["label"])}'
  )
  order: list[str] = []  # JAX sorts the names of a result

  def noted(outputs: PyTree, batch: Batch) -> Any:
    result = loss(outputs, batch)
    if isinstance(result, (tuple, list)) and len(result) == 2 and isinstance(result[1], dict):
      order.extend(result[1])
    return result

  try:
    result = jax.eval_shape(noted, outputs, batch)
  except (TypeError, ValueError) as error:
    raise LossError(f'{shown}: {error}') from error
  if not isinstance(result, (tuple, list)) or len(result) != 2 or not isinstance(result[1], dict):
    raise LossError(f'{shown} must return (loss [n], {{name: [n]}})')
  wrong = {
    key: list(value.shape)
    for key, value in {'loss': result[0], **result[1]}.items()
    if value.shape != (count,)
  }
  if wrong:
    raise LossError(
      f'{shown} must return one number for each of the n={count} examples, but '
      + ', '.join(f'{key} is {shape}' for key, shape in wrong.items())
    )
  if taken := sorted(set(result[1]) & _TAKEN):
    raise LossError(f'{shown}: a metric must have another name than {", ".join(taken)}')
  return tuple(order)


def _shapes(values: PyTree) -> str:
  return ', '.join(f'{leaf.dtype}{list(leaf.shape)}' for leaf in jax.tree.leaves(values))
