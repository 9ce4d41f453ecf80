"""Random programs of every primitive that has a rule, with BatchNorms that have state.

A program alternates between layers (a product, a BatchNorm, an activation) and the cases of
`rule_cases`, whose operands are made of values computed before. Every choice comes from the seeds of
the steps, so that a program that fails can be shortened.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from helpers import laws, programs, rule_cases
from helpers.programs import Operand
import slim_jax
from slim_jax import jaxprs
from slim_jax.channels.planning import DisconnectedError

_LARGEST = 60  # elements of a value between two steps
_RANKS = 4
_ROWS = 3  # the size of a batch

PLAIN = [c for c in rule_cases.CASES if not c.named]
# Collectives appear where an axis is manual; arrays are placed on devices outside of that.
MANUAL = [c for c in rule_cases.CASES if c.named]
_OUTSIDE = {c.name for c in rule_cases.PLACEMENT + rule_cases.COLLECTIVE} - {c.name for c in MANUAL}


class Step(NamedTuple):
  """One step: 'layer', or the name of a case; and the seed of its choices."""

  kind: str
  seed: int


class Mixed(NamedTuple):
  """A drawn program.

  Attributes:
    seed: from which it was drawn.
    steps: its steps.
    manual: whether it runs inside `shard_map`, over two devices.
  """

  seed: int
  steps: tuple[Step, ...]
  manual: bool = False

  def __str__(self) -> str:
    inside = ' inside shard_map' if self.manual else ''
    return f'seed {self.seed}{inside}: ' + '; '.join(f'{s.kind} [{s.seed}]' for s in self.steps)


def draw(seed: int, cases: Sequence[programs.Case] | None = None) -> Mixed:
  """Draws a program.

  Args:
    seed: of the choices.
    cases: which cases it must have; others are drawn beside them.
  """
  rng = np.random.default_rng(seed)
  manual = rng.random() < 0.15 if cases is None else any(c.named for c in cases)
  pool = [c for c in PLAIN if c.name not in _OUTSIDE] + MANUAL * 3 if manual else PLAIN
  chosen = [pool[i] for i in rng.integers(len(pool), size=rng.integers(1, 5))]
  chosen = [*chosen[: 4 - len(cases or ())], *(cases or ())]
  kinds = ['layer']
  for i in rng.permutation(len(chosen)):
    kinds += [chosen[i].name] + ['layer'] * int(rng.random() < 0.6)
  if kinds[-1] != 'layer' and rng.random() < 0.5:
    kinds.append('layer')
  return Mixed(seed, tuple(Step(kind, int(rng.integers(2**31))) for kind in kinds), manual)


class _Scope:
  """Variables by name: made when they are first asked for, read later."""

  def __init__(self, variables: Any = None):
    self.variables = variables
    self.made: dict[str, dict[str, Any]] = {'params': {}, 'batch_stats': {}}
    self.new: dict[str, Any] = {}

  def get(self, group: str, name: str, make: Callable[[], dict[str, np.ndarray]]) -> Any:
    if self.variables is None:
      self.made[group][name] = make()
      return self.made[group][name]
    return self.variables[group][name]


def _layer(scope: _Scope, name: str, rng: np.random.Generator, x: Any, train: bool) -> Any:
  """A product along an axis, a BatchNorm on that axis and an activation."""
  if not x.ndim:
    x = x[None]
  axis = int(rng.integers(x.ndim))
  width = int(rng.integers(2, 6))
  n = x.shape[axis]
  kernel = scope.get('params', f'dense_{name}', lambda: {'kernel': rng.normal(size=(n, width))})
  x = jnp.moveaxis(jnp.tensordot(x, kernel['kernel'], (axis, 0)), -1, axis)
  affine = scope.get(
    'params',
    f'bn_{name}',
    lambda: {
      'scale': rng.uniform(0.4, 1.6, width) * rng.choice([-1, 1], width),
      'bias': rng.normal(size=width),
    },
  )
  stats = scope.get(
    'batch_stats',
    f'bn_{name}',
    lambda: {'mean': rng.normal(size=width), 'var': rng.uniform(0.5, 2, width)},
  )
  others = tuple(i for i in range(x.ndim) if i != axis)
  mean, var = stats['mean'], stats['var']
  if train:
    mean = jnp.mean(x, others)
    var = jnp.mean(jnp.square(x), others) - jnp.square(mean)
    scope.new[f'bn_{name}'] = {
      key: 0.9 * stats[key] + 0.1 * value for key, value in (('mean', mean), ('var', var))
    }
  mean, var, scale, bias = (
    jnp.expand_dims(v, others) for v in (mean, var, affine['scale'], affine['bias'])
  )
  x = (x - mean) * lax.rsqrt(jnp.abs(var) + 0.1) * scale + bias
  return [jnp.tanh, jax.nn.relu, jax.nn.silu, lambda x: x][rng.integers(4)](x)


def fit(rng: np.random.Generator, x: Any, operand: Operand) -> Any:
  """Makes an operand of a value: its shape by sums, picks and repeats, then its dtype and values."""
  if operand.whole or np.dtype(operand.dtype).name == 'uint32':
    return jnp.asarray(programs.draw(rng, operand))
  x = jnp.transpose(x, rng.permutation(x.ndim))
  while x.ndim > len(operand.shape):
    x = jnp.sum(x, int(rng.integers(x.ndim)))
  while x.ndim < len(operand.shape):
    x = jnp.expand_dims(x, int(rng.integers(x.ndim + 1)))
  for axis, (have, want) in enumerate(zip(x.shape, operand.shape, strict=True)):
    if have == 1 and want != 1:
      x = jnp.broadcast_to(x, tuple(want if i == axis else n for i, n in enumerate(x.shape)))
      # Equal values would make ties, which rounding decides.
      along = np.linspace(0.5, 1.5, want).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
      x = x * along
    elif have != want:
      x = jnp.take(x, np.resize(rng.permutation(have), want), axis)
  return _filled(x, operand)


def _filled(x: Any, operand: Operand) -> Any:
  dtype = np.dtype(operand.dtype)
  if isinstance(operand.fill, int):
    return (jnp.abs(lax.round(lax.stop_gradient(x) * 3)).astype(dtype)) % operand.fill
  if dtype.kind == 'b':
    return lax.stop_gradient(x) > 0.1
  if dtype.kind in 'iu':
    values = lax.round(lax.stop_gradient(x) * 3).astype(dtype)
    return jnp.abs(values) + 1 if operand.fill == 'positive' else values
  x = {
    'any': lambda x: x,
    'positive': lambda x: jnp.abs(x) + 0.25,
    'nonzero': lambda x: x + jnp.where(x < 0, -0.25, 0.25),
    'unit': lambda x: jnp.tanh(x) * 0.9,
    'above one': lambda x: jnp.abs(x) + 1.25,
  }[str(operand.fill)](x)
  return lax.complex(x, jnp.sin(x)) if dtype.kind == 'c' else x.astype(dtype)


def _tamed(result: Any) -> Any:
  """A result as bounded float64 of few elements, zero where it is zero."""
  x = result
  if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    x = jax.random.key_data(x)
  if x.dtype.kind == 'c':
    x = x.real + x.imag
  x = jnp.tanh(x.astype(np.float64) * 0.5)
  while x.ndim > _RANKS:
    x = jnp.sum(x, 0)
  while x.size > _LARGEST:
    axis = int(np.argmax(x.shape))
    x = lax.slice_in_dim(x, 0, max(1, x.shape[axis] // 2), axis=axis)
  return x


@functools.cache
def _cases() -> dict[str, programs.Case]:
  return {c.name: c for c in rule_cases.CASES}


def _apply(scope: _Scope, mixed: Mixed, x: Any, train: bool) -> list[Any]:
  values = [x]
  for number, step in enumerate(mixed.steps):
    rng = np.random.default_rng(step.seed)

    def pick(rng: np.random.Generator = rng) -> Any:
      """The last value, mostly."""
      return values[-1] if rng.random() < 0.6 else values[rng.integers(len(values))]

    if step.kind == 'layer':
      values.append(_layer(scope, f'{number}_{step.seed}', rng, pick(), train))
      continue
    chosen = _cases()[step.kind]
    operands = [fit(rng, pick(), operand) for operand in chosen.operands]
    if not chosen.grad:
      operands = jax.tree.map(lax.stop_gradient, operands)
    results = [r for r in jax.tree.leaves(chosen.f(*operands)) if r.size]
    if results:
      values.append(_tamed(results[rng.integers(len(results))]))
  other = values[np.random.default_rng(mixed.seed).integers(len(values))]
  return [values[-1], other]


def functions(mixed: Mixed) -> tuple[Any, Callable[..., Any], Callable[..., Any], Any]:
  """The program as `(variables, infer, train, x)`."""
  data = np.random.default_rng([mixed.seed, 1]).normal(size=(_ROWS, 3, 4))
  scope = _Scope()

  mesh, spec = (
    jax.sharding.Mesh(np.array(jax.devices()[:2]), ('batch',)),
    jax.sharding.PartitionSpec,
  )

  def run(variables: Any, x: Any, train: bool) -> Any:
    own = _Scope(variables)
    values = _apply(own, mixed, x, train)
    return values, own.new

  def inside(variables: Any, x: Any, train: bool) -> Any:
    if not mixed.manual:
      return run(variables, x, train)

    def on_device(variables: Any, x: Any) -> Any:
      values, new = run(variables, x, train)
      return [v[None] for v in values], jax.tree.map(lambda a: lax.pmean(a, 'batch'), new)

    # Each device has data of its own.
    both = jnp.concatenate([x, jnp.cos(x)])
    return jax.shard_map(
      on_device,
      mesh=mesh,
      in_specs=(spec(), spec('batch')),
      out_specs=(spec('batch'), spec()),
      check_vma=False,
    )(variables, both)

  def made(x: Any) -> Any:
    return _apply(scope, mixed, x, False)

  shaped = made
  if mixed.manual:
    shaped = jax.shard_map(made, mesh=mesh, in_specs=spec(), out_specs=spec(), check_vma=False)
  jax.eval_shape(shaped, jax.ShapeDtypeStruct(data.shape, data.dtype))
  infer = lambda variables, x: inside(variables, x, False)[0]
  train = lambda variables, x: inside(variables, x, True)
  return scope.made, infer, train, data


class Outcome(NamedTuple):
  """What a program showed.

  Attributes:
    verdict: 'held', 'not finite' or 'disconnected'.
    worst: the largest distance.
    removed: number of elements that were cut from the variables.
  """

  verdict: str
  worst: float = 0.0
  removed: int = 0


def tolerance(program: jaxprs.Program) -> float:
  """How far results may differ: less precise types round to steps that are far apart."""
  types = {getattr(aval, 'dtype', None) for aval in program.avals}
  names = {str(eqn.primitive) for eqn in program.equations}
  if 'reduce_precision' in names or types & {np.dtype('float16'), np.dtype(jnp.bfloat16)}:
    return 2e-2
  return 2e-4 if np.dtype('float32') in types else 1e-8


def check(mixed: Mixed) -> Outcome:
  """The law in inference, in training with state, and for gradients.

  Raises:
    AssertionError: it does not hold.
  """
  variables, infer, train, x = functions(mixed)
  rng = np.random.default_rng([mixed.seed, 2])
  dead = laws.random_dead(
    variables, rng.uniform(0.2, 0.7), mixed.seed, emptied=bool(rng.random() < 0.1)
  )
  outs = (None, 'batch_stats')
  try:
    plan = slim_jax.plan(infer, variables, x, dead=dead, also=[(train, (x,), outs)])
  except DisconnectedError:
    return Outcome('disconnected')
  compared = both(plan, infer, train, outs, inference=mixed.seed % 3 == 0)
  # NumPy's arrays are sliced without compiling anything.
  whole = jax.tree.map(np.asarray, variables)
  arrays = (slim_jax.mask(whole, dead), plan.slice(whole), x)
  got, want = jax.tree.map(np.asarray, programs.compiled(compared, *arrays)(*arrays))
  if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(want)):
    return Outcome('not finite')
  allowed = tolerance(jaxprs.trace(train, variables, x)[0])
  worst = 0.0
  for name in want:
    cut = want[name] if name in ('inference', 'training') else laws.sliced(plan, want[name])
    here = laws.distance(got[name], cut, floor=0.1 if name == 'gradients' else 1e-2)
    assert here < allowed, f'{name}: {here:.2g} in {mixed}'
    worst = max(worst, here / allowed)
  removed = sum(int(np.prod(c.shape)) - int(np.prod(c.thin_shape)) for c in plan.cuts.values())
  return Outcome('held', worst, removed)


def both(plan: Any, infer: Any, train: Any, outs: Any, *, inference: bool) -> Callable[..., Any]:
  """Both sides of the law in one function, so that one compilation serves both."""

  def of(infer: Any, train: Any, variables: Any, x: Any) -> dict[str, Any]:
    floats, whole = laws.differentiable(variables)

    def loss(floats: Any) -> Any:
      results = train(whole(floats), x)
      total = sum(
        jnp.sum(out * jnp.cos(jnp.arange(out.size, dtype=out.dtype)).reshape(out.shape))
        for out in results[0]
      )
      return total, results

    gradients, results = jax.grad(loss, has_aux=True)(floats)
    return {
      'inference': infer(variables, x) if inference else (),
      'training': results[0],
      'state': laws.declared(outs, results),
      'gradients': gradients,
    }

  thin_infer, thin_train = slim_jax.thin(infer, plan), slim_jax.thin(train, plan, outs=outs)
  return lambda masked, thin, x: (of(thin_infer, thin_train, thin, x), of(infer, train, masked, x))


def shortened(mixed: Mixed, fails: Callable[[Mixed], bool]) -> Mixed:
  """Leaves out steps of a program that fails, as long as it fails."""
  number = 0
  while number < len(mixed.steps):
    shorter = mixed._replace(steps=mixed.steps[:number] + mixed.steps[number + 1 :])
    if shorter.steps and fails(shorter):
      mixed, number = shorter, 0
    else:
      number += 1
  return mixed
