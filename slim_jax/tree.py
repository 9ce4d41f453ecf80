"""Pytrees by path, where a path is a tuple of plain strings made of a JAX key path."""

from collections.abc import Callable, Mapping
from typing import Any

import jax

Path = tuple[str, ...]


def path_of(key_path: Any) -> Path:
  """Returns a JAX key path as a path: ('params', 'Conv_0', 'kernel')."""
  return tuple(_name(key) for key in key_path)


def _name(key: Any) -> str:
  for attribute in ('key', 'name', 'idx'):
    if hasattr(key, attribute):
      return str(getattr(key, attribute))
  return str(key)


def parse(path: str) -> Path:
  """Returns ('params', 'Conv_0') for 'params/Conv_0', and () for ''."""
  return tuple(path.split('/')) if path else ()


def show(path: Path) -> str:
  """Returns 'params/Conv_0/kernel'; '(root)' for the empty path of a tree that is one leaf."""
  return '/'.join(path) or '(root)'


def flatten(tree: Any, *, is_leaf: Callable[[Any], bool] | None = None) -> dict[Path, Any]:
  """Returns the leaves of `tree` by path, in the order of `jax.tree.leaves`."""
  pairs, _ = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_leaf)
  return {path_of(key_path): leaf for key_path, leaf in pairs}


def map_with_path(f: Callable[[Path, Any], Any], tree: Any) -> Any:
  """Returns `tree` with every leaf replaced by `f(path, leaf)`."""
  return jax.tree_util.tree_map_with_path(lambda k, leaf: f(path_of(k), leaf), tree)


def like(tree: Any, leaves: Mapping[Path, Any]) -> Any:
  """Returns a tree of the same structure with these leaves, None where there is none."""
  return jax.tree.unflatten(jax.tree.structure(tree), [leaves.get(path) for path in flatten(tree)])


def spread(prefix: Any, tree: Any, *, name: str) -> list[Any]:
  """Returns the leaf of a prefix tree above each leaf of `tree`, as `vmap` reads `in_axes`.

  Args:
    prefix: a tree that `tree` extends; None is a leaf.
    tree: any tree.
    name: what to call `prefix` in errors.

  Returns:
    One entry for each leaf of `tree`: (prefix leaf, path of the leaf below the prefix leaf).

  Raises:
    ValueError: if `prefix` is not a prefix of `tree`.
  """
  entries: list[Any] = []

  def below(leaf: Any, subtree: Any) -> None:
    entries.extend((leaf, path) for path in flatten(subtree))

  try:
    jax.tree.map(below, prefix, tree, is_leaf=lambda x: x is None)
  except ValueError as error:
    raise ValueError(f'{name} must be a prefix tree of what it describes: {error}') from error
  return entries


def states(outs: Any, results: Any) -> list[Path | None]:
  """Returns, for each result leaf, the path of the variable it updates; None for a plain result."""
  return [
    None if root is None else parse(root) + below
    for root, below in spread(outs, results, name='outs')
  ]


def differences(expected: Mapping[Path, Any], actual: Mapping[Path, Any]) -> str:
  """Returns the missing and the unexpected paths of a tree, a line each; '' if there are none."""
  missing = [show(p) for p in expected if p not in actual]
  unexpected = [show(p) for p in actual if p not in expected]
  lines = []
  if missing:
    lines.append('missing: ' + ', '.join(missing))
  if unexpected:
    lines.append('unexpected: ' + ', '.join(unexpected))
  return '\n'.join(lines)


def nested(leaves: Mapping[Path, Any]) -> Any:
  """Returns a tree of dicts with these leaves at their paths."""
  root: dict[str, Any] = {}
  for path, leaf in leaves.items():
    if not path:
      return leaf
    node = root
    for name in path[:-1]:
      node = node.setdefault(name, {})
    node[path[-1]] = leaf
  return root
