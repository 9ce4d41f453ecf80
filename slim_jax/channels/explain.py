"""Why an axis stayed whole: who reads all of it, followed to where that ends."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from slim_jax.channels import regions
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.rule import RULES
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
  program: Program, found: Analysis, leaves: Mapping[Path, int], data: list[int]
) -> dict[Path, str]:
  """Why variables were not cut: of those with an axis that stayed whole and others read.

  Args:
    program: what was planned.
    found: of `analysis.backward`.
    leaves: value number of each variable.
    data: value numbers of the other arguments.

  Returns:
    By path, the reasons of its axes joined by '; '. An axis that its own layer sums over, as a
    kernel's input channels, needs none.
  """
  walk = _Walk(program, found, data)
  result = {}
  for path, number in leaves.items():
    live = found.live[number]
    texts = [
      str(walk.end((number, axis)))
      for axis, n in enumerate(program.avals[number].shape)
      if n > 1 and not live.empty and live.axes[axis] is None
    ]
    if text := '; '.join(dict.fromkeys(filter(None, texts))):
      result[path] = text
  return result


class _Walk:
  """Follows whole axes from reader to reader; each place is looked at once."""

  def __init__(self, program: Program, found: Analysis, data: list[int]):
    self.program = program
    self.found = found
    self.ends: dict[_Place, _End] = {}
    self.outputs = set(program.outputs)
    self.readers: dict[int, list[int]] = {}  # of each value, in order
    self.moving = set(data)  # values that depend on the data
    for k, (eqn, reads) in enumerate(zip(program.equations, found.reads, strict=True)):
      if reads is not None:
        for number in dict.fromkeys(eqn.inputs):
          self.readers.setdefault(number, []).append(k)
      if self.moving.intersection(eqn.inputs):
        self.moving.update(eqn.outputs)

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
    found = self.ends[place]
    for earlier, joined in reversed(chain):
      found = found._replace(near=False, joined=found.joined or joined)
      self.ends[earlier] = found
    return found

  def _step(self, place: _Place) -> _End | tuple[_Place, bool]:
    """The next place, and whether something joins on the way; or the end."""
    number, axis = place
    if number in self.outputs:
      return _End('reaches the output', '')
    # The last reader is nearest to the output: a stream is followed to its end.
    for k in reversed(self.readers.get(number, [])):
      eqn, reads = self.program.equations[k], self.found.reads[k]
      for operand, (i, read) in enumerate(zip(eqn.inputs, reads, strict=True)):
        if i == number and not read.empty and read.axes[axis] is None:
          where = eqn.module or str(eqn.primitive)
          if eqn.primitive not in RULES:
            return _End(f'read by {eqn}, which has no rule', where)
          passed = self._passes(eqn, operand, axis)
          if passed is None:
            return _End('', where)
          others = self.moving.intersection(eqn.inputs) - {number}
          return passed, eqn.primitive in _JOINS and bool(others)
    return _End('', 'several')

  def _passes(self, eqn: Equation, operand: int, axis: int) -> _Place | None:
    """The axis of a result that this axis of an operand is whole for, if one alone is."""
    size = eqn.in_avals[operand].shape[axis]
    facts = [self.found.facts[i] for i in eqn.inputs]
    live = [self.found.live[i] for i in eqn.outputs]
    candidates = [
      (r, b, n)
      for r, aval in enumerate(eqn.out_avals)
      if not live[r].empty
      for b, n in enumerate(aval.shape)
      if n > 1 and live[r].axes[b] is None
    ]
    # Most operations keep position or size: those are tried first.
    for r, b, n in sorted(candidates, key=lambda c: (c[2] != size, c[1] != axis)):
      fewer = live[:r] + [regions.along(live[r], b, np.arange(n) > 0)] + live[r + 1 :]
      read = RULES[eqn.primitive].reads(eqn, facts, fewer)[operand]
      if read.empty or read.axes[axis] is not None:
        return eqn.outputs[r], b
    return None
