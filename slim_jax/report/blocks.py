"""What the sections of a page consist of: paragraphs, tables, bars, figures, facts.

Plain data. `templates/page.html.j2` has the markup of each `kind` and escapes all text.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
from typing import ClassVar, Literal, TypeAlias

from absl import logging

from slim_jax.errors import SlimError
from slim_jax.report.read import Missing

# Fields of a start that differ each time; the others are versions and devices.
_OF_A_START = ('command', 'time')


@dataclasses.dataclass(frozen=True)
class Paragraph:
  """A paragraph of text."""

  kind: ClassVar[str] = 'paragraph'
  text: str
  tone: Literal['plain', 'note', 'warning'] = 'plain'


@dataclasses.dataclass(frozen=True)
class Column:
  """The head of a column: its name, and in small what its values are."""

  name: str
  detail: str = ''


@dataclasses.dataclass(frozen=True)
class Cell:
  """A value of a table, and in small how it compares with another one."""

  value: str
  change: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A table; on narrow screens each row becomes a card."""

  kind: ClassVar[str] = 'table'
  name: str  # its id in the page
  columns: Sequence[Column]
  rows: Sequence[Sequence[Cell]]


@dataclasses.dataclass(frozen=True)
class Bars:
  """A bar for each layer: its name, and its number of channels before and after."""

  kind: ClassVar[str] = 'bars'
  name: str  # its id in the page
  rows: Sequence[tuple[str, int, int]]

  @property
  def longest(self) -> int:
    return max([1, *(before for _, before, _ in self.rows)])


@dataclasses.dataclass(frozen=True)
class Figure:
  """A figure as SVG, with its caption."""

  kind: ClassVar[str] = 'figure'
  svg: str
  caption: str


@dataclasses.dataclass(frozen=True)
class Figures:
  """Figures side by side where the screen is wide enough."""

  kind: ClassVar[str] = 'figures'
  figures: Sequence[Figure]


@dataclasses.dataclass(frozen=True)
class Facts:
  """Names and values."""

  kind: ClassVar[str] = 'facts'
  facts: Sequence[tuple[str, object]]


@dataclasses.dataclass(frozen=True)
class Code:
  """Text in a fixed-width font; folded behind its title if it has one."""

  kind: ClassVar[str] = 'code'
  text: str
  title: str = ''


Block: TypeAlias = Paragraph | Table | Bars | Figure | Figures | Facts | Code


@dataclasses.dataclass(frozen=True)
class Section:
  """A section of the page under its title."""

  title: str
  blocks: Sequence[Block]


def attempt(make: Callable[[], list[Block]]) -> list[Block]:
  """Returns what `make` returns, or a paragraph that says why it cannot be shown.

  A damaged file, or a mistake in this package, costs its part of the page and nothing else.
  """
  try:
    return make()
  except Missing as error:
    return [Paragraph(str(error), 'note')]
  except (SlimError, OSError) as error:
    logging.warning('a part of the report is left out: %s', error)
    return [Paragraph(f'Left out: {error}', 'warning')]
  except Exception as error:  # pylint: disable=broad-except
    logging.exception('a part of the report is left out')
    return [Paragraph(f'Left out: {type(error).__name__}: {error}', 'warning')]


def side_by_side(*parts: Callable[[], list[Block]]) -> list[Block]:
  """Returns the figures of all parts in one row, followed by their other blocks.

  Args:
    *parts: attempted one by one, so that one may fail without the others.
  """
  blocks = [block for part in parts for block in attempt(part)]
  figures = [block for block in blocks if isinstance(block, Figure)]
  others: list[Block] = [block for block in blocks if not isinstance(block, Figure)]
  return [Figures(figures), *others] if figures else others


def of_starts(starts: Sequence[Mapping[str, object]]) -> list[Block]:
  """Returns the commands that produced a result, with the versions and devices of each.

  Args:
    starts: what `versions.of_process` returned for each. A command that was repeated is shown
      once, with all its times; so are versions and devices that did not change.
  """
  if not starts:
    return [Paragraph('Command and versions were not recorded.', 'note')]
  times: dict[tuple[str, tuple], list[str]] = {}
  for start in starts:
    rest = tuple((name, str(value)) for name, value in start.items() if name not in _OF_A_START)
    times.setdefault((str(start.get('command', '')), rest), []).append(str(start.get('time', '')))
  blocks: list[Block] = []
  before = None
  for (command, rest), of_command in times.items():
    facts = [('time', ', '.join(dict.fromkeys(of_command))), *(rest if rest != before else ())]
    blocks += [Code(command), Facts(facts)]
    before = rest
  return blocks
