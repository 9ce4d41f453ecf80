"""Thin networks as ordinary Flax modules, whose layers name the channels that they read and write.

This file imports nothing of slim_jax. `slim-jax export --format=safetensors` puts a copy of it, named
network.py, beside the weights; with JAX, Flax and safetensors installed,

  import network
  apply, variables = network.load('network.safetensors')
  outputs = apply(variables, images)  # uint8 [n, height, width, channels]

The variables have the names and shapes of the thin ones. Channels have the numbers that they had in
the full network: a layer selects those that it reads, and what nobody writes any more is zero.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import functools
import itertools
import json
import os
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

# What each layer reads and writes, see `layers_of`, nested as the variables are.
Layers = Mapping[str, Any]

_he_fan_out = nn.initializers.variance_scaling(2.0, 'fan_out', 'normal')


class Stream(NamedTuple):
  """What is left of an array.

  Attributes:
    value: float [..., n].
    channels: int [n], increasing: the indices of the full network that these are.
  """

  value: jax.Array
  channels: np.ndarray

  def read(self, channels: Sequence[int] | np.ndarray) -> jax.Array:
    """Returns the channels [..., len(channels)], zeros for those that are not there."""
    wanted = np.asarray(channels, int)
    if np.array_equal(wanted, self.channels):
      return self.value
    there = np.isin(wanted, self.channels)
    found = self.value[..., np.searchsorted(self.channels, wanted[there])]
    if there.all():
      return found
    zeros = jnp.zeros((*self.value.shape[:-1], len(wanted)), self.value.dtype)
    return zeros.at[..., np.flatnonzero(there)].set(found)

  def without(self, channels: Sequence[int]) -> 'Stream':
    """Returns the stream without some channels."""
    left = np.setdiff1d(self.channels, np.asarray(channels, int))
    return Stream(self.read(left), left)

  def map(self, f: Callable[[jax.Array], jax.Array]) -> 'Stream':
    """Returns the stream with a function of its value that acts on each channel, zero on zeros."""
    return Stream(f(self.value), self.channels)

  def add(self, other: 'Stream') -> 'Stream':
    """Returns the sum, which has the channels of both."""
    channels = np.union1d(self.channels, other.channels)
    return Stream(self.read(channels) + other.read(channels), channels)

  def append(self, other: 'Stream', *, after: int) -> 'Stream':
    """Returns this stream, of `after` channels in the full network, and then the other."""
    return Stream(
      jnp.concatenate([self.value, other.value], -1),
      np.concatenate([self.channels, after + other.channels]),
    )


@dataclasses.dataclass(frozen=True)
class _Builder:
  """Makes the layers of a module, by name."""

  layers: Layers
  train: bool
  dtype: Any
  axis_name: str | None

  def layer(self, name: str) -> Any:
    """Returns what a layer reads and writes, or the layers of a block."""
    if name not in self.layers:
      raise ValueError(f'there is no layer {name}: the variables belong to another network')
    return self.layers[name]

  def conv(
    self, name: str, x: Stream, size: int, *, stride: int = 1, padding: int = 0, bias: bool = False
  ) -> Stream:
    """Returns the result of a convolution of `size` x `size`."""
    reads, writes = (self.layer(name)[key] for key in ('reads', 'writes'))
    if not reads or not writes:  # the branch is gone
      batch, *image, _ = x.value.shape
      gone = jnp.zeros((batch, *(-(-pixels // stride) for pixels in image), 0), self.dtype)
      return Stream(gone, np.asarray((), int))
    own: Any = dict(use_bias=bias, dtype=self.dtype, kernel_init=_he_fan_out, name=name)
    layer = nn.Conv(len(writes), (size, size), (stride, stride), padding, **own)
    return Stream(layer(x.read(reads)), np.asarray(writes, int))

  def dense(self, name: str, x: Stream) -> Stream:
    """Returns the result of a dense layer."""
    reads, writes = (self.layer(name)[key] for key in ('reads', 'writes'))
    init = nn.initializers.normal(0.01)
    layer = nn.Dense(len(writes), dtype=self.dtype, kernel_init=init, name=name)
    return Stream(layer(x.read(reads)), np.asarray(writes, int))

  def norm(self, name: str, x: Stream) -> Stream:
    """Returns the result of a BatchNorm; it emits the bias alone where it has no scale."""
    channels = self.layer(name)['reads']
    x = x.without(self.layer(name)['only_bias'])
    own: Any = dict(momentum=0.9, epsilon=1e-5, scale_init=nn.initializers.constant(0.5))
    own |= dict(dtype=self.dtype, axis_name=self.axis_name, name=name)
    layer = nn.BatchNorm(use_running_average=not self.train, **own)
    return Stream(layer(x.read(channels)), np.asarray(channels, int))

  def layer_norm(self, name: str, x: Stream) -> Stream:
    """Returns the result of a LayerNorm over channels of which none are removed."""
    return x.map(nn.LayerNorm(epsilon=1e-6, dtype=self.dtype, name=name))

  def part(self, name: str) -> '_Builder':
    """Returns the builder of a block."""
    return dataclasses.replace(self, layers=self.layer(name))


class _PreBlock(nn.Module):
  """BatchNorm, ReLU and convolution three times, added to the input."""

  build: _Builder
  stride: int
  project: bool

  @nn.compact
  def __call__(self, x: Stream) -> Stream:
    norm, conv = self.build.norm, self.build.conv
    y = conv('Conv_0', norm('BatchNorm_0', x).map(nn.relu), 1)
    y = norm('BatchNorm_1', y).map(nn.relu)
    y = conv('Conv_1', y, 3, stride=self.stride, padding=1)
    y = conv('Conv_2', norm('BatchNorm_2', y).map(nn.relu), 1)
    return (conv('projection', x, 1, stride=self.stride) if self.project else x).add(y)


class _PostBlock(nn.Module):
  """Convolutions with BatchNorm, added to the input; ReLU between them and after."""

  build: _Builder
  stride: int
  bottleneck: bool

  @nn.compact
  def __call__(self, x: Stream) -> Stream:
    norm, conv, y = self.build.norm, self.build.conv, x
    sizes = (1, 3, 1) if self.bottleneck else (3, 3)
    for i, size in enumerate(sizes):
      strided = i == (1 if self.bottleneck else 0)
      y = conv(f'Conv_{i}', y, size, stride=self.stride if strided else 1, padding=size // 2)
      y = norm(f'BatchNorm_{i}', y)
      y = y.map(nn.relu) if i < len(sizes) - 1 else y
    if 'projection' in self.build.layers:
      x = norm('projection_norm', conv('projection', x, 1, stride=self.stride))
    return x.add(y).map(nn.relu)


class _Narrow(nn.Module):
  """What the networks share. `layers` says what each layer reads and writes, see `layers_of`."""

  num_classes: int
  layers: Layers
  dtype: Any = jnp.float32
  axis_name: str | None = None

  @nn.compact
  def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
    """Returns logits [batch, num_classes] of normalised images [batch, height, width, channels]."""
    x = jnp.asarray(x, self.dtype)
    build = _Builder(self.layers, train, self.dtype, self.axis_name)
    logits = self._logits(build, Stream(x, np.arange(x.shape[-1]))).read(range(self.num_classes))
    return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    raise NotImplementedError


class NarrowMLP(_Narrow):
  """A thin `MLP`; `widths` are those of the full network."""

  widths: Sequence[int] = ()

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    x = _flat(x, len(x.channels))
    for i in range(len(self.widths)):
      x = build.norm(f'BatchNorm_{i}', build.dense(f'Dense_{i}', x)).map(nn.relu)
    return build.dense(f'Dense_{len(self.widths)}', x)


class NarrowVGG(_Narrow):
  """A thin `VGG`; `widths` and `dense_widths` are those of the full network."""

  widths: Sequence[int | str] = ()
  dense_widths: Sequence[int] = ()
  conv_bias: bool = False
  dense_norm: bool = True
  drop_rate: float = 0.0

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    convs = [width for width in self.widths if width != 'M']
    numbers = iter(range(len(convs)))
    for width in self.widths:
      if width == 'M':
        x = x.map(lambda value: nn.max_pool(value, (2, 2), strides=(2, 2)))
        continue
      i = next(numbers)
      x = build.conv(f'Conv_{i}', x, 3, padding=1, bias=self.conv_bias)
      x = build.norm(f'BatchNorm_{i}', x).map(nn.relu)
    if self.dense_widths:
      x = _flat(x, int(convs[-1]))
    else:
      x = x.map(lambda value: value.mean((1, 2)))
    for i in range(len(self.dense_widths)):
      x = build.dense(f'Dense_{i}', x)
      x = build.norm(f'BatchNorm_{len(convs) + i}', x) if self.dense_norm else x
      x = x.map(nn.relu).map(nn.Dropout(self.drop_rate, deterministic=not build.train))
    return build.dense(f'Dense_{len(self.dense_widths)}', x)


class NarrowPreResNet(_Narrow):
  """A thin `PreResNet`."""

  depth: int = 164

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    x = build.conv('Conv_0', x, 3, padding=1)
    blocks = (self.depth - 2) // 9
    for i in range(3 * blocks):
      first, name = i % blocks == 0, f'Bottleneck_{i}'
      block = _PreBlock(build.part(name), 2 if first and i else 1, first, name=name)
      x = block(x)
    x = build.norm('BatchNorm_0', x).map(nn.relu).map(lambda value: value.mean((1, 2)))
    return build.dense('Dense_0', x)


class NarrowResNet(_Narrow):
  """A thin `ResNet`."""

  blocks: Sequence[int] = ()
  bottleneck: bool = True

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    x = build.conv('Conv_0', x, 7, stride=2, padding=3)
    x = build.norm('BatchNorm_0', x).map(nn.relu)
    pads: Any = ((1, 1), (1, 1))  # Flax annotates it as a string
    x = x.map(lambda value: nn.max_pool(value, (3, 3), strides=(2, 2), padding=pads))
    first = {sum(self.blocks[:stage]) for stage in range(1, len(self.blocks))}
    for i in range(sum(self.blocks)):
      stride = 2 if i in first else 1
      name = f'Block_{i}'
      x = _PostBlock(build.part(name), stride, self.bottleneck, name=name)(x)
    return build.dense('Dense_0', x.map(lambda value: value.mean((1, 2))))


class NarrowDenseNet(_Narrow):
  """A thin `DenseNet`; `growth` and `stem` are those of the full network."""

  depth: int = 40
  growth: int = 12
  stem: int = 24
  compression: float = 1.0
  bottleneck: bool = False
  drop_rate: float = 0.0

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    numbers, norms = itertools.count(1), itertools.count()
    drop = functools.partial(nn.Dropout, self.drop_rate, deterministic=not build.train)

    def normed(x: Stream) -> Stream:
      return build.norm(f'BatchNorm_{next(norms)}', x).map(nn.relu)

    def conv(x: Stream, size: int) -> Stream:
      return build.conv(f'Conv_{next(numbers)}', x, size, padding=size // 2)

    x, width = build.conv('Conv_0', x, 3, padding=1), self.stem
    for block in range(3):
      if block > 0:
        width = max(1, int(width * self.compression))
        x = conv(normed(x), 1).map(lambda value: nn.avg_pool(value, (2, 2), strides=(2, 2)))
      for _ in range((self.depth - 4) // (6 if self.bottleneck else 3)):
        y = normed(x)
        if self.bottleneck:
          y = normed(conv(y, 1).map(drop()))
        x = x.append(conv(y, 3).map(drop()), after=width)
        width += self.growth
    return build.dense('Dense_0', normed(x).map(lambda value: value.mean((1, 2))))


class _Attention(nn.Module):
  """Self-attention of the heads that are left."""

  build: _Builder
  head_dim: int

  @nn.compact
  def __call__(self, x: Stream) -> Stream:
    size = (*x.value.shape[:2], -1, self.head_dim)
    split = lambda name: self.build.dense(name, x).value.reshape(size)
    parts = split('query'), split('key'), split('value')
    y = nn.dot_product_attention(parts[0], parts[1], parts[2], dtype=self.build.dtype)
    left = np.asarray(self.build.layer('query')['writes'], int)
    return self.build.dense('out', Stream(y.reshape(*x.value.shape[:2], -1), left))


class _Encoder(nn.Module):
  """A block of a transformer."""

  build: _Builder
  head_dim: int
  drop_rate: float

  @nn.compact
  def __call__(self, x: Stream) -> Stream:
    norm, dense = self.build.layer_norm, self.build.dense
    drop = nn.Dropout(self.drop_rate, deterministic=not self.build.train)
    attention = _Attention(self.build.part('Attention_0'), self.head_dim, name='Attention_0')
    x = x.add(attention(norm('LayerNorm_0', x)).map(drop))
    y = dense('Dense_0', norm('LayerNorm_1', x)).map(nn.gelu)
    return x.add(dense('Dense_1', y).map(drop))


class NarrowViT(_Narrow):
  """A thin `ViT`; `heads` and `neurons` are those of the full network."""

  patch: int = 4
  heads: Sequence[int] = ()
  head_dim: int = 64
  neurons: Sequence[int] = ()
  drop_rate: float = 0.0

  positions_init = staticmethod(nn.initializers.normal(0.02))

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    x = build.conv('patches', x, self.patch, stride=self.patch, bias=True)
    x = x.map(lambda value: value.reshape(value.shape[0], -1, value.shape[-1]))
    positions = self.param('positions', self.positions_init, (1, *x.value.shape[1:]))
    x = x.map(lambda value: value + jnp.asarray(positions, self.dtype))
    for i in range(len(self.heads)):
      name = f'Block_{i}'
      x = _Encoder(build.part(name), self.head_dim, self.drop_rate, name=name)(x)
    x = build.layer_norm('LayerNorm_0', x).map(lambda value: value.mean(1))
    return build.dense('Dense_0', x)


class _ConvNeXtBlock(nn.Module):
  """A depthwise convolution, LayerNorm, two dense layers and a scale, added to the input."""

  build: _Builder
  kernel: int
  layer_scale: float

  @nn.compact
  def __call__(self, x: Stream) -> Stream:
    dtype, width = self.build.dtype, len(x.channels)
    conv = nn.Conv(
      width, (self.kernel,) * 2, feature_group_count=width, dtype=dtype, name='depthwise'
    )
    y = self.build.layer_norm('LayerNorm_0', x.map(conv))
    y = self.build.dense('Dense_1', self.build.dense('Dense_0', y).map(nn.gelu))
    gamma = self.param('gamma', nn.initializers.constant(self.layer_scale), (width,))
    return x.add(y.map(lambda value: value * jnp.asarray(gamma, dtype)[None, None, None]))


class NarrowConvNeXt(_Narrow):
  """A thin `ConvNeXt`; `widths` and `neurons` are those of the full network."""

  patch: int = 4
  widths: Sequence[int] = ()
  neurons: Sequence[Sequence[int]] = ()
  kernel: int = 7
  layer_scale: float = 1e-6

  def _logits(self, build: _Builder, x: Stream) -> Stream:
    blocks, norms = itertools.count(), itertools.count()
    norm = lambda x: build.layer_norm(f'LayerNorm_{next(norms)}', x)
    for stage, neurons in enumerate(self.neurons):
      size = 2 if stage else self.patch
      x = norm(x) if stage else x
      x = build.conv(f'Conv_{stage}', x, size, stride=size, bias=True)
      x = x if stage else norm(x)
      for _ in neurons:
        name = f'Block_{next(blocks)}'
        x = _ConvNeXtBlock(build.part(name), self.kernel, self.layer_scale, name=name)(x)
    return build.dense('Dense_0', norm(x.map(lambda value: value.mean((1, 2)))))


CLASSES = {
  'MLP': NarrowMLP,
  'VGG': NarrowVGG,
  'PreResNet': NarrowPreResNet,
  'ResNet': NarrowResNet,
  'DenseNet': NarrowDenseNet,
  'ViT': NarrowViT,
  'ConvNeXt': NarrowConvNeXt,
}


def create(name: str, layers: Layers, **arguments: Any) -> nn.Module:
  """Creates the narrow form of a network.

  Args:
    name: its class, a key of `CLASSES`.
    layers: what each layer reads and writes.
    **arguments: of the full network; those of them that only say widths are not needed.
  """
  accepted = {field: value for field, value in arguments.items() if field != 'width'}
  return CLASSES[name](layers=layers, **accepted)


def layers_of(
  kept: Mapping[str, Sequence[Sequence[int]]], only_bias: Mapping[str, Sequence[int]]
) -> Layers:
  """Returns the channels of each layer, by their indices in the full network.

  Args:
    kept: for each variable ('params/Conv_0/kernel'), the indices of each axis.
    only_bias: for scales of BatchNorms ('params/BatchNorm_0/scale'), the channels that have only a
      bias left.

  Returns:
    {'Conv_0': {'reads': (0, 2), 'writes': (1,)}, 'BatchNorm_0': {'reads': (1,), 'only_bias': ()}, ...},
    nested by module.

  Raises:
    ValueError: the variables of a layer keep different channels.
  """
  layers: dict[str, Any] = {}
  for name, axes in kept.items():
    _, *path, variable = name.split('/')
    layer = functools.reduce(lambda inner, key: inner.setdefault(key, {}), path, layers)
    has_kernel = f'{name.rpartition("/")[0]}/kernel' in kept
    found = {'writes' if has_kernel else 'reads': tuple(map(int, axes[-1]))}
    if variable == 'kernel':
      found['reads'] = tuple(map(int, axes[-2]))
    if variable == 'scale':
      found['only_bias'] = tuple(map(int, only_bias.get(name, ())))
    for key, channels in found.items():
      if layer.setdefault(key, channels) != channels:
        raise ValueError(f'the variables of {"/".join(path)} keep different channels')
  return layers


def load(path: str | os.PathLike[str]) -> tuple[Callable[[Any, jax.Array], jax.Array], Any]:
  """Returns a network that `slim-jax export --format=safetensors` wrote.

  Args:
    path: of the safetensors file; PATH.json is beside it.

  Returns:
    (apply, variables): `apply(variables, images)` -> logits float32 [n, classes], for images
    [n, height, width, channels] with pixel values; normalisation is included.
  """
  import safetensors

  with open(f'{os.fspath(path)}.json') as file:
    about = json.load(file)
  with safetensors.safe_open(path, 'numpy') as file:  # pyright: ignore[reportPrivateImportUsage]
    metadata = file.metadata()
    variables = _nested({name: file.get_tensor(name) for name in file.keys()})
  shapes, indices, only_bias = (json.loads(metadata[n]) for n in ('shapes', 'kept', 'only_bias'))
  arguments = dict(about['full_module'])
  kept = {
    name: [range(n) if axis is None else axis for n, axis in zip(shapes[name], axes)]
    for name, axes in indices.items()
  }
  module = create(arguments.pop('class'), layers_of(kept, only_bias), **arguments)
  mean, std = (np.float32(about[name]).reshape(1, 1, 1, -1) for name in ('mean', 'std'))

  def apply(variables: Any, images: jax.Array) -> jax.Array:
    return module.apply(variables, (jnp.asarray(images, jnp.float32) - mean) / std, train=False)  # pyright: ignore[reportReturnType]

  return apply, variables


def _flat(x: Stream, width: int) -> Stream:
  """Returns [batch, height * width * channels] of images with `width` channels in the full network."""
  pixels = x.value.shape[1] * x.value.shape[2]
  flat = x.value.reshape(x.value.shape[0], pixels * len(x.channels))
  return Stream(flat, (width * np.arange(pixels)[:, None] + x.channels).reshape(-1))


def _nested(leaves: Mapping[str, Any]) -> dict[str, Any]:
  result: dict[str, Any] = {}
  for name, leaf in leaves.items():
    *path, last = name.split('/')
    functools.reduce(lambda inner, key: inner.setdefault(key, {}), path, result)[last] = leaf
  return result
