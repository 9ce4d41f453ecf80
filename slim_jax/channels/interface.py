"""How functions of pytrees meet programs of flat values: shapes, tracing, prefix trees."""

from collections.abc import Callable
from typing import Any

import jax

from slim_jax import jaxprs, tree
from slim_jax.jaxprs import Program
from slim_jax.tree import Path


def struct(leaf: Any) -> jax.ShapeDtypeStruct:
  """Shape and dtype of an array, a Python scalar or a shape."""
  if isinstance(leaf, jax.ShapeDtypeStruct):
    return leaf
  aval = jax.typeof(leaf)
  return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, 'weak_type', False))


def trace(f: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Program, Any]:
  """The program of `f` at these shapes and the tree of its results' shapes."""
  return jaxprs.trace(f, *args, **kwargs)


def states(outs: Any, results: Any) -> list[Path | None]:
  """For each result leaf, the path of the variable whose new value it is; None: a plain result."""
  return [None if root is None else tree.parse(root) + below
          for root, below in tree.spread(outs, results, name='outs')]
