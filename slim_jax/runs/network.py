"""The functions of a config's network, original or thin, and its new weights."""

from collections.abc import Callable
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp

import slim_jax
from slim_jax import cpu, models
from slim_jax.models import initialise
from slim_jax.runtime.config import Config

PyTree = Any


class Network(NamedTuple):
  """The functions of a network. They take thin variables if there is a plan.

  Attributes:
    apply: `(params, batch_stats, image, key)` -> `(logits, batch_stats)`, in training mode.
    predict: `(variables, image)` -> logits, to be planned, counted and exported.
    infer: the same function in the form to be compiled on this machine.
    init: `(key, image)` -> new variables; image is a shape.
    shapes: `image` -> shapes of the variables; image is a shape.
    plan: plan of the thin network; None for the original network.
  """

  apply: Callable[..., Any]
  predict: Callable[..., Any]
  infer: Callable[..., Any]
  init: Callable[[jax.Array, jax.ShapeDtypeStruct], PyTree]
  shapes: Callable[[jax.ShapeDtypeStruct], PyTree]
  plan: slim_jax.Plan | None


def model_of(config: Config, num_classes: int) -> nn.Module:
  """Returns the Linen module of a config's original network; see `create` for the arguments."""
  arguments = {name: value for name, value in config.model.items() if name != 'name'}
  if config.cross_replica_batch_norm:
    arguments['axis_name'] = 'batch'
  return models.create(
    config.model.name, num_classes=num_classes, dtype=jnp.dtype(config.dtype), **arguments
  )


def create(config: Config, num_classes: int, plan: slim_jax.Plan | None = None) -> Network:
  """Returns the network of a config.

  Args:
    config: model, dtype and cross_replica_batch_norm.
    num_classes: length of the logits.
    plan: plan of the thin network; None for the original network.
  """
  model = model_of(config, num_classes)

  def apply(
    params: PyTree, batch_stats: PyTree, image: jax.Array, key: jax.Array
  ) -> tuple[jax.Array, PyTree]:
    logits, state = model.apply(
      {'params': params, 'batch_stats': batch_stats},
      image,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    return logits, state['batch_stats']

  def predict(variables: PyTree, image: jax.Array) -> Any:
    return model.apply(variables, image, train=False)

  def init(key: jax.Array, image: jax.ShapeDtypeStruct) -> PyTree:
    return initialise.variables(model, image, key=key, plan=plan)

  def shapes(image: jax.ShapeDtypeStruct) -> PyTree:
    full = initialise.shapes(model, image)
    return full if plan is None else plan.slice(full)

  infer = predict
  if plan is not None:
    widen = cpu.is_default()
    apply = slim_jax.thin(
      apply,
      plan,
      ins=('params', 'batch_stats', None, None),
      outs=(None, 'batch_stats'),
      widen=widen,
    )
    predict, infer = (slim_jax.thin(predict, plan, widen=each) for each in (False, widen))
  return Network(slim_jax.for_cpu(apply), predict, slim_jax.for_cpu(infer), init, shapes, plan)
