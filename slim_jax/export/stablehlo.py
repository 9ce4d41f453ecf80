"""A network as StableHLO, for any program that loads `jax.export`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from slim_jax import cpu

PyTree = Any

# What `jax.export` can lower for, wherever it runs.
PLATFORMS = ('cpu', 'cuda', 'rocm', 'tpu')


def convert(
  apply: Callable[[PyTree, jax.Array], jax.Array],
  variables: PyTree,
  shape: Sequence[int],
  platforms: Sequence[str] = ('cpu',),
) -> bytes:
  """A network with its weights, for batches of any size.

  Args:
    apply: `(variables, image)` -> logits, as `slim_jax.load` returns.
    variables: its variables, which become constants.
    shape: height, width and channels of an image, uint8.
    platforms: of `PLATFORMS`.

  Returns:
    What `jax.export.deserialize` takes; its `call` maps images uint8 [n, *shape] to logits.

  References:
    https://docs.jax.dev/en/latest/export/export.html
  """
  batch = jax.export.symbolic_shape('batch')
  image = jax.ShapeDtypeStruct((*batch, *shape), jnp.uint8)
  if tuple(platforms) == ('cpu',):
    apply = cpu.for_cpu(apply)
  exported = jax.export.export(
    jax.jit(lambda image: apply(variables, image)), platforms=tuple(platforms)
  )(image)
  return bytes(exported.serialize())
