"""Arithmetic: element by element, contractions, reductions; and whatever has a rule alone."""

from collections.abc import Iterable
import math
from typing import Any

import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import ties
from slim_jax.channels.rule import Context
from slim_jax.channels.rules import contraction, elementwise
from slim_jax.costs import counting
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p
from slim_jax.structure import terms
from slim_jax.structure.terms import Term
from slim_jax.structure.trace import Axis, Structure, Transfer, Value, of_shape
from slim_jax.structure.transfers.common import DATA, depends, joined, where

# Element by element


def along_result(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  """Operands have the axes of the result, or stretch."""
  shape, avals = ctx.eqn.out_avals[0].shape, ctx.eqn.in_avals
  is_data = depends(operands)
  if is_data:
    _combined(found, ctx.eqn, operands)
  axes = []
  for j, size in enumerate(shape):
    tied = [
      value.axes[j] for value, a in zip(operands, avals) if a.shape and a.shape[j] == size != 1
    ]
    for other in tied[1:]:
      found.same(tied[0].term, other.term, where(ctx.eqn))
    axis = joined(tied, tied[0].term) if tied else Axis(Term(size))
    axes.append(_met(ctx.eqn, axis, [v.axes[j] for v in operands if v.is_data and v.axes]))
  return [Value(tuple(axes), is_data)] * len(ctx.eqn.out_avals)


def _met(eqn: Equation, axis: Axis, data: list[Axis]) -> Axis:
  """The axis of a result, with what is known of the data along it."""
  if not data:
    return axis._replace(changed=axis.changed or eqn.primitive not in _COPIES)
  stretched = list(map(_is_stretched, data))
  divided = eqn.primitive in _SCALES and any(stretched) and not all(stretched)
  normed = data[0].normed if len(data) == 1 else divided
  return axis._replace(stretched=all(stretched), normed=normed)


def _is_stretched(axis: Axis) -> bool:
  """Whether a value is the same along an axis, or meets others as if it were."""
  return axis.stretched or axis.term.size == 1


_COPIES = {p.convert_element_type_p, p.copy_p, p.name_p, p.stop_gradient_p}
_SCALES = {p.mul_p, p.div_p}
_ADDS = {p.add_p, p.add_jaxvals_p, p.sub_p}


def _combined(found: Structure, eqn: Equation, operands: list[Value]) -> None:
  """Notes how variables meet data, and where values are added."""
  for value in operands:
    if not value.is_data:
      for j, axis in enumerate(value.axes):
        met = [other.axes[j] for other in operands if other.is_data and other.axes]
        role = _role(eqn, met)
        found.role(role, axis)
        if role == 'norm' and axis.changed:
          found.note('changed', axis.term)
  if eqn.primitive in _ADDS and all(v.is_data and v.axes for v in operands):
    for one, other in zip(operands[0].axes, operands[1].axes, strict=True):
      if eqn.primitive is p.sub_p and _is_stretched(other):
        found.note('centred', one.term)
      elif not _is_stretched(one) and not _is_stretched(other):
        if terms.find(one.term) is not terms.find(other.term):
          found.note('added', one.term, other.term)


def _role(eqn: Equation, data: list[Axis]) -> str:
  """How a variable meets data."""
  if eqn.primitive not in _SCALES:
    return 'bias'
  return 'norm' if any(axis.normed or _is_stretched(axis) for axis in data) else 'scale'


def _same(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  """Results are the operands."""
  del found
  return operands[: len(ctx.eqn.out_avals)]


# Contractions


def _dot(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  eqn = ctx.eqn
  dims = contraction.dot_axes(eqn)
  left, right = operands
  for i, j in (*dims.contract, *dims.batch):
    found.same(left.axes[i].term, right.axes[j].term, where(eqn))
  contract = [left.axes[i] for i, _ in dims.contract]
  batch = [joined((left.axes[i], right.axes[j]), left.axes[i].term) for i, j in dims.batch]
  free = [[value.axes[i] for i in side] for value, side in zip(operands, dims.free)]
  if left.is_data and right.is_data:
    found.note('contracted', *(axis.term for axis in contract))
    found.note('batched', *(axis.term for axis in batch))
    if all(free):
      found.note('free', *(axis.term for side in free for axis in side))
  for side, value in enumerate(operands):
    if not value.is_data:
      for role, pairs in (('reader', dims.contract), ('batch', dims.batch)):
        for pair in pairs:
          found.role(role, value.axes[pair[side]])
      for axis in free[side]:
        found.role('maker', axis)
  axes = (*batch, *free[0], *free[1])
  found.count(counting.macs(eqn), [*axes, *contract], operands)
  return [Value(axes, depends(operands))]


def _conv(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  eqn = ctx.eqn
  conv = contraction.conv_axes(eqn)
  x, kernel = operands
  out = list(of_shape(eqn.out_avals[0].shape, is_data=True).axes)
  made, read, features = kernel.axes[conv.rhs[0]], kernel.axes[conv.rhs[1]], x.axes[conv.lhs[1]]
  spatial = [x.axes[i].term for i in conv.lhs[2:]]
  found.note('mixed', *spatial)
  found.pin(DATA, *(out[i].term for i in conv.out[2:]))
  found.pin('', *(kernel.axes[i].term for i in conv.rhs[2:]))
  out[conv.out[0]], out[conv.out[1]] = x.axes[conv.lhs[0]], Axis(made.term)
  if eqn.params['batch_group_count'] != 1:
    found.pin(f'grouped{where(eqn)}', made.term, read.term, features.term, x.axes[conv.lhs[0]].term)
    return [of_shape(eqn.out_avals[0].shape, is_data=depends(operands))]
  try:
    _grouped(found, conv.groups, features.term, made.term, read.term)
  except terms.SizesError:
    found.pin(f'split in groups that do not agree{where(eqn)}', features.term, made.term)
  found.note('conv', made.term, read.term, features.term)
  found.role('maker', made)
  found.role('reader', read)
  found.count(counting.macs(eqn), [made, read], operands)
  return [Value(tuple(out), depends(operands))]


def _grouped(found: Structure, groups: int, features: Term, made: Term, read: Term) -> None:
  """Input channels are [group, position in the kernel], output channels [group, position]."""
  if groups == 1:
    found.same(features, read)
    return
  group, position = terms.split(features, features.size // groups)
  found.same(position, read)
  group_made, _ = terms.split(made, made.size // groups)
  found.same(group, group_made)


# Reductions


_REDUCED = {
  p.reduce_sum_p: 'summed',
  p.reduce_or_p: 'summed',
  p.reduce_xor_p: 'summed',
  p.argmax_p: 'ordered',
  p.argmin_p: 'ordered',
}
_ORDERS = {p.sort_p, p.top_k_p, p.approx_top_k_p}


def _reduce(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  gone = ctx.params['axes']
  for value in operands:
    reduced = [value.axes[i].term for i in gone]
    found.note(_REDUCED.get(ctx.eqn.primitive, 'mixed'), *reduced)
  kept = [tuple(a for i, a in enumerate(v.axes) if i not in gone) for v in operands]
  return [Value(kept[0], operands[0].is_data)] * len(ctx.eqn.out_avals)


# Each result is at the place of an operand's index, and reads those around it.
_IN_PLACE = {
  p.reduce_window_sum_p,
  p.reduce_window_max_p,
  p.reduce_window_min_p,
  p.reduce_window_p,
  p.cumsum_p,
  p.cumprod_p,
  p.cummax_p,
  p.cummin_p,
  p.cumlogsumexp_p,
}


# All others: asked by their rules


def by_rule(found: Structure, ctx: Context, operands: list[Value]) -> list[Value]:
  """Ties the axes that the rule of the operation passes through index by index."""
  eqn, is_data = ctx.eqn, depends(operands)
  if ctx.walk.rule(eqn).reads is elementwise.reads:
    return along_result(found, ctx, operands)
  results = [list(of_shape(aval.shape, is_data=is_data).axes) for aval in eqn.out_avals]
  passed, made = set(), set()
  for (i, j, index), (r, axis, at) in _passing(ctx):
    term, out = operands[i].axes[j].term, results[r][axis]
    if len(index) == term.size == out.term.size and np.array_equal(index, at):
      found.same(term, out.term, where(eqn))
      results[r][axis] = joined((operands[i].axes[j], out), out.term)
      passed.add((i, j))
      made.add((r, axis))
  for i, value in enumerate(operands):
    for j, axis in enumerate(value.axes):
      if eqn.primitive in _IN_PLACE and axis.term.size == results[0][j].term.size:
        found.same(axis.term, results[0][j].term, where(eqn))
        made.add((0, j))
      if (i, j) not in passed:
        found.note('ordered' if eqn.primitive in _ORDERS else 'mixed', axis.term)
  for r, axes in enumerate(results):
    for axis, own in enumerate(axes):
      if (r, axis) not in made:
        found.note('positions', own.term)
        if is_data and any(map(jaxprs.moves, eqn.in_avals)):  # no random numbers
          found.pin(f'computed{where(eqn)}', own.term)
  return [Value(tuple(axes), is_data) for axes in results]


def _passing(ctx: Context) -> Iterable[Any]:
  """Which index of an operand goes to which of a result, if there is a rule to ask."""
  known = ctx.eqn.primitive in ctx.walk.rules and all(ctx.eqn.out_avals)
  has_axes = any(math.prod(a.shape) > 1 for a in ctx.eqn.in_avals)
  return ties.index_maps(ctx) if known and has_axes else ()


ARITHMETIC: dict[Any, Transfer] = {
  p.device_put_p: _same,
  p.sharding_constraint_p: _same,
  jaxprs.optimization_barrier_p: _same,
  p.dot_general_p: _dot,
  p.conv_general_dilated_p: _conv,
  p.reduce_sum_p: _reduce,
  p.reduce_or_p: _reduce,
  p.reduce_xor_p: _reduce,
  p.reduce_max_p: _reduce,
  p.reduce_min_p: _reduce,
  p.reduce_prod_p: _reduce,
  p.reduce_and_p: _reduce,
  p.argmax_p: _reduce,
  p.argmin_p: _reduce,
}
