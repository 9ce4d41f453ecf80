"""Flax Linen: a thin module with the call conventions of the full one.

    thin, info = slim_jax.linen.slim(module, variables, x, fraction=0.5)
    logits = thin.apply(info.variables, x, train=False)

The variables are those of `module.init`, {'params': ..., 'batch_stats': ...}.
"""

from collections.abc import Callable, Mapping
import dataclasses
import inspect
from typing import Any, Unpack

from flax import core
from flax import linen as nn

from slim_jax.adapters import calls
from slim_jax.adapters.cut import CutKeywords, Info, cut
from slim_jax.adapters.functions import AdapterError, Functions, mode_of, modes
from slim_jax.channels.plan import Plan


def functions(
  module: nn.Module,
  variables: Mapping[str, Any],
  *,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | nn.Module | None = None,
  method: str | Callable[..., Any] | None = None,
) -> Functions:
  """Returns a module as pure functions.

  Args:
    module: any module, unbound.
    variables: what `module.init` returns (arrays or shapes).
    infer: keyword arguments that a call in inference has, such as `{'train': False}`. Default: see
      `train`.
    train: those in training; or the module to train with, if its fields say so. Default: the
      argument `train`, `training`, `is_training`, `deterministic`, `inference` or
      `use_running_average`, if the method has one.
    method: as of `module.apply`.

  Returns:
    `Functions`: `infer(variables, *args, **kwargs)` returns what the module returns;
    `train(variables, *args, key=key, **kwargs)` returns (results, new state), where the state holds
    all collections but 'params', and `key` is that of every random stream.
  """
  variables = core.unfreeze(dict(variables))
  states = [name for name in variables if name != 'params']
  in_training, given = (train, {}) if isinstance(train, nn.Module) else (module, train)
  found = modes(_signature(module, method), infer, given)

  def infer_f(variables: Any, *args: Any, **kwargs: Any) -> Any:
    def call(*args: Any, **kwargs: Any) -> Any:
      return module.apply(variables, *args, method=method, **kwargs)

    return found.call(call, False, args, kwargs)

  def train_f(variables: Any, *args: Any, key: Any, **kwargs: Any) -> Any:
    rngs = {'params': key, 'dropout': key}  # other streams fall back to 'params'

    def call(*args: Any, **kwargs: Any) -> Any:
      return in_training.apply(variables, *args, method=method, mutable=states, rngs=rngs, **kwargs)

    return found.call(call, True, args, kwargs)

  return Functions(variables, infer_f, train_f, (None, {name: name for name in states}))


def slim(
  module: nn.Module,
  variables: Mapping[str, Any],
  *args: Any,
  kwargs: Mapping[str, Any] | None = None,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | nn.Module | bool | None = None,
  method: str | Callable[..., Any] | None = None,
  **options: Unpack[CutKeywords],
) -> 'tuple[ThinModule, Info]':
  """Removes channels: selects, plans inference and training, slices.

      thin, info = slim_jax.linen.slim(module, variables, x, fraction=0.5, tx=tx, opt_state=opt_state)
      state = TrainState(step, thin.apply, info.variables['params'], tx, info.opt_state)

  Args:
    module: any module, unbound; thin ones too.
    variables: its variables (arrays).
    *args: what the module is called with; the batch size does not matter.
    kwargs: its keyword arguments.
    infer: as in `functions`.
    train: as in `functions`; False plans inference alone.
    method: as in `functions`.
    **options: `fraction`, `threshold`, `budget` or `dead`; `bias`, `tx` and `opt_state` of the
      parameters, and the options of selection: see `slim_jax.adapters.cut.CutKeywords`.

  Returns:
    The thin module; and an `Info` with its `variables`, its `opt_state`, the `plan`, and costs.

  Raises:
    ValueError: as `select_global`, `select_budget` and `plan` raise it, and if the options
      contradict each other.
  """
  slimmed = _slimmed(module)
  model = functions(
    slimmed.module, variables, infer=infer, train=mode_of(train), method=_method(method)
  )
  info = cut(
    model,
    args,
    kwargs or {},
    trained=lambda variables: variables['params'],
    path='params',
    training=train is not False,
    earlier=slimmed.plan,
    **options,
  )
  return thin(slimmed.module, info.plan), info


def thin(module: nn.Module, plan: Plan) -> 'ThinModule':
  """Returns the thin module of a plan.

  Args:
    module: any module, unbound. If it is thin, the plan is of its thin variables.
    plan: of all its variables, made with `functions(module, variables)` or `module.apply`.

  Returns:
    A module with the same `apply`, `init` and methods, whose variables are `plan.slice(variables)`.
  """
  slimmed = _slimmed(module)
  plan = plan if slimmed.plan is None else slimmed.plan.then(plan)
  return ThinModule(_Slimmed(slimmed.module, plan))


@dataclasses.dataclass(frozen=True, eq=False)  # hashed by identity, as a module's field has to be
class _Slimmed:
  """A module and what is left of it; None if it is whole."""

  module: nn.Module
  plan: Plan | None

  def __repr__(self) -> str:
    return repr(self.module)


class ThinModule(nn.Module):
  """A module with thin variables; see `thin`.

  `apply`, `init` and the like take the arguments of the full module. `method=` may be a name, or a
  method of the full module's class. Inside another module it is called like any submodule.

  Attributes:
    slimmed: the full module and the plan.
  """

  slimmed: _Slimmed

  @property
  def module(self) -> nn.Module:
    """The full module."""
    return self.slimmed.module

  @property
  def plan(self) -> Plan:
    """What is left of each of its variables."""
    assert self.slimmed.plan is not None
    return self.slimmed.plan

  @nn.nowrap
  def apply(
    self,
    variables: Mapping[str, Any],
    *args: Any,
    rngs: Any = None,
    method: str | Callable[..., Any] | None = None,
    mutable: Any = False,
    capture_intermediates: Any = False,
    **kwargs: Any,
  ) -> Any:
    """Calls a method on thin variables; see `flax.linen.Module.apply`."""
    has_state = mutable is not False or bool(capture_intermediates)
    known = {path[0] for path in self.plan.cuts}
    variables = core.unfreeze(dict(variables))
    planned = {name: tree for name, tree in variables.items() if name in known}
    others = {name: tree for name, tree in variables.items() if name not in known}

    def f(planned: Any, others: Any, rngs: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
      results = self.module.apply(
        {**planned, **others},
        *args,
        rngs=rngs,
        method=_method(method),
        mutable=mutable,
        capture_intermediates=capture_intermediates,
        **kwargs,
      )
      return results if has_state else (results, {})

    results, new = calls.run(f, self.plan, planned, others, rngs, *args, **kwargs)
    return (results, new) if has_state else results

  @nn.nowrap
  def init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns new thin variables: those of the full module, sliced."""
    return self.plan.slice(core.unfreeze(dict(self.module.init(rngs, *args, **kwargs))))

  @nn.nowrap
  def init_with_output(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns what the thin module returns, and new thin variables."""
    variables = self.init(rngs, *args, **kwargs)
    rngs = rngs if isinstance(rngs, Mapping) else {'params': rngs}
    return self.apply(variables, *args, rngs=rngs, mutable=True, **kwargs)[0], variables

  @nn.nowrap
  def lazy_init(self, rngs: Any, *args: Any, **kwargs: Any) -> Any:
    """Returns new thin variables, from shapes of the inputs."""
    return self.plan.slice(core.unfreeze(dict(self.module.lazy_init(rngs, *args, **kwargs))))

  @nn.compact
  def __call__(self, *args: Any, **kwargs: Any) -> Any:
    """Calls the module inside another one."""
    if self.is_initializing() and not self.variables.get('params'):
      self._put(self.init({'params': self.make_rng('params')}, *args, **kwargs))
    variables = core.unfreeze(dict(self.variables))
    rngs = {name: self.make_rng(name) for name in self.scope.rngs} if self.scope else {}
    mutable = [name for name in variables if self.is_mutable_collection(name)]
    results, new = self.apply(variables, *args, rngs=rngs, mutable=mutable, **kwargs)
    self._put(new)
    return results

  def _put(self, variables: Mapping[str, Mapping[str, Any]]) -> None:
    for collection, members in variables.items():
      for name, value in members.items():
        self.put_variable(collection, name, value)


def _slimmed(module: nn.Module) -> _Slimmed:
  if not isinstance(module, nn.Module):
    raise AdapterError(
      f'slim_jax.linen needs a flax.linen.Module, got {type(module).__name__}; slim_jax.nnx, '
      '.equinox, .haiku and .keras are for the other libraries'
    )
  return module.slimmed if isinstance(module, ThinModule) else _Slimmed(module, None)


def _method(method: str | Callable[..., Any] | None) -> str | Callable[..., Any] | None:
  """Returns a method of the full module: `ThinModule.__call__` stands for its own."""
  name = getattr(method, '__qualname__', '')
  return None if name == f'{ThinModule.__name__}.__call__' else method


def _signature(module: nn.Module, method: str | Callable[..., Any] | None) -> inspect.Signature:
  """Returns the signature of a module's method without `self`."""
  f = method if callable(method) else getattr(module, method or '__call__')
  signature = inspect.signature(f)
  if inspect.ismethod(f) or not callable(method):
    return signature
  return signature.replace(parameters=list(signature.parameters.values())[1:])
