"""The functions of a config's network, original or thin, and its new weights."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

import slim_jax
from slim_jax import batch_norms, cpu, models
from slim_jax.runs import gated, model_functions
from slim_jax.runs.model_functions import Model
from slim_jax.runtime import parts
from slim_jax.runtime.config import Config
from slim_jax.structure.unit import Units

PyTree = Any


@dataclasses.dataclass(frozen=True)
class Network:
  """The functions of a network. They take thin variables if there is a plan.

  Attributes:
    apply: `(params, batch_stats, image, key)` -> `(outputs, batch_stats)`, in training mode.
    train: `(variables, image, key)` -> the same, of one device, to be planned.
    predict: `(variables, image)` -> outputs, to be planned, counted and exported.
    infer: the same function in the form to be compiled on this machine.
    init: `(key, image)` -> new variables; image is a shape.
    shapes: `image` -> shapes of the variables; image is a shape.
    plan: plan of the thin network; None for the original network.
    scales: which leaves of the variables or parameters are scales: a function that returns a tree
      of bools; None if the network would need gates and has none.
    units: the units that have gates in the parameters; None without gates.
    inner: the network without gates; itself, if it has none.
  """

  apply: Callable[..., Any]
  train: Callable[..., Any]
  predict: Callable[..., Any]
  infer: Callable[..., Any]
  init: Callable[[jax.Array, jax.ShapeDtypeStruct], PyTree]
  shapes: Callable[[jax.ShapeDtypeStruct], PyTree]
  plan: slim_jax.Plan | None
  scales: Callable[[PyTree], PyTree] | None
  units: Units | None = None
  _inner: 'Network | None' = None

  @property
  def inner(self) -> 'Network':
    return self if self._inner is None else self._inner


def model_of(config: Config, num_classes: int) -> Model:
  """Returns the model of a config's original network.

  A person's own model gets `dtype`, and `axis_name` with `cross_replica_batch_norm`, only if its
  constructor has such arguments.

  Args:
    config: model, dtype and cross_replica_batch_norm.
    num_classes: number of outputs.

  Raises:
    ConfigError: the model cannot be made.
    PartError: an own model cannot be found.
  """
  name = config.model.name
  arguments = {field: value for field, value in config.model.items() if field != 'name'}
  computation: dict[str, Any] = {'dtype': jnp.dtype(config.dtype)}
  if config.cross_replica_batch_norm:
    computation['axis_name'] = 'batch'
  if not parts.is_name(name):
    return model_functions.of_linen(
      models.create(name, num_classes=num_classes, **computation, **arguments)
    )
  constructor = parts.find(name, field='model.name')
  from slim_jax.runs import own_model  # imports NNX

  return own_model.of_part(
    constructor,
    f'config.model.name={name!r}',
    num_classes=num_classes,
    **{**parts.accepted(constructor, computation), **arguments},
  )


def create(config: Config, num_classes: int, plan: slim_jax.Plan | None = None) -> Network:
  """Returns the network of a config.

  Args:
    config: model, dtype and cross_replica_batch_norm.
    num_classes: number of outputs.
    plan: plan of the thin network; None for the original network.
  """
  model = model_of(config, num_classes)

  def apply(
    params: PyTree, batch_stats: PyTree, image: jax.Array, key: jax.Array
  ) -> tuple[Any, PyTree]:
    return model.train({'params': params, 'batch_stats': batch_stats}, image, key)

  def train(variables: PyTree, image: jax.Array, key: jax.Array) -> tuple[Any, PyTree]:
    if not config.cross_replica_batch_norm:
      return model.train(variables, image, key)
    # As on one device: the axis over which statistics are averaged has to be there.
    each = jax.vmap(lambda image, key: model.train(variables, image, key), axis_name='batch')
    return jax.tree.map(lambda result: result[0], each(image[None], key[None]))

  def init(key: jax.Array, image: jax.ShapeDtypeStruct) -> PyTree:
    return model.init(key, image, plan)

  def shapes(image: jax.ShapeDtypeStruct) -> PyTree:
    full = model.shapes(image)
    return full if plan is None else plan.slice(full)

  predict = infer = model.predict
  if plan is not None:
    widen = cpu.is_default()
    apply = slim_jax.thin(
      apply,
      plan,
      ins=('params', 'batch_stats', None, None),
      outs=(None, 'batch_stats'),
      widen=widen,
    )
    train = slim_jax.thin(train, plan, outs=(None, 'batch_stats'))
    predict, infer = (slim_jax.thin(predict, plan, widen=each) for each in (False, widen))
  apply, infer = slim_jax.for_cpu(apply), slim_jax.for_cpu(infer)
  scales = None if config.prune.units else batch_norms.scales
  return Network(apply, train, predict, infer, init, shapes, plan, scales)


def with_gates(net: Network, image: jax.ShapeDtypeStruct, where: str) -> Network:
  """Returns the network with a gate on each of its units, among its parameters.

  Args:
    net: without gates.
    image: shape of an image.
    where: which units, as in `slim_jax.units`.

  Raises:
    ConfigError: the network has no such units.
  """
  units = gated.find(net.predict, net.shapes(image), image, where)

  def apply(
    params: PyTree, batch_stats: PyTree, image: jax.Array, key: jax.Array
  ) -> tuple[Any, PyTree]:
    plain = gated.folded({'params': params, 'batch_stats': batch_stats}, units)
    return net.apply(plain['params'], plain['batch_stats'], image, key)

  def folding(f: Callable[..., Any]) -> Callable[..., Any]:
    return lambda variables, *args: f(gated.folded(variables, units), *args)

  return Network(
    apply,
    folding(net.train),
    folding(net.predict),
    folding(net.infer),
    lambda key, image: gated.opened(net.init(key, image), units),
    lambda image: gated.opened(net.shapes(image), units),
    net.plan,
    gated.scales,
    units,
    net,
  )
