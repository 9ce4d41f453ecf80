"""Options for XLA when it compiles for a CPU.

On CPUs XLA may pass convolutions, matrix products and sums to a library. By default it passes most
of them, which makes networks slower: the library's convolutions take twice the time at odd widths,
which pruning leaves, and it merges consecutive ones into one program that hardly uses a second
core. Only sums over large arrays gain, such as those for the statistics of BatchNorm in training.
"""

from collections.abc import Callable, Mapping
import functools
import os
from typing import Any

import jax
from jax import stages

_LIBRARY = 'xla_cpu_experimental_ynn_fusion_type'


def is_default() -> bool:
  """Returns whether jitted functions run on a CPU by default."""
  return jax.default_backend() == 'cpu'


def cpu_options(*, training: bool = False) -> dict[str, str]:
  """Returns options for XLA with which convolutional networks run faster on a CPU.

  Args:
    training: whether the options are for a training step, not for inference.

  Returns:
    `compiler_options` for `jax.jit`, or for `compile` of a lowered function. Empty if JAX's default
    backend is not the CPU, if this XLA does not know the option, or if XLA_FLAGS sets it.

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
  """Returns whether this XLA takes options. (An unknown one in XLA_FLAGS would end the program.)"""
  try:
    jax.jit(lambda: 0).lower().compile(compiler_options=dict(options))
  except jax.errors.JaxRuntimeError:
    return False
  return True


def with_options(f: stages.Wrapped, options: Mapping[str, str]) -> Callable[..., Any]:
  """Returns a jitted or pmapped function that compiles with options, once per kind of arguments.

  Args:
    f: the result of `jax.jit` or `jax.pmap`. A pmapped function must not span several processes,
      which lowered functions do not support.
    options: those of `cpu_options`.
  """
  compiled: dict[Any, Any] = {}

  def run(*args: Any) -> Any:
    leaves, tree = jax.tree.flatten(args)
    kind = tree, tuple(map(jax.typeof, leaves))
    if kind not in compiled:
      compiled[kind] = f.lower(*args).compile(compiler_options=dict(options))
    return compiled[kind](*args)

  return run
