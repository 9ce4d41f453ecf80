"""Networks without BatchNorm scales on all channels, of every kind of unit; none knows of pruning."""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from helpers.zoo import linen
from helpers.zoo.linen import Net
from helpers.zoo.model import Model, randomise
from slim_jax import models


class Case(NamedTuple):
  """A network, its input, and how many units of each kind it has, by kind in order of the names."""

  name: str
  module: Callable[[Any], nn.Module]
  shape: tuple[int, ...]
  kinds: dict[str, list[int]]
  tokens: int = 0  # inputs are token numbers below this


def build(case: Case, dtype: Any, seed: int = 0) -> Model:
  """The case as pure functions, in one dtype, with random variables."""
  if case.tokens:
    x = jax.random.randint(jax.random.key(seed), case.shape, 0, case.tokens)
  else:
    x = jax.random.normal(jax.random.key(seed), case.shape, dtype)
  model = linen.functions(case.module(dtype), x)
  return model._replace(variables=randomise(model.variables, dtype, seed))


class Mlp(Net):
  """Neurons, and a LayerNorm over some of them."""

  @nn.compact
  def __call__(self, x, train):
    dense = functools.partial(nn.Dense, dtype=self.dtype, param_dtype=self.dtype)
    norm = functools.partial(nn.LayerNorm, dtype=self.dtype, param_dtype=self.dtype)
    x = nn.relu(norm()(dense(12)(x)))
    gate, value = jnp.split(dense(16)(x), 2, axis=-1)  # a packed GLU
    return dense(3)(nn.Dropout(0.3)(nn.silu(gate) * value, deterministic=not train))


class Convolutions(Net):
  """Grouped and depthwise convolutions, squeeze-and-excite, a flattened map, BatchNorm."""

  @nn.compact
  def __call__(self, x, train):
    conv, bn, dense = self.layers(train)
    x = nn.relu(conv(8, (3, 3))(x))
    x = nn.relu(bn()(conv(12, (3, 3), feature_group_count=4)(x)))
    x = conv(12, (3, 3), feature_group_count=12)(x)
    s = nn.sigmoid(dense(12)(nn.relu(dense(6)(x.mean((1, 2))))))
    x = nn.relu(conv(10, (1, 1))(x * s[:, None, None]))
    x = nn.max_pool(x, (2, 2), (2, 2))
    return dense(3)(x.reshape(len(x), -1))


class ConvNeXt(Net):
  """Stream through depthwise convolutions, LayerNorm and layer scale."""

  @nn.compact
  def __call__(self, x, train):
    conv, _, dense = self.layers(train)
    norm = functools.partial(nn.LayerNorm, dtype=self.dtype, param_dtype=self.dtype)
    x = norm()(conv(8, (2, 2), (2, 2))(x))
    for n in range(2):
      y = norm()(conv(8, (3, 3), feature_group_count=8, use_bias=True)(x))
      y = dense(8)(nn.gelu(dense(16)(y)))
      x = (
        x
        + y
        * self.param(f'gamma{n}', nn.initializers.constant(0.1), (8,), self.dtype)[None, None, None]
      )
    return dense(3)(norm()(x.mean((1, 2))))


class UNet(Net):
  """GroupNorm, a skip connection that is concatenated, upsampling, an embedding that is added."""

  @nn.compact
  def __call__(self, x, train):
    conv, _, dense = self.layers(train)
    norm = functools.partial(nn.GroupNorm, dtype=self.dtype, param_dtype=self.dtype)
    time = dense(8)(nn.silu(dense(6)(x.mean((1, 2)))))[:, None, None]
    a = nn.silu(norm(4)(conv(8, (3, 3))(x)))
    b = nn.silu(norm(2)(conv(8, (3, 3), (2, 2))(a) + time))
    b = conv(4, (3, 3))(jnp.repeat(jnp.repeat(b, 2, 1), 2, 2))
    c = nn.silu(norm(6)(jnp.concatenate([a, b], -1)))
    return conv(2, (3, 3))(c)


class ViT(Net):
  """Attention with separate projections, a class token, position embeddings."""

  @nn.compact
  def __call__(self, x, train):
    conv, _, dense = self.layers(train)
    kinds = dict(dtype=self.dtype, param_dtype=self.dtype)
    normal = nn.initializers.normal(1.0)
    x = conv(12, (4, 4), (4, 4))(x).reshape(len(x), -1, 12)
    token = self.param('token', normal, (1, 1, 12), self.dtype)
    x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, 12)), x], 1)
    x = x + self.param('positions', normal, (1, x.shape[1], 12), self.dtype)
    for _ in range(2):
      x = x + nn.MultiHeadDotProductAttention(3, **kinds)(nn.LayerNorm(**kinds)(x))
      x = x + dense(12)(nn.gelu(dense(20)(nn.LayerNorm(**kinds)(x))))
    return dense(3)(nn.LayerNorm(**kinds)(x).mean(1))


class Fused(Net):
  """Attention with one projection for queries, keys and values, and heads merged with dimensions."""

  @nn.compact
  def __call__(self, x, train):
    _, _, dense = self.layers(train)
    x = dense(12)(x)
    q, k, v = jnp.split(dense(36)(x), 3, -1)
    q, k, v = (y.reshape(*y.shape[:2], 3, 4) for y in (q, k, v))
    weights = nn.softmax(jnp.einsum('bthd,bshd->bhts', q, k) / 2.0)
    x = x + dense(12)(jnp.einsum('bhts,bshd->bthd', weights, v).reshape(x.shape))
    qkv = dense(36)(x).reshape(*x.shape[:2], 3, 3, 4)  # as of timm: [3, heads, dimensions]
    q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
    weights = nn.softmax(jnp.einsum('bthd,bshd->bhts', q, k) / 2.0)
    x = x + dense(12)(jnp.einsum('bhts,bshd->bthd', weights, v).reshape(x.shape))
    return dense(3)(x.mean(1))


def rotated(x):
  """Rotary position embeddings of [batch, time, heads, dimensions], halves against halves."""
  half = x.shape[-1] // 2
  angles = np.outer(np.arange(x.shape[1]), 10.0 ** -np.arange(half))[None, :, None]
  sin, cos = (jnp.asarray(f(angles), x.dtype) for f in (np.sin, np.cos))
  a, b = x[..., :half], x[..., half:]
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


class LlamaLayer(Net):
  """RMSNorm, grouped queries, rotary positions, SwiGLU; called as the body of a scan, too."""

  groups: int = 2
  neurons: int = 20
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x, _=None):
    kinds = dict(dtype=self.dtype, param_dtype=self.dtype)
    norm = functools.partial(nn.RMSNorm, epsilon=self.epsilon, **kinds)
    dense = functools.partial(nn.Dense, use_bias=False, **kinds)
    y, n = norm()(x), self.groups
    q, k, v = (
      dense(m * 4, name=name)(y).reshape(*x.shape[:2], m, 4)
      for name, m in (('q', 2 * n), ('k', n), ('v', n))
    )
    q, k = rotated(q).reshape(*x.shape[:2], n, 2, 4), rotated(k)
    weights = jnp.einsum('btkgd,bskd->bkgts', q, k) / 2.0
    weights = nn.softmax(jnp.where(np.tri(x.shape[1], dtype=bool)[None, None, None], weights, -1e9))
    y = jnp.einsum('bkgts,bskd->btkgd', weights, v).reshape(*x.shape[:2], -1)
    x = x + dense(x.shape[-1], name='o')(y)
    y = norm()(x)
    y = nn.silu(dense(self.neurons, name='gate')(y)) * dense(self.neurons, name='up')(y)
    return x + dense(x.shape[-1], name='down')(y), None


class Llama(Net):
  """Two layers, one after the other or stacked under a scan, with a tied head."""

  width: int = 12
  groups: int = 2
  neurons: int = 20
  epsilon: float = 1e-6
  stacked: bool = False

  @nn.compact
  def __call__(self, x, train):
    kinds = dict(dtype=self.dtype, param_dtype=self.dtype)
    embed = nn.Embed(11, self.width, **kinds)
    x = embed(x)
    layer = functools.partial(LlamaLayer, self.dtype, self.groups, self.neurons, self.epsilon)
    if self.stacked:
      layers = nn.scan(
        nn.remat(LlamaLayer), variable_axes={'params': 0}, split_rngs={'params': True}, length=2
      )
      x, _ = layers(self.dtype, self.groups, self.neurons, self.epsilon)(x, None)
    else:
      for _ in range(2):
        x, _ = layer()(x)
    return embed.attend(nn.RMSNorm(epsilon=self.epsilon, **kinds)(x))


class Recurrent(Net):
  """An LSTM and a GRU over the data."""

  @nn.compact
  def __call__(self, x, train):
    kinds = dict(dtype=self.dtype, param_dtype=self.dtype)
    x = nn.RNN(nn.OptimizedLSTMCell(6, **kinds))(x)
    x = nn.RNN(nn.GRUCell(7, **kinds))(x)
    return nn.Dense(3, **kinds)(x[:, -1])


class Mixture(Net):
  """Experts, all computed and weighted by a router that looks at the two best."""

  @nn.compact
  def __call__(self, x, train):
    _, _, dense = self.layers(train)
    x = nn.relu(dense(10)(x))
    logits = dense(4, name='router')(x)
    least = jax.lax.top_k(logits, 2)[0][..., -1:]
    weights = nn.softmax(jnp.where(logits >= least, logits, -1e9))
    normal = nn.initializers.normal(0.5)
    up = self.param('kernel_up', normal, (4, 10, 8), self.dtype)
    down = self.param('kernel_down', normal, (4, 8, 10), self.dtype)
    y = jnp.einsum('bef,efd->bed', nn.relu(jnp.einsum('bd,edf->bef', x, up)), down)
    return dense(3)(x + jnp.einsum('bed,be->bd', y, weights))


_ATTENTION = {'heads': [3], 'query_key_dims': [4], 'value_dims': [4]}
_LLAMA = {
  'kv_groups': [2],
  'query_heads': [2],
  'rotary_pairs': [2],
  'value_dims': [4],
  'neurons': [20],
}


def _twice(kinds):
  return {kind: sizes * 2 for kind, sizes in kinds.items()}


CASES = [
  Case('mlp', Mlp, (4, 5), {'neurons': [12, 8]}),
  Case('convolutions', Convolutions, (2, 8, 8, 3), {'channels': [4, 3, 10, 2], 'neurons': [6]}),
  Case('convnext', ConvNeXt, (2, 8, 8, 3), {'stream': [8], 'neurons': [16, 16]}),
  Case(
    'unet',
    UNet,
    (2, 8, 8, 3),
    {'norm_groups': [4, 2, 2], 'group_positions': [2, 4], 'neurons': [6]},
  ),
  Case('vit', ViT, (2, 8, 8, 3), {**_twice(_ATTENTION), 'neurons': [20, 20], 'stream': [12]}),
  Case(
    'fused',
    Fused,
    (2, 5, 7),
    {'heads': [3, 3], 'query_key_dims': [4], 'value_dims': [4], 'head_dims': [4], 'stream': [12]},
  ),
  Case('llama', Llama, (2, 5), {**_twice(_LLAMA), 'stream': [12]}, 11),
  Case(
    'scanned_llama', functools.partial(Llama, stacked=True), (2, 5), {**_LLAMA, 'stream': [12]}, 11
  ),
  Case(
    'model_vit',
    lambda dtype: models.ViT(
      3, 4, 12, heads=(2, 3), head_dim=4, neurons=(10, 14), drop_rate=0.2, dtype=dtype
    ),
    (2, 8, 8, 3),
    {
      'heads': [2, 3],
      'query_key_dims': [4, 4],
      'value_dims': [4, 4],
      'neurons': [10, 14],
      'stream': [12],
    },
  ),
  Case(
    'model_convnext',
    lambda dtype: models.ConvNeXt(
      3, 2, (6, 8), ((12,), (10, 16)), kernel=3, layer_scale=0.5, dtype=dtype
    ),
    (2, 8, 8, 3),
    {'neurons': [10, 12, 16], 'stream': [6, 8]},
  ),
  Case('recurrent', Recurrent, (2, 5, 4), {'hidden': [7, 6]}),
  Case('mixture', Mixture, (5, 7), {'experts': [4], 'neurons': [8], 'stream': [10]}),
]
