"""Vision transformer.

Dosovitskiy et al., "An image is worth 16x16 words" (ICLR 2021), with the mean over all patches in
place of a class token (Beyer et al., "Better plain ViT baselines for ImageNet-1k", 2022).
"""

from collections.abc import Sequence
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp

from slim_jax.models import layers


class Attention(nn.Module):
  """Multi-head self-attention.

  Attributes:
    heads: number of heads.
    head_dim: dimensions of the queries, keys and values of a head.
    dtype: of the computation.
  """

  heads: int
  head_dim: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    """Returns [batch, patches, width] for inputs of this shape."""
    shape = (*x.shape[:2], self.heads, self.head_dim)
    query, key, value = (
      nn.Dense(self.heads * self.head_dim, dtype=self.dtype, name=name)(x).reshape(shape)
      for name in ('query', 'key', 'value')
    )
    y = nn.dot_product_attention(query, key, value, dtype=self.dtype)
    y = y.reshape(*x.shape[:2], self.heads * self.head_dim)
    return nn.Dense(x.shape[-1], dtype=self.dtype, name='out')(y)


class Block(nn.Module):
  """Attention and two dense layers, each after a LayerNorm and added to its input.

  Attributes:
    heads: number of heads.
    head_dim: dimensions of a head.
    neurons: units of the hidden layer.
    drop_rate: dropout of what is added.
    dtype: of the computation.
  """

  heads: int
  head_dim: int
  neurons: int
  drop_rate: float = 0.0
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns [batch, patches, width] for inputs of this shape."""
    drop = nn.Dropout(self.drop_rate, deterministic=not train)
    y = nn.LayerNorm(dtype=self.dtype)(x)
    x = x + drop(Attention(self.heads, self.head_dim, self.dtype)(y))
    y = nn.gelu(nn.Dense(self.neurons, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(x)))
    return x + drop(nn.Dense(x.shape[-1], dtype=self.dtype)(y))


class ViT(nn.Module):
  """Patches with learned positions, blocks of attention, the mean over the patches, linear.

  Attributes:
    num_classes: length of the logits.
    patch: side of a patch, in pixels; it divides height and width.
    width: channels of the stream.
    heads: number of heads of each block.
    head_dim: dimensions of a head.
    neurons: units of the hidden layer of each block; as many blocks as `heads` has.
    drop_rate: dropout of what each layer adds to the stream.
    dtype: of the computation; parameters are float32.
  """

  num_classes: int
  patch: int = 4
  width: int = 192
  heads: Sequence[int] = (3,) * 12
  head_dim: int = 64
  neurons: Sequence[int] = (768,) * 12
  drop_rate: float = 0.0
  dtype: Any = jnp.float32

  positions_init = staticmethod(nn.initializers.normal(0.02))

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits.

    Args:
      x: normalised images, float [batch, height, width, channels].
      train: whether dropout is applied.

    Returns:
      Logits [batch, num_classes] in `dtype`, but at least float32.

    Raises:
      ValueError: an attribute is not a positive integer, `heads` and `neurons` differ in length, or
        `x` does not have these axes or is not made of whole patches.
    """
    self._check(x)
    x = jnp.asarray(x, self.dtype)
    size = (self.patch, self.patch)
    x = nn.Conv(self.width, size, size, padding='VALID', dtype=self.dtype, name='patches')(x)
    x = x.reshape(x.shape[0], x.shape[1] * x.shape[2], self.width)
    positions = self.param('positions', self.positions_init, (1, *x.shape[1:]))
    x = x + jnp.asarray(positions, self.dtype)
    for heads, neurons in zip(self.heads, self.neurons, strict=True):
      x = Block(heads, self.head_dim, neurons, self.drop_rate, self.dtype)(x, train=train)
    x = nn.LayerNorm(dtype=self.dtype)(x).mean(1)
    x = layers.Dense(self.num_classes, dtype=self.dtype)(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))

  def _check(self, x: jax.Array) -> None:
    layers.check_images(x, model='ViT', smallest=self.patch)
    layers.check_positive(model='ViT', patch=self.patch, width=self.width, head_dim=self.head_dim)
    for heads, neurons in layers.zipped(model='ViT', heads=self.heads, neurons=self.neurons):
      layers.check_positive(model='ViT', heads=heads, neurons=neurons)
    if any(isinstance(size, int) and size % self.patch for size in x.shape[1:3]):
      raise ValueError(
        f'ViT: images of {x.shape[1]}x{x.shape[2]} are not made of whole patches of '
        f'{self.patch}x{self.patch}'
      )
