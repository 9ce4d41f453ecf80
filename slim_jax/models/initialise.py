"""New variables of a Linen network, full or thin, without compiling the network.

`jax.jit(module.init)` compiles one program of every layer's random numbers and forward pass, which
takes minutes for 164 layers. Here the network is only traced, to find the initialiser of each
parameter. The initialisers then run one by one, compiled once per shape.
"""

from collections.abc import Callable
import functools
import math
from typing import Any
import zlib

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import tree
from slim_jax.channels.plan import Plan
from slim_jax.models import layers

PyTree = Any

# Initial statistics of Linen's BatchNorm, which has no attributes for them.
_STATISTICS = {'mean': nn.initializers.zeros_init(), 'var': nn.initializers.ones_init()}

# These need no program.
_CONSTANTS = {nn.initializers.zeros: 0, nn.initializers.ones: 1, layers.half: 0.5}

# An initialiser runs once. On a CPU, optimising it would take far longer than running it.
_UNOPTIMISED = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}


def variables(
  module: nn.Module, image: jax.ShapeDtypeStruct, *, key: jax.Array, plan: Plan | None = None
) -> PyTree:
  """Returns new variables, which depend on the key and the shapes only.

  The attribute `name_init` of a Linen layer draws its parameter `name`. A parameter without such an
  attribute comes from `module.init`. With a plan each initialiser gets the thin shape, so standard
  deviations that depend on the fan-out are those of the thin network: its weights are drawn like
  those of a newly built narrow network, not sliced from wider ones. (Those of `module.init` are
  sliced.)

  Args:
    module: a Linen module; it is called as `module(image, train=False)`.
    image: shape and dtype of a batch of images.
    key: typed random key [].
    plan: of the thin network, None for the full one.

  Returns:
    {'params': ..., 'batch_stats': ...} of `module`, thin if there is a plan.
  """
  owners: dict[tree.Path, nn.Module] = {}

  def note(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    owners[context.module.path] = context.module
    return call(*args, **kwargs)

  with nn.intercept_methods(note):
    full_shapes = shapes(module, image)
  # Runs the whole network, but few layers have parameters without an initialiser.
  other = functools.cache(lambda: tree.flatten(module.lazy_init(key, image, train=False)))

  def draw(path: tree.Path, leaf: jax.ShapeDtypeStruct) -> jax.Array:
    cut = plan.cuts[path] if plan else None
    shape = cut.thin_shape if cut else leaf.shape
    if not math.prod(shape):  # a removed layer has no fan-out
      return jnp.zeros(shape, leaf.dtype)
    collection, *owner, name = path
    if collection == 'batch_stats':
      initialiser = _STATISTICS.get(name)
    else:
      initialiser = getattr(owners.get(tuple(owner)), f'{name}_init', None)
    if initialiser is None:
      full = other()[path]
      return full[jnp.ix_(*cut.indices)] if cut else full
    if initialiser in _CONSTANTS:
      return jax.device_put(np.full(shape, _CONSTANTS[initialiser], leaf.dtype))
    own_key = jax.random.fold_in(key, zlib.crc32('/'.join(path).encode()))
    return _draw()(initialiser, own_key, shape, leaf.dtype)

  return tree.map_with_path(draw, full_shapes)


def shapes(module: nn.Module, image: jax.ShapeDtypeStruct) -> PyTree:
  """Returns shapes and dtypes of the variables of the full network, see `variables`."""
  return jax.eval_shape(lambda image: module.init(jax.random.key(0), image, train=False), image)


@functools.cache
def _draw() -> Callable[..., jax.Array]:
  options = _UNOPTIMISED if jax.default_backend() == 'cpu' else None
  return jax.jit(
    lambda initialiser, *arguments: initialiser(*arguments),
    static_argnums=(0, 2, 3),
    compiler_options=options,
  )
