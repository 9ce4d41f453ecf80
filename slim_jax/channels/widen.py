"""Zeros that are computed where leaving them out would cost more.

A layer that reads some channels of a residual stream selects them, and one that adds to some of them
scatters its results to their places. Both take about as long per element as a hundred multiplications
of a convolution. The alternative is a wider kernel: with rows of zeros it reads all channels that the
stream holds, with columns of zeros it writes them. BatchNorm and ReLU in between then run on these
channels too. And a stream that loses a few channels from layer to layer keeps them.

A second backward pass asks about every equation. It changes what is needed and where values may be
non-zero. More of either does no harm, so the thin function stays exact; but a BatchNorm without an
epsilon would divide by variances of zero.
"""

from collections.abc import Callable
import math
from typing import Any, NamedTuple

import numpy as np

from slim_jax.channels import regions
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import Context, Fact
from slim_jax.channels.rules import elementwise
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


class Costs(NamedTuple):
  """Costs per element in multiply-adds of a convolution.

  The defaults were measured on CPUs, in inference and in training.

  Attributes:
    select: of selecting an element.
    place: of putting an element in its place.
    element: of BatchNorm and ReLU on an element.
    slack: a stream keeps the channels that it loses in one step if they are at most this share.
  """

  select: float = 60
  place: float = 150
  element: float = 60
  slack: float = 0.25


# At most this many operations are searched for the kernel, or the stream, behind them.
_MOST = 200


class _Kernel(NamedTuple):
  """Of x [..., rows, ...] * kernel [..., rows, columns, ...] -> y [..., columns, ...]."""

  x: int
  rows: int
  columns: int
  y: int
  taps: int


class Widening:
  """Decides in a second backward pass what to widen; see the module docstring.

  Args:
    program: what is analysed.
    narrow: result of the first pass.
    costs: by which it is decided.
  """

  def __init__(self, program: Program, narrow: Analysis, costs: Costs):
    self._costs = costs
    self._walk = narrow.walk
    self._constants = program.constants
    self._made = {number: eqn for eqn in program.equations for number in eqn.outputs}
    self._held = self._kept(program, narrow)

  def results(self, eqn: Equation, need: list[Region], facts: list[Fact]) -> None:
    """Widens what is needed of an equation's result, and where the result may be non-zero."""
    if len(eqn.outputs) != 1:
      return
    (number,) = eqn.outputs
    if need[number].empty or facts[number].support.empty:
      return
    need[number] = regions.union(need[number], self._held[number])
    if eqn.primitive is p.reduce_sum_p:
      self._sum(eqn, need, facts)
    wanted, support = need[number], facts[number].support
    beyond = [i for i, (a, b) in enumerate(zip(wanted.axes, support.axes)) if not _within(a, b)]
    if len(beyond) != 1:
      return
    (axis,), size = beyond, eqn.out_avals[0].shape[beyond[0]]
    then = regions.either(wanted.axes[axis], support.axes[axis])
    width = regions.width(then, size)
    place = self._costs.place * width

    def is_wide(value: int) -> bool:
      return _within(then, facts[value].support.axes[axis])

    between, sources = self._behind(number, is_wide)
    widened, cost = between, 0.0
    for value in sources:
      has = facts[value].support
      if is_wide(value):
        continue
      if has.empty:
        return
      column = self._column(value, axis, facts)
      if column * (width - regions.width(has.axes[axis], size)) < place:
        widened = [*widened, value]
        cost += column * (width - regions.width(support.axes[axis], size))
      elif _within(support.axes[axis], has.axes[axis]):  # else it is put in its places anyway
        cost += place
    if cost < place:
      for value in widened:
        facts[value] = _widened(facts[value], axis, then)

  def operands(self, ctx: Context, need: list[Region], facts: list[Fact]) -> list[Fact] | None:
    """Facts by which to read the operands, if not by their own; widens those on the way to them."""
    eqn, live, reads = ctx.eqn, ctx.live, ctx.reads
    kernel = _kernel(eqn)
    if not kernel or live[0].empty or any(read.empty for read in reads):
      return None
    own = [facts[i] for i in eqn.inputs]
    own[1] = _widened(own[1], kernel.columns, live[0].axes[kernel.y])
    x, axis, now = eqn.inputs[0], kernel.x, reads[0].axes[kernel.x]
    size, outputs = eqn.in_avals[0].shape[axis], eqn.out_avals[0].shape[kernel.y]
    places = _size(eqn.out_avals[0].shape) / outputs * size / _size(eqn.in_avals[0].shape)
    row = places * kernel.taps * regions.width(live[0].axes[kernel.y], outputs)
    row += self._costs.element
    then = self._streamed(x, axis, size, now, row, need, facts)
    if regions.same_axis(then, now):
      return own
    return [_widened(facts[x], axis, then), _widened(own[1], kernel.rows, then)]

  def _sum(self, eqn: Equation, need: list[Region], facts: list[Fact]) -> None:
    """Computes a statistic of all channels that a stream holds if selecting some costs more."""
    (aval,), number, cost = eqn.in_avals, eqn.outputs[0], self._costs.element
    kept = [i for i in range(len(aval.shape)) if i not in eqn.params['axes']]
    for n, (axis, now) in enumerate(zip(kept, need[number].axes, strict=True)):
      then = self._streamed(eqn.inputs[0], axis, aval.shape[axis], now, cost, need, facts)
      if not regions.same_axis(then, now):
        need[number] = regions.along(need[number], n, then)
        facts[number] = _widened(facts[number], n, then)

  def _streamed(
    self,
    number: int,
    axis: int,
    size: int,
    now: Axis,
    cost: float,
    need: list[Region],
    facts: list[Fact],
  ) -> Axis:
    """What to read along an axis of `size` instead of `now`, at this cost per further index."""

    def is_held(value: int) -> bool:
      return not need[value].empty or not _within(self._held[value].axes[axis], now)

    between, sources = self._behind(number, is_held)
    held = [regions.union(need[value], self._held[value]) for value in sources]
    if now is None or any(region.empty for region in held):
      return now
    then = now | np.logical_and.reduce([regions.vector(region.axes[axis], size) for region in held])
    more = int(then.sum() - now.sum())
    if not more or more * cost >= self._costs.select * now.sum():
      return now
    for value in between:
      facts[value] = _widened(facts[value], axis, then)
    return None if then.all() else then

  def _kept(self, program: Program, narrow: Analysis) -> list[Region]:
    """The region that each value holds, with the channels that its stream keeps."""
    held = list(narrow.live)
    for eqn, reads in zip(program.equations, narrow.reads, strict=True):
      if reads is None or len(eqn.outputs) != 1 or held[eqn.outputs[0]].empty:
        continue
      number, shape = eqn.outputs[0], eqn.out_avals[0].shape
      wide = held[number]
      if eqn.primitive is p.concatenate_p:
        axis = eqn.params['dimension']
        parts = [
          regions.vector(held[i].axes[axis], a.shape[axis])
          for i, a in zip(eqn.inputs, eqn.in_avals, strict=True)
        ]
        wide = regions.along(wide, axis, regions.either(wide.axes[axis], np.concatenate(parts)))
      elif self._is_elementwise(eqn):
        for value in self._large(eqn):
          wide = regions.union(wide, held[value])
      sizes = [_size(regions.shape_of(region, shape)) for region in (wide, held[number])]
      if sizes[0] <= (1 + self._costs.slack) * sizes[1]:
        held[number] = wide
    return held

  def _behind(self, number: int, is_end: Callable[[int], bool]) -> tuple[list[int], list[int]]:
    """Values computed element by element on the way to `number`, and what these are computed from."""
    between, sources, ahead = [], [], [number]
    while ahead and len(between) < _MOST:
      value = ahead.pop()
      if value in between or value in sources:
        continue
      eqn = self._made.get(value)
      if eqn is None or is_end(value) or not self._is_elementwise(eqn):
        sources.append(value)
      else:
        between.append(value)
        ahead += self._large(eqn)
    return between, sources + ahead

  def _large(self, eqn: Equation) -> list[int]:
    """Operands as large as the result that do not repeat a few elements."""
    return [
      i
      for i, aval in zip(eqn.inputs, eqn.in_avals, strict=True)
      if aval.shape == eqn.out_avals[0].shape and not self._is_repeated(i)
    ]

  def _is_elementwise(self, eqn: Equation) -> bool:
    """Custom derivatives count too: most are of activations, and a mistake does no harm."""
    return len(eqn.outputs) == 1 and (
      eqn.primitive is p.custom_jvp_call_p or self._walk.rule(eqn).reads is elementwise.reads
    )

  def _is_repeated(self, number: int) -> bool:
    eqn = self._made.get(number)
    return number in self._constants or (
      eqn is not None
      and eqn.primitive is p.broadcast_in_dim_p
      and 4 * _size(eqn.in_avals[0].shape) <= _size(eqn.out_avals[0].shape)
    )

  def _column(self, number: int, axis: int, facts: list[Fact]) -> float:
    """What one more index of the axis costs for each index of the others."""
    eqn = self._made.get(number)
    kernel = _kernel(eqn) if eqn else None
    if not eqn or not kernel or kernel.y != axis or facts[eqn.inputs[1]].support.empty:
      return math.inf
    rows = facts[eqn.inputs[1]].support.axes[kernel.rows]
    width = regions.width(rows, eqn.in_avals[1].shape[kernel.rows])
    return kernel.taps * width + self._costs.element


def _kernel(eqn: Equation) -> _Kernel | None:
  """Of a convolution without groups, or a product with a matrix."""
  if eqn.primitive is p.conv_general_dilated_p:
    if eqn.params['batch_group_count'] != 1 or eqn.params['feature_group_count'] != 1:
      return None
    dims = eqn.params['dimension_numbers']
    return _Kernel(
      dims.lhs_spec[1],
      dims.rhs_spec[1],
      dims.rhs_spec[0],
      dims.out_spec[1],
      math.prod(eqn.in_avals[1].shape[i] for i in dims.rhs_spec[2:]),
    )
  if eqn.primitive is p.dot_general_p:
    (lhs, rhs), (batch, _) = eqn.params['dimension_numbers']
    if len(lhs) == 1 and not batch and len(eqn.in_avals[1].shape) == 2:
      return _Kernel(lhs[0], rhs[0], 1 - rhs[0], len(eqn.out_avals[0].shape) - 1, 1)
  return None


def _within(a: Axis, b: Axis) -> bool:
  """Whether every index of `a` is one of `b`."""
  return regions.same_axis(regions.either(a, b), b)


def _widened(fact: Fact, axis: int, index_set: Axis) -> Fact:
  """The fact where these indices of an axis may be non-zero too; nothing stays nothing."""
  wider = regions.either(fact.support.axes[axis], index_set)
  return Fact(regions.along(fact.support, axis, wider), fact.known)


def _size(shape: tuple[Any, ...]) -> int:
  """Number of elements, where a size that is not known (an export for any batch) counts as one."""
  return math.prod(n for n in shape if isinstance(n, int))
