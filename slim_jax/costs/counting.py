"""Counting: parameters, multiply-accumulates and activations of any function, from its jaxpr."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

from slim_jax import batch_norms, jaxprs, tree
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p


@dataclasses.dataclass(frozen=True)
class EquationCost:
  """One contraction: its module path, what it is, and its multiply-accumulates in all its runs."""

  module: str
  equation: str
  macs: int


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a function costs.

  Attributes:
    params: number of parameters: elements of the first argument without running statistics.
    macs: multiply-accumulates of all convolutions and matrix products (the paper's FLOPs are
      twice that: it counts multiplication and addition).
    param_bytes: memory of the parameters.
    activation_bytes: sum over equations of the bytes of their results that convolutions,
      matrix products and pooling write: a measure of memory traffic, not a peak.
    equations: every convolution and matrix product, in order.
    loops: `while` loops, whose number of turns is not known: counted as one turn each.
    value_bytes: sum of the bytes of the results of all operations in all their runs, those on
      parameters alone too: the activation memory of training if nothing is fused, freed or
      recomputed. Operations that hold others (calls, loops, branches) count as what they hold.
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
    """MACs by module path, in order of first use."""
    total: dict[str, int] = {}
    for eqn in self.equations:
      total[eqn.module] = total.get(eqn.module, 0) + eqn.macs
    return total


def count(f: Callable[..., Any], *args: Any) -> Cost:
  """Counts what `f(*args)` does, full or thin alike; nothing is run.

  Args:
    f: a function whose first argument holds the variables.
    *args: arrays or `jax.ShapeDtypeStruct`s. MACs are for the batch size given here.

  Returns:
    A `Cost`. Convolutions count `output elements * kernel elements per output`, padding
    included; transposed convolutions do not count the zeros between inputs. A `scan` counts
    as often as it turns, a `cond` as its dearest branch.

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
  """`count` of what has been traced, with the variables that were its first argument."""
  found: list[EquationCost] = []
  totals = _Totals()
  _walk(program, 1, '', found, totals)
  statistics = {path for norm in batch_norms.find(variables) for path in norm.statistics}
  params = param_bytes = 0
  for path, leaf in tree.flatten(variables).items():
    if path not in statistics and path[:1] != ('batch_stats',):
      size = math.prod(leaf.shape)
      params += size
      param_bytes += size * leaf.dtype.itemsize
  return Cost(
    params,
    sum(e.macs for e in found),
    param_bytes,
    totals.activation_bytes,
    tuple(found),
    totals.loops,
    totals.value_bytes,
  )


@dataclasses.dataclass
class _Totals:
  activation_bytes: int = 0
  loops: int = 0
  value_bytes: int = 0


def _walk(
  program: Program, times: int, prefix: str, found: list[EquationCost], totals: _Totals
) -> None:
  for eqn in program.equations:
    module = '/'.join(part for part in (prefix, eqn.module) if part)
    if eqn.primitive in _MACS:
      found.append(EquationCost(module, str(eqn), times * _MACS[eqn.primitive](eqn)))
    written = times * sum(math.prod(a.shape) * a.dtype.itemsize for a in eqn.out_avals)
    totals.activation_bytes += written * (eqn.primitive in _WRITES)
    totals.value_bytes += written * (eqn.primitive not in _HOLDS)
    totals.loops += times * (eqn.primitive is p.while_p)
    turns = times * eqn.params['length'] if eqn.primitive is p.scan_p else times
    inner = []
    for body in jaxprs.bodies(eqn):
      inner.append(([], _Totals()))
      _walk(body, turns, module, *inner[-1])
    if eqn.primitive is p.cond_p and inner:
      inner = [max(inner, key=lambda branch: sum(e.macs for e in branch[0]))]
    for equations, part in inner:
      found.extend(equations)
      totals.activation_bytes += part.activation_bytes
      totals.loops += part.loops
      totals.value_bytes += part.value_bytes


def _dot_macs(eqn: Equation) -> int:
  """Result elements times the length of the contraction."""
  (contract, _), _ = eqn.params['dimension_numbers']
  return math.prod(eqn.out_avals[0].shape) * math.prod(eqn.in_avals[0].shape[i] for i in contract)


def _conv_macs(eqn: Equation) -> int:
  """Result elements times kernel elements of one output channel."""
  kernel = eqn.in_avals[1].shape
  outputs = kernel[eqn.params['dimension_numbers'].rhs_spec[0]]
  macs = math.prod(eqn.out_avals[0].shape) * (math.prod(kernel) // max(outputs, 1))
  return macs // math.prod(eqn.params['lhs_dilation'])


_MACS = {p.dot_general_p: _dot_macs, p.conv_general_dilated_p: _conv_macs}
_WRITES = {
  p.dot_general_p,
  p.conv_general_dilated_p,
  p.reduce_window_max_p,
  p.reduce_window_sum_p,
  p.reduce_window_min_p,
  p.reduce_window_p,
}
_HOLDS = {p.custom_jvp_call_p, p.custom_vjp_call_p, p.remat_p, p.scan_p, p.while_p, p.cond_p}
