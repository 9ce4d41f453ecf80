"""What a cut removes: channels with small scales, or units where there is no BatchNorm."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from slim_jax.adapters.functions import AdapterError
from slim_jax.channels import planning
from slim_jax.channels.plan import Plan
from slim_jax.channels.thin import mask, thin
from slim_jax.channels.ties import streams
from slim_jax.selection.budget import select_budget
from slim_jax.selection.scores import unit_norm
from slim_jax.selection.select import select_global
from slim_jax.structure.find import units
from slim_jax.structure.gates import fold, gate, without_gates


class Calls(NamedTuple):
  """The calls of a model that a cut plans.

  Attributes:
    infer: `infer(variables, *arrays)`, of the original model.
    train: `train(variables, key, *arrays)` returns (results, new state); None if it is not planned.
    arrays: the arguments.
    earlier: the plan of the cuts before this one.
  """

  infer: Callable[..., Any]
  train: Callable[..., Any] | None
  arrays: list[Any]
  earlier: Plan | None

  @property
  def now(self) -> Callable[..., Any]:
    """Inference with the variables before this cut."""
    return self.infer if self.earlier is None else thin(self.infer, self.earlier)

  def also(self, outs: Any, of: Callable[..., Any]) -> list[Any]:
    """Returns the training call for `plan(also=)`, where `of` changes the function."""
    if self.train is None:
      return []
    return [(of(self.train), (jax.random.key(0), *self.arrays), (None, outs))]


class Chosen(NamedTuple):
  """What a cut removes.

  Attributes:
    dead: channels by scale, or by unit.
    plan: from the variables before this cut.
    variables: what the plan slices.
  """

  dead: Any
  plan: Plan
  variables: Any


def channels(call: Calls, variables: Any, bias: str, choice: dict[str, Any]) -> Chosen:
  """Chooses channels by their scales."""

  def select(**given: Any) -> Any:
    if choice.get('tied') is True:
      choice['tied'] = streams(call.now, variables, *call.arrays, scales=choice.get('scales'))
    if callable(choice.get('scores')):
      choice['scores'] = choice['scores'](call.now, variables, *call.arrays)
    if 'target' in given:
      return select_budget(call.now, variables, *call.arrays, **given, **choice)
    return select_global(variables, **given, **choice)

  dead = _by_one_way(select, choice)
  full, all_dead = variables, dead
  if call.earlier is not None:
    full, all_dead = call.earlier.expand(variables), call.earlier.lift(dead)
  also = call.also('', lambda train: train)
  plan = planning.plan(call.infer, full, *call.arrays, dead=all_dead, bias=bias, also=also)
  plan = plan if call.earlier is None else plan.relative_to(call.earlier)
  return Chosen(dead, plan, variables)


def of_units(call: Calls, variables: Any, where: Any, choice: dict[str, Any]) -> Chosen:
  """Chooses units by the norms of their variables, or by `scores` for each unit."""
  if unfit := [name for name in ('tied', 'scales') if name in choice]:
    raise AdapterError(f'where= chooses units, which are whole: {", ".join(unfit)} cannot be given')
  found = units(call.now, variables, *call.arrays, where=None if where == '*' else where)
  gated, gates = gate(call.now, variables, found)
  both = (variables, gates)

  def select(**given: Any) -> Any:
    scores = choice.pop('scores', None)
    scores = unit_norm(variables, found) if scores is None else scores
    if 'target' not in given:
      return select_global(gates, scales=True, scores=scores, **given, **choice)
    options: dict[str, Any] = {'scales': (False, True), 'scores': (None, scores), **given, **choice}
    return select_budget(gated, both, *call.arrays, **options)[1]

  def with_gates(train: Callable[..., Any]) -> Callable[..., Any]:
    if call.earlier is not None:
      train = thin(train, call.earlier, outs=(None, ''))
    return lambda both, *args: train(fold(both[0], both[1], found), *args)

  dead = _by_one_way(select, choice)
  also = call.also('0', with_gates)
  plan = planning.plan(gated, both, *call.arrays, dead=(None, dead), also=also)
  return Chosen(dead, without_gates(plan, dead, found), fold(variables, mask(gates, dead), found))


def _by_one_way(select: Callable[..., Any], choice: dict[str, Any]) -> Any:
  """Returns the channels to remove, chosen in the one way that is given."""
  ways = {'fraction': 'fraction', 'threshold': 'threshold', 'budget': 'target', 'dead': 'dead'}
  given = {name: choice.pop(name, None) for name in ways}
  chosen = {name: value for name, value in given.items() if value is not None}
  if len(chosen) != 1:
    raise AdapterError(
      f'give one of {", ".join(ways)}; given: {", ".join(chosen) or "none of them"}'
    )
  ((name, value),) = chosen.items()
  if name != 'dead':
    return select(**{ways[name]: value})
  if choice:
    raise AdapterError(f'dead is chosen already, so {", ".join(choice)} cannot change it')
  return value
