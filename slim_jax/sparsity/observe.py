"""How sparse the scales are: shares below thresholds, |scale| by layer and of all layers."""

from collections.abc import Mapping, Sequence
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import batch_norms, tree

PyTree = Any

# A channel with |scale| below this counts as small in the summary of a run.
SMALL = 0.01
# The thresholds of the shares that are logged during training.
THRESHOLDS = (1e-4, 1e-3, 1e-2, 1e-1)


def scale_shares(
  params: Any, thresholds: Sequence[float] = THRESHOLDS, mask: Any = batch_norms.scales
) -> dict[float, jax.Array]:
  """Returns the share of all scales with |scale| below each threshold.

  Works under `jit`. Logged during training, it shows early whether sparsity appears.

  Args:
    params: the parameters, or all variables.
    thresholds: numbers > 0, in units of the scales.
    mask: which parameters are scales, as in `add_l1`.

  Returns:
    By threshold, the share of the scales of all layers that are strictly below it: float32 [], in
    [0, 1].

  Raises:
    ValueError: a threshold is not positive, or the mask selects no parameter.

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
  scales = [leaves[path] for path in batch_norms.chosen(params, mask)]
  n = sum(s.size for s in scales)
  counts = _count_below(scales, tuple(thresholds))
  return {at: jnp.asarray(count / n, jnp.float32) for at, count in zip(thresholds, counts)}


# One program instead of several for each layer.
@functools.partial(jax.jit, static_argnums=1)
def _count_below(scales: Sequence[jax.Array], thresholds: Sequence[float]) -> list[jax.Array]:
  return [jnp.asarray(sum(jnp.sum(jnp.abs(s) < at) for s in scales)) for at in thresholds]


def shares(params: PyTree, mask: Any = batch_norms.scales) -> dict[str, dict[str, float]]:
  """Returns {'scales_below': {threshold: share of all |scale|}}, for a line of metrics."""
  below = scale_shares(params, THRESHOLDS, mask)
  return {'scales_below': {f'{at:g}': float(share) for at, share in below.items()}}


def say(metrics: Mapping[str, Any]) -> str:
  """Formats the share of small scales of what `shares` returns, for people."""
  return f'{metrics["scales_below"][f"{SMALL:g}"]:.1%} of scales below {SMALL:g}'


def by_layer(params: PyTree, mask: Any = batch_norms.scales) -> dict[str, np.ndarray]:
  """Returns |scale| of each layer, float [channels], by the path of the scale in the variables."""
  return {
    tree.show(('params', *path)): np.abs(np.ravel(scale))
    for path, scale in _read(params, mask).items()
  }


def scales(variables: PyTree, mask: Any = batch_norms.scales) -> np.ndarray:
  """Returns |scale| of all layers, float [channels]."""
  return np.concatenate([np.abs(np.ravel(scale)) for scale in _read(variables, mask).values()])


def _read(variables: PyTree, mask: Any) -> dict[tree.Path, np.ndarray]:
  """Returns the scales of all layers, which leave the device together."""
  leaves = tree.flatten(variables)
  return jax.device_get({path: leaves[path] for path in batch_norms.chosen(variables, mask)})
