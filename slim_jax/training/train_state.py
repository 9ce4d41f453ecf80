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
    ema: moving averages of params and batch_stats, {'params': ..., 'batch_stats': ...}, which are
      what is evaluated and exported; {} without averaging.
    apply_fn: `(params, batch_stats, image, key)` -> `(logits, batch_stats)`, in
      training mode; the key seeds dropout and other noise.
    tx: optax transformation of the gradients.
    ema_decay: decay of the averages; 0 for none.
  """

  step: jax.Array
  params: PyTree
  batch_stats: PyTree
  opt_state: PyTree
  apply_fn: Callable[..., Any] = struct.field(pytree_node=False)
  tx: optax.GradientTransformation = struct.field(pytree_node=False)
  ema: PyTree = struct.field(default_factory=dict)
  ema_decay: float = struct.field(pytree_node=False, default=0.0)


def create_state(
  apply_fn: Callable[..., Any],
  variables: PyTree,
  tx: optax.GradientTransformation,
  *,
  ema_decay: float = 0.0,
) -> TrainState:
  """Returns a state at step 0, with a fresh optimiser state.

  Args:
    apply_fn: see `TrainState`.
    variables: {'params': ..., 'batch_stats': ...}; the statistics may be absent.
    tx: optax transformation of the gradients.
    ema_decay: decay of the averages; 0 for none.
  """
  state = TrainState(
    step=jnp.zeros([], jnp.int32),
    params=variables['params'],
    batch_stats=variables.get('batch_stats', {}),
    opt_state=jax.jit(tx.init)(variables['params']),  # one program instead of some for each leaf
    apply_fn=apply_fn,
    tx=tx,
    ema_decay=ema_decay,
  )
  return restart_averages(state)


def restart_averages(state: TrainState) -> TrainState:
  """Returns the state with averages that begin with its parameters and statistics."""
  if not state.ema_decay:
    return state
  # Copies, since the step consumes the buffers of parameters and averages.
  return state.replace(
    ema=jax.tree.map(jnp.copy, {'params': state.params, 'batch_stats': state.batch_stats})
  )


def averaged(state: TrainState) -> TrainState:
  """Returns the state with averages after its step.

      ema = decay * ema + (1 - decay) * w,    decay = min(ema_decay, (1 + step) / (10 + step))

  The smaller decay of the first steps forgets the initial weights sooner.
  """
  if not state.ema_decay:
    return state
  step = state.step.astype(jnp.float32)
  decay = jnp.minimum(state.ema_decay, (1 + step) / (10 + step))
  now = {'params': state.params, 'batch_stats': state.batch_stats}
  return state.replace(ema=optax.incremental_update(now, state.ema, 1 - decay))


def variables_of(state: TrainState) -> PyTree:
  """Returns {'params': ..., 'batch_stats': ...} of a state: its averages, if it has them."""
  return state.ema or {'params': state.params, 'batch_stats': state.batch_stats}
