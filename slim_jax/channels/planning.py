"""`plan`: from dead channels to what is left of every variable."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from slim_jax import batch_norms, tree
from slim_jax.channels import analysis, blocks, interface
from slim_jax.channels.blocks import Block
from slim_jax.channels.plan import Cut, Plan
from slim_jax.channels.rule import Fact
from slim_jax.jaxprs import Program
from slim_jax.tree import Path


def plan(f: Callable[..., Any], variables: Any, *args: Any, dead: Any, outs: Any = None) -> Plan:
  """Finds what is left of the variables when dead channels go.

  Zeros of the dead scales and biases are followed forward through the jaxpr of `f`, need is
  followed back from its results; what is needed and not zero is live. An index leaves only
  because of what is dead: with nothing dead the plan is the identity.

  Args:
    f: `f(variables, *args)`, a pure function, any pytree of results. Plan with the function
      whose results must stay: usually inference.
    variables: the tree that is sliced, arrays or `jax.ShapeDtypeStruct`s.
    *args: further arguments (arrays or shapes); the batch size does not matter.
    dead: tree like `variables`: a bool vector [channels] at each scale leaf, True = goes, None
      elsewhere, as `select_global` gives.
    outs: prefix tree over the results of `f`: None where a result is wanted whole (default), a
      path string ('batch_stats', '' for all) where it is the new state of that part of the
      variables. Statistics of removed channels are then not wanted.

  Returns:
    The `Plan`.

  Raises:
    ValueError: when `dead` does not fit the variables, or when the results would not depend
      on `args` any more.
  """
  zero = batch_norms.zeroed(variables, dead)
  leaves = tree.flatten(variables)
  shapes = jax.tree.map(interface.struct, (variables, *args))
  program, results = interface.trace(f, shapes, {})
  ranks = [len(program.avals[i].shape) for i in program.inputs]
  supports = [blocks.whole(rank) for rank in ranks]
  before = analysis.forward(program, [Fact(s) for s in supports])
  for n, (path, leaf) in enumerate(leaves.items()):
    if path in zero:
      axes = list(supports[n].axes)
      axes[batch_norms.channel_axis(leaf)] = ~zero[path]
      supports[n] = blocks.block(axes)
  after = analysis.forward(program, [Fact(s) for s in supports])

  norms = batch_norms.find(variables)
  states = interface.states(outs, results)
  if lost := [tree.show(path) for path in states if path is not None and path not in leaves]:
    raise ValueError(f'outs: the variables have no leaf {", ".join(lost)}')

  def needed(facts: list[Fact], wanted: Callable[[Path], Block]) -> analysis.Analysis:
    """The backward pass; `wanted` says what is read of the new value of a variable."""
    demands = [blocks.whole(len(program.avals[number].shape)) if path is None else wanted(path)
               for number, path in zip(program.outputs, states, strict=True)]
    return analysis.backward(program, facts, demands)

  def cuts(facts: list[Fact], wanted: Callable[[Path], Block]) -> dict[Path, Cut]:
    found, base = needed(facts, wanted), needed(before, lambda path: blocks.whole(len(leaves[path].shape)))
    left = {path: Cut(tuple(leaf.shape),
                      _left(found.live[i], base.live[i], support, tuple(leaf.shape)))
            for i, support, (path, leaf) in zip(program.inputs, supports, leaves.items())}
    for norm in norms:
      left.update(_together(norm, left))
    return left

  # The new statistics of a removed channel are not wanted; which are removed, the other results
  # decide.
  first = cuts(after, lambda path: blocks.nothing())
  statistics = {path for norm in norms for path in norm.statistics}

  def wanted(path: Path) -> Block:
    return first[path].live if path in statistics else blocks.whole(len(leaves[path].shape))

  base, found = needed(before, wanted), needed(after, wanted)
  _check_alive(program, base, found, len(leaves), zero)
  unknown = tuple(map(str, analysis.without_rule(program, found)))
  return Plan(cuts(after, wanted), unknown)


def _together(norm: batch_norms.BatchNorm, cuts: Mapping[Path, Cut]) -> dict[Path, Cut]:
  """The leaves of one BatchNorm cut alike: where any function may need its scale or its bias.

  Inference and training read them differently: with a zero input, training needs the bias of a
  channel alone, inference its running mean and scale too.
  """
  def channels(path: Path) -> np.ndarray:
    shape, live = cuts[path].shape, cuts[path].live
    axis = _channel_axis(shape)
    return np.zeros(shape[axis], bool) if live.empty else blocks.vector(live.axes[axis], shape[axis])

  kept = channels(norm.scale)
  if norm.bias is not None:
    kept = kept | channels(norm.bias)
  alike = {}
  for path in (norm.scale, norm.bias, *norm.statistics):
    shape = cuts[path].shape if path is not None else ()
    if shape and shape[_channel_axis(shape)] == kept.size:
      axes: list[Any] = [None] * len(shape)
      axes[_channel_axis(shape)] = kept
      alike[path] = Cut(shape, blocks.block(axes))
  return alike


def _channel_axis(shape: tuple[int, ...]) -> int:
  return batch_norms.channel_axis(jax.ShapeDtypeStruct(shape, bool))


def _left(found: Block, base: Block, support: Block, shape: tuple[int, ...]) -> Block:
  """What is left of a leaf: all but what went because of dead channels, axis by axis.

  An index that nobody reads even with nothing dead stays, unless it was zeroed itself.
  """
  if base.empty:  # not read at all by this function: only its own zeros go
    return support
  if found.empty:
    return found
  axes = []
  for f, b, size in zip(found.axes, base.axes, shape, strict=True):
    axes.append(blocks.vector(f, size) | ~blocks.vector(b, size))
  return blocks.intersect(blocks.block(axes), support)


def _check_alive(program: Program, base: analysis.Analysis, found: analysis.Analysis, first: int,
                 zero: Mapping[Path, np.ndarray]) -> None:
  """Raises when no argument is read any more that was read before."""
  numbers = program.inputs[first:]
  read = [i for i in numbers if not base.live[i].empty]
  if read and all(found.live[i].empty for i in read):
    gone = [tree.show(path) for path in zero if zero[path].all()]
    raise ValueError(
        'the network is cut through: its results no longer depend on its inputs. '
        f'Layers that lose every channel: {", ".join(gone) or "none"}. '
        'Remove a smaller fraction, or keep some channels of every layer (min_channels=, '
        'max_fraction=).')
