"""Soft labels for training: label smoothing, mixup and cutmix.

Images are mixed with the images of the same device in reverse order, which are random partners since
the order of an epoch is random. Each image has its own share.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from slim_jax import data
from slim_jax.runtime.config import Config
from slim_jax.training import losses


class Mixing(NamedTuple):
  """How images and labels of a training step are mixed.

  Attributes:
    smoothing: the share of a label that is spread over all classes.
    mixup: alpha of the beta distribution of the shares; 0 for none.
    cutmix: likewise. With both, each image is mixed by one of them, chosen with equal probability.
    num_classes: length of soft labels.
  """

  smoothing: float
  mixup: float
  cutmix: float
  num_classes: int


def create(config: Config, num_classes: int) -> Mixing | None:
  """Returns the mixing of a config: label_smoothing, mixup and cutmix; None if all are 0."""
  mixing = Mixing(config.label_smoothing, config.mixup, config.cutmix, num_classes)
  return mixing if any(mixing[:3]) else None


def mix(key: jax.Array, batch: losses.Batch, mixing: Mixing) -> losses.Batch:
  """Smooths labels, and mixes images and labels.

  Args:
    key: typed random key [] of this step and device.
    batch: 'image' float [n, height, width, channels], normalised, and 'label': int [n], the numbers
      of classes; float [n, ...]; or int [n, height, width, ...], of pixels, for cutmix alone.
    mixing: how.

  Returns:
    The batch; numbers of classes have become float [n, classes].

  References:
    Szegedy et al., CVPR 2016 (label smoothing); Zhang et al., ICLR 2018 (mixup); Yun et al., ICCV
    2019 (cutmix).
  """
  image, label = batch['image'], batch['label']
  if label.ndim == 1 and jnp.issubdtype(label.dtype, jnp.integer):
    label = optax.smooth_labels(jax.nn.one_hot(label, mixing.num_classes), mixing.smoothing)
  if not mixing.mixup and not mixing.cutmix:
    return {**batch, 'label': label}
  which_key, share_key, box_key = jax.random.split(key, 3)
  inside = _boxes(box_key, image.shape[:3], mixing.cutmix)
  if mixing.mixup and mixing.cutmix:
    inside &= jax.random.bernoulli(which_key, 0.5, (len(image), 1, 1))
  is_cut = inside.any((1, 2))
  share = jnp.where(is_cut, 1.0, _shares(share_key, len(image), mixing.mixup))
  mixed = jnp.where(inside[..., None], image[::-1], _blend(image, share))
  if data.is_of_pixels(label.shape, image.shape):
    there = inside.reshape(inside.shape + (1,) * (label.ndim - 3))
    return {**batch, 'image': mixed, 'label': jnp.where(there, label[::-1], label)}
  label = _blend(label, jnp.where(is_cut, 1 - inside.mean((1, 2)), share))
  return {**batch, 'image': mixed, 'label': label}


def _shares(key: jax.Array, count: int, alpha: float) -> jax.Array:
  """Returns the share of its own that each image keeps, float [count]."""
  return jax.random.beta(key, alpha, alpha, (count,)) if alpha else jnp.ones(count)


def _boxes(key: jax.Array, shape: tuple[int, ...], alpha: float) -> jax.Array:
  """Returns which pixels come from the partner, bool [count, height, width]."""
  count, height, width = shape
  if not alpha:
    return jnp.zeros(shape, bool)
  share_key, place_key = jax.random.split(key)
  side = jnp.sqrt(1 - jax.random.beta(share_key, alpha, alpha, (count,)))
  centre = jax.random.uniform(place_key, (2, count))

  def covered(size: int, middle: jax.Array) -> jax.Array:
    distance = jnp.arange(size)[None] + 0.5 - size * middle[:, None]
    return jnp.abs(distance) < (side * size / 2)[:, None]

  return covered(height, centre[0])[:, :, None] & covered(width, centre[1])[:, None, :]


def _blend(x: jax.Array, share: jax.Array) -> jax.Array:
  """Returns share * x + (1 - share) * partner, with a share [n] for each example."""
  share = share.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype)
  return share * x + (1 - share) * x[::-1]
