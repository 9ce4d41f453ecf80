"""Element by element: results keep the axes of their operands.

Operands are scalars, have the shape of the result, or (in newer JAX) have axes of
size 1 that stretch. What differs between families is only where the result is zero.
"""

import functools
from typing import Any

import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Fact, Rule, full_support, register, run_thin
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p


def stretch(support: Region, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Region:
  """The support of an operand of `shape`, seen from a result of `out_shape`."""
  if support.empty or not shape:
    return support if support.empty else regions.whole(len(out_shape))
  return Region(
    tuple(
      None if n != m else axis for axis, n, m in zip(support.axes, shape, out_shape, strict=True)
    )
  )


def shrink(live: Region, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Region:
  """What `live` of a result of `out_shape` reads of an operand of `shape`."""
  if live.empty or not shape:
    return live if live.empty else regions.whole(0)
  return Region(
    tuple(None if n != m else axis for axis, n, m in zip(live.axes, shape, out_shape, strict=True))
  )


def operands(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """Support of each operand in the axes of the result."""
  shape = eqn.out_avals[0].shape
  return [stretch(f.support, a.shape, shape) for f, a in zip(facts, eqn.in_avals, strict=True)]


def any_nonzero(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """0 where every operand is 0: x + y, tanh(x), max(x, y), x < y."""
  return [functools.reduce(regions.union, operands(eqn, facts))]


def all_nonzero(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """0 where any operand is 0: x * y."""
  return [functools.reduce(regions.intersect, operands(eqn, facts))]


def first_nonzero(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """0 where the first operand is 0, if the second is nowhere known to be: x / y, not 0 / 0."""
  first, second = operands(eqn, facts)
  return [first if second.is_whole else regions.whole(len(eqn.out_avals[0].shape))]


def shifted(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """0 where the first operand is 0: x << y."""
  return operands(eqn, facts)[:1]


def power(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """x ** n is 0 with x for n > 0."""
  return (any_nonzero if eqn.params['y'] > 0 else full_support)(eqn, facts)


def selected(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """select_n(which, *cases): 0 where all cases are."""
  which, *cases = operands(eqn, facts)
  return [cases[0] if which.empty else functools.reduce(regions.union, cases)]


def clamped(eqn: Equation, facts: list[Fact]) -> list[Region]:
  """clamp(low, x, high): 0 with x where low <= 0 <= high."""
  low, x, high = facts
  if low.known is not None and high.known is not None and low.known.max() <= 0 <= high.known.min():
    return [operands(eqn, facts)[1]]
  return any_nonzero(eqn, facts)


def beside_constant(function: Any, otherwise: Any) -> Any:
  """Two operands of which one may be a constant c: 0 where f(0, c) == 0, as min(x, 6)."""

  def support(eqn: Equation, facts: list[Fact]) -> list[Region]:
    x, y = facts
    for fact, i, at_zero in (
      (x, 0, lambda: function(np.zeros_like(y.known), y.known)),
      (y, 1, lambda: function(x.known, np.zeros_like(x.known))),
    ):
      if facts[1 - i].known is not None and fact.known is None and not np.any(at_zero()):
        return [operands(eqn, facts)[i]]
    return otherwise(eqn, facts)

  return support


def reads(eqn: Equation, facts: list[Fact], live: list[Region]) -> list[Region]:
  """Every operand where the result is live."""
  del facts
  shape = eqn.out_avals[0].shape
  return [shrink(live[0], a.shape, shape) for a in eqn.in_avals]


def elementwise(support: Any) -> Rule:
  """The rule of an elementwise operation that is zero where `support` says."""
  return Rule(support, reads, run_thin)


register(
  [
    p.abs_p,
    p.asin_p,
    p.asinh_p,
    p.atan_p,
    p.atanh_p,
    p.cbrt_p,
    p.ceil_p,
    p.conj_p,
    p.convert_element_type_p,
    p.copy_p,
    p.erf_p,
    p.erf_inv_p,
    p.expm1_p,
    p.floor_p,
    p.imag_p,
    p.log1p_p,
    p.name_p,
    p.neg_p,
    p.population_count_p,
    p.real_p,
    p.reduce_precision_p,
    p.round_p,
    p.sign_p,
    p.sin_p,
    p.sinh_p,
    p.sqrt_p,
    p.square_p,
    p.tan_p,
    p.tanh_p,
    p.stop_gradient_p,
  ],
  elementwise(any_nonzero),
)
register(
  [p.add_p, p.add_jaxvals_p, p.sub_p, p.or_p, p.xor_p, p.complex_p], elementwise(any_nonzero)
)
register(
  [
    p.acos_p,
    p.acosh_p,
    p.bessel_i0e_p,
    p.bessel_i1e_p,
    p.clz_p,
    p.cos_p,
    p.cosh_p,
    p.digamma_p,
    p.erfc_p,
    p.exp_p,
    p.exp2_p,
    p.is_finite_p,
    p.lgamma_p,
    p.log_p,
    p.logistic_p,
    p.not_p,
    p.rsqrt_p,
    p.atan2_p,
    p.nextafter_p,
    p.igamma_p,
    p.igammac_p,
    p.polygamma_p,
    p.zeta_p,
    *jaxprs.newer('log2_p', 'one_minus_square_p'),
  ],
  elementwise(full_support),
)
register([p.mul_p, p.and_p], elementwise(all_nonzero))
register([p.div_p, p.rem_p], elementwise(first_nonzero))
register(
  [p.shift_left_p, p.shift_right_logical_p, p.shift_right_arithmetic_p], elementwise(shifted)
)
register([p.integer_pow_p], elementwise(power))
register([p.select_n_p], elementwise(selected))
register([p.clamp_p], elementwise(clamped))
for _primitive, _function, _otherwise in [
  (p.max_p, np.maximum, any_nonzero),
  (p.min_p, np.minimum, any_nonzero),
  (p.lt_p, np.less, any_nonzero),
  (p.gt_p, np.greater, any_nonzero),
  (p.ne_p, np.not_equal, any_nonzero),
  (p.eq_p, np.equal, full_support),
  (p.le_p, np.less_equal, full_support),
  (p.ge_p, np.greater_equal, full_support),
  (p.pow_p, lambda x, y: ~(y > 0), full_support),  # 0 ** y is 0 for y > 0 alone
]:
  register([_primitive], elementwise(beside_constant(_function, _otherwise)))
