"""Follows the axes of every value through a program: which of them are the same, and how used.

`Structure` holds what is found. `transfers` says what each operation does to axes.
"""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple, Protocol

import numpy as np

from slim_jax.channels import analysis, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Fact, Walk
from slim_jax.jaxprs import Program
from slim_jax.structure import terms
from slim_jax.structure.terms import Term

Source = tuple[int, int]  # a variable, by its number among the leaves, and an axis of it
_NOWHERE: frozenset[Source] = frozenset()


class Axis(NamedTuple):
  """One axis of a value.

  Attributes:
    term: how it is made.
    sources: axes of variables that it comes from, while no data is involved.
    stretched: whether a value was repeated along it.
    normed: whether the data were just divided by something that is the same along it.
    changed: whether the variables that it comes from went through arithmetic.
  """

  term: Term
  sources: frozenset[Source] = _NOWHERE
  stretched: bool = False
  normed: bool = False
  changed: bool = False


class Value(NamedTuple):
  """The axes of a value, and whether it depends on the data."""

  axes: tuple[Axis, ...]
  is_data: bool


class Contraction(NamedTuple):
  """A sum of products.

  Attributes:
    macs: its multiply-accumulates in all runs, as far as its results are needed.
    axes: the axes whose product they are.
    sources: axes of variables among its operands.
  """

  macs: float
  axes: tuple[Term, ...]
  sources: frozenset[Source]


class Transfer(Protocol):
  """What an operation does to axes."""

  def __call__(self, found: 'Structure', ctx: Context, operands: list[Value]) -> list[Value]:
    """Ties the axes of the operands and notes how they are used.

    Args:
      found: to note in.
      ctx: the equation, with facts of its operands.
      operands: their axes.

    Returns:
      The axes of the results.
    """
    ...


class Structure:
  """What is known of the axes of a program.

  Attributes:
    notes: how terms are used, as (term, note): see `transfers`.
    pins: terms of which nothing can go, with the reason.
    roles: how an axis of a variable is used: 'reader' (summed over in a contraction), 'maker',
      'batch' (of a contraction of variables with data), 'norm' (the scale of a norm over it),
      'scale', 'bias'.
    stacked: axes of variables along which a scan runs, with the number of the scan.
    contractions: of the program, for costs.
    runs: how often the equation at hand runs.
    share: which share of its results is needed.
  """

  def __init__(self, walk: Walk, transfers: Mapping[Any, Transfer], otherwise: Transfer):
    self.walk = walk
    self.transfers = transfers
    self.otherwise = otherwise
    self.notes: list[tuple[Term, str]] = []
    self.pins: list[tuple[Term, str]] = []
    self.roles: dict[Source, set[str]] = {}
    self.stacked: dict[Source, int] = {}
    self.contractions: list[Contraction] = []
    self.runs = 1
    self.share = 1.0

  def same(self, a: Term, b: Term, where: str = '') -> None:
    """Unifies two terms of one size; pins both if their parts do not divide each other."""
    try:
      terms.unify(a, b)
    except terms.SizesError:
      self.pin(f'axes of {a.size} are split in two ways that do not agree{where}', a, b)

  def note(self, note: str, *noted: Term) -> None:
    """Notes how terms are used."""
    self.notes.extend((term, note) for term in noted if term.size > 1)

  def pin(self, reason: str, *pinned: Term) -> None:
    """Notes that nothing of these terms can go. The reason is shown to people unless it is ''."""
    self.pins.extend((term, reason) for term in pinned if term.size > 1)

  def count(self, macs: int, axes: Sequence[Axis], operands: Sequence[Value]) -> None:
    """Notes a contraction, as often as it runs."""
    own = (axis.sources for value in operands if not value.is_data for axis in value.axes)
    contracted = tuple(axis.term for axis in axes)
    self.contractions.append(
      Contraction(self.share * self.runs * macs, contracted, _NOWHERE.union(*own))
    )

  def role(self, role: str, axis: Axis) -> None:
    """Notes how axes of variables are used."""
    for source in axis.sources:
      self.roles.setdefault(source, set()).add(role)

  def connect(
    self,
    program: Program,
    facts: Sequence[Fact],
    inputs: Sequence[Value],
    needed: Sequence[Region] | None = None,
  ) -> list[Value]:
    """Follows the axes through a program.

    Args:
      program: the program.
      facts: of every value.
      inputs: axes of its inputs.
      needed: the region of every value that is needed, where that is known.

    Returns:
      The axes of its outputs.
    """
    values = dict(zip(program.inputs, inputs, strict=True))
    for number, array in program.constants.items():
      values[number] = self._constant(array, program.avals[number])
    for eqn in program.equations:
      operands = [values[i] for i in eqn.inputs]
      ctx = Context(eqn, [facts[i] for i in eqn.inputs], [], [], self.walk)
      if needed is not None:
        alone = (
          len(eqn.outputs) == 1
        )  # what loops need of their results says little of their bodies
        self.share = _share(needed[eqn.outputs[0]], eqn.out_avals[0].shape) if alone else 1.0
      transfer = self.transfers.get(eqn.primitive, self.otherwise)
      for number, value in zip(eqn.outputs, transfer(self, ctx, operands), strict=True):
        values[number] = value
    return [values[i] for i in program.outputs]

  def inside(
    self, program: Program, inputs: Sequence[Value], facts: Sequence[Fact] | None = None
  ) -> list[Value]:
    """Follows the axes through a program inside an equation."""
    if facts is None:  # nothing is known of what changes from iteration to iteration
      facts = analysis.unknown(program)
    return self.connect(program, analysis.forward(program, facts, walk=self.walk), inputs)

  def _constant(self, array: Any, aval: Any) -> Value:
    """The axes of a captured array: positions matter along those where it is not uniform."""
    axes = tuple(Axis(Term(size)) for size in aval.shape)
    if any(size > 1 for size in aval.shape):
      known = analysis.constant(array, aval).known
      array = np.asarray(array) if known is None and isinstance(array, np.ndarray) else known
      for i, axis in enumerate(axes):
        if array is None or not (array == array.take([0], i)).all():
          self.note('positions', axis.term)
    return Value(axes, False)


def _share(region: Region, shape: Sequence[int]) -> float:
  """The share of an array's elements in a region."""
  return math.prod(regions.shape_of(region, shape)) / max(math.prod(shape), 1)


def of_shape(shape: Sequence[int], *, is_data: bool) -> Value:
  """A value with axes that have nothing to do with others."""
  return Value(tuple(Axis(Term(size)) for size in shape), is_data)
