"""Programs under the law, whatever they compute: thin evaluation equals full evaluation.

`check` takes a function of arrays, cuts slices out of its operands and results, and compares the
passes of `channels.analysis` with the function itself at full width on zero-filled operands:
where results are zero, what is read, the values and the gradients.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Fact
from slim_jax.jaxprs import Program


class Operand(NamedTuple):
  """One operand of a function.

  Attributes:
    shape: of the full array.
    dtype: of the array.
    fill: which values, a key of `_FILLS`, or a size n: indices in [0, n).
    whole: whether it never has dead slices.
  """

  shape: tuple[int, ...]
  dtype: str = 'float64'
  fill: str | int = 'any'
  whole: bool = False

  @property
  def struct(self) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(self.shape, self.dtype)

  @property
  def moves(self) -> bool:
    """Whether it has gradients that are compared."""
    return jax.numpy.issubdtype(self.dtype, np.floating)


class Case(NamedTuple):
  """A function under the law.

  Attributes:
    name: what it shows.
    f: of arrays, giving an array or a sequence of arrays.
    operands: what it is called with.
    grad: whether its gradients are compared (floating operands and results).
    single: whether it is one equation.
    named: whether it runs within an axis named 'batch', of size 2.
    manual: whether that is an axis of `shard_map`, not of `vmap`.
    rtol: relative tolerance.
  """

  name: str
  f: Callable[..., Any]
  operands: tuple[Operand, ...]
  grad: bool = True
  single: bool = True
  named: bool = False
  manual: bool = False
  rtol: float = 1e-12


_FILLS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
  'any': lambda x: x,
  'positive': lambda x: np.abs(x) + 0.25,
  'nonzero': lambda x: x + np.where(x < 0, -0.25, 0.25),
  'unit': lambda x: np.tanh(x) * 0.9,
  'above one': lambda x: np.abs(x) + 1.25,
}


def draw(rng: np.random.Generator, operand: Operand) -> np.ndarray:
  """Random values: of both signs, with ties and zeros among them."""
  shape, dtype = operand.shape, np.dtype(operand.dtype)
  if isinstance(operand.fill, int):
    return rng.integers(0, operand.fill, shape).astype(dtype)
  if dtype.kind == 'b':
    return rng.random(shape) < 0.5
  if dtype.kind in 'iu':
    values = rng.integers(0 if dtype.kind == 'u' else -3, 4, shape)
    return (np.abs(values) + 1 if operand.fill == 'positive' else values).astype(dtype)
  coarse = rng.integers(-4, 5, shape) / 2
  values = _FILLS[operand.fill](np.where(rng.random(shape) < 0.5, coarse, rng.normal(size=shape)))
  if dtype.kind == 'c':
    values = values + 1j * rng.normal(size=shape)
  return values.astype(dtype)


def draw_region(rng: np.random.Generator, shape: Sequence[int]) -> Region:
  """A random region, sometimes empty, often with whole axes."""
  if rng.random() < 0.08:
    return regions.nothing(len(shape))
  return regions.normal(None if rng.random() < 0.4 else rng.random(n) < 0.65 for n in shape)


def mask(region: Region, shape: Sequence[int]) -> np.ndarray:
  """The region as a bool array of the full shape."""
  result = np.zeros(shape, bool)
  result[_index(region, shape)] = not region.empty
  return result


def part(array: np.ndarray, region: Region, shape: Sequence[int]) -> np.ndarray:
  """What a thin array holds of a full one, which may have axes in front."""
  front = tuple(np.arange(n) for n in array.shape[: array.ndim - len(shape)])
  return array[np.ix_(*front, *_indices(region, shape))] if array.ndim else array


def _indices(region: Region, shape: Sequence[int]) -> list[np.ndarray]:
  return [
    np.flatnonzero(regions.vector(axis, n)) for axis, n in zip(region.axes, shape, strict=True)
  ]


def _index(region: Region, shape: Sequence[int]) -> Any:
  return np.ix_(*_indices(region, shape)) if shape else ()


def lifted(case: Case, f: Callable[..., Any]) -> Callable[..., Any]:
  """`f` of single operands as a function of what `check` calls it with."""
  if not case.manual:
    return jax.vmap(f, axis_name='batch') if case.named else f

  def on_device(*operands: Any) -> Any:
    return jax.tree.map(lambda x: x[None], f(*[x[0] for x in operands]))

  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('batch',))
  spec = jax.sharding.PartitionSpec('batch')
  return jax.shard_map(on_device, mesh=mesh, in_specs=spec, out_specs=spec)


def program_of(case: Case, f: Callable[..., Any] | None = None) -> Program:
  """The traced program of the case (or of another function of its operands)."""
  traced = []

  def tracing(*operands: Any) -> Any:
    traced.append(programs.trace(f or case.f, *map(jaxprs.struct, operands))[0])
    return ()

  size = (2,) if case.named else ()
  jax.eval_shape(
    lifted(case, tracing),
    *[jax.ShapeDtypeStruct((*size, *o.shape), o.dtype) for o in case.operands],
  )
  return traced[0]


def thin(program: Program, supports: list[Region], demands: list[Region]) -> Callable[..., Any]:
  """The program as a function of thin operands, giving thin results (those that are wanted)."""
  needed = analysis.analyse(program, list(map(Fact, supports)), demands)

  def thin_f(*arrays: Any) -> list[Any]:
    results = analysis.run(program, needed, arrays, supports, demands)
    for result, demand in zip(results, demands, strict=True):
      assert (result is None) == demand.empty
    return [r for r in results if r is not None]

  return thin_f


def _pulled(f: Callable[..., Any], moving: Sequence[int], turning: Sequence[int]) -> Any:
  """`(operands, cotangents) -> (results, gradients of moving operands)`; `turning` results pull."""

  def both(operands: list[Any], cotangents: list[Any]) -> Any:
    def moved(*values: Any) -> Any:
      given = list(operands)
      for i, value in zip(moving, values, strict=True):
        given[i] = value
      results = jax.tree.leaves(f(*given))
      return [results[i] for i in turning], results

    if not moving or not turning:
      return moved(*[operands[i] for i in moving])[1], []
    _, pull, results = jax.vjp(moved, *[operands[i] for i in moving], has_aux=True)
    return results, list(pull(cotangents))

  return both


def compiled(f: Callable[..., Any], *args: Any) -> Any:
  """`f` compiled with little effort: it runs once or twice."""
  options = {'xla_backend_optimization_level': 0, 'xla_llvm_disable_expensive_passes': True}
  return jax.jit(f).lower(*args).compile(compiler_options=options)


class Check:
  """Compares thin evaluation of one case with its full evaluation."""

  def __init__(self, case: Case, rng: np.random.Generator):
    self.case = case
    self.rng = rng
    self.program = program_of(case)
    self.avals = [self.program.avals[i] for i in self.program.outputs]
    self.moving = [i for i, o in enumerate(case.operands) if o.moves and case.grad]
    self.turning = [
      i for i, a in enumerate(self.avals) if jax.numpy.issubdtype(a.dtype, np.floating)
    ]
    self.pulled = _pulled(lifted(case, case.f), self.moving, self.turning)
    values, slopes = self.values(), self.slopes()
    self.full = compiled(self.pulled, values, slopes)

  def values(self) -> list[np.ndarray]:
    copies = 2 if self.case.named else 1
    drawn = [np.stack([draw(self.rng, o) for _ in range(copies)]) for o in self.case.operands]
    return drawn if self.case.named else [x[0] for x in drawn]

  def slopes(self) -> list[np.ndarray]:
    front = (2,) if self.case.named else ()
    return [
      self.rng.normal(size=(*front, *self.avals[i].shape)).astype(self.avals[i].dtype)
      for i in self.turning
    ]

  def run(self, supports: list[Region], demands: list[Region], *, evaluate: bool = True) -> None:
    """The laws for these supports of the operands and these demands of the results.

    Args:
      supports: where each operand may be non-zero.
      demands: what is wanted of each result.
      evaluate: whether to compile and run the thin program too, which is what takes time.
    """
    case, program = self.case, self.program
    shapes = [o.shape for o in case.operands]
    outs = [a.shape for a in self.avals]
    inside = [mask(s, shape) for s, shape in zip(supports, shapes, strict=True)]
    wanted = [mask(d, shape) for d, shape in zip(demands, outs, strict=True)]
    needed = analysis.analyse(program, list(map(Fact, supports)), demands)

    def zeroed(arrays: list[np.ndarray], masks: list[np.ndarray]) -> list[np.ndarray]:
      return [np.where(m, a, np.zeros((), a.dtype)) for a, m in zip(arrays, masks, strict=True)]

    values = zeroed(self.values(), inside)
    slopes = zeroed(self.slopes(), [wanted[i] for i in self.turning])
    results, gradients = jax.tree.map(np.asarray, self.full(values, slopes))

    # Where results are zero.
    for number, result, shape in zip(program.outputs, results, outs, strict=True):
      outside = np.where(
        mask(needed.facts[number].support, shape), np.zeros((), result.dtype), result
      )
      np.testing.assert_array_equal(outside, np.zeros_like(outside), 'not zero outside the support')

    # What is not read may be anything that the support allows.
    read = [mask(needed.live[i], shape) for i, shape in zip(program.inputs, shapes, strict=True)]
    others = [
      np.where(r, v, o) for r, v, o in zip(read, values, zeroed(self.values(), inside), strict=True)
    ]
    perturbed, _ = jax.tree.map(np.asarray, self.full(others, slopes))
    for result, other, m in zip(results, perturbed, wanted, strict=True):
      self._equal(*zeroed([other, result], [m, m]), 'depends on what is not read')

    # Values and gradients of thin evaluation.
    if not evaluate:
      return
    thin_values = [part(v, s, shape) for v, s, shape in zip(values, supports, shapes, strict=True)]
    there = [i for i, d in enumerate(demands) if not d.empty]
    turning = [n for n, i in enumerate(there) if i in self.turning]
    thin_slopes = [
      part(slope, demands[i], outs[i])
      for i, slope in zip(self.turning, slopes, strict=True)
      if i in there
    ]
    pulled = _pulled(lifted(case, thin(program, supports, demands)), self.moving, turning)
    thin_results, thin_gradients = jax.tree.map(
      np.asarray, compiled(pulled, thin_values, thin_slopes)(thin_values, thin_slopes)
    )
    for i, result in zip(there, thin_results, strict=True):
      self._equal(result, part(results[i], demands[i], outs[i]), f'result {i}')
    if thin_gradients:
      for i, gradient, full in zip(self.moving, thin_gradients, gradients, strict=True):
        # The law speaks of live indices; a scalar that is zero is an input still, but has none.
        if shapes[i] or not supports[i].empty:
          self._equal(gradient, part(full, supports[i], shapes[i]), f'gradient of operand {i}')

  def _equal(self, actual: np.ndarray, desired: np.ndarray, what: str) -> None:
    assert actual.dtype == desired.dtype, what
    if desired.dtype.kind in 'fcV':
      np.testing.assert_allclose(actual, desired, self.case.rtol, self.case.rtol, err_msg=what)
    else:
      np.testing.assert_array_equal(actual, desired, what)


def check(case: Case, rng: np.random.Generator, *, trials: int, analyses: int = 20) -> None:
  """The laws for random supports and demands.

  Args:
    case: what to check.
    rng: where randomness comes from.
    trials: how often all laws are checked.
    analyses: how often, beyond that, what is zero and what is read are checked.
  """
  checked = Check(case, rng)
  for n in range(trials + analyses):
    supports = [
      regions.whole(len(o.shape)) if o.whole else draw_region(rng, o.shape) for o in case.operands
    ]
    demands = [draw_region(rng, a.shape) for a in checked.avals]
    checked.run(supports, demands, evaluate=n < trials)
