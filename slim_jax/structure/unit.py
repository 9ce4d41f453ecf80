"""`Unit`: channels that go together, and `Units`: all that a network has."""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import difflib
import fnmatch

import numpy as np

from slim_jax import tree
from slim_jax.errors import SlimError
from slim_jax.tree import Path


def names_of(path: Path) -> tuple[str, ...]:
  """Returns the names of the modules of a variable and its own: '/' in keys joins names.

  The collection of parameters and what NNX adds are left out.
  """
  names = tuple(name for key in path for name in key.split('/'))
  names = names[1:] if len(names) > 1 and names[0] in ('params', 'trainable', '0') else names
  return names[:-1] if len(names) > 1 and names[-1] in ('value', 'raw_value') else names


class UnitsError(SlimError, ValueError):
  """Units do not fit what they are asked for or used with."""


@dataclasses.dataclass(frozen=True)
class Place:
  """An axis of a variable from which every unit takes indices.

  Attributes:
    path: of the variable.
    axis: of the variable.
    member: int32 [axis size]: the unit that each index goes with, -1 for none.
    role: 'reader' if the axis is summed over with the channels, 'maker', 'batch', 'norm' (the scale
      of a norm over the channels), 'scale' or 'bias'.
    gated: whether `gate` multiplies the gates into this axis.
    layers: axis of the variable along which a scan runs over layers; None if there is none.
  """

  path: Path
  axis: int
  member: np.ndarray
  role: str
  gated: bool
  layers: int | None = None

  def __str__(self) -> str:
    size, count = len(self.member), int((self.member == 0).sum())
    taken = f'{count} of ' if count > 1 or size != self.member.max() + 1 else ''
    return f'{names_of(self.path)[-1] if self.path else ""}[{self.axis}] {taken}{size}'


@dataclasses.dataclass(frozen=True)
class Unit:
  """One kind of channels of one part of a network, such as the heads of one attention layer.

  Attributes:
    name: module path and kind, 'Block_0/Dense_0/neurons'.
    kind: 'channels', 'neurons', 'heads', 'kv_groups', 'query_heads', 'query_key_dims',
      'rotary_pairs', 'value_dims', 'head_dims', 'norm_groups', 'group_positions', 'stream',
      'hidden' or 'experts'.
    size: number of units, each of which can go.
    places: which indices of which variables go with each of them.
    layers: number of layers stacked under a scan that have these units; 0 if they are not stacked.
    params: number of parameters that go with one unit (in all stacked layers).
    macs: multiply-accumulates that go with one unit, for the batch of the traced arguments.
    fixed: why units cannot change places (see `align`); '' if they can.
    norm: 'rms' if an RMSNorm runs over the channels, 'centred' if a norm subtracts their mean,
      'other' if the scale of the norm is computed from a variable, as 1 + w; '' if there is none.
  """

  name: str
  kind: str
  size: int
  places: tuple[Place, ...]
  layers: int
  params: int
  macs: int
  fixed: str = ''
  norm: str = ''

  @property
  def shape(self) -> tuple[int, ...]:
    """Shape of the gates: [size], or [layers, size]."""
    return (self.layers, self.size) if self.layers else (self.size,)

  @property
  def gated(self) -> tuple[Place, ...]:
    """The places that gates are multiplied into."""
    return tuple(place for place in self.places if place.gated)


class Units(Mapping[str, Unit]):
  """The units of a network by name; printed, a table.

  Attributes:
    whole: why nothing of an axis can go, by variable: for axes that belong to no unit.
  """

  def __init__(self, found: Iterable[Unit], whole: Mapping[Path, str]):
    self._units = {unit.name: unit for unit in found}
    self.whole = dict(whole)

  def __getitem__(self, name: str) -> Unit:
    return self._units[name]

  def __iter__(self) -> Iterator[str]:
    return iter(self._units)

  def __len__(self) -> int:
    return len(self._units)

  def where(self, patterns: str | Iterable[str] | None) -> 'Units':
    """Returns the units whose kind or name matches one of the patterns.

    Args:
      patterns: kinds ('heads') and patterns of `fnmatch` for whole names ('*Block_0*'), as a list or
        joined by commas. None: all units.

    Raises:
      UnitsError: a pattern matches nothing.
    """
    if patterns is None:
      return self
    listed = patterns.split(',') if isinstance(patterns, str) else list(patterns)
    chosen = {name for pattern in listed for name in self._matching(pattern.strip())}
    return Units([unit for unit in self.values() if unit.name in chosen], self.whole)

  def _matching(self, pattern: str) -> list[str]:
    names = [
      unit.name
      for unit in self.values()
      if pattern == unit.kind or fnmatch.fnmatchcase(unit.name, pattern)
    ]
    if not names:
      kinds = sorted({unit.kind for unit in self.values()})
      near = difflib.get_close_matches(pattern, [*kinds, *self], n=3, cutoff=0.4)
      raise UnitsError(
        f'where: no unit is named or of the kind {pattern!r}. Kinds of this network: '
        f'{", ".join(kinds) or "none"}.'
        + (f' The nearest are {", ".join(near)}.' if near else '')
        + (f' Why nothing can go: {self._why()}' if not self else '')
      )
    return names

  def _why(self) -> str:
    return '; '.join(f'{tree.show(path)}: {why}' for path, why in list(self.whole.items())[:5])

  def __str__(self) -> str:
    rows = [('unit', 'size', 'params', 'MACs', 'of each, with one unit')]
    for unit in self.values():
      size = f'{unit.layers} x {unit.size}' if unit.layers else str(unit.size)
      rows.append((unit.name, size, str(unit.params), str(unit.macs), _taken(unit)))
    sizes = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
      '  '.join([*(text.ljust(n) for text, n in zip(row, sizes)), row[4]]).rstrip() for row in rows
    ]
    if self.whole:
      lines += ['', 'stay whole:']
      lines += [f'  {tree.show(path)}: {why}' for path, why in self.whole.items()]
    return '\n'.join(lines)


def _taken(unit: Unit) -> str:
  """What goes with one unit: axes by module, * where the gates are; the first few."""
  shown: dict[str, dict[str, int]] = {}
  for place in unit.places:
    axes = shown.setdefault('/'.join(names_of(place.path)[-2:-1]), {})
    text = f'{place}{"*" if place.gated else ""}'
    axes[text] = axes.get(text, 0) + 1
  texts = [
    f'{module}: ' + ', '.join(f'{text} ({n} times)' if n > 1 else text for text, n in axes.items())
    for module, axes in shown.items()
  ]
  more = f'; and {len(texts) - 4} more' if len(texts) > 4 else ''
  return '; '.join(texts[:4]) + more
