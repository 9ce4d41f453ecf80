"""Element by element: results keep the axes of their operands.

Operands are scalars, have the shape of the result, or (in newer JAX) have axes of size 1 that
stretch. Families differ only in where the result is zero.
"""

from collections.abc import Callable
import functools
from typing import Any

import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Rule, full_support, register, run_thin
from slim_jax.jaxprs import primitives as p


def stretch(support: Region, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Region:
  """The support of an operand of `shape`, seen from a result of `out_shape`."""
  if not shape:
    return support.with_axes((None,) * len(out_shape))
  return _tied(support, shape, out_shape)


def shrink(live: Region, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Region:
  """What `live` of a result of `out_shape` reads of an operand of `shape`."""
  return _tied(live, shape, out_shape) if shape else live.with_axes(())


def _tied(region: Region, shape: tuple[int, ...], out_shape: tuple[int, ...]) -> Region:
  """The region with every axis that stretches made whole."""
  if shape == out_shape:
    return region
  return region.with_axes(
    None if n != m else axis for axis, n, m in zip(region.axes, shape, out_shape, strict=True)
  )


def operands(ctx: Context) -> list[Region]:
  """Support of each operand in the axes of the result."""
  shape = ctx.eqn.out_avals[0].shape
  return [stretch(s, a.shape, shape) for s, a in zip(ctx.supports, ctx.eqn.in_avals, strict=True)]


def any_nonzero(ctx: Context) -> list[Region]:
  """0 where every operand is 0: x + y, tanh(x), max(x, y), x < y."""
  return [functools.reduce(regions.union, operands(ctx))]


def all_nonzero(ctx: Context) -> list[Region]:
  """0 where any operand is 0: x * y."""
  return [functools.reduce(regions.intersect, operands(ctx))]


def first_nonzero(ctx: Context) -> list[Region]:
  """0 where the first operand is 0, if the second is nowhere known to be: x / y, not 0 / 0."""
  first, second = operands(ctx)
  return [first] if second.is_whole else full_support(ctx)


def shifted(ctx: Context) -> list[Region]:
  """0 where the first operand is 0: x << y."""
  return operands(ctx)[:1]


def power(ctx: Context) -> list[Region]:
  """x ** n is 0 with x for n > 0."""
  return any_nonzero(ctx) if ctx.params['y'] > 0 else full_support(ctx)


def selected(ctx: Context) -> list[Region]:
  """select_n(which, *cases): 0 where all cases are."""
  which, *cases = operands(ctx)
  return [cases[0] if which.empty else functools.reduce(regions.union, cases)]


def clamped(ctx: Context) -> list[Region]:
  """clamp(low, x, high): 0 with x where low <= 0 <= high."""
  low, _, high = (fact.known for fact in ctx.facts)
  if low is not None and high is not None and low.max() <= 0 <= high.min():
    return [operands(ctx)[1]]
  return any_nonzero(ctx)


def beside_constant(
  function: Callable[..., Any], otherwise: Callable[[Context], list[Region]]
) -> Callable[[Context], list[Region]]:
  """Two operands of which one may be a constant c: 0 where f(0, c) == 0, as min(x, 6)."""

  def support(ctx: Context) -> list[Region]:
    x, y = (fact.known for fact in ctx.facts)
    if x is None and y is not None and not np.any(function(np.zeros_like(y), y)):
      return [operands(ctx)[0]]
    if y is None and x is not None and not np.any(function(x, np.zeros_like(x))):
      return [operands(ctx)[1]]
    return otherwise(ctx)

  return support


def reads(ctx: Context) -> list[Region]:
  """Every operand where the result is live."""
  shape = ctx.eqn.out_avals[0].shape
  return [shrink(ctx.live[0], a.shape, shape) for a in ctx.eqn.in_avals]


def elementwise(support: Callable[[Context], list[Region]]) -> Rule:
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
    p.eq_to_p,
    p.le_to_p,
    p.lt_to_p,
    p.igamma_grad_a_p,
    *jaxprs.polynomial_ps,
    *jaxprs.random_gamma_grad_ps,
    p.regularized_incomplete_beta_p,
    *jaxprs.newer('log2_p', 'one_minus_square_p'),
  ],
  elementwise(full_support),
)
register([p.mul_p, p.and_p, *jaxprs.mulhi_ps], elementwise(all_nonzero))
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
