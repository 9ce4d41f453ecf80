"""Channel shuffles: reshape, transpose and reshape that only permute the indices of one axis.

So networks shuffle the channels of groups. Taken one by one, the axes in between could only lose
whole groups, or positions of all groups. As one equation any index of the axis can go.
"""

from collections import Counter
import math
from typing import Any

import numpy as np

from slim_jax import jaxprs
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


class _Permute:
  """A primitive of our own; see `permute_p`. It binds the three equations that it replaces."""

  multiple_results = False

  def __str__(self) -> str:
    return 'permute'

  def get_bind_params(self, params: dict[str, Any]) -> dict[str, Any]:
    return params

  def bind(self, x: Any, *, steps: tuple[Equation, ...], **_: Any) -> Any:
    for step in steps:
      (x,) = jaxprs.bind(step, x)
    return x


permute_p = _Permute()
"""Permutes an axis: result i is operand index[i].

Parameters: `axis`, `index` (int [n]) and `steps`, the three equations.
"""


def merged(program: Program) -> Program:
  """The program with every channel shuffle as one equation."""
  readers = Counter((*program.outputs, *(i for eqn in program.equations for i in eqn.inputs)))
  made = {
    eqn.outputs[0]: eqn
    for eqn in program.equations
    if eqn.primitive in (p.reshape_p, p.transpose_p)
  }

  def source(eqn: Equation, primitive: Any) -> Equation | None:
    """The equation of this primitive that makes the operand and is read nowhere else."""
    maker = made.get(eqn.inputs[0])
    alone = readers[eqn.inputs[0]] == 1
    return maker if maker and maker.primitive is primitive and alone else None

  replaced, shuffles = set(), {}
  for last in made.values():
    middle = source(last, p.transpose_p) if last.primitive is p.reshape_p else None
    first = source(middle, p.reshape_p) if middle else None
    how = _permutation(first, middle, last) if first and middle else None
    if first and middle and how:
      replaced.update((first.outputs, middle.outputs))
      shuffles[last.outputs] = last._replace(
        primitive=permute_p,
        params={**how, 'steps': (first, middle, last)},
        inputs=first.inputs,
        in_avals=first.in_avals,
        memo={},
      )
  if not shuffles:
    return program
  return program._replace(
    equations=[
      shuffles.get(eqn.outputs, eqn) for eqn in program.equations if eqn.outputs not in replaced
    ]
  )


def _permutation(first: Equation, middle: Equation, last: Equation) -> dict[str, Any] | None:
  """Axis and indices, if one axis is split, its parts change places, and it is merged again."""
  shape, split = first.in_avals[0].shape, first.out_avals[0].shape
  parts = len(split) - len(shape) + 1
  if last.out_avals[0].shape != shape or parts < 2:
    return None
  order = middle.params['permutation']
  for axis, n in enumerate(shape):
    inside = range(axis, axis + parts)
    if (
      split == shape[:axis] + split[axis : axis + parts] + shape[axis + 1 :]
      and math.prod(split[axis : axis + parts]) == n
      and all(i == j for i, j in enumerate(order) if i not in inside)
    ):
      index = np.arange(n).reshape(split[axis : axis + parts])
      index = index.transpose([i - axis for i in order[axis : axis + parts]]).ravel()
      return {'axis': axis, 'index': index}
  return None
