"""New weights of a Linen network, full or thin, without compiling the network.

The usual `jax.jit(module.init)` is one program of every layer's random numbers and forward pass:
minutes of compilation for 164 layers. Here the network is only traced, to learn which initialiser
each parameter has, and the initialisers run one by one, compiled once for each shape.
"""

from collections.abc import Callable
import functools
import math
from typing import Any
import zlib

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax import tree
from slim_jax.channels.plan import Plan

PyTree = Any

# What BatchNorm of Linen starts its statistics from; it has no attribute that says so.
_STATISTICS = {'mean': nn.initializers.zeros_init(), 'var': nn.initializers.ones_init()}

# An initialiser runs once: on the CPU optimising it takes far longer than running it.
_UNOPTIMISED = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def initialise(
  module: nn.Module, image: jax.ShapeDtypeStruct, *, key: jax.Array, plan: Plan | None = None
) -> PyTree:
  """New variables, a function of the key and the shapes alone.

  A parameter `name` is drawn by the attribute `name_init` of its layer, as all layers of Linen
  have it; what has none is taken from `module.init`. With a plan each initialiser is given the
  thin shape, so that a standard deviation that follows from the fan-out follows from that of the
  thin network: the weights are those of a thin network built from nothing, not a part of wider
  ones. (What `module.init` has made is sliced.)

  Args:
    module: a Linen module, called as `module(image, train=False)`.
    image: shape and dtype of a batch of images.
    key: typed random key [].
    plan: what is left of the network, None for all of it.

  Returns:
    {'params': ..., 'batch_stats': ...} of `module`, thin if there is a plan.
  """
  owners: dict[tree.Path, nn.Module] = {}

  def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    owners[context.module.path] = context.module
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    variables = shapes(module, image)
  # Computes the whole network, but few layers have variables of another kind.
  other = functools.cache(lambda: tree.flatten(module.lazy_init(key, image, train=False)))

  def draw(path: tree.Path, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    cut = plan.cuts[path] if plan else None
    shape = cut.thin_shape if cut else leaf.shape
    if not math.prod(shape):  # a layer that is gone has no fan-out
      return jnp.zeros(shape, leaf.dtype)
    collection, *owner, name = path
    if collection == 'batch_stats':
      initialiser = _STATISTICS.get(name)
    else:
      initialiser = getattr(owners.get(tuple(owner)), f'{name}_init', None)
    if initialiser is None:
      full = other()[path]
      return full[jnp.ix_(*cut.indices)] if cut else full
    own_key = jax.random.fold_in(key, zlib.crc32('/'.join(path).encode()))
    return _draw()(initialiser, own_key, shape, leaf.dtype)

  return tree.map_with_path(draw, variables)


def shapes(module: nn.Module, image: jax.ShapeDtypeStruct) -> PyTree:
  """Shapes and dtypes of the variables of a full network; arguments as of `initialise`."""
  return jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)


@functools.cache
def _draw() -> Callable[..., jax.Array]:
  options = _UNOPTIMISED if jax.default_backend() == 'cpu' else None
  return jax.jit(
    lambda initialiser, *arguments: initialiser(*arguments),
    static_argnums=(0, 2, 3),
    compiler_options=options,
  )
