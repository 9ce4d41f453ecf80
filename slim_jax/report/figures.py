"""Draws the figures of one run; those that a study has too are in `display.plot`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import figure, ticker
from matplotlib import lines as mlines
from matplotlib.axes import Axes
import numpy as np

from slim_jax.display import plot, quantities
from slim_jax.runs.stages import Stage

_STYLES = {'baseline': '--', 'sparse': '-', 'finetuned': '-', 'scratch-e': '-.', 'scratch-b': ':'}

# Up to this many layers, bars have their numbers on top.
_FEW_LAYERS = 16

# Markers of the results at the end of a stage, with training and without.
_TRAINED = {'marker': 'o', 'markersize': 5}
_UNTRAINED = {'marker': 'D', 'markersize': 9, 'fillstyle': 'none'}


def curves(
  lines: Sequence[Mapping[str, Any]],
  records: Sequence[Mapping[str, Any]],
  *,
  judge: str = 'accuracy',
) -> figure.Figure:
  """Draws loss, judging figure and learning rate, the epochs of all stages one after the other.

  Args:
    lines: the metrics of the epochs, in order.
    records: of the complete stages; their test results are drawn at the end of the stage. A stage
      without training (pruning) is drawn at the last epoch of the stage before it.
    judge: name of the figure that judges, such as 'accuracy'.
  """
  picture = figure.Figure(figsize=(5.2, 5), layout='constrained')
  loss, judged, rate = picture.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
  begin = _begins(lines)
  for axes, name, factor in (
    (loss, 'loss', 1),
    (judged, judge, 100 if quantities.is_share(judge) else 1),
    (rate, 'learning_rate', 1),
  ):
    for stage in begin:
      epochs = [line for line in lines if Stage.of(line) == stage]
      _plot(axes, epochs, name, begin[stage], factor, linestyle=_STYLES.get(stage.name, '-'))
      tested = [line for line in epochs if f'test_{name}' in line]
      _plot(axes, tested, f'test_{name}', begin[stage], factor, linestyle='', marker='.')
    if axes is not rate:
      _plot_results(axes, records, name, _ends(lines), factor)
    axes.grid(alpha=0.3)
  loss.set(ylabel='loss, nats' if judge == 'accuracy' else 'loss', yscale='log')
  unit = ', %' if quantities.is_share(judge) else ''
  judged.set(ylabel=f'{judge.replace("_", " ")}{unit}')
  rate.set(ylabel='learning rate', xlabel='epoch', yscale='log')
  names = [*(stage.name for stage in begin), *(record['stage'] for record in records)]
  picture.legend(handles=_legend(names), loc='outside upper center', ncols=3)
  return picture


def widths(layers: Sequence[tuple[str, int, int]]) -> figure.Figure:
  """Draws the channels of every layer before and after, with numbers where they fit.

  Args:
    layers: (name, before, after), in order.
  """
  picture = figure.Figure(figsize=(5.2, 2.8), layout='constrained')
  axes = picture.subplots()
  position = np.arange(1, len(layers) + 1)
  _, before, after = zip(*layers)
  few = len(layers) <= _FEW_LAYERS
  for heights, label, color, alpha in ((before, 'before', 'C2', 0.4), (after, 'after', 'C4', 1)):
    bars = axes.bar(position, heights, 0.6 if few else 0.85, color=color, alpha=alpha, label=label)
    if few:
      axes.bar_label(bars, padding=1)
  axes.set(xlabel='BatchNorm layers, in order', ylabel='channels')
  axes.xaxis.set_major_locator(_whole_numbers())
  if not few:
    axes.grid(alpha=0.3, axis='y')
  picture.legend(loc='outside upper center', ncols=2)
  return picture


def heat(layers: Mapping[str, np.ndarray], epoch: np.ndarray) -> figure.Figure:
  """Draws the scales of layers by epoch: a row for each channel, the largest at the end on top.

  Args:
    layers: float [epochs, channels], |scale| by title.
    epoch: int [epochs], increasing; epochs that are missing are left blank.
  """
  picture = figure.Figure(figsize=(5.2, 0.6 + 1.6 * len(layers)), layout='constrained')
  grid = picture.subplots(len(layers), 1, squeeze=False, sharex=True)[:, 0]
  for axes, (title, values) in zip(grid, layers.items()):
    shown = np.full((values.shape[1], int(epoch[-1])), np.nan, np.float32)
    shown[:, epoch - 1] = values[:, np.argsort(-values[-1], kind='stable')].T
    image = axes.imshow(
      shown,
      aspect='auto',
      interpolation='nearest',
      cmap='viridis',
      vmin=0,
      extent=(0.5, epoch[-1] + 0.5, values.shape[1] + 0.5, 0.5),
    )
    axes.set(ylabel='channel')
    axes.set_title(title, fontsize='medium')
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.yaxis.set_major_locator(_whole_numbers())
    picture.colorbar(image, ax=axes, label='|scale|')
  grid[-1].set_xlabel('epoch')
  return picture


def _plot(
  axes: Axes, lines: Sequence[Mapping[str, Any]], name: str, begin: int, factor: int, **style: Any
) -> None:
  """Plots a metric of epochs of one stage, in the colour of the stage."""
  if lines:
    axes.plot(
      [begin + line['epoch'] for line in lines],
      [factor * line[name] for line in lines],
      color=plot.STAGES[lines[0]['stage']],
      **style,
    )


def _plot_results(
  axes: Axes,
  records: Sequence[Mapping[str, Any]],
  name: str,
  ends: Mapping[Stage, int],
  factor: int,
) -> None:
  """Plots the results at the end of the stages."""
  last = 0
  for record in records:
    stage = Stage.of(record)
    last = ends.get(stage, last)
    marker = _TRAINED if stage in ends else _UNTRAINED
    color = plot.STAGES[stage.name]
    axes.plot(last, factor * record[name], color=color, clip_on=False, zorder=3, **marker)


def _begins(lines: Sequence[Mapping[str, Any]]) -> dict[Stage, int]:
  """Returns the number of epochs before each stage."""
  ends = _ends(lines)
  return dict(zip(ends, [0, *ends.values()]))


def _ends(lines: Sequence[Mapping[str, Any]]) -> dict[Stage, int]:
  """Returns the number of epochs up to the end of each stage."""
  ends, total = {}, 0
  for stage in dict.fromkeys(map(Stage.of, lines)):
    total += max(line['epoch'] for line in lines if Stage.of(line) == stage)
    ends[stage] = total
  return ends


def _whole_numbers() -> ticker.Locator:
  return ticker.MaxNLocator('auto', steps=[1, 2, 5, 10], integer=True)


def _legend(names: Sequence[str]) -> list[mlines.Line2D]:
  """Returns a handle for each stage, as its curve or its result is drawn."""
  handles = []
  for name in dict.fromkeys(names):
    handle = mlines.Line2D([], [], color=plot.STAGES[name], label=name)
    look = {'linestyle': _STYLES[name]} if name in _STYLES else {'linestyle': '', **_UNTRAINED}
    handle.set(**look)
    handles.append(handle)
  return handles
