"""Event files for TensorBoard, DIR/tensorboard/N-STAGE, without tensorflow.

A stage that is continued writes its file anew, from what is kept of it, and then adds to it: so
every point is there once, at the step it belongs to, whatever reads the files. (The START in its
head makes a TensorBoard that has shown the earlier file drop what it has.) In an object store,
where nothing can be added to a file, it is replaced once a minute and at the end.
"""

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
import tempfile
import time
from typing import Any

from etils import epath
import numpy as np
import tensorboardX
from tensorboardX import summary
from tensorboardX.proto import event_pb2

from slim_jax.runs import workdir
from slim_jax.runtime import files, processes

_SECONDS_BETWEEN_COPIES = 60
_BINS = 30
_NO_CURVES = ('pass', 'stage', 'step', 'time')


class Events:
  """An event file that is being written; use `replace`."""

  def __init__(self, target: epath.Path, local: pathlib.Path):
    """Begins the file `local`, of which `target` becomes a copy unless they are the same."""
    self._target, self._local, self._copied = target, local, time.monotonic()
    self._writer = tensorboardX.RecordWriter(str(local))
    self._add(event_pb2.Event(wall_time=time.time(), file_version='brain.Event:2'))
    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
    self._add(event_pb2.Event(wall_time=time.time(), step=0, session_log=start))

  def metrics(self, line: Mapping[str, Any]) -> None:
    """Adds the numbers of a line of metrics, at its step."""
    when = line.get('time') or time.time()
    for name, value in workdir.columns(line):
      if name not in _NO_CURVES:
        self._add(
          event_pb2.Event(wall_time=when, step=line['step'], summary=summary.scalar(name, value))
        )

  def scales(self, step: int, scales: Mapping[str, np.ndarray]) -> None:
    """Adds a histogram of each layer, and one of all.

    Args:
      step: where.
      scales: float [channels], |scale| by its path.
    """
    every = {
      'scales': np.concatenate(list(scales.values())),
      **{f'scales/{path}': values for path, values in scales.items()},
    }
    for name, values in every.items():
      if values.size:
        found = summary.histogram(name, values.astype(float), bins=_BINS)
        self._add(event_pb2.Event(wall_time=time.time(), step=step, summary=found))

  def text(self, name: str, markdown: str, *, step: int) -> None:
    """Adds a text."""
    self._add(
      event_pb2.Event(wall_time=time.time(), step=step, summary=summary.text(name, markdown))
    )

  def flush(self) -> None:
    """Makes what was added visible."""
    self._writer.flush()
    if time.monotonic() - self._copied > _SECONDS_BETWEEN_COPIES:
      self._copy()

  def close(self) -> None:
    """Ends the file."""
    self._writer.flush()
    self._writer.close()
    self._copy()

  def _add(self, event: event_pb2.Event) -> None:
    self._writer.write(event.SerializeToString())

  def _copy(self) -> None:
    if files.is_remote(self._target):
      files.write(self._target, self._local.read_bytes())
      self._copied = time.monotonic()


@contextlib.contextmanager
def replace(directory: epath.Path) -> Iterator[Events]:
  """A new event file instead of those of a directory; of several processes for the first alone.

  Args:
    directory: one stage's own, of `tensorboard` in a workdir; made if it does not exist.
  """
  name = f'events.out.tfevents.{time.time_ns() // 10**6}'
  with contextlib.ExitStack() as stack:
    if files.is_remote(directory) or not processes.is_first():
      local = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
    else:
      directory.mkdir(parents=True, exist_ok=True)
      local = pathlib.Path(directory)
    if processes.is_first() and directory.exists():
      for path in directory.iterdir():
        if 'tfevents' in path.name:
          path.unlink()
    events = Events(directory / name, local / name)
    stack.callback(events.close)
    yield events
