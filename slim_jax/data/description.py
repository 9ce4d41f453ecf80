"""Says in a line what was read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from slim_jax.data.arrays import ArrayData

if TYPE_CHECKING:
  from slim_jax.data.stream import Data

_MOST_CLASSES = 10  # that are counted one by one


def describe(data: 'Data') -> str:
  """Returns number, shape and pixel values of the images of a split, and its largest classes.

  Classes are left out where labels are no classes, or are known only when they are read.
  """
  labels = data.label if isinstance(data, ArrayData) else data.records.labels
  parts = [f'{len(data):,} images', 'x'.join(map(str, data.shape))]
  if labels is not None and _are_classes(labels, len(data.class_names)):
    parts.append(_classes(labels, data.class_names))
  elif data.label_shape == ():
    parts.append(f'{data.num_classes} classes')
  if isinstance(data, ArrayData):
    parts.append(f'mean {_numbers(data.mean)}, std {_numbers(data.std)}')
  return ', '.join(parts)


def _are_classes(labels: np.ndarray, count: int) -> bool:
  return (
    labels.ndim == 1
    and np.issubdtype(labels.dtype, np.integer)
    and bool(np.all((labels >= 0) & (labels < count)))
  )


def _classes(labels: np.ndarray, names: Sequence[str]) -> str:
  counts = np.bincount(labels, minlength=len(names))
  order = np.argsort(-counts, kind='stable')[:_MOST_CLASSES]
  listed = ', '.join(f'{names[index]} {counts[index]:,}' for index in order)
  return f'{len(names)} classes ({listed}{", ..." if len(names) > _MOST_CLASSES else ""})'


def _numbers(values: np.ndarray) -> str:
  return ' '.join(f'{value:.4g}' for value in values)
