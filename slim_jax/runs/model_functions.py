"""The functions of a model, over {'params': ..., 'batch_stats': ...}.

Models of Linen and of NNX (`own_model`) become one `Model`, so nothing else in a run depends on the
library.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen
import jax

from slim_jax.channels.plan import Plan
from slim_jax.models import initialise

PyTree = Any


class Model(NamedTuple):
  """The functions of a model.

  Attributes:
    train: `(variables, image, key)` -> `(outputs, batch_stats)`, in training mode.
    predict: `(variables, image)` -> outputs, in inference mode.
    init: `(key, image, plan)` -> new variables, thin if the plan is not None; image is a shape.
    shapes: `image` -> shapes of the variables; image is a shape.
    module: the Linen module; None for NNX.
  """

  train: Callable[[PyTree, jax.Array, jax.Array], tuple[Any, PyTree]]
  predict: Callable[[PyTree, jax.Array], Any]
  init: Callable[[jax.Array, jax.ShapeDtypeStruct, Plan | None], PyTree]
  shapes: Callable[[jax.ShapeDtypeStruct], PyTree]
  module: linen.Module | None


def of_linen(module: linen.Module) -> Model:
  """Returns the functions of a Linen module, which is called as `module(image, train=...)`."""

  def train(variables: PyTree, image: jax.Array, key: jax.Array) -> tuple[Any, PyTree]:
    outputs, state = module.apply(
      variables, image, train=True, mutable=['batch_stats'], rngs={'dropout': key}
    )
    return outputs, state.get('batch_stats', {})

  def predict(variables: PyTree, image: jax.Array) -> Any:
    return module.apply(variables, image, train=False)

  def init(key: jax.Array, image: jax.ShapeDtypeStruct, plan: Plan | None) -> PyTree:
    return initialise.variables(module, image, key=key, plan=plan)

  def shapes(image: jax.ShapeDtypeStruct) -> PyTree:
    result = initialise.shapes(module, image)
    if others := sorted(set(result) - {'params', 'batch_stats'}):
      raise ValueError(
        f'{type(module).__name__} has variables in {", ".join(others)}; a run keeps '
        "'params' and 'batch_stats', so put its state into the collection 'batch_stats'"
      )
    return result

  return Model(train, predict, init, shapes, module)
