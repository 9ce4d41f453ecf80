"""The whole cut: selects channels, plans, slices variables and optimiser state."""

from collections.abc import Callable, Mapping
import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import optax

from slim_jax import tree
from slim_jax.adapters import calls, chosen
from slim_jax.adapters.functions import AdapterError, Functions
from slim_jax.channels.plan import Plan
from slim_jax.channels.thin import thin
from slim_jax.costs.counting import Cost, count
from slim_jax.selection.options import SelectionKeywords


class CutKeywords(SelectionKeywords, total=False):
  """The keyword arguments that every `slim` takes, beside those of `SelectionOptions`.

  Attributes:
    fraction: share of all channels to remove, as in `select_global`.
    threshold: largest score that is removed, as in `select_global`.
    budget: what the thin network may cost, as `target` of `select_budget`: 'macs:0.5'.
    dead: the channels to remove, if they are chosen already: a tree as `select_global` returns.
    bias: 'zero' or 'keep', as in `plan`.
    tx: the optax transformation of `opt_state`.
    opt_state: the optimiser's state, to be cut like the parameters.
    where: for networks without BatchNorm: which units to choose from, as in `slim_jax.units`:
      'heads,neurons', or '*' for all. They are ranked by `slim_jax.scores.unit_norm`, or by
      `scores` as a tree over the units.
    tied: as in `SelectionOptions`; or True for the ties that `streams` finds.
    scores: as in `SelectionOptions`; or a function `scores(infer, variables, *args)` that returns
      them, such as `slim_jax.scores.kernel_norm`.
  """

  fraction: float | None
  threshold: float | str | None
  budget: str | None
  dead: Any
  bias: str
  tx: optax.GradientTransformation | None
  opt_state: Any
  where: Any


@dataclasses.dataclass(frozen=True)
class Info:
  """What a cut did.

  Attributes:
    plan: the live indices, in the original network's; after several cuts, of all of them together.
    further: the plan of this cut alone, from the variables before it; equal to `plan` at the first.
    variables: the thin variables.
    opt_state: the thin optimiser state; None if none was given.
    dead: which channels were removed, a tree like the variables before the cut; with `where`, which
      units by name.
    before: cost of one call in inference before the cut.
    after: the same after it.
  """

  plan: Plan
  further: Plan
  variables: Any
  opt_state: Any
  dead: Any
  before: Cost
  after: Cost

  @property
  def removed(self) -> float:
    """Share of the channels that this cut removed, in [0, 1]."""
    marks = [np.asarray(mark) for mark in jax.tree.leaves(self.dead)]
    return float(sum(mark.sum() for mark in marks) / max(sum(mark.size for mark in marks), 1))

  def __str__(self) -> str:
    """Returns 'channels -50.0 %, params 1200 -> 400 (-66.7 %), MACs ...'."""
    parts = [f'channels {-self.removed:.1%}']
    for name, quantity in (('params', 'params'), ('MACs', 'macs')):
      full, left = getattr(self.before, quantity), getattr(self.after, quantity)
      parts.append(f'{name} {full:,} -> {left:,} ({left / max(full, 1) - 1:.1%})')
    return ', '.join(parts)


def cut(
  model: Functions,
  args: tuple[Any, ...],
  kwargs: Mapping[str, Any],
  *,
  trained: Callable[[Any], Any],
  path: str,
  training: bool = True,
  earlier: Plan | None = None,
  tx: optax.GradientTransformation | None = None,
  opt_state: Any = None,
  bias: str = 'zero',
  **choice: Any,
) -> Info:
  """Selects channels, plans inference and training together, and slices.

  Args:
    model: the functions of the original model; its variables are thin if there is a plan `earlier`.
    args: arguments of `model.infer` behind the variables.
    kwargs: its keyword arguments.
    trained: returns the part of the variables that the optimiser has.
    path: its path.
    training: whether the plan has to be exact for training too.
    earlier: the plan of the cuts before this one.
    tx: see `CutKeywords`.
    opt_state: see `CutKeywords`.
    bias: see `CutKeywords`.
    **choice: the other fields of `CutKeywords`.

  Raises:
    AdapterError: the options contradict each other.
    ValueError: as `select_global`, `select_budget` and `plan` raise it.
  """
  if (opt_state is None) != (tx is None):
    raise AdapterError('give both tx and opt_state, or neither')
  arrays, rebuild = calls.split((args, dict(kwargs)))

  def infer(variables: Any, *arrays: Any) -> Any:
    args, kwargs = rebuild(arrays)
    return calls.split(model.infer(variables, *args, **kwargs))[0]

  def train(variables: Any, key: Any, *arrays: Any) -> Any:
    args, kwargs = rebuild(arrays)
    return _with_new_state(model, variables, model.train(variables, *args, key=key, **kwargs))

  if training:
    _check_training(train, _full(model, earlier), arrays)
  call = chosen.Calls(infer, train if training else None, arrays, earlier)
  where = choice.pop('where', None)
  if where is None:
    choose = functools.partial(chosen.channels, bias=bias)
  elif bias == 'zero':
    choose = functools.partial(chosen.of_units, where=where)
  else:
    raise AdapterError('units have no biases of their own: where= and bias= contradict each other')
  dead, further, folded = choose(call, model.variables, choice=choice)
  plan = further if earlier is None else earlier.then(further)
  variables = further.slice(folded)
  if tx is not None:
    part = further[path] if path else further
    opt_state = part.slice_opt_state(tx, opt_state, trained(model.variables))
  before = count(call.now, model.variables, *arrays)
  after = count(thin(infer, plan), variables, *arrays)
  return Info(
    plan,
    further,
    variables,
    opt_state,
    dead,
    _with_params(before, trained(model.variables)),
    _with_params(after, trained(variables)),
  )


def _full(model: Functions, earlier: Plan | None) -> Any:
  """Returns the shapes of the original variables."""
  structs = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), model.variables)
  return structs if earlier is None else earlier.expand(structs)


def _check_training(train: Callable[..., Any], variables: Any, arrays: list[Any]) -> None:
  """Raises what a training call raises, with a hint."""
  try:
    jax.eval_shape(train, variables, jax.random.key(0), *arrays)
  except Exception as error:
    error.add_note(
      'This happened in the training call that is planned beside inference. Say with train= which '
      'arguments it has, or pass train=False to plan inference alone.'
    )
    raise


def _with_new_state(model: Functions, variables: Any, results: Any) -> tuple[list[Any], Any]:
  """Returns the results of a training call, and by path the state that it changed."""
  paths, leaves = tree.states(model.outs, results), jax.tree.leaves(results)
  old = tree.flatten(variables)
  plain, new = [], {}
  for path, leaf in zip(paths, leaves, strict=True):
    if path is None and calls.is_array(leaf):
      plain.append(leaf)
    elif path is not None and leaf is not old.get(path):  # it may be another variable's old value
      new[path] = leaf
  return plain, tree.nested(new)


def _with_params(cost: Cost, params: Any) -> Cost:
  """Returns a cost whose parameters are those that are trained."""
  leaves = [
    leaf for leaf in jax.tree.leaves(params) if jax.numpy.issubdtype(leaf.dtype, np.floating)
  ]
  return dataclasses.replace(
    cost,
    params=sum(leaf.size for leaf in leaves),
    param_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
  )
