"""Equinox: a thin module with the methods of the full one.

    thin, info = slim_jax.equinox.slim(model, state, x, fraction=0.5)
    state = info.variables[1]
    logits, state = jax.vmap(thin, (0, None), (0, None), axis_name='batch')(x, state)

The variables are (params, state), where `params` is `eqx.filter(model, eqx.is_inexact_array)` and
`state` the `eqx.nn.State`, or None.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import inspect
from typing import Any, ClassVar, TypeVar, Unpack

import equinox as eqx
import jax

from slim_jax.adapters import calls
from slim_jax.adapters.classes import thin_class
from slim_jax.adapters.cut import CutKeywords, Info, cut
from slim_jax.adapters.functions import AdapterError, Functions, Modes, mode_of, modes
from slim_jax.channels.plan import Plan

M = TypeVar('M', bound=eqx.Module)


def functions(
  model: eqx.Module,
  state: eqx.nn.State | None = None,
  *,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | None = None,
  in_axes: int | None | Sequence[int | None] = 0,
  batched: bool = False,
) -> Functions:
  """Returns a model as pure functions of batches.

  Args:
    model: any module that is called with one example, and with `state=` and `key=` if it has these
      parameters.
    state: its state, if it has one. The model then returns (results, state).
    infer: arguments by name that a call in inference has, beside `eqx.nn.inference_mode`. Default:
      see `train`.
    train: those in training. Default: the argument `train`, `training`, `is_training`,
      `deterministic`, `inference` or `use_running_average`, if the model has one.
    in_axes: of the batch, for each positional argument as in `jax.vmap`. Keyword arguments are the
      same for all examples.
    batched: whether the model takes whole batches itself, so that nothing is mapped.

  Returns:
    `Functions` of (params, state). `train` returns (results, state). Each example has a random key
    of its own, from `jax.random.split(key, batch size)`.

  Raises:
    AdapterError: BatchNorms of the model reduce over different axes.
  """
  cls, _ = _original(model)
  model = _as(model, cls)
  params, static = eqx.partition(model, eqx.is_inexact_array)
  signature = inspect.signature(type(model).__call__)
  call = _Call(
    tuple(signature.parameters.values())[1:],
    modes(signature, infer, train),
    in_axes,
    None if batched else _axis_name(model),
    batched,
  )

  def infer_f(variables: Any, *args: Any, **kwargs: Any) -> Any:
    called = eqx.nn.inference_mode(eqx.combine(variables[0], static))
    return call.run(called, variables[1], None, False, args, kwargs)[0]

  def train_f(variables: Any, *args: Any, key: Any, **kwargs: Any) -> Any:
    called = eqx.nn.inference_mode(eqx.combine(variables[0], static), False)
    return call.run(called, variables[1], key, True, args, kwargs)

  return Functions((params, state), infer_f, train_f, (None, '1'))


def slim(
  model: M,
  state: eqx.nn.State | None,
  *args: Any,
  kwargs: Mapping[str, Any] | None = None,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | bool | None = None,
  in_axes: int | None | Sequence[int | None] = 0,
  batched: bool = False,
  **options: Unpack[CutKeywords],
) -> tuple[M, Info]:
  """Removes channels: selects, plans inference and training, slices.

      thin, info = slim_jax.equinox.slim(model, state, x, fraction=0.5, tx=tx, opt_state=opt_state)
      state, opt_state = info.variables[1], info.opt_state

  Args:
    model: any module; thin ones too.
    state: its state, or None.
    *args: a batch of what the model is called with, without state and key.
    kwargs: its keyword arguments.
    infer: as in `functions`.
    train: as in `functions`; False plans inference alone.
    in_axes: as in `functions`.
    batched: as in `functions`.
    **options: `fraction`, `threshold`, `budget` or `dead`; `bias`, `tx` and `opt_state` of
      `eqx.filter(model, eqx.is_inexact_array)`, and the options of selection: see
      `slim_jax.adapters.cut.CutKeywords`.

  Returns:
    The thin module; and an `Info` with `variables`, whose second part is the thin state, the
    `opt_state`, the `plan`, and costs.

  Raises:
    ValueError: as `select_global`, `select_budget` and `plan` raise it, and if the options
      contradict each other.
  """
  cls, earlier = _original(model)
  found = functions(
    model, state, infer=infer, train=mode_of(train), in_axes=in_axes, batched=batched
  )
  info = cut(
    found,
    args,
    kwargs or {},
    trained=lambda variables: variables[0],
    path='0',
    training=train is not False,
    earlier=earlier,
    **options,
  )
  made = thin(model, info.further)
  return made, dataclasses.replace(
    info, opt_state=_retyped(info.opt_state, (cls, type(model)), type(made))
  )


def thin(model: M, plan: Plan) -> M:
  """Returns the thin module of a plan.

  Its class is a subclass of the model's, and its leaves are at the same paths. The methods that the
  model's classes define, `__call__` among them, compute what the full model would, with zeros where
  channels were removed. Submodules have thin parameters, but are the ordinary ones: call methods of
  the whole. Its state is `plan['1'].slice(state)`.

  Args:
    model: any module. If it is thin, the plan is of its thin variables.
    plan: of (params, state), such as from `functions(model, state)`.
  """
  cls, earlier = _original(model)
  params, static = eqx.partition(_as(model, cls), eqx.is_inexact_array)
  made = eqx.combine(plan['0'].slice(params), static)
  whole = plan if earlier is None else earlier.then(plan)
  return _as(made, thin_class(cls, eqx.Module, ThinModule, whole, _call))


class ThinModule(eqx.Module):
  """What the classes of thin modules have in common; see `thin`.

  Attributes:
    full_class: the class of the full model.
    plan: what is left of (params, state).
  """

  full_class: ClassVar[type[eqx.Module]]
  plan: ClassVar[Plan]


@dataclasses.dataclass(frozen=True)
class _Call:
  """How a model is called with a batch.

  Attributes:
    parameters: of its call, without `self`.
    modes: its arguments in inference and training.
    in_axes: of each positional argument.
    axis_name: what BatchNorms call the axis of the batch.
    batched: whether the model takes batches itself.
  """

  parameters: tuple[inspect.Parameter, ...]
  modes: Modes
  in_axes: int | None | Sequence[int | None]
  axis_name: Any
  batched: bool

  def run(
    self, model: Any, state: Any, key: Any, training: bool, args: tuple[Any, ...], kwargs: Any
  ) -> tuple[Any, Any]:
    """Returns the results of a batch and the new state."""
    names = {parameter.name for parameter in self.parameters}
    if state is not None and 'state' not in names:
      raise AdapterError(
        f'{type(model).__name__}.__call__ has no parameter `state`: it takes one example, then '
        '`state` and `key` by these names. Wrap the model in a module that does.'
      )

    def one(args: tuple[Any, ...], state: Any, key: Any) -> tuple[Any, Any]:
      known = {name: v for name, v in (('state', state), ('key', key)) if name in names}
      if state is None:
        known.pop('state', None)
      positional, named = self._by_name(args)
      results = self.modes.call(model, training, positional, {**named, **kwargs, **known})
      return results if state is not None else (results, None)

    if self.batched:
      return one(args, state, key)
    axes = self.in_axes if isinstance(self.in_axes, Sequence) else [self.in_axes] * len(args)
    axes = tuple(axes)
    if len(axes) != len(args):
      raise AdapterError(f'in_axes has {len(axes)} entries for {len(args)} positional arguments')
    keys = None if key is None else jax.random.split(key, _size(args, axes))
    mapped = jax.vmap(
      one, (axes, None, None if keys is None else 0), (0, None), axis_name=self.axis_name
    )
    return mapped(args, state, keys)

  def _by_name(self, args: tuple[Any, ...]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns positional arguments that stand before `state` and `key`, and the others by name."""
    free = [p for p in self.parameters if p.name not in ('state', 'key')]
    before = 0
    for parameter in self.parameters:
      if parameter.name in ('state', 'key') or parameter.kind is parameter.KEYWORD_ONLY:
        break
      before = len(args) if parameter.kind is parameter.VAR_POSITIONAL else before + 1
    return args[:before], {p.name: arg for p, arg in zip(free[before:], args[before:])}


def _size(args: tuple[Any, ...], axes: tuple[int | None, ...]) -> int:
  """Returns the batch size."""
  for arg, axis in zip(args, axes, strict=True):
    if axis is not None and (leaves := jax.tree.leaves(arg)):
      return leaves[0].shape[axis]
  raise AdapterError('no argument has a batch axis; a model that takes batches needs batched=True')


def _axis_name(model: eqx.Module) -> Any:
  """Returns the one name that BatchNorms have for the batch; None if there are none."""
  is_norm = lambda node: isinstance(node, eqx.nn.BatchNorm)
  names = {
    node.axis_name
    for node in jax.tree.leaves(model, is_leaf=is_norm)
    if isinstance(node, eqx.nn.BatchNorm)
  }
  if len(names) > 1 or any(isinstance(name, tuple | list) for name in names):
    raise AdapterError(
      f'the BatchNorms reduce over the axes {sorted(map(str, names))}, not over one; plan with '
      'slim_jax.plan and a function of your own'
    )
  return next(iter(names), None)


def _call(module: ThinModule, name: str, args: Any, kwargs: Any) -> Any:
  """Calls a method of the full model on thin parameters and a thin state."""
  params, rest = eqx.partition(_as(module, module.full_class), eqx.is_inexact_array)
  arrays, static = eqx.partition(rest, eqx.is_array)
  leaves, structure = jax.tree.flatten((args, kwargs), is_leaf=_is_state)
  state = _only_state(leaves)
  rebuild: list[Callable[[Any, Any], Any]] = []

  def f(variables: Any, arrays: Any, leaves: list[Any]) -> tuple[list[Any], Any]:
    params, state = variables
    model = eqx.combine(params, arrays, static)
    args, kwargs = structure.unflatten(state if leaf is None else leaf for leaf in leaves)
    results = getattr(model, name)(*args, **kwargs)
    found, out = jax.tree.flatten(results, is_leaf=_is_state)
    rebuild.append(
      lambda leaves, state: out.unflatten(state if leaf is None else leaf for leaf in leaves)
    )
    return _without_states(found), (None, _only_state(found))

  results, (_, state) = calls.run(f, module.plan, (params, state), arrays, _without_states(leaves))
  return rebuild[-1](results, state)


def _is_state(node: Any) -> bool:
  return isinstance(node, eqx.nn.State)


def _without_states(leaves: list[Any]) -> list[Any]:
  """Returns leaves with None in the place of a state."""
  return [None if _is_state(leaf) else leaf for leaf in leaves]


def _only_state(leaves: list[Any]) -> eqx.nn.State | None:
  states = [leaf for leaf in leaves if _is_state(leaf)]
  if len(states) > 1:
    raise AdapterError('a thin module takes and returns one eqx.nn.State, that of the whole model')
  return states[0] if states else None


def _as(module: M, cls: type[eqx.Module]) -> M:
  """Returns the module as an instance of another class with the same fields."""
  made = object.__new__(cls)
  for name, value in vars(module).items():
    object.__setattr__(made, name, value)
  return made  # pyright: ignore[reportReturnType]


def _retyped(whole: Any, old: tuple[type, ...], new: type[eqx.Module]) -> Any:
  """Returns a tree in which modules of other classes are of the class `new`."""
  is_old = lambda node: type(node) in old
  return jax.tree.map(lambda node: _as(node, new) if is_old(node) else node, whole, is_leaf=is_old)


def _original(model: Any) -> tuple[type[eqx.Module], Plan | None]:
  """Returns the class of the full model, and what is left of its variables; None for all."""
  if not isinstance(model, eqx.Module):
    raise AdapterError(
      f'slim_jax.equinox needs an equinox.Module, got {type(model).__name__}; slim_jax.linen, '
      '.nnx, .haiku and .keras are for the other libraries'
    )
  return (model.full_class, model.plan) if isinstance(model, ThinModule) else (type(model), None)
