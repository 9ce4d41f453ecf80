"""The sections of the page of a run."""

from collections.abc import Mapping, Sequence
import fnmatch
import functools
import itertools
import json
from typing import Any

import numpy as np

from slim_jax.display import plot, quantities, tables
from slim_jax.errors import SlimError
from slim_jax.report import architecture, blocks, figures, read
from slim_jax.report.architecture import module_of
from slim_jax.report.blocks import Block, Cell, Column, Paragraph, Section
from slim_jax.report.gallery import Gallery
from slim_jax.report.read import Missing
from slim_jax.runs import gated
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, read_json

# Number of layers whose scales are shown by epoch, unless a pattern names some.
_LAYERS = 3

_STAGE_COLUMNS = (
  Column('loss', 'test split'),
  Column('params'),
  Column('MACs', 'multiply-adds per image'),
  Column('FLOPs', '2 × MACs, as in the paper'),
  Column('activations', 'bytes per image'),
  Column('time', 'min:s'),
)
_LATENCY_COLUMNS = (
  Column('network'),
  Column('batch', 'images per call'),
  Column('latency', 'of a call, median'),
  Column('images/s'),
  Column('speed-up', 'full / thin'),
)


def sections(workdir: Workdir, gallery: Gallery, *, layers: str = '') -> list[Section]:
  """Returns all sections; what is missing or damaged is a line in its section.

  Args:
    workdir: of the run.
    gallery: takes the figures.
    layers: a pattern of the paths of the scales to show by epoch; '' for three of them.
  """
  parts = {
    'Stages': _stages,
    'Latency': _latency,
    'Training': _training,
    'Scales': functools.partial(_scales, layers=layers),
    'Widths': _widths,
    'Error against fraction': _look,
    'How it was made': _made,
  }
  return [
    Section(name, blocks.attempt(functools.partial(make, workdir, gallery)))
    for name, make in parts.items()
  ]


def title(workdir: Workdir) -> str:
  """Returns the network and the data set of a run."""
  try:
    config = read_json(workdir.path / 'config.json')
    return f'{config["model"]["name"]} on {config["dataset"]}'
  except (SlimError, KeyError, TypeError):
    return 'A run of slim_jax'


def _stages(workdir: Workdir, _: Gallery) -> list[Block]:
  records = read.stages(workdir)
  if not records:
    raise Missing('No stage is complete yet.')
  activations, problems = _activations(workdir, records)
  first, metrics = records[0], quantities.metrics_of(records[0])
  columns = (
    Column('stage'),
    *(Column(name.replace('_', ' '), 'test split') for name in metrics),
    *_STAGE_COLUMNS,
  )
  rows = [
    [
      Cell(str(Stage.of(record)) + tables.chosen(record)),
      *(Cell(quantities.show(name, record[name])) for name in metrics),
      Cell(f'{record["loss"]:.4f}'),
      _compared(record['params'], first['params']),
      _compared(record['macs'], first['macs']),
      Cell(tables.short(2 * record['macs'])),
      _compared(activations[Stage.of(record)], activations[Stage.of(first)], 'B')
      if activations
      else Cell('–'),
      Cell(tables.clock(record['seconds'])),
    ]
    for record in records
  ]
  return [
    Paragraph(_headline(records)),
    blocks.Table('stages', columns, rows),
    Paragraph(
      'A MAC is one multiplication with its addition; FLOPs count the two separately. '
      'Activations are the bytes of all intermediate results for one image. '
      'Percentages are changes against the first stage.',
      'note',
    ),
    *(Paragraph(text, 'warning') for text in tables.warnings(records)),
    *problems,
  ]


def _activations(
  workdir: Workdir, records: Sequence[Mapping[str, Any]]
) -> tuple[dict[Stage, int], list[Block]]:
  """Returns the bytes of activations after each stage; or none, and the reason."""
  size: dict[Stage, int] = {}

  def count() -> list[Block]:
    net = architecture.read(workdir)
    after_pruning: dict[int, int] = {}  # Stages with as many cuts have the same network.
    for stage in map(Stage.of, records):
      if stage.prunings not in after_pruning:
        after_pruning[stage.prunings] = net.cost(workdir.plan_after(stage)).value_bytes
      size[stage] = after_pruning[stage.prunings]
    return []

  problems = blocks.attempt(count)
  return {} if problems else size, problems


def _headline(records: Sequence[Mapping[str, Any]]) -> str:
  first, last = records[0], _last(records)
  judge = quantities.judge_of(first)
  name = judge.replace('_', ' ').capitalize()
  before, after = (quantities.show(judge, record[judge]) for record in (first, last))
  if last is first:
    return f'{name} {before}.'
  return (
    f'{name} {before} ({first["stage"]}) → {after} '
    f'({last["stage"]}), with {last["params"] / first["params"]:.1%} of the parameters and '
    f'{last["macs"] / first["macs"]:.1%} of the arithmetic.'
  )


def _latency(workdir: Workdir, _: Gallery) -> list[Block]:
  measured = read.latency(workdir.path / 'report' / 'latency.json')
  full = {row['batch']: row.get('seconds') for row in measured['rows'] if row['network'] == 'full'}
  rows, skipped = [], []
  for row in measured['rows']:
    seconds, before = row.get('seconds'), full.get(row['batch'])
    if seconds is None:
      text = f'{row["network"]}, batch {row["batch"]}: not measured: {row["skipped"]}.'
      skipped.append(Paragraph(text, 'note'))
      continue
    speedup = f'{before / seconds:.2f} times' if before and row['network'] == 'thin' else ''
    rows.append(
      [
        Cell(row['network']),
        Cell(str(row['batch'])),
        Cell(f'{1000 * seconds:.3g} ms'),
        Cell(f'{row["batch"] / seconds:,.0f}'),
        Cell(speedup),
      ]
    )
  return [
    blocks.Table('latency', _LATENCY_COLUMNS, rows),
    Paragraph(
      f'Compiled inference on one device ({measured["device"]}), jax {measured["jax"]}, '
      f'{measured["time"]}. The networks take turns, so that other load affects both.',
      'note',
    ),
    *skipped,
  ]


def _training(workdir: Workdir, gallery: Gallery) -> list[Block]:
  lines = read.metrics(workdir)

  def curves() -> list[Block]:
    records = read.stages(workdir)
    judge = read.judge(workdir)
    shown = '' if judge == 'loss' else f', {judge.replace("_", " ")}'
    caption = (
      f'Training loss{shown} and learning rate, stage after stage. Points are values on the '
      'test split; large points are those at the end of a stage.'
    )
    return [gallery.add('curves', caption, lambda: figures.curves(lines, records, judge=judge))]

  return blocks.side_by_side(
    curves,
    *(
      functools.partial(_shares, lines, gallery, stage)
      for stage in dict.fromkeys(map(Stage.of, lines))
      if stage.name == 'sparse'
    ),
  )


def _shares(lines: Sequence[Mapping[str, Any]], gallery: Gallery, stage: Stage) -> list[Block]:
  points = [
    (line['epoch'], line['scales_below'])
    for line in lines
    if Stage.of(line) == stage and isinstance(line.get('scales_below'), dict)
  ]
  if not points:
    return []
  caption = f'{stage}: share of the scales below each threshold.'
  return [gallery.add(f'shares-{stage.number}', caption, lambda: plot.shares(points))]


def _scales(workdir: Workdir, gallery: Gallery, *, layers: str) -> list[Block]:
  def by_epoch() -> list[Block]:
    passes = (Stage(number, 'sparse') for number in itertools.count(1))
    stages = list(itertools.takewhile(lambda stage: workdir.scales(stage).exists(), passes))
    if not stages:
      raise Missing('The scales of the epochs were not recorded.')
    modules = _modules(workdir)
    return [_heat(workdir, gallery, stage, modules, layers) for stage in stages]

  return blocks.side_by_side(functools.partial(_histograms, workdir, gallery), by_epoch)


def _histograms(workdir: Workdir, gallery: Gallery) -> list[Block]:
  values: dict[str, dict[str, np.ndarray]] = {}
  has_units = bool(architecture.read(workdir).config.prune.units)
  for stage in map(Stage.of, workdir.records()):
    if stage.name == 'baseline' and not has_units:
      values[str(stage)] = {'all': np.concatenate(list(read.scales(workdir, stage).values()))}
    elif stage.name == 'sparse':
      values[str(stage)] = read.split(workdir, stage, read.scales(workdir, stage))
  if not values:
    raise Missing('No stage is complete yet.')
  caption = 'Number of channels by scale at the end of each stage: kept and removed by the cut.'
  return [gallery.add('scales', caption, lambda: plot.histograms(values, name='|scale|'))]


def _heat(
  workdir: Workdir, gallery: Gallery, stage: Stage, modules: list[str], pattern: str
) -> blocks.Figure:
  history = read.history(workdir, stage)
  chosen = _chosen_layers(history.values, modules, pattern)
  caption = (
    f'{stage}: the scales of layers, epoch by epoch. Each row is a channel; the channels with '
    'the largest scales at the end are on top.'
  )
  return gallery.add(f'heat-{stage.number}', caption, lambda: figures.heat(chosen, history.epoch))


def _chosen_layers(
  values: Mapping[str, np.ndarray], modules: list[str], pattern: str
) -> dict[str, np.ndarray]:
  """Returns the scales to show, float [epochs, channels] by title."""
  every = architecture.in_order(list(values), modules)
  chosen = [
    path for path in every if fnmatch.fnmatchcase(path, pattern or '*') and values[path].shape[1]
  ]
  if not chosen:
    raise Missing(f'No scale has a path like {pattern}; there are ' + ', '.join(values))
  if not pattern:
    spread = np.linspace(0, len(chosen) - 1, _LAYERS).round().astype(int)
    chosen = [chosen[i] for i in np.unique(spread)]
  return {f'{module_of(path)}, layer {every.index(path) + 1}': values[path] for path in chosen}


def _widths(workdir: Workdir, gallery: Gallery) -> list[Block]:
  records = [record for record in read.stages(workdir) if record.get('widths')]
  if not records:
    raise Missing('The widths of the layers were not recorded.')
  first, last = records[0], _last(records)
  widths = [
    (module_of(path), first['widths'][path], last['widths'].get(path, 0))
    for path in architecture.in_order(list(first['widths']), _modules(workdir))
  ]
  has_units = any(name.startswith(f'params/{gated.GATES}/') for name in first['widths'])
  what = 'Units' if has_units else 'Channels of each BatchNorm'
  caption = f'{what}: {Stage.of(first)} → {Stage.of(last)}.'
  # The page shows the bars; the file is there for slides and READMEs.
  gallery.add('widths', caption, lambda: figures.widths(widths))
  return [blocks.Bars('widths', widths), Paragraph(f'{caption} Also in widths.svg.', 'note')]


def _look(workdir: Workdir, gallery: Gallery) -> list[Block]:
  rows = read.look(workdir)
  caption = (
    'From slim_jax.look: error and size for each fraction of channels removed, without fine-tuning.'
  )
  return [blocks.Figures([gallery.add('look', caption, lambda: plot.look(rows))])]


def _made(workdir: Workdir, _: Gallery) -> list[Block]:
  def config() -> list[Block]:
    return [blocks.Code(_pretty(read_json(workdir.path / 'config.json')), title='config')]

  def dataset() -> list[Block]:
    return [blocks.Code(_pretty(read_json(workdir.path / 'dataset.json')), title='data set')]

  return [*blocks.of_starts(workdir.starts()), *blocks.attempt(config), *blocks.attempt(dataset)]


def _pretty(value: Any) -> str:
  return json.dumps(value, indent=1)


def _modules(workdir: Workdir) -> list[str]:
  """Returns the modules in the order of their use; none if the network cannot be built."""
  try:
    return architecture.read(workdir).modules()
  except (SlimError, OSError):
    return []


def _last(records: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """Returns the last stage that is not from scratch."""
  return [record for record in records if not Stage.of(record).is_scratch][-1]


def _compared(value: int, first: int, unit: str = '') -> Cell:
  return Cell(tables.short(value) + unit, tables.change(value, first))
