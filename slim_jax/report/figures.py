"""Figures of one run; those that a study has too are in `plot`."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import figure
from matplotlib import lines as mlines
import numpy as np

from slim_jax.display import plot
from slim_jax.runs.stages import Stage

_STYLES = {'baseline': '--', 'sparse': '-', 'finetuned': '-', 'scratch-e': '-.', 'scratch-b': ':'}

# Results at the end of a stage. What is done at once stands where the stage before ended.
_TRAINED = {'marker': 'o', 'markersize': 5}
_AT_ONCE = {'marker': 'D', 'markersize': 9, 'fillstyle': 'none'}


def curves(
  lines: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]]
) -> figure.Figure:
  """Loss, accuracy and learning rate, the epochs of all stages one after the other.

  Args:
    lines: of metrics, in order.
    records: of the stages that are complete; their test accuracy stands at their end.
  """
  picture = figure.Figure(figsize=(5.2, 6), layout='constrained')
  loss, accuracy, rate = picture.subplots(3, 1, sharex=True, height_ratios=(3, 3, 2))
  begin = _begins(lines)
  for stage in begin:
    mine = [line for line in lines if Stage.of(line) == stage]
    look = {'color': plot.STAGES[stage.name], 'linestyle': _STYLES.get(stage.name, '-')}
    for axes, name, factor in (
      (loss, 'loss', 1),
      (accuracy, 'accuracy', 100),
      (rate, 'learning_rate', 1),
    ):
      axes.plot(
        [begin[stage] + line['epoch'] for line in mine],
        [factor * line[name] for line in mine],
        **look,
      )
      tested = [line for line in mine if f'test_{name}' in line]
      axes.plot(
        [begin[stage] + line['epoch'] for line in tested],
        [factor * line[f'test_{name}'] for line in tested],
        linestyle='',
        marker='.',
        color=look['color'],
      )
  last = 0
  for record in records:
    stage = Stage.of(record)
    mine = [line['epoch'] for line in lines if Stage.of(line) == stage]
    last = begin[stage] + max(mine) if mine else last
    for axes, name, factor in ((loss, 'loss', 1), (accuracy, 'accuracy', 100)):
      axes.plot(
        last,
        factor * record[name],
        color=plot.STAGES[stage.name],
        clip_on=False,
        zorder=3,
        **(_TRAINED if mine else _AT_ONCE),
      )
  loss.set(ylabel='loss, nats', yscale='log')
  accuracy.set(ylabel='accuracy, %')
  rate.set(ylabel='learning rate', xlabel='epoch', yscale='log')
  for axes in (loss, accuracy, rate):
    axes.grid(alpha=0.3)
  picture.legend(
    handles=_legend(
      dict.fromkeys([stage.name for stage in begin] + [record['stage'] for record in records])
    ),
    loc='outside upper center',
    ncols=3,
  )
  return picture


def widths(found: Sequence[tuple[str, int, int]]) -> figure.Figure:
  """Channels of every layer, before and after.

  Args:
    found: (name, before, after), in order.
  """
  picture = figure.Figure(figsize=(5.2, 3), layout='constrained')
  axes = picture.subplots()
  place = np.arange(1, len(found) + 1)
  axes.bar(
    place, [before for _, before, _ in found], width=0.85, color='C2', alpha=0.4, label='before'
  )
  axes.bar(place, [after for _, _, after in found], width=0.85, color='C4', label='after')
  axes.set(xlabel='layer, in order', ylabel='channels')
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.grid(alpha=0.3, axis='y')
  picture.legend(loc='outside upper center', ncols=2)
  return picture


def heat(layers: Mapping[str, np.ndarray], epoch: np.ndarray) -> figure.Figure:
  """How the scales of layers went: a row for each channel, the largest at the end on top.

  Args:
    layers: float [epochs, channels], |scale| by title.
    epoch: int [epochs]; epochs that are missing stay empty.
  """
  picture = figure.Figure(figsize=(5.2, 0.6 + 2.2 * len(layers)), layout='constrained')
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
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.yaxis.get_major_locator().set_params(integer=True)
    picture.colorbar(image, ax=axes, label='|scale|')
  grid[-1].set_xlabel('epoch')
  return picture


def _begins(lines: Sequence[Mapping[str, Any]]) -> dict[Stage, int]:
  """How many epochs were before each stage."""
  begin, total = {}, 0
  for stage in dict.fromkeys(map(Stage.of, lines)):
    begin[stage] = total
    total += max(line['epoch'] for line in lines if Stage.of(line) == stage)
  return begin


def _legend(names: Sequence[str]) -> list[mlines.Line2D]:
  return [
    mlines.Line2D(
      [],
      [],
      color=plot.STAGES[name],
      label=name,
      **({'linestyle': _STYLES[name]} if name in _STYLES else {'linestyle': '', **_AT_ONCE}),
    )
    for name in names
  ]
