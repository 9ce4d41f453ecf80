"""Counts parameters, multiply-accumulates and activations of any function from its jaxpr."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from slim_jax import batch_norms, jaxprs, shardings, tree
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


@dataclasses.dataclass(frozen=True)
class EquationCost:
  """The cost of one contraction.

  Attributes:
    module: module path of the equation.
    equation: the equation as text.
    macs: multiply-accumulates of all its runs.
  """

  module: str
  equation: str
  macs: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """The cost of a function.

  Attributes:
    params: number of parameters: elements of the first argument without running statistics.
    macs: multiply-accumulates of all convolutions and matrix products. (The paper's FLOPs are
      twice as many, since it counts multiplications and additions.)
    param_bytes: memory of the parameters, in bytes.
    activation_bytes: bytes that convolutions, matrix products and pooling write, in all their runs:
      a measure of memory traffic, not of peak memory.
    equations: every convolution and matrix product, in order.
    loops: number of `while` loops. Their number of iterations is unknown and counts as one.
    value_bytes: bytes of the results of all operations in all their runs, including operations on
      parameters only: the activation memory of training if nothing is fused, freed or recomputed.
      Calls, loops and branches count as the operations inside them.
  """

  params: int
  macs: int
  param_bytes: int
  activation_bytes: int
  equations: tuple[EquationCost, ...]
  loops: int
  value_bytes: int

  @property
  def by_module(self) -> dict[str, int]:
    """Returns MACs by module path, in order of first use."""
    total: dict[str, int] = {}
    for eqn in self.equations:
      total[eqn.module] = total.get(eqn.module, 0) + eqn.macs
    return total


def count(f: Callable[..., Any], *args: Any) -> Cost:
  """Counts the cost of `f(*args)`, for full and thin functions alike, without running it.

  Args:
    f: a function whose first argument holds the variables.
    *args: arrays or `jax.ShapeDtypeStruct`s. MACs are for the batch size given here.

  Returns:
    A `Cost`. A convolution counts `output elements * kernel elements per output`, including
    padding; a transposed convolution without the zeros between inputs. A `scan` counts once per
    iteration, a `cond` as the branch with most MACs, a `shard_map` on all of its devices.

  Example:
    >>> import jax.numpy as jnp, slim_jax
    >>> dense = {'kernel': jnp.ones((784, 10)), 'bias': jnp.zeros(10)}
    >>> cost = slim_jax.count(lambda v, x: x @ v['kernel'] + v['bias'][None], dense,
    ...                       jnp.ones((1, 784)))
    >>> cost.params, cost.macs
    (7850, 7840)
  """
  program, _ = jaxprs.trace(f, *args)
  return of_program(program, args[0])


def of_program(program: Program, variables: Any) -> Cost:
  """Returns `count` of a traced function whose first argument was `variables`."""
  totals = _Totals()
  _walk(program, 1, '', totals)
  statistics = {path for norm in batch_norms.find(variables) for path in norm.statistics}
  params = param_bytes = 0
  for path, leaf in tree.flatten(variables).items():
    if path not in statistics and path[:1] != ('batch_stats',):
      size = math.prod(leaf.shape)
      params += size
      param_bytes += size * leaf.dtype.itemsize
  return Cost(
    params,
    totals.macs,
    param_bytes,
    totals.activation_bytes,
    tuple(totals.equations),
    totals.loops,
    totals.value_bytes,
  )


@dataclasses.dataclass
class _Totals:
  """What has been counted so far; see `Cost`."""

  equations: list[EquationCost] = dataclasses.field(default_factory=list)
  activation_bytes: int = 0
  loops: int = 0
  value_bytes: int = 0

  @property
  def macs(self) -> int:
    return sum(equation.macs for equation in self.equations)

  def add(self, other: '_Totals') -> None:
    self.equations.extend(other.equations)
    self.activation_bytes += other.activation_bytes
    self.loops += other.loops
    self.value_bytes += other.value_bytes


def _walk(program: Program, runs: int, prefix: str, totals: _Totals) -> None:
  """Adds the costs of a program, once for each time that it runs, to the totals."""
  for eqn in program.equations:
    module = '/'.join(part for part in (prefix, eqn.module) if part)
    if eqn.primitive in _MACS:
      totals.equations.append(EquationCost(module, str(eqn), runs * macs(eqn)))
    written = runs * sum(math.prod(a.shape) * a.dtype.itemsize for a in eqn.out_avals)
    totals.activation_bytes += written * (eqn.primitive in _WRITES)
    totals.value_bytes += written * (eqn.primitive not in _HOLDS)
    totals.loops += runs * (eqn.primitive is p.while_p)
    inner_runs = runs * body_runs(eqn)
    inner = []
    for body in jaxprs.bodies(eqn):
      inner.append(_Totals())
      _walk(body, inner_runs, module, inner[-1])
    if eqn.primitive is p.cond_p and inner:
      inner = [max(inner, key=lambda branch: branch.macs)]
    for part in inner:
      totals.add(part)


def macs(eqn: Equation) -> int:
  """Returns the multiply-accumulates of one run of an equation without those inside it."""
  return _MACS[eqn.primitive](eqn) if eqn.primitive in _MACS else 0


def body_runs(eqn: Equation) -> int:
  """Returns how often the body inside an equation runs, on all devices together."""
  if eqn.primitive is p.scan_p:
    return eqn.params['length']
  if eqn.primitive is jaxprs.shard_map_p:
    return shardings.devices(eqn.params['mesh'], tuple(eqn.params['newly_manual_axes']))
  return 1


def _dot_macs(eqn: Equation) -> int:
  """Returns result elements times the length of the contraction."""
  (contract, _), _ = eqn.params['dimension_numbers']
  return math.prod(eqn.out_avals[0].shape) * math.prod(eqn.in_avals[0].shape[i] for i in contract)


def _conv_macs(eqn: Equation) -> int:
  """Returns result elements times kernel elements per output channel."""
  kernel = eqn.in_avals[1].shape
  outputs = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
  macs = math.prod(eqn.out_avals[0].shape) * (math.prod(kernel) // max(outputs, 1))
  return macs // math.prod(eqn.params['lhs_dilation'])


_MACS = {p.dot_general_p: _dot_macs, p.conv_general_dilated_p: _conv_macs}
# Operations whose results `activation_bytes` counts.
_WRITES = {
  p.dot_general_p,
  p.conv_general_dilated_p,
  p.reduce_window_max_p,
  p.reduce_window_sum_p,
  p.reduce_window_min_p,
  p.reduce_window_p,
}
# Operations that hold others, which `value_bytes` counts instead.
_HOLDS = {*jaxprs.CARRYING, p.scan_p, p.while_p, p.cond_p, jaxprs.shard_map_p}
