"""Distillation: the outputs of a teacher as a part of the loss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from slim_jax.training import losses

PyTree = Any


class Teacher(NamedTuple):
  """A network to learn from.

  Attributes:
    predict: `(variables, image)` -> outputs, in inference mode.
    variables: of the teacher.
    weight: share of the loss that is the difference from the teacher, 0 to 1.
    temperature: divides the logits of both.
    difference: a value of `DIFFERENCES`.
  """

  predict: Callable[[PyTree, jax.Array], Any]
  variables: PyTree
  weight: float
  temperature: float
  difference: Callable[[Any, Any, float], jax.Array]

  def loss(self, task: losses.Loss) -> losses.Loss:
    """Returns the loss of the task blended with the difference from batch['teacher']."""

    def blended(outputs: Any, batch: losses.Batch) -> tuple[jax.Array, dict[str, jax.Array]]:
      each, metrics = task(outputs, batch)
      apart = self.difference(outputs, batch['teacher'], self.temperature)
      return (1 - self.weight) * each + self.weight * apart, metrics

    return blended


def of_classes(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Returns T^2 KL(softmax(teacher / T) || softmax(logits / T)), float [n].

  Args:
    logits: float [n, ..., classes].
    teacher: likewise.
    temperature: T.

  References:
    Hinton et al., 2015.
  """
  logits, teacher = (x.astype(jnp.float32) / temperature for x in (logits, teacher))
  apart = optax.kl_divergence(jax.nn.log_softmax(logits), jax.nn.softmax(teacher))
  return temperature**2 * apart.reshape(len(apart), -1).mean(1)


def of_labels(logits: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Returns T^2 times the binary cross-entropy to the teacher's probabilities, float [n]."""
  logits, teacher = (x.astype(jnp.float32) / temperature for x in (logits, teacher))
  apart = optax.sigmoid_binary_cross_entropy(logits, jax.nn.sigmoid(teacher))
  return temperature**2 * apart.mean(-1)


def of_numbers(outputs: jax.Array, teacher: jax.Array, temperature: float) -> jax.Array:
  """Returns the mean squared difference, float [n]; numbers have no temperature."""
  del temperature
  apart = (outputs.astype(jnp.float32) - teacher.astype(jnp.float32)) ** 2
  return apart.reshape(len(apart), -1).mean(1)


# By `config.loss`.
DIFFERENCES = {
  'classification': of_classes,
  'multi_label': of_labels,
  'regression': of_numbers,
  'segmentation': of_classes,
}
