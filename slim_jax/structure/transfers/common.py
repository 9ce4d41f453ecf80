"""What several transfers need."""

from collections.abc import Iterable, Sequence

from slim_jax.jaxprs import Equation
from slim_jax.structure.terms import Term
from slim_jax.structure.trace import Axis, Value

DATA = 'comes from the data'


def joined(axes: Iterable[Axis], term: Term) -> Axis:
  """An axis of this term that comes from all of these."""
  axes = list(axes)
  sources = frozenset().union(*(axis.sources for axis in axes))
  return Axis(
    term, sources, all(axis.stretched for axis in axes), changed=any(axis.changed for axis in axes)
  )


def depends(operands: Sequence[Value]) -> bool:
  """Whether any operand depends on the data."""
  return any(value.is_data for value in operands)


def where(eqn: Equation) -> str:
  """Which operation it is, and in which module, for reasons."""
  return f' by {eqn.primitive}' + (f' at {eqn.module}' if eqn.module else '')
