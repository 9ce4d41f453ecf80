"""A batch some images at a time, so that what is made of them stays in the cache."""

from collections.abc import Callable
import functools
import math
import os
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

PyTree = Any

# Pixels at a time: rows of the matrices that are multiplied.
_ROWS = 1024


def joined(
  f: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  shape: tuple[int, ...],
  dtype: Any,
  *,
  cores: int = 1,
) -> jax.Array:
  """`f(x)`, of this shape.

  Args:
    f: maps images, [some of the batch, ...], to as many results.
    x: [batch, spatial..., channels].
    shape: of all results.
    dtype: of all results.
    cores: how many share one part.
  """
  count, size = number(x.shape, cores)

  def add(i: jax.Array, y: jax.Array) -> jax.Array:
    done = f(lax.dynamic_slice_in_dim(x, i * size, size))
    return lax.dynamic_update_slice_in_dim(y, done, i * size, 0)

  return lax.fori_loop(0, count, add, jnp.zeros(shape, dtype))


def summed(f: Callable[..., PyTree], zeros: PyTree, *batches: jax.Array, cores: int = 1) -> PyTree:
  """`f(*batches)`, a sum over images, like `zeros`; batches are [batch, spatial..., channels].

  The loop reads the arrays as they are: cut up or padded before it, XLA would make them twice.
  """
  count, size = number(batches[0].shape, cores)

  def add(i: jax.Array, total: PyTree) -> PyTree:
    return jax.tree.map(
      jnp.add, total, f(*(lax.dynamic_slice_in_dim(batch, i * size, size) for batch in batches))
    )

  return lax.fori_loop(0, count, add, zeros)


def number(shape: tuple[int, ...], cores: int = 1) -> tuple[int, int]:
  """How many parts of how many images, of a shape [batch, spatial..., channels]."""
  most = max(1, math.prod(shape[:-1]) // (cores * _ROWS))
  count = max(d for d in range(1, min(shape[0], most) + 1) if shape[0] % d == 0)
  return count, shape[0] // count


@functools.cache
def all_cores() -> int:
  """Those that XLA's threads may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
