"""What becomes of one variable: which indices are left, and what slices are added up."""

from collections.abc import Sequence
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax.channels import blocks
from slim_jax.channels.blocks import Block


@dataclasses.dataclass(frozen=True)
class Cut:
  """What is left of one leaf.

  Attributes:
    shape: shape of the leaf in the original network.
    live: the block that is left.
  """
  shape: tuple[int, ...]
  live: Block

  @property
  def thin_shape(self) -> tuple[int, ...]:
    return blocks.shape_of(self.live, self.shape)

  @property
  def indices(self) -> tuple[np.ndarray, ...]:
    """Live indices of every axis, increasing."""
    if self.live.empty:
      return tuple(np.arange(0) for _ in self.shape)
    return tuple(np.flatnonzero(blocks.vector(axis, size))
                 for axis, size in zip(self.live.axes, self.shape, strict=True))

  @staticmethod
  def at(shape: tuple[int, ...], indices: Sequence[np.ndarray]) -> 'Cut':
    """The cut that leaves these indices of every axis."""
    axes = []
    for size, index in zip(shape, indices, strict=True):
      axis = np.zeros(size, bool)
      axis[index] = True
      axes.append(axis)
    return Cut(shape, blocks.block(axes))

  def slice(self, leaf: Any) -> Any:
    """The live part of an array or a shape."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(self.thin_shape, leaf.dtype)
    if self.live.is_whole:
      return leaf
    if isinstance(leaf, jax.core.Tracer):
      return leaf[jnp.ix_(*self.indices)]
    # On the host: NumPy raises on a bad index, JAX would clamp it.
    thin = np.asarray(leaf)
    for i, index in enumerate(self.indices):
      if len(index) < self.shape[i]:
        thin = thin.take(index, i)
    return thin if isinstance(leaf, np.ndarray) else jax.device_put(thin)

  def expand(self, thin: Any) -> Any:
    """A thin array or shape as it was, zeros put back."""
    if isinstance(thin, jax.ShapeDtypeStruct):
      return jax.ShapeDtypeStruct(self.shape, thin.dtype)
    if self.live.is_whole:
      return thin
    if isinstance(thin, jax.core.Tracer):
      return jnp.zeros(self.shape, thin.dtype).at[jnp.ix_(*self.indices)].set(thin)
    full = np.zeros(self.shape, thin.dtype)
    full[np.ix_(*self.indices)] = np.asarray(thin)
    return full if isinstance(thin, np.ndarray) else jax.device_put(full)


@dataclasses.dataclass(frozen=True)
class Fold:
  """Slices of a kernel that become one: `kernel[carrier] = sum(weights * kernel[sources])`.

  The other sources are not used any more.

  Attributes:
    axis: of the kernel, along which it meets the constant channels.
    sources: int [n], increasing, the carrier among them if there is one.
    weights: float64 [n]: constant of each source by that of the carrier.
    carrier: the index that stays; -1 when every constant is zero and nothing has to.
  """
  axis: int
  sources: np.ndarray
  weights: np.ndarray
  carrier: int

  def kept(self, size: int) -> np.ndarray:
    """bool [size]: which indices of the axis are still used."""
    left = np.ones(size, bool)
    left[self.sources] = False
    if self.carrier >= 0:
      left[self.carrier] = True
    return left

  def apply(self, kernel: Any) -> Any:
    """The kernel [..., size, ...] with the carrier's slice replaced (NumPy in, NumPy out)."""
    if self.carrier < 0 or isinstance(kernel, jax.ShapeDtypeStruct):
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
    """The same where index i is called `number[i]`, or is not there: -1."""
    sources = number[self.sources]
    carrier = -1 if self.carrier < 0 else int(number[self.carrier])
    return Fold(self.axis, sources[sources >= 0], self.weights[sources >= 0], carrier)
