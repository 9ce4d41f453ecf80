"""The scales of a sparse stage, epoch by epoch: what heat maps and histograms are drawn from.

One compressed file for each pass, scales-N.npz: epoch and step, int32 [epochs], and for each scale
its absolute values by its path, float16 [epochs, channels]. 160 epochs of a network of 164 layers
(12,112 channels) are 4 MB before compression, which is why it can be written anew each epoch, and
read whole.
"""

from collections.abc import Mapping
import io
from typing import NamedTuple
import zipfile

from etils import epath
import numpy as np

from slim_jax.runs.workdir import WorkdirError
from slim_jax.runtime import files

_MOST = float(np.finfo(np.float16).max)


class Scales(NamedTuple):
  """What a file holds.

  Attributes:
    epoch: int32 [epochs], increasing, from 1; epochs may be missing.
    step: int32 [epochs], after how many steps.
    values: float16 [epochs, channels], |scale| by its path.
  """

  epoch: np.ndarray
  step: np.ndarray
  values: dict[str, np.ndarray]

  def until(self, step: int) -> 'Scales':
    """Without what was seen after that step."""
    kept = self.step <= step
    return Scales(
      self.epoch[kept],
      self.step[kept],
      {path: values[kept] for path, values in self.values.items()},
    )

  def and_then(self, epoch: int, step: int, scales: Mapping[str, np.ndarray]) -> 'Scales':
    """With one more epoch.

    Args:
      epoch: its number.
      step: the last one in it.
      scales: float [channels], |scale| by its path.
    """
    values = {}
    for path, now in scales.items():
      now = np.minimum(now, _MOST).astype(np.float16)[None]
      values[path] = np.concatenate([self.values[path], now]) if path in self.values else now
    return Scales(
      np.append(self.epoch, np.int32(epoch)), np.append(self.step, np.int32(step)), values
    )


def none() -> Scales:
  """No epoch yet."""
  return Scales(np.zeros(0, np.int32), np.zeros(0, np.int32), {})


def write(path: epath.Path, scales: Scales) -> None:
  """Replaces a file."""
  content = io.BytesIO()
  np.savez_compressed(content, epoch=scales.epoch, step=scales.step, **scales.values)
  files.write(path, content.getvalue())


def read(path: epath.Path) -> Scales:
  """Reads what `write` wrote.

  Raises:
    WorkdirError: the file is not there, or damaged.
  """
  try:
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
      values = dict(file)
    result = Scales(values.pop('epoch'), values.pop('step'), values)
    if any(len(array) != len(result.epoch) for array in (result.step, *values.values())):
      raise ValueError('epochs are missing from some of its arrays')
  except (OSError, KeyError, TypeError, ValueError, EOFError, zipfile.BadZipFile) as error:
    raise WorkdirError(f'{path} cannot be read: {error}') from error
  return result
