"""The functions of a person's own model, a module of Linen or of NNX.

Only runs of such a model import this, as NNX takes a third of a second.
"""

from collections.abc import Callable, Iterable
import functools
from typing import Any

from flax import linen, nnx
import jax
import jax.numpy as jnp

from slim_jax import tree
from slim_jax.channels.plan import Plan
from slim_jax.runs.errors import ConfigError
from slim_jax.runs.model_functions import Model, of_linen
from slim_jax.runtime import parts

PyTree = Any


def of_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Model:
  """Returns the functions of an NNX module.

  'params' has its `nnx.Param`s, 'batch_stats' all other variables except those of its random
  numbers, each by its path. Random numbers follow from the key of a step. The module is set to
  training or inference by `train()` and `eval()`; its `__call__` gets `train` if it has such an
  argument.

  Args:
    make: makes the module from its `rngs`.
  """

  @functools.cache
  def form() -> tuple[Any, ...]:
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    return nnx.split(module, nnx.Param, nnx.RngState, ...)

  def merged(variables: PyTree, key: jax.Array, *, train: bool) -> nnx.Module:
    definition, params, noise, others = form()
    module = nnx.merge(
      definition,
      _filled(params, variables['params']),
      _seeded(noise, key),
      _filled(others, variables.get('batch_stats', {})),
    )
    module.train() if train else module.eval()
    return module

  def call(module: Any, image: jax.Array, *, train: bool) -> Any:
    return module(image, **parts.accepted(module.__call__, {'train': train}))

  def run(variables: PyTree, image: jax.Array, key: jax.Array) -> tuple[Any, PyTree]:
    module = merged(variables, key, train=True)
    outputs = call(module, image, train=True)
    return outputs, _variables(module)['batch_stats']

  def predict(variables: PyTree, image: jax.Array) -> Any:
    return call(merged(variables, jax.random.key(0), train=False), image, train=False)

  def init(key: jax.Array, image: jax.ShapeDtypeStruct, plan: Plan | None) -> PyTree:
    del image  # the shapes of an NNX module follow from its arguments
    full = _variables(make(nnx.Rngs(key)))
    return full if plan is None else plan.slice(full)

  def shapes(image: jax.ShapeDtypeStruct) -> PyTree:
    result = jax.eval_shape(lambda: _variables(make(nnx.Rngs(0))))
    jax.eval_shape(predict, result, image)  # whether it takes such images
    return result

  return Model(run, predict, init, shapes, None)


def of_part(constructor: Callable[..., Any], what: str, **arguments: Any) -> Model:
  """Returns the functions of a person's own model.

  Args:
    constructor: a class of Linen or NNX, or a function that makes a module of either. It takes
      `num_classes` and the arguments of the config; for NNX also `rngs`.
    what: what errors call it.
    **arguments: for the constructor.

  Raises:
    ConfigError: the constructor does not take the arguments, or makes something else.
  """

  def make(rngs: nnx.Rngs) -> Any:
    return constructor(**arguments, **parts.accepted(constructor, {'rngs': rngs}))

  takes_rngs = bool(parts.accepted(constructor, {'rngs': None}))

  try:
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0))) if takes_rngs else constructor(**arguments)
  except (TypeError, ValueError) as error:
    raise ConfigError(
      f'{what} cannot be made with {_shown(arguments)}: {error}. It must take num_classes, the '
      'further fields of config.model and, for NNX, rngs'
    ) from error
  if isinstance(module, linen.Module):
    return of_linen(module)
  if isinstance(module, nnx.Module) and takes_rngs:
    return of_nnx(make)
  raise ConfigError(
    f'{what} makes {type(module).__name__}: it must make a module of flax.linen, or of flax.nnx '
    'with an argument rngs'
  )


def _variables(module: nnx.Module) -> PyTree:
  """Returns the variables of an NNX module as nested dictionaries."""
  _, params, _, others = nnx.split(module, nnx.Param, nnx.RngState, ...)
  return {'params': _nested(params), 'batch_stats': _nested(others)}


def _nested(state: Any) -> PyTree:
  """Returns a state of NNX as nested dictionaries of arrays, with strings for indices of lists."""
  return tree.nested(dict(zip(_paths(state), jax.tree.leaves(state), strict=True)))


def _filled(state: Any, values: PyTree) -> Any:
  """Returns a state of NNX with the values of nested dictionaries."""
  leaves = tree.flatten(values)
  return jax.tree.unflatten(jax.tree.structure(state), [leaves[path] for path in _paths(state)])


def _seeded(state: Any, key: jax.Array) -> Any:
  """Returns the random state of an NNX module, each of its keys derived from `key`."""

  def seed(number: int, leaf: Any) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      own = jax.random.fold_in(key, number)
      return jax.random.split(own, leaf.shape) if leaf.shape else own
    return jnp.zeros(leaf.shape, leaf.dtype)

  leaves = jax.tree.leaves(state)
  return jax.tree.unflatten(jax.tree.structure(state), [*map(seed, range(len(leaves)), leaves)])


def _paths(state: Any) -> Iterable[tree.Path]:
  """Returns the path of each variable of a state, without the name of its value."""
  return [path[:-1] for path in tree.flatten(state)]


def _shown(arguments: dict[str, Any]) -> str:
  return ', '.join(f'{name}={value!r}' for name, value in arguments.items())
