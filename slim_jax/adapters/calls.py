"""Thin calls of models: with arguments and results of any kind, as methods of modules have them."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from slim_jax import tree
from slim_jax.channels.plan import Plan
from slim_jax.channels.thin import RemovedError, thin


def is_array(leaf: Any) -> bool:
  """Returns whether a leaf is an array or a shape; Python numbers, strings and objects are not."""
  if isinstance(leaf, np.ndarray | np.generic):
    return leaf.dtype.kind not in 'OSUmM'
  return isinstance(leaf, jax.Array | jax.ShapeDtypeStruct)


def split(whole: Any) -> tuple[list[Any], Callable[[Sequence[Any]], Any]]:
  """Returns the arrays of a tree, and the function that puts arrays back among the other leaves."""
  leaves, structure = jax.tree.flatten(whole)
  marks = [is_array(leaf) for leaf in leaves]

  def rebuild(arrays: Sequence[Any]) -> Any:
    given = iter(arrays)
    return structure.unflatten(
      next(given) if mark else leaf for mark, leaf in zip(marks, leaves, strict=True)
    )

  return [leaf for mark, leaf in zip(marks, leaves, strict=True) if mark], rebuild


def run(
  f: Callable[..., tuple[Any, Any]], plan: Plan, variables: Any, *args: Any, **kwargs: Any
) -> tuple[Any, Any]:
  """Evaluates `f(variables, *args, **kwargs)` on thin variables.

  Python values among the arguments and results stay what they are.

  Args:
    f: returns (results, new state). Paths in the new state are those of the variables. State that
      the plan does not have is whole.
    plan: of the variables.
    variables: thin; a part of the tree is enough.
    *args: arguments of any kind.
    **kwargs: likewise.

  Returns:
    The results and the thin new state.
  """
  arrays, rebuild = split((args, kwargs))
  rebuild_results: list[Callable[[Sequence[Any]], Any]] = []
  counts: list[int] = []

  def on_arrays(variables: Any, arrays: list[Any]) -> tuple[list[Any], Any]:
    args, kwargs = rebuild(arrays)
    results, new = f(variables, *args, **kwargs)
    leaves = tree.flatten(new)
    state = {path: leaf for path, leaf in leaves.items() if path in plan.cuts}
    others = {path: leaf for path, leaf in leaves.items() if path not in plan.cuts}
    whole, rebuild_whole = split((results, list(others.values())))

    def assemble(parts: Sequence[Any]) -> tuple[Any, Any]:
      results, values = rebuild_whole(parts[0])
      by_path = {**dict(zip(others, values, strict=True)), **tree.flatten(parts[1])}
      structure = jax.tree.structure(new)
      return results, structure.unflatten([by_path[path] for path in leaves])

    rebuild_results.append(assemble)
    counts.append(len(split(results)[0]))
    return whole, tree.nested(state)

  parts = _evaluate(on_arrays, plan, variables, arrays, counts)
  return rebuild_results[-1](parts)


def _evaluate(
  f: Callable[..., Any], plan: Plan, variables: Any, arrays: list[Any], counts: list[int]
) -> Any:
  """Evaluates `f` thin. In state that the plan does not have, removed channels are zero.

  Args:
    f: returns a list of arrays and the new state.
    plan: of the variables.
    variables: thin.
    arrays: the other argument of `f`.
    counts: how many of the arrays are results and no state, once `f` was called.
  """
  ins, outs = ('', None), (None, '')
  try:
    return thin(f, plan, ins=ins, outs=outs)(variables, arrays)
  except RemovedError:

    def results(variables: Any, arrays: list[Any]) -> Any:
      whole, state = f(variables, arrays)
      return whole[: counts[-1]], state

    # Intermediate values, for one, may be of removed channels; results may not.
    jax.eval_shape(thin(results, plan, ins=ins, outs=outs), variables, arrays)
    return thin(f, plan, ins=ins, outs=outs, missing='zero')(variables, arrays)
