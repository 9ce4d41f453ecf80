"""Pooling: windows that slide along some axes and leave the others alone.

An axis with window 1, stride 1 and no padding passes through; the others are read whole.
"""

from typing import Any

from slim_jax.channels import blocks
from slim_jax.channels.blocks import Block
from slim_jax.channels.rule import Fact, Rule, bind_fenced, cut, full_support, register
from slim_jax.jaxprs import Equation, primitives as p


def passing(eqn: Equation, block: Block) -> Block:
  """The block with every axis that windows slide along made whole."""
  if block.empty:
    return block
  dilation = eqn.params.get('base_dilation', (1,) * len(block.axes))
  rows = zip(eqn.params['window_dimensions'], eqn.params['window_strides'], eqn.params['padding'],
             dilation, strict=True)
  return Block(tuple(axis if row == (1, 1, (0, 0), 1) else None
                     for axis, row in zip(block.axes, rows, strict=True)))


def _touches_data(eqn: Equation) -> bool:
  """Whether every window holds an element of the operand: an empty maximum is -inf, not 0."""
  rows = zip(eqn.params['window_dimensions'], eqn.params['padding'], eqn.params['base_dilation'],
             eqn.params['window_dilation'], strict=True)
  return all(base == 1 and dilation == 1 and max(padding) < size
             for size, padding, base, dilation in rows)


def _sum_support(eqn: Equation, facts: list[Fact]) -> list[Block]:
  return [passing(eqn, facts[0].support)]


def _extremum_support(eqn: Equation, facts: list[Fact]) -> list[Block]:
  support = facts[0].support
  if not _touches_data(eqn):
    support = blocks.whole(len(eqn.in_avals[0].shape))
  return [passing(eqn, support)]


def _reads(eqn: Equation, facts: list[Fact], live: list[Block]) -> list[Block]:
  del facts
  wanted = blocks.nothing()
  for block in live:
    wanted = blocks.union(wanted, passing(eqn, block))
  # The general form has its initial values, scalars, behind the operands.
  return [wanted if a.shape else blocks.whole(0) for a in eqn.in_avals]


def _evaluate(eqn: Equation, facts: list[Fact], reads: list[Block], live: list[Block],
              *arrays: Any) -> list[Any]:
  results = bind_fenced(eqn, lambda block: passing(eqn, block), facts, live, arrays)
  return cut(results, eqn, [reads[0]] * len(live), live)


register([p.reduce_window_sum_p], Rule(_sum_support, _reads, _evaluate))
register([p.reduce_window_max_p, p.reduce_window_min_p],
         Rule(_extremum_support, _reads, _evaluate))
register([p.reduce_window_p], Rule(full_support, _reads, _evaluate))


# Derivatives of max-pooling: what goes to, or comes from, the largest element of each window.


def _picked_support(eqn: Equation, facts: list[Fact]) -> list[Block]:
  """Zero where what is moved is: the operand that windows look at only says where to."""
  return [passing(eqn, facts[0].support)]


register([p.select_and_scatter_add_p, p.select_and_gather_add_p],
         Rule(_picked_support, _reads, _evaluate))
