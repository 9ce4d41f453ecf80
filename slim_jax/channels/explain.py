"""Explains why an axis stayed whole: follows who reads all of it to where that ends."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.rule import Context
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p
from slim_jax.tree import Path

_JOINS = {p.add_p, p.add_jaxvals_p, p.concatenate_p}
_Place = tuple[int, int]  # a value number and an axis of it


class _End(NamedTuple):
  """Where a chain of readers ends.

  Attributes:
    reason: why the axis is read whole there; '' where it is simply in use.
    reader: module or operation that uses it.
    near: whether the place itself is read there, as a kernel's inputs are by its convolution.
    joined: whether another value that depends on the data was added or appended on the way.
  """

  reason: str
  reader: str
  near: bool = True
  joined: bool = False

  def __str__(self) -> str:
    if self.reason or self.near:
      return self.reason
    return (
      f'tied to the stream that {self.reader} reads' if self.joined else f'{self.reader} reads it'
    )


def reasons(
  program: Program, needed: Analysis, leaves: Mapping[Path, int], data: list[int]
) -> dict[Path, str]:
  """Explains the axes of variables that stayed whole.

  Args:
    program: what was planned.
    needed: of `analysis.backward`.
    leaves: value number of each variable.
    data: value numbers of the other arguments.

  Returns:
    By path, the reasons of the leaf's axes joined by '; '. An axis that its own layer sums over, as
    a kernel's input channels, needs none.
  """
  chains = _Chains(program, needed, data)
  result = {}
  for path, number in leaves.items():
    sizes = program.avals[number].shape
    texts = [
      str(chains.end((number, axis)))
      for axis, index_set in enumerate(needed.live[number].axes)
      if index_set is None and sizes[axis] > 1
    ]
    if text := '; '.join(dict.fromkeys(filter(None, texts))):
      result[path] = text
  return result


class _Chains:
  """Follows whole axes from reader to reader; each place is looked at once."""

  def __init__(self, program: Program, needed: Analysis, data: list[int]):
    self.program = program
    self.needed = needed
    self.ends: dict[_Place, _End] = {}
    self.outputs = set(program.outputs)
    self.readers: dict[int, list[tuple[Context, tuple[int, ...]]]] = {}  # of each value, in order
    self.moving = set(data)  # values that depend on the data
    for eqn, reads in zip(program.equations, needed.reads, strict=True):
      if reads is not None:
        ctx = self._context(eqn, reads)
        for number in dict.fromkeys(eqn.inputs):
          places = tuple(k for k, i in enumerate(eqn.inputs) if i == number)
          self.readers.setdefault(number, []).append((ctx, places))
      if self.moving.intersection(eqn.inputs):
        self.moving.update(eqn.outputs)

  def _context(self, eqn: Equation, reads: list[regions.Region]) -> Context:
    facts, live = self.needed.facts, self.needed.live
    return Context(
      eqn, [facts[i] for i in eqn.inputs], [live[i] for i in eqn.outputs], reads, self.needed.walk
    )

  def end(self, place: _Place) -> _End:
    """Where the chain from this place ends."""
    chain = []
    while place not in self.ends:
      step = self._step(place)
      if isinstance(step, _End):
        self.ends[place] = step
        break
      chain.append((place, step[1]))
      place = step[0]
    end = self.ends[place]
    for earlier, joined in reversed(chain):
      end = end._replace(near=False, joined=end.joined or joined)
      self.ends[earlier] = end
    return end

  def _step(self, place: _Place) -> _End | tuple[_Place, bool]:
    """The next place, and whether something joins on the way; or the end."""
    number, axis = place
    if number in self.outputs:
      return _End('reaches the output', '')
    # The last reader is nearest to the output: a stream is followed to its end.
    for ctx, places in reversed(self.readers.get(number, [])):
      eqn = ctx.eqn
      for operand in places:
        if ctx.reads[operand].axes[axis] is None:
          where = eqn.module or str(eqn.primitive)
          if eqn.primitive not in ctx.walk.rules:
            return _End(f'read by {eqn}, which has no rule', where)
          passed = _passes(ctx, operand, axis)
          if passed is None:
            return _End('', where)
          others = self.moving.intersection(eqn.inputs) - {number}
          return passed, eqn.primitive in _JOINS and bool(others)
    return _End('', 'several')


def _passes(ctx: Context, operand: int, axis: int) -> _Place | None:
  """The axis of a result because of which this axis of an operand is whole, if it is one alone."""
  eqn, live = ctx.eqn, ctx.live
  size = eqn.in_avals[operand].shape[axis]
  candidates = [
    (r, b, n)
    for r, aval in enumerate(eqn.out_avals)
    for b, n in enumerate(aval.shape)
    if jaxprs.is_fixed(n) and n > 1 and live[r].axes[b] is None
  ]
  # Most operations keep position or size: those are tried first.
  for r, b, n in sorted(candidates, key=lambda c: (c[2] != size, c[1] != axis)):
    fewer = live[:r] + [regions.along(live[r], b, np.arange(n) > 0)] + live[r + 1 :]
    read = ctx.walk.rule(eqn).reads(ctx._replace(live=fewer))[operand]
    if read.axes[axis] is not None:
      return eqn.outputs[r], b
  return None
