"""`plan`: from dead channels to the live indices of every variable."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
import functools
from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax import batch_norms, jaxprs, tree
from slim_jax.channels import absorb, analysis, explain, programs, regions
from slim_jax.channels.cuts import Cut, Fold
from slim_jax.channels.dead import Zeros, without, zeroed
from slim_jax.channels.plan import Plan
from slim_jax.channels.regions import Region
from slim_jax.channels.rule import RULES, Fact, Rule, Walk
from slim_jax.errors import SlimError
from slim_jax.jaxprs import Equation, Program
from slim_jax.tree import Path


def plan(
  f: 'Callable[..., Any] | Traced',
  variables: Any,
  *args: Any,
  dead: Any,
  outs: Any = None,
  bias: str = 'zero',
  also: Sequence[tuple[Callable[..., Any], tuple[Any, ...], Any]] = (),
  rules: Mapping[Any, Rule] = RULES,
) -> Plan:
  """Finds which indices of the variables stay live when dead channels are removed.

  Zeros of the dead scales and biases are followed forward through the jaxpr of `f`, and need is
  followed backward from its results. What is needed and not zero is live. With nothing dead the
  plan is the identity.

  Args:
    f: `f(variables, *args)`, a pure function that returns any pytree. Plan with the function whose
      results must not change: usually inference.
    variables: the tree to slice, arrays or `jax.ShapeDtypeStruct`s.
    *args: further arguments (arrays or shapes); the batch size does not matter.
    dead: tree like `variables`: a bool vector [channels] at each scale leaf, True = remove, None
      elsewhere, as `select_global` returns.
    outs: prefix tree over the results of `f`: None where a result is wanted whole (default), a
      path string ('batch_stats', '' for all) where it is the new state of that part of the
      variables. Statistics of removed channels are then not wanted.
    bias: 'zero' removes the biases of dead channels with their scales, as in the paper. 'keep' folds
      the constant that a removed channel still emits into the next kernel (see `absorb`), so
      removing a channel whose scale is zero changes nothing:
      `thin(f, plan)(plan.slice(v), x) == f(mask(v, dead, bias='keep'), x)` for the variables given
      here. Biases that no kernel can take over stay.
    also: further functions of the same variables whose results must not change, each as
      `(g, args, outs)` for `g(variables, *args)`: what any of the functions needs stays. Give the
      training function here if it reads what inference does not, such as noise before a layer or a
      norm of weights.
    rules: the table of rules by primitive (see `rule`); extend it for primitives of your own.

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
    ValueError: if `dead` does not fit the variables, if the results would no longer depend on
      `args`, or if `bias='keep'` gets shapes for variables.
  """
  zero = zeroed(variables, dead, bias)
  traced = f if isinstance(f, Traced) else Traced(f, variables, *args, rules=rules)
  networks = [_network(traced, variables, outs)]
  networks += [
    _network(Traced(g, variables, *further, rules=rules), variables, outs_of_g)
    for g, further, outs_of_g in also
  ]
  folds: dict[Path, Fold] = {}
  after = [_after(network, _zeroed_supports(network, zero)) for network in networks]
  if bias == 'keep':
    given = [args, *(further for _, further, _ in also)]
    folds = _common(
      [
        (network, _folds(network, state.facts, zero, own))
        for network, state, own in zip(networks, after, given, strict=True)
      ]
    )
    after = [
      _after(network, _folded_supports(network, state.supports, folds))
      for network, state in zip(networks, after, strict=True)
    ]
  needs, left = _settled(networks, after)
  for network, needed in zip(networks, needs, strict=True):
    _check_alive(network, needed, zero)
  return Plan(
    {
      path: Cut(tuple(leaf.shape), left[path].live, left[path].filled, support)
      for (path, leaf), support in zip(networks[0].leaves.items(), after[0].supports)
    },
    tuple(dict.fromkeys(_without_rule(networks, needs))),
    {} if traced is f else _reasons(networks, needs),
    {path: (fold,) for path, fold in folds.items()},
  )


def _without_rule(
  networks: Sequence['_TracedNetwork'], needs: Sequence[analysis.Analysis]
) -> Iterator[str]:
  for network, needed in zip(networks, needs, strict=True):
    yield from analysis.without_rule(network.program, needed)


def _reasons(
  networks: Sequence['_TracedNetwork'], needs: Sequence[analysis.Analysis]
) -> dict[Path, str]:
  """Why axes stayed whole, by the first of the functions that says so."""
  reasons: dict[Path, str] = {}
  for network, needed in zip(networks, needs, strict=True):
    own = explain.reasons(network.program, needed, network.numbers, network.data)
    reasons = {**own, **reasons}
  return reasons


class Traced:
  """A function traced once, for callers that plan it often with the same arguments.

  What does not depend on the dead channels is computed once. The plans do not explain why an axis
  stayed whole.

  Args:
    f: `f(variables, *args)`.
    *args: its arguments, variables first: arrays or `jax.ShapeDtypeStruct`s.
    rules: as for `plan`.
  """

  def __init__(self, f: Callable[..., Any], *args: Any, rules: Mapping[Any, Rule] = RULES):
    self.trace = programs.trace(f, *jax.tree.map(jaxprs.struct, args))
    self.walk = Walk(rules)  # of the network with nothing dead
    self._results: dict[Hashable, Any] = {}

  def whole_facts(self) -> list[Fact]:
    """Where values may be non-zero with nothing dead."""
    program, _ = self.trace
    inputs = analysis.unknown(program)
    return self.once('facts', lambda: analysis.forward(program, inputs, walk=self.walk))

  def once(self, key: Hashable, find: Callable[[], Any]) -> Any:
    """Returns `find()`, computed the first time that `key` is asked for."""
    if key not in self._results:
      self._results[key] = find()
    return self._results[key]


class DisconnectedError(SlimError, ValueError):
  """So much is dead that the results would no longer depend on the inputs."""


class _TracedNetwork(NamedTuple):
  """The traced function and its variables.

  Attributes:
    traced: the function.
    program: its program.
    leaves: the variables by path: the first inputs of the program.
    numbers: value number of each of them.
    states: for each output, the path of the variable whose new value it is, or None.
    norms: the BatchNorms among the variables.
    statistics: paths of their running statistics.
  """

  traced: Traced
  program: Program
  leaves: Mapping[Path, Any]
  numbers: Mapping[Path, int]
  states: tuple[Path | None, ...]
  norms: list[batch_norms.BatchNorm]
  statistics: set[Path]

  @property
  def data(self) -> list[int]:
    """Value numbers of the other arguments."""
    return self.program.inputs[len(self.leaves) :]


class _After(NamedTuple):
  """The network with dead channels: where each input is not zero, and facts by value number."""

  supports: list[Region]
  facts: list[Fact]
  walk: Walk


def _network(traced: Traced, variables: Any, outs: Any) -> _TracedNetwork:
  program, results = traced.trace
  leaves = tree.flatten(variables)
  states = tuple(tree.states(outs, results))
  if lost := [tree.show(path) for path in states if path is not None and path not in leaves]:
    raise ValueError(f'outs: the variables have no leaf {", ".join(lost)}')
  norms = batch_norms.find(variables)
  statistics = {path for norm in norms for path in norm.statistics}
  numbers = dict(zip(leaves, program.inputs))
  return _TracedNetwork(traced, program, leaves, numbers, states, norms, statistics)


def _zeroed_supports(network: _TracedNetwork, zero: Mapping[Path, Zeros]) -> list[Region]:
  """Where each input may be non-zero when these channels of leaves are zero."""
  program = network.program
  supports = [regions.whole(len(program.avals[i].shape)) for i in program.inputs]
  for n, path in enumerate(network.leaves):
    if path in zero:
      axis, channels = zero[path]
      supports[n] = regions.along(supports[n], axis, ~channels)
  return supports


def _folded_supports(
  network: _TracedNetwork, supports: list[Region], folds: Mapping[Path, Fold]
) -> list[Region]:
  """The supports without the slices of kernels that folds leave unused."""
  supports = list(supports)
  for n, (path, leaf) in enumerate(network.leaves.items()):
    if path in folds:
      fold = folds[path]
      supports[n] = regions.along(supports[n], fold.axis, fold.kept(leaf.shape[fold.axis]))
  return supports


def _after(network: _TracedNetwork, supports: list[Region]) -> _After:
  """Follows the zeros of the inputs forward."""
  before = network.traced.whole_facts()
  inputs = [
    before[i] if support.is_whole else Fact(support)
    for i, support in zip(network.program.inputs, supports, strict=True)
  ]
  walk = Walk(network.traced.walk.rules)
  facts = analysis.forward(network.program, inputs, walk=walk, before=before)
  return _After(supports, facts, walk)


def _needed(
  network: _TracedNetwork, facts: list[Fact], kept: Mapping[Path, '_Left'], walk: Walk
) -> analysis.Analysis:
  """Follows need backward; of new statistics only those of `kept` channels are wanted."""
  demands = []
  for number, path in zip(network.program.outputs, network.states, strict=True):
    rank = len(network.program.avals[number].shape)
    if path is None or path not in network.statistics:
      demands.append(regions.whole(rank))
    else:
      demands.append(kept[path].filled if path in kept else regions.nothing(rank))
  return analysis.backward(network.program, facts, demands, walk=walk)


def _settled(
  networks: Sequence[_TracedNetwork], after: Sequence[_After]
) -> tuple[list[analysis.Analysis], dict[Path, '_Left']]:
  """Analyses until the statistics that are wanted are those of the channels that are kept.

  Returns:
    The analysis of each function, and what is left of each leaf.
  """
  wants_statistics = any(not n.statistics.isdisjoint(n.states) for n in networks)
  bases = [_base(network) for network in networks]
  norms = networks[0].norms
  kept: dict[Path, _Left] = {}
  while True:
    needs = [
      _needed(network, state.facts, kept, state.walk)
      for network, state in zip(networks, after, strict=True)
    ]
    leaves = {
      path: _Leaf(
        tuple(leaf.shape), support, _read(networks, bases, path), _read(networks, needs, path)
      )
      for (path, leaf), support in zip(networks[0].leaves.items(), after[0].supports)
    }
    before, kept = kept, dict(pair for norm in norms for pair in _together(norm, leaves))
    settled = all(path in before and before[path].is_same(left) for path, left in kept.items())
    if settled or not wants_statistics:
      return needs, {path: kept.get(path) or _left(leaf) for path, leaf in leaves.items()}


def _base(network: _TracedNetwork) -> analysis.Analysis:
  """What is read with nothing dead."""
  traced = network.traced
  return traced.once(
    ('base', *network.states), lambda: _needed(network, traced.whole_facts(), {}, traced.walk)
  )


def _read(
  networks: Sequence[_TracedNetwork], analyses: Sequence[analysis.Analysis], path: Path
) -> Region:
  """The region of a leaf that any of the functions reads."""
  return functools.reduce(
    regions.union,
    (needed.live[n.numbers[path]] for n, needed in zip(networks, analyses, strict=True)),
  )


class _Leaf(NamedTuple):
  """Of one leaf: its shape, where it is not zeroed, and what is read before and after."""

  shape: tuple[int, ...]
  support: Region
  base: Region
  live: Region


class _Left(NamedTuple):
  """What is left of a leaf, and which of it is not zero; see `Cut`."""

  live: Region
  filled: Region

  def is_same(self, other: '_Left') -> bool:
    return all(map(regions.same, self, other))


def _together(
  norm: batch_norms.BatchNorm, leaves: Mapping[Path, _Leaf]
) -> list[tuple[Path, _Left]]:
  """The leaves of one BatchNorm lose the same channels: those that no function may need.

  Inference and training read them differently. With a zero input, training needs the bias of a
  channel alone, inference its running mean and scale too. A channel that is not read even with
  nothing dead is removed too: its inputs may be gone, so its statistics could not be updated. Where
  a bias stays without its scale, scale and statistics stay as zeros, so that all leaves have the
  same channels.
  """
  own = [norm.scale] if norm.bias is None else [norm.scale, norm.bias]
  read = [path for path in own if not leaves[path].base.empty] or own
  axes = {path: _axis(leaves[path], leaves[norm.scale]) for path in (*own, *norm.statistics)}

  def channels(path: Path, region: Region) -> np.ndarray:
    return regions.vector(region.axes[axes[path]], leaves[path].shape[axes[path]])

  kept = np.logical_or.reduce(
    [
      channels(path, leaves[path].support if leaves[path].base.empty else leaves[path].live)
      for path in read
    ]
  )
  scaled = kept & channels(norm.scale, leaves[norm.scale].support)
  alike = []
  for path, axis in axes.items():
    shape = leaves[path].shape
    if shape and shape[axis] == kept.size:
      filled = kept & channels(path, leaves[path].support) if path == norm.bias else scaled
      left = [regions.along(regions.whole(len(shape)), axis, vector) for vector in (kept, filled)]
      alike.append((path, _Left(*left)))
  if all(regions.contains(left.live, leaves[path].live) for path, left in alike):
    return alike
  # Scales [layers, channels] that are zeroed layer by layer: the loop reads the others of all layers.
  whole = {path: regions.whole(len(leaves[path].shape)) for path in axes}
  return [(path, _Left(whole[path], leaves[path].support)) for path in axes]


def _axis(leaf: _Leaf, scale: _Leaf) -> int:
  """The axis of the channels of a leaf of a BatchNorm: where its scale is zeroed, if it is."""
  zeroed = [i for i, axis in enumerate(scale.support.axes) if axis is not None]
  if leaf.shape == scale.shape and len(zeroed) == 1 and not scale.support.empty:
    return zeroed[0]
  return batch_norms.channel_axis(jax.ShapeDtypeStruct(leaf.shape, bool))


def _left(leaf: _Leaf) -> _Left:
  """What is left of a leaf: all but what was removed because of dead channels, axis by axis.

  An index that is not read even with nothing dead stays, unless it was zeroed itself.
  """
  if leaf.live.empty and not leaf.base.empty:
    return _Left(leaf.live, leaf.live)
  axes = [
    regions.vector(now, size) | ~regions.vector(always, size)
    for now, always, size in zip(leaf.live.axes, leaf.base.axes, leaf.shape, strict=True)
  ]
  left = regions.intersect(regions.normal(axes), leaf.support)
  return _Left(left, left)


def _folds(
  network: _TracedNetwork, after: list[Fact], zero: Mapping[Path, Zeros], args: tuple[Any, ...]
) -> dict[Path, Fold]:
  """Kernels that take over what the biases of dead channels contribute."""
  leaves = network.leaves
  if shapes := [path for path, v in leaves.items() if isinstance(v, jax.ShapeDtypeStruct)]:
    raise ValueError(
      f"bias='keep' needs the values of the variables, not their shapes: {tree.show(shapes[0])}"
    )
  arrays = [without(leaf, zero.get(path)) for path, leaf in leaves.items()]
  data = dict(zip(network.data, jax.tree.leaves(args), strict=True))
  traced = network.traced
  folds = absorb.find(network.program, traced.whole_facts(), after, arrays, data, traced.walk)
  return {list(leaves)[n]: fold for n, fold in folds.items()}


def _common(found: Sequence[tuple[_TracedNetwork, Mapping[Path, Fold]]]) -> dict[Path, Fold]:
  """The folds that hold in every function that reads the kernel.

  Dropout or noise in training, for one, makes of a constant what changes.
  """
  (_, first), *others = found

  def holds(path: Path, fold: Fold) -> bool:
    return all(
      _base(network).live[network.numbers[path]].empty
      or (path in folds and fold.is_close(folds[path]))
      for network, folds in others
    )

  return {path: fold for path, fold in first.items() if holds(path, fold)}


def _check_alive(
  network: _TracedNetwork, needed: analysis.Analysis, zero: Mapping[Path, Zeros]
) -> None:
  """Raises if the arguments that are read with nothing dead are no longer read at all."""
  base = _base(network)
  read = [i for i in network.data if not base.live[i].empty]
  if read and all(needed.live[i].empty for i in read):
    gone = [tree.show(path) for path in zero if zero[path].channels.all()]
    ends = [str(eqn) for eqn in _dead_ends(network, needed.facts)]
    raise DisconnectedError(
      'the network is disconnected: its results no longer depend on its inputs. '
      f'Layers that lose every channel: {", ".join(gone) or "none"}. '
      f'What depends on the inputs ends in: {"; ".join(ends[:3]) or "its results"}. '
      'Remove a smaller fraction, or keep some channels of every layer (min_channels=, '
      'max_fraction=).'
    )


def _dead_ends(network: _TracedNetwork, facts: list[Fact]) -> list[Equation]:
  """The equations whose results are all zero although operands depend on the inputs."""
  alive, ends = set(network.data), []
  for eqn in network.program.equations:
    if alive.intersection(eqn.inputs):
      left = [i for i in eqn.outputs if not facts[i].support.empty]
      alive.update(left)
      ends += [] if left else [eqn]
  return ends
