"""Signals that ask a run to stop: from a cluster, from Ctrl-C, from a terminal that closes, from a clock.

Training notes a signal and saves a checkpoint first (`Watch`). At any other time there is nothing to
save, because files are written whole, and the process ends at once (`end_at_signals`).
"""

from collections.abc import Iterator
import contextlib
import itertools
import os
import re
import signal
import socket
import threading
from typing import Any

import jax
from jax.experimental import multihost_utils

from slim_jax.errors import SlimError
from slim_jax.runtime import processes

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGALRM)

_SHOW_CURSOR = '\r\x1b[?25h'

# Set when `end_at_signals` has been called.
_ending = threading.Event()

# Numbers of the questions that all processes ask together.
_QUESTIONS = itertools.count()


class Preempted(SlimError):
  """The run was asked to stop, and its state is saved; the message says how far it came.

  Attributes:
    exit_code: for the process. It is not 0, which would tell a cluster that nothing is left to do.
  """

  def __init__(self, message: str, number: signal.Signals):
    super().__init__(message)
    self.exit_code = 128 + number


class Watch:
  """Notes a signal, so that a run can save its state before it ends.

  Attributes:
    noted: the signal; None if none has come.
  """

  def __init__(self):
    self.noted: signal.Signals | None = None
    self._before: dict[signal.Signals, Any] = {}

  def asked(self) -> signal.Signals | None:
    """Returns the signal that has come, if any.

    Every process of a run must ask equally often; all get the same answer.
    """
    if jax.process_count() > 1:
      processes.step_begins()
      # JAX handles SIGTERM in this case. It says so once, when all processes have asked as often.
      if multihost_utils.reached_preemption_sync_point(next(_QUESTIONS)):
        self.noted = signal.SIGTERM
    return self.noted

  def begin(self) -> None:
    """Starts to note signals, of one process in its main thread; before, there is nothing to save.

    Signals that are ignored, as after nohup, stay ignored.
    """
    if self._before or jax.process_count() > 1:
      return
    if threading.current_thread() is threading.main_thread():
      self._before = _handle_all(self._note)

  def end(self) -> None:
    """Restores what signals did before."""
    processes.steps_end()
    for number, handler in self._before.items():
      signal.signal(number, handler)
    self._before = {}

  def _note(self, number: int, _) -> None:
    # Where a thread ends the process at the second Ctrl-C, a traceback may come before it.
    if number == signal.SIGINT and self.noted == signal.SIGINT and not _ending.is_set():
      raise KeyboardInterrupt
    self.noted = self.noted or signal.Signals(number)


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
  """Yields a watch that ends with the block."""
  result = Watch()
  try:
    yield result
  finally:
    result.end()


def name_of(number: signal.Signals) -> str:
  """Returns who asks, for people."""
  return 'the budget' if number == signal.SIGALRM else number.name


def end_after(seconds: float) -> None:
  """Asks this process to stop when the time is over, by SIGALRM; see `end_at_signals`."""
  signal.setitimer(signal.ITIMER_REAL, seconds)


def seconds_of(text: str) -> float:
  """Returns a time such as '530s', '20m' or '1h30m' in seconds; 0 if the text is no such time."""
  match = re.fullmatch(r'(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?', text.strip())
  hours, minutes, seconds = (int(part or 0) for part in match.groups()) if match else (0, 0, 0)
  return 3600 * hours + 60 * minutes + seconds


def end_at_signals() -> None:
  """Makes every signal end the process, except one that a `Watch` notes; call it once.

  The second Ctrl-C always ends it. A thread does this, since Python calls handlers only between its
  own operations and a compilation would have to end first. A process with the number 1, as in a
  container, would ignore signals without a handler.
  """
  reader, writer = socket.socketpair()
  writer.setblocking(False)
  signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
  _handle_all(_leave_to_thread)
  threading.Thread(target=_end_at, args=(reader,), daemon=True).start()
  _ending.set()


def _handle_all(handler) -> dict[signal.Signals, Any]:
  """Sets the handler of all signals that are not ignored; returns the handlers before."""
  before = {number: signal.getsignal(number) for number in SIGNALS}
  # None is a handler that is not Python's.
  before = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
  for number in before:
    signal.signal(number, handler)
  return before


def _leave_to_thread(*_) -> None:
  """Does nothing: Python writes the number of a signal with a handler to the thread."""


def _end_at(reader: socket.socket) -> None:
  """Reads the numbers of signals as they come."""
  interrupts = 0
  while numbers := reader.recv(64):
    for number in numbers:
      if number not in SIGNALS:
        continue
      interrupts += number == signal.SIGINT
      if interrupts < 2 and jax.distributed.is_initialized():
        os.kill(os.getpid(), signal.SIGTERM)  # JAX tells the other processes
      elif interrupts > 1 or signal.getsignal(number) is _leave_to_thread:
        _end(signal.Signals(number))


def _end(number: signal.Signals) -> None:
  """Ends the process at once."""
  message = f'stopped by {name_of(number)}; complete stages and checkpoints are kept\n'
  with contextlib.suppress(OSError):  # the terminal may be closed
    os.write(2, ((_SHOW_CURSOR if os.isatty(2) else '') + message).encode())
  os._exit(128 + number)
