"""Tables of the stages of a run, the points of a study, latencies and possible cuts."""

from collections.abc import Mapping, Sequence
from typing import Any

import rich.box
import rich.table

from slim_jax.display import quantities
from slim_jax.display.console import RESULTS
from slim_jax.display.progress import clock

_STAGES = ('baseline', 'sparse', 'pruned', 'recalibrated', 'finetuned', 'scratch-e', 'scratch-b')


def table(stages: Sequence[dict[str, Any]]) -> rich.table.Table:
  """Returns a row for each stage: its metrics, size and MACs, and the changes since the first.

  Args:
    stages: what `pipeline.run` returns.
  """
  result = _plain()
  for name in ('pass', 'stage'):
    result.add_column(name, no_wrap=True)
  metrics = quantities.metrics_of(stages[0])
  for name in (*metrics, 'loss', 'params', '', 'MACs', '', 'time'):
    result.add_column(name.replace('_', ' '), justify='right', no_wrap=True)
  for stage in stages:
    result.add_row(
      str(stage['pass']),
      stage['stage'] + chosen(stage),
      *(quantities.show(name, stage[name]) for name in metrics),
      f'{stage["loss"]:.4f}',
      short(stage['params']),
      change(stage['params'], stages[0]['params']),
      short(stage['macs']),
      change(stage['macs'], stages[0]['macs']),
      clock(stage['seconds']),
    )
  return result


def markdown(stages: Sequence[dict[str, Any]]) -> str:
  """Returns `table` in Markdown, with the warnings below it."""
  columns = table(stages).columns
  cells = [
    [str(column.header) for column in columns],
    ['---' if column.justify == 'left' else '---:' for column in columns],
    *zip(*(column.cells for column in columns)),
  ]
  lines = ['| ' + ' | '.join(map(str, row)) + ' |' for row in cells]
  return '\n'.join([*lines, '', *(f'Warning: {text}' for text in warnings(stages))])


def show(stages: Sequence[dict[str, Any]]) -> None:
  """Prints the table, and the warnings below it, on the standard output."""
  RESULTS.print(table(stages))
  for text in warnings(stages):
    RESULTS.print(f'Warning: {text}', highlight=False, markup=False)


def warnings(stages: Sequence[dict[str, Any]]) -> list[str]:
  """Returns the warnings of the stages, each with the name of its stage."""
  return [
    f'{stage["stage"]}, pass {stage["pass"]}: {stage["warning"]}'
    for stage in stages
    if stage.get('warning')
  ]


def sweep_table(points: Sequence[dict[str, Any]]) -> rich.table.Table:
  """Returns a row for each point of a study: its values, the error of each stage, and its size.

  Args:
    points: what `sweep.run` returns. A point of several passes shows the last one.
  """
  studied = [{row['stage']: row for row in point['stages']} for point in points]
  names = [name for name in _STAGES if any(name in stages for stages in studied)]
  judge = quantities.judge_of_study(points)
  caption = 'test error in per cent' if judge == 'accuracy' else quantities.error_name(judge)
  result = _plain(caption=caption, caption_justify='left')
  for field in points[0]['values']:
    result.add_column(field.rpartition('.')[2], no_wrap=True)
  for name in (*names, 'small scales', 'params', 'MACs'):
    result.add_column(name, justify='right', no_wrap=True)
  digits = '2f' if quantities.is_share(judge) else '4g'
  for point, stages in zip(points, studied):
    row = [
      f'{quantities.error(judge, stages[name][judge]):.{digits}}' if name in stages else '-'
      for name in names
    ]
    row.append(f'{stages["sparse"]["small_scales"]:.1%}' if 'sparse' in stages else '-')
    row += [
      change(stages['pruned'][size], point['stages'][0][size]) if 'pruned' in stages else '-'
      for size in ('params', 'macs')
    ]
    result.add_row(*map(str, point['values'].values()), *row)
  return result


def show_sweep(points: Sequence[dict[str, Any]]) -> None:
  """Prints the table of a study, and below it the errors, on the standard output."""
  RESULTS.print(sweep_table(points))
  for point in points:
    if point['error']:
      RESULTS.print(f'{point["workdir"]}: {point["error"]}', highlight=False, markup=False)


def show_latency(rows: Sequence[dict[str, Any]]) -> None:
  """Prints what `latency.measure` returns on the standard output."""
  result = _plain()
  result.add_column('runtime', no_wrap=True)
  result.add_column('batch', justify='right')
  for name in ('full', 'thin'):
    result.add_column(f'{name}, ms', justify='right')
    result.add_column('images/s', justify='right')
  result.add_column('thin / full', justify='right')
  for row in rows:
    result.add_row(
      row['runtime'],
      str(row['batch']),
      *(
        text
        for name in ('full', 'thin')
        for text in (f'{1e3 * row[name]:.2f}', f'{row["batch"] / row[name]:,.0f}')
      ),
      f'{row["thin"] / row["full"]:.2f}',
    )
  RESULTS.print(result)


def show_files(rows: Sequence[dict[str, Any]]) -> None:
  """Prints what `onnx_int8.compare` returns on the standard output."""
  own = ('file', 'bytes', 'seconds_1', 'seconds_64')
  figures = [name for name in rows[0] if name not in own]
  result = _plain()
  result.add_column('file', no_wrap=True)
  for name in (*figures, 'kB', '1 image, ms', '64 images, ms'):
    result.add_column(name.replace('_', ' '), justify='right', no_wrap=True)
  for row in rows:
    result.add_row(
      row['file'],
      *(quantities.show(name, row[name]) for name in figures),
      f'{row["bytes"] / 1e3:,.0f}',
      *(f'{1e3 * row[name]:.3g}' for name in own[2:]),
    )
  RESULTS.print(result)


def show_look(rows: Sequence[dict[str, Any]], best: dict[str, Any] | None) -> None:
  """Prints what `look.run` returns, and the suggested cut, on the standard output."""
  result = _plain()
  judge = quantities.judge_of(rows[0]) if rows else ''
  for name in ('fraction', judge.replace('_', ' '), 'recalibrated', 'params', '', 'MACs', ''):
    result.add_column(name, justify='right', no_wrap=True)
  for row in rows:
    result.add_row(
      f'{row["fraction"]:g}',
      quantities.show(judge, row[judge]),
      quantities.show(judge, row['recalibrated']),
      short(row['params']),
      change(row['params'], row['full_params']),
      short(row['macs']),
      change(row['macs'], row['full_macs']),
      style='bold' if row is best else None,
    )
  RESULTS.print(result)
  RESULTS.print(
    'No cut is within the tolerance.'
    if best is None
    else f'Largest cut within the tolerance: --config.prune.fraction={best["fraction"]:g}',
    highlight=False,
  )


def _plain(**options: Any) -> rich.table.Table:
  """Returns an empty table without frames, narrow enough for a terminal."""
  return rich.table.Table(box=rich.box.SIMPLE, padding=(0, 1, 0, 0), **options)


def chosen(stage: Mapping[str, Any]) -> str:
  """Returns ' (best, epoch 3)' if the model of the stage is not that of its last epoch."""
  return f' (best, epoch {stage["best_epoch"]})' if 'best_epoch' in stage else ''


def short(value: int) -> str:
  """Returns four digits and a unit: '65.83k', '1.494M', '398.1M'."""
  for size, unit in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if value >= size:
      return f'{value / size:.4g}{unit}'
  return str(value)


def change(value: int, first: int) -> str:
  """Returns the relative change, such as '-88.5 %', or '' if there is none."""
  return '' if value == first else f'{100 * (value / first - 1):+.1f} %'
