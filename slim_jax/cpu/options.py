"""What XLA is told when it compiles for a CPU.

There XLA may hand convolutions, products and sums to a library. Unless told, it hands on most of
them, and loses by it: a convolution of that library takes twice the time at odd widths, as pruning
leaves them, and several that follow each other become one program that hardly gains from a second
core. What gains are sums over large arrays, such as training takes for the statistics of BatchNorm.
"""

from collections.abc import Callable
import functools
import os
from typing import Any

import jax

_LIBRARY = 'xla_cpu_experimental_ynn_fusion_type'


def is_default() -> bool:
  """Whether what is jitted runs on a CPU unless told otherwise."""
  return jax.default_backend() == 'cpu'


def cpu_options(*, training: bool = False) -> dict[str, str]:
  """Options for XLA with which convolutional networks run faster on a CPU.

  Args:
    training: whether they are for a step of training, not for inference.

  Returns:
    For `compiler_options` of `jax.jit`, or of `compile` of what is lowered. Empty where JAX's
    default backend is no CPU, where XLA does not know the option, and where XLA_FLAGS sets it.

  Example:
    >>> import jax, slim_jax
    >>> double = jax.jit(lambda x: 2 * x, compiler_options=slim_jax.cpu_options())
    >>> float(double(1.0))
    2.0
  """
  if not is_default() or _LIBRARY in os.environ.get('XLA_FLAGS', ''):
    return {}
  options = {_LIBRARY: 'LIBRARY_FUSION_TYPE_REDUCE' if training else ''}
  return options if _known(tuple(options.items())) else {}


@functools.cache
def _known(options: tuple[tuple[str, str], ...]) -> bool:
  """Whether XLA takes these options: in the environment, one it does not know ends the program."""
  try:
    jax.jit(lambda: 0).lower().compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError:
    return False
  return True


def with_options(f: Callable[..., Any], options: dict[str, str]) -> Callable[..., Any]:
  """What `jax.jit` or `jax.pmap` made, compiled with options, once for each kind of arguments.

  Args:
    f: has `lower`. What `pmap` made must not span several processes: what it has lowered does not.
    options: of `cpu_options`.
  """
  compiled: dict[Any, Any] = {}

  def run(*args: Any) -> Any:
    leaves, tree = jax.tree.flatten(args)
    kind = tree, tuple(map(jax.typeof, leaves))
    if kind not in compiled:
      compiled[kind] = f.lower(*args).compile(compiler_options=options)
    return compiled[kind](*args)

  return run
