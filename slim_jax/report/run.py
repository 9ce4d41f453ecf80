"""The page of a run, section by section."""

from collections.abc import Mapping, Sequence
import fnmatch
import functools
import json
from typing import Any

import numpy as np

from slim_jax.display import plot, tables
from slim_jax.report import figures, html, measure, read
from slim_jax.report.drawn import DAMAGED, Drawn, attempt, section
from slim_jax.report.html import Cell, Section
from slim_jax.report.read import Missing
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, read_json

# Layers whose scales are shown by epoch, unless some are named.
_LAYERS = 3


def sections(workdir: Workdir, drawn: Drawn, *, layers: str = '') -> list[Section]:
  """All sections; each says in a line what it lacks.

  Args:
    workdir: of the run.
    drawn: takes the figures.
    layers: a pattern of the paths of the scales to show by epoch; '' for three of them.
  """
  parts = {
    'Stages': _stages,
    'Latency': _latency,
    'Learning curves': _curves,
    'Scales': _scales,
    'Scales by epoch': functools.partial(_heat, layers=layers),
    'Widths': _widths,
    'Error against fraction': _look,
    'How it was made': _made,
  }
  return [section(title, functools.partial(make, workdir, drawn)) for title, make in parts.items()]


def title(workdir: Workdir) -> str:
  """Network and data set."""
  try:
    config = read_json(workdir.path / 'config.json')
    return f'{config["model"]["name"]} on {config["dataset"]}'
  except (*DAMAGED, KeyError, TypeError):
    return 'A run of slim_jax'


def _stages(workdir: Workdir, _: Drawn) -> str:
  records = read.stages(workdir)
  if not records:
    raise Missing('No stage is complete yet.')
  memory, trouble = _memory(workdir, records)
  rows = []
  for record in records:
    first = records[0]
    rows.append(
      [
        str(Stage.of(record)) + tables.chosen(record),
        f'{record["accuracy"]:.2%}',
        f'{record["loss"]:.4f}',
        _compared(record['params'], first['params']),
        _compared(record['macs'], first['macs']),
        tables.short(2 * record['macs']),
        '–' if not memory else _compared(memory[Stage.of(record)], memory[Stage.of(first)], 'B'),
        tables.clock(record['seconds']),
      ]
    )
  warnings = [html.paragraph(text, 'warning') for text in tables.warnings(records)]
  return (
    html.paragraph(_headline(records))
    + html.table(
      ('stage', 'accuracy', 'loss', 'params', 'MACs', 'FLOPs', 'activations', 'time'),
      rows,
      name='stages',
    )
    + html.paragraph(
      'Accuracy and loss are those of the test split. MACs: multiplication and addition '
      'together as one, of one image; FLOPs: each as one, as in the paper. Activations: bytes '
      'of all that the operations make of one image. In per cent: against the first stage.',
      'note',
    )
    + ''.join(warnings)
    + trouble
  )


def _memory(workdir: Workdir, records: Sequence[Mapping[str, Any]]) -> tuple[dict[Stage, int], str]:
  """Bytes of activations after each stage, by counting; or none, and why."""
  found: dict[Stage, int] = {}

  def count() -> str:
    networks, after = measure.networks(workdir), {}  # stages between two cuts have one network
    for stage in map(Stage.of, records):
      if stage.cuts not in after:
        after[stage.cuts] = networks.count(workdir.plan_after(stage)).value_bytes
      found[stage] = after[stage.cuts]
    return ''

  trouble = attempt(count)
  return {} if trouble else found, trouble


def _headline(records: Sequence[Mapping[str, Any]]) -> str:
  first, last = records[0], _last(records)
  if last is first:
    return f'Accuracy {first["accuracy"]:.2%}.'
  return (
    f'Accuracy {first["accuracy"]:.2%} ({first["stage"]}) → {last["accuracy"]:.2%} '
    f'({last["stage"]}), with {last["params"] / first["params"]:.1%} of the parameters and '
    f'{last["macs"] / first["macs"]:.1%} of the arithmetic.'
  )


def _latency(workdir: Workdir, _: Drawn) -> str:
  found = read.latency(workdir.path / 'report' / 'latency.json')
  full = {row['batch']: row.get('seconds') for row in found['rows'] if row['network'] == 'full'}
  rows, skipped = [], []
  for row in found['rows']:
    seconds, before = row.get('seconds'), full.get(row['batch'])
    if seconds is None:
      skipped.append(f'{row["network"]}, {row["batch"]} at a time: not measured: {row["skipped"]}.')
      continue
    faster = f'{before / seconds:.2f} times' if before and row['network'] == 'thin' else ''
    rows.append(
      [
        row['network'],
        str(row['batch']),
        f'{1000 * seconds:.3g} ms',
        f'{row["batch"] / seconds:,.0f}',
        faster,
      ]
    )
  return (
    html.table(
      ('network', 'images at a time', 'latency', 'images per second', 'as fast'),
      rows,
      name='latency',
    )
    + html.paragraph(
      f'Measured on one device ({found["device"]}), jax {found["jax"]}, '
      f'{found["time"]}; median of repeated calls, compiled, in inference, the '
      'networks taking turns.',
      'note',
    )
    + ''.join(html.paragraph(text, 'note') for text in skipped)
  )


def _curves(workdir: Workdir, drawn: Drawn) -> str:
  lines, records = read.lines(workdir), read.stages(workdir)
  return html.figures(
    [
      drawn.add(
        'curves',
        'Training loss and accuracy, stage after stage; points: on the test split, large '
        'ones at the end of a stage.',
        lambda: figures.curves(lines, records),
      )
    ]
    + _shares(workdir, drawn)
  )


def _shares(workdir: Workdir, drawn: Drawn) -> list[tuple[str, str]]:
  result = []
  for stage in _sparse(workdir):
    points = [
      (line['epoch'], line['scales_below'])
      for line in workdir.lines(stage)
      if isinstance(line.get('scales_below'), dict)
    ]
    if points:
      result.append(
        drawn.add(
          f'shares-{stage.number}',
          f'{stage}: how many scales are small.',
          functools.partial(plot.shares, points),
        )
      )
  return result


def _scales(workdir: Workdir, drawn: Drawn) -> str:
  found = {}
  for stage in map(Stage.of, workdir.records()):
    if stage.name == 'baseline':
      found[str(stage)] = {'all': np.concatenate(list(read.scales(workdir, stage).values()))}
    elif stage.name == 'sparse':
      found[str(stage)] = read.split(workdir, stage, read.scales(workdir, stage))
  if not found:
    raise Missing('No stage is complete yet.')
  return html.figures(
    [
      drawn.add(
        'scales',
        'How many channels have which scale at the end of each stage, and which of them '
        'the cut took.',
        lambda: plot.histograms(found, name='|scale|'),
      )
    ]
  )


def _heat(workdir: Workdir, drawn: Drawn, *, layers: str) -> str:
  stages = [stage for stage in _sparse(workdir) if workdir.scales(stage).exists()]
  if not stages:
    raise Missing('The scales of the epochs were not recorded.')
  result, modules = [], _modules(workdir)
  for stage in stages:
    history = read.history(workdir, stage)
    chosen = _chosen_layers(history.values, modules, layers)
    result.append(
      drawn.add(
        f'heat-{stage.number}',
        f'{stage}: the scales of the channels of a layer, epoch by epoch; '
        'those that are largest at the end on top.',
        functools.partial(figures.heat, chosen, history.epoch),
      )
    )
  return html.figures(result)


def _chosen_layers(
  values: Mapping[str, np.ndarray], modules: list[str], pattern: str
) -> dict[str, np.ndarray]:
  every = measure.in_order(list(values), modules)
  order = [
    path for path in every if fnmatch.fnmatchcase(path, pattern or '*') and values[path].shape[1]
  ]
  if not order:
    raise Missing(f'No scale has a path like {pattern}; there are ' + ', '.join(values))
  if not pattern:
    spread = np.linspace(0, len(order) - 1, _LAYERS).round().astype(int)
    order = [order[i] for i in np.unique(spread)]
  return {f'{measure.short(path)}, layer {every.index(path) + 1}': values[path] for path in order}


def _widths(workdir: Workdir, drawn: Drawn) -> str:
  records = [record for record in read.stages(workdir) if isinstance(record.get('widths'), dict)]
  if not records:
    raise Missing('The widths of the layers were not recorded.')
  before, after = records[0]['widths'], _last(records)['widths']
  found = [
    (measure.short(path), before[path], after.get(path, 0))
    for path in measure.in_order(list(before), _modules(workdir))
  ]
  picture = drawn.add(
    'widths',
    f'Channels of each BatchNorm, {Stage.of(records[0])} and {Stage.of(_last(records))}.',
    lambda: figures.widths(found),
  )
  return html.figures([picture]) + html.bars(found)


def _look(workdir: Workdir, drawn: Drawn) -> str:
  rows = read.look(workdir)
  return html.figures(
    [
      drawn.add(
        'look',
        'What slim_jax.look found: error and size if so many channels went, without fine-tuning.',
        lambda: plot.look(rows),
      )
    ]
  )


def _made(workdir: Workdir, _: Drawn) -> str:
  config = attempt(
    lambda: html.folded('config', json.dumps(read_json(workdir.path / 'config.json'), indent=1))
  )
  return html.starts(workdir.starts()) + config


def _modules(workdir: Workdir) -> list[str]:
  """The order of the layers; none where the network cannot be made."""
  try:
    return measure.networks(workdir).modules()
  except DAMAGED:
    return []


def _sparse(workdir: Workdir) -> list[Stage]:
  """The sparse stages that have begun."""
  return [
    stage for stage in dict.fromkeys(map(Stage.of, workdir.lines())) if stage.name == 'sparse'
  ]


def _last(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """The last stage that is not from scratch."""
  return [record for record in records if not Stage.of(record).is_scratch][-1]


def _compared(value: int, first: int, unit: str = '') -> Cell:
  return Cell(tables.short(value) + unit, tables.change(value, first))
