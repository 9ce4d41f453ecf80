"""Fourier transforms and linear algebra: the last axes are read whole, the others pass through."""

from collections.abc import Callable
import functools
from typing import Any

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Rule, full_support, live_parts, register
from slim_jax.jaxprs import primitives as p


def _front(region: Region, count: int, rank: int) -> Region:
  """The region of an array of `rank` with the first `count` axes of `region`, the others whole."""
  return region.with_axes([*region.axes[:count], *[None] * (rank - count)])


def _batched(count: Callable[[Context], int], *, linear: bool) -> Rule:
  """The rule of an operation on the last axes of its operands, for each index of the first.

  Args:
    count: returns the number of axes that pass through, the first of all operands and results.
    linear: whether a result is zero where its operand, the only one, is.
  """

  def support(ctx: Context) -> list[Region]:
    if not linear:
      return full_support(ctx)
    (held,), rank = ctx.supports, len(ctx.eqn.out_avals[0].shape)
    return [_front(held, count(ctx), rank)]

  def reads(ctx: Context) -> list[Region]:
    n = count(ctx)
    front = functools.reduce(regions.union, [_front(live, n, n) for live in ctx.live])
    return [_front(front, n, len(a.shape)) for a in ctx.eqn.in_avals]

  def evaluate(ctx: Context, *arrays: Any) -> list[Any]:
    ranks = [len(a.shape) for a in ctx.eqn.out_avals]
    have = [_front(ctx.reads[0], count(ctx), rank) for rank in ranks]
    return live_parts(ctx, jaxprs.bind(ctx.eqn, *arrays), have)

  return Rule(support, reads, evaluate)


def _before_lengths(ctx: Context) -> int:
  return len(ctx.eqn.in_avals[0].shape) - len(ctx.params['fft_lengths'])


def _before_matrix(ctx: Context) -> int:
  return len(ctx.eqn.in_avals[0].shape) - 2


def _before_vector(ctx: Context) -> int:
  return len(ctx.eqn.in_avals[0].shape) - 1


register([p.fft_p], _batched(_before_lengths, linear=True))
register(
  [
    p.cholesky_p,
    p.eig_p,
    p.eigh_p,
    p.hessenberg_p,
    p.householder_product_p,
    p.lu_p,
    p.qr_p,
    p.schur_p,
    p.svd_p,
    jaxprs.symmetric_product_p,
    p.triangular_solve_p,
    p.tridiagonal_p,
  ],
  _batched(_before_matrix, linear=False),
)
register([p.tridiagonal_solve_p, *jaxprs.pivots_ps], _batched(_before_vector, linear=False))
