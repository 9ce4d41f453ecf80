"""Operations that move axes about without arithmetic: transpose, broadcast, reshape...

Reads are chosen so that the operand arrives as exactly the elements the result is
made of; evaluation then only rewrites the parameters that name a shape.
"""

from collections.abc import Sequence
import math
from typing import Any

from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Fact, Rule, register, run_thin
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p

# transpose: result axis i is operand axis permutation[i].


def _transpose_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support = facts[0].support
  if support.empty:
    return [support]
  return [Region(tuple(support.axes[i] for i in eqn.params['permutation']))]


def _transpose_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  return [Region(tuple(live[0].axes[i] for i in np.argsort(eqn.params['permutation'])))]


register([p.transpose_p], Rule(_transpose_support, _transpose_reads, run_thin))


# rev: indices of the named axes run backwards.


def _reversed(region: Region, dimensions: Sequence[int]) -> Region:
  if region.empty:
    return region
  return Region(
    tuple(
      axis[::-1] if i in dimensions and axis is not None else axis
      for i, axis in enumerate(region.axes)
    )
  )


register(
  [p.rev_p],
  Rule(
    lambda eqn, facts: [_reversed(facts[0].support, eqn.params['dimensions'])],
    lambda eqn, facts, live: [_reversed(live[0], eqn.params['dimensions'])],
    run_thin,
  ),
)


# permute: indices of one axis change places.


def _permute_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support, axis, index = facts[0].support, eqn.params['axis'], eqn.params['index']
  if support.empty or support.axes[axis] is None:
    return [support]
  return [regions.along(support, axis, support.axes[axis][index])]


def _permute_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  axis, index = eqn.params['axis'], eqn.params['index']
  if live[0].empty or live[0].axes[axis] is None:
    return [live[0]]
  read = np.zeros(len(index), bool)
  read[index[live[0].axes[axis]]] = True
  return [regions.along(live[0], axis, read)]


def _permute_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  del facts
  (x,), axis, index = arrays, eqn.params['axis'], eqn.params['index']
  if live[0].axes[axis] is None:
    split, order, _ = eqn.params['steps']
    parts = split.out_avals[0].shape[axis : axis + len(split.out_avals[0].shape) - x.ndim + 1]
    y = lax.reshape(x, (*x.shape[:axis], *parts, *x.shape[axis + 1 :]))
    return [lax.reshape(lax.transpose(y, order.params['permutation']), x.shape)]
  # The operand arrives with the wanted indices alone: count among those.
  held = regions.vector(reads[0].axes[axis], len(index))
  places = (np.cumsum(held) - 1)[index[live[0].axes[axis]]].astype(np.int32)
  at = (slice(None),) * axis + (places,)
  return [jnp.asarray(x).at[at].get(mode='promise_in_bounds', unique_indices=True)]


register([jaxprs.permute_p], Rule(_permute_support, _permute_reads, _permute_evaluate))


# squeeze: axes of size 1 go.


def _squeeze_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support = facts[0].support
  if support.empty:
    return [support]
  gone = eqn.params['dimensions']
  return [Region(tuple(axis for i, axis in enumerate(support.axes) if i not in gone))]


def _squeeze_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  gone, axes = eqn.params['dimensions'], iter(live[0].axes)
  rank = len(eqn.in_avals[0].shape)
  return [Region(tuple(None if i in gone else next(axes) for i in range(rank)))]


register([p.squeeze_p], Rule(_squeeze_support, _squeeze_reads, run_thin))


# broadcast_in_dim: operand axis i is result axis broadcast_dimensions[i], or stretches from 1.


def _kept_axes(eqn: Equation) -> list[tuple[int, int]]:
  """Pairs of operand axis and result axis whose indices are tied."""
  shape, out = eqn.in_avals[0].shape, eqn.params['shape']
  return [(i, o) for i, o in enumerate(eqn.params['broadcast_dimensions']) if shape[i] == out[o]]


def _broadcast_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support = facts[0].support
  if support.empty:
    return [support]
  axes: list[Axis] = [None] * len(eqn.params['shape'])
  for i, o in _kept_axes(eqn):
    axes[o] = support.axes[i]
  return [Region(tuple(axes))]


def _broadcast_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  axes: list[Axis] = [None] * len(eqn.in_avals[0].shape)
  for i, o in _kept_axes(eqn):
    axes[i] = live[0].axes[o]
  return [Region(tuple(axes))] + [regions.whole(0) for _ in facts[1:]]


def _broadcast_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  del facts, reads
  return jaxprs.bind(eqn, *arrays, shape=regions.shape_of(live[0], eqn.params['shape']))


register([p.broadcast_in_dim_p], Rule(_broadcast_support, _broadcast_reads, _broadcast_evaluate))


# reshape: both shapes fall into groups of axes with equal products; a group of more than one
# axis on either side is merged to one flat axis and split again.


def groups(shape: Sequence[int], out: Sequence[int]) -> list[tuple[list[int], list[int]]]:
  """Smallest runs of axes of `shape` and of `out` that hold the same elements."""
  result: list[tuple[list[int], list[int]]] = []
  i = j = 0
  while i < len(shape) or j < len(out):
    left, right = [], []
    n = m = 1
    if i < len(shape):
      left, n, i = [i], shape[i], i + 1
    if j < len(out):
      right, m, j = [j], out[j], j + 1
    while n != m:
      if n < m and i < len(shape):
        left, n, i = left + [i], n * shape[i], i + 1
      elif j < len(out):
        right, m, j = right + [j], m * out[j], j + 1
      else:
        left, n, i = left + [i], n * shape[i], i + 1
    result.append((left, right))
  return result


def _flat(axes: list[Axis], sizes: list[int]) -> Axis:
  """The index set of the merged axis."""
  if all(axis is None for axis in axes):
    return None
  merged = np.ones((1,), bool)
  for axis, size in zip(axes, sizes, strict=True):
    merged = np.outer(merged, regions.vector(axis, size)).ravel()
  return merged


def _split(flat: Axis, sizes: list[int]) -> list[Axis]:
  """The smallest index sets whose product holds `flat`, split to axes of `sizes`."""
  if flat is None:
    return [None] * len(sizes)
  grid = flat.reshape(sizes)
  dims = range(len(sizes))
  return [grid.any(axis=tuple(d for d in dims if d != i)) for i in dims]


def _through(region: Region, shape: Sequence[int], out: Sequence[int]) -> Region:
  """The smallest region of `out` that holds a region of `shape`."""
  if region.empty or region.is_whole:
    return region if region.empty else regions.whole(len(out))
  axes: list[Axis] = [None] * len(out)
  for left, right in groups(shape, out):
    flat = _flat([region.axes[i] for i in left], [shape[i] for i in left])
    for j, axis in zip(right, _split(flat, [out[j] for j in right]), strict=True):
      axes[j] = axis
  return regions.normal(axes)


def _is_plain(eqn: Equation) -> bool:
  return eqn.params['dimensions'] is None and 0 not in eqn.in_avals[0].shape


def _reshape_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  shape, out = eqn.in_avals[0].shape, eqn.out_avals[0].shape
  if facts[0].support.empty:
    return [regions.nothing()]
  return [_through(facts[0].support, shape, out) if _is_plain(eqn) else regions.whole(len(out))]


def _reshape_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  shape, out = eqn.in_avals[0].shape, eqn.out_avals[0].shape
  read = _through(live[0], out, shape) if _is_plain(eqn) else regions.whole(len(shape))
  return [read] + [regions.whole(0) for _ in facts[1:]]


def _reshape_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  shape, out = eqn.in_avals[0].shape, eqn.out_avals[0].shape
  if not _is_plain(eqn):
    return [
      regions.take(r, regions.whole(len(out)), live[0], out) for r in jaxprs.bind(eqn, *arrays)
    ]
  have, want, sizes = [], [], []
  for left, right in groups(shape, out):
    have.append(_flat([reads[0].axes[i] for i in left], [shape[i] for i in left]))
    want.append(_flat([live[0].axes[j] for j in right], [out[j] for j in right]))
    sizes.append(math.prod(shape[i] for i in left))
  (array,) = arrays
  if not all(map(regions.same_axis, have, want)):
    merged = lax.reshape(array, [regions.width(h, n) for h, n in zip(have, sizes, strict=True)])
    array = regions.take(merged, Region(tuple(have)), Region(tuple(want)), sizes)
  return [lax.reshape(array, regions.shape_of(live[0], out))]


register([p.reshape_p], Rule(_reshape_support, _reshape_reads, _reshape_evaluate))
