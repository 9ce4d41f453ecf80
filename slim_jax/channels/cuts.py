"""What is left of one variable: `Cut`, its live indices, and `Fold`, slices that are summed."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from slim_jax.channels import regions
from slim_jax.channels.regions import Region


@dataclasses.dataclass(frozen=True)
class Cut:
  """The live part of one leaf.

  Attributes:
    shape: shape of the leaf in the original network.
    live: the live region.
  """

  shape: tuple[int, ...]
  live: Region

  @property
  def thin_shape(self) -> tuple[int, ...]:
    """Shape of the thin leaf."""
    return regions.shape_of(self.live, self.shape)

  @property
  def indices(self) -> tuple[np.ndarray, ...]:
    """Live indices of every axis, increasing."""
    return tuple(
      np.flatnonzero(regions.vector(axis, size))
      for axis, size in zip(self.live.axes, self.shape, strict=True)
    )

  @staticmethod
  def at(shape: tuple[int, ...], indices: Sequence[np.ndarray]) -> 'Cut':
    """Returns the cut whose live indices are these, for every axis."""
    axes = []
    for size, index in zip(shape, indices, strict=True):
      axis = np.zeros(size, bool)
      axis[index] = True
      axes.append(axis)
    return Cut(shape, regions.normal(axes))

  def slice(self, leaf: Any) -> Any:
    """Returns the live part of an array (NumPy in, NumPy out; else JAX arrays)."""
    if isinstance(leaf, np.ndarray):
      return leaf[np.ix_(*self.indices)] if self.shape else leaf
    return regions.take(leaf, regions.whole(len(self.shape)), self.live, self.shape)

  def expand(self, thin: Any) -> Any:
    """Undoes `slice`, with zeros where indices were removed."""
    if isinstance(thin, np.ndarray):
      full = np.zeros(self.shape, thin.dtype)
      full[np.ix_(*self.indices) if self.shape else ()] = thin
      return full
    return regions.take(thin, self.live, regions.whole(len(self.shape)), self.shape)


@dataclasses.dataclass(frozen=True)
class Fold:
  """Slices of a kernel that become one: `kernel[carrier] = sum(weights * kernel[sources])`.

  The other sources are no longer used.

  Attributes:
    axis: axis of the kernel that is contracted with the constant channels.
    sources: int [n], increasing, including the carrier if there is one.
    weights: float64 [n], constant of each source divided by that of the carrier.
    carrier: the index that stays; -1 if all constants are zero and none has to.
  """

  axis: int
  sources: np.ndarray
  weights: np.ndarray
  carrier: int

  def kept(self, size: int) -> np.ndarray:
    """Returns bool [size]: which indices of the axis are still used."""
    left = np.ones(size, bool)
    left[self.sources] = False
    if self.carrier >= 0:
      left[self.carrier] = True
    return left

  def apply(self, kernel: Any) -> Any:
    """Returns the kernel [..., size, ...] with the carrier's slice replaced (NumPy in, NumPy out)."""
    if self.carrier < 0:
      return kernel
    at = (slice(None),) * self.axis + (self.carrier,)
    if not isinstance(kernel, np.ndarray):
      parts = jnp.moveaxis(kernel, self.axis, -1)[..., self.sources]
      weights = jnp.asarray(self.weights, kernel.dtype)
      return kernel.at[at].set(jnp.matmul(parts, weights, precision='highest'))
    total = np.moveaxis(kernel, self.axis, -1)[..., self.sources] @ self.weights
    kernel = kernel.copy()
    kernel[at] = total
    return kernel

  def renumbered(self, number: np.ndarray) -> 'Fold':
    """Returns the fold with index i renamed to `number[i]`; -1 where it was removed."""
    sources = number[self.sources]
    carrier = -1 if self.carrier < 0 else int(number[self.carrier])
    return Fold(self.axis, sources[sources >= 0], self.weights[sources >= 0], carrier)
