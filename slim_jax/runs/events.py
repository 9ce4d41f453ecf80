"""Event files for TensorBoard, DIR/tensorboard/N-STAGE, without TensorFlow.

A stage that continues replaces its file: it writes the events up to its checkpoint again and then
adds to them. Every point is therefore in the file once, at its own step. (A SessionLog.START at the
beginning makes a running TensorBoard drop what it has read from the earlier file.) Object stores
cannot append to a file, so there the file is replaced once a minute and at the end.

`tensorboardX.SummaryWriter` writes in a thread. When the disk is full, the thread ends and the next
event blocks for ever, so this module uses the parts of tensorboardX beneath it, which raise the
error where it can be handled.
"""

from collections.abc import Iterator, Mapping
import contextlib
import pathlib
import tempfile
import time
from typing import Any

from etils import epath
import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from slim_jax.runs import workdir
from slim_jax.runtime import files, processes

_SECONDS_BETWEEN_COPIES = 60
_BINS = 30
_NO_CURVES = ('pass', 'stage', 'step', 'time')


class Events:
  """An event file that is being written; use `replace`."""

  def __init__(self, target: epath.Path, local: pathlib.Path):
    """Begins an event file.

    Args:
      target: directory of the file.
      local: directory to write in; copied to `target` from time to time if that is remote.
    """
    suffix = f'.{time.time_ns()}'  # two files of one second have different names
    self._writer = EventsWriter(str(local / 'events'), suffix)
    (self._local,) = local.glob(f'*{suffix}')
    self._target, self._copied = target / self._local.name, time.monotonic()
    self._add(0, session_log={'status': 'START'})

  def metrics(self, line: Mapping[str, Any]) -> None:
    """Adds the numbers of a line of metrics at its step."""
    for name, value in workdir.columns(line):
      if name not in _NO_CURVES:
        self._add(line['step'], when=line.get('time'), summary=summary.scalar(name, value))

  def scales(self, step: int, scales: Mapping[str, np.ndarray]) -> None:
    """Adds a histogram of each layer, and one of all layers.

    Args:
      step: step of the histograms.
      scales: |scale| by its path, float [channels].
    """
    layers = {f'scales/{path}': values for path, values in scales.items()}
    for name, values in {'scales': np.concatenate(list(scales.values())), **layers}.items():
      if values.size:
        self._add(step, summary=summary.histogram(name, values.astype(float), bins=_BINS))

  def text(self, name: str, markdown: str, *, step: int) -> None:
    """Adds a text."""
    self._add(step, summary=summary.text(name, markdown))

  def flush(self) -> None:
    """Makes all events visible to readers."""
    self._writer.flush()
    if time.monotonic() - self._copied > _SECONDS_BETWEEN_COPIES:
      self._copy()

  def close(self) -> None:
    """Ends the file."""
    self._writer.close()
    self._copy()

  def _add(self, step: int, *, when: float | None = None, **content: Any) -> None:
    self._writer.write_event(_event(step, when, **content))

  def _copy(self) -> None:
    if files.is_remote(self._target):
      files.write(self._target, self._local.read_bytes())
      self._copied = time.monotonic()


@contextlib.contextmanager
def replace(directory: epath.Path) -> Iterator[Events]:
  """Replaces the event files of a directory by a new one. Only the first process writes there.

  Args:
    directory: directory of one stage in `tensorboard` of a workdir; made if it does not exist.

  Raises:
    LinkError: it or the directory above it is a link.
  """
  files.refuse_links(directory, directory.parent)
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
    events = Events(directory, local)
    stack.callback(events.close)
    yield events


def _event(step: int, when: float | None, **content: Any) -> Any:
  # The class is made when the module is imported, so type checkers do not see it.
  event = event_pb2.Event  # pyright: ignore[reportAttributeAccessIssue]
  return event(step=step, wall_time=when or time.time(), **content)
