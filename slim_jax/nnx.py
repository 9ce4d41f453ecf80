"""Flax NNX: a thin module with the methods of the full one.

    thin, info = slim_jax.nnx.slim(model, x, fraction=0.5)
    logits = thin(x)

The variables are the state that `nnx.split(model)` returns.
"""

from collections.abc import Mapping
import dataclasses
import inspect
from typing import Any, ClassVar, TypeVar, Unpack

from flax import nnx

from slim_jax import tree
from slim_jax.adapters import calls
from slim_jax.adapters.classes import thin_class
from slim_jax.adapters.cut import CutKeywords, Info, cut
from slim_jax.adapters.functions import AdapterError, Functions, mode_of, modes
from slim_jax.channels.plan import Plan

M = TypeVar('M', bound=nnx.Module)


def functions(
  model: nnx.Module,
  *,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | None = None,
  method: str = '__call__',
) -> Functions:
  """Returns a model as pure functions.

  Args:
    model: any module; it is not changed.
    infer: keyword arguments that a call in inference has, beside `model.eval()`. Default: see `train`.
    train: those in training, beside `model.train()`. Default: the argument `train`, `training`,
      `is_training`, `deterministic`, `inference` or `use_running_average`, if the method has one.
    method: name of the method that is called.

  Returns:
    `Functions` of the state of `nnx.split(model)`. `train` returns (results, state without the
    `nnx.Param`s). The model keeps its random streams: `key` is ignored.
  """
  cls, _ = _original(model)
  found = modes(inspect.signature(getattr(model, method)), infer, train)
  clone = _as(nnx.clone(model), cls)
  clone.eval()
  infer_def, variables = nnx.split(clone)
  known = set(dict(nnx.to_flat_state(variables)))
  clone.train()
  train_def, _ = nnx.split(clone)

  def infer_f(variables: Any, *args: Any, **kwargs: Any) -> Any:
    called = nnx.merge(infer_def, variables, copy=True)
    return found.call(getattr(called, method), False, args, kwargs)

  def train_f(variables: Any, *args: Any, key: Any = None, **kwargs: Any) -> Any:
    del key
    called = nnx.merge(train_def, variables, copy=True)
    results = found.call(getattr(called, method), True, args, kwargs)
    state = nnx.state(called, nnx.Not(nnx.Param))
    return results, nnx.filter_state(state, lambda path, _: path in known)  # nothing that it sows

  return Functions(variables, infer_f, train_f, (None, ''))


def slim(
  model: M,
  *args: Any,
  kwargs: Mapping[str, Any] | None = None,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | bool | None = None,
  method: str = '__call__',
  **options: Unpack[CutKeywords],
) -> tuple[M, Info]:
  """Removes channels: selects, plans inference and training, slices.

      thin, info = slim_jax.nnx.slim(model, x, fraction=0.5, opt_state=optimizer)
      optimizer = info.opt_state

  Args:
    model: any module; thin ones too. It is not changed.
    *args: what it is called with; the batch size does not matter.
    kwargs: its keyword arguments.
    infer: as in `functions`.
    train: as in `functions`; False plans inference alone.
    method: as in `functions`.
    **options: `fraction`, `threshold`, `budget` or `dead`; `bias`, and the options of selection: see
      `slim_jax.adapters.cut.CutKeywords`. `opt_state` is an `nnx.Optimizer`, or with `tx` a state
      of the `nnx.Param`s.

  Returns:
    The thin module, in the mode (`train()`, `eval()`) of `model`; and an `Info` with its `variables`,
    the `opt_state`, the `plan`, and costs. An `nnx.Optimizer` becomes one of the thin module.

  Raises:
    ValueError: as `select_global`, `select_budget` and `plan` raise it, and if the options
      contradict each other.
  """
  _check(model)
  optimizer = options.get('opt_state')
  if isinstance(optimizer, nnx.Optimizer):
    options['tx'], options['opt_state'] = optimizer.tx, optimizer.opt_state
  info = cut(
    functions(model, infer=infer, train=mode_of(train), method=method),
    args,
    kwargs or {},
    trained=lambda variables: nnx.filter_state(variables, nnx.Param),
    path='',
    training=train is not False,
    earlier=_original(model)[1],
    **options,
  )
  made = thin(model, info.further)
  if isinstance(optimizer, nnx.Optimizer):
    info = dataclasses.replace(info, opt_state=_optimizer(optimizer, made, info.opt_state))
  return made, info


def thin(model: M, plan: Plan) -> M:
  """Returns the thin module of a plan.

  Its class is a subclass of the model's, and its variables are at the same paths. The methods that
  the model's classes define, `__call__` among them, compute what the full model would, with zeros
  where channels were removed. Submodules have thin parameters, but are the ordinary ones: call
  methods of the whole.

  Args:
    model: any module, which is not changed. If it is thin, the plan is of its thin variables.
    plan: of `nnx.split(model)`, such as from `functions(model)`.

  Returns:
    The thin module. It shares no variables with `model`.
  """
  _check(model)
  cls, earlier = _original(model)
  graphdef, variables = nnx.split(model)
  made = nnx.merge(graphdef, plan.slice(variables), copy=True)
  whole = plan if earlier is None else earlier.then(plan)
  return _as(made, thin_class(cls, nnx.Module, ThinModule, whole, _call))


class ThinModule(nnx.Module):
  """What the classes of thin modules have in common; see `thin`.

  Attributes:
    full_class: the class of the full model.
    plan: what is left of each of its variables.
  """

  full_class: ClassVar[type[nnx.Module]]
  plan: ClassVar[Plan]


def _call(module: ThinModule, name: str, args: Any, kwargs: Any) -> Any:
  """Calls a method of the full model on thin variables, and updates them."""
  planned = {path[:n] for path in module.plan.cuts for n in range(len(path) + 1)}
  in_plan = lambda path, _: tuple(map(str, path)) in planned
  graphdef, state, others = nnx.split(module, in_plan, ...)
  before = {path for part in (state, others) for path, _ in nnx.to_flat_state(part)}
  changes_attributes: list[bool] = []

  def f(state: Any, others: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    model = _as(nnx.merge(graphdef, state, others, copy=True), module.full_class)
    results = getattr(model, name)(*args, **kwargs)
    sown = nnx.pop(model, lambda path, _: path not in before)
    after, new, others = nnx.split(_as(model, type(module)), in_plan, ...)
    changes_attributes.append(after != graphdef)
    old = tree.flatten(state)
    changed = {p: leaf for p, leaf in tree.flatten(new).items() if leaf is not old.get(p)}
    return (results, sown, others), tree.nested(changed)

  (results, *outside), new = calls.run(f, module.plan, state, others, *args, **kwargs)
  if changes_attributes[-1]:
    raise AdapterError(
      f'{module.full_class.__name__}.{name} changes attributes that are not variables, such as a '
      'counter, which a thin module cannot take over. Call it on the full module, or keep the value '
      'in an nnx.Variable that exists before the call.'
    )
  changed = tree.flatten(new)
  values = tree.map_with_path(lambda path, leaf: changed.get(path, leaf), state)
  roots = {path[:n] for path in changed for n in range(len(path) + 1)}
  inside = nnx.filter_state(values, lambda path, _: tuple(map(str, path)) in roots)
  for part in (inside, *outside):
    nnx.update(module, part)
  return results


def _as(module: M, cls: type[nnx.Module]) -> M:
  """Gives a module, which nobody else has, another class."""
  object.__setattr__(module, '__class__', cls)
  return module


def _original(model: nnx.Module) -> tuple[type[nnx.Module], Plan | None]:
  """Returns the class of the full model, and what is left of its variables; None for all."""
  return (model.full_class, model.plan) if isinstance(model, ThinModule) else (type(model), None)


def _optimizer(optimizer: nnx.Optimizer, model: nnx.Module, opt_state: Any) -> nnx.Optimizer:
  """Returns the optimiser of the thin module with a state."""
  made = type(optimizer)(model, optimizer.tx, wrt=optimizer.wrt)
  made.opt_state = nnx.data(opt_state)
  made.step[...] = optimizer.step[...]
  return made


def _check(model: Any) -> None:
  if not isinstance(model, nnx.Module):
    raise AdapterError(
      f'slim_jax.nnx needs a flax.nnx.Module, got {type(model).__name__}; slim_jax.linen, '
      '.equinox, .haiku and .keras are for the other libraries'
    )
