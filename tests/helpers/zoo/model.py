"""What every library's networks become: pure functions of a tree of variables."""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import tree


class Model(NamedTuple):
  """A network as functions.

  Attributes:
    infer: (variables, x) -> output.
    train: (variables, x, key) -> (output, new state).
    variables: tree of arrays, or of shapes before `randomise`.
    x: an input.
    outs: prefix tree over the results of `train`: which of them follow which variables.
    params: path of the part of the variables that an optimizer moves.
    scales: tree of bools: the leaves whose channels may die.
  """

  infer: Callable[..., Any]
  train: Callable[..., Any]
  variables: Any
  x: Any
  outs: Any
  params: str
  scales: Any = None


SHIFTS = {'bias', 'beta', 'offset', 'mean', 'moving_mean'}


def randomise(variables: Any, dtype: Any, seed: int) -> Any:
  """Random variables: scales and variances positive, kernels of unit gain, none of them zero.

  Counters and keys keep their values (zero where there are only shapes).
  """
  rng = np.random.default_rng(seed)

  def fill(path, leaf):
    shape, names = leaf.shape, '/'.join(path).split('/')
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.zeros(shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf
    if SHIFTS & set(names):
      value = 0.3 * rng.normal(size=shape)
    elif {'scale', 'var'} & set(names) or (
      'kernel' not in names and sum(n != 1 for n in shape) <= 1
    ):
      value = rng.uniform(0.3, 1.5, shape)
    else:  # Keras' depthwise kernels are [height, width, channels, 1]
      fan_in = math.prod(shape[:-2] if len(shape) == 4 and shape[-1] == 1 else shape[:-1])
      value = rng.normal(size=shape) / math.sqrt(max(1, fan_in))
    return jnp.asarray(value, dtype)

  return tree.map_with_path(fill, variables)
