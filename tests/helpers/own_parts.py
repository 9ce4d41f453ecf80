"""A person's own models, data, losses and so on, which tests name as 'helpers.own_parts:NAME'."""

from flax import linen as nn
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets

import slim_jax


class LinenNet(nn.Module):
  """Two convolutions; takes no `dtype`."""

  num_classes: int
  width: int = 8

  @nn.compact
  def __call__(self, x, train):
    for _ in range(2):
      x = nn.relu(nn.BatchNorm(not train)(nn.Conv(self.width, (3, 3), strides=2)(x)))
    return nn.Dense(self.num_classes)(nn.Dropout(0.1, deterministic=not train)(x.mean((1, 2))))


class NnxSegmenter(nnx.Module):
  """Logits for each pixel."""

  def __init__(self, num_classes, width=8, *, dtype=jnp.float32, rngs):
    widths = (1, width, width)
    self.convs = nnx.List(
      [nnx.Conv(n, m, (3, 3), rngs=rngs, dtype=dtype) for n, m in zip(widths, widths[1:])]
    )
    self.norms = nnx.List([nnx.BatchNorm(n, rngs=rngs, dtype=dtype) for n in widths[1:]])
    self.dropout = nnx.Dropout(0.1, rngs=rngs)
    self.head = nnx.Conv(width, num_classes, (3, 3), rngs=rngs, dtype=dtype)

  def __call__(self, x):
    for conv, norm in zip(self.convs, self.norms):
      x = nnx.relu(norm(conv(x)))
    return self.head(self.dropout(x))


def digits(split):
  """Images uint8 [n, 8, 8], digits int [n]."""
  images, labels = datasets.load_digits(return_X_y=True)
  part = {'train': slice(0, 600), 'test': slice(600, 800)}[split]
  return np.uint8(images.reshape(-1, 8, 8) * 15)[part], labels[part]


def classes(split):
  """Digits with their class."""
  return *digits(split), tuple('0123456789')


def properties(split):
  """Digits with several labels each."""
  image, digit = digits(split)
  label = np.stack([digit % 2 == 0, digit >= 5, np.isin(digit, (0, 6, 8, 9))], 1)
  return image, label, ('even', 'large', 'loops')


def scenes(split):
  """Two digits side by side; each pixel is background, of an even digit, or of an odd one."""
  image, digit = digits(split)
  image, digit = image[: len(image) // 2 * 2], digit[: len(digit) // 2 * 2]
  kinds = np.where(image > 60, 1 + digit[:, None, None] % 2, 0)
  pair = lambda x: np.concatenate([x[0::2], x[1::2]], 2)
  return pair(image), pair(kinds), ('background', 'even', 'odd')


def ink(split):
  """Photographs in floating numbers, to be told how much ink they have above and below."""
  image, _ = digits(split)
  image = image.astype(np.float64) / 240
  return (
    image,
    np.stack([image[:, :4].mean((1, 2)), image[:, 4:].mean((1, 2))], 1),
    ('above', 'below'),
  )


def worst_pixel(logits, batch):
  """A loss with a metric of its own."""
  each = optax.softmax_cross_entropy_with_integer_labels(logits, batch['label'])
  right = jnp.argmax(logits, -1) == batch['label']
  return each.mean((1, 2)), {'worst_row': right.mean(2).min(1)}


def not_one_each(logits, batch):
  return jnp.mean(logits), {}


def half_l1(spec):
  """The term of the paper, at half of the strength."""
  strength = spec.strength
  half = (lambda step: strength(step) / 2) if callable(strength) else strength / 2
  return slim_jax.add_l1(half)


def reversed_scale(f, variables, image):
  """Scores that keep the smallest scales."""
  del f, image
  return jax.tree.map(lambda scale: -scale, slim_jax.scores.scale_magnitude(variables))


def signed(beta=0.9):
  """A transformation of gradients without a learning rate."""
  return optax.chain(optax.trace(beta), optax.scale_by_sign())
