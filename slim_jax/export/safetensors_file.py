"""Exports variables as safetensors, with the indices that they had in the original network."""

import json
from typing import Any

import numpy as np
import safetensors.numpy

from slim_jax import tree
from slim_jax.channels.plan import Plan

PyTree = Any


def convert(variables: PyTree, *, plan: Plan | None = None) -> bytes:
  """Returns variables as safetensors, named by their paths ('params/Conv_0/kernel').

  Args:
    variables: of the network, thin if there is a plan.
    plan: by which the original variables were sliced.

  Returns:
    The content of the file. Its metadata holds JSON under 'names', 'shapes' (of the original
    variables, by name) and 'kept': for each axis of each variable the indices of the original
    that were kept, null for all of them. 'only_bias' has the channels of BatchNorms whose bias alone
    is left, by name of the scale.
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
      'only_bias': json.dumps(plan.only_bias if plan else {}),
    },
  )
