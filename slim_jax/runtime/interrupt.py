"""SIGTERM, with which clusters announce that they take a machine back."""

from collections.abc import Iterator
import contextlib
import itertools
import signal
import threading

import jax
from jax.experimental import multihost_utils

# Numbers of the questions that all processes ask together.
_QUESTIONS = itertools.count()


class Preempted(Exception):
  """The run was asked to stop, and what it had done is saved; the message says how far it came."""


class Watch:
  """Whether SIGTERM has come."""

  def __init__(self):
    self._asked = False
    self._watching = False

  def asked(self) -> bool:
    """Whether it has; every process of a run must ask as often, and all hear the same."""
    if jax.process_count() > 1:
      # Of JAX, which has taken the signal over; it says so once, when all have come as far.
      self._asked |= multihost_utils.reached_preemption_sync_point(next(_QUESTIONS))
    return self._asked

  def begin(self) -> None:
    """From now on SIGTERM is noted; until now it ends the process, as there is nothing to save.

    Python calls handlers between two of its own operations: a compilation would have to end first.
    Threads other than the main one cannot watch.
    """
    if jax.process_count() > 1:
      return
    if not self._watching and threading.current_thread() is threading.main_thread():
      self._watching = True
      self._before = signal.signal(signal.SIGTERM, self._note)

  def end(self) -> None:
    """SIGTERM does what it did before."""
    if self._watching:
      self._watching = False
      signal.signal(signal.SIGTERM, self._before)

  def _note(self, *_) -> None:
    self._asked = True


@contextlib.contextmanager
def watch() -> Iterator[Watch]:
  """A watch that ends with the block."""
  result = Watch()
  try:
    yield result
  finally:
    result.end()
