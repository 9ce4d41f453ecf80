"""Data sets of images: prepared, loaded, streamed, batched and augmented."""

from slim_jax.data.batches import augment
from slim_jax.data.batches import AUGMENTATIONS
from slim_jax.data.batches import epoch_order
from slim_jax.data.batches import eval_batches
from slim_jax.data.batches import normalize
from slim_jax.data.batches import take_batch
from slim_jax.data.errors import DataError
from slim_jax.data.load import ArrayData
from slim_jax.data.load import channel_statistics
from slim_jax.data.load import load
from slim_jax.data.prepare import BUILDERS
from slim_jax.data.stream import prefetch
from slim_jax.data.stream import StreamData
