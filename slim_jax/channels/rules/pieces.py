"""Operations that take arrays apart and put them together: concatenate, stack, slice, pad..."""

import functools
from typing import Any

from jax import lax
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Context, Rule, live_parts, nonempty, register, restore
from slim_jax.channels.rules.reduction import drop, insert
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def _joined(parts: list[Region], axis: int, sizes: list[int]) -> Region:
  """The smallest region that holds `parts`, which lie one after the other along an axis."""
  across = functools.reduce(regions.union, (regions.along(part, axis, None) for part in parts))
  if not all(map(jaxprs.is_fixed, sizes)):
    return across
  vectors = [regions.vector(part.axes[axis], n) for part, n in zip(parts, sizes, strict=True)]
  return regions.along(across, axis, np.concatenate(vectors))


def _pieces(region: Region, axis: int, sizes: list[int]) -> list[Region]:
  """The region taken apart along an axis."""
  if not all(map(jaxprs.is_fixed, sizes)):
    return [regions.along(region, axis, None)] * len(sizes)
  vector = regions.vector(region.axes[axis], sum(sizes))
  return [regions.along(region, axis, v) for v in np.split(vector, np.cumsum(sizes)[:-1])]


# concatenate: the result's axis is the operands' axes one after the other.


def _concatenate_sizes(eqn: Equation) -> list[int]:
  return [a.shape[eqn.params['dimension']] for a in eqn.in_avals]


def _concatenate_support(ctx: Context) -> list[Region]:
  return [_joined(ctx.supports, ctx.params['dimension'], _concatenate_sizes(ctx.eqn))]


def _concatenate_reads(ctx: Context) -> list[Region]:
  return _pieces(ctx.live[0], ctx.params['dimension'], _concatenate_sizes(ctx.eqn))


def _concatenate_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  pieces = [a for a in arrays if a is not None]
  return pieces if len(pieces) == 1 else jaxprs.bind(ctx.eqn, *pieces)


register([p.concatenate_p], Rule(_concatenate_support, _concatenate_reads, _concatenate_evaluate))


# split: the inverse.


def _split_support(ctx: Context) -> list[Region]:
  return _pieces(ctx.supports[0], ctx.params['axis'], list(ctx.params['sizes']))


def _split_reads(ctx: Context) -> list[Region]:
  return [_joined(ctx.live, ctx.params['axis'], list(ctx.params['sizes']))]


def _split_evaluate(ctx: Context, array: Any) -> list[Any]:
  if ctx.is_untouched:
    return jaxprs.bind(ctx.eqn, array)
  axis, shape = ctx.params['axis'], ctx.eqn.in_avals[0].shape
  if not all(map(jaxprs.is_fixed, ctx.params['sizes'])):
    return live_parts(ctx, jaxprs.bind(ctx.eqn, array), [ctx.reads[0]] * len(ctx.live))
  start, results = 0, []
  for live, length in zip(ctx.live, ctx.params['sizes'], strict=True):
    if live.empty:
      results.append(None)
    else:
      wanted = np.zeros(shape[axis], bool)
      wanted[start : start + length] = regions.vector(live.axes[axis], length)
      results.append(regions.take(array, ctx.reads[0], regions.along(live, axis, wanted), shape))
    start += length
  return results


register([jaxprs.split_p], Rule(_split_support, _split_reads, _split_evaluate))


# stack: the operands, one for each index of a new axis. unstack: the inverse.


def _stack_support(ctx: Context) -> list[Region]:
  axis = ctx.params['axis']
  layers = [insert(support, [axis], [None]) for support in ctx.supports]
  return [_joined(layers, axis, [1] * len(layers))]


def _stack_reads(ctx: Context) -> list[Region]:
  axis = ctx.params['axis']
  return [drop(layer, [axis]) for layer in _pieces(ctx.live[0], axis, [1] * len(ctx.facts))]


def _stack_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  return jaxprs.bind(ctx.eqn, *(a for a in arrays if a is not None))


def _unstack_support(ctx: Context) -> list[Region]:
  axis, count = ctx.params['axis'], len(ctx.eqn.out_avals)
  return [drop(layer, [axis]) for layer in _pieces(ctx.supports[0], axis, [1] * count)]


def _unstack_reads(ctx: Context) -> list[Region]:
  axis = ctx.params['axis']
  layers = [insert(live, [axis], [None]) for live in ctx.live]
  return [_joined(layers, axis, [1] * len(layers))]


def _unstack_evaluate(ctx: Context, array: Any) -> list[Any]:
  results = restore(jaxprs.bind(ctx.eqn, array), nonempty(ctx.live))
  held = drop(ctx.reads[0], [ctx.params['axis']])
  return live_parts(ctx, results, [held] * len(results))


register(jaxprs.stack_ps, Rule(_stack_support, _stack_reads, _stack_evaluate))
register(jaxprs.unstack_ps, Rule(_unstack_support, _unstack_reads, _unstack_evaluate))


# slice: result index j is operand index start + stride * j. The operand arrives as the result, but
# for axes whose bounds are symbols: those are read whole.


def _slice_bounds(eqn: Equation) -> list[tuple[Any, Any, Any]]:
  start, limit = eqn.params['start_indices'], eqn.params['limit_indices']
  return list(zip(start, limit, eqn.params['strides'] or (1,) * len(start), strict=True))


def _slice_indices(eqn: Equation) -> list[np.ndarray | None]:
  """Per axis: the operand index of every result index; None where sizes are symbols."""
  return [
    np.arange(*bounds) if all(map(jaxprs.is_fixed, (*bounds, size))) else None
    for bounds, size in zip(_slice_bounds(eqn), eqn.in_avals[0].shape, strict=True)
  ]


def _slice_support(ctx: Context) -> list[Region]:
  (support,) = ctx.supports
  return [
    support.with_axes(
      None if index is None else regions.at(axis, index)
      for axis, index in zip(support.axes, _slice_indices(ctx.eqn), strict=True)
    )
  ]


def _slice_reads(ctx: Context) -> list[Region]:
  axes: list[Axis] = []
  for axis, index, size in zip(
    ctx.live[0].axes, _slice_indices(ctx.eqn), ctx.eqn.in_avals[0].shape, strict=True
  ):
    if index is None:
      axes.append(None)
    else:
      read = np.zeros(size, bool)
      read[index if axis is None else index[axis]] = True
      axes.append(read)
  return [regions.normal(axes)]


def _slice_evaluate(ctx: Context, array: Any) -> list[Any]:
  bounds = [
    given if index is None else (0, n, 1)
    for given, index, n in zip(
      _slice_bounds(ctx.eqn), _slice_indices(ctx.eqn), array.shape, strict=True
    )
  ]
  if all(bound == (0, n, 1) for bound, n in zip(bounds, array.shape, strict=True)):
    return [array]
  start, limit, strides = zip(*bounds, strict=True)
  return jaxprs.bind(ctx.eqn, array, start_indices=start, limit_indices=limit, strides=strides)


register([p.slice_p], Rule(_slice_support, _slice_reads, _slice_evaluate))


# pad: operand index i is result index low + i * (interior + 1); elsewhere the padding value.


def _pad_sources(eqn: Equation) -> list[np.ndarray | None]:
  """Per axis: the operand index of every result index, -1 for padding; None: not padded.

  Of an axis whose size or padding is a symbol nothing is known: its array has no elements.
  """
  sources: list[np.ndarray | None] = []
  for size, out, (low, high, interior) in zip(
    eqn.in_avals[0].shape, eqn.out_avals[0].shape, eqn.params['padding_config'], strict=True
  ):
    if low == high == interior == 0:
      sources.append(None)
      continue
    if not all(map(jaxprs.is_fixed, (size, low, high, interior))):
      sources.append(np.zeros(0, int))
      continue
    position = low + np.arange(size) * (interior + 1)
    inside = (position >= 0) & (position < out)
    source = np.full(out, -1)
    source[position[inside]] = np.arange(size)[inside]
    sources.append(source)
  return sources


def _pad_support(ctx: Context) -> list[Region]:
  x, value = ctx.supports
  sources = _pad_sources(ctx.eqn)
  inside = [
    axis
    if source is None or not source.size
    else (source >= 0) & regions.vector(regions.at(axis, source), len(source))
    for axis, source in zip(x.axes, sources, strict=True)
  ]
  if value.empty:
    return [x.with_axes(inside)]
  outside = [None if source is None or not source.size else source < 0 for source in sources]
  # Zero slices survive only across the one axis that is padded.
  padded = [i for i, source in enumerate(sources) if source is not None]
  axes: list[Axis] = [None] * len(sources)
  if len(padded) == 1:
    (axis,) = padded
    axes[axis] = regions.either(inside[axis], outside[axis])
  return [regions.normal(axes)]


def _is_direct(source: np.ndarray | None, wanted: Axis) -> bool:
  """Whether everything live along a padded axis comes from the operand."""
  return (
    source is not None
    and source.size > 0
    and wanted is not None
    and not (wanted & (source < 0)).any()
  )


def _pad_reads(ctx: Context) -> list[Region]:
  axes: list[Axis] = []
  for wanted, source, size in zip(
    ctx.live[0].axes, _pad_sources(ctx.eqn), ctx.eqn.in_avals[0].shape, strict=True
  ):
    if source is None:
      axes.append(wanted)
    elif _is_direct(source, wanted):
      axes.append(np.isin(np.arange(size), source[wanted]))
    else:
      axes.append(None)
  return [regions.normal(axes), regions.whole(0)]


def _pad_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  config, have = [], []
  for wanted, source, padding in zip(
    ctx.live[0].axes, _pad_sources(ctx.eqn), ctx.params['padding_config'], strict=True
  ):
    padded = source is not None and not _is_direct(source, wanted)
    config.append(padding if padded else (0, 0, 0))
    have.append(None if padded else wanted)
  if not any(map(any, config)):  # the padding is put back where it is read
    results = [arrays[0]]
  elif ctx.is_untouched or ctx.facts[1].known is not None or not jaxprs.moves(ctx.eqn.in_avals[1]):
    results = jaxprs.bind(ctx.eqn, *arrays, padding_config=tuple(config))
  else:
    results = [_padded(ctx.eqn, arrays[0], arrays[1], tuple(config))]
  return live_parts(ctx, results, [regions.normal(have)])


def _padded(eqn: Equation, x: Any, value: Any, config: Any) -> Any:
  """Pads by a choice. JAX cannot differentiate a padding of constants, such as zeros put back."""
  (padded,) = jaxprs.bind(eqn, x, np.zeros((), x.dtype), padding_config=config)
  inside = lax.pad(lax.full(x.shape, True), np.False_, config)
  return lax.select(inside, padded, lax.broadcast(value, padded.shape))


register([p.pad_p], Rule(_pad_support, _pad_reads, _pad_evaluate))
