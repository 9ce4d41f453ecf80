"""Sums of products: dot_general and every form of conv_general_dilated.

A term is zero where either factor is, so a contraction reads only the indices at which both may
be non-zero. This is where channels are saved.
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import regions
from slim_jax.channels.regions import Axis, Region
from slim_jax.channels.rule import (
  Context,
  Rule,
  full_support,
  live_parts,
  read_whole,
  register,
  run_thin,
  run_whole,
)
from slim_jax.jaxprs import Equation
from slim_jax.jaxprs import primitives as p

# dot_general: result axes are batch, then free of the left, then free of the right.


class DotAxes(NamedTuple):
  """Axes of a dot_general: contracted and batch pairs, and the free axes of each side."""

  contract: tuple[tuple[int, int], ...]
  batch: tuple[tuple[int, int], ...]
  free: tuple[tuple[int, ...], ...]


def dot_axes(eqn: Equation) -> DotAxes:
  """Returns what the axes of a dot_general's operands are."""
  (lhs_c, rhs_c), (lhs_b, rhs_b) = eqn.params['dimension_numbers']
  ranks = [len(a.shape) for a in eqn.in_avals]
  free = tuple(
    tuple(i for i in range(rank) if i not in set(c) | set(b))
    for rank, c, b in ((ranks[0], lhs_c, lhs_b), (ranks[1], rhs_c, rhs_b))
  )
  return DotAxes(tuple(zip(lhs_c, rhs_c)), tuple(zip(lhs_b, rhs_b)), free)


def product_support(dims: DotAxes, lhs: Region, rhs: Region) -> Region:
  """Returns the support of a product, whose axes are those of the batch and the free ones."""
  terms = regions.normal(
    (regions.both(lhs.axes[i], rhs.axes[j]) for i, j in dims.contract), empty=lhs.empty or rhs.empty
  )
  return terms.with_axes(
    [regions.both(lhs.axes[i], rhs.axes[j]) for i, j in dims.batch]
    + [lhs.axes[i] for i in dims.free[0]]
    + [rhs.axes[j] for j in dims.free[1]]
  )


def product_reads(
  dims: DotAxes, lhs: Region, rhs: Region, live: Iterable[Axis]
) -> tuple[dict[int, Axis], dict[int, Axis]]:
  """Returns what a product reads of the axes of both factors.

  Args:
    dims: the axes.
    lhs: support of the first factor.
    rhs: support of the second factor.
    live: what is wanted of each axis of the product.
  """
  read: tuple[dict[int, Axis], dict[int, Axis]] = ({}, {})
  for i, j in dims.contract:
    read[0][i] = read[1][j] = regions.both(lhs.axes[i], rhs.axes[j])
  axes = iter(live)
  for i, j in dims.batch:
    read[0][i] = read[1][j] = next(axes)
  for side in (0, 1):
    for i in dims.free[side]:
      read[side][i] = next(axes)
  return read


def _dot_support(ctx: Context) -> list[Region]:
  lhs, rhs = ctx.supports
  return [product_support(dot_axes(ctx.eqn), lhs, rhs)]


def _dot_reads(ctx: Context) -> list[Region]:
  lhs, rhs = ctx.supports
  read = product_reads(dot_axes(ctx.eqn), lhs, rhs, ctx.live[0].axes)
  return [regions.normal(r[i] for i in range(len(r))) for r in read]


register([p.dot_general_p], Rule(_dot_support, _dot_reads, run_thin))


# Convolution with G groups (plain: G = 1, depthwise: G = channels). Input channels and kernel
# output channels are grids [group, position]; a thin convolution keeps groups of one size, so
# it keeps some groups, and in all of them the same positions.


class ConvAxes(NamedTuple):
  """Axes of a convolution by what they are."""

  groups: int
  lhs: tuple[int, ...]  # batch, feature, spatial...
  rhs: tuple[int, ...]  # out feature, in feature, spatial...
  out: tuple[int, ...]  # batch, feature, spatial...
  features: tuple[int, int]  # input, output


def conv_axes(eqn: Equation) -> ConvAxes:
  """Returns what the axes of a convolution's operands and result are."""
  dims = eqn.params['dimension_numbers']
  x, kernel = eqn.in_avals
  return ConvAxes(
    eqn.params['feature_group_count'],
    dims.lhs_spec,
    dims.rhs_spec,
    dims.out_spec,
    (x.shape[dims.lhs_spec[1]], kernel.shape[dims.rhs_spec[0]]),
  )


def _grid(axis: Axis, groups: int, size: int) -> np.ndarray:
  """A channel axis as a bool grid [group, position]."""
  return regions.vector(axis, size).reshape(groups, -1)


def _terms(conv: ConvAxes, lhs: Region, rhs: Region) -> np.ndarray:
  """Input channels [group, position] that meet a kernel which may be non-zero."""
  x = _grid(lhs.axes[conv.lhs[1]], conv.groups, conv.features[0])
  return x & regions.vector(rhs.axes[conv.rhs[1]], x.shape[1])


def _has_batch_groups(eqn: Equation) -> bool:
  """Whether the batch falls into groups (gradients of grouped kernels): run at full width."""
  return eqn.params['batch_group_count'] != 1


def _conv_support(ctx: Context) -> list[Region]:
  lhs, rhs = ctx.supports
  if _has_batch_groups(ctx.eqn):
    empty = lhs.empty or rhs.empty
    return [regions.nothing(len(lhs.axes))] if empty else full_support(ctx)
  conv = conv_axes(ctx.eqn)
  kernel = _grid(rhs.axes[conv.rhs[0]], conv.groups, conv.features[1])
  axes: list[Axis] = [None] * len(conv.out)
  axes[conv.out[0]] = lhs.axes[conv.lhs[0]]
  axes[conv.out[1]] = np.ravel(kernel & _terms(conv, lhs, rhs).any(1, keepdims=True))
  return [regions.normal(axes)]


def _conv_reads(ctx: Context) -> list[Region]:
  if _has_batch_groups(ctx.eqn):
    return read_whole(ctx)
  conv = conv_axes(ctx.eqn)
  (live,) = ctx.live
  wanted = _grid(live.axes[conv.out[1]], conv.groups, conv.features[1])
  groups = wanted.any(1)
  terms = _terms(conv, *ctx.supports)[groups].any(0)
  x: list[Axis] = [None] * len(conv.lhs)
  kernel: list[Axis] = [None] * len(conv.rhs)
  x[conv.lhs[0]] = live.axes[conv.out[0]]
  x[conv.lhs[1]] = np.ravel(np.outer(groups, terms))
  kernel[conv.rhs[0]] = np.ravel(np.outer(groups, wanted.any(0)))
  kernel[conv.rhs[1]] = np.ravel(terms)
  return [regions.normal(x), regions.normal(kernel)]


def _conv_evaluate(ctx: Context, *arrays: Any) -> list[Any]:
  if _has_batch_groups(ctx.eqn):
    return run_whole(ctx, *arrays)
  conv = conv_axes(ctx.eqn)
  made = ctx.reads[1].axes[conv.rhs[0]]
  groups = int(_grid(made, conv.groups, conv.features[1]).any(1).sum())
  axes: list[Axis] = [None] * len(conv.out)
  axes[conv.out[0]], axes[conv.out[1]] = ctx.live[0].axes[conv.out[0]], made
  results = jaxprs.bind(ctx.eqn, *arrays, feature_group_count=groups)
  return live_parts(ctx, results, [regions.normal(axes)])


register([p.conv_general_dilated_p], Rule(_conv_support, _conv_reads, _conv_evaluate))
