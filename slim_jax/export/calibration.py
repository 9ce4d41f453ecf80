"""Images of a run's data to calibrate quantised files with, and figures of their outputs."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import data
from slim_jax.runs import finished
from slim_jax.runs import run as runs_run
from slim_jax.runtime import files
from slim_jax.training import losses

# Test images together have at most as many numbers, so that they fit into memory as float32.
_MOST_NUMBERS = 10**8
_BATCH = 64


class Images(NamedTuple):
  """Images of a split and their labels.

  Attributes:
    image: [n, height, width, channels], as the exported network takes them.
    label: [n, ...].
  """

  image: np.ndarray
  label: np.ndarray


def images(workdir: files.PathLike, field: str, *, most: int | None = None) -> Images:
  """Returns the first images of a split of a run's data, which is loaded.

  Args:
    workdir: directory of the run.
    field: field of the config with the split, 'train_split' or 'test_split'.
    most: how many; None for all, or as many as memory should hold.

  Raises:
    DataError: the data cannot be loaded.
    WorkdirError: the directory holds no run.
  """
  config, dataset = finished.config_of(workdir)
  split = runs_run.load_split(config, config[field])
  most = min(most or len(split), len(split), _MOST_NUMBERS // int(np.prod(dataset['image'])))
  parts: list[Any] = []
  for batch in split.eval_batches(_BATCH):
    parts.append(batch)
    if _BATCH * len(parts) >= most:
      break
  image, label = (np.concatenate([part[name] for part in parts]) for name in ('image', 'label'))
  return Images(image[:most], label[:most])


def measure(workdir: files.PathLike, outputs: np.ndarray, split: Images) -> dict[str, float]:
  """Returns the means of the metrics of a run's loss, and of the loss, for some outputs."""
  config, dataset = finished.config_of(workdir)
  batch = {
    'image': data.normalize(jnp.asarray(split.image), dataset['mean'], dataset['std']),
    'label': jnp.asarray(split.label),
  }
  loss, metrics = jax.jit(losses.find(config))(jnp.asarray(outputs), batch)
  return {name: float(jnp.mean(x)) for name, x in {**metrics, 'loss': loss}.items()}
