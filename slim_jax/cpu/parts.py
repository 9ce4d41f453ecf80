"""Computes a batch in parts of a few images, so that intermediate arrays stay in the cache."""

from collections.abc import Callable
import functools
import math
import os
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

PyTree = Any

# Pixels per part: rows of the matrices that are multiplied.
_ROWS = 1024


def joined(
  f: Callable[[jax.Array], jax.Array],
  x: jax.Array,
  shape: tuple[int, ...],
  dtype: Any,
  *,
  cores: int = 1,
) -> jax.Array:
  """Returns `f(x)`, computed part by part.

  Args:
    f: maps some images [n, spatial..., channels] to results [n, ...].
    x: [batch, spatial..., channels].
    shape: of `f(x)`.
    dtype: of `f(x)`.
    cores: number of cores that share one part.
  """
  count, size = number(x.shape, cores)

  def add(i: jax.Array, y: jax.Array) -> jax.Array:
    done = f(lax.dynamic_slice_in_dim(x, i * size, size))
    return lax.dynamic_update_slice_in_dim(y, done, i * size, 0)

  return lax.fori_loop(0, count, add, jnp.zeros(shape, dtype))


def summed(f: Callable[..., PyTree], zeros: PyTree, *batches: jax.Array, cores: int = 1) -> PyTree:
  """Returns `f(*batches)`, a sum over images, computed part by part.

  The loop slices the arrays itself. If they were split or padded before the loop, XLA would copy
  them.

  Args:
    f: maps parts [n, spatial..., channels] of the batches to a tree of sums.
    zeros: tree of zeros like the result.
    *batches: [batch, spatial..., channels].
    cores: number of cores that share one part.
  """
  count, size = number(batches[0].shape, cores)

  def add(i: jax.Array, total: PyTree) -> PyTree:
    return jax.tree.map(
      jnp.add, total, f(*(lax.dynamic_slice_in_dim(batch, i * size, size) for batch in batches))
    )

  return lax.fori_loop(0, count, add, zeros)


def number(shape: tuple[int, ...], cores: int = 1) -> tuple[int, int]:
  """Returns the number of parts and of images per part, for [batch, spatial..., channels]."""
  most = max(1, math.prod(shape[:-1]) // (cores * _ROWS))
  count = max(d for d in range(1, min(shape[0], most) + 1) if shape[0] % d == 0)
  return count, shape[0] // count


@functools.cache
def all_cores() -> int:
  """Returns the number of cores that XLA's threads may use."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
