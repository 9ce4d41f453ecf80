"""What the benchmarks share: calls that take turns, medians, a table in Markdown and in JSON."""

import argparse
from collections.abc import Callable, Mapping, Sequence
import importlib.metadata
import importlib.util
import json
import os
import pathlib
import platform
import statistics
import time
from typing import Any

# After a call, the threads of one library wait a moment for more work, on the cores of the other.
PAUSE = 0.05  # seconds

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}

Times = dict[str, list[float]]


def options(description: str, *, rounds: int, peer: bool = True) -> argparse.ArgumentParser:
  """A parser with the options that all benchmarks have.

  Args:
    description: docstring of the benchmark.
    rounds: how often each call takes its turn, unless told.
    peer: whether there is a PyTorch side, which can be left out.
  """
  parser = argparse.ArgumentParser(
    description=description, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--rounds', type=int, default=rounds, help='turns of each call (%(default)s)')
  parser.add_argument(
    '--clock',
    choices=list(CLOCKS),
    default='wall',
    help='wall time, or CPU time of the process: with one core (taskset -c 0) a '
    'measure that other programs disturb less (%(default)s)',
  )
  parser.add_argument('--json', type=pathlib.Path, help='file for the results')
  if peer:
    parser.add_argument('--alone', action='store_true', help='without PyTorch')
  return parser


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
  """The options of the command line; an error where PyTorch is asked for and not there."""
  found = parser.parse_args()
  if found.rounds < 1:
    parser.error(f'--rounds must be at least 1, got {found.rounds}')
  if not getattr(found, 'alone', True) and importlib.util.find_spec('torch') is None:
    parser.error(
      'PyTorch is not installed: python -m pip install -e .[bench], or --alone to '
      'measure slim_jax without it'
    )
  return found


def cores() -> int:
  """The cores that this process may use, as `taskset` leaves them; JAX takes as many threads."""
  return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()


def take_turns(
  calls: Mapping[str, Callable[[], Any]],
  found: argparse.Namespace,
  *,
  rounds: int = 0,
  warm: int = 1,
) -> Times:
  """Seconds of each call, called in turn so that a noisy machine is noisy to all alike.

  Args:
    calls: by name; each returns when its work is done.
    found: what `parse` found: rounds and clock.
    rounds: how many turns are measured, in place of those found.
    warm: how many turns before are not: the first compiles.

  Returns:
    Seconds of the turns, [rounds] for each name.
  """
  clock = CLOCKS[found.clock]
  times: Times = {name: [] for name in calls}
  for _ in range(warm + (rounds or found.rounds)):
    for name, call in calls.items():
      time.sleep(PAUSE)
      start = clock()
      call()
      times[name].append(clock() - start)
  return {name: seconds[warm:] for name, seconds in times.items()}


def stopwatch(found: argparse.Namespace) -> tuple[dict[str, float], Callable[[str], None]]:
  """(seconds by name, lap): `lap(name)` gives the time since the last lap, or the start, a name."""
  seconds, clock = {}, CLOCKS[found.clock]
  last = clock()

  def lap(name: str) -> None:
    nonlocal last
    now = clock()
    seconds[name], last = now - last, now

  return seconds, lap


def medians(times: Times) -> dict[str, float]:
  """The median of each."""
  return {name: statistics.median(found) for name, found in times.items()}


class Table:
  """Rows that are printed, and written as JSON, as they are found: a long run loses none.

  The JSON has 'machine', 'options', 'columns' and 'rows', cells by column, not rounded.
  """

  def __init__(self, columns: Sequence[str], found: argparse.Namespace, *, title: str = ''):
    """Prints the head; a second table of a benchmark goes to a file with its title in the name."""
    path = found.json
    if path and title:
      path = path.with_stem(f'{path.stem}-{title.replace(" ", "_")}')
    self._path, self._columns, self._rows = path, tuple(columns), []
    self._head = {
      'machine': machine(),
      'options': {name: str(value) for name, value in vars(found).items()},
    }
    self._print(columns)
    self._print(['---'] * len(columns))

  def add(self, *cells: Any) -> None:
    """Adds a row, one cell for each column: text or numbers, None for what there is not."""
    self._rows.append(dict(zip(self._columns, cells, strict=True)))
    self._print(map(_text, cells))
    if self._path:
      self._path.write_text(
        json.dumps({**self._head, 'columns': self._columns, 'rows': self._rows}, indent=1) + '\n'
      )

  def _print(self, cells: Any) -> None:
    print('|', ' | '.join(cells), '|', flush=True)


def machine() -> dict[str, Any]:
  """What the figures are of: processor, cores used, versions, memory in huge pages or not."""
  versions = {}
  for name in ('jax', 'flax', 'torch', 'torch-pruning', 'keras'):
    if importlib.util.find_spec(name.replace('-', '_')):
      versions[name] = importlib.metadata.version(name)
  return {
    'processor': _processor(),
    'cores': cores(),
    'python': platform.python_version(),
    'malloc': os.environ.get('GLIBC_TUNABLES', ''),
    **versions,
  }


def _processor() -> str:
  info = pathlib.Path('/proc/cpuinfo')
  lines = info.read_text().splitlines() if info.exists() else []
  names = [line.partition(':')[2].strip() for line in lines if line.startswith('model name')]
  return names[0] if names else platform.processor()


def _text(cell: Any) -> str:
  """Three digits of a number, nothing for None."""
  if cell is None:
    return ''
  return (
    f'{cell:.3g}'
    if isinstance(cell, float) and cell < 1000
    else (f'{cell:,.0f}' if isinstance(cell, (int, float)) else str(cell))
  )


def ratio(a: float | None, b: float | None) -> float | None:
  """a / b, None where one of them is not there."""
  return a / b if a is not None and b is not None else None
