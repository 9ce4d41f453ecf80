"""Exports a function as StableHLO, for any program that has `jax.export`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.typing

from slim_jax import cpu

PyTree = Any

# Platforms for which `jax.export` can lower, whatever the device of this process.
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def convert(
  f: Callable[[jax.Array], PyTree],
  shape: Sequence[int | str],
  *,
  constraints: Sequence[str] = (),
  dtype: jax.typing.DTypeLike = 'uint8',
  platforms: Sequence[str] = ('cpu',),
) -> bytes:
  """Returns a function as StableHLO, its weights inside, for batches of any size.

  Args:
    f: maps an array [n, *shape] to arrays, such as images to logits. Arrays that it closes over
      become constants.
    shape: of one element of the batch: height, width and channels of an image. A name, such as
      'height', instead of a number stands for any size.
    constraints: what is true of these sizes, as 'height >= 32', where `f` depends on it.
    dtype: of the input.
    platforms: where the file will run, of `PLATFORMS`.

  Returns:
    The content of the file. `jax.export.deserialize(content).call(x)` gives `f(x)`; that needs
    JAX and flatbuffers.

  References:
    https://docs.jax.dev/en/latest/export/export.html
  """
  sizes = ', '.join(map(str, ('batch', *shape)))
  batch = jax.ShapeDtypeStruct(jax.export.symbolic_shape(sizes, constraints=constraints), dtype)
  if tuple(platforms) == ('cpu',):
    f = cpu.for_cpu(f)
  exported = jax.export.export(jax.jit(f), platforms=tuple(platforms))(batch)
  return bytes(exported.serialize())
