"""Which channels travel together: the same stream, added to and read by several layers.

Element-wise operations tie the axes of their operands index by index; a convolution makes
new channels. What ties what is told from the rules themselves: halve the demand on a
result, bit by bit of the index, and see which half of an operand is still read.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from scipy import sparse

from slim_jax import batch_norms, jaxprs, tree
from slim_jax.channels import analysis, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import RULES, Fact
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p

_Nodes = list[np.ndarray]  # of one value: for each axis a node for each index
_Place = tuple[int, int, np.ndarray]  # an operand or result, an axis of it, indices


def streams(f: Callable[..., Any], variables: Any, *args: Any, scales: Any = None) -> Any:
  """Labels the channels that feed or read one stream, for tied selection.

  In a residual network every BatchNorm whose output is added to the stream, or which reads it,
  scales the same channels. If they are removed together (`select_global(..., tied=labels)`) the
  stream itself gets thin and no gather is needed; else every BatchNorm selects its own subset.

  Args:
    f: `f(variables, *args)`, as for `plan`.
    variables: arrays or `jax.ShapeDtypeStruct`s.
    *args: further arguments (arrays or shapes).
    scales: which leaves are scales, if not those `batch_norm_scales` finds: a tree of bools, a
      prefix of it, or a function that makes one of `variables`.

  Returns:
    A tree like `variables`: int [channels] at each scale leaf, None elsewhere. Channels with one
    label, of one layer or of several, are tied; a label of its own means that a channel is free.
  """
  shapes = jax.tree.map(jaxprs.struct, (variables, *args))
  program, _ = jaxprs.trace(f, *shapes)
  ties = _Ties()
  nodes = [ties.new(program.avals[i].shape) for i in program.inputs]
  ties.connect(program, _unknown(program), nodes)
  leaves = tree.flatten(variables)
  of_leaf = dict(zip(leaves, nodes))
  groups = ties.groups()
  chosen = batch_norms.chosen(variables, scales)
  labels = {path: groups[of_leaf[path][batch_norms.channel_axis(leaves[path])]] for path in chosen}
  return tree.like(variables, labels)


class _Ties:
  """Nodes, one for each index of each axis of each value, and which of them are the same."""

  def __init__(self):
    self.count = 0
    self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

  def new(self, shape: tuple[int, ...]) -> _Nodes:
    """Fresh nodes for a value."""
    nodes = []
    for n in shape:
      nodes.append(np.arange(self.count, self.count + n))
      self.count += n
    return nodes

  def same(self, a: list[_Nodes], b: list[_Nodes]) -> None:
    """These values are one, axis by axis."""
    for left, right in zip(a, b, strict=True):
      self.pairs.extend(zip(left, right, strict=True))

  def groups(self) -> np.ndarray:
    """Label of every node."""
    left, right = (
      np.concatenate([pair[i] for pair in self.pairs] or [np.zeros(0, int)]) for i in (0, 1)
    )
    graph = sparse.coo_array((np.ones(len(left), bool), (left, right)), (self.count, self.count))
    return sparse.csgraph.connected_components(graph, directed=False)[1]

  def connect(self, program: Program, facts: list[Fact], inputs: list[_Nodes]) -> list[_Nodes]:
    """Ties what the equations of a program tie; nodes of its outputs."""
    known = analysis.forward(program, facts)
    nodes = dict(zip(program.inputs, inputs))
    for number in program.constants:
      nodes[number] = self.new(program.avals[number].shape)
    for eqn in program.equations:
      operands = [nodes[i] for i in eqn.inputs]
      results = [self.new(a.shape) for a in eqn.out_avals]
      nodes.update(zip(eqn.outputs, results))
      inside = _INSIDE.get(eqn.primitive)
      if inside:
        inside(self, eqn, [known[i] for i in eqn.inputs], operands, results)
      elif eqn.primitive in RULES:
        for (i, j, index), (r, axis, at) in _index_maps(eqn, [known[i] for i in eqn.inputs]):
          self.pairs.append((operands[i][j][index], results[r][axis][at]))
    return [nodes[i] for i in program.outputs]


def _index_maps(eqn: Equation, facts: list[Fact]) -> Iterator[tuple[_Place, _Place]]:
  """Which index of an operand goes to which one index of a result.

  Yields:
    (operand, axis, indices) and (result, axis, indices): element by element the same channel.
  """
  for r, aval in enumerate(eqn.out_avals):
    for axis, n in enumerate(aval.shape):
      if n < 2 or 0 in aval.shape:
        continue

      def read(half: np.ndarray, r=r, axis=axis) -> list[Region]:
        live = [regions.nothing()] * len(eqn.out_avals)
        live[r] = regions.along(regions.whole(len(aval.shape)), axis, half)
        return RULES[eqn.primitive].reads(eqn, facts, live)

      # Of axes of size 1, which whole operands hang on, only the one in the same place.
      places = [
        (i, j)
        for i, operand in enumerate(eqn.in_avals)
        for j, m in enumerate(operand.shape)
        if m > 1 or (m == 1 and j == axis)
      ]
      sizes = [eqn.in_avals[i].shape[j] for i, j in places]
      code = [np.zeros(m, int) for m in sizes]
      alone = [np.ones(m, bool) for m in sizes]
      for bit in range((n - 1).bit_length()):
        on = (np.arange(n) >> bit) % 2 == 1
        low, high = read(~on), read(on)
        for k, (i, j) in enumerate(places):
          with_low, with_high = _vector(low[i], j, sizes[k]), _vector(high[i], j, sizes[k])
          code[k] += with_high.astype(int) << bit
          alone[k] &= with_low ^ with_high
      for k, (i, j) in enumerate(places):
        # Several indices that go to one, as the rows of a merged axis, are not one channel.
        often = np.bincount(code[k][alone[k]], minlength=n) > 1
        index = np.flatnonzero(alone[k] & ~often[np.minimum(code[k], n - 1)])
        yield (i, j, index), (r, axis, code[k][index])


def _vector(region: Region, axis: int, size: int) -> np.ndarray:
  return np.zeros(size, bool) if region.empty else regions.vector(region.axes[axis], size)


# Calls and control flow: what is inside ties what is outside.


def _call(
  ties: _Ties, eqn: Equation, facts: list[Fact], operands: list[_Nodes], results: list[_Nodes]
) -> None:
  (body,) = jaxprs.bodies(eqn)
  ties.same(ties.connect(body, facts, operands), results)


def _scan(
  ties: _Ties, eqn: Equation, facts: list[Fact], operands: list[_Nodes], results: list[_Nodes]
) -> None:
  del facts
  body = jaxprs.body(eqn, 'jaxpr')
  constants, carried = jaxprs.scan_counts(eqn)
  first, second = operands[: constants + carried], operands[constants + carried :]
  inner = ties.connect(body, _unknown(body), first + [nodes[1:] for nodes in second])
  outer = results[:carried] + [nodes[1:] for nodes in results[carried:]]
  ties.same(inner, outer)
  ties.same(operands[constants : constants + carried], results[:carried])


def _while(
  ties: _Ties, eqn: Equation, facts: list[Fact], operands: list[_Nodes], results: list[_Nodes]
) -> None:
  del facts
  body = jaxprs.body(eqn, 'body_jaxpr')
  carry = operands[len(operands) - len(results) :]
  constants = operands[eqn.params['cond_nconsts'] : len(operands) - len(results)]
  ties.same(ties.connect(body, _unknown(body), constants + carry), results)
  ties.same(carry, results)


def _cond(
  ties: _Ties, eqn: Equation, facts: list[Fact], operands: list[_Nodes], results: list[_Nodes]
) -> None:
  for branch in jaxprs.bodies(eqn):
    ties.same(ties.connect(branch, facts[1:], operands[1:]), results)


def _unknown(program: Program) -> list[Fact]:
  """Nothing is known of what changes from iteration to iteration."""
  return [Fact(regions.whole(len(program.avals[i].shape))) for i in program.inputs]


_INSIDE = {
  p.custom_jvp_call_p: _call,
  p.custom_vjp_call_p: _call,
  p.remat_p: _call,
  p.scan_p: _scan,
  p.while_p: _while,
  p.cond_p: _cond,
}
