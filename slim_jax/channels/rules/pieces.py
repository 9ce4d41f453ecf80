"""Operations that cut arrays apart and put them together: concatenate, split, slice, pad."""

from typing import Any

import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Fact, Rule, cut, register
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p

# concatenate: the result's axis is the operands' axes one after the other.


def _concatenate_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  axis = eqn.params['dimension']
  parts, rest = [], regions.nothing()
  for fact, aval in zip(facts, eqn.in_avals, strict=True):
    size = aval.shape[axis]
    if fact.support.empty:
      parts.append(np.zeros(size, bool))
    else:
      parts.append(regions.vector(fact.support.axes[axis], size))
      rest = regions.union(rest, regions.along(fact.support, axis, None))
  if rest.empty:
    return [rest]
  return [regions.along(rest, axis, np.concatenate(parts))]


def _concatenate_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  axis = eqn.params['dimension']
  wanted = regions.vector(live[0].axes[axis], eqn.out_avals[0].shape[axis])
  ends = np.cumsum([a.shape[axis] for a in eqn.in_avals])
  return [regions.along(live[0], axis, part) for part in np.split(wanted, ends[:-1])]


def _concatenate_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  del facts, reads, live
  pieces = [a for a in arrays if a is not None]
  return pieces if len(pieces) == 1 else jaxprs.bind(eqn, *pieces)


register([p.concatenate_p], Rule(_concatenate_support, _concatenate_reads, _concatenate_evaluate))


# split: the other way round.


def _split_parts(eqn: Equation, axis: Axis) -> list[Axis]:
  sizes = eqn.params['sizes']
  if axis is None:
    return [None] * len(sizes)
  return np.split(axis, np.cumsum(sizes)[:-1])


def _split_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  support, axis = facts[0].support, eqn.params['axis']
  if support.empty:
    return [support] * len(eqn.out_avals)
  return [regions.along(support, axis, part) for part in _split_parts(eqn, support.axes[axis])]


def _split_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  axis, rest, parts = eqn.params['axis'], regions.nothing(), []
  for region, size in zip(live, eqn.params['sizes'], strict=True):
    if region.empty:
      parts.append(np.zeros(size, bool))
    else:
      parts.append(regions.vector(region.axes[axis], size))
      rest = regions.union(rest, regions.along(region, axis, None))
  return [regions.along(rest, axis, np.concatenate(parts))]


def _split_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  del facts
  if reads[0].is_whole and all(region.is_whole for region in live):
    return jaxprs.bind(eqn, *arrays)
  (array,), (read,) = arrays, reads
  axis, shape = eqn.params['axis'], eqn.in_avals[0].shape
  size, start, results = shape[axis], 0, []
  for region, length in zip(live, eqn.params['sizes'], strict=True):
    if region.empty:
      results.append(None)
    else:
      wanted = np.zeros(size, bool)
      wanted[start : start + length] = regions.vector(region.axes[axis], length)
      results.append(regions.take(array, read, regions.along(region, axis, wanted), shape))
    start += length
  return results


register([jaxprs.split_p], Rule(_split_support, _split_reads, _split_evaluate))


# slice: result index j is operand index start + stride * j. Reading just those indices is the
# whole of it.


def _slice_indices(eqn: Equation) -> list[np.ndarray]:
  start, limit = eqn.params['start_indices'], eqn.params['limit_indices']
  strides = eqn.params['strides'] or (1,) * len(start)
  return [np.arange(*bounds) for bounds in zip(start, limit, strides, strict=True)]


def _slice_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  if facts[0].support.empty:
    return [facts[0].support]
  return [
    regions.normal(
      None if axis is None else axis[index]
      for axis, index in zip(facts[0].support.axes, _slice_indices(eqn), strict=True)
    )
  ]


def _slice_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  axes = []
  for axis, index, size in zip(
    live[0].axes, _slice_indices(eqn), eqn.in_avals[0].shape, strict=True
  ):
    read = np.zeros(size, bool)
    read[index if axis is None else index[axis]] = True
    axes.append(read)
  return [regions.normal(axes)]


register(
  [p.slice_p], Rule(_slice_support, _slice_reads, lambda eqn, facts, reads, live, array: [array])
)


# pad: operand index i is result index low + i * (interior + 1); elsewhere the padding value.


def _pad_sources(eqn: Equation) -> list[np.ndarray | None]:
  """Per axis: the operand index of every result index, -1 for padding; None: not padded."""
  sources: list[np.ndarray | None] = []
  for size, out, (low, high, interior) in zip(
    eqn.in_avals[0].shape, eqn.out_avals[0].shape, eqn.params['padding_config'], strict=True
  ):
    if low == high == interior == 0:
      sources.append(None)
      continue
    position = low + np.arange(size) * (interior + 1)
    inside = (position >= 0) & (position < out)
    source = np.full(out, -1)
    source[position[inside]] = np.arange(size)[inside]
    sources.append(source)
  return sources


def _pad_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  x, value = (fact.support for fact in facts)
  sources = _pad_sources(eqn)
  rank = len(sources)
  if not value.empty:
    # Zero slices survive only across the one axis that is padded.
    padded = [i for i, source in enumerate(sources) if source is not None]
    if x.empty or len(padded) != 1 or x.axes[padded[0]] is None:
      return [regions.whole(rank)]
    (axis,) = padded
    source = sources[axis]
    kept = (source < 0) | x.axes[axis][source]
    return [regions.along(regions.whole(rank), axis, kept)]
  if x.empty:
    return [x]
  axes = []
  for axis, source in zip(x.axes, sources, strict=True):
    if source is not None:
      axis = (source >= 0) if axis is None else (source >= 0) & axis[source]
    axes.append(axis)
  return [regions.normal(axes)]


def _is_direct(source: np.ndarray | None, wanted: Axis) -> bool:
  """Whether all that is live along a padded axis comes from the operand."""
  return source is not None and wanted is not None and not (wanted & (source < 0)).any()


def _pad_reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  del facts
  axes: list[Axis] = []
  for wanted, source, size in zip(
    live[0].axes, _pad_sources(eqn), eqn.in_avals[0].shape, strict=True
  ):
    if source is None:
      axes.append(wanted)
    elif _is_direct(source, wanted):
      axes.append(np.isin(np.arange(size), source[wanted]))
    else:
      axes.append(None)
  return [regions.normal(axes), regions.whole(0)]


def _pad_evaluate(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  del facts, reads
  config, have = [], []
  for wanted, source, padding in zip(
    live[0].axes, _pad_sources(eqn), eqn.params['padding_config'], strict=True
  ):
    padded = source is not None and not _is_direct(source, wanted)
    config.append(padding if padded else (0, 0, 0))
    have.append(None if padded else wanted)
  if not any(map(any, config)):  # what is padded is put back where it is read
    return cut([arrays[0]], eqn, [Region(tuple(have))], live)
  return cut(
    jaxprs.bind(eqn, *arrays, padding_config=tuple(config)), eqn, [Region(tuple(have))], live
  )


register([p.pad_p], Rule(_pad_support, _pad_reads, _pad_evaluate))
