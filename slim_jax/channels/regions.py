"""Regions: which indices of an array one speaks of, one set of indices per axis.

A region is a product of index sets. It says where an array may be non-zero (its
support), which part of it somebody needs, which part is held in a thin array.
An axis is `None` when every index is in, else a bool vector [n] with at least one
True and one False; a region without any element is `empty` whatever its axes.
This one form makes 'whole' cheap: most axes of most arrays are None.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from jax import lax
import jax.numpy as jnp
import numpy as np

Axis = np.ndarray | None


class Region(NamedTuple):
  """A product of index sets; see the module docstring. Make it with `normal`."""

  axes: tuple[Axis, ...]
  empty: bool = False

  @property
  def is_whole(self) -> bool:
    return not self.empty and all(axis is None for axis in self.axes)


def normal(axes: Iterable[Axis]) -> Region:
  """The region of these axes in normal form."""
  normal = []
  for axis in axes:
    if axis is None or axis.all():
      normal.append(None)
    elif axis.any():
      normal.append(axis)
    else:
      return nothing()
  return Region(tuple(normal))


def whole(rank: int) -> Region:
  """Every index of every axis."""
  return Region((None,) * rank)


def nothing() -> Region:
  """No element at all."""
  return Region((), True)


def support_of(array: np.ndarray) -> Region:
  """Where a concrete array is not zero, axis by axis; a large one counts as whole."""
  if array.size > 1 << 20:
    return whole(array.ndim)
  nonzero = array != 0
  if not nonzero.any():
    return nothing()
  axes = range(array.ndim)
  return normal(nonzero.any(axis=tuple(a for a in axes if a != axis)) for axis in axes)


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
  if a.empty or b.empty:
    return nothing()
  return normal(map(both, a.axes, b.axes))


def union(a: Region, b: Region) -> Region:
  """The smallest region that holds both regions."""
  if a.empty:
    return b
  if b.empty:
    return a
  return normal(map(either, a.axes, b.axes))


def along(held: Region, axis: int, index_set: Axis) -> Region:
  """The region with the index set of one axis replaced."""
  if held.empty:
    return held
  return normal(index_set if i == axis else a for i, a in enumerate(held.axes))


def contains(a: Region, b: Region) -> bool:
  """Whether every element of `b` is in `a`."""
  return same(union(a, b), a)


def same(a: Region, b: Region) -> bool:
  """Whether two regions hold the same elements."""
  if a.empty or b.empty:
    return a.empty == b.empty
  return all(same_axis(x, y) for x, y in zip(a.axes, b.axes, strict=True))


def same_axis(a: Axis, b: Axis) -> bool:
  """Whether two index sets of one axis are equal."""
  if a is None or b is None:
    return a is b
  return a is b or np.array_equal(a, b)


def width(axis: Axis, size: int) -> int:
  """How many indices of an axis of `size` are in."""
  return size if axis is None else int(axis.sum())


def shape_of(held: Region, shape: Sequence[int]) -> tuple[int, ...]:
  """Shape of an array that holds this region of an array of `shape`."""
  if held.empty:
    return (0,) * len(shape)
  return tuple(width(axis, size) for axis, size in zip(held.axes, shape, strict=True))


def vector(axis: Axis, size: int) -> np.ndarray:
  """The index set as a bool vector [size]."""
  return np.ones(size, bool) if axis is None else axis


def take(array: Any, have: Region, want: Region, shape: Sequence[int]) -> Any:
  """Reads the region `want` of a value of which `array` holds the region `have`.

  Indices that are not held read as zero: nobody asks for an index that is neither
  held nor zero.

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
      step = _even_step(index)
      if step and not isinstance(array, np.ndarray):
        padding[axis] = int(index[0]), len(present) - 1 - int(index[-1]), step - 1
      else:
        array = _place(array, axis, present)
  if any(map(any, padding)):  # all axes at once
    array = lax.pad(array, jnp.zeros((), array.dtype), padding)
  return array


def _pick(array: Any, axis: int, index: np.ndarray) -> Any:
  """Elements at the increasing `index` along `axis`: a slice where that will do."""
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
  if len(index) == 0:
    return jnp.zeros(array.shape[:axis] + (len(present),) + array.shape[axis + 1 :], array.dtype)
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
