"""Progress of a long phase: a bar on a terminal, plain log lines elsewhere."""

import time

from absl import logging
import tqdm

from slim_jax import processes

_SECONDS_BETWEEN_LINES = 10


class Progress:
  """Shows loss, accuracy, images per second and the time that is left.

  Use it in `with`.
  """

  def __init__(self, name: str, *, step: int, steps: int, batch_size: int):
    """Starts at `step` of `steps`, each of `batch_size` images."""
    self._name, self._steps, self._batch_size = name, steps, batch_size
    # disable=None: no bar where the output is no terminal.
    self._bar = tqdm.tqdm(
        total=steps, initial=step, desc=name, disable=None if processes.is_first() else True, dynamic_ncols=True,
        bar_format='{desc} {percentage:3.0f}%|{bar}| {remaining} left{postfix}')
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
      logging.info('%s: step %d of %d, %s, %s images/s, %s left', self._name, step,
                   self._steps, values, f'{rate:,.0f}', clock(left))
      self._last_line = (step, now)
    self._last = (step, now)

  def _rate(self, step: int, now: float, *, since: tuple[int, float]) -> float:
    """Images per second."""
    return max(step - since[0], 1) * self._batch_size / max(now - since[1], 1e-6)


def clock(seconds: float) -> str:
  """'1:02:03', or '2:03' below an hour."""
  minutes, second = divmod(round(seconds), 60)
  hours, minute = divmod(minutes, 60)
  return f'{hours}:{minute:02d}:{second:02d}' if hours else f'{minute}:{second:02d}'
