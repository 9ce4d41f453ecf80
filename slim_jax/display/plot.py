"""Plots of runs and studies, which are saved as PNG; the page of a run has them as SVG."""

from collections.abc import Mapping, Sequence
import io

from etils import epath
from matplotlib import figure
import numpy as np

from slim_jax.display import quantities
from slim_jax.runtime import files

# A stage has the same colour everywhere.
STAGES = {
  'baseline': 'C0',
  'sparse': 'C1',
  'pruned': 'C2',
  'recalibrated': 'C3',
  'finetuned': 'C4',
  'scratch-e': 'C5',
  'scratch-b': 'C6',
}
# Stages before pruning do not depend on what is removed, so they are a level, not a curve.
_LEVELS = {'baseline': 'unpruned, no L1', 'sparse': 'unpruned, with L1'}
# Right after the cut, accuracy may be at chance.
_UNTRAINED = ('pruned', 'recalibrated')


def errors(
  points: Sequence[tuple[float, Mapping[str, float]]], *, name: str, judge: str = 'accuracy'
) -> figure.Figure:
  """Plots the error of each stage against the value that a study varies.

  Args:
    points: (value, error by stage). Curves pass through the means of equal values.
    name: of the value.
    judge: figure that the errors are of, see `quantities.error`.
  """
  picture = figure.Figure(figsize=(5.2, 3.6), layout='constrained')
  axes = picture.subplots()
  for stage in dict.fromkeys(stage for _, row in points for stage in row):
    x, y = np.array([(x, row[stage]) for x, row in points if stage in row]).T
    color = STAGES[stage]
    if stage in _LEVELS:
      axes.axhline(y.mean(), color=color, linestyle='--', label=_LEVELS[stage])
      continue
    values = np.unique(x)
    axes.plot(values, [y[x == value].mean() for value in values], color=color, label=stage)
    axes.plot(x, y, 'o', color=color, markersize=4)
  # The untrained stages must not flatten all other curves.
  others = [y for _, row in points for stage, y in row.items() if stage not in _UNTRAINED]
  highest = max(y for _, row in points for y in row.values())
  top = min(1.05 * highest, 2 * max(others, default=highest)) or 1
  axes.set(xlabel=name, ylabel=quantities.error_name(judge), ylim=(0, top))
  axes.grid(alpha=0.3)
  axes.legend()
  return picture


def shares(points: Sequence[tuple[int, Mapping[str, float]]]) -> figure.Figure:
  """Plots the share of the scales below each threshold against the epoch.

  Args:
    points: (epoch, {threshold: share from 0 to 1}).
  """
  picture = figure.Figure(figsize=(5.2, 3.6), layout='constrained')
  axes = picture.subplots()
  thresholds = list(points[-1][1]) if points else []
  for threshold in reversed(thresholds):  # the order of the curves from the top
    axes.plot(
      [epoch for epoch, _ in points],
      [100 * below[threshold] for _, below in points],
      marker='o',
      markersize=4,
      label=f'|scale| < {threshold}',
    )
  axes.set(xlabel='epoch', ylabel='share of channels, %', ylim=(0, 100))
  axes.grid(alpha=0.3)
  if points:
    axes.legend()
  return picture


def look(
  rows: Sequence[Mapping[str, float]], *, best: Mapping[str, float] | None = None
) -> figure.Figure:
  """Plots error and size against the fraction of channels removed.

  Args:
    rows: what `look.run` returns.
    best: the suggested row, if any.
  """
  picture = figure.Figure(figsize=(5.2, 5), layout='constrained')
  above, below = picture.subplots(2, 1, sharex=True)
  fractions = [row['fraction'] for row in rows]
  judge = quantities.judge_of(rows[0])
  for name, label in (('recalibrated', 'after recalibration'), (judge, 'right after the cut')):
    above.plot(
      fractions,
      [quantities.error(judge, row[name]) for row in rows],
      marker='o',
      markersize=4,
      label=label,
    )
  for name, label in (('params', 'parameters'), ('macs', 'MACs')):
    below.plot(
      fractions,
      [100 * row[name] / row[f'full_{name}'] for row in rows],
      marker='o',
      markersize=4,
      label=label,
    )
  if best is not None:
    for axes in (above, below):
      axes.axvline(best['fraction'], color='gray', linestyle='--', label='suggested')
  above.set(ylabel=quantities.error_name(judge).removeprefix('test '))
  below.set(xlabel='fraction of channels removed', ylabel='what is left, %', ylim=(0, None))
  for axes in (above, below):
    axes.grid(alpha=0.3)
    axes.legend()
  return picture


def histograms(values: Mapping[str, Mapping[str, np.ndarray]], *, name: str) -> figure.Figure:
  """Plots a histogram for each title, one below the other with the same bins.

  Args:
    values: float [n] by title and label.
    name: of the values.
  """
  count = max(len(values), 1)
  picture = figure.Figure(figsize=(5.2, 0.7 + 1.5 * count), layout='constrained')
  grid = picture.subplots(count, 1, squeeze=False, sharex=True, sharey=True)[:, 0]
  highest = (
    max(
      (float(array.max(initial=0)) for parts in values.values() for array in parts.values()),
      default=0,
    )
    or 1
  )
  for axes, (title, parts) in zip(grid, values.items()):
    for number, (label, array) in enumerate(parts.items()):
      # The first label is in front: where bars overlap, it usually has the lower one.
      axes.hist(array, bins=np.linspace(0, highest, 51), label=label, zorder=2 - 0.1 * number)
    axes.set(ylabel='channels', yscale='log')
    axes.set_title(title, fontsize='medium')
    if len(parts) > 1:
      axes.legend()
  grid[-1].set_xlabel(name)
  return picture


def save(picture: figure.Figure, path: epath.Path) -> None:
  """Writes a picture as a PNG."""
  content = io.BytesIO()
  picture.savefig(content, format='png', dpi=150)
  files.write(path, content.getvalue())
