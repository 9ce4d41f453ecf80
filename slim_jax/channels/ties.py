"""Ties: which channels of different layers are the same channel of a shared value.

Elementwise operations tie the axes of their operands index by index; a convolution makes new
channels. The rules themselves tell what is tied: demand half of a result, bit by bit of the index,
and see which half of an operand is still read.
"""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from scipy import sparse

from slim_jax import jaxprs, tree
from slim_jax.channels import analysis, dead, programs, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Fact, Walk
from slim_jax.channels.rules import shard_maps
from slim_jax.jaxprs import Program
from slim_jax.jaxprs import primitives as p

_Nodes = list[np.ndarray]  # of one value: for each axis a node for each index
_Place = tuple[int, int, np.ndarray]  # an operand or result, an axis of it, indices


def streams(f: Callable[..., Any], variables: Any, *args: Any, scales: Any = None) -> Any:
  """Labels the channels that are tied, for tied selection.

  In a residual network every BatchNorm whose output is added to the residual stream, or which reads
  it, scales the same channels. If they are removed together (`select_global(..., tied=labels)`), the
  stream itself gets thinner and no gather is needed. Otherwise every BatchNorm selects its own subset.

  Args:
    f: `f(variables, *args)`, as for `plan`.
    variables: arrays or `jax.ShapeDtypeStruct`s.
    *args: further arguments (arrays or shapes).
    scales: which leaves are scales, if not those `batch_norm_scales` finds, as in `select_global`.

  Returns:
    A tree like `variables`: int [channels] at each scale leaf, None elsewhere; along another axis
    than a vector's it has the leaf's rank, as `select_global` returns it. Channels with the
    same label, of one layer or of several, are tied. A channel with a label of its own is free.
  """
  shapes = jax.tree.map(jaxprs.struct, (variables, *args))
  program, _ = programs.trace(f, *shapes)
  ties = _Ties(Walk())
  nodes = [ties.new(program.avals[i].shape) for i in program.inputs]
  ties.connect(program, analysis.unknown(program), nodes)
  leaves = tree.flatten(variables)
  of_leaf = dict(zip(leaves, nodes))
  groups = ties.groups()
  axes = dead.chosen(variables, scales)
  labels = {
    path: dead.along(leaves[path], axis, groups[of_leaf[path][axis]]) for path, axis in axes.items()
  }
  return tree.like(variables, labels)


class _Ties:
  """Nodes, one for each index of each axis of each value, and which of them are the same."""

  def __init__(self, walk: Walk):
    self.walk = walk
    self.count = 0
    self.pairs: list[tuple[np.ndarray, np.ndarray]] = []

  def new(self, shape: tuple[int, ...]) -> _Nodes:
    """Makes nodes for a value."""
    nodes = []
    for n in shape:
      nodes.append(np.arange(self.count, self.count + n))
      self.count += n
    return nodes

  def same(self, a: list[_Nodes], b: list[_Nodes]) -> None:
    """Ties values, axis by axis."""
    for left, right in zip(a, b, strict=True):
      self.pairs.extend(zip(left, right, strict=True))

  def parts(self, nodes: np.ndarray, count: int) -> np.ndarray:
    """Ties the parts of an axis that devices share, at the same place of each; returns the first."""
    first, *others = np.split(nodes, count)
    self.pairs.extend((first, other) for other in others)
    return first

  def groups(self) -> np.ndarray:
    """Label of every node."""
    left, right = (
      np.concatenate([pair[i] for pair in self.pairs] or [np.zeros(0, int)]) for i in (0, 1)
    )
    links = np.ones(len(left), bool), (left, right)
    graph = sparse.coo_array(links, shape=(self.count, self.count))
    return sparse.csgraph.connected_components(graph, directed=False)[1]

  def connect(self, program: Program, facts: list[Fact], inputs: list[_Nodes]) -> list[_Nodes]:
    """Ties what the equations of a program tie; returns the nodes of its outputs."""
    known = analysis.forward(program, facts, walk=self.walk)
    nodes = dict(zip(program.inputs, inputs))
    for number in program.constants:
      nodes[number] = self.new(program.avals[number].shape)
    for eqn in program.equations:
      operands = [nodes[i] for i in eqn.inputs]
      results = [self.new(a.shape) for a in eqn.out_avals]
      nodes.update(zip(eqn.outputs, results))
      inside = _INSIDE.get(eqn.primitive)
      ctx = Context(eqn, [known[i] for i in eqn.inputs], [], [], self.walk)
      if inside:
        inside(self, ctx, operands, results)
      elif eqn.primitive in self.walk.rules:
        for (i, j, index), (r, axis, at) in index_maps(ctx):
          self.pairs.append((operands[i][j][index], results[r][axis][at]))
    return [nodes[i] for i in program.outputs]


def index_maps(ctx: Context) -> Iterator[tuple[_Place, _Place]]:
  """Finds which index of an operand goes to exactly one index of a result.

  Yields:
    (operand, axis, indices) and (result, axis, indices): index by index the same channel.
  """
  eqn, rule = ctx.eqn, ctx.walk.rule(ctx.eqn)
  for r, aval in enumerate(eqn.out_avals):
    for axis, n in enumerate(aval.shape):
      if n < 2 or 0 in aval.shape:
        continue

      def read(half: np.ndarray, r=r, axis=axis) -> list[Region]:
        live = [regions.nothing(len(a.shape)) for a in eqn.out_avals]
        live[r] = regions.along(regions.whole(len(aval.shape)), axis, half)
        return rule.reads(ctx._replace(live=live))

      # Of axes of size 1, which are read with their whole operand, only the one in the same place.
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
          with_low, with_high = (regions.vector(half[i].axes[j], sizes[k]) for half in (low, high))
          code[k] += with_high.astype(int) << bit
          alone[k] &= with_low ^ with_high
      for k, (i, j) in enumerate(places):
        # Several indices that go to the same one, as the rows of a merged axis, are not one channel.
        often = np.bincount(code[k][alone[k]], minlength=n) > 1
        index = np.flatnonzero(alone[k] & ~often[np.minimum(code[k], n - 1)])
        yield (i, j, index), (r, axis, code[k][index])


# Calls and control flow: programs inside tie the operands and results outside.


def _call(ties: _Ties, ctx: Context, operands: list[_Nodes], results: list[_Nodes]) -> None:
  (body,) = programs.bodies(ctx.eqn)
  ties.same(ties.connect(body, ctx.facts, operands), results)


def _scan(ties: _Ties, ctx: Context, operands: list[_Nodes], results: list[_Nodes]) -> None:
  body = programs.body(ctx.eqn, 'jaxpr')
  constants, carried = jaxprs.scan_counts(ctx.eqn)
  first, second = operands[: constants + carried], operands[constants + carried :]
  inner = ties.connect(body, analysis.unknown(body), first + [nodes[1:] for nodes in second])
  outer = results[:carried] + [nodes[1:] for nodes in results[carried:]]
  ties.same(inner, outer)
  ties.same(operands[constants : constants + carried], results[:carried])


def _while(ties: _Ties, ctx: Context, operands: list[_Nodes], results: list[_Nodes]) -> None:
  body = programs.body(ctx.eqn, 'body_jaxpr')
  carry = operands[len(operands) - len(results) :]
  constants = operands[ctx.params['cond_nconsts'] : len(operands) - len(results)]
  ties.same(ties.connect(body, analysis.unknown(body), constants + carry), results)
  ties.same(carry, results)


def _cond(ties: _Ties, ctx: Context, operands: list[_Nodes], results: list[_Nodes]) -> None:
  for branch in programs.bodies(ctx.eqn):
    ties.same(ties.connect(branch, ctx.facts[1:], operands[1:]), results)


def _shard_map(ties: _Ties, ctx: Context, operands: list[_Nodes], results: list[_Nodes]) -> None:
  eqn, body = ctx.eqn, programs.body(ctx.eqn, 'jaxpr')

  def on_device(values: list[_Nodes], parts: list[list[int]]) -> list[_Nodes]:
    return [list(map(ties.parts, nodes, counts)) for nodes, counts in zip(values, parts)]

  inner, facts = on_device(operands, shard_maps.in_parts(eqn)), analysis.unknown(body)
  outer = shard_maps.within_mesh(eqn, lambda: ties.connect(body, facts, inner))
  ties.same(outer, on_device(results, shard_maps.out_parts(eqn)))


_INSIDE = {
  **dict.fromkeys([*jaxprs.CARRYING, *jaxprs.composite_ps, jaxprs.custom_vmap_call_p], _call),
  jaxprs.shard_map_p: _shard_map,
  p.scan_p: _scan,
  p.while_p: _while,
  p.cond_p: _cond,
}
