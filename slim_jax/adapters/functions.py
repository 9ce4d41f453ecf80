"""A model as pure functions of its variables, and how it is told to train."""

from collections.abc import Callable, Iterable, Mapping
import inspect
from typing import Any, NamedTuple

from slim_jax.errors import SlimError

# What libraries call the argument that switches between training and inference.
_TRAINING = {
  'train': True,
  'training': True,
  'is_training': True,
  'deterministic': False,
  'inference': False,
  'use_running_average': False,
}


class AdapterError(SlimError, ValueError):
  """A model cannot be used as it was given; the message says what to pass."""


class Functions(NamedTuple):
  """A model as pure functions, for `plan` and `thin`.

  Attributes:
    variables: tree of arrays, or of shapes.
    infer: `infer(variables, *args, **kwargs)` returns what the model returns in inference.
    train: `train(variables, *args, key=key, **kwargs)` returns (results, new state).
    outs: prefix tree over the results of `train`, for `thin`: which of them follow which variables.
  """

  variables: Any
  infer: Callable[..., Any]
  train: Callable[..., Any]
  outs: Any


class Modes(NamedTuple):
  """Arguments of a model that differ between inference and training, by name.

  Attributes:
    infer: in inference.
    train: in training.
    names: names of the positional parameters of the model, in order.
  """

  infer: Mapping[str, Any]
  train: Mapping[str, Any]
  names: tuple[str, ...] = ()

  def call(self, f: Callable[..., Any], training: bool, args: Iterable[Any], kwargs: Any) -> Any:
    """Calls `f(*args, **kwargs)` with the arguments of one mode in the place of those given."""
    placed, named = list(args), dict(kwargs)
    for name, value in (self.train if training else self.infer).items():
      at = self.names.index(name) if name in self.names else len(placed)
      if at < len(placed):
        placed[at] = value
      else:
        named[name] = value
    return f(*placed, **named)


def mode_of(train: Any) -> Any:
  """Returns `train` of a `slim`, of which True and False say nothing of arguments, for `functions`."""
  return None if isinstance(train, bool) else train


def modes(
  signature: inspect.Signature,
  infer: Mapping[str, Any] | None = None,
  train: Mapping[str, Any] | None = None,
) -> Modes:
  """Returns how a model is told to train.

  Args:
    signature: of the model's call, without the variables.
    infer: arguments by name that a call in inference has. Default: the opposites of `train`.
    train: those in training. Default: the parameter with a customary name, such as `train` or
      `deterministic`; nothing if there is none.

  Raises:
    AdapterError: only one of both is given, and it has values that are not True or False.
  """
  kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
  names = tuple(name for name, p in signature.parameters.items() if p.kind in kinds)
  if infer is None and train is None:
    train = {name: on for name, on in _TRAINING.items() if name in signature.parameters}
  given = {'infer': infer, 'train': train}
  for name, values in given.items():
    if values is None:
      (other,) = (values for values in given.values() if values is not None)
      if unclear := {k: v for k, v in other.items() if not isinstance(v, bool)}:
        raise AdapterError(f'{name}= is needed too: {unclear} have no opposites')
      given[name] = {k: not v for k, v in other.items()}
  return Modes(given['infer'] or {}, given['train'] or {}, names)
