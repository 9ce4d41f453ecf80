"""How functions of pytrees meet programs of flat values: shapes, prefix trees."""

from typing import Any

import jax

from slim_jax import tree
from slim_jax.tree import Path


def struct(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape and dtype of an array, a Python scalar or a shape."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf
  aval = jax.typeof(leaf)
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, 'weak_type', False))


def states(outs: Any, results: Any) -> list[Path | None]:
  """For each result leaf, the path of the variable whose new value it is; None: a plain result."""
  return [None if root is None else tree.parse(root) + below
          for root, below in tree.spread(outs, results, name='outs')]
