"""The state of training: parameters, statistics and the state of the optimiser."""

from collections.abc import Callable
from typing import Any

from flax import struct
import jax
import jax.numpy as jnp
import optax

PyTree = Any


class TrainState(struct.PyTreeNode):
  """The arrays that training changes, and the two functions that change them.

  Attributes:
    step: int32 [], optimiser steps taken in this stage.
    params: parameters, float32.
    batch_stats: running statistics of BatchNorm; {} for a model without BatchNorm.
    opt_state: state of `tx`.
    apply_fn: `(params, batch_stats, image, key)` -> `(logits, batch_stats)`, in
      training mode; the key seeds dropout and other noise.
    tx: optax transformation of the gradients.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree
  apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
  tx: optax.GradientTransformation = struct.field(pytree_node=False)


def create_state(
  apply_fn: Callable[..., Any], variables: PyTree, tx: optax.GradientTransformation
) -> TrainState:
  """Returns a state at step 0, with a fresh optimiser state.

  Args:
    apply_fn: see `TrainState`.
    variables: {'params': ..., 'batch_stats': ...}; the statistics may be absent.
    tx: optax transformation of the gradients.
  """
  return TrainState(
    step=jnp.zeros([], jnp.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=tx.init(variables['params']),
    apply_fn=apply_fn,
    tx=tx,
  )


def variables_of(state: TrainState) -> PyTree:
  """Returns {'params': ..., 'batch_stats': ...} of a state."""
  return {'params': state.params, 'batch_stats': state.batch_stats}
