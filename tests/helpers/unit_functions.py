"""Small networks in plain JAX, each with something that units are easily lost in."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from helpers.zoo.model import Model


def attention(q, k, v, bias=0.0):
  """Of [batch, time, heads, dimensions]; heads of keys and values may be missing."""
  scores = jnp.einsum('bthk,bshk->bhts', q, k) + bias
  y = jnp.einsum('bhts,bshk->bthk', jax.nn.softmax(scores), v)
  return y.reshape(*y.shape[:2], -1)


def heads(x, kernel, count=3):
  y = x @ kernel
  return y.reshape(*y.shape[:2], count, -1)


def one_key(v, x):
  """Multi-query attention: all heads read the same keys and values."""
  x = x @ v['in']
  weights = jax.nn.softmax(jnp.einsum('bthk,bsk->bhts', heads(x, v['q']), x @ v['k']))
  y = jnp.einsum('bhts,bsk->bthk', weights, x @ v['v'])
  return y.reshape(*x.shape[:2], -1) @ v['o'] @ v['out']


def rotated(x):
  """Rotary positions, neighbours against each other."""
  angles = np.outer(np.arange(x.shape[1]), 10.0 ** -np.arange(x.shape[-1] // 2))[None, :, None]
  sin, cos = (jnp.asarray(f(angles), x.dtype) for f in (np.sin, np.cos))
  a, b = x[..., ::2], x[..., 1::2]
  return jnp.stack([a * cos - b * sin, a * sin + b * cos], -1).reshape(x.shape)


def interleaved(v, x):
  x = x @ v['in']
  q, k = (rotated(heads(x, v[name])) for name in ('q', 'k'))
  return attention(q, k, heads(x, v['v'])) @ v['o'] @ v['out']


def sloped(v, x):
  """ALiBi: a constant for each head."""
  x, places = x @ v['in'], np.arange(x.shape[1])
  distance = jnp.asarray(-np.abs(places[:, None] - places), x.dtype)
  bias = jnp.asarray([0.5, 0.25, 0.125], x.dtype)[None, :, None, None] * distance[None, None]
  q, k, value = (heads(x, v[name]) for name in ('q', 'k', 'v'))
  return attention(q, k, value, bias) @ v['o'] @ v['out']


def windowed(v, x):
  """Swin: a table of relative positions, read at constant indices, and one projection for all."""
  x = x @ v['in']
  x = jnp.roll(x, 1, 1).reshape(-1, 2, x.shape[-1])
  q, k, value = jnp.moveaxis((x @ v['qkv']).reshape(*x.shape[:2], 3, 3, 4), 2, 0)
  index = np.arange(2)[:, None] - np.arange(2) + 1
  bias = v['table'][index.ravel()].reshape(2, 2, 3).transpose(2, 0, 1)[None]
  return attention(q, k, value, bias) @ v['o'] @ v['out']


def experts(v, x):
  """A mixture of the two best, with biases."""
  x = x @ v['in']
  best, index = jax.lax.top_k(jax.nn.softmax(x @ v['router']), 2)
  weights = jnp.sum(jax.nn.one_hot(index, 4, dtype=x.dtype) * best[..., None], -2)
  y = jax.nn.relu(jnp.einsum('btd,edf->btef', x, v['up']) + v['up_bias'][None, None])
  y = jnp.einsum('btef,efd->bted', y, v['down']) + v['down_bias'][None, None]
  return jnp.einsum('bted,bte->btd', y, weights) @ v['out']


def latents(v, x):
  """Perceiver: learned queries, which are no channels."""
  z, x = v['latents'][None] + jnp.zeros((len(x), 1, 1), x.dtype), x @ v['in']
  weights = jax.nn.softmax(jnp.einsum('bnd,btd->bnt', z @ v['q'], x @ v['k']))
  z = z + jnp.einsum('bnt,btd->bnd', weights, x @ v['v']) @ v['o']
  return z.mean(1) @ v['out']


def modulated(v, x):
  """FiLM: scales and shifts from a packed projection."""
  scale, shift = jnp.split(x.mean(1) @ v['film'], 2, -1)
  y = jax.nn.relu(x @ v['in']) * (1 + scale[:, None]) + shift[:, None]
  return y @ v['out']


def state_space(v, x):
  """A linear recurrence by an associative scan."""
  u, decay = x @ v['in'], jax.nn.sigmoid(v['decay'])
  pair = jnp.broadcast_to(decay[None, None], u.shape), u
  return (
    jax.lax.associative_scan(lambda p, q: (p[0] * q[0], q[0] * p[1] + q[1]), pair, axis=1)[1]
    @ v['out']
  )


def fourier(v, x):
  """FNet: all channels of the stream are mixed, those of the MLP are not."""
  x = x @ v['in']
  x = x + jnp.fft.fft(x, axis=-1).real
  return jax.nn.gelu(x @ v['up']) @ v['out']


def normalised(v, x):
  """Local response normalisation: a window slides along the channels."""
  y = jax.nn.relu(x @ v['in'])
  total = jax.lax.reduce_window(
    y * y, jnp.zeros((), y.dtype), jax.lax.add, (1, 1, 3), (1, 1, 1), 'SAME'
  )
  return y / (1 + total) @ v['out']


def looped(v, x):
  y = x @ v['in']
  return jax.lax.fori_loop(0, 3, lambda i, y: y + jnp.tanh(y @ v['up']) @ v['down'], y) @ v['out']


def branched(v, x):
  y = x @ v['in']
  y = jax.lax.cond(x.sum() > 0, lambda y: jnp.tanh(y @ v['up']) @ v['down'], lambda y: 2 * y, y)
  return y @ v['out']


def low_rank(v, x):
  return jnp.tanh(x @ (v['in'] + v['a'] @ v['b'])) @ v['out']


def compared(v, x):
  """Maxout: pieces are no channels, and the sorted results none either."""
  return jnp.sort((x @ v['in']).reshape(*x.shape[:2], 6, 2).max(-1) @ v['out'])


def multiplied(v, x):
  """Bilinear features: an index belongs to two channels."""
  y = x.mean(1) @ v['in']
  return (y[:, :, None] * y[:, None]).reshape(len(x), -1) @ v['out']


def on_devices(v, x):
  """Tensor-parallel: each device has a part of the neurons."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('model',))
  spec = jax.sharding.PartitionSpec
  mapped = jax.shard_map(
    lambda x, up, down: jax.lax.psum(jnp.tanh(x @ up) @ down, 'model'),
    mesh=mesh,
    in_specs=(spec(), spec(None, 'model'), spec('model')),
    out_specs=spec(),
  )
  return mapped(x, v['in'], v['out'])


def looked_up(v, x):
  """An embedding that is NaN out of bounds, a norm, and a reader of the stream without a norm."""
  y = jnp.take(v['in'], jnp.argmax(x, -1), axis=0)
  z = y - y.mean(-1, keepdims=True)
  z = z * jax.lax.rsqrt((z * z).mean(-1, keepdims=True) + 1e-6) * v['scale'][None, None]
  return (y + jnp.tanh(z @ v['up']) @ v['down']) @ v['out']


class Case(NamedTuple):
  """A network [2, 6, 7] -> [..., 5], shapes of its variables, and its units: sizes by kind."""

  f: Any
  shapes: dict[str, tuple[int, ...]]
  kinds: dict[str, list[int]]


def build(case: Case, dtype: Any) -> Model:
  """The case as a model, with random variables."""
  rng = np.random.default_rng(0)
  variables = {
    name: jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), dtype)
    for name, shape in case.shapes.items()
  }
  x = jnp.asarray(rng.normal(size=(2, 6, 7)), dtype)
  return Model(case.f, case.f, variables, x, None, '')


_ENDS = {'in': (7, 12), 'out': (12, 5)}
_ATTENTION = _ENDS | dict.fromkeys('qkvo', (12, 12))
_MLP = _ENDS | {'up': (12, 9), 'down': (9, 12)}

CASES = [
  Case(
    one_key,
    _ATTENTION | {'k': (12, 4), 'v': (12, 4)},
    {'neurons': [12, 12], 'query_heads': [3], 'query_key_dims': [4], 'value_dims': [4]},
  ),
  Case(
    interleaved,
    _ATTENTION,
    {'neurons': [12, 12], 'heads': [3], 'rotary_pairs': [2], 'value_dims': [4]},
  ),
  Case(
    sloped,
    _ATTENTION,
    {'neurons': [12, 12], 'heads': [3], 'query_key_dims': [4], 'value_dims': [4]},
  ),
  Case(
    windowed,
    _ENDS | {'qkv': (12, 36), 'table': (3, 3), 'o': (12, 12)},
    {'neurons': [12, 12], 'heads': [3], 'head_dims': [4]},
  ),
  Case(
    experts,
    _ENDS
    | {'router': (12, 4), 'up': (4, 12, 6), 'up_bias': (4, 6), 'down': (4, 6, 12)}
    | {'down_bias': (4, 12)},
    {'experts': [4], 'neurons': [6, 12, 12]},
  ),
  Case(
    latents,
    _ENDS | {'latents': (4, 12), 'q': (12, 6), 'k': (12, 6), 'v': (12, 8), 'o': (8, 12)},
    {'neurons': [6, 12, 12], 'value_dims': [8]},
  ),
  Case(modulated, _ENDS | {'film': (7, 24)}, {'stream': [12]}),
  Case(state_space, _ENDS | {'decay': (12,)}, {'neurons': [12]}),
  Case(fourier, _ENDS | {'up': (12, 12)}, {'neurons': [12]}),
  Case(normalised, _ENDS, {'neurons': [12]}),
  Case(looped, _MLP, {'neurons': [9], 'hidden': [12]}),
  Case(branched, _MLP, {'neurons': [9, 12]}),
  Case(low_rank, _ENDS | {'a': (7, 3), 'b': (3, 12)}, {'neurons': [3, 12]}),
  Case(compared, _ENDS | {'out': (6, 5)}, {'neurons': [6]}),
  Case(multiplied, {'in': (7, 4), 'out': (16, 5)}, {}),
  Case(looked_up, _MLP | {'scale': (12,)}, {'stream': [12], 'neurons': [9]}),
  Case(on_devices, _ENDS, {'neurons': [6]}),
]
