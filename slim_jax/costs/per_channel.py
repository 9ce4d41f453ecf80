"""The cost of a channel: the MACs that are saved when one channel of a BatchNorm is removed.

Planning once per channel would take minutes. But one dead channel changes little: its zeros stop at
the next convolution, and what is no longer needed ends at the convolution before. So the network is
analysed once, and for each channel only the equations around it are analysed again, by the same
rules.
"""

from collections.abc import Callable, Mapping
import functools
import heapq
from typing import Any

import jax
import numpy as np

from slim_jax import jaxprs, tree
from slim_jax.channels import analysis, dead, programs, regions
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Context, Fact, Walk
from slim_jax.costs import counting
from slim_jax.jaxprs import Equation, Program
from slim_jax.jaxprs import primitives as p
from slim_jax.tree import Path


def macs_per_channel(f: Callable[..., Any], variables: Any, *args: Any, scales: Any = None) -> Any:
  """Returns weights for sparsity penalties: the cost of a channel of each BatchNorm.

  The cost of a channel is the number of MACs that `thin` saves when only this channel is dead:
  those that compute it, if nothing else reads it, and those that read it. Nothing is run.

  Args:
    f: `f(variables, *args)`, as for `plan`: usually inference.
    variables: arrays or `jax.ShapeDtypeStruct`s.
    *args: further arguments (arrays or shapes). The image size matters, since it weighs
      convolutions against dense layers; the batch size does not.
    scales: which leaves are scales, if not those that `batch_norm_scales` finds: a tree of bools,
      a prefix of it, or a function that returns one for `variables`.

  Returns:
    A tree like `variables` with a float at each scale leaf and None elsewhere: the mean MACs of the
    leaf's channels, divided by the mean over all channels of the network. A channel of stacked
    layers is removed from all of them, so its cost is divided among them. Removing a single channel
    of a grouped convolution saves nothing, since its groups keep equal sizes. Five evenly spaced
    channels per layer are evaluated, and more only between two whose costs differ; a channel with
    another cost between two equal ones is missed.

  Raises:
    ValueError: there is no scale, or no channel saves any MACs.

  Example:
    >>> import jax, jax.numpy as jnp, optax, slim_jax
    >>> from slim_jax import models
    >>> net, x = models.create('mlp', num_classes=10), jnp.ones((1, 28, 28, 1))
    >>> variables = net.init(jax.random.key(0), x, train=False)
    >>> apply = lambda variables, x: net.apply(variables, x, train=False)
    >>> weights = slim_jax.macs_per_channel(apply, variables, x)
    >>> [round(weights['params'][f'BatchNorm_{i}']['scale'], 2) for i in range(2)]
    [1.25, 0.59]
    >>> tx = optax.chain(slim_jax.add_l1(1e-4, weights=weights['params']), optax.sgd(0.1))

  References:
    Gordon et al., MorphNet, CVPR 2018: the weights of its FLOP regulariser before training.
  """
  saved = saved_by_channel(f, variables, *args, scales=scales)
  leaves = tree.flatten(variables)
  sizes = {path: int(np.prod(leaves[path].shape)) for path in saved}
  sums = {path: float(np.sum(macs)) for path, macs in saved.items()}
  mean = sum(sums.values()) / max(sum(sizes.values()), 1)
  if not mean > 0:
    raise ValueError(
      'removing a single channel of a BatchNorm saves no MACs: ' + ', '.join(map(tree.show, saved))
    )
  return tree.like(variables, {path: sums[path] / max(sizes[path], 1) / mean for path in saved})


def piecewise(value: Callable[[int], int], n: int) -> np.ndarray:
  """Returns `value` of 0 to n - 1, int [n], evaluated at five places and between any that differ."""
  values = np.zeros(n, np.int64)
  value = functools.cache(value)

  def fill(low: int, high: int) -> None:
    middle = (low + high) // 2
    asked = [low, middle, high]
    values[asked] = [value(i) for i in asked]
    if len(set(values[asked])) == 1 and high - low <= n // 2:
      values[low : high + 1] = value(low)
    elif high - low > 2:
      fill(low, middle)
      fill(middle, high)

  if n:
    fill(0, n - 1)
  return values


def saved_by_channel(
  f: Callable[..., Any],
  variables: Any,
  *args: Any,
  scales: Any = None,
  evaluate: Callable[[Callable[[int], int], int], np.ndarray] = piecewise,
) -> dict[Path, np.ndarray]:
  """Returns the MACs that `thin` saves when a single channel is dead.

  Args:
    f: as in `macs_per_channel`.
    variables: as in `macs_per_channel`.
    *args: as in `macs_per_channel`.
    scales: as in `macs_per_channel`.
    evaluate: returns a function's values of 0 to n - 1, int [n], given the function and n.

  Returns:
    By path of the scale, int [channels].
  """
  shapes = jax.tree.map(jaxprs.struct, (variables, *args))
  program, _ = programs.trace(f, *shapes)
  network = _Incremental(program)
  leaves = tree.flatten(shapes[0])
  numbers = dict(zip(leaves, program.inputs))
  saved = {}
  for path, axis in dead.chosen(variables, scales).items():
    channels = leaves[path].shape[axis]
    # A channel's bias is dead with its scale.
    every = tree.like(
      variables, {path: dead.spelled(leaves[path], dead.Zeros(axis, np.ones(channels, bool)))}
    )
    together = dead.zeroed(shapes[0], every)

    def saves(channel: int, together=together, channels=channels) -> int:
      left = np.arange(channels) != channel
      return network.saves(
        {
          numbers[target]: regions.along(regions.whole(len(leaves[target].shape)), axis, left)
          for target, (axis, _) in together.items()
        }
      )

    saved[path] = evaluate(saves, channels)
  return saved


class _Incremental:
  """The analysis of a program with nothing dead, updated for small changes only."""

  def __init__(self, program: Program):
    whole = [regions.whole(len(program.avals[i].shape)) for i in program.inputs]
    self.equations = program.equations
    self.alone = [_alone(eqn) for eqn in program.equations]
    self.outputs = {i: regions.whole(len(program.avals[i].shape)) for i in program.outputs}
    self.facts = analysis.forward(program, [Fact(region) for region in whole])
    self.reads = analysis.backward(
      program, self.facts, [self.outputs[i] for i in program.outputs]
    ).reads
    self.maker = {i: k for k, eqn in enumerate(program.equations) for i in eqn.outputs}
    self.readers: dict[int, list[int]] = {}
    for k, eqn in enumerate(program.equations):
      for i in set(eqn.inputs):
        self.readers.setdefault(i, []).append(k)
    self.counted: dict[Any, int] = {}

  def saves(self, supports: Mapping[int, Region]) -> int:
    """Returns the MACs saved if inputs, given by number, are zero outside these regions."""
    facts = {i: Fact(support) for i, support in supports.items()}
    touched = self._forward(facts)
    reads = self._backward(facts, touched)
    return sum(self._macs(k, {}, {}) - self._macs(k, facts, reads) for k in reads)

  def _forward(self, facts: dict[int, Fact]) -> set[int]:
    """Adds the facts that change to `facts`; returns the equations that read any of them."""
    touched: set[int] = set()
    queue: list[int] = []

    def changed(number: int) -> None:
      for k in self.readers.get(number, ()):
        if k not in touched:
          touched.add(k)
          heapq.heappush(queue, k)

    for number in tuple(facts):
      changed(number)
    while queue:  # in program order: the operands of an equation are final before it is visited
      k = heapq.heappop(queue)
      for number, fact in zip(self.equations[k].outputs, self._results(k, facts), strict=True):
        if not regions.same(fact.support, self.facts[number].support):
          facts[number] = fact
          changed(number)
    return touched

  def _results(self, k: int, facts: Mapping[int, Fact]) -> list[Fact]:
    eqn = self.equations[k]
    operands = [facts.get(i, self.facts[i]) for i in eqn.inputs]
    return analysis.forward(self.alone[k], operands)[len(operands) :]

  def _backward(
    self, facts: Mapping[int, Fact], touched: set[int]
  ) -> dict[int, list[Region] | None]:
    """Returns what equations read: those touched, and those whose results are needed less."""
    reads: dict[int, list[Region] | None] = {}
    queue, seen = [-k for k in touched], set(touched)
    heapq.heapify(queue)
    while queue:  # in reverse order: what reads an equation's results is final before it is visited
      k = -heapq.heappop(queue)
      eqn, live = self.equations[k], self._live(k, facts, reads)
      operands = [facts.get(i, self.facts[i]) for i in (*eqn.inputs, *eqn.outputs)]
      reads[k] = analysis.backward(self.alone[k], operands, live).reads[0]
      for i, now, before in zip(
        eqn.inputs, _or_nothing(reads[k], eqn), _or_nothing(self.reads[k], eqn), strict=True
      ):
        maker = self.maker.get(i)
        if maker is not None and maker not in seen and not regions.same(now, before):
          seen.add(maker)
          heapq.heappush(queue, -maker)
    return reads

  def _live(
    self, k: int, facts: Mapping[int, Fact], reads: Mapping[int, list[Region] | None]
  ) -> list[Region]:
    """Returns what is read of each result of an equation and is not zero."""
    live = []
    for number in self.equations[k].outputs:
      need = self.outputs.get(number, regions.nothing(len(self.facts[number].support.axes)))
      for reader in self.readers.get(number, ()):
        eqn = self.equations[reader]
        for i, read in zip(
          eqn.inputs, _or_nothing(reads.get(reader, self.reads[reader]), eqn), strict=True
        ):
          need = regions.union(need, read) if i == number else need
      live.append(regions.intersect(need, facts.get(number, self.facts[number]).support))
    return live

  def _macs(
    self, k: int, facts: Mapping[int, Fact], reads: Mapping[int, list[Region] | None]
  ) -> int:
    """Returns the MACs of one equation in its thin form."""
    eqn, now = self.equations[k], reads.get(k, self.reads[k])
    if now is None or not _multiplies(eqn):
      return 0
    live = self._live(k, facts, reads)
    # The cost of a contraction follows from its shapes.
    key = (
      k,
      *(
        regions.shape_of(region, aval.shape)
        for region, aval in zip((*now, *live), (*eqn.in_avals, *eqn.out_avals), strict=True)
      ),
    )
    if key not in self.counted or jaxprs.bodies(eqn):
      operands = [facts.get(i, self.facts[i]) for i in eqn.inputs]
      self.counted[key] = _count(eqn, operands, now, live)
    return self.counted[key]


def _alone(eqn: Equation) -> Program:
  """Returns the program of one equation."""
  inputs = tuple(range(len(eqn.inputs)))
  outputs = tuple(range(len(inputs), len(inputs) + len(eqn.outputs)))
  return Program(
    [eqn._replace(inputs=inputs, outputs=outputs)],
    list(inputs),
    list(outputs),
    {},
    [*eqn.in_avals, *eqn.out_avals],
  )


def _or_nothing(reads: list[Region] | None, eqn: Equation) -> list[Region]:
  return [regions.nothing(len(a.shape)) for a in eqn.in_avals] if reads is None else reads


def _multiplies(eqn: Equation) -> bool:
  """Returns whether an equation is or contains a contraction."""
  return eqn.primitive in (p.dot_general_p, p.conv_general_dilated_p) or any(
    _multiplies(inner) for body in jaxprs.bodies(eqn) for inner in body.equations
  )


def _count(eqn: Equation, facts: list[Fact], reads: list[Region], live: list[Region]) -> int:
  """Returns the MACs of the thin form of an equation, as `counting.count` counts them."""
  ctx = Context(eqn, facts, live, reads, Walk())
  operands = [
    None if read.empty else jax.ShapeDtypeStruct(regions.shape_of(read, a.shape), a.dtype)
    for read, a in zip(reads, eqn.in_avals, strict=True)
  ]
  return counting.count(lambda operands: ctx.walk.rule(eqn).evaluate(ctx, *operands), operands).macs
