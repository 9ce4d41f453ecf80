"""The sections of the page of a study."""

from collections.abc import Mapping, Sequence
import functools
import json
from typing import Any

from etils import epath
import numpy as np

from slim_jax.display import plot, quantities, tables
from slim_jax.report import blocks, read
from slim_jax.report.blocks import Block, Cell, Column, Paragraph, Section
from slim_jax.report.gallery import Gallery
from slim_jax.report.read import Missing
from slim_jax.runs import stages
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError, read_json

_COLUMN_DETAILS = {
  'small scales': 'of the sparse stage',
  'params': 'after the cut',
  'MACs': 'after the cut',
}


def sections(path: epath.Path, gallery: Gallery) -> list[Section]:
  """Returns all sections; what is missing or damaged is a line in its section.

  Args:
    path: directory of the study.
    gallery: takes the figures.

  Raises:
    WorkdirError: sweep.json is damaged.
  """
  points = _points(path)
  parts = {
    'Points': lambda: _table(points),
    'Error and scales': lambda: blocks.side_by_side(
      lambda: _errors(points, gallery), lambda: _scales(path, points, gallery)
    ),
    'How it was made': lambda: _made(path, points),
  }
  return [Section(name, blocks.attempt(make)) for name, make in parts.items()]


def title(path: epath.Path) -> str:
  """Returns the fields that vary."""
  return 'Study of ' + ', '.join(_points(path)[0]['values'])


def _points(path: epath.Path) -> list[dict[str, Any]]:
  path = path / 'sweep.json'
  saved = read_json(path)
  points = saved.get('points') if isinstance(saved, dict) else None
  if (
    not isinstance(points, list)
    or not points
    or not all(
      isinstance(point, dict)
      and isinstance(point.get('values'), dict)
      and point['values']
      and isinstance(point.get('workdir'), str)
      and not {'..', '.', ''} & set(point['workdir'].split('/'))  # leads nowhere else
      and isinstance(point.get('error'), str)
      for point in points
    )
  ):
    raise WorkdirError(f'{path} is damaged, or its study has no point yet: run the study again')
  for point in points:
    read.rows(path, point.get('stages'), ('pass', 'loss', 'params', 'macs'), figures=True)
  return points


def _table(points: list[dict[str, Any]]) -> list[Block]:
  table = tables.sweep_table(points)
  names = [str(column.header) for column in table.columns]
  columns = [Column(name, _COLUMN_DETAILS.get(name, '')) for name in names]
  rows = zip(*(map(str, column.cells) for column in table.columns))
  return [
    blocks.Table('points', columns, [list(map(Cell, row)) for row in rows]),
    Paragraph(
      f'Columns of stages hold the {table.caption}, of the last pass if there are several. '
      'Percentages of parameters and MACs are changes against the first stage.',
      'note',
    ),
    *(
      Paragraph(f'{point["workdir"]}: {point["error"]}', 'warning')
      for point in points
      if point['error']
    ),
  ]


def _errors(points: Sequence[Mapping[str, Any]], gallery: Gallery) -> list[Block]:
  pictures: list[Block] = []
  judge = quantities.judge_of_study(points)
  for field in points[0]['values']:
    errors = [
      (
        point['values'][field],
        {row['stage']: quantities.error(judge, row[judge]) for row in point['stages']},
      )
      for point in points
    ]
    if field != 'seed' and _are_numbers_that_vary([value for value, _ in errors]):
      name = 'fraction of channels removed' if field == 'prune.fraction' else field
      pictures.append(
        gallery.add(
          f'error-{field.replace(".", "-")}',
          f'{quantities.error_name(judge).removesuffix(", %").capitalize()} against {name}. Lines connect the means of equal values.',
          functools.partial(plot.errors, errors, name=name, judge=judge),
        )
      )
  if not pictures:
    raise Missing('The error is drawn against numbers that vary; there are none.')
  return pictures


def _are_numbers_that_vary(values: Sequence[Any]) -> bool:
  are_numbers = all(
    isinstance(value, (int, float)) and not isinstance(value, bool) for value in values
  )
  return are_numbers and len(set(values)) > 1


def _scales(path: epath.Path, points: Sequence[Mapping[str, Any]], gallery: Gallery) -> list[Block]:
  """Draws the scales of each sparse stage once; points may share it."""
  values: dict[str, dict[str, np.ndarray]] = {}
  for point in points:
    name = (
      ', '.join(
        f'{field}={value}'
        for field, value in point['values'].items()
        if stages.depends('sparse', field)
      )
      or 'all points'
    )
    if name not in values and any(Stage.of(row) == Stage(1, 'sparse') for row in point['stages']):
      scales = read.scales(Workdir(path / point['workdir']), Stage(1, 'sparse'))
      values[name] = {'all': np.concatenate(list(scales.values()))}
  if not values:
    raise Missing('No sparse stage is complete.')
  caption = 'Number of channels by scale at the end of the first sparse stage.'
  return [gallery.add('scales', caption, lambda: plot.histograms(values, name='|scale|'))]


def _made(path: epath.Path, points: Sequence[Mapping[str, Any]]) -> list[Block]:
  starts = [start for point in points for start in Workdir(path / point['workdir']).starts()]
  config = json.dumps(read_json(path / 'sweep.json').get('config'), indent=1)
  return [
    *blocks.of_starts(starts),
    blocks.Code(config, title='config of all points, without the fields that vary'),
  ]
