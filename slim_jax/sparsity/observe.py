"""How sparse the scales are."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import batch_norms, tree

PyTree = Any

# |scale| below which a channel is as good as gone, for the figure that reports its share.
SMALL = 0.01
# |scale| below which shares are shown as training goes.
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)


def scale_shares(
  params: Any,
  thresholds: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
  mask: Any = batch_norms.scales,
) -> dict[float, jax.Array]:
  """How sparse the scales are: the share of all |scale| below each threshold.

  A function for `jit`, for a line of a log: by it one sees early whether sparsity appears at all.

  Args:
    params: the parameters (or all variables).
    thresholds: numbers > 0, in units of the scales.
    mask: which parameters, as `add_l1` takes it.

  Returns:
    By threshold, the share of the scales of all layers that are strictly below it: float32 [], in
    [0, 1].

  Raises:
    ValueError: when a threshold is not positive, or the mask names no parameter.

  Example:
    >>> import jax.numpy as jnp, slim_jax
    >>> params = {'BatchNorm_0': {'scale': jnp.array([0.5, -0.005, 0.0, 0.02])}}
    >>> shares = slim_jax.scale_shares(params, thresholds=(1e-2, 1e-1))
    >>> {threshold: float(share) for threshold, share in shares.items()}
    {0.01: 0.5, 0.1: 0.75}
  """
  if wrong := [threshold for threshold in thresholds if not threshold > 0]:
    raise ValueError(f'scale_shares: thresholds must be positive, got {wrong}')
  leaves = tree.flatten(params)
  scales = [jnp.abs(leaves[path]) for path in batch_norms.chosen(params, mask)]
  n = sum(s.size for s in scales)
  return {
    threshold: jnp.asarray(sum(jnp.sum(s < threshold) for s in scales) / n, jnp.float32)
    for threshold in thresholds
  }


def shares(params: PyTree) -> dict[str, dict[str, float]]:
  """{'scales_below': {threshold: share of all |scale|}}, for a line of metrics."""
  found = scale_shares(params, THRESHOLDS)
  return {'scales_below': {f'{threshold:g}': float(share) for threshold, share in found.items()}}


def say(found: Mapping[str, Mapping[str, float]]) -> str:
  """`shares` for people."""
  return 'scales below ' + ', '.join(
    f'{threshold}: {share:.1%}' for threshold, share in found['scales_below'].items()
  )


def by_layer(params: PyTree) -> dict[str, np.ndarray]:
  """|scale| of each BatchNorm, float [channels], by its path in the variables."""
  leaves = tree.flatten(params)
  return {
    tree.show(('params', *path)): np.abs(np.ravel(leaves[path]))
    for path in batch_norms.chosen(params)
  }


def scales(variables: PyTree) -> np.ndarray:
  """|scale| of all BatchNorms, float [channels]."""
  leaves = tree.flatten(variables)
  return np.concatenate([np.abs(np.ravel(leaves[path])) for path in batch_norms.chosen(variables)])
