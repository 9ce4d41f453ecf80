"""`plan`: from dead channels to what is left of every variable."""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax import batch_norms, jaxprs, tree
from slim_jax.channels import absorb, analysis, explain, regions
from slim_jax.channels.plan import Cut, Fold, Plan
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import Fact
from slim_jax.errors import SlimError
from slim_jax.jaxprs import Equation, Program
from slim_jax.tree import Path


def plan(
  f: Callable[..., Any], variables: Any, *args: Any, dead: Any, outs: Any = None, bias: str = 'zero'
) -> Plan:
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
    bias: 'zero': dead channels lose their biases with their scales, as in the paper. 'keep': what
      their biases go on to contribute stays, under the kernel of one of them (see `folding`), so
      that removing a channel whose scale is zero changes nothing:
      `thin(f, plan)(plan.slice(v), x) == f(mask(v, dead, bias='keep'), x)` for the variables
      that were planned with. Biases that no kernel can take over stay.

  Returns:
    The `Plan`.

  Example:
    >>> import jax, jax.numpy as jnp, slim_jax
    >>> from slim_jax import models
    >>> net, x = models.create('mlp', num_classes=10), jnp.ones((1, 28, 28, 1))
    >>> variables = net.init(jax.random.key(0), x, train=False)
    >>> apply = lambda variables, x: net.apply(variables, x, train=False)
    >>> dead = jax.tree.map(
    ...     lambda leaf, is_scale: jnp.arange(leaf.size) < 100 if is_scale else None,
    ...     variables, slim_jax.batch_norm_scales(variables))
    >>> plan = slim_jax.plan(apply, variables, x, dead=dead)
    >>> thin_variables = plan.slice(variables)
    >>> [thin_variables['params'][f'Dense_{i}']['kernel'].shape for i in range(3)]
    [(784, 400), (400, 200), (200, 10)]
    >>> slim_jax.thin(apply, plan)(thin_variables, x).shape
    (1, 10)

  Raises:
    ValueError: when `dead` does not fit the variables, when the results would not depend
      on `args` any more, or when `bias='keep'` gets shapes for variables.
  """
  zero = batch_norms.zeroed(variables, dead, bias)
  leaves = tree.flatten(variables)
  traced = f if isinstance(f, Traced) else Traced(f, variables, *args)
  program, results = traced.trace
  states = tree.states(outs, results)
  if lost := [tree.show(path) for path in states if path is not None and path not in leaves]:
    raise ValueError(f'outs: the variables have no leaf {", ".join(lost)}')

  supports = [regions.whole(len(program.avals[i].shape)) for i in program.inputs]
  before = traced.whole_facts()
  for n, (path, leaf) in enumerate(leaves.items()):
    if path in zero:
      axes = list(supports[n].axes)
      axes[batch_norms.channel_axis(leaf)] = ~zero[path]
      supports[n] = regions.normal(axes)

  def following() -> list[Fact]:
    """The forward pass from `supports`."""
    return analysis.forward(
      program,
      [
        before[i] if support.is_whole else Fact(support)
        for i, support in zip(program.inputs, supports, strict=True)
      ],
      before=before,
    )

  after = following()
  folds = {}
  if bias == 'keep':
    folds = _folds(program, before, after, leaves, zero, args)
    for n, (path, leaf) in enumerate(leaves.items()):
      if path in folds:
        fold = folds[path]
        supports[n] = regions.along(supports[n], fold.axis, fold.kept(leaf.shape[fold.axis]))
    after = following()

  norms = batch_norms.find(variables)
  statistics = {path for norm in norms for path in norm.statistics}

  def needed(facts: list[Fact], kept: Mapping[Path, Region]) -> analysis.Analysis:
    """The backward pass, where the new statistics of `kept` channels are wanted."""
    demands = []
    for number, path in zip(program.outputs, states, strict=True):
      whole = regions.whole(len(program.avals[number].shape))
      demands.append(
        whole if path is None or path not in statistics else kept.get(path, regions.nothing())
      )
    return analysis.backward(program, facts, demands)

  base = traced.once(tuple(states), lambda: needed(before, {}))
  reads = {
    path: _Reads(tuple(leaf.shape), support, base.live[i])
    for path, leaf, support, i in zip(leaves, leaves.values(), supports, program.inputs)
  }
  kept: dict[Path, Region] = {}
  wants_statistics = not statistics.isdisjoint(states)
  while True:  # until the statistics that are wanted are those of the channels that are kept
    found = needed(after, kept)
    live = {path: found.live[i] for path, i in zip(leaves, program.inputs)}
    together = {path: region for norm in norms for path, region in _together(norm, reads, live)}
    settled = all(
      path in kept and regions.same(kept[path], region) for path, region in together.items()
    )
    kept = together
    if settled or not wants_statistics:
      break

  _check_alive(program, base, found, len(leaves), zero)
  cuts = {
    path: Cut(tuple(leaf.shape), kept[path] if path in kept else _left(reads[path], live[path]))
    for path, leaf in leaves.items()
  }
  why = (
    {}
    if traced is f
    else explain.reasons(
      program, found, dict(zip(leaves, program.inputs)), program.inputs[len(leaves) :]
    )
  )
  return Plan(
    cuts,
    tuple(analysis.without_rule(program, found)),
    why,
    {path: (fold,) for path, fold in folds.items()},
  )


def _folds(
  program: Program,
  before: list[Fact],
  after: list[Fact],
  leaves: Mapping[Path, Any],
  zero: Mapping[Path, np.ndarray],
  args: tuple[Any, ...],
) -> dict[Path, Fold]:
  """Kernels that take over what the biases of dead channels contribute."""
  if shapes := [path for path, v in leaves.items() if isinstance(v, jax.ShapeDtypeStruct)]:
    raise ValueError(
      f"bias='keep' needs the values of the variables, not their shapes: {tree.show(shapes[0])}"
    )
  arrays = [batch_norms.without(leaf, zero.get(path)) for path, leaf in leaves.items()]
  data = dict(zip(program.inputs[len(leaves) :], jax.tree.leaves(args), strict=True))
  found = absorb.find(program, before, after, arrays, data)
  return {list(leaves)[n]: fold for n, fold in found.items()}


class Traced:
  """A function traced once, for callers that plan it often with the same arguments.

  What does not depend on what is dead is found once. These plans are tries: they do not explain
  why an axis stayed whole.
  """

  def __init__(self, f: Callable[..., Any], *args: Any):
    self.trace = jaxprs.trace(f, *jax.tree.map(jaxprs.struct, args))
    self._found: dict[Hashable, Any] = {}

  def whole_facts(self) -> list[Fact]:
    """Where values may be non-zero with nothing dead."""
    program, _ = self.trace
    return self.once(
      'facts',
      lambda: analysis.forward(
        program, [Fact(regions.whole(len(program.avals[i].shape))) for i in program.inputs]
      ),
    )

  def once(self, key: Hashable, find: Callable[[], Any]) -> Any:
    """What `find` gave when `key` was first asked for."""
    if key not in self._found:
      self._found[key] = find()
    return self._found[key]


class CutThroughError(SlimError, ValueError):
  """So much is dead that the results would no longer depend on the inputs."""


class _Reads(NamedTuple):
  """Of one leaf: its shape, where it is not zeroed, and what is read with nothing dead."""

  shape: tuple[int, ...]
  support: Region
  base: Region


def _together(
  norm: batch_norms.BatchNorm, reads: Mapping[Path, _Reads], live: Mapping[Path, Region]
) -> list[tuple[Path, Region]]:
  """The leaves of one BatchNorm cut alike: where any function may need its scale or its bias.

  Inference and training read them differently: with a zero input, training needs the bias of a
  channel alone, inference its running mean and scale too. A channel that nobody reads even with
  nothing dead goes too: what feeds it may be gone, so its statistics could not be kept up.
  """

  def channels(path: Path) -> np.ndarray:
    shape, support, base = reads[path]
    return _vector(support if base.empty else live[path], shape)

  own = [norm.scale] if norm.bias is None else [norm.scale, norm.bias]
  read = [path for path in own if not reads[path].base.empty] or own
  kept = np.logical_or.reduce([channels(path) for path in read])
  scaled = kept & _vector(reads[norm.scale].support, reads[norm.scale].shape)
  alike = []
  for path in (*own, *norm.statistics):
    shape = reads[path].shape
    if shape and shape[_channel_axis(shape)] == kept.size:
      axes: list[Any] = [None] * len(shape)
      # The bias of a channel without a scale may stay alone.
      axes[_channel_axis(shape)] = kept if path == norm.bias else scaled
      alike.append((path, regions.normal(axes)))
  return alike


def _vector(region: Region, shape: tuple[int, ...]) -> np.ndarray:
  """bool [channels] of a region of a leaf."""
  axis = _channel_axis(shape)
  return (
    np.zeros(shape[axis], bool) if region.empty else regions.vector(region.axes[axis], shape[axis])
  )


def _channel_axis(shape: tuple[int, ...]) -> int:
  return batch_norms.channel_axis(jax.ShapeDtypeStruct(shape, bool))


def _left(reads: _Reads, live: Region) -> Region:
  """What is left of a leaf: all but what went because of dead channels, axis by axis.

  An index that nobody reads even with nothing dead stays, unless it was zeroed itself.
  """
  shape, support, base = reads
  if base.empty:  # not read at all by this function: only its own zeros go
    return support
  if live.empty:
    return live
  axes = []
  for now, always, size in zip(live.axes, base.axes, shape, strict=True):
    axes.append(regions.vector(now, size) | ~regions.vector(always, size))
  return regions.intersect(regions.normal(axes), support)


def _check_alive(
  program: Program,
  base: analysis.Analysis,
  found: analysis.Analysis,
  first: int,
  zero: Mapping[Path, np.ndarray],
) -> None:
  """Raises when no argument is read any more that was read before."""
  numbers = program.inputs[first:]
  read = [i for i in numbers if not base.live[i].empty]
  if read and all(found.live[i].empty for i in read):
    gone = [tree.show(path) for path in zero if zero[path].all()]
    ends = [str(eqn) for eqn in _dead_ends(program, found.facts, numbers)]
    raise CutThroughError(
      'the network is cut through: its results no longer depend on its inputs. '
      f'Layers that lose every channel: {", ".join(gone) or "none"}. '
      f'What depends on the inputs ends in: {"; ".join(ends[:3]) or "its results"}. '
      'Remove a smaller fraction, or keep some channels of every layer (min_channels=, '
      'max_fraction=).'
    )


def _dead_ends(program: Program, facts: list[Fact], inputs: list[int]) -> list[Equation]:
  """The equations that make nothing but zeros of what depends on `inputs`."""
  alive, ends = set(inputs), []
  for eqn in program.equations:
    if alive.intersection(eqn.inputs):
      left = [i for i in eqn.outputs if not facts[i].support.empty]
      alive.update(left)
      ends += [] if left else [eqn]
  return ends
