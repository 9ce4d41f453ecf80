"""Sparsity penalties on BatchNorm scales, as optax transformations.

`add_l1` and `add_polarization` change gradients and come before momentum. `soft_threshold` and
`clip_scales` change the step and come last in the chain.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import core
import jax.numpy as jnp
import numpy as np
import optax

from slim_jax import batch_norms, tree

_Arrays = list[Any]


def add_l1(
  strength: float | optax.Schedule, mask: Any = batch_norms.scales, *, weights: Any = None
) -> optax.GradientTransformation:
  r"""Adds the subgradient of an L1 penalty on the scales to the updates.

  .. math:: u_\gamma \leftarrow u_\gamma + \lambda \, w_\gamma \, \mathrm{sign}(\gamma)

  with sign(0) = 0. Put it before momentum in the chain. A scale that gets no gradient from the task
  moves by `lr * strength / (1 - momentum)` per step once the momentum has built up.

  Args:
    strength: lambda; a float, or a schedule from the step count to a float.
    mask: which parameters are scales: a tree of bools like the parameters, a prefix of it, or a
      function that returns one for the parameters. Default: BatchNorm scales recognised by their
      names; `batch_norm_scales` says when to pass your own.
    weights: w, a factor on the strength of each scale: a tree like the parameters, or a prefix of
      it, of floats >= 0 or arrays of the scale's shape; None means 1. With the 'params' part of
      `macs_per_channel`'s result, channels that cost more are penalised more.

  Returns:
    An optax transformation; its update needs `params`.

  Raises:
    ValueError: a float strength or a weight is negative; at `init`: the mask selects no parameter,
      or the weights do not fit.

  Example:
    >>> import jax.numpy as jnp, optax, slim_jax
    >>> params = {'BatchNorm_0': {'scale': jnp.array([0.5, -0.5, 0.0]), 'bias': jnp.ones(3)}}
    >>> tx = optax.chain(slim_jax.add_l1(1e-4), optax.sgd(0.1, momentum=0.9, nesterov=True))
    >>> state = tx.init(params)

    A strength that rises over the first thousand steps:

    >>> warmup = optax.linear_schedule(0.0, 1e-4, transition_steps=1000)
    >>> tx = optax.chain(slim_jax.add_l1(warmup), optax.sgd(0.1, momentum=0.9))

  References:
    Liu et al., Learning Efficient Convolutional Networks through Network Slimming, ICCV 2017,
    eq. (1). Weights: Gordon et al., MorphNet, CVPR 2018. There a channel's cost falls as the
    neighbouring layers shrink; here weights are constant.
  """
  _check(strength, 'add_l1: strength')

  def change(count: Any, updates: _Arrays, scales: _Arrays, weighted: _Arrays) -> _Arrays:
    now = _at(strength, count)
    return [
      u + (now * w * jnp.sign(s)).astype(u.dtype)
      for u, s, w in zip(updates, scales, weighted, strict=True)
    ]

  return _on_scales('add_l1', change, mask, weights)


def soft_threshold(
  strength: float | optax.Schedule,
  learning_rate: float | optax.Schedule,
  mask: Any = batch_norms.scales,
  *,
  weights: Any = None,
) -> optax.GradientTransformation:
  r"""Shrinks the scales after the step: the proximal step of an L1 penalty, which gives exact zeros.

  .. math::
    \gamma' = \gamma + u_\gamma, \quad
    \gamma \leftarrow \mathrm{sign}(\gamma') \max(|\gamma'| - \eta \lambda w_\gamma, 0)

  Put it last in the chain, after the learning rate. Its update is the new scale minus the old one,
  so `optax.apply_updates` reaches zero exactly. A scale at zero stays there until a step of the
  task is larger than eta * lambda * w.

  The shrinkage does not enter the momentum. In total it pulls a scale by `strength * sum(lr)`;
  `add_l1` before momentum pulls by `strength * sum(lr) / (1 - momentum)`. Therefore
  `soft_threshold(strength / (1 - momentum), lr)` pulls as far as `add_l1(strength)`, and `l1_pull`
  with momentum 0 computes the distance. Adam and similar optimisers divide by the size of the
  gradient: after them this pull is the same as after SGD, while that of `add_l1` is not known.

  Args:
    strength: lambda; a float, or a schedule from the step count to a float.
    learning_rate: eta, the learning rate of the optimiser before it: the same float, or the same
      schedule. A schedule is evaluated at the same step count.
    mask: which parameters are scales, as in `add_l1`.
    weights: w, as in `add_l1`.

  Returns:
    An optax transformation; its update needs `params`. Updates of scales get the wider of the
    dtypes of update and scale.

  Raises:
    ValueError: a float strength, a float learning rate or a weight is negative; at `init`: the mask
      selects no parameter, or the weights do not fit.

  Example:
    >>> import jax.numpy as jnp, optax, slim_jax
    >>> params = {'BatchNorm_0': {'scale': jnp.array([0.5, -0.5, 0.0005]), 'bias': jnp.ones(3)}}
    >>> lr = optax.cosine_decay_schedule(0.1, decay_steps=1000)
    >>> tx = optax.chain(optax.sgd(lr, momentum=0.9), slim_jax.soft_threshold(0.01, lr))
    >>> updates, state = tx.update(optax.tree.zeros_like(params), tx.init(params), params)
    >>> optax.apply_updates(params, updates)['BatchNorm_0']['scale'].tolist()[2]
    0.0

  References:
    Ye et al., Rethinking the Smaller-Norm-Less-Informative Assumption in Channel Pruning of
    Convolution Layers, ICLR 2018 (arXiv 1802.00124): ISTA on the scales, each layer weighted by the
    cost of a channel, as with `weights` here.
  """
  _check(strength, 'soft_threshold: strength')
  _check(learning_rate, 'soft_threshold: learning_rate')

  def change(count: Any, updates: _Arrays, scales: _Arrays, weighted: _Arrays) -> _Arrays:
    now = _at(learning_rate, count) * _at(strength, count)

    def shrunk(moved: Any, weight: Any) -> Any:
      return jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - (now * weight).astype(moved.dtype), 0)

    return [shrunk(s + u, w) - s for u, s, w in zip(updates, scales, weighted, strict=True)]

  return _on_scales('soft_threshold', change, mask, weights)


def add_polarization(
  strength: float | optax.Schedule,
  t: float | optax.Schedule,
  mask: Any = batch_norms.scales,
  *,
  weights: Any = None,
) -> optax.GradientTransformation:
  r"""Adds the subgradient of the polarization penalty, which splits scales into zero and large ones.

  .. math::
    R(\gamma) = \lambda \sum_i w_i \left(t |\gamma_i| - |\gamma_i - \bar\gamma|\right), \quad
    \bar\gamma = \frac{1}{n} \sum_i \gamma_i

  where i runs over all n scales of the network: all layers share one mean. The mean depends on every
  scale, so the subgradient is

  .. math::
    u_i \leftarrow u_i + \lambda \Big(w_i (t \, \mathrm{sign}(\gamma_i)
      - \mathrm{sign}(\gamma_i - \bar\gamma))
      + \frac{1}{n} \sum_j w_j \, \mathrm{sign}(\gamma_j - \bar\gamma)\Big)

  with sign(0) = 0. Put it before momentum in the chain. For t < 2 the penalty is unbounded below;
  the paper keeps scales in [0, a], with a = 1 in its code, as `clip_scales` does. Within these
  bounds the penalty alone has its minimum where a share 1/2 + t/4 of the scales is 0 and the rest
  is a (-2 <= t <= 2; Theorem 3.2).

  Args:
    strength: lambda; a float, or a schedule from the step count to a float.
    t: weight of the L1 part; a float, or a schedule. With a larger t more scales become 0.
    mask: which parameters are scales, as in `add_l1`.
    weights: w, as in `add_l1`; the mean is not weighted.

  Returns:
    An optax transformation; its update needs `params`.

  Raises:
    ValueError: a float strength or a weight is negative, or a float t is not finite; at `init`: the
      mask selects no parameter, or the weights do not fit.

  Example:
    >>> import jax.numpy as jnp, optax, slim_jax
    >>> params = {'BatchNorm_0': {'scale': jnp.array([0.5, 0.5, 0.1]), 'bias': jnp.ones(3)}}
    >>> tx = optax.chain(slim_jax.add_polarization(1e-4, t=1.2), optax.sgd(0.1, momentum=0.9),
    ...                  slim_jax.clip_scales(0.0, 1.0))
    >>> state = tx.init(params)

  References:
    Zhuang et al., Neuron-level Structured Pruning using Polarization Regularizer, NeurIPS 2020,
    eq. (2) and section 3.2. Their code has weights as an option.
  """
  _check(strength, 'add_polarization: strength')
  if not callable(t) and not isinstance(t, core.Tracer) and not np.isfinite(t):
    raise ValueError(f'add_polarization: t must be a finite number or a schedule, got {t!r}')

  def change(count: Any, updates: _Arrays, scales: _Arrays, weighted: _Arrays) -> _Arrays:
    now, slope = _at(strength, count), _at(t, count)
    # The mean of thousands of bfloat16 numbers needs float32.
    wide = [s.astype(jnp.promote_types(s.dtype, jnp.float32)) for s in scales]
    n = sum(s.size for s in wide)
    mean = sum(jnp.sum(s) for s in wide) / n
    sides = [w * jnp.sign(s - mean) for s, w in zip(wide, weighted, strict=True)]
    common = sum(jnp.sum(side) for side in sides) / n
    return [
      u + (now * (w * slope * jnp.sign(s) - side + common)).astype(u.dtype)
      for u, s, w, side in zip(updates, wide, weighted, sides, strict=True)
    ]

  return _on_scales('add_polarization', change, mask, weights)


def clip_scales(
  low: float = 0.0, high: float = 1.0, mask: Any = batch_norms.scales
) -> optax.GradientTransformation:
  r"""Clips the scales to two bounds after the step: a projection.

  .. math:: \gamma \leftarrow \min(\max(\gamma + u_\gamma, low), high)

  Put it last in the chain. A bound of 0 is reached exactly, other bounds up to rounding.

  Args:
    low: lower bound, at most `high`.
    high: upper bound.
    mask: which parameters are scales, as in `add_l1`.

  Returns:
    An optax transformation; its update needs `params`. Updates of scales get the wider of the
    dtypes of update and scale.

  Raises:
    ValueError: `low` is not at most `high`; at `init`: the mask selects no parameter.

  Example:
    >>> import jax.numpy as jnp, optax, slim_jax
    >>> params = {'BatchNorm_0': {'scale': jnp.array([0.25, 0.5, 1.0])}}
    >>> tx = optax.chain(optax.sgd(1.0), slim_jax.clip_scales(0.0, 1.0))
    >>> grads = {'BatchNorm_0': {'scale': jnp.array([0.5, 0.25, -1.0])}}
    >>> updates, state = tx.update(grads, tx.init(params), params)
    >>> optax.apply_updates(params, updates)['BatchNorm_0']['scale'].tolist()
    [0.0, 0.25, 1.0]

  References:
    Zhuang et al., NeurIPS 2020, section 3.2: the constraint of `add_polarization`.
  """
  if not low <= high:
    raise ValueError(f'clip_scales: low must be at most high, got {low!r} and {high!r}')

  def change(count: Any, updates: _Arrays, scales: _Arrays, weighted: _Arrays) -> _Arrays:
    del count, weighted
    return [jnp.clip(s + u, low, high) - s for u, s in zip(updates, scales, strict=True)]

  return _on_scales('clip_scales', change, mask)


def _on_scales(
  name: str, change: Callable[..., _Arrays], mask: Any, weights: Any = None
) -> optax.GradientTransformation:
  """Returns the transformation that changes the updates of scales only.

  Args:
    name: of the transformation, for errors.
    change: maps the step count, int32 [], and lists of the updates, values and weights of the
      scales to their new updates.
    mask: which parameters are scales, as in `add_l1`.
    weights: as in `add_l1`.
  """
  if wrong := [w for w in jax.tree.leaves(weights) if not np.all(np.asarray(w) >= 0)]:
    raise ValueError(f'{name}: weights must be numbers >= 0, got {wrong[0]!r}')

  def init(params: Any) -> optax.ScaleByScheduleState:
    if jax.tree.leaves(params):  # `optax.tree_map_params` calls `init` with an empty placeholder
      _chosen(params, mask, weights)
    return optax.ScaleByScheduleState(count=jnp.zeros((), jnp.int32))

  def update(
    updates: Any, state: Any, params: Any = None
  ) -> tuple[Any, optax.ScaleByScheduleState]:
    if params is None:
      raise ValueError(f'{name} needs the parameters: call tx.update(grads, opt_state, params)')
    leaves, structure = jax.tree.flatten(updates)
    at, scales, weighted = _chosen(params, mask, weights)
    changed = change(state.count, [leaves[i] for i in at], scales, weighted)
    for i, new in zip(at, changed, strict=True):
      leaves[i] = new
    return (
      jax.tree.unflatten(structure, leaves),
      optax.ScaleByScheduleState(optax.safe_increment(state.count)),
    )

  return optax.GradientTransformation(init, update)


def _chosen(params: Any, mask: Any, weights: Any) -> tuple[list[int], _Arrays, _Arrays]:
  """Returns the number of the leaf, the value and the weight of each scale."""
  paths = set(batch_norms.chosen(params, mask))
  spread = [weight for weight, _ in tree.spread(weights, params, name='weights')]
  at, scales, weighted = [], [], []
  for i, (path, leaf) in enumerate(tree.flatten(params).items()):
    if path in paths:
      weight = 1.0 if spread[i] is None else spread[i]
      if np.shape(weight) and np.shape(weight) != leaf.shape:
        raise ValueError(
          f'weights at {tree.show(path)} must be a number or have shape '
          f'{leaf.shape}, they have shape {np.shape(weight)}'
        )
      at.append(i)
      scales.append(leaf)
      weighted.append(weight)
  return at, scales, weighted


def _at(value: float | optax.Schedule, count: Any) -> jax.Array:
  """Returns the value of a number or schedule at a step."""
  return jnp.asarray(value(count) if callable(value) else value)


def _check(value: float | optax.Schedule, name: str) -> None:
  """Raises if a number is negative. Traced ones, from `optax.inject_hyperparams`, pass."""
  if not callable(value) and not isinstance(value, core.Tracer) and not value >= 0:
    raise ValueError(f'{name} must be a number >= 0 or a schedule, got {value!r}')
