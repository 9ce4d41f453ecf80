"""The networks that benchmarks have in common, with what is measured of them."""

from collections.abc import Callable
import functools
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

import slim_jax
from slim_jax import models
from slim_jax.runtime import devices
from slim_jax.training import optimiser, steps, train_state

# Side of their images.
NETWORKS = {'vgg19': 32, 'preresnet164': 32, 'densenet40': 32, 'resnet50': 224}
# Images of a batch, unless told: so that a benchmark ends in minutes on two cores.
BATCH = {'vgg19': 64, 'preresnet164': 64, 'densenet40': 64, 'resnet50': 16}
# As the authors' PyTorch code trains, but for a small learning rate: it must not matter how long.
LEARNING_RATE, MOMENTUM, WEIGHT_DECAY, STRENGTH = 1e-3, 0.9, 1e-4, 1e-4


def num_classes(name: str) -> int:
  """Of CIFAR-10 or ImageNet."""
  return 10 if NETWORKS[name] == 32 else 1000


def create(name: str) -> nn.Module:
  """The full network."""
  return models.create(name, num_classes=num_classes(name))


def image(name: str, batch: int) -> jax.ShapeDtypeStruct:
  """Shape of its images."""
  return jax.ShapeDtypeStruct((batch, NETWORKS[name], NETWORKS[name], 3), jnp.float32)


def network(name: str, batch: int = 1):
  """(apply, variables, image): shapes, but for random scales, uniform in [0, 1)."""
  module = create(name)
  x = image(name, batch)
  variables = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros(x.shape), train=False)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf, is_scale: rng.uniform(size=leaf.shape).astype('float32') if is_scale else leaf,
    variables,
    slim_jax.batch_norm_scales(variables),
  )
  return predicting(module), variables, x


def filled(variables: Any) -> Any:
  """NumPy arrays for shapes: small weights, running statistics of one; what is an array stays.

  NumPy's, because JAX would compile a program for each shape.
  """
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf: (
      np.asarray(leaf)
      if hasattr(leaf, '__array__')
      else 0.05 * rng.standard_normal(leaf.shape, 'float32')
    ),
    variables,
  )
  return {**variables, 'batch_stats': jax.tree.map(np.ones_like, variables['batch_stats'])}


def batch_of(name: str, batch: int) -> dict[str, np.ndarray]:
  """Random 'image' and 'label'."""
  rng = np.random.default_rng(1)
  return {
    'image': rng.standard_normal(image(name, batch).shape, 'float32'),
    'label': rng.integers(0, num_classes(name), batch, 'int32'),
  }


def predicting(module: nn.Module) -> Callable[..., jax.Array]:
  """`(variables, image)` -> logits."""
  return lambda variables, image: module.apply(variables, image, train=False)


def training(module: nn.Module) -> Callable[..., Any]:
  """`(params, batch_stats, image, key)` -> `(logits, batch_stats)`, as `TrainState` wants it."""

  def apply(params, batch_stats, image, key):
    logits, state = module.apply(
      {'params': params, 'batch_stats': batch_stats},
      image,
      train=True,
      mutable=['batch_stats'],
      rngs={'dropout': key},
    )
    return logits, state['batch_stats']

  return apply


def thin_training(module: nn.Module, plan: slim_jax.Plan) -> Callable[..., Any]:
  """The same of thin variables."""
  return slim_jax.thin(
    training(module),
    plan,
    ins=('params', 'batch_stats', None, None),
    outs=(None, 'batch_stats'),
    widen=True,
  )


def config() -> ml_collections.ConfigDict:
  """What `train.make_tx` reads."""
  return ml_collections.ConfigDict(
    {
      'optimizer': {'name': 'sgd'},
      'momentum': MOMENTUM,
      'nesterov': False,
      'weight_decay': WEIGHT_DECAY,
      'clip_norm': 0.0,
    }
  )


def make_tx(strength: float = STRENGTH) -> optax.GradientTransformation:
  """The optimiser of a sparse stage."""
  return optimiser.make_tx(
    config(), lambda step: LEARNING_RATE * jnp.ones_like(step, jnp.float32), strength=strength
  )


def stepper(
  apply: Callable[..., Any], variables: Any, batch: dict[str, jax.Array]
) -> Callable[[], float]:
  """Training steps on one batch, compiled, mapped and donated as the loop does it.

  Args:
    apply: as `training` returns it.
    variables: where to start; copied.
    batch: 'image' and 'label'.

  Returns:
    A function that goes one step further and returns the loss before it.
  """
  places = devices.local(1)
  step = devices.mapped(
    lambda state, batch, key: steps.train_step(state, batch, key=key),
    places,
    in_axes=(None, 0, None),
    out_axes=(None, None),
    donate_argnums=(0,),
    training=True,
  )
  variables = jax.device_put(variables)
  state = devices.replicate(
    train_state.create_state(slim_jax.for_cpu(apply), variables, make_tx()), places
  )
  parts = devices.split(jax.tree.map(lambda x: x[None], batch), places)
  key = devices.replicate(jax.random.key(0), places)

  def call() -> float:
    nonlocal state
    state, metrics = step(state, parts, key)
    return float(jax.block_until_ready((state, metrics))[1]['loss'])

  return call


def predictor(
  predict: Callable[..., jax.Array], variables: Any, x: jax.Array
) -> Callable[[], jax.Array]:
  """Inference on one batch, compiled; returns the logits."""
  compiled = jax.jit(slim_jax.for_cpu(predict), compiler_options=slim_jax.cpu_options())
  run = functools.partial(compiled, *jax.device_put((variables, x)))
  return lambda: jax.block_until_ready(run())
