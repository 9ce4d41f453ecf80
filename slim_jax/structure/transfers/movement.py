"""Operations that move elements: transposes, reshapes, slices, gathers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import shuffle
from slim_jax.channels.rule import Context
from slim_jax.channels.rules import indexing, movement
from slim_jax.jaxprs import primitives as p
from slim_jax.structure import terms
from slim_jax.structure.terms import Term
from slim_jax.structure.trace import Axis, Structure, Transfer, Value, of_shape
from slim_jax.structure.transfers.arithmetic import along_result
from slim_jax.structure.transfers.common import depends, joined, where

# Movement


def _transpose(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  del found
  (x,) = operands
  return [x._replace(axes=tuple(x.axes[i] for i in ctx.params['permutation']))]


def _squeeze(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  del found
  (x,) = operands
  dropped = ctx.params['dimensions']
  return [x._replace(axes=tuple(axis for i, axis in enumerate(x.axes) if i not in dropped))]


def _broadcast(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  del found
  x = operands[0]
  axes = [Axis(Term(size), stretched=True) for size in ctx.params['shape']]
  for i, o in movement.kept_axes(ctx.eqn):
    axes[o] = x.axes[i]
  return [Value(tuple(axes), x.is_data)]


def _reshape(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  x, shape, out = operands[0], ctx.eqn.in_avals[0].shape, ctx.eqn.out_avals[0].shape
  result = list(of_shape(out, is_data=x.is_data).axes)
  if 0 in shape or ctx.params['dimensions'] is not None:
    found.pin(f'rearranged{where(ctx.eqn)}', *(axis.term for axis in x.axes))
    return [Value(tuple(result), x.is_data)]
  for left, right in movement.groups(shape, out):
    axes = [x.axes[i] for i in left]
    for j, term in zip(right, _unmerged(found, ctx, axes, [out[j] for j in right]), strict=True):
      result[j] = joined(axes, term)
  return [Value(tuple(result), x.is_data)]


def _unmerged(found: Structure, ctx: Context, axes: list[Axis], sizes: Sequence[int]) -> list[Term]:
  """Axes of these sizes that hold what the given axes hold."""
  rest, made = terms.product(axis.term for axis in axes), []
  try:
    for size in reversed(sizes):
      rest, minor = terms.split(rest, size)
      made.insert(0, minor)
  except terms.SizesError:
    made = [Term(size) for size in sizes]
    found.pin(f'split to sizes that do not fit{where(ctx.eqn)}', *made, *(a.term for a in axes))
  return made


def _permute(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  (x,) = operands
  axis, (first, order, _) = ctx.params['axis'], ctx.params['steps']
  count = len(first.out_avals[0].shape) - len(x.axes) + 1
  sizes = first.out_avals[0].shape[axis : axis + count]
  pieces = _unmerged(found, ctx, [x.axes[axis]], sizes)
  inside = order.params['permutation'][axis : axis + count]
  merged = terms.product(pieces[i - axis] for i in inside)
  axes = list(x.axes)
  axes[axis] = x.axes[axis]._replace(term=merged)
  return [x._replace(axes=tuple(axes))]


# Pieces


def _concatenate(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  dimension = ctx.params['dimension']
  whole = along_result(found, _alike(ctx, dimension), _without(operands, dimension))[0]
  pieces = [value.axes[dimension] for value in operands]
  if whole.is_data:
    for value, piece in zip(operands, pieces):
      if not value.is_data:
        found.role('bias', piece)
  axes = list(whole.axes)
  axes[dimension] = joined(pieces, terms.total(piece.term for piece in pieces))
  return [whole._replace(axes=tuple(axes))]


def _alike(ctx: Context, axis: int) -> Context:
  """The equation as if the axis had size 1 in operands and result."""

  def narrow(aval: Any) -> Any:
    return aval.update(shape=(*aval.shape[:axis], 1, *aval.shape[axis + 1 :]))

  eqn = ctx.eqn._replace(
    in_avals=tuple(map(narrow, ctx.eqn.in_avals)), out_avals=tuple(map(narrow, ctx.eqn.out_avals))
  )
  return ctx._replace(eqn=eqn)


def _without(operands: list[Value], axis: int) -> list[Value]:
  one = Axis(Term(1))
  return [v._replace(axes=(*v.axes[:axis], one, *v.axes[axis + 1 :])) for v in operands]


def _segment(found: Structure, ctx: Context, axis: Axis, start: int, stop: int) -> Axis:
  """Indices from `start` to `stop` of an axis."""
  if start == 0 and stop == axis.term.size:
    return axis
  try:
    return axis._replace(term=terms.segment(axis.term, start, stop))
  except terms.SizesError:
    made = Term(stop - start)
    found.pin(f'cut at sizes that do not fit{where(ctx.eqn)}', axis.term, made)
    return axis._replace(term=made)


def _split(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  (x,), axis, start, results = operands, ctx.params['axis'], 0, []
  for size in ctx.params['sizes']:
    piece = _segment(found, ctx, x.axes[axis], start, start + size)
    results.append(x._replace(axes=(*x.axes[:axis], piece, *x.axes[axis + 1 :])))
    start += size
  return results


def _slice(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  (x,), params = operands, ctx.params
  strides = params['strides'] or (1,) * len(x.axes)
  axes = [
    _segment(found, ctx, axis, start, stop)
    if step == 1
    else _strided(found, ctx, axis, start, stop, step)
    for axis, start, stop, step in zip(
      x.axes, params['start_indices'], params['limit_indices'], strides, strict=True
    )
  ]
  return [x._replace(axes=tuple(axes))]


def _strided(found: Structure, ctx: Context, axis: Axis, start: int, stop: int, step: int) -> Axis:
  """Every `step`-th index: the major part of [n / step, step], as of rotary pairs side by side."""
  count = len(range(start, stop, step))
  if axis.term.size == count * step and start < step:
    try:
      major, minor = terms.split(axis.term, step)
      terms.singles(minor)
      return axis._replace(term=major)
    except terms.SizesError:
      pass
  made = Term(count)
  found.pin(f'picked in steps{where(ctx.eqn)}', axis.term, made)
  return axis._replace(term=made)


def _pad(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  x, axes = operands[0], []
  for axis, size, padding in zip(
    x.axes, ctx.eqn.out_avals[0].shape, ctx.params['padding_config'], strict=True
  ):
    low, high, interior = padding
    if padding == (0, 0, 0):
      axes.append(axis)
    elif interior == 0:
      inner = _segment(found, ctx, axis, max(0, -low), axis.term.size - max(0, -high))
      padded = (Term(max(0, low)), inner.term, Term(max(0, high)))
      axes.append(inner._replace(term=terms.total(padded)))
    else:
      found.pin(f'padded inside{where(ctx.eqn)}', axis.term)
      axes.append(Axis(Term(size)))
  return [Value(tuple(axes), x.is_data)]


# Reading at indices


def _gather(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  eqn, (x, indices) = ctx.eqn, operands
  how = indexing.gather_axes(eqn, ctx.facts)
  axes = list(of_shape(eqn.out_avals[0].shape, is_data=True).axes)
  passing = dict(how.passing)
  for i, o in how.passing:
    axes[o] = x.axes[i]
    found.role('maker', x.axes[i])
  for i, o in how.batch:
    axes[o] = indices.axes[i] if indices.is_data else axes[o]
  looked_up = [i for i in range(len(x.axes)) if i not in passing]
  if (
    how.selected is not None
    and how.constant is not None
    and how.constant.ndim == 1
    and (how.constant >= 0).all()
  ):
    (_, o), axis = how.batch[0], x.axes[how.selected]
    axes[o] = _picked(found, ctx, axis, how.constant)
    looked_up.remove(how.selected)
  found.pin(f'looked up{where(eqn)}', *(x.axes[i].term for i in looked_up))
  return [Value(tuple(axes), depends(operands))]


def _picked(found: Structure, ctx: Context, axis: Axis, index: np.ndarray) -> Axis:
  """The axis of `x[index]` for constant indices."""
  n, count = axis.term.size, len(index)
  if np.array_equal(index, np.arange(index[0], index[0] + count)):
    return _segment(found, ctx, axis, int(index[0]), int(index[0]) + count)
  if count % n == 0:
    if np.array_equal(index, np.repeat(np.arange(n), count // n)):
      return axis._replace(term=terms.product((axis.term, Term(count // n))))
    if np.array_equal(index, np.tile(np.arange(n), count // n)):
      return axis._replace(term=terms.product((Term(count // n), axis.term)))
  made = Term(count)
  found.pin(f'picked one by one{where(ctx.eqn)}', axis.term, made)
  return axis._replace(term=made)


def _dynamic_slice(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  x, sizes, shape = operands[0], ctx.params['slice_sizes'], ctx.eqn.in_avals[0].shape
  starts = indexing.slice_starts(ctx.facts[1:], shape, sizes)
  axes = []
  for axis, start, size in zip(x.axes, starts, sizes, strict=True):
    if start is None:
      axes.append(Axis(Term(size)))
      found.pin(f'looked up{where(ctx.eqn)}', axis.term, axes[-1].term)
    else:
      axes.append(_segment(found, ctx, axis, start, start + size))
  return [Value(tuple(axes), depends(operands))]


def _unstack(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  """Every index of the axis is a value of its own."""
  (x,), axis = operands, ctx.params['axis']
  try:
    terms.singles(x.axes[axis].term)
  except terms.SizesError:
    found.pin(f'taken apart{where(ctx.eqn)}', x.axes[axis].term)
  return [x._replace(axes=(*x.axes[:axis], *x.axes[axis + 1 :]))] * len(ctx.eqn.out_avals)


MOVES: dict[Any, Transfer] = {
  p.transpose_p: _transpose,
  p.squeeze_p: _squeeze,
  p.broadcast_in_dim_p: _broadcast,
  p.reshape_p: _reshape,
  shuffle.permute_p: _permute,
  p.concatenate_p: _concatenate,
  jaxprs.split_p: _split,
  p.slice_p: _slice,
  p.pad_p: _pad,
  p.gather_p: _gather,
  p.dynamic_slice_p: _dynamic_slice,
  **dict.fromkeys(jaxprs.unstack_ps, _unstack),
}
