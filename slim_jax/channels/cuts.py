"""What is left of one variable: `Cut`, its live indices, and `Fold`, slices that are summed."""

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
    live: the live region: what the thin leaf holds.
    filled: what the thin leaf takes from the full one; the rest of it is zero. It is `live`, but for
      a BatchNorm of which only some biases stay (`bias='keep'`): its leaves keep the same channels.
    support: where the masked leaf may be non-zero. What was removed inside it is not zero: no
      planned function needs it.
  """

  shape: tuple[int, ...]
  live: Region
  filled: Region
  support: Region

  @staticmethod
  def of(
    shape: tuple[int, ...],
    live: Region,
    *,
    filled: Region | None = None,
    support: Region | None = None,
  ) -> 'Cut':
    """Returns a cut; by default all that is live is filled, and all that was removed is zero."""
    filled = live if filled is None else filled
    return Cut(shape, live, filled, filled if support is None else support)

  @property
  def thin_shape(self) -> tuple[int, ...]:
    """Shape of the thin leaf."""
    return regions.shape_of(self.live, self.shape)

  @property
  def indices(self) -> tuple[np.ndarray, ...]:
    """Live indices of every axis, increasing."""
    return regions.indices(self.live, self.shape)

  @property
  def is_live(self) -> np.ndarray:
    """Which elements of the leaf are live, bool of its shape."""
    live = np.zeros(self.shape, bool)
    live[np.ix_(*self.indices) if self.shape else ()] = True
    return live

  def slice(self, leaf: Any) -> Any:
    """Returns the live part of an array (NumPy in, NumPy out; else JAX arrays)."""
    if isinstance(leaf, np.ndarray):
      return self._cleared(leaf[np.ix_(*self.indices)] if self.shape else leaf)
    whole = regions.whole(len(self.shape))
    return self._cleared(regions.take(leaf, whole, self.live, self.shape))

  def expand(self, thin: Any) -> Any:
    """Undoes `slice`, with zeros where indices were removed."""
    thin = self._cleared(thin)
    if isinstance(thin, np.ndarray):
      full = np.zeros(self.shape, thin.dtype)
      full[np.ix_(*self.indices) if self.shape else ()] = thin
      return full
    return regions.take(thin, self.live, regions.whole(len(self.shape)), self.shape)

  def _cleared(self, thin: Any) -> Any:
    """Returns the thin array with zeros where it is not filled."""
    if regions.same(self.filled, self.live):
      return thin
    filled = np.zeros(self.thin_shape, bool)
    inside = regions.indices(self.filled, self.shape)
    filled[np.ix_(*map(np.searchsorted, self.indices, inside))] = True
    where = np.where if isinstance(thin, np.ndarray) else jnp.where
    return where(filled, thin, np.zeros((), thin.dtype))

  def then(self, other: 'Cut') -> 'Cut':
    """Returns the cut equal to this one followed by `other`, a cut of the thin leaf."""

    def outside(inner: Region, beyond: bool) -> Region:
      """A region of the thin leaf in indices of the full one, with or without what was removed."""
      axes = []
      for size, live, axis in zip(self.shape, self.indices, inner.axes, strict=True):
        full = np.full(size, beyond)
        full[live] = regions.vector(axis, len(live))
        axes.append(full)
      return regions.normal(axes, empty=inner.empty)

    return Cut(
      self.shape,
      outside(other.live, False),
      regions.intersect(self.filled, outside(other.filled, False)),
      # Of what this cut removed, only its own support tells whether it is zero.
      regions.intersect(self.support, outside(other.support, True)),
    )

  def relative_to(self, earlier: 'Cut') -> 'Cut':
    """Returns the cut that takes the thin leaf of `earlier` to that of this one."""

    def within(region: Region) -> Region:
      if region.empty:
        return region
      return region.with_axes(
        None if axis is None else axis[i] for axis, i in zip(region.axes, earlier.indices)
      )

    return Cut(earlier.thin_shape, within(self.live), within(self.filled), within(self.support))


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

  def is_close(self, other: 'Fold') -> bool:
    """Returns whether two folds of a kernel are the same, up to rounding."""
    return (
      (self.axis, self.carrier) == (other.axis, other.carrier)
      and np.array_equal(self.sources, other.sources)
      and np.allclose(self.weights, other.weights)
    )

  def renumbered(self, number: np.ndarray) -> 'Fold':
    """Returns the fold with index i renamed to `number[i]`; -1 where it was removed."""
    sources = number[self.sources]
    carrier = -1 if self.carrier < 0 else int(number[self.carrier])
    return Fold(self.axis, sources[sources >= 0], self.weights[sources >= 0], carrier)
