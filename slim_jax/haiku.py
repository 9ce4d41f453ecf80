"""Haiku: a thin `Transformed` with the signatures of the full one.

    thin, info = slim_jax.haiku.slim(net, (params, state), x, fraction=0.5)
    params, state = info.variables
    logits, state = thin.apply(params, state, key, x, is_training=True)

The variables are (params, state); (params, None) of an `hk.Transformed`.
"""

from collections.abc import Callable, Mapping
import dataclasses
import functools
import inspect
from typing import Any, TypeVar, Unpack

import haiku as hk
import jax

from slim_jax.adapters import calls
from slim_jax.adapters.cut import CutKeywords, Info, cut
from slim_jax.adapters.functions import AdapterError, Functions, mode_of, modes
from slim_jax.channels.plan import Plan

_WITH_STATE = (hk.TransformedWithState, hk.MultiTransformedWithState)
_KINDS = (hk.Transformed, hk.MultiTransformed, *_WITH_STATE)

T = TypeVar(
  'T', hk.Transformed, hk.TransformedWithState, hk.MultiTransformed, hk.MultiTransformedWithState
)


def functions(
  net: hk.Transformed | hk.TransformedWithState,
  variables: Any,
  *,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | None = None,
) -> Functions:
  """Returns a transformed function as pure functions.

  Args:
    net: with or without `hk.without_apply_rng`.
    variables: (params, state), as `net.init` returns them; (params, None) without state.
    infer: arguments by name that a call in inference has, such as `{'is_training': False}`.
      Default: see `train`.
    train: those in training. Default: the argument `train`, `training`, `is_training`,
      `deterministic`, `inference` or `use_running_average`, if the function has one.

  Returns:
    `Functions` of (params, state). `train` returns (results, state).
  """
  if not isinstance(net, hk.Transformed | hk.TransformedWithState):
    _check(net)
    raise AdapterError(
      'of hk.multi_transform, say which function is inference: '
      'hk.TransformedWithState(net.init, net.apply[0])'
    )
  has_state = isinstance(net, hk.TransformedWithState)
  if not (isinstance(variables, tuple) and len(variables) == 2):
    raise AdapterError('variables must be (params, state), or (params, None) of an hk.Transformed')
  parameters = inspect.signature(net.apply).parameters
  given = {'params', 'state', 'rng'} if has_state else {'params', 'rng'}
  own = [parameter for name, parameter in parameters.items() if name not in given]
  found = modes(inspect.Signature(own, __validate_parameters__=False), infer, train)

  def call(
    variables: Any, key: Any, training: bool, args: tuple[Any, ...], kwargs: Any
  ) -> tuple[Any, Any]:
    first = variables if has_state else variables[:1]
    first = (*first, key) if 'rng' in parameters else first
    results = found.call(functools.partial(net.apply, *first), training, args, kwargs)
    return results if has_state else (results, None)

  def infer_f(variables: Any, *args: Any, **kwargs: Any) -> Any:
    return call(variables, None, False, args, kwargs)[0]

  def train_f(variables: Any, *args: Any, key: Any, **kwargs: Any) -> Any:
    return call(variables, key, True, args, kwargs)

  return Functions(variables, infer_f, train_f, (None, '1'))


def slim(
  net: T,
  variables: Any,
  *args: Any,
  kwargs: Mapping[str, Any] | None = None,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | bool | None = None,
  **options: Unpack[CutKeywords],
) -> tuple[T, Info]:
  """Removes channels: selects, plans inference and training, slices.

  Args:
    net: `hk.transform` or `hk.transform_with_state` of a function; thin ones too.
    variables: (params, state), or (params, None) without state.
    *args: what the function is called with; the batch size does not matter.
    kwargs: its keyword arguments.
    infer: as in `functions`.
    train: as in `functions`; False plans inference alone.
    **options: `fraction`, `threshold`, `budget` or `dead`; `bias`, `tx` and `opt_state` of `params`,
      and the options of selection: see `slim_jax.adapters.cut.CutKeywords`.

  Returns:
    The thin network, of the same kind; and an `Info` with its `variables`, its `opt_state`, the
    `plan`, and costs.

  Raises:
    ValueError: as `select_global`, `select_budget` and `plan` raise it, and if the options
      contradict each other.
  """
  full, earlier = _original(net)
  mode = mode_of(train)
  info = cut(
    functions(full, variables, infer=infer, train=mode),
    args,
    kwargs or {},
    trained=lambda variables: variables[0],
    path='0',
    training=train is not False,
    earlier=earlier,
    **options,
  )
  return thin(net, info.further), info


def thin(net: T, plan: Plan) -> T:
  """Returns the thin network of a plan.

  Args:
    net: `hk.transform`, `hk.transform_with_state` or their `multi_transform` of functions, with or
      without `hk.without_apply_rng`. If it is thin, the plan is of its thin variables.
    plan: of (params, state), such as from `functions(net, variables)`.

  Returns:
    The same kind of pair: `init` returns new thin variables, `apply` takes thin variables.
  """
  full, earlier = _original(net)
  plan = plan if earlier is None else earlier.then(plan)
  has_state = isinstance(full, _WITH_STATE)
  applies = jax.tree.map(lambda f: _Apply(full, f, plan, has_state), full.apply)

  @functools.wraps(full.init)
  def init(*args: Any, **kwargs: Any) -> Any:
    made = full.init(*args, **kwargs)
    return plan.slice(made) if has_state else plan.slice((made, None))[0]

  return type(full)(init, applies)


@dataclasses.dataclass(eq=False)  # hashed by identity, as functions are
class _Apply:
  """`apply` of a thin network.

  Attributes:
    full: the full network.
    f: an `apply` of it.
    plan: what is left of (params, state).
    has_state: whether `f` takes and returns state.
  """

  full: Any
  f: Callable[..., Any]
  plan: Plan
  has_state: bool

  def __post_init__(self):
    functools.update_wrapper(self, self.f)

  def __call__(self, params: Any, *args: Any, **kwargs: Any) -> Any:
    state = None
    if self.has_state:
      state, args = (args[0], args[1:]) if args else (kwargs.pop('state'), args)

    def f(variables: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
      results = self.f(*(variables if self.has_state else variables[:1]), *args, **kwargs)
      return (results[0], (None, results[1])) if self.has_state else (results, ())

    results, new = calls.run(f, self.plan, (params, state), *args, **kwargs)
    return (results, new[1]) if self.has_state else results


def _original(net: Any) -> tuple[Any, Plan | None]:
  """Returns the full network behind a network, and what is left of its variables; None for all."""
  _check(net)
  leaves = jax.tree.leaves(net.apply)
  if all(isinstance(f, _Apply) for f in leaves) and leaves:
    return leaves[0].full, leaves[0].plan
  return net, None


def _check(net: Any) -> None:
  if not isinstance(net, _KINDS):
    raise AdapterError(
      f'slim_jax.haiku needs what hk.transform or hk.transform_with_state returns, got '
      f'{type(net).__name__}; slim_jax.linen, .nnx, .equinox and .keras are for the other libraries'
    )
