"""Random changes of colour: pure functions to call inside a compiled step.

They take images as floats in pixel values (0 to 255) and return the same. The results are neither
rounded nor clipped to 0 and 255, as in the Torch code behind the paper's results
(facebookarchive/fb.resnet.torch, datasets/transforms.lua).
"""

import jax
import jax.numpy as jnp
import numpy as np

# Weights of red, green and blue in grey.
GREY = (0.299, 0.587, 0.114)

# Principal components of the colours of ImageNet, for values from 0 to 1: one row of VECTORS per
# channel, one column per component (Krizhevsky et al., NeurIPS 2012, section 4.1; the numbers are
# those of fb.resnet.torch).
VALUES = (0.2175, 0.0188, 0.0045)
VECTORS = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))


def color_jitter(key: jax.Array, image: jax.Array, *, strength: float) -> jax.Array:
  """Changes brightness, contrast and saturation of each image, in random order.

  Each change is a blend, with its own weight drawn uniformly from 1 - strength to 1 + strength:

      image = weight * image + (1 - weight) * other

  where other is black for brightness, the mean grey of the image for contrast, and each pixel's
  own grey for saturation.

  Args:
    key: random key.
    image: float [batch, height, width, 3].
    strength: 0 for no change.

  Returns:
    Images of the same shape and dtype.
  """
  batch = image.shape[0]
  weight_key, order_key = jax.random.split(key)
  weight = jax.random.uniform(
    weight_key, (3, batch, 1, 1, 1), image.dtype, 1 - strength, 1 + strength
  )
  order = jax.vmap(lambda key: jax.random.permutation(key, 3))(jax.random.split(order_key, batch))
  for turn in range(3):
    change = order[:, turn].reshape(-1, 1, 1, 1)
    grey = jnp.sum(image * jnp.array(GREY, image.dtype).reshape(1, 1, 1, 3), -1, keepdims=True)
    other = jnp.where(change == 1, jnp.mean(grey, (1, 2, 3), keepdims=True), grey)
    other = jnp.where(change == 0, jnp.zeros([], image.dtype), other)
    image = weight[turn] * image + (1 - weight[turn]) * other
  return image


def lighting(key: jax.Array, image: jax.Array, *, std: float) -> jax.Array:
  """Adds a random colour to each image, along the principal components of ImageNet's colours.

      image = image + 255 * VECTORS @ (alpha * VALUES)    alpha ~ Normal(0, std), [3]

  Args:
    key: random key.
    image: float [batch, height, width, 3].
    std: 0 for no change.

  Returns:
    Images of the same shape and dtype.
  """
  alpha = std * jax.random.normal(key, (image.shape[0], 3), image.dtype)
  components = jnp.asarray(255 * np.array(VECTORS) * np.array(VALUES), image.dtype)
  return image + (alpha @ components.T).reshape(-1, 1, 1, 3)
