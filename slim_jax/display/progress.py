"""Progress of long phases: bars on a terminal, plain log lines elsewhere."""

from collections.abc import Callable, Iterable, Iterator
import contextlib
import itertools
import threading
import time
from typing import TypeVar

from absl import logging
import tqdm

from slim_jax.runtime import processes

_SECONDS_BETWEEN_LINES = 10

T = TypeVar('T')


class Progress:
  """Shows loss, accuracy, images per second and the time that is left.

  Use it in `with`.
  """

  def __init__(self, name: str, *, step: int, steps: int, batch_size: int):
    """Starts at `step` of `steps`, each of `batch_size` images."""
    self._name, self._steps, self._batch_size = name, steps, batch_size
    self._bar = _bar(
      total=steps,
      initial=step,
      desc=name,
      bar_format='{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}',
    )
    self._last = self._last_line = (step, time.monotonic())

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  def update(self, step: int, *, loss: float, accuracy: float) -> None:
    """Says that training has come to `step`; loss and accuracy of late."""
    now = time.monotonic()
    values = f'loss {loss:.4f}, accuracy {accuracy:.2%}'
    if not self._bar.disable:
      rate = self._rate(step, now, since=self._last)
      self._bar.set_postfix_str(f'{values}, {rate:,.0f} images/s', refresh=False)
      self._bar.update(step - self._bar.n)
    elif now - self._last_line[1] > _SECONDS_BETWEEN_LINES or step == self._steps:
      rate = self._rate(step, now, since=self._last_line)
      left = (self._steps - step) * self._batch_size / rate
      logging.info(
        '%s: step %d of %d, %s, %s images/s, %s left',
        self._name,
        step,
        self._steps,
        values,
        f'{rate:,.0f}',
        clock(left),
      )
      self._last_line = (step, now)
    self._last = (step, now)

  def _rate(self, step: int, now: float, *, since: tuple[int, float]) -> float:
    """Images per second."""
    return max(step - since[0], 1) * self._batch_size / max(now - since[1], 1e-6)


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
  """A phase whose length is not known, such as a compilation: its name, and what it has taken.

  Elsewhere than on a terminal a line says that it begins and, if it was long, that it is over.
  """
  began = time.monotonic()
  with _bar(desc=name, bar_format='{desc} ... {elapsed}', leave=False) as bar:
    if bar.disable:
      logging.info('%s ...', name)
      yield
      if time.monotonic() - began > _SECONDS_BETWEEN_LINES:
        logging.info('%s took %s', name, clock(time.monotonic() - began))
    else:
      over = threading.Event()
      thread = threading.Thread(target=_refresh, args=(bar, over), daemon=True)
      thread.start()
      try:
        yield
      finally:
        over.set()
        thread.join()


def each(iterable: Iterable[T], name: str, *, total: int) -> Iterator[T]:
  """The elements of an iterable, and how many of them have been used.

  Elsewhere than on a terminal a line says so every ten seconds.
  """
  last = time.monotonic()
  with _bar(
    total=total,
    desc=name,
    leave=False,
    bar_format='{desc} {percentage:3.0f}%|{bar}| {remaining} left',
  ) as bar:
    for number, element in enumerate(iterable):
      yield element
      bar.update()
      if bar.disable and time.monotonic() - last > _SECONDS_BETWEEN_LINES:
        last = time.monotonic()
        logging.info('%s: %d of %d', name, number + 1, total)


def _bar(**options) -> tqdm.tqdm:
  # disable=None: no bar where the output is no terminal.
  return tqdm.tqdm(disable=None if processes.is_first() else True, dynamic_ncols=True, **options)


def _refresh(bar: tqdm.tqdm, over: threading.Event) -> None:
  """Keeps the clock of a bar going."""
  while not over.wait(0.5):
    bar.refresh()


def clock(seconds: float) -> str:
  """'1:02:03', or '2:03' below an hour."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f'{hours}:{minute:02d}:{second:02d}' if hours else f'{minute}:{second:02d}'


def first_time(name: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
  """Shows the first call of a function, which compiles it."""
  phases = itertools.chain([phase(name)], itertools.repeat(contextlib.nullcontext()))
  return lambda: next(phases)
