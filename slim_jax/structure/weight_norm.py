"""`remove_weight_norm`: kernels that are normalised at every call take the place of their raw form.

Weight normalisation divides a kernel by its norm, spectral normalisation by its largest singular
value, weight standardisation subtracts a mean too. All read the whole kernel, so no input of it
could be removed. Once the normalised kernel is the variable, it is a kernel like any other.

Salimans and Kingma, Weight normalization, NeurIPS 2016; Miyato et al., Spectral normalization for
generative adversarial networks, ICLR 2018; Qiao et al., Micro-batch training with batch-channel
normalization and weight standardization, 2019.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
import math
from typing import Any

import jax

from slim_jax import jaxprs, tree
from slim_jax.errors import SlimError
from slim_jax.jaxprs import Equation, Program


class WeightNormError(SlimError, ValueError):
  """No kernel is normalised, or the function is not the one whose kernels were."""


def remove_weight_norm(
  f: Callable[..., Any], variables: Any, *args: Any, outs: Any = None
) -> tuple[Callable[..., Any], Any]:
  """Replaces kernels by their normalised forms, and the normalisation by nothing.

      apply, variables = slim_jax.remove_weight_norm(apply, variables, x)
      plan = slim_jax.plan(apply, variables, x, dead=dead)   # as for any other function

  `new_f(new_variables, *args) == f(variables, *args)`, and `new_f` may be planned, made thin and
  trained. Training no longer normalises. The norms' own variables, such as gains and singular
  vectors, stay in the tree and are not read.

  It looks for variables of two axes or more of which `f` reads only an array of the same shape that
  variables alone determine, on the way to which a smaller array is computed of them. Layers inside a
  `scan` are not looked into.

  Args:
    f: `f(variables, *args)`.
    variables: tree of arrays.
    *args: further arguments, arrays or `jax.ShapeDtypeStruct`s; their shapes may differ later.
    outs: as for `plan`: which results are new variables. Those that only follow a kernel, such as
      singular vectors in training, stay as they are.

  Returns:
    The new function and the new variables, of the same shapes and dtypes. Make the training function
    likewise, and use the variables of inference for both.

  Raises:
    WeightNormError: no kernel is normalised; or `new_f` does not normalise, for other arguments, the
      kernels that `f` did.
  """
  program, results = jaxprs.trace(f, *jax.tree.map(jaxprs.struct, (variables, *args)))
  leaves = tree.flatten(variables)
  normalised = _normalised(program, len(leaves), tree.states(outs, results))
  if not normalised:
    raise WeightNormError(
      'no kernel is normalised: the function reads every variable of two axes or more directly, or '
      'inside a loop'
    )
  arrays = list(leaves.values())
  values = jax.jit(lambda arrays: _values(program, normalised.values(), arrays))(arrays)
  for n, value in zip(normalised, values, strict=True):
    arrays[n] = value.astype(arrays[n].dtype)

  def new_f(variables: Any, *args: Any, **kwargs: Any) -> Any:
    program, results = jaxprs.trace(f, variables, *args, **kwargs)
    states = tree.states(outs, results)
    now = _normalised(program, len(leaves), states)
    if now.keys() != normalised.keys():
      names = [tree.show(list(leaves)[n]) for n in sorted(now.keys() ^ normalised.keys())]
      raise WeightNormError(
        f'{", ".join(names)}: normalised only for some arguments of the function, so the norm '
        'cannot be removed'
      )
    given = jax.tree.leaves((variables, args, kwargs))
    program = _without(program, now, _followers(program, now, leaves, states))
    return jax.tree.unflatten(jax.tree.structure(results), jaxprs.run(program, given))

  return new_f, jax.tree.unflatten(jax.tree.structure(variables), arrays)


def _normalised(program: Program, count: int, states: Sequence[tree.Path | None]) -> dict[int, int]:
  """The value that is read in place of a variable, by position of the variable.

  Args:
    program: a function of variables and data.
    count: how many of its inputs are variables.
    states: for each of its outputs, the variable whose new value it is.
  """
  data = _dependents(program, program.inputs[count:])
  result: dict[int, int] = {}
  for n, leaf in enumerate(program.inputs[:count]):
    shape = program.avals[leaf].shape
    if len(shape) < 2 or math.prod(shape) < 2 or leaf in data:
      continue
    within = _dependents(program, [leaf]) - data
    used = _used(program, within, data, states)
    for value in sorted(within - {leaf}):
      fits = program.avals[value].shape == shape
      if fits and used and _is_norm(program, leaf, value, within):
        if not (_dependents(program, [leaf], blocked={value}) & used):
          result[n] = value
          break
  return result


def _dependents(
  program: Program, sources: Collection[int], *, blocked: Collection[int] = ()
) -> set[int]:
  """The values that depend on any of these, themselves included, not by way of those blocked."""
  found = set(sources)
  for eqn in program.equations:
    if not found.isdisjoint(eqn.inputs):
      found.update(i for i in eqn.outputs if i not in blocked)
  return found


def _used(
  program: Program, within: set[int], data: set[int], states: Sequence[tree.Path | None]
) -> set[int]:
  """Values made of variables alone that meet the data, or are results."""
  used = {i for i, state in zip(program.outputs, states, strict=True) if state is None}
  for eqn in program.equations:
    if eqn.effects or not data.isdisjoint(eqn.outputs):
      used.update(eqn.inputs)
  return used.intersection(within)


def _is_norm(program: Program, leaf: int, value: int, within: set[int]) -> bool:
  """Whether a smaller array is computed of the leaf on the way to the value."""
  size = math.prod(program.avals[leaf].shape)
  above = {value}
  for eqn in reversed(program.equations):
    if not above.isdisjoint(eqn.outputs):
      above.update(eqn.inputs)
  return any(math.prod(program.avals[i].shape) < size for i in above.intersection(within))


def _values(program: Program, numbers: Collection[int], variables: Sequence[Any]) -> list[Any]:
  """Values that depend on variables alone."""
  part = _reached(program._replace(outputs=list(numbers)))
  others = [None] * (len(program.inputs) - len(variables))
  return jaxprs.run(part, [*variables, *others])


def _followers(
  program: Program,
  normalised: Mapping[int, int],
  leaves: Mapping[tree.Path, Any],
  states: Sequence[tree.Path | None],
) -> dict[int, int]:
  """Outputs that are new values of variables and follow a kernel alone: by output, the variable."""
  count, paths = len(leaves), list(leaves)
  data = _dependents(program, program.inputs[count:])
  kernels = _dependents(program, [program.inputs[n] for n in normalised])
  return {
    k: program.inputs[paths.index(state)]
    for k, (number, state) in enumerate(zip(program.outputs, states, strict=True))
    if state is not None and number in kernels - data
  }


def _without(
  program: Program, normalised: Mapping[int, int], followers: Mapping[int, int]
) -> Program:
  """The program with variables read in place of their normalised forms."""
  avals = program.avals
  both = [(program.inputs[n], value) for n, value in normalised.items()]
  now = {value: leaf for leaf, value in both if avals[value].dtype == avals[leaf].dtype}
  # A kernel that is cast before it is normalised still is.
  casts = [_cast(leaf, value, avals) for leaf, value in both if value not in now]
  made = {value for _, value in both}
  equations = casts + [
    eqn._replace(inputs=tuple(now.get(i, i) for i in eqn.inputs))
    for eqn in program.equations
    if made.isdisjoint(eqn.outputs)
  ]
  outputs = [followers.get(k, now.get(i, i)) for k, i in enumerate(program.outputs)]
  return _reached(program._replace(equations=equations, outputs=outputs))


def _cast(source: int, target: int, avals: Sequence[Any]) -> Equation:
  """The equation that casts one value to another."""
  cast = lambda x: x.astype(avals[target].dtype)
  (eqn,) = jaxprs.trace(cast, jaxprs.struct(avals[source]))[0].equations
  return eqn._replace(inputs=(source,), outputs=(target,))


def _reached(program: Program) -> Program:
  """The program without the equations that no output needs."""
  needed, equations = set(program.outputs), []
  for eqn in reversed(program.equations):
    if eqn.effects or not needed.isdisjoint(eqn.outputs):
      needed.update(eqn.inputs)
      equations.append(eqn)
  return program._replace(equations=equations[::-1])
