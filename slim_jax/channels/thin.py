"""`thin`: the transformation of functions."""

from collections.abc import Callable, Mapping
import functools
from typing import Any, Literal, NamedTuple

import jax

from slim_jax import jaxprs, shardings, tree
from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.analysis import Analysis
from slim_jax.channels.cuts import Cut
from slim_jax.channels.dead import without, zeroed
from slim_jax.channels.plan import Plan
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import RULES, Fact, Rule, Walk
from slim_jax.channels.widen import Costs, Widening
from slim_jax.errors import SlimError
from slim_jax.jaxprs import Program


def thin(
  f: Callable[..., Any],
  plan: Plan,
  *,
  ins: Any = None,
  outs: Any = None,
  missing: Literal['error', 'zero'] = 'error',
  widen: bool | Costs = False,
  rules: Mapping[Any, Rule] = RULES,
) -> Callable[..., Any]:
  """Transforms `f` into a function of thin variables that does only thin arithmetic.

      thin(f, plan)(plan.slice(v), *args) == f(plan.expand(plan.slice(v)), *args)

  for every `f` that reads nothing that the plan removed; and then both equal
  `f(mask(v, dead), *args)`. Derivatives obey the same law. It is a function like any other: wrap it
  in `jit`, `grad`, `vmap`, `pmap`, `jax.checkpoint`, `jax.export`. Outside `jit`, every call traces
  `f` again.

  Args:
    f: a pure function of pytrees.
    plan: from `plan`, perhaps with another function of the same variables (inference).
    ins: as `in_axes` of `vmap`: a tuple with one prefix tree per argument, whose leaves are
      None (whole) or a path string: the argument is that part of the plan's variables ('' all
      of them, 'params', 'batch_stats'). Default: the first argument is the variables.
    outs: prefix tree over the results: None = whole (default), or a path string: laid out like
      that part of the plan, as `(None, {'batch_stats': 'batch_stats'})` for `(logits, state)`.
      State that is not declared comes back in full size, right at the live channels.
    missing: what to do if `f` reads what the plan removed, as a training function may that was not
      planned: 'error' refuses it; 'zero' reads zeros, so that the first line above holds and the
      second does not. An L2 penalty inside `f`, for one, is then that of the thin network.
    widen: whether zeros may be computed where leaving them out costs more, by default at the costs
      of CPUs (see `widen`). Meant for functions that are compiled; `count` counts these zeros.
    rules: the table of rules, as for `plan`.

  Returns:
    The thin function. It raises ValueError if a thin argument does not have the plan's shape, and
    `RemovedError`, a ValueError, if `f` reads what was removed: it names the leaves.
  """
  if missing not in ('error', 'zero'):
    raise ValueError(f"missing must be 'error' or 'zero', got {missing!r}")

  @functools.wraps(f)
  def thin_f(*args: Any, **kwargs: Any) -> Any:
    leaves, structure = jax.tree.flatten((args, kwargs))
    held, shapes = _held(plan, ins, args, kwargs)
    full_args, full_kwargs = jax.tree.unflatten(structure, shapes)
    program, results = programs.trace(f, *full_args, **full_kwargs)
    demands = _demands(plan, outs, program, results)
    walk, needed = Walk(rules), None
    if missing == 'error':
      needed = _checked(f, plan, program, held, demands, results, walk)
    if needed is None or widen:
      needed = _with_zeros(program, held, demands, walk, widen)
    have, wanted = [leaf.live for leaf in held], [demand.live for demand in demands]
    avals = [program.avals[number] for number in program.outputs]

    def run(*leaves: Any) -> list[Any]:
      arrays = analysis.run(program, needed, leaves, have, wanted)
      return [_nothing(a) if x is None else x for x, a in zip(arrays, avals, strict=True)]

    thins = [
      jaxprs.struct(aval, regions.shape_of(demand, aval.shape))
      for aval, demand in zip(avals, wanted, strict=True)
    ]
    return jax.tree.unflatten(
      jax.tree.structure(results), shardings.automatic(run, leaves, thins, program.avals)
    )

  return thin_f


class RemovedError(SlimError, ValueError):
  """A function reads what its plan removed; the message names the leaves."""


class _Held(NamedTuple):
  """What is there of one argument or result, as in `Cut`, and the path of its leaf in the plan."""

  live: Region
  filled: Region
  support: Region
  path: tree.Path | None


def _whole(shape: jax.ShapeDtypeStruct) -> _Held:
  whole = regions.whole(len(shape.shape))
  return _Held(whole, whole, whole, None)


def _held(
  plan: Plan, ins: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[list[_Held], list[jax.ShapeDtypeStruct]]:
  """Of each leaf of the arguments, what is there, and its shape at full width."""
  given = ('',) + (None,) * (len(args) - 1) if ins is None else tuple(ins)
  if len(given) != len(args):
    raise ValueError(
      f'ins has {len(given)} entries, the function was called with {len(args)} positional arguments'
    )
  held, shapes = [], []
  roots = tree.spread((given, None), (args, kwargs), name='ins')
  for leaf, (root, below) in zip(jax.tree.leaves((args, kwargs)), roots, strict=True):
    shape = jaxprs.struct(leaf)
    if root is None:
      held.append(_whole(shape))
    else:
      path = tree.parse(root) + below
      cut = _cut(plan, path, 'ins')
      held.append(_Held(cut.live, cut.filled, cut.support, path))
      shape = _original(cut, path, shape)
    shapes.append(shape)
  return held, shapes


def _demands(plan: Plan, outs: Any, program: Program, results: Any) -> list[_Held]:
  """What is wanted of each result."""
  demands = []
  paths = tree.states(outs, results)
  for number, path in zip(program.outputs, paths, strict=True):
    if path is None:
      demands.append(_whole(program.avals[number]))
    else:
      cut = _cut(plan, path, 'outs')
      demands.append(_Held(cut.live, cut.filled, cut.support, path))
  return demands


def _of_undeclared_state(plan: Plan, demands: list[_Held], results: Any) -> list[Region]:
  """What has to be right of each result: of a state that is not declared, the live channels alone.

  A result that is not declared is state if its shape and its name are those of a variable.
  """
  right = []
  for demand, (path, leaf) in zip(demands, tree.flatten(results).items(), strict=True):
    cuts = [] if demand.path is not None else _named_alike(plan, path, tuple(leaf.shape))
    right.append(
      functools.reduce(regions.union, (cut.filled for cut in cuts)) if cuts else demand.filled
    )
  return right


def _named_alike(plan: Plan, path: tree.Path, shape: tuple[int, ...]) -> list[Cut]:
  """The variables of this shape whose paths end like this one: those that share most of it."""
  for start in range(len(path)):
    end = path[start:]
    same = [
      cut
      for other, cut in plan.cuts.items()
      if cut.shape == shape and other[len(other) - len(end) :] == end
    ]
    if same:
      return same
  return []


def _checked(
  f: Callable[..., Any],
  plan: Plan,
  program: Program,
  held: list[_Held],
  demands: list[_Held],
  results: Any,
  walk: Walk,
) -> Analysis | None:
  """Checks that the results need nothing that was removed although it is not zero.

  Returns:
    The analysis, if it holds for all that is demanded.

  Raises:
    RemovedError: they do.
  """
  right = _of_undeclared_state(plan, demands, results)
  inputs = [Fact(leaf.support) for leaf in held]
  needed = analysis.analyse(program, inputs, right, walk=walk)
  lost = [
    (leaf.path, regions.removed(needed.live[number], leaf.filled, program.avals[number].shape))
    for leaf, number in zip(held, program.inputs, strict=True)
    if leaf.path is not None and not regions.contains(leaf.filled, needed.live[number])
  ]
  if lost:
    name = getattr(f, '__name__', type(f).__name__)
    raise RemovedError(
      f'{name} reads what its plan removed: '
      + '; '.join(f'{tree.show(path)}, {which}' for path, which in lost[:5])
      + (f'; and {len(lost) - 5} more leaves' if len(lost) > 5 else '')
      + f'. Give the plan this function too: plan(..., also=[({name}, args, outs)]). If it returns '
      "state, declare the state with outs=. To read zeros instead, pass missing='zero'."
    )
  whole = all(map(regions.same, right, (demand.filled for demand in demands)))
  return needed if whole else None


def _with_zeros(
  program: Program, held: list[_Held], demands: list[_Held], walk: Walk, widen: bool | Costs
) -> Analysis:
  """Analyses the program with zeros for all that was removed."""
  inputs, wanted = [Fact(leaf.filled) for leaf in held], [demand.filled for demand in demands]
  needed = analysis.analyse(program, inputs, wanted, walk=walk)
  if not widen:
    return needed
  widening = Widening(program, needed, Costs() if widen is True else widen)
  return analysis.backward(program, needed.facts, wanted, walk=walk, widening=widening)


def mask(variables: Any, dead: Any, *, bias: str = 'zero') -> Any:
  """Sets the scales and biases of dead channels to zero.

  Thin networks equal the network with these variables. What stood at a dead channel does not matter,
  not even if it was not finite.

  Args:
    variables: tree of arrays.
    dead: tree like it: a bool vector [channels] at each scale leaf, None elsewhere. For another axis
      than the last of a kernel, the other axes have size 1: [1, heads, 1].
    bias: 'keep' sets only the scales to zero: the channels then still emit their biases.

  Returns:
    Variables of the same shapes and dtypes.
  """
  zero = zeroed(variables, dead, bias)
  return tree.map_with_path(lambda path, leaf: without(leaf, zero.get(path)), variables)


def _cut(plan: Plan, path: tree.Path, name: str) -> Cut:
  if path not in plan.cuts:
    raise ValueError(f'{name}: the plan has no leaf {tree.show(path)}')
  return plan.cuts[path]


def _original(cut: Cut, path: tree.Path, thin_leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
  """The shape of a thin leaf at full width."""
  if thin_leaf.shape != cut.thin_shape:
    raise ValueError(
      f'{tree.show(path)} has shape {thin_leaf.shape}, the plan expects {cut.thin_shape} (sliced '
      f'from {cut.shape}). Slice the variables with plan.slice; if this is state that a thin '
      'function returned, declare it with outs=.'
    )
  return jaxprs.struct(thin_leaf, cut.shape)


def _nothing(aval: Any) -> jax.Array:
  return jax.numpy.zeros((0,) * len(aval.shape), aval.dtype)
