"""Variables as safetensors, with what is left of the original ones."""

import json
from typing import Any

import numpy as np
import safetensors.numpy

from slim_jax import tree
from slim_jax.channels.plan import Plan

PyTree = Any


def convert(variables: PyTree, plan: Plan | None = None) -> bytes:
  """Variables as safetensors, named by their paths ('params/Conv_0/kernel').

  Args:
    variables: thin ones, where there is a plan.
    plan: what is left of the original network.

  Returns:
    The file. Its metadata holds JSON under 'names', 'shapes' (of the original variables, by name)
    and 'kept': for each axis of each the indices that are left of the original, null for all.
  """
  arrays, shapes, kept = {}, {}, {}
  for path, leaf in tree.flatten(variables).items():
    name = tree.show(path)
    arrays[name] = np.ascontiguousarray(leaf)
    shapes[name] = plan.cuts[path].shape if plan else leaf.shape
    indices = plan.cuts[path].indices if plan else map(np.arange, leaf.shape)
    kept[name] = [
      None if len(index) == size else index.tolist()
      for index, size in zip(indices, shapes[name], strict=True)
    ]
  return safetensors.numpy.save(
    arrays,
    metadata={
      'names': json.dumps(sorted(arrays)),
      'shapes': json.dumps(shapes),
      'kept': json.dumps(kept),
    },
  )
