"""How the figures of a run are named and written, whatever its loss.

A record of classification has the one metric 'accuracy', which judges. Records of other losses say
in 'metrics' which metrics they have, and in 'judge' which figure judges, with a minus where smaller
is better.
"""

from collections.abc import Mapping, Sequence
from typing import Any

_ACCURACY = 'accuracy'


def metrics_of(record: Mapping[str, Any]) -> tuple[str, ...]:
  """Returns the names of the metrics of a record."""
  return tuple(record.get('metrics', (_ACCURACY,)))


def judge_of(record: Mapping[str, Any]) -> str:
  """Returns the name of the figure that judges a record."""
  return str(record.get('judge', _ACCURACY)).removeprefix('-')


def judge_of_study(points: Sequence[Mapping[str, Any]]) -> str:
  """Returns the name of the figure that judges the points of a study, which have `stages`."""
  return judge_of(next((row for point in points for row in point['stages']), {}))


def show(name: str, value: float) -> str:
  """Returns '98.61%' for an accuracy, and four digits of any other figure."""
  return f'{value:.2%}' if is_share(name) else f'{value:.4g}'


def is_share(name: str) -> bool:
  """Returns whether a figure is a share of right answers, 0 to 1: 'accuracy' or '..._accuracy'."""
  return name == _ACCURACY or name.endswith(f'_{_ACCURACY}')


def error(name: str, value: float) -> float:
  """Returns the error in per cent for an accuracy, and any other figure as it is."""
  return 100 * (1 - value) if is_share(name) else value


def lost(record: Mapping[str, Any], before: float, after: float) -> float:
  """Returns by how much the figure that judges a record became worse; points for an accuracy."""
  smaller_is_better = str(record.get('judge', '')).startswith('-')
  change = after - before if smaller_is_better else before - after
  return 100 * change if is_share(judge_of(record)) else change


def error_name(name: str) -> str:
  """Returns what `error` returns: 'test error, %' for an accuracy."""
  if name == _ACCURACY:
    return 'test error, %'
  return f'100 % - test {name}' if is_share(name) else f'test {name}'
