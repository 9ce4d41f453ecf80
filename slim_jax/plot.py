"""Plots of studies, as files."""

from collections.abc import Mapping, Sequence
import io

from etils import epath
from matplotlib import figure
import numpy as np

from slim_jax import files

# Stages before pruning do not depend on what is removed: a level, not a curve.
_LEVELS = {'baseline': 'unpruned, no L1', 'sparse': 'unpruned, with L1'}
# Without training after the cut a network may guess.
_UNTRAINED = ('pruned', 'recalibrated')


def errors(points: Sequence[tuple[float, Mapping[str, float]]], path: epath.Path, *,
           name: str) -> None:
  """Draws the error of each stage against what varies.

  Args:
    points: (value, error in per cent by stage); of equal values the mean is drawn, too.
    path: of the PNG.
    name: of what varies.
  """
  picture = figure.Figure(figsize=(6, 4), layout='constrained')
  axes = picture.subplots()
  names = list(dict.fromkeys(stage for _, found in points for stage in found))
  for number, stage in enumerate(names):
    x, y = np.array([(x, found[stage]) for x, found in points if stage in found]).T
    color = f'C{number}'
    if stage in _LEVELS:
      axes.axhline(y.mean(), color=color, linestyle='--', label=_LEVELS[stage])
      continue
    values = np.unique(x)
    axes.plot(values, [y[x == value].mean() for value in values], color=color, label=stage)
    axes.plot(x, y, 'o', color=color, markersize=4)
  # These must not flatten all other curves.
  others = [y for _, found in points for stage, y in found.items()
            if stage not in _UNTRAINED]
  highest = max(y for _, found in points for y in found.values())
  top = min(1.05 * highest, 2 * max(others, default=highest)) or 1
  axes.set(xlabel=name, ylabel='test error, %', ylim=(0, top))
  axes.grid(alpha=0.3)
  axes.legend()
  _save(picture, path)


def shares(points: Sequence[tuple[int, Mapping[str, float]]], path: epath.Path) -> None:
  """Draws the share of the scales below each threshold against the epoch.

  Args:
    points: (epoch, share, 0 to 1, by threshold).
    path: of the PNG.
  """
  picture = figure.Figure(figsize=(6, 4), layout='constrained')
  axes = picture.subplots()
  for threshold in reversed(points[-1][1] if points else {}):  # from above, as the curves lie
    axes.plot([epoch for epoch, _ in points], [100 * found[threshold] for _, found in points],
              marker='o', markersize=4, label=f'|scale| < {threshold}')
  axes.set(xlabel='epoch', ylabel='share of channels, %', ylim=(0, 100))
  axes.grid(alpha=0.3)
  if points:
    axes.legend()
  _save(picture, path)


def look(rows: Sequence[Mapping[str, float]], path: epath.Path, *,
         best: Mapping[str, float] | None) -> None:
  """Draws accuracy and size against the fraction of channels removed.

  Args:
    rows: what `look.run` returns.
    path: of the PNG.
    best: the row that is suggested, if any.
  """
  picture = figure.Figure(figsize=(6, 5), layout='constrained')
  above, below = picture.subplots(2, 1, sharex=True)
  fractions = [row['fraction'] for row in rows]
  for name, label in (('recalibrated', 'after recalibration'), ('accuracy', 'right after the cut')):
    above.plot(fractions, [100 * row[name] for row in rows], marker='o', markersize=4, label=label)
  for name, label in (('params', 'parameters'), ('macs', 'MACs')):
    below.plot(fractions, [100 * row[name] / row[f'full_{name}'] for row in rows], marker='o',
               markersize=4, label=label)
  if best is not None:
    for axes in (above, below):
      axes.axvline(best['fraction'], color='gray', linestyle='--', label='suggested')
  above.set(ylabel='accuracy, %')
  below.set(xlabel='fraction of channels removed', ylabel='what is left, %', ylim=(0, None))
  for axes in (above, below):
    axes.grid(alpha=0.3)
    axes.legend()
  _save(picture, path)


def histograms(values: Mapping[str, np.ndarray], path: epath.Path, *, name: str) -> None:
  """Draws a histogram for each name, side by side on the same bins.

  Args:
    values: float [n] by title.
    path: of the PNG.
    name: of the values.
  """
  picture = figure.Figure(figsize=(3 * max(len(values), 1), 3), layout='constrained')
  grid = picture.subplots(1, max(len(values), 1), squeeze=False, sharey=True)
  highest = max((array.max(initial=0) for array in values.values()), default=0) or 1
  for axes, (title, array) in zip(grid[0], values.items()):
    axes.hist(array, bins=np.linspace(0, highest, 51))
    axes.set(title=title, xlabel=name, yscale='log')
  grid[0][0].set_ylabel('channels')
  _save(picture, path)


def _save(picture: figure.Figure, path: epath.Path) -> None:
  content = io.BytesIO()
  picture.savefig(content, format='png', dpi=150)
  files.write(path, content.getvalue())
