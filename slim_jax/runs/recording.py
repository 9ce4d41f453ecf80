"""Records a stage while it trains: metrics, scales, and curves for TensorBoard."""

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
from slim_jax.runs.errors import WorkdirError
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, columns
from slim_jax.runtime import files, processes


@contextlib.contextmanager
def recorder(workdir: Workdir, stage: Stage, *, step: int) -> Iterator[Callable[..., None]]:
  """Opens the files that record a stage.

  Args:
    workdir: directory of the run.
    stage: the stage that is recorded.
    step: step of the checkpoint that the stage continues from. Records after this step are dropped,
      because they will be written again.

  Yields:
    `record(scales=None, **values)`, to be called once per epoch. values, with epoch and step among
    them, become a line of metrics, to which the time is added (seconds since 1970). scales are
    |scale| by path, float [channels].
  """
  write = workdir.metrics_writer(stage, step=step)
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
  """Writes metrics.csv: the lines of metrics.jsonl with a column for each of their numbers."""
  path = workdir.path / 'metrics.jsonl'
  if not processes.is_first() or not path.exists():
    return
  lines = [
    {_cell(name): _cell(value) for name, value in columns(line)} for line in workdir.metrics()
  ]
  content = io.StringIO()
  writer = csv.DictWriter(
    content, dict.fromkeys(name for line in lines for name in line), lineterminator='\n'
  )
  writer.writeheader()
  writer.writerows(lines)
  files.write(workdir.path / 'metrics.csv', content.getvalue())


def _cell(value: Any) -> Any:
  """Returns a value that a spreadsheet takes for what it is: no text begins like a formula."""
  is_formula = isinstance(value, str) and value.startswith(('=', '+', '-', '@', '\t', '\r'))
  return f"'{value}" if is_formula else value


def write_table(workdir: Workdir, records: list[dict[str, Any]]) -> None:
  """Writes the table of the complete stages for TensorBoard."""
  with events.replace(workdir.path / 'tensorboard' / 'stages') as board:
    board.text('stages', tables.markdown(records), step=len(records))


class _Views:
  """Scales and curves of a stage, for people; training does not depend on them.

  If the disk is full, a warning is logged once and training continues to its checkpoint.
  """

  def __init__(self, workdir: Workdir, stage: Stage, step: int):
    self._path = workdir.scales(stage)
    self._scales = scale_history.empty()
    self._open = contextlib.ExitStack()
    self._events: events.Events | None = None
    with self._tolerating_errors():
      if step and self._path.exists():
        self._scales = self._scales_until(step)
      self._events = self._open.enter_context(events.replace(workdir.events(stage)))
      for line in workdir.metrics(stage):
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
    with self._tolerating_errors():
      self._events.metrics(line)
      if scales:
        self._scales = self._scales.and_then(line['epoch'], line['step'], scales)
        scale_history.write(self._path, self._scales)
        self._events.scales(line['step'], scales)
      self._events.flush()

  def close(self) -> None:
    """Closes the event file."""
    with self._tolerating_errors():
      self._open.close()

  def _scales_until(self, step: int) -> scale_history.Scales:
    """Reads the scales that an earlier call has recorded up to a step."""
    try:
      return scale_history.read(self._path).until(step)
    except WorkdirError as error:
      logging.warning('%s; scales are recorded from this epoch on', error)
      return scale_history.empty()

  @contextlib.contextmanager
  def _tolerating_errors(self) -> Iterator[None]:
    try:
      yield
    except OSError as error:
      self._events = None
      logging.warning('scales and curves of this stage are no longer recorded: %s', error)
