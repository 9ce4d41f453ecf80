"""Prints how the code is laid out: python tests/house.py

A room is a file or a folder of slim_jax/. An arrow leads from a room to another that it imports,
and climbs unless it ends on a lower floor.
"""

import ast
import collections
from collections.abc import Iterator
import itertools
import pathlib
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'slim_jax'
TOP = 'slim_jax'  # the room of slim_jax/__init__.py, what the library offers

# Each floor may import from the floors below it, and a room from itself.
LIBRARY = [
  {'errors', 'tree'},
  {'shardings', 'npz'},
  {'jaxprs'},
  {'batch_norms', 'cpu'},
  {'channels', 'sparsity'},
  {'costs', 'models'},
  {'structure'},
  {'selection'},
  {'adapters'},
  {'linen', 'nnx', 'equinox', 'haiku', 'keras'},
  {TOP},
]
PROGRAM = [
  {'runtime'},
  {'display'},
  {'data'},
  {'training'},
  {'runs'},
  {'command'},
  {'report', 'export'},
  {'main', 'look', 'sweep', 'latency'},
  {'cli'},
]
FLOORS = {room: floor for floor, rooms in enumerate(LIBRARY + PROGRAM) for room in rooms}
# `slim_jax.load` imports the program when it is called.
CLIMBS = {(TOP, 'runs')}


class Import(NamedTuple):
  """A file that imports something of another room, or of its own."""

  path: pathlib.Path
  here: str
  there: str


def sources() -> list[pathlib.Path]:
  return sorted(PACKAGE.rglob('*.py'))


def room_of(path: pathlib.Path) -> str:
  """Returns the room of a file."""
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return TOP if parts == ('__init__',) else parts[0]


def imports(path: pathlib.Path) -> Iterator[Import]:
  """Yields what a file imports of slim_jax, wherever in the file."""
  for node in ast.walk(ast.parse(path.read_text())):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom) and node.module == TOP:
      names = [f'{TOP}.{alias.name}' for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = [node.module or '']
    for name in names:
      top, _, rest = name.partition('.')
      if top == TOP:
        first = rest.partition('.')[0]
        yield Import(path, room_of(path), first if first in FLOORS else TOP)


def arrows() -> set[tuple[str, str]]:
  """Returns the pairs of rooms of which the first imports the second."""
  pairs = {(one.here, one.there) for path in sources() for one in imports(path)}
  return {(here, there) for here, there in pairs if here != there}


def climbs() -> set[tuple[str, str]]:
  """Returns the arrows that do not end on a lower floor."""
  return {(here, there) for here, there in arrows() if FLOORS[there] >= FLOORS[here]}


def readmes() -> list[pathlib.Path]:
  """Returns the README of every folder that has one."""
  paths = itertools.chain(*(ROOT.glob(f'{"*/" * depth}README.md') for depth in range(4)))
  return sorted(path for path in paths if not path.relative_to(ROOT).parts[0].startswith('.'))


def lines(path: pathlib.Path) -> int:
  return len(path.read_text().splitlines())


def main() -> None:
  print('files per folder:')
  for folder, count in collections.Counter(path.parent for path in sources()).items():
    print(f'  {folder.relative_to(ROOT)}: {count}')
  longest = max(sources(), key=lines)
  print(f'longest file: {longest.relative_to(ROOT)}, {lines(longest)} lines')
  print(f'rooms: {len({room_of(path) for path in sources()})} on {len(LIBRARY + PROGRAM)} floors')
  print(f'arrows: {len(arrows())}')
  print(f'climbs: {len(climbs())}', *sorted(f'({here} -> {there})' for here, there in climbs()))
  for path in readmes():
    print(f'words in {path.relative_to(ROOT)}: {len(path.read_text().split())}')
  configs = sorted((ROOT / 'configs').glob('*.py'))
  print(f'lines in configs/: {sum(map(lines, configs))} in {len(configs)} files')


if __name__ == '__main__':
  main()
