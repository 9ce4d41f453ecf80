"""Batches of a data set that lives in device memory, and what is done to any batch.

All but `eval_batches` are pure functions to call inside a compiled training
step: for a data set in device memory the host only sends the step a key and a number.
"""

from collections.abc import Iterator, Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax.data import colors
from slim_jax.data.arrays import ArrayData
from slim_jax.data.stream import StreamData, part_size

# What `augment` can do. The figures of 'imagenet' are those of the network slimming
# paper, which are those of fb.resnet.torch.
AUGMENTATIONS = ('crop_flip', 'imagenet')
JITTER = 0.4
LIGHTING = 0.1


@functools.partial(jax.jit, static_argnames='n')
def epoch_order(key: jax.Array, n: int) -> jax.Array:
  """Draws the order of one epoch.

  Args:
    key: random key.
    n: number of examples.

  Returns:
    A permutation of 0 .. n - 1, int32 [n].
  """
  return jax.random.permutation(key, jnp.arange(n, dtype=jnp.int32))


def take_batch(
  data: Mapping[str, jax.Array], order: jax.Array, start: Any, batch_size: int
) -> dict[str, jax.Array]:
  """Takes examples `order[start : start + batch_size]`.

  Args:
    data: arrays with a common first axis, as `ArrayData.arrays()` has them:
      `image` uint8 [n, height, width, channels] and `label` int32 [n].
    order: int32 [n], see `epoch_order`.
    start: int, may be traced; at most n - batch_size, beyond which it is taken
      for that.
    batch_size: number of examples.

  Returns:
    The same names and dtypes, each [batch_size, ...].

  Raises:
    ValueError: the batch is larger than the data set.
  """
  if batch_size > order.shape[0]:
    raise ValueError(
      f'a batch of {batch_size} is larger than the data set of {order.shape[0]} examples'
    )
  index = jax.lax.dynamic_slice_in_dim(order, start, batch_size)
  return {name: value.at[index].get(mode='promise_in_bounds') for name, value in data.items()}


def augment(
  key: jax.Array, image: jax.Array, *, kind: str = 'crop_flip', pad: int, flip: bool
) -> jax.Array:
  """Changes each image at random.

  'crop_flip' pads with zeros, crops to the old size at a uniformly drawn place, and
  mirrors left to right with probability one half, as He et al. (CVPR 2016, section
  4.2) and the network slimming paper do on CIFAR. The zeros are pixel values: call it
  before `normalize`.

  'imagenet' does the same, then changes brightness, contrast and saturation by up to
  `JITTER`, and adds colours of standard deviation `LIGHTING`: see
  `slim_jax.data.colors`. The crops of photographs are drawn before, as they are
  decoded; so pad is 0.

  Args:
    key: random key.
    image: [batch, height, width, channels] of any dtype; for 'imagenet', 3 channels.
    kind: one of `AUGMENTATIONS`.
    pad: pixels on each side, 0 for no shifts.
    flip: whether to mirror.

  Returns:
    Images of the same shape, in pixel values; of the same dtype, or float32 for
    'imagenet'.

  Raises:
    ValueError: no such kind, or not 3 channels.
  """
  if kind not in AUGMENTATIONS:
    raise ValueError(f'{kind!r} is not one of {", ".join(AUGMENTATIONS)}')
  image = _crop_flip(key, image, pad=pad, flip=flip)
  if kind == 'crop_flip':
    return image
  if image.shape[-1] != 3:
    raise ValueError(
      f"the augmentation 'imagenet' is for images of 3 channels, not {image.shape[-1]}"
    )
  jitter_key, lighting_key = jax.random.split(jax.random.fold_in(key, 1))
  image = colors.color_jitter(jitter_key, image.astype(jnp.float32), strength=JITTER)
  return colors.lighting(lighting_key, image, std=LIGHTING)


def _crop_flip(key, image, *, pad, flip):
  shift_key, flip_key = jax.random.split(key)
  batch, height, width, channels = image.shape
  if pad:
    start = jax.random.randint(shift_key, (batch, 2), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)))

    def crop(one, start):
      return jax.lax.dynamic_slice(one, (start[0], start[1], 0), (height, width, channels))

    image = jax.vmap(crop)(padded, start)
  if flip:
    mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
    image = jnp.where(mirrored, image[:, :, ::-1], image)
  return image


def normalize(
  image: jax.Array, mean: jax.Array, std: jax.Array, *, dtype: Any = jnp.float32
) -> jax.Array:
  """Returns `(image - mean) / std`, computed in float32 and cast to `dtype`.

  Args:
    image: uint8 [batch, height, width, channels].
    mean: float [channels], in pixel values (0 to 255).
    std: float [channels], in pixel values.
    dtype: of the result.

  Returns:
    [batch, height, width, channels] of `dtype`.
  """
  channels = (1, 1, 1, -1)
  mean = jnp.asarray(mean, jnp.float32).reshape(channels)
  std = jnp.asarray(std, jnp.float32).reshape(channels)
  return ((image.astype(jnp.float32) - mean) / std).astype(dtype)


def eval_batches(
  data: ArrayData | StreamData, batch_size: int, *, process_index: int = 0, process_count: int = 1
) -> Iterator[dict[str, np.ndarray]]:
  """Yields the data set once, in order, in batches of one shape.

  The last batch is filled up with zeros, which `mask` marks, so that sums
  weighted by `mask` are exact over the whole data set.

  Args:
    data: the split to evaluate on.
    batch_size: number of examples in each batch, over all processes.
    process_index: which part of each batch to take.
    process_count: number of parts.

  Yields:
    `image` uint8 [batch_size / process_count, height, width, channels], `label` int32
    and `mask` float32 of as many, 1 for examples and 0 for filling.

  Raises:
    ValueError: the batch cannot be divided among the processes.
  """
  if isinstance(data, StreamData):
    yield from data.eval_batches(
      batch_size, process_index=process_index, process_count=process_count
    )
    return
  part = part_size(batch_size, process_count)
  for start in range(0, len(data), batch_size):
    begin = start + process_index * part
    batch = {name: value[begin : begin + part] for name, value in data.arrays().items()}
    batch['mask'] = np.ones(len(batch['label']), np.float32)
    missing = part - len(batch['label'])
    if missing:
      batch = {
        name: np.concatenate([value, np.zeros((missing,) + value.shape[1:], value.dtype)])
        for name, value in batch.items()
      }
    yield batch
