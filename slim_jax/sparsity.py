"""Sparsity terms on BatchNorm scales, as optax transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from slim_jax import batch_norms, tree


def add_l1(strength: float | optax.Schedule, mask: Any = batch_norms.scales,
           ) -> optax.GradientTransformation:
  r"""Adds the subgradient of an L1 penalty on the scales to the updates.

  .. math:: u_\gamma \leftarrow u_\gamma + \lambda \, \mathrm{sign}(\gamma)

  with sign(0) = 0. Stands where gradients are still gradients: before momentum. A scale that gets
  no gradient from the task moves by `lr * strength / (1 - momentum)` a step in the long run.

  Args:
    strength: lambda; a float, or a schedule from the step count to a float.
    mask: which parameters: a tree of bools like the parameters, a prefix of it, or a function
      that makes one of the parameters. Default: BatchNorm scales, told by names; see
      `batch_norm_scales` for when to pass your own.

  Returns:
    An optax transformation; its update needs `params`.

  Raises:
    ValueError: at `init` when the mask names no parameter, or a float strength is negative.

  Example:
    >>> import jax.numpy as jnp, optax, slim_jax
    >>> params = {'BatchNorm_0': {'scale': jnp.array([0.5, -0.5, 0.0]), 'bias': jnp.ones(3)}}
    >>> tx = optax.chain(slim_jax.add_l1(1e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))
    >>> state = tx.init(params)

  References:
    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017,
    eq. (1).
  """
  if not callable(strength) and not strength >= 0:
    raise ValueError(f'add_l1: strength must be a number >= 0 or a schedule, got {strength!r}')

  def init(params: Any) -> optax.ScaleByScheduleState:
    if jax.tree.leaves(params):  # optax maps states by initialising with an empty placeholder
      batch_norms.chosen(params, mask)
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(updates: Any, state: optax.ScaleByScheduleState, params: Any = None) -> Any:
    if params is None:
      raise ValueError('add_l1 needs the parameters: call tx.update(grads, opt_state, params)')
    now = strength(state.count) if callable(strength) else strength
    chosen = mask(params) if callable(mask) else mask
    updates = tree_where(chosen, lambda g, w: g + (now * jnp.sign(w)).astype(g.dtype),
                         updates, params)
    return updates, optax.ScaleByScheduleState(optax.safe_increment(state.count))

  return optax.GradientTransformation(init, update)


def tree_where(mask: Any, f: Callable[..., Any], updates: Any, params: Any) -> Any:
  """`f(update, param)` where the (prefix) mask is True, the update unchanged elsewhere."""
  named = [chosen for chosen, _ in tree.spread(mask, params, name='mask')]
  leaves, structure = jax.tree.flatten(updates)
  moved = [f(u, p) if chosen else u
           for chosen, u, p in zip(named, leaves, jax.tree.leaves(params), strict=True)]
  return jax.tree.unflatten(structure, moved)
