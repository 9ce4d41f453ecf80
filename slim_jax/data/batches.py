"""Batches of images in device memory; augmentation and normalisation of any batch.

Pure functions to call inside a compiled training step. For a data set in device memory, the host
sends a step only a key and a number.
"""

from collections.abc import Mapping
import functools
from typing import Any

import jax
import jax.numpy as jnp

from slim_jax.data import colors, rand_augment

# Kinds of `augment`. The strengths of 'imagenet' are those of the network slimming paper, which
# takes them from fb.resnet.torch.
AUGMENTATIONS = ('crop_flip', 'imagenet')
JITTER = 0.4
LIGHTING = 0.1


@functools.partial(jax.jit, static_argnames='n')
def epoch_order(key: jax.Array, n: int) -> jax.Array:
  """Draws the order of the examples in one epoch.

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
    data: arrays with a common first axis, as `ArrayData.arrays()` returns them:
      `image` uint8 [n, height, width, channels] and `label` int32 [n].
    order: int32 [n], see `epoch_order`.
    start: int, may be traced; clipped to n - batch_size.
    batch_size: number of examples.

  Returns:
    Arrays of the same names and dtypes, each [batch_size, ...].

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
  key: jax.Array,
  image: jax.Array,
  *,
  kind: str = 'crop_flip',
  pad: int,
  flip: bool,
  rand_layers: int = 0,
  rand_magnitude: int = 9,
) -> jax.Array:
  """Augments each image at random.

  'crop_flip' pads with zeros, crops to the original size at a uniformly drawn position, and
  mirrors left to right with probability one half, as He et al. (CVPR 2016, section 4.2) and the
  network slimming paper do on CIFAR. The zeros are pixel values: call it before `normalize`.

  'imagenet' does the same, then changes brightness, contrast and saturation by up to `JITTER`,
  and adds colours of standard deviation `LIGHTING`, see `slim_jax.data.colors`. Photographs are
  already cropped when they are decoded, so pad is 0 for them.

  Args:
    key: random key.
    image: [batch, height, width, channels] of any dtype; for 'imagenet', 3 channels.
    kind: one of `AUGMENTATIONS`.
    pad: pixels on each side; 0 for no shifts.
    flip: whether to mirror.
    rand_layers: operations of RandAugment between crop and colours; 0 for none.
    rand_magnitude: their strength, see `rand_augment`.

  Returns:
    Images of the same shape, in pixel values; of the same dtype, or float32 for 'imagenet' and with
    RandAugment.

  Raises:
    ValueError: there is no such kind, or the images do not have 3 channels.
  """
  if kind not in AUGMENTATIONS:
    raise ValueError(f'{kind!r} is not one of {", ".join(AUGMENTATIONS)}')
  image = _crop_flip(key, image, pad=pad, flip=flip)
  if rand_layers:
    keys = jax.random.split(jax.random.fold_in(key, 2), len(image))
    change = functools.partial(
      rand_augment.rand_augment, layers=rand_layers, magnitude=rand_magnitude
    )
    image = jax.vmap(change)(keys, image)
  if kind == 'crop_flip':
    return image
  if image.shape[-1] != 3:
    raise ValueError(
      f"the augmentation 'imagenet' is for images of 3 channels, not {image.shape[-1]}"
    )
  jitter_key, lighting_key = jax.random.split(jax.random.fold_in(key, 1))
  image = colors.color_jitter(jitter_key, image.astype(jnp.float32), strength=JITTER)
  return colors.lighting(lighting_key, image, std=LIGHTING)


def _crop_flip(
  key: jax.Array, image: jax.Array, *, pad: int, flip: bool, fill: int = 0
) -> jax.Array:
  shift_key, flip_key = jax.random.split(key)
  batch, height, width, channels = image.shape
  if pad:
    start = jax.random.randint(shift_key, (batch, 2), 0, 2 * pad + 1)
    padded = jnp.pad(image, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)

    def crop(one, start):
      return jax.lax.dynamic_slice(one, (start[0], start[1], 0), (height, width, channels))

    image = jax.vmap(crop)(padded, start)
  if flip:
    mirrored = jax.random.bernoulli(flip_key, shape=(batch, 1, 1, 1))
    image = jnp.where(mirrored, image[:, :, ::-1], image)
  return image


def is_of_pixels(label: tuple[int, ...], image: tuple[int, ...]) -> bool:
  """Returns whether labels are of pixels, given the shapes of labels and images."""
  return len(label) >= 3 and label[1:3] == image[1:3]


def augment_pixels(
  key: jax.Array, label: jax.Array, *, pad: int, flip: bool, **others: Any
) -> jax.Array:
  """Crops and mirrors the labels of the pixels of one image as `augment` does the image.

  Args:
    key: that of the image.
    label: [height, width, ...].
    pad: as for the image. Pixels of the padding get the label -1, which counts for nothing in
      `losses.segmentation`.
    flip: as for the image.
    **others: of `augment`, for changes of colour, which leave labels as they are.
  """
  del others
  flat = label.reshape(1, *label.shape[:2], -1)
  return _crop_flip(key, flat, pad=pad, flip=flip, fill=-1).reshape(label.shape)


def normalize(
  image: jax.Array,
  mean: jax.typing.ArrayLike,
  std: jax.typing.ArrayLike,
  *,
  dtype: Any = jnp.float32,
) -> jax.Array:
  """Returns `(image - mean) / std`, computed in float32 and cast to `dtype`.

  Args:
    image: uint8 [batch, height, width, channels].
    mean: float [channels], in pixel values (0 to 255).
    std: float [channels], in pixel values.
    dtype: dtype of the result.

  Returns:
    The images, [batch, height, width, channels] of `dtype`.
  """
  channels = (1, 1, 1, -1)
  mean = jnp.asarray(mean, jnp.float32).reshape(channels)
  std = jnp.asarray(std, jnp.float32).reshape(channels)
  return ((image.astype(jnp.float32) - mean) / std).astype(dtype)


def part_size(batch_size: int, process_count: int) -> int:
  """Returns the number of images of a batch that each process takes.

  Raises:
    ValueError: the batch cannot be divided among the processes.
  """
  if batch_size < 1 or batch_size % process_count:
    raise ValueError(f'a batch of {batch_size} cannot be divided among {process_count} processes')
  return batch_size // process_count
