"""Jaxprs as programs. No other file imports `jax.extend`.

A function is traced to a `Program`: a flat list of equations over integer value numbers. Calls that
mean nothing but their body (`jit` and the like) are inlined. Each visit gets fresh numbers, because
JAX shares the jaxpr of an inner function between its call sites, and two visits must not be
confused.

Calls that mean more than their body stay one equation: `custom_jvp_call` and `custom_vjp_call`
carry a derivative, `remat` a memory policy, `scan`, `while` and `cond` control flow. `bodies`
returns the programs inside.
"""

from collections.abc import Callable, Sequence
import contextlib
from typing import Any, NamedTuple

import jax
import jax.custom_batching
import jax.export
from jax.extend import core
from jax.extend.core import primitives
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
import numpy as np

from slim_jax import shardings


class Equation(NamedTuple):
  """One operation of a `Program`.

  Attributes:
    primitive: the JAX primitive (an object: tables are keyed by it).
    params: its parameters, as in the jaxpr.
    inputs: value numbers of the operands.
    outputs: value numbers of the results.
    in_avals: abstract values (shape, dtype) of the operands.
    out_avals: abstract values of the results.
    module: module path, from the name stack ('VGG/Conv_0').
    effects: whether running it is observable beyond its results.
    memo: results that depend on this equation alone; see `once`.
  """

  primitive: Any
  params: dict[str, Any]
  inputs: tuple[int, ...]
  outputs: tuple[int, ...]
  in_avals: tuple[Any, ...]
  out_avals: tuple[Any, ...]
  module: str
  effects: bool
  memo: dict[Any, Any]

  def __str__(self) -> str:
    operands = ', '.join(short(a) for a in self.in_avals)
    results = ', '.join(short(a) for a in self.out_avals)
    at = f' at {self.module}' if self.module else ''
    return f'{self.primitive}({operands}) -> {results}{at}'


class Program(NamedTuple):
  """A list of equations without branches; values are numbered from 0.

  Attributes:
    equations: in order of execution.
    inputs: value numbers of the arguments.
    outputs: value numbers of the results (may repeat, may be inputs).
    constants: value number -> array, for literals and captured arrays.
    avals: abstract value of every value number.
  """

  equations: list[Equation]
  inputs: list[int]
  outputs: list[int]
  constants: dict[int, Any]
  avals: list[Any]


def short(aval: Any) -> str:
  """'float32[3,3,64]' for an abstract value."""
  return f'{aval.dtype}[{",".join(map(str, aval.shape))}]'


def is_fixed(size: Any) -> bool:
  """Whether a size is a number: in an export for any batch, height or width, it is a symbol."""
  return not jax.export.is_symbolic_dim(size)


def at_least(size: Any, least: Any) -> bool | None:
  """Whether a size is `least` or more; None where that depends on what symbols stand for."""
  try:
    return bool(size >= least)
  except jax.errors.InconclusiveDimensionOperation:
    return None


def struct(leaf: Any, shape: tuple[int, ...] | None = None) -> jax.ShapeDtypeStruct:
  """Shape and dtype of an array, a Python scalar, a shape or an abstract value.

  What a type says of devices stays: the axes of a mesh with explicit axes, and the axes that a value
  varies over inside `shard_map`.

  Args:
    leaf: what has a shape.
    shape: another shape to give it. An axis that its devices do not divide is then not sharded.
  """
  if isinstance(leaf, jax.ShapeDtypeStruct) and shape is None:
    return leaf
  typed = isinstance(leaf, jax.ShapeDtypeStruct) or hasattr(leaf, 'weak_type')
  aval = leaf if typed and not isinstance(leaf, jax.Array) else jax.typeof(leaf)
  size: tuple[int, ...] = aval.shape if shape is None else shape
  weak = getattr(aval, 'weak_type', False)
  manual, sharding = getattr(aval, 'manual_axis_type', None), getattr(aval, 'sharding', None)
  if not shardings.varying(aval) and not shardings.is_explicit(aval):
    return jax.ShapeDtypeStruct(size, aval.dtype, weak_type=weak)
  return jax.ShapeDtypeStruct(
    size,
    aval.dtype,
    weak_type=weak,
    sharding=shardings.fitting(sharding, size),
    manual_axis_type=manual,
  )


def trace(f: Callable[..., Any], *args: Any, **kwargs: Any) -> tuple[Program, Any]:
  """Traces `f` at the shapes of its arguments, without making arrays.

  Args:
    f: a function of pytrees of arrays.
    *args: arrays or `jax.ShapeDtypeStruct`s.
    **kwargs: likewise.

  Returns:
    The program, whose inputs are the leaves of `(args, kwargs)` and whose outputs are the
    leaves of the result; and the result's tree of `jax.ShapeDtypeStruct`s.
  """
  closed, shape = jax.make_jaxpr(f, return_shape=True)(*args, **kwargs)
  return flatten(closed), shape


def flatten(jaxpr: Any, consts: Sequence[Any] | None = None, *, plain: bool = False) -> Program:
  """The `Program` of a jaxpr, open or closed; a closed jaxpr's constants become constants.

  Args:
    jaxpr: from `jax.make_jaxpr`, or out of an equation's parameters.
    consts: those of an open jaxpr.
    plain: whether calls that carry a derivative or a policy count as their bodies alone, for
      programs that will not be differentiated (a derivative may contain its own function).
  """
  program = Program([], [], [], {}, [])
  inlined = {**INLINED, **CARRYING} if plain else INLINED
  body, own = _open(jaxpr)
  constants: Sequence[Any] = own if consts is None else consts

  def new(aval: Any) -> int:
    program.avals.append(aval)
    return len(program.avals) - 1

  def constant(aval: Any, value: Any) -> int:
    number = new(aval)
    program.constants[number] = value
    return number

  def inline(body: Any, consts: Any, args: list[int], module: str) -> list[int]:
    env = dict(zip(body.invars, args, strict=True))
    for var, value in zip(body.constvars, consts, strict=True):
      env[var] = constant(var.aval, value)

    def read(atom: Any) -> int:
      if isinstance(atom, core.Literal):
        return constant(atom.aval, atom.val)
      return env[atom]

    for eqn in body.eqns:
      operands = [read(a) for a in eqn.invars]
      where = '/'.join(s for s in (module, str(eqn.source_info.name_stack)) if s)
      if eqn.primitive in inlined:
        name = inlined[eqn.primitive]
        inner, inner_consts = _open(_expanded(eqn) if name == EXPAND else eqn.params[name])
        results = inline(inner, inner_consts, operands, where)
      else:
        results = [new(v.aval) for v in eqn.outvars]
        program.equations.append(
          Equation(
            eqn.primitive,
            eqn.params,
            tuple(operands),
            tuple(results),
            tuple(a.aval for a in eqn.invars),
            tuple(v.aval for v in eqn.outvars),
            where,
            bool(eqn.effects),
            {},
          )
        )
      env.update(zip(eqn.outvars, results, strict=True))
    return [read(a) for a in body.outvars]

  # Since JAX 0.12 an open jaxpr takes its constants as the first arguments.
  first = len(constants) - len(body.constvars)
  leading = [constant(v.aval, value) for v, value in zip(body.invars, constants[:first])]
  program.inputs.extend(new(v.aval) for v in body.invars[first:])
  program.outputs.extend(inline(body, constants[first:], leading + program.inputs, ''))
  return program


def once(eqn: Equation, make: Callable[..., Any], **arguments: Any) -> Any:
  """Returns `make(eqn, **arguments)`, computed the first time and kept with the equation."""
  key = make, tuple(arguments.items())
  if key not in eqn.memo:
    eqn.memo[key] = make(eqn, **arguments)
  return eqn.memo[key]


def bodies(eqn: Equation) -> list[Program]:
  """The programs inside an equation (branches, loop bodies, custom rules), if any."""
  return once(eqn, _bodies)


# JAX 0.10 wraps constants in a second class; since 0.12 the two are one, and its types name one.
_CLOSED: Any = getattr(core, 'ClosedJaxpr', core.Jaxpr)


def _bodies(eqn: Equation) -> list[Program]:
  if CARRYING.get(eqn.primitive) == EXPAND:
    return [flatten(_expanded(eqn))]
  programs = []
  for value in eqn.params.values():
    for item in value if isinstance(value, (tuple, list)) else (value,):
      if isinstance(item, (core.Jaxpr, _CLOSED)):
        programs.append(flatten(item))
  return programs


def _expanded(eqn: Any) -> Any:
  """The jaxpr of what a `call_hi_primitive` computes, of an equation of a jaxpr or a program."""
  avals = getattr(eqn, 'in_avals', None) or [atom.aval for atom in eqn.invars]
  called = eqn.params['_prim']

  def expand(*operands: Any) -> Any:
    return jax.tree.leaves(called.expand(*jax.tree.unflatten(called.in_tree, operands)))

  return jax.make_jaxpr(expand)(*map(struct, avals))


def body(eqn: Equation, name: str) -> Program:
  """The program that the equation holds under the parameter `name`."""
  return once(eqn, _body, name=name)


def _body(eqn: Equation, name: str) -> Program:
  return flatten(eqn.params[name])


def derivative(eqn: Equation, *, plain: bool) -> Program:
  """Returns the rule of a `custom_jvp_call`: (operands, tangents) to (results, tangents).

  Only operands and results that `moves` have tangents. Differentiating the call instead would trace
  the rule too, and much around it.

  Args:
    eqn: the call.
    plain: as of `flatten`.
  """
  unseen = eqn.params['num_consts']  # of the operands, the first: captured by the function
  # A rule that does not ask which tangents are zero gets all, float0 for integers.
  zeros = [eqn.params['symbolic_zeros'] and not moves(a) for a in eqn.in_avals[unseen:]]
  with shardings.as_typed(eqn.in_avals):
    rule, consts, still = eqn.params['jvp_jaxpr_fun'].call_wrapped(*zeros)
  program = flatten(rule, consts, plain=plain)

  def new(aval: Any) -> int:
    program.avals.append(aval)
    return len(program.avals) - 1

  def constant(number: int, aval: Any, dtype: Any) -> int:
    program.constants[number] = np.zeros(aval.shape, dtype)
    return number

  given, made = iter(program.inputs), iter(program.outputs)
  operands = [new(a) if k < unseen else next(given) for k, a in enumerate(eqn.in_avals)]
  tangents = [
    new(a) if zero else next(given)
    for a, zero in zip(eqn.in_avals, [True] * unseen + zeros, strict=True)
  ]
  for number, aval in zip(tangents, eqn.in_avals, strict=True):
    if not moves(aval):
      constant(number, aval, jax.dtypes.float0)
  results = [next(made) for _ in eqn.out_avals]
  slopes = [
    constant(new(a), a, a.dtype) if zero else next(made)
    for a, zero in zip(eqn.out_avals, still, strict=True)
  ]
  return program._replace(
    inputs=operands + [i for i, a in zip(tangents, eqn.in_avals) if moves(a)],
    outputs=results + [i for i, a in zip(slopes, eqn.out_avals) if moves(a)],
  )


def moves(aval: Any) -> bool:
  """Whether values of this kind have tangents."""
  return jax.numpy.issubdtype(aval.dtype, np.inexact)


def scan_counts(eqn: Equation) -> tuple[int, int]:
  """How many operands of a `scan` are constants, and how many are carried."""
  if 'num_carry' in eqn.params:
    return eqn.params['num_consts'], eqn.params['num_carry']
  constants, carried, _ = map(len, eqn.params['ft_in'].unpack())  # since JAX 0.12
  return constants, carried


def bind(eqn: Equation, *arrays: Any, **changed: Any) -> list[Any]:
  """Runs the equation's primitive on `arrays`, some parameters changed; returns a list."""
  if len(arrays) == len(eqn.in_avals):
    arrays = tuple(map(shardings.as_varying, arrays, eqn.in_avals))
  return bind_constants(eqn, *arrays, **changed)


def bind_constants(eqn: Equation, *arrays: Any, **changed: Any) -> list[Any]:
  """Does what `bind` does for arrays that are the same on all devices."""
  given = {**eqn.params, **changed}
  if any(map(shardings.is_explicit, (*eqn.in_avals, *eqn.out_avals))):  # see `shardings.automatic`
    given |= {name: None for name in ('sharding', 'out_sharding') if name in given}
  params = eqn.primitive.get_bind_params(given)
  results = eqn.primitive.bind(*arrays, **params)
  return list(results) if eqn.primitive.multiple_results else [results]


def run(
  program: Program, arrays: Sequence[Any], evaluate: Callable[..., list[Any]] = bind
) -> list[Any]:
  """Runs a program, each equation by `evaluate(eqn, *operands)`; returns its outputs."""
  held = {**program.constants, **dict(zip(program.inputs, arrays, strict=True))}
  last = last_reads(program)
  for k, eqn in enumerate(program.equations):
    with scope(eqn):
      results = evaluate(eqn, *(held[i] for i in eqn.inputs))
    held.update(zip(eqn.outputs, results, strict=True))
    for number in last.get(k, ()):
      del held[number]
  return [held[number] for number in program.outputs]


def scope(eqn: Equation) -> contextlib.AbstractContextManager[Any]:
  """The named scope in which an equation runs."""
  return jax.named_scope(eqn.module) if eqn.module else contextlib.nullcontext()


def last_reads(program: Program) -> dict[int, list[int]]:
  """Values not read after equation k, by k, so that eager runs can free their memory."""
  last = {i: k for k, eqn in enumerate(program.equations) for i in (*eqn.inputs, *eqn.outputs)}
  for number in program.outputs:
    last.pop(number, None)
  done: dict[int, list[int]] = {}
  for number, k in last.items():
    done.setdefault(k, []).append(number)
  return done


def primitive_of(f: Callable[..., Any], *args: Any) -> Any:
  """The primitive of a one-operation function, for those `jax.extend` does not list."""
  (eqn,) = jax.make_jaxpr(f)(*args).eqns
  return eqn.primitive


def emitted(name: str, f: Callable[..., Any], *args: Any) -> list[Any]:
  """The primitive of this name in the trace of `f(*args)`; [] if this version of JAX has none."""
  eqns = jax.make_jaxpr(f)(*args).eqns
  return list({eqn.primitive for eqn in eqns if eqn.primitive.name == name})


def newer(*names: str) -> list[Any]:
  """The named primitives that this version of JAX has."""
  return [vars(primitives)[name] for name in names if name in vars(primitives)]


def _open(jaxpr: Any) -> tuple[Any, Any]:
  # JAX 0.10 wraps constants in ClosedJaxpr; since 0.12 the two classes are one.
  if hasattr(jaxpr, 'jaxpr') and hasattr(jaxpr, 'consts'):
    return jaxpr.jaxpr, jaxpr.consts
  return jaxpr, getattr(jaxpr, 'consts', ())


# Primitives that mean their body and nothing else, with the parameter that holds it.
INLINED = {
  primitives.jit_p: 'jaxpr',
  primitives.closed_call_p: 'call_jaxpr',
  primitives.call_p: 'call_jaxpr',
}

EXPAND = '_prim'  # the parameter that makes the body
# Primitives that carry a derivative or a policy beside it.
CARRYING = {
  primitives.custom_jvp_call_p: 'call_jaxpr',
  primitives.custom_vjp_call_p: 'call_jaxpr',
  primitives.remat_p: 'jaxpr',
}

_vector = jax.ShapeDtypeStruct((2,), np.float32)
split_p = primitive_of(lambda x: jax.lax.split(x, (1, 1)), _vector)
optimization_barrier_p = primitive_of(jax.lax.optimization_barrier, _vector)
random_wrap_p = primitive_of(
  lambda x: jax.random.wrap_key_data(x, impl='threefry2x32'), jax.ShapeDtypeStruct((2,), np.uint32)
)
random_unwrap_p = primitive_of(jax.random.key_data, jax.eval_shape(lambda: jax.random.key(0)))
(dim_as_value_p,) = emitted(
  'dim_as_value',
  lambda x: x * x.shape[0],
  jax.ShapeDtypeStruct(jax.export.symbolic_shape('n'), np.float32),
)

# Lists: a version of JAX may express the operation by others.
stack_ps = emitted('stack', lambda x: jax.numpy.stack([x, x]), _vector)
unstack_ps = emitted('unstack', lambda x: jax.numpy.unstack(x), _vector)
tile_ps = emitted('tile', lambda x: jax.numpy.tile(x, 2), _vector)
scatter_sub_ps = emitted('scatter-sub', lambda x: x.at[0].subtract(1.0), _vector)
mulhi_ps = emitted('mulhi', lambda x: jax.lax.mulhi(x, x), jax.ShapeDtypeStruct((2,), np.uint32))
random_clone_ps = emitted('random_clone', jax.random.clone, jax.eval_shape(jax.random.key, 0))
pivots_ps = emitted(
  'lu_pivots_to_permutation',
  lambda x: jax.lax.linalg.lu_pivots_to_permutation(x, 2),
  jax.ShapeDtypeStruct((2,), np.int32),
)
random_gamma_grad_ps = emitted('random_gamma_grad', jax.lax.random_gamma_grad, _vector, _vector)
(ragged_dot_general_p,) = emitted(
  'ragged_dot_general',
  jax.lax.ragged_dot,
  *(jax.ShapeDtypeStruct(shape, np.float32) for shape in ((2, 2), (1, 2, 2))),
  jax.ShapeDtypeStruct((1,), np.int32),
)
(platform_index_p,) = emitted(
  'platform_index',
  lambda x: jax.lax.platform_dependent(x, cpu=jax.numpy.sin, default=jax.numpy.cos),
  _vector,
)
(symmetric_product_p,) = emitted(
  'symmetric_product',
  jax.lax.linalg.symmetric_product,
  *[jax.ShapeDtypeStruct((2, 2), np.float32)] * 2,
)


def _custom_vmap() -> Any:
  """A function with a batching rule of its own."""
  f = jax.custom_batching.custom_vmap(lambda x: -x)
  f.def_vmap(lambda size, is_batched, x: (-x, is_batched[0]))
  return f


(custom_vmap_call_p,) = emitted('custom_vmap_call', _custom_vmap(), _vector)
composite_ps = emitted('composite', jax.lax.composite(lambda x: -x, name='slim.neg'), _vector)


def _of_shard_map() -> dict[str, Any]:
  """`shard_map`, and the primitives that appear only inside it, by name."""

  def body(x: Any) -> Any:
    return (
      jax.lax.pcast(jax.lax.psum(x, 'i'), 'i', to='varying'),
      jax.lax.all_gather(x, 'i', to='invarying'),
      jax.lax.psum_scatter(x, 'i'),
    )

  mesh = AbstractMesh((2,), ('i',), axis_types=(AxisType.Auto,))
  mapped = jax.shard_map(
    body, mesh=mesh, in_specs=PartitionSpec(None, 'i'), out_specs=PartitionSpec('i')
  )
  (eqn,) = jax.make_jaxpr(mapped)(jax.ShapeDtypeStruct((2, 2), np.float32)).eqns
  inside, _ = _open(eqn.params['jaxpr'])
  return {e.primitive.name: e.primitive for e in (eqn, *inside.eqns)}


_shard_map = _of_shard_map()
shard_map_p = _shard_map['shard_map']
pvary_p = _shard_map['pvary']
psum_invariant_p = _shard_map['psum_invariant']
all_gather_invariant_p = _shard_map['all_gather_invariant']
reduce_scatter_p = _shard_map['reduce_scatter']
_single = AbstractMesh((1,), ('i',), axis_types=(AxisType.Explicit,))
reshard_p = primitive_of(
  lambda x: jax.sharding.reshard(x, jax.sharding.NamedSharding(_single, PartitionSpec('i'))),
  _vector,
)
polynomial_ps = list(
  {
    e.primitive
    for e in trace(jax.numpy.sinc, _vector)[0].equations
    if e.primitive.name == 'polynomial'
  }
)
hi_primitive_ps = list(
  {
    e.primitive
    for e in trace(jax.numpy.searchsorted, _vector, _vector)[0].equations
    if e.primitive.name == 'call_hi_primitive'
  }
)
CARRYING |= dict.fromkeys(hi_primitive_ps, EXPAND)
