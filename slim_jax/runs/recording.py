"""What is kept of a stage while it trains: its metrics, its scales, its curves for TensorBoard."""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import csv
import io
import time
from typing import Any

from absl import logging
import numpy as np

from slim_jax.display import tables
from slim_jax.runs import events, scale_history
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError, columns
from slim_jax.runtime import files, processes


@contextlib.contextmanager
def recorder(workdir: Workdir, stage: Stage, *, step: int) -> Iterator[Callable[..., None]]:
  """A function that records an epoch: what `loop.fit` gives, and scales where it has them.

  Args:
    workdir: of the run.
    stage: the stage that is recorded.
    step: the checkpoint that it continues from; what an earlier call has recorded beyond it is
      dropped, for it will be recorded again.

  Yields:
    `record(scales=None, **values)`: scales are float [channels], |scale| by path; values, with
    epoch and step among them, become a line of metrics, with the time (seconds since 1970).
  """
  write = workdir.recorder(stage, step=step)
  if not processes.is_first():
    yield lambda **_: None
    return
  with contextlib.closing(_Views(workdir, stage, step)) as views:

    def record(*, scales: Mapping[str, np.ndarray] | None = None, **values: Any) -> None:
      line = {**values, 'time': round(time.time(), 3)}
      write(**line)
      views.add(line, scales)

    yield record


def write_csv(workdir: Workdir) -> None:
  """Writes metrics.csv: the lines of metrics.jsonl, a column for each number in any of them."""
  path = workdir.path / 'metrics.jsonl'
  if not processes.is_first() or not path.exists():
    return
  lines = [dict(columns(line)) for line in workdir.lines()]
  content = io.StringIO()
  writer = csv.DictWriter(
    content, dict.fromkeys(name for line in lines for name in line), lineterminator='\n'
  )
  writer.writeheader()
  writer.writerows(lines)
  files.write(workdir.path / 'metrics.csv', content.getvalue())


def write_table(workdir: Workdir, records: list[dict[str, Any]]) -> None:
  """Shows the table of the stages that are complete in TensorBoard."""
  with events.replace(workdir.path / 'tensorboard' / 'stages') as board:
    board.text('stages', tables.markdown(records), step=len(records))


class _Views:
  """What people look at while a stage trains, beside the lines of its metrics.

  Where the disk takes no more of it, that is said once, and training goes on to its checkpoint.
  """

  def __init__(self, workdir: Workdir, stage: Stage, step: int):
    self._path = workdir.scales(stage)
    self._scales = scale_history.none()
    self._open = contextlib.ExitStack()
    self._events: events.Events | None = None
    with self._spared():
      if step and self._path.exists():
        self._scales = self._begun(step)
      self._events = self._open.enter_context(events.replace(workdir.events(stage)))
      for line in workdir.lines(stage):
        self._events.metrics(line)
      for number, epoch_step in enumerate(self._scales.step):
        self._events.scales(
          int(epoch_step), {path: values[number] for path, values in self._scales.values.items()}
        )
      self._events.flush()

  def add(self, line: Mapping[str, Any], scales: Mapping[str, np.ndarray] | None) -> None:
    """Adds an epoch."""
    if self._events is None:
      return
    with self._spared():
      self._events.metrics(line)
      if scales:
        self._scales = self._scales.and_then(line['epoch'], line['step'], scales)
        scale_history.write(self._path, self._scales)
        self._events.scales(line['step'], scales)
      self._events.flush()

  def close(self) -> None:
    """Ends the event file."""
    with self._spared():
      self._open.close()

  def _begun(self, step: int) -> scale_history.Scales:
    """What an earlier call has seen up to a step."""
    try:
      return scale_history.read(self._path).until(step)
    except WorkdirError as error:
      logging.warning('%s; it begins anew from here', error)
      return scale_history.none()

  @contextlib.contextmanager
  def _spared(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._events = None
      logging.warning('scales and curves are not recorded from here on: %s', error)
