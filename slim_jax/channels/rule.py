"""The type of a rule, the table of rules, and the sound default.

A rule says three things of one primitive:

    support(eqn, facts) -> [Region]              where each result may be non-zero
    reads(eqn, facts, live) -> [Region]          what it reads of each operand to make `live` of
                                                each result
    evaluate(eqn, facts, reads, live, *arrays) -> [Array]
                                                `live` of each result from `reads` of each operand

`facts` are what the forward pass knows of each operand. An operand whose `reads`
is empty arrives as None; a result whose `live` is empty may be returned as None.
A primitive that is not in the table gets `FULL_WIDTH`: everything is read whole,
with zeros where channels were removed, and the results are cut. It costs speed,
never correctness.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from jax import lax
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.jaxprs import Equation


class Fact(NamedTuple):
  """What is known of a value before the network runs.

  Attributes:
    support: outside this region the value is zero.
    known: the value itself where it is a small constant (indices, literals); an array
      of the value's shape, or a scalar when every element is that scalar. None: not known.
  """

  support: Region
  known: np.ndarray | None = None


class Rule(NamedTuple):
  """How one primitive treats channels; see the module docstring."""

  support: Callable[[Equation, list[Fact]], list[Region]]
  reads: Callable[[Equation, list[Fact], list[Region]], list[Region]]
  evaluate: Callable[..., list[Any]]


def full_support(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """Nothing is known to be zero."""
  del facts
  return [regions.whole(len(a.shape)) for a in eqn.out_avals]


def read_whole(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  """Every operand is read whole."""
  del facts, live
  return [regions.whole(len(a.shape)) for a in eqn.in_avals]


def run_whole(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  """Runs at full width and cuts the results."""
  del facts, reads
  return cut(
    jaxprs.bind(eqn, *arrays), eqn, [regions.whole(len(a.shape)) for a in eqn.out_avals], live
  )


def run_thin(
  eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region], *arrays: Any
) -> list[Any]:
  """The same operation on thin operands: no parameter of it names a shape."""
  del facts, reads, live
  return jaxprs.bind(eqn, *arrays)


def cut(results: list[Any], eqn: Equation, have: list[Region], live: list[Region]) -> list[Any]:
  """The `live` part of results that were computed at `have`."""
  return [
    None if l.empty else regions.take(r, h, l, a.shape)
    for r, h, l, a in zip(results, have, live, eqn.out_avals, strict=True)
  ]


def untouched(reads: list[Region], live: list[Region]) -> bool:
  """Whether nothing is cut: the operation can run as it is."""
  return all(region.is_whole for region in [*reads, *live])


def wanted(live: list[Region]) -> list[Region | None]:
  """None for what is empty, as `present` and `restore` take it."""
  return [None if region.empty else region for region in live]


def present(items: Sequence[Any], by: Sequence[Any]) -> list[Any]:
  """The items at whose place `by` is not None: what can pass through a transformation."""
  return [item for item, flag in zip(items, by, strict=True) if flag is not None]


def restore(items: Sequence[Any], by: Sequence[Any]) -> list[Any]:
  """Undoes `present`, None in the gaps."""
  rest = iter(items)
  return [None if flag is None else next(rest) for flag in by]


def bind_fenced(
  eqn: Equation,
  along: Callable[[Region], Region],
  facts: list[Fact],
  live: list[Region],
  arrays: Iterable[Any],
) -> list[Any]:
  """Runs an operation with windows, behind barriers where zeros are put back along them.

  XLA's simplifier folds a window that slides over a padded axis of size 1 wrongly (on CPU, to a
  constant along the axis), and one live index put back, or cut out and differentiated, is that.

  Args:
    eqn: the operation.
    along: makes the axes of a region whole that the windows slide along.
    facts: of the operands.
    live: regions of the results.
    arrays: the operands.
  """
  cut_axes = [f.support for f, a in zip(facts, eqn.in_avals, strict=True) if a.shape] + live
  if all(regions.same(along(region), region) for region in cut_axes):
    return jaxprs.bind(eqn, *arrays)
  return lax.optimization_barrier(jaxprs.bind(eqn, *lax.optimization_barrier(tuple(arrays))))


FULL_WIDTH = Rule(full_support, read_whole, run_whole)

RULES: dict[Any, Rule] = {}


def register(primitives: Iterable[Any], rule: Rule) -> None:
  """Enters one rule for a family of primitives."""
  for primitive in primitives:
    if primitive in RULES:
      raise ValueError(f'{primitive} has a rule already')
    RULES[primitive] = rule
