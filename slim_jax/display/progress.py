"""Progress of long phases: a live display on a terminal, plain log lines elsewhere."""

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import itertools
import sys
import time
from typing import TypeVar

from absl import logging
from rich import padding, table, text
import rich.console
import rich.progress

from slim_jax.display import console, quantities
from slim_jax.runtime import processes

T = TypeVar('T')


class Display:
  """Shows rows, one for each phase that has begun; on a terminal, log lines appear above them.

  Attributes:
    seconds_between_lines: how often there is a log line where there is no terminal.
    quiet: whether nothing is shown.
    verbose: whether there are log lines within epochs, too.
  """

  def __init__(self, screen: rich.console.Console, *, seconds_between_lines: float = 10.0):
    """Makes a display without rows.

    Args:
      screen: where the rows are, if it is a terminal.
      seconds_between_lines: how often there is a log line where it is none.
    """
    self.seconds_between_lines = seconds_between_lines
    self.quiet = self.verbose = False
    self._screen = screen
    # While there are rows; rich has one live display at a time.
    self._rows: rich.progress.Progress | None = None
    self._open = contextlib.ExitStack()

  @contextlib.contextmanager
  def row(
    self, name: str, *, total: int | None = None, completed: int = 0
  ) -> Iterator[Callable[..., None] | None]:
    """Shows a row within the block.

    Args:
      name: what it is called.
      total: how many steps there are; None if nobody knows, which shows a clock.
      completed: how many have been taken before.

    Yields:
      `update(completed=None, advance=None, values='')`, or None if there is no terminal.
    """
    if not self.is_live():
      yield None
      return
    if self._rows is None:
      self._rows = self._open.enter_context(_rows(self._screen))
      self._open.enter_context(_logs_to(sys.stderr))  # which rich has replaced
    rows = self._rows
    task = rows.add_task(name, total=total, completed=completed, values='')
    try:
      yield lambda **changes: rows.update(task, **changes)
    finally:
      rows.remove_task(task)
      if not rows.tasks:
        self._rows = None
        with contextlib.suppress(OSError):  # the terminal may be closed
          self._open.close()

  def is_live(self) -> bool:
    """Whether rows can be shown."""
    # Rich also calls a log a terminal that FORCE_COLOR is set for.
    is_terminal = self._screen.is_interactive and self._screen.file.isatty()
    return processes.is_first() and is_terminal and not self.quiet


# That of the program.
_DISPLAY = Display(console.PROGRESS)


class Progress:
  """Shows loss, metrics, images per second and the time left of a training; use it in `with`."""

  def __init__(
    self,
    name: str,
    *,
    step: int,
    steps: int,
    epoch_steps: int,
    batch_size: int,
    display: Display | None = None,
  ):
    """Starts at `step` of `steps`, each of `batch_size` images; an epoch has `epoch_steps`."""
    self._name, self._steps, self._epoch_steps = name, steps, epoch_steps
    self._batch_size, self._display = batch_size, display or _DISPLAY
    self._open = contextlib.ExitStack()
    self._row = self._open.enter_context(
      self._display.row(self._title(step), total=steps, completed=step)
    )
    self._last = self._last_line = (step, time.monotonic())

  def __enter__(self) -> 'Progress':
    return self

  def __exit__(self, *_) -> None:
    self._open.close()

  def update(self, step: int, *, note: str = '', loss: float, **metrics: float) -> None:
    """Shows that training has come to `step`, with loss and metrics of the epoch so far.

    Args:
      step: steps taken.
      note: something else to show on a terminal.
      loss: mean over the epoch.
      **metrics: likewise.
    """
    now = time.monotonic()
    values = [f'loss {loss:.4f}', *figures(metrics)]
    if self._row:
      values += [note, f'{self._rate(step, now, since=self._last):,.0f} images/s']
      self._row(
        completed=step, description=self._title(step), values=', '.join(filter(None, values))
      )
    elif (
      self._display.verbose
      and now - self._last_line[1] > self._display.seconds_between_lines
      and step % self._epoch_steps
    ):
      rate = self._rate(step, now, since=self._last_line)
      left = clock((self._steps - step) * self._batch_size / rate)
      values += [f'{rate:,.0f} images/s', f'{left} left']
      logging.info('%s: step %d of %d, %s', self._name, step, self._steps, ', '.join(values))
      self._last_line = (step, now)
    self._last = (step, now)

  def _title(self, step: int) -> str:
    """Returns the name with the number of the epoch that the next step, or the last, belongs to."""
    epochs = -(-self._steps // self._epoch_steps)
    return f'{self._name}: epoch {min(step // self._epoch_steps + 1, epochs)} of {epochs}'

  def _rate(self, step: int, now: float, *, since: tuple[int, float]) -> float:
    """Returns images per second."""
    return max(step - since[0], 1) * self._batch_size / max(now - since[1], 1e-6)


class Lines:
  """Log lines of a stage: one for an epoch at most, and none too soon after another."""

  def __init__(self, display: Display | None = None):
    """Makes the lines of a stage that begins now."""
    self._display, self._last = display or _DISPLAY, time.monotonic()

  def add(self, line: str, *, is_last: bool) -> None:
    """Logs a line if it is time, or the last. A terminal, where rows show the rest, has that alone."""
    now = time.monotonic()
    is_due = now - self._last > self._display.seconds_between_lines
    if is_last or (is_due and not self._display.is_live()):
      logging.info('%s', line)
      self._last = now


def figures(metrics: Mapping[str, float]) -> list[str]:
  """Returns metrics as texts such as 'accuracy 90.00%'."""
  return [
    f'{name.replace("_", " ")} {quantities.show(name, value)}' for name, value in metrics.items()
  ]


def speak(*, quiet: bool = False, verbose: bool = False) -> None:
  """Sets how much the program shows: no progress at all, or more lines where there is no terminal."""
  _DISPLAY.quiet, _DISPLAY.verbose = quiet, verbose


@contextlib.contextmanager
def phase(name: str, *, display: Display = _DISPLAY) -> Iterator[None]:
  """Shows the name of a phase of unknown length, such as a compilation, and a clock.

  Without a terminal, a log line says that it begins, and another how long it took if that was long.
  """
  began = time.monotonic()
  with display.row(f'{name} ...') as row:
    if row:
      yield
      return
    logging.info('%s ...', name)
    yield
    if time.monotonic() - began > display.seconds_between_lines:
      logging.info('%s took %s', name, clock(time.monotonic() - began))


def first_time(name: str) -> Callable[[], contextlib.AbstractContextManager[None]]:
  """Returns a function that makes a `phase` the first time it is called: calls that compile."""
  phases = itertools.chain([phase(name)], itertools.repeat(contextlib.nullcontext()))
  return lambda: next(phases)


def each(
  iterable: Iterable[T], name: str, *, total: int, display: Display = _DISPLAY
) -> Iterator[T]:
  """Yields the elements of an iterable, and shows how many have been used."""
  last = time.monotonic()
  with display.row(name, total=total) as row:
    for number, element in enumerate(iterable, start=1):
      yield element
      if row:
        row(completed=number)
      elif time.monotonic() - last > display.seconds_between_lines:
        last = time.monotonic()
        logging.info('%s: %d of %d', name, number, total)


def clock(seconds: float) -> str:
  """Returns '1:02:03', or '2:03' below an hour."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f'{hours}:{minute:02d}:{second:02d}' if hours else f'{minute}:{second:02d}'


class _State(rich.progress.ProgressColumn):
  """The share of the steps and the time left; or a clock, if the steps are unknown."""

  def render(self, task: rich.progress.Task) -> text.Text:
    if task.total is None:
      return text.Text(clock(task.elapsed or 0), no_wrap=True)
    left = '' if task.time_remaining is None else f', {clock(task.time_remaining)} left'
    return text.Text(f'{task.percentage:3.0f}%{left}', no_wrap=True)


class _Rows(rich.progress.Progress):
  """Rows, and the values of each in lines of their own, so that narrow terminals show all."""

  def get_renderables(self) -> Iterator[rich.console.RenderableType]:
    yield from super().get_renderables()
    for task in self.tasks:
      if task.fields['values']:
        yield padding.Padding(text.Text(task.fields['values']), (0, 0, 0, 2))


def _rows(screen: rich.console.Console) -> rich.progress.Progress:
  """Makes a live display that leaves nothing behind."""
  return _Rows(
    rich.progress.TextColumn(
      '{task.description}', markup=False, table_column=table.Column(no_wrap=True)
    ),
    rich.progress.BarColumn(bar_width=None, table_column=table.Column(ratio=1, min_width=8)),
    _State(table_column=table.Column()),
    console=screen,
    expand=True,
    transient=True,
    refresh_per_second=4,
    redirect_stdout=False,  # results, which may go to a file
  )


@contextlib.contextmanager
def _logs_to(stream) -> Iterator[None]:
  """Writes log lines to a stream; the handler of absl keeps the one that it was made with."""
  handler = logging.get_absl_handler().python_handler
  before = handler.setStream(stream)
  try:
    yield
  finally:
    if before is not None:
      handler.setStream(before)
