"""`thin`: the transformation of functions."""

from collections.abc import Callable
import functools
from typing import Any

import jax

from slim_jax import batch_norms, jaxprs, tree
from slim_jax.channels import analysis, regions
from slim_jax.channels.plan import Plan
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Fact
from slim_jax.channels.widen import Widening


def thin(
  f: Callable[..., Any], plan: Plan, *, ins: Any = None, outs: Any = None, widen: bool = False
) -> Callable[..., Any]:
  """Transforms `f` into a function of thin variables that does only thin arithmetic.

      thin(f, plan)(plan.slice(v), *args) == f(plan.expand(plan.slice(v)), *args)

  for every `f`, and for the function that was planned with also `== f(mask(v, dead), *args)`.
  Derivatives obey the same law. It is a function like any other: wrap it in `jit`, `grad`,
  `vmap`, `pmap`, `jax.checkpoint`, `jax.export`. Outside `jit` every call traces `f` anew.

  Args:
    f: a pure function of pytrees.
    plan: from `plan`, perhaps with another function of the same variables (inference).
    ins: as `in_axes` of `vmap`: a tuple with one prefix tree per argument, whose leaves are
      None (whole) or a path string: the argument is that part of the plan's variables ('' all
      of them, 'params', 'batch_stats'). Default: the first argument is the variables.
    outs: prefix tree over the results: None = whole (default), or a path string: laid out like
      that part of the plan, as `(None, {'batch_stats': 'batch_stats'})` for `(logits, state)`.
    widen: whether zeros may be computed where that is sooner done than to leave them out (see
      `widen`; the costs are those of CPUs). For what is compiled: `count` counts them.

  Returns:
    The thin function. It raises ValueError when a thin argument does not have the plan's shape.
  """

  @functools.wraps(f)
  def thin_f(*args: Any, **kwargs: Any) -> Any:
    given = ('',) + (None,) * (len(args) - 1) if ins is None else tuple(ins)
    if len(given) != len(args):
      raise ValueError(
        f'ins has {len(given)} entries, the function was called with {len(args)} '
        'positional arguments'
      )
    leaves, structure = jax.tree.flatten((args, kwargs))
    have, full = [], []
    roots = tree.spread((given, None), (args, kwargs), name='ins')
    for leaf, (root, below) in zip(leaves, roots, strict=True):
      shape = jaxprs.struct(leaf)
      region = regions.whole(len(shape.shape))
      if root is not None:
        region, shape = _original(plan, tree.parse(root) + below, shape)
      have.append(region)
      full.append(shape)
    full_args, full_kwargs = jax.tree.unflatten(structure, full)
    program, results = jaxprs.trace(f, *full_args, **full_kwargs)

    demands = []
    for number, path in zip(program.outputs, tree.states(outs, results), strict=True):
      rank = len(program.avals[number].shape)
      demands.append(regions.whole(rank) if path is None else _cut(plan, path, 'outs').live)
    facts = analysis.forward(program, [Fact(region) for region in have])
    found = analysis.backward(program, facts, demands)
    if widen:
      found = analysis.backward(program, facts, demands, widening=Widening(program, found))
    arrays = analysis.run(program, found, leaves, have, demands)
    arrays = [
      _empty(program.avals[n]) if a is None else a
      for a, n in zip(arrays, program.outputs, strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(results), arrays)

  return thin_f


def mask(variables: Any, dead: Any, *, bias: str = 'zero') -> Any:
  """The network with dead channels switched off: their scales and biases set to zero.

  This is what thin networks are exact to.

  Args:
    variables: tree of arrays.
    dead: tree like it: a bool vector [channels] at each scale leaf, None elsewhere.
    bias: 'keep' sets the scales alone to zero: the channels then send their biases on.

  Returns:
    Variables of the same shapes and dtypes.
  """
  zero = batch_norms.zeroed(variables, dead, bias)
  return tree.map_with_path(lambda path, leaf: batch_norms.without(leaf, zero.get(path)), variables)


def _cut(plan: Plan, path: tree.Path, name: str) -> Any:
  if path not in plan.cuts:
    raise ValueError(f'{name}: the plan has no leaf {tree.show(path)}')
  return plan.cuts[path]


def _original(plan: Plan, path: tree.Path, found: jax.ShapeDtypeStruct) -> tuple[Region, Any]:
  """What a thin leaf holds, and the shape of the leaf it was cut from."""
  cut = _cut(plan, path, 'ins')
  if found.shape != cut.thin_shape:
    raise ValueError(
      f'{tree.show(path)} has shape {found.shape}, the plan expects {cut.thin_shape} (cut from '
      f'{cut.shape}). Slice the variables with plan.slice; if this is state that a thin '
      'function returned, declare it with outs=.'
    )
  return cut.live, jax.ShapeDtypeStruct(cut.shape, found.dtype, weak_type=found.weak_type)


def _empty(aval: Any) -> Any:
  return jax.numpy.zeros((0,) * len(aval.shape), aval.dtype)
