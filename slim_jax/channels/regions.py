"""Regions: a set of indices for every axis of an array.

A region is a product of index sets. It says where an array may be non-zero (its support), which
part of it is read, or which part a thin array holds.

An axis of a region is `None` when all indices are in, else a bool vector [n] with at least one
True and one False. Most axes of most arrays are None, and None is cheap. An empty region has
`NO_INDEX` in every axis, and a flag that a scalar, which has no axes, needs. So every region of an
array has as many axes as the array, and operations on axes need not ask whether it is empty.
"""

from collections.abc import Hashable, Iterable, Sequence
import functools
from typing import Any, NamedTuple

from jax import lax
import jax.numpy as jnp
import numpy as np

Axis = np.ndarray | None

NO_INDEX = np.zeros(1, bool)
"""The empty index set of an axis of any size: one False that broadcasts."""
NO_INDEX.flags.writeable = False


class Region(NamedTuple):
  """A product of index sets; see the module docstring. Make it with `normal`.

  Attributes:
    axes: the index set of each axis.
    empty: whether there is no element in it.
  """

  axes: tuple[Axis, ...]
  empty: bool = False

  @property
  def is_whole(self) -> bool:
    return not self.empty and all(axis is None for axis in self.axes)

  @property
  def key(self) -> Hashable:
    """Equal for regions of equal elements."""
    return self.empty, *(axis if axis is None else axis.tobytes() for axis in self.axes)

  def with_axes(self, axes: Iterable[Axis]) -> 'Region':
    """The region of these axes, perhaps more or fewer; empty if this region is."""
    return normal(axes, empty=self.empty)


def normal(axes: Iterable[Axis], *, empty: bool = False) -> Region:
  """Returns the region of these axes in normal form.

  Args:
    axes: index sets; an all-False one makes the region empty.
    empty: whether it is empty whatever the axes are.
  """
  result = []
  for axis in axes:
    if axis is not None:
      n = np.count_nonzero(axis)
      if n == len(axis):
        axis = None
      elif n == 0:
        empty = True
    result.append(axis)
  return nothing(len(result)) if empty else Region(tuple(result))


@functools.cache
def whole(rank: int) -> Region:
  """All indices of all axes."""
  return Region((None,) * rank)


@functools.cache
def nothing(rank: int) -> Region:
  """No element at all."""
  return Region((NO_INDEX,) * rank, True)


def support_of(array: np.ndarray) -> Region:
  """Where a concrete array is not zero, axis by axis; a large one counts as whole."""
  if array.size > 1 << 20:
    return whole(array.ndim)
  nonzero = array != 0
  axes = range(array.ndim)
  return normal(
    (nonzero.any(axis=tuple(a for a in axes if a != axis)) for axis in axes),
    empty=not nonzero.any(),
  )


def both(a: Axis, b: Axis) -> Axis:
  """Intersection of two index sets of one axis (may be all False: not in normal form)."""
  if a is None:
    return b
  return a if b is None else a & b


def either(a: Axis, b: Axis) -> Axis:
  """Union of two index sets of one axis."""
  return None if a is None or b is None else a | b


def intersect(a: Region, b: Region) -> Region:
  """Elements in both regions."""
  if a.is_whole or b.empty:
    return b
  return normal(map(both, a.axes, b.axes), empty=a.empty)


def union(a: Region, b: Region) -> Region:
  """The smallest region that holds both regions."""
  if a.empty:
    return b
  return a if b.empty else normal(map(either, a.axes, b.axes))


def along(region: Region, axis: int, index_set: Axis) -> Region:
  """The region with the index set of one axis replaced; an empty region stays empty."""
  return region.with_axes(index_set if i == axis else a for i, a in enumerate(region.axes))


def contains(a: Region, b: Region) -> bool:
  """Whether every element of `b` is in `a`."""
  return same(union(a, b), a)


def removed(wanted: Region, have: Region, shape: Sequence[int]) -> str:
  """Says which indices are wanted beyond those there are: 'axis 1: 3 of 6 (0, 1, 2)'."""
  if have.empty:
    return 'all of it'
  parts = []
  for axis, (want, there, size) in enumerate(zip(wanted.axes, have.axes, shape, strict=True)):
    beyond = np.flatnonzero(vector(want, size) & ~vector(there, size))
    if beyond.size:
      some = ', '.join(map(str, beyond[:5])) + (', ...' if beyond.size > 5 else '')
      parts.append(f'axis {axis}: {beyond.size} of {size} ({some})')
  return '; '.join(parts)


def same(a: Region, b: Region) -> bool:
  """Whether two regions hold the same elements."""
  return a is b or (a.empty == b.empty and all(map(same_axis, a.axes, b.axes)))


def same_axis(a: Axis, b: Axis) -> bool:
  """Whether two index sets of one axis are equal."""
  return a is b or (a is not None and b is not None and np.array_equal(a, b))


def width(axis: Axis, size: int) -> int:
  """How many indices of an axis of `size` are in."""
  return size if axis is None else int(np.count_nonzero(axis))


def shape_of(held: Region, shape: Sequence[int]) -> tuple[int, ...]:
  """Shape of an array that holds this region of an array of `shape`."""
  return tuple(map(width, held.axes, shape))


def vector(axis: Axis, size: int) -> np.ndarray:
  """The index set as a bool vector [size]."""
  if axis is None:
    return np.ones(size, bool)
  return np.zeros(size, bool) if axis is NO_INDEX else axis


def indices(region: Region, shape: Sequence[int]) -> tuple[np.ndarray, ...]:
  """The indices of every axis, increasing."""
  return tuple(
    np.flatnonzero(vector(axis, size)) for axis, size in zip(region.axes, shape, strict=True)
  )


def at(axis: Axis, index: Any) -> Axis:
  """The index set of `x[index]` for the index set of x."""
  return axis if axis is None or axis is NO_INDEX else axis[index]


def repeated(axis: Axis, count: int) -> Axis:
  """The index set of `count` parts of an axis, one after the other, that are alike."""
  return axis if axis is None or axis is NO_INDEX else np.tile(axis, count)


def united(axis: Axis, count: int) -> Axis:
  """The index set of a part of an axis that holds the indices of any of its `count` parts."""
  return axis if axis is None or axis is NO_INDEX else np.asarray(axis.reshape(count, -1).any(0))


def take(array: Any, have: Region, want: Region, shape: Sequence[int]) -> Any:
  """Reads the region `want` of a value of which `array` holds the region `have`.

  Indices that are not held read as zero: an index that is read is either held or zero.

  Args:
    array: the held part, of shape `shape_of(have, shape)`.
    have: what `array` holds.
    want: what to read; not empty.
    shape: shape of the full value.

  Returns:
    An array of shape `shape_of(want, shape)`, dtype unchanged.
  """
  if have.empty:
    return jnp.zeros(shape_of(want, shape), array.dtype)
  padding = [(0, 0, 0)] * len(shape)
  for axis, (h, w) in enumerate(zip(have.axes, want.axes, strict=True)):
    if not same_axis(h, w):
      held, wanted = vector(h, shape[axis]), vector(w, shape[axis])
      position = np.cumsum(held) - 1
      present = held[wanted]
      array = _pick(array, axis, position[wanted & held])
      index = np.flatnonzero(present)
      step = _even_step(index) if len(index) > 1 else 0
      if step and not isinstance(array, np.ndarray):
        padding[axis] = int(index[0]), len(present) - 1 - int(index[-1]), step - 1
      else:
        array = _place(array, axis, present)
  if any(map(any, padding)):  # all axes at once
    array = lax.pad(array, jnp.zeros((), array.dtype), padding)
  return array


def _pick(array: Any, axis: int, index: np.ndarray) -> Any:
  """Elements at the increasing `index` along `axis`: a slice where that is enough."""
  if len(index) == array.shape[axis]:
    return array
  if isinstance(array, np.ndarray):
    return array.take(index, axis)
  if len(index) == 0:
    return lax.slice_in_dim(array, 0, 0, axis=axis)
  step = _even_step(index)
  if step:
    return lax.slice_in_dim(array, int(index[0]), int(index[-1]) + 1, step, axis)
  at = (slice(None),) * axis + (index.astype(np.int32),)
  return array.at[at].get(mode='promise_in_bounds', unique_indices=True, indices_are_sorted=True)


def _place(array: Any, axis: int, present: np.ndarray) -> Any:
  """Spreads `array` along `axis` to where `present` is True, zeros between."""
  if present.all():
    return array
  index = np.flatnonzero(present)
  if isinstance(array, np.ndarray):
    spread = np.zeros(array.shape[:axis] + (len(present),) + array.shape[axis + 1 :], array.dtype)
    spread[(slice(None),) * axis + (index,)] = array
    return spread

  def zeros(count: int) -> Any:
    return jnp.zeros(array.shape[:axis] + (count,) + array.shape[axis + 1 :], array.dtype)

  if len(index) == 0:
    return zeros(len(present))
  if len(index) == 1:
    # The transpose of `lax.pad` removes indices by negative padding. XLA's partitioner (of JAX 0.10
    # and 0.12) computes that wrongly where a single index is left of an axis that devices share.
    counts = int(index[0]), len(present) - 1 - int(index[0])
    before, after = ([zeros(count)] if count else [] for count in counts)
    return lax.concatenate([*before, array, *after], axis)
  # An index out of bounds reads as the fill value.
  source = np.where(present, np.cumsum(present) - 1, array.shape[axis]).astype(np.int32)
  at = (slice(None),) * axis + (source,)
  return array.at[at].get(mode='fill', fill_value=0)


def _even_step(index: np.ndarray) -> int:
  """The common difference of an increasing sequence; 0 if there is none."""
  if len(index) < 2:
    return len(index)
  steps = np.diff(index)
  return int(steps[0]) if (steps == steps[0]).all() else 0
