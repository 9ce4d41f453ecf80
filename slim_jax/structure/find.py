"""`units`: finds every group of channels that can go together, from the jaxpr alone.

trace       which axes of which values are the same, and how they are used
candidates  the atoms of the variables' axes, without those that are pinned
question    where each unit's gates go: the analysis is asked what dies with one of each
kinds       what to call it
"""

from collections.abc import Callable, Iterable
import itertools
import math
import os
from typing import Any

import jax
import numpy as np

from slim_jax import batch_norms, jaxprs, tree
from slim_jax.channels import planning
from slim_jax.channels.regions import Region
from slim_jax.structure import candidates, kinds, question
from slim_jax.structure.candidates import Candidate, Spot
from slim_jax.structure.question import Answer
from slim_jax.structure.terms import Term
from slim_jax.structure.trace import Axis, Structure, Value, of_shape
from slim_jax.structure.transfers import TRANSFERS, by_rule
from slim_jax.structure.unit import Place, Unit, Units, names_of
from slim_jax.tree import Path

_Leaves = dict[Path, jax.ShapeDtypeStruct]


def units(
  f: Callable[..., Any], variables: Any, *args: Any, where: str | Iterable[str] | None = None
) -> Units:
  """Finds every group of channels of a network that can go together.

  Axes are followed through the jaxpr of `f`: elementwise operations tie the axes of their operands,
  contractions tie what they sum over, reshapes and concatenations make axes of others. What is
  neither an axis of the arguments nor of the results can go. Nothing is computed.

  Args:
    f: `f(variables, *args)`, a pure function that returns any pytree: usually inference.
    variables: arrays or `jax.ShapeDtypeStruct`s.
    *args: further arguments (arrays or shapes).
    where: which units: kinds ('heads,neurons') and patterns for names ('*Block_0*'), as a list or
      joined by commas. Default: all.

  Returns:
    The `Units` by name. Printed, a table of what goes with one of each, and of why other axes stay
    whole.

  Raises:
    UnitsError: an entry of `where` matches nothing.

  Example:
    >>> import jax.numpy as jnp, slim_jax
    >>> mlp = lambda v, x: jnp.tanh(x @ v['up']) @ v['down']
    >>> variables = {'up': jnp.ones((3, 8)), 'down': jnp.ones((8, 2))}
    >>> slim_jax.units(mlp, variables, jnp.ones((1, 3)))['neurons'].size
    8
  """
  traced = planning.Traced(f, variables, *args)
  leaves = tree.flatten(jax.tree.map(jaxprs.struct, variables))
  statistics = {path for norm in batch_norms.find(variables) for path in norm.statistics}
  base = question.regions_needed(traced)
  structure, axes = _followed(traced, base, list(leaves.values()))
  possible = candidates.of(structure, axes, leaves, statistics)
  settled = question.settle(traced, base, possible.found)
  for candidate in settled.refused:
    possible.refuse(candidate)
  whole = {path: '; '.join(why) for path, why in possible.whole.items() if why}
  return Units(_named(settled.answers, structure, leaves, statistics), whole).where(where)


def _followed(
  traced: planning.Traced, base: list[Region], leaves: list[jax.ShapeDtypeStruct]
) -> tuple[Structure, list[tuple[Term, ...]]]:
  """Follows the axes through the program; returns what is found, and the variables' terms."""
  program, _ = traced.trace
  structure = Structure(traced.walk, TRANSFERS, by_rule)
  inputs = []
  for n, leaf in enumerate(leaves):
    axes = tuple(Axis(Term(size), frozenset({(n, i)})) for i, size in enumerate(leaf.shape))
    inputs.append(Value(axes, False))
  for number in program.inputs[len(leaves) :]:
    inputs.append(of_shape(program.avals[number].shape, is_data=True))
    structure.pin('comes from the data', *(axis.term for axis in inputs[-1].axes))
  for value in structure.connect(program, traced.whole_facts(), inputs, base):
    structure.pin('reaches the output', *(axis.term for axis in value.axes))
  return structure, [tuple(axis.term for axis in value.axes) for value in inputs[: len(leaves)]]


def _named(
  settled: dict[Candidate, Answer], structure: Structure, leaves: _Leaves, statistics: set[Path]
) -> list[Unit]:
  """The units of the candidates that were settled."""
  gone = {c: [spot for k, spot in enumerate(c.spots) if k in a.gone] for c, a in settled.items()}
  kept = {
    c.atom: {(s.variable, s.axis) for s in c.spots} - {(s.variable, s.axis) for s in gone[c]}
    for c in settled
  }
  of_kind, macs = kinds.of(list(settled)), candidates.macs_of(structure, kept)
  stacks = {variable: (axis, scan) for (variable, axis), scan in structure.stacked.items()}
  result: dict[str, Unit] = {}
  for candidate, answer in settled.items():
    gates = [candidate.spots[k] for k in answer.gated]
    places = tuple(_place(spot, spot in gates, stacks) for spot in gone[candidate])
    name = _name(of_kind[candidate], places, result)
    result[name] = Unit(
      name,
      of_kind[candidate],
      candidate.atom.size,
      places,
      _layers(gone[candidate], stacks, leaves),
      _params([p for p in places if p.path not in statistics], leaves),
      macs[candidate.atom],
      'constants differ from position to position' if 'positions' in candidate.notes else '',
      _norm(candidate, of_kind[candidate]),
    )
  return list(result.values())


def _norm(candidate: Candidate, kind: str) -> str:
  """What kind of norm runs over a unit's channels."""
  if not any('norm' in spot.roles for spot in candidate.spots) or 'summed' not in candidate.notes:
    return ''
  if 'centred' in candidate.notes or kind == 'group_positions':
    return 'centred'
  return 'other' if 'changed' in candidate.notes else 'rms'


def _place(spot: Spot, gated: bool, stacks: dict[int, tuple[int, int]]) -> Place:
  layers, _ = stacks.get(spot.variable, (None, None))
  role = next(r for r in ('reader', 'batch', 'maker', 'bias', 'norm', 'scale') if r in spot.roles)
  return Place(spot.path, spot.axis, spot.member, role, gated, layers)


def _layers(spots: list[Spot], stacks: dict[int, tuple[int, int]], leaves: _Leaves) -> int:
  """Number of layers, if all of the variables are stacked under the same scan; else 0."""
  scans = {stacks.get(spot.variable, (0, None))[1] for spot in spots}
  if len(scans) > 1 or None in scans:
    return 0
  return leaves[spots[0].path].shape[stacks[spots[0].variable][0]]


def _params(places: list[Place], leaves: _Leaves) -> int:
  """Number of parameters that go with one unit."""
  count = 0
  for path, own in itertools.groupby(sorted(places, key=lambda p: p.path), key=lambda p: p.path):
    left = math.prod(1 - np.count_nonzero(p.member == 0) / len(p.member) for p in own)
    count += round((1 - left) * math.prod(leaves[path].shape))
  return count


def _name(kind: str, places: tuple[Place, ...], taken: Iterable[str]) -> str:
  """A name that no other unit has: the module that makes the channels, and the kind."""
  made = [p for p in places if p.role == 'maker' or kind == 'stream']
  modules = [names_of(place.path)[:-1] for place in made]
  modules = modules or [names_of(places[0].path)[:-1]]
  common = tuple(os.path.commonprefix(modules))
  options = [common, modules[0]] if common or kind == 'stream' else modules[:1]
  names = ['/'.join((*module, kind)) for module in options]
  numbered = (f'{names[-1]}_{n}' for n in itertools.count(1))
  return next(name for name in itertools.chain(names, numbered) if name not in taken)
