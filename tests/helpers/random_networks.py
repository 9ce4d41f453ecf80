"""Layered networks drawn at random."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from helpers import zoo


class Random(zoo.Net):
  """A network whose every choice comes from `seed`."""

  seed: int

  @nn.compact
  def __call__(self, x, train):
    rng = np.random.default_rng(self.seed)
    conv, bn, dense = self.layers(train)
    x = conv(int(rng.integers(4, 10)), (3, 3))(x)
    for _ in range(rng.integers(2, 6)):
      x = self._step(x, rng, train)
    x = nn.relu(bn()(x)) if rng.random() < 0.5 else x
    head = rng.integers(3)
    if head == 0:
      x = x.mean((1, 2))
    elif head == 1:
      x = nn.logsumexp(x, (1, 2))  # not max: rounding decides the gradient of its ties
    else:
      x = nn.relu(bn()(dense(12)(x.reshape(x.shape[0], -1))))
    return dense(3)(x)

  def _step(self, x, rng: np.random.Generator, train: bool) -> Any:
    conv, bn, dense = self.layers(train)
    act = [
      nn.relu,
      nn.relu6,
      nn.silu,
      nn.gelu,
      nn.tanh,
      nn.elu,
      nn.hard_swish,
      nn.leaky_relu,
      nn.sigmoid,
      nn.softplus,
    ][rng.integers(10)]
    n, h, w, c = x.shape
    width = int(rng.integers(2, 12))
    size = [(1, 1), (3, 3)][rng.integers(2)]
    kind = rng.integers(12)
    if kind == 0:  # plain
      return act(bn()(conv(width, size)(x)))
    if kind == 1:  # pre-activation
      return conv(width, size)(act(bn()(x)))
    if kind == 2:  # residual
      return x + conv(c, size)(act(bn()(conv(width, size)(act(bn()(x))))))
    if kind == 3:  # dense block
      return jnp.concatenate([x, conv(width, size)(act(bn()(x)))], -1)
    if kind == 4:  # depthwise, with a multiplier sometimes
      return act(bn()(conv(c * int(rng.integers(1, 3)), (3, 3), feature_group_count=c)(x)))
    if kind == 5:  # grouped and shuffled
      x = act(bn()(conv(12, size)(x)))
      x = act(bn()(conv(8, size, feature_group_count=4)(x)))
      return x.reshape(n, h, w, 4, 2).swapaxes(3, 4).reshape(n, h, w, 8)
    if kind == 6:  # squeeze and excite
      x = act(bn()(conv(width, size)(x)))
      return x * nn.sigmoid(dense(width)(nn.relu(dense(3)(x.mean((1, 2))))))[:, None, None]
    if kind == 7 and h > 2:  # pooling
      pool = [nn.max_pool, nn.avg_pool][rng.integers(2)]
      return pool(act(bn()(conv(width, size)(x))), (2, 2), (2, 2))
    if kind == 8:  # two branches that split the channels
      x = act(bn()(conv(8, size)(x)))
      left, right = jnp.split(x, (int(rng.integers(1, 8)),), -1)
      return jnp.concatenate([right, bn()(conv(width, size)(left)), right[..., :1] * left], -1)
    if kind == 9:  # dilated, strided or transposed
      x = act(bn()(x))
      return [
        conv(width, (3, 3), kernel_dilation=2),
        conv(width, (3, 3), 2),
        nn.ConvTranspose(width, (2, 2), (2, 2), dtype=self.dtype),
      ][rng.integers(3)](x)
    if kind == 10:  # chosen, reversed and dropped channels
      x = act(bn()(x))
      x = x[..., rng.integers(0, c, size=width)][..., ::-1]
      return nn.Dropout(0.3, deterministic=not train)(x)
    x = nn.LayerNorm(dtype=self.dtype)(act(bn()(conv(width, size)(x))))  # other norms, softmax
    return x * nn.softmax(conv(width, (1, 1))(x))
