"""Data sets of images: prepared, loaded, streamed, batched and augmented."""

from slim_jax.data.arrays import ArrayData, Data, channel_statistics, load
from slim_jax.data.batches import (
  AUGMENTATIONS,
  augment,
  epoch_order,
  eval_batches,
  normalize,
  take_batch,
)
from slim_jax.data.errors import DataError
from slim_jax.data.prepare import BUILDERS
from slim_jax.data.stream import StreamData, prefetch

__all__ = [
  'AUGMENTATIONS',
  'BUILDERS',
  'ArrayData',
  'Data',
  'DataError',
  'StreamData',
  'augment',
  'channel_statistics',
  'epoch_order',
  'eval_batches',
  'load',
  'normalize',
  'prefetch',
  'take_batch',
]
