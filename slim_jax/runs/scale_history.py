"""The scales of a sparse stage by epoch, for heat maps and histograms.

Each pass has one compressed file, scales-N.npz. It holds epoch and step, int32 [epochs], and the
absolute values of each scale by its path, float16 [epochs, channels]. 160 epochs of a network of
164 layers (12,112 channels) take 4 MB before compression, small enough to replace the whole file
every epoch.
"""

from collections.abc import Mapping
import io
from typing import Any, NamedTuple

from etils import epath
import numpy as np

from slim_jax import npz
from slim_jax.runs.errors import WorkdirError
from slim_jax.runtime import files

_MOST = float(np.finfo(np.float16).max)
# Bytes that a file may unpack to: a thousand epochs of 250,000 channels.
_MOST_BYTES = 2**29


class Scales(NamedTuple):
  """The scales of a sparse stage by epoch.

  Attributes:
    epoch: int32 [epochs], increasing, from 1; epochs may be missing.
    step: int32 [epochs], number of steps at the end of each epoch.
    values: |scale| by the path of the scale, float16 [epochs, channels].
  """

  epoch: np.ndarray
  step: np.ndarray
  values: dict[str, np.ndarray]

  def until(self, step: int) -> 'Scales':
    """Returns the scales without epochs after a step."""
    kept = self.step <= step
    return Scales(
      self.epoch[kept],
      self.step[kept],
      {path: values[kept] for path, values in self.values.items()},
    )

  def and_then(self, epoch: int, step: int, scales: Mapping[str, np.ndarray]) -> 'Scales':
    """Returns the scales with one more epoch.

    Args:
      epoch: number of the epoch.
      step: its last step.
      scales: |scale| by the path of the scale, float [channels].
    """
    values = {}
    for path, now in scales.items():
      now = np.minimum(now, _MOST).astype(np.float16)[None]
      values[path] = np.concatenate([self.values[path], now]) if path in self.values else now
    return Scales(
      np.append(self.epoch, np.int32(epoch)), np.append(self.step, np.int32(step)), values
    )


def empty() -> Scales:
  """Returns scales without any epoch."""
  return Scales(np.zeros(0, np.int32), np.zeros(0, np.int32), {})


def write(path: epath.Path, scales: Scales) -> None:
  """Writes or replaces a file."""
  content = io.BytesIO()
  arrays: dict[str, Any] = {'epoch': scales.epoch, 'step': scales.step, **scales.values}
  np.savez_compressed(content, **arrays)
  files.write(path, content.getvalue())


def read(path: epath.Path) -> Scales:
  """Reads a file of `write`.

  Raises:
    WorkdirError: the file is missing or damaged.
  """
  try:
    values = npz.read(io.BytesIO(files.read(path, most=_MOST_BYTES)), most=_MOST_BYTES)
    return _checked(Scales(values.pop('epoch'), values.pop('step'), values))
  except KeyError as error:
    raise WorkdirError(f'{path} cannot be read: it has no array {error}') from error
  except (OSError, npz.NpzError, ValueError) as error:
    raise WorkdirError(f'{path} cannot be read: {error}') from error


def _checked(scales: Scales) -> Scales:
  """Returns the scales; raises ValueError unless they are what `Scales` says."""
  for name, numbers in (('epochs', scales.epoch), ('steps', scales.step)):
    if numbers.dtype != np.int32 or numbers.ndim != 1:
      raise ValueError(f'its {name} are {numbers.dtype}{list(numbers.shape)}')
    if numbers.size and (numbers[0] < 1 or np.any(numbers[1:] <= numbers[:-1])):
      raise ValueError(f'its {name} do not increase')
  for name, values in {'steps': scales.step, **scales.values}.items():
    if values.ndim < 1 or len(values) != len(scales.epoch):
      raise ValueError(f'epochs are missing from {name}')
  for name, values in scales.values.items():
    if values.ndim != 2 or values.dtype != np.float16:
      raise ValueError(
        f'{name} is {values.dtype}{list(values.shape)}, not float16[epochs, channels]'
      )
    if not np.all(values >= 0) or np.any(np.isinf(values)):
      raise ValueError(f'{name} has values that are no absolute values of scales')
  return scales
