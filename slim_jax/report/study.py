"""The page of a study, section by section."""

from collections.abc import Mapping, Sequence
import functools
import json
from typing import Any

from etils import epath
import numpy as np

from slim_jax.display import plot, tables
from slim_jax.report import html, read
from slim_jax.report.drawn import Drawn, section
from slim_jax.report.html import Section
from slim_jax.report.read import Missing
from slim_jax.runs import stages
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError, read_json


def sections(path: epath.Path, drawn: Drawn) -> list[Section]:
  """All sections; each says in a line what it lacks.

  Args:
    path: directory of the study.
    drawn: takes the figures.

  Raises:
    WorkdirError: sweep.json is damaged.
  """
  points = _points(path)
  parts = {
    'Points': lambda: _table(points),
    'Error': lambda: _errors(points, drawn),
    'Scales': lambda: _scales(path, points, drawn),
    'How it was made': lambda: _made(path, points),
  }
  return [section(title, make) for title, make in parts.items()]


def title(path: epath.Path) -> str:
  """What varies."""
  return 'Study of ' + ', '.join(_points(path)[0]['values'])


def _points(path: epath.Path) -> list[dict[str, Any]]:
  path = path / 'sweep.json'
  saved = read_json(path)
  points = saved.get('points') if isinstance(saved, dict) else None
  if not points or not all(
    isinstance(point, dict)
    and isinstance(point.get('values'), dict)
    and point['values']
    and isinstance(point.get('workdir'), str)
    and 'error' in point
    for point in points
  ):
    raise WorkdirError(f'{path} is damaged, or its study has no point yet: run the study again')
  for point in points:
    read.rows(path, point.get('stages'), ('pass', 'accuracy', 'loss', 'params', 'macs'))
  return points


def _table(points: Sequence[Mapping[str, Any]]) -> str:
  found = tables.sweep_table(points)
  header = [str(column.header) for column in found.columns]
  rows = list(zip(*(map(str, column.cells) for column in found.columns)))
  problems = [
    html.paragraph(f'{point["workdir"]}: {point["error"]}', 'warning')
    for point in points
    if point['error']
  ]
  return (
    html.table(header, rows, name='points')
    + html.paragraph(
      'Of each stage the test error in per cent. Of several passes the last counts; parameters '
      'and MACs after the cut, against the first stage.',
      'note',
    )
    + ''.join(problems)
  )


def _errors(points: Sequence[Mapping[str, Any]], drawn: Drawn) -> str:
  pictures = []
  for field in points[0]['values']:
    found = [
      (
        point['values'][field],
        {row['stage']: 100 * (1 - row['accuracy']) for row in point['stages']},
      )
      for point in points
    ]
    if (
      field != 'seed'
      and all(isinstance(value, (int, float)) and not isinstance(value, bool) for value, _ in found)
      and len({value for value, _ in found}) > 1
    ):
      name = 'fraction of channels removed' if field == 'prune.fraction' else field
      pictures.append(
        drawn.add(
          f'error-{field.replace(".", "-")}',
          f'Test error against {name}; lines go through the mean of equal values.',
          functools.partial(plot.errors, found, name=name),
        )
      )
  if not pictures:
    raise Missing('No number varies against which to draw the error.')
  return html.figures(pictures)


def _scales(path: epath.Path, points: Sequence[Mapping[str, Any]], drawn: Drawn) -> str:
  """Of points with the same sparse stage the first stands for all."""
  found: dict[str, dict[str, np.ndarray]] = {}
  for point in points:
    name = (
      ', '.join(
        f'{field}={value}'
        for field, value in point['values'].items()
        if stages.depends('sparse', field)
      )
      or 'all points'
    )
    if name not in found and any(Stage.of(row) == Stage(1, 'sparse') for row in point['stages']):
      scales = read.scales(Workdir(path / point['workdir']), Stage(1, 'sparse'))
      found[name] = {'all': np.concatenate(list(scales.values()))}
  if not found:
    raise Missing('No sparse stage is complete.')
  return html.figures(
    [
      drawn.add(
        'scales',
        'How many channels have which scale at the end of the first sparse stage.',
        lambda: plot.histograms(found, name='|scale|'),
      )
    ]
  )


def _made(path: epath.Path, points: Sequence[Mapping[str, Any]]) -> str:
  starts = [start for point in points for start in Workdir(path / point['workdir']).starts()]
  config = html.folded(
    'config of all points, but for what varies',
    json.dumps(read_json(path / 'sweep.json').get('config'), indent=1),
  )
  return html.starts(starts) + config
