"""What a run shows at its end: a table for people, summary.json for programs."""

from collections.abc import Sequence
import json
import os
import pathlib
from typing import Any

import rich.box
import rich.console
import rich.table

from slim_jax.progress import clock

_SUMMARY = ('pass', 'stage', 'accuracy', 'loss', 'params', 'macs', 'seconds')


def table(stages: Sequence[dict[str, Any]]) -> rich.table.Table:
  """The stages with their accuracy, size and arithmetic beside those of the first.

  Args:
    stages: what `pipeline.run` returns.

  Returns:
    A table to print with rich.
  """
  result = rich.table.Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0))
  for name in ('pass', 'stage'):
    result.add_column(name, no_wrap=True)
  for name in ('accuracy', 'loss', 'params', '', 'MACs', '', 'time'):
    result.add_column(name, justify='right', no_wrap=True)
  for stage in stages:
    result.add_row(
        str(stage['pass']), stage['stage'], f"{stage['accuracy']:.2%}",
        f"{stage['loss']:.4f}",
        short(stage['params']), change(stage['params'], stages[0]['params']),
        short(stage['macs']), change(stage['macs'], stages[0]['macs']),
        clock(stage['seconds']))
  return result


def show(stages: Sequence[dict[str, Any]]) -> None:
  """Prints the table on the standard output."""
  rich.console.Console().print(table(stages))


def short(value: int) -> str:
  """'65.83k', '1.494M', '398.1M': four digits."""
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.4g}{unit}'
  return str(value)


def change(value: int, first: int) -> str:
  """'-88.5 %' of `first`; '' where nothing has changed."""
  return '' if value == first else f'{100 * (value / first - 1):+.1f} %'


def write_summary(path: pathlib.Path, config: dict[str, Any],
                  stages: Sequence[dict[str, Any]]) -> None:
  """Writes {'config': ..., 'stages': [...]} with the figures of each stage."""
  rows = [{name: stage[name] for name in _SUMMARY} for stage in stages]
  write_json(path, {'config': config, 'stages': rows})


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole or not at all, whenever the process ends."""
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  part.write_text(json.dumps(value, indent=2) + '\n')
  os.replace(part, path)
