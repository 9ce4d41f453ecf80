"""`thin`: the transformation of functions."""

from collections.abc import Callable, Mapping
import functools
from typing import Any

import jax

from slim_jax import batch_norms, jaxprs, shardings, tree
from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.cuts import Cut
from slim_jax.channels.plan import Plan
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import RULES, Fact, Rule, Walk
from slim_jax.channels.widen import Costs, Widening
from slim_jax.jaxprs import Program


def thin(
  f: Callable[..., Any],
  plan: Plan,
  *,
  ins: Any = None,
  outs: Any = None,
  widen: bool | Costs = False,
  rules: Mapping[Any, Rule] = RULES,
) -> Callable[..., Any]:
  """Transforms `f` into a function of thin variables that does only thin arithmetic.

      thin(f, plan)(plan.slice(v), *args) == f(plan.expand(plan.slice(v)), *args)

  for every `f`. For the function that was planned, both equal `f(mask(v, dead), *args)` too.
  Derivatives obey the same law. It is a function like any other: wrap it in `jit`, `grad`,
  `vmap`, `pmap`, `jax.checkpoint`, `jax.export`. Outside `jit`, every call traces `f` again.

  Args:
    f: a pure function of pytrees.
    plan: from `plan`, perhaps with another function of the same variables (inference).
    ins: as `in_axes` of `vmap`: a tuple with one prefix tree per argument, whose leaves are
      None (whole) or a path string: the argument is that part of the plan's variables ('' all
      of them, 'params', 'batch_stats'). Default: the first argument is the variables.
    outs: prefix tree over the results: None = whole (default), or a path string: laid out like
      that part of the plan, as `(None, {'batch_stats': 'batch_stats'})` for `(logits, state)`.
    widen: whether zeros may be computed where leaving them out costs more, by default at the costs
      of CPUs (see `widen`). Meant for functions that are compiled; `count` counts these zeros.
    rules: the table of rules, as for `plan`.

  Returns:
    The thin function. It raises ValueError if a thin argument does not have the plan's shape.
  """

  @functools.wraps(f)
  def thin_f(*args: Any, **kwargs: Any) -> Any:
    leaves, structure = jax.tree.flatten((args, kwargs))
    have, shapes = _held(plan, ins, args, kwargs)
    full_args, full_kwargs = jax.tree.unflatten(structure, shapes)
    program, results = programs.trace(f, *full_args, **full_kwargs)
    demands = _demands(plan, outs, program, results)
    walk, inputs = Walk(rules), list(map(Fact, have))
    needed = analysis.analyse(program, inputs, demands, walk=walk)
    if widen:
      widening = Widening(program, needed, Costs() if widen is True else widen)
      needed = analysis.backward(program, needed.facts, demands, walk=walk, widening=widening)
    avals = [program.avals[number] for number in program.outputs]

    def run(*leaves: Any) -> list[Any]:
      arrays = analysis.run(program, needed, leaves, have, demands)
      return [_nothing(a) if x is None else x for x, a in zip(arrays, avals, strict=True)]

    thins = [
      jaxprs.struct(aval, regions.shape_of(demand, aval.shape))
      for aval, demand in zip(avals, demands, strict=True)
    ]
    return jax.tree.unflatten(
      jax.tree.structure(results), shardings.automatic(run, leaves, thins, program.avals)
    )

  return thin_f


def _held(
  plan: Plan, ins: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[Region], list[jax.ShapeDtypeStruct]]:
  """Of each leaf of the arguments, the region that it holds, and its shape at full width."""
  given = ('',) + (None,) * (len(args) - 1) if ins is None else tuple(ins)
  if len(given) != len(args):
    raise ValueError(
      f'ins has {len(given)} entries, the function was called with {len(args)} positional arguments'
    )
  have, shapes = [], []
  roots = tree.spread((given, None), (args, kwargs), name='ins')
  for leaf, (root, below) in zip(jax.tree.leaves((args, kwargs)), roots, strict=True):
    shape = jaxprs.struct(leaf)
    region = regions.whole(len(shape.shape))
    if root is not None:
      region, shape = _original(plan, tree.parse(root) + below, shape)
    have.append(region)
    shapes.append(shape)
  return have, shapes


def _demands(plan: Plan, outs: Any, program: Program, results: Any) -> list[Region]:
  """The region wanted of each result."""
  return [
    regions.whole(len(program.avals[number].shape))
    if path is None
    else _cut(plan, path, 'outs').live
    for number, path in zip(program.outputs, tree.states(outs, results), strict=True)
  ]


def mask(variables: Any, dead: Any, *, bias: str = 'zero') -> Any:
  """Sets the scales and biases of dead channels to zero.

  Thin networks equal the network with these variables.

  Args:
    variables: tree of arrays.
    dead: tree like it: a bool vector [channels] at each scale leaf, None elsewhere.
    bias: 'keep' sets only the scales to zero: the channels then still emit their biases.

  Returns:
    Variables of the same shapes and dtypes.
  """
  zero = batch_norms.zeroed(variables, dead, bias)
  return tree.map_with_path(lambda path, leaf: batch_norms.without(leaf, zero.get(path)), variables)


def _cut(plan: Plan, path: tree.Path, name: str) -> Cut:
  if path not in plan.cuts:
    raise ValueError(f'{name}: the plan has no leaf {tree.show(path)}')
  return plan.cuts[path]


def _original(
  plan: Plan, path: tree.Path, thin_leaf: jax.ShapeDtypeStruct
) -> tuple[Region, jax.ShapeDtypeStruct]:
  """What a thin leaf holds, and its shape at full width."""
  cut = _cut(plan, path, 'ins')
  if thin_leaf.shape != cut.thin_shape:
    raise ValueError(
      f'{tree.show(path)} has shape {thin_leaf.shape}, the plan expects {cut.thin_shape} (sliced '
      f'from {cut.shape}). Slice the variables with plan.slice; if this is state that a thin '
      'function returned, declare it with outs=.'
    )
  return cut.live, jaxprs.struct(thin_leaf, cut.shape)


def _nothing(aval: Any) -> jax.Array:
  return jax.numpy.zeros((0,) * len(aval.shape), aval.dtype)
