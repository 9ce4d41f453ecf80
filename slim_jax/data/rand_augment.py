"""RandAugment: a few random changes of geometry and colour, in a compiled step.

Cubuk et al., RandAugment, CVPR 2020 workshops, with the operations and ranges of its code. Images are
float in pixel values (0 to 255), one at a time.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy import ndimage

from slim_jax.data.colors import GREY

# The strongest magnitude; that of the paper for ImageNet is 9.
LARGEST = 10

# Pixels that come from outside of the image.
_FILL = 128.0


def rand_augment(key: jax.Array, image: jax.Array, *, layers: int, magnitude: int) -> jax.Array:
  """Applies operations that are drawn uniformly, one after another.

  Args:
    key: random key.
    image: float [height, width, channels], 1 or 3 channels, in pixel values.
    layers: number of operations.
    magnitude: their strength, 0 to `LARGEST`.

  Returns:
    The image, float32 of the same shape.
  """
  image = image.astype(jnp.float32)
  strength = magnitude / LARGEST
  for layer_key in jax.random.split(key, layers):
    which_key, sign_key = jax.random.split(layer_key)
    sign = jax.random.rademacher(sign_key, (), jnp.float32)
    which = jax.random.randint(which_key, (), 0, len(OPERATIONS))
    image = jax.lax.switch(which, OPERATIONS, image, strength, sign)
  return image


def _identity(image: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
  del strength, sign
  return image


def _autocontrast(image: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
  del strength, sign
  low, high = (f(image, (0, 1), keepdims=True) for f in (jnp.min, jnp.max))
  return jnp.where(high > low, (image - low) * 255 / jnp.where(high > low, high - low, 1), image)


def _equalize(image: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
  del strength, sign

  def channel(values: jax.Array) -> jax.Array:
    levels = jnp.clip(values, 0, 255).astype(jnp.int32)
    counts = jnp.bincount(levels.ravel(), length=256)
    below = jnp.cumsum(counts) - counts
    # As in PIL: the largest level counts for nothing.
    last = counts[jnp.max(levels)]
    step = jnp.maximum((levels.size - last) // 255, 1)
    table = jnp.clip((below + step // 2) // step, 0, 255)
    return jnp.where((levels.size - last) // 255 > 0, table[levels].astype(values.dtype), values)

  return jax.vmap(channel, in_axes=-1, out_axes=-1)(image)


def _solarize(image: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
  del sign
  return jnp.where(image < 256 * (1 - strength), image, 255 - image)


def _posterize(image: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
  del sign
  step = 2.0 ** round(4 * strength)
  return jnp.floor(image / step) * step


def _enhanced(plain: Callable[[jax.Array], jax.Array]) -> Callable[..., jax.Array]:
  """Makes an operation that moves an image away from its plain version, or towards it."""

  def operation(image: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
    weight = 1 + 0.9 * strength * sign
    return jnp.clip(weight * image + (1 - weight) * plain(image), 0, 255)

  return operation


def _grey(image: jax.Array) -> jax.Array:
  if image.shape[-1] != 3:
    return image
  return jnp.sum(image * jnp.array(GREY)[None, None], -1, keepdims=True) * jnp.ones((1, 1, 3))


def _blurred(image: jax.Array) -> jax.Array:
  kernel = jnp.array([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
  padded = jnp.pad(image, ((1, 1), (1, 1), (0, 0)), mode='edge')
  height, width, _ = image.shape
  return sum(
    (kernel[i, j] * padded[i : i + height, j : j + width] for i in range(3) for j in range(3)),
    jnp.zeros_like(image),
  )


def _moved(matrix: Callable[[jax.Array, int, int], tuple[jax.Array, jax.Array]]):
  """Makes an operation that takes each pixel from elsewhere, given the 2x2 matrix and the shift."""

  def operation(image: jax.Array, strength: float, sign: jax.Array) -> jax.Array:
    height, width, _ = image.shape
    linear, shift = matrix(strength * sign, height, width)
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])[:, None, None]
    place = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing='ij')) - centre
    source = jnp.einsum('ij,jhw->ihw', linear, place) + shift[:, None, None] + centre
    take = lambda channel: ndimage.map_coordinates(channel, list(source), 1, 'constant', _FILL)
    return jax.vmap(take, in_axes=-1, out_axes=-1)(image)

  return operation


def _rotation(amount: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
  del height, width
  angle = jnp.deg2rad(30 * amount)
  cos, sin = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([cos, -sin]), jnp.stack([sin, cos])]), jnp.zeros(2)


def _shear(axis: int):
  def matrix(amount: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    del height, width
    return jnp.eye(2).at[axis, 1 - axis].set(0.3 * amount), jnp.zeros(2)

  return matrix


def _shift(axis: int):
  def matrix(amount: jax.Array, height: int, width: int) -> tuple[jax.Array, jax.Array]:
    length = 100 / 331 * (height, width)[axis]  # the share of the code's images of 331 pixels
    return jnp.eye(2), jnp.zeros(2).at[axis].set(amount * length)

  return matrix


OPERATIONS = (
  _identity,
  _autocontrast,
  _equalize,
  _solarize,
  _posterize,
  _enhanced(_grey),
  _enhanced(lambda image: jnp.full_like(image, _grey(image).mean())),
  _enhanced(jnp.zeros_like),
  _enhanced(_blurred),
  _moved(_rotation),
  _moved(_shear(0)),
  _moved(_shear(1)),
  _moved(_shift(0)),
  _moved(_shift(1)),
)
