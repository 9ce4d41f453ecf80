"""Trees of dead channels: which slices of which leaves they set to zero.

At a leaf, dead channels are a bool vector along its channel axis, or, for any other axis, a bool
array of the leaf's rank whose other axes have size 1: [1, heads, 1] for a kernel
[inputs, heads, features], [outputs, 1] for a weight [outputs, inputs]. The bias of the same module
goes with them.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from slim_jax import batch_norms, tree
from slim_jax.tree import Path


class Zeros(NamedTuple):
  """What of a leaf is zero: the slices of an axis at which `channels`, bool [size], are True."""

  axis: int
  channels: np.ndarray

  def __or__(self, other: 'Zeros') -> 'Zeros':
    return Zeros(self.axis, self.channels | other.channels)


def zeroed(variables: Any, dead: Any, bias: str = 'zero') -> dict[Path, Zeros]:
  """Returns what a tree of dead channels sets to zero: scales and their biases.

  Args:
    variables: the tree of variables (arrays or shapes).
    dead: a tree like it with a bool array at each scale leaf, None elsewhere; see the module's
      docstring. It may also have the shape of the leaf, as of stacked layers [layers, channels]: a
      channel is dead if it is dead everywhere. A vector at the bias of a scale takes the place of
      the scale's there.
    bias: 'zero', or 'keep' for scales alone.

  Returns:
    By path, what is zero.

  Raises:
    ValueError: `dead` does not fit, with the name of the leaf; or `bias` is something else.
  """
  if bias not in ('zero', 'keep'):
    raise ValueError(f"bias must be 'zero' or 'keep', got {bias!r}")
  leaves = tree.flatten(variables)
  given = {path: np.asarray(v) for path, v in tree.flatten(dead).items()}
  if extra := [tree.show(path) for path in given if path not in leaves]:
    raise ValueError(f'dead names leaves that the variables do not have: {", ".join(extra)}')
  biases = bias_of_each(leaves)
  named = {
    path: zeros_of(path, array, leaves[path], leaves.get(biases.get(path, ())))
    for path, array in given.items()
  }
  beside = {biases[path] for path in named if path in biases}
  zero = {path: z for path, z in named.items() if path not in beside}
  if bias == 'zero':
    for path in named:
      other = biases.get(path)
      own = None if other is None else named.get(other) or _beside(leaves, named, path, other)
      if other is not None and own is not None:
        zero[other] = zero[other] | own if other in zero else own
  return zero


def zeros_of(path: Path, dead: np.ndarray, leaf: Any, bias: Any = None) -> Zeros:
  """Returns what a bool array says is dead at a leaf.

  Args:
    path: of the leaf.
    dead: the array.
    leaf: anything with a shape.
    bias: of the same module, if there is one.

  Raises:
    ValueError: it does not fit; the message names the leaf.
  """
  shape = tuple(leaf.shape)
  axis, vector = _spoken_of(path, dead, leaf, bias)
  size = shape[axis] if shape else 0
  if vector.dtype != bool or vector.shape != (size,):
    raise ValueError(
      f'dead at {tree.show(path)} must be bool[{size}], it is {dead.dtype}{list(dead.shape)}'
    )
  return Zeros(axis, vector)


def _spoken_of(path: Path, dead: np.ndarray, leaf: Any, bias: Any) -> tuple[int, np.ndarray]:
  """Returns the axis that an array of dead channels is about, and the vector along it."""
  shape = tuple(leaf.shape)
  if dead.ndim > 1 and dead.shape == shape:
    axis = unit_axis(path, leaf, bias)
    return axis, np.asarray(dead.all(axis=tuple(i for i in range(dead.ndim) if i != axis)))
  named = named_axis(dead, leaf) if dead.ndim > 1 else None
  if named is not None:
    return named, dead.ravel()
  # Scales [layers, 1] and kernels [inputs, 1] can be meant along either axis: the sizes tell.
  axes = batch_norms.channel_axis(leaf), batch_norms.only_axis(leaf), len(shape) - 1
  return next((i for i in axes if shape and dead.shape == (shape[i],)), axes[0]), dead


def named_axis(array: Any, leaf: Any) -> int | None:
  """Returns the axis along which an array of a leaf's rank goes, whose other axes have size 1.

  Of an array of sizes 1 alone it is the last axis of size 1 of the leaf. None if there is none.
  """
  shape = np.shape(array)
  long = [i for i, n in enumerate(shape) if n != 1] or [
    i for i, n in enumerate(leaf.shape) if n == 1
  ][-1:]
  return long[0] if len(shape) == len(leaf.shape) and len(long) == 1 else None


def _beside(leaves: Mapping[Path, Any], named: Mapping[Path, Zeros], path: Path, bias: Path) -> Any:
  """Returns what is zero of the bias of a leaf; None if its axis is not one of the bias."""
  axis, channels = named[path]
  bias_axis = matching_axis(path, leaves[path], axis, leaves[bias])
  if bias_axis is None:
    return None
  if leaves[bias].shape[bias_axis] != channels.size:
    raise ValueError(
      f'{tree.show(path)} has {channels.size} channels and {tree.show(bias)} '
      f'{leaves[bias].shape[bias_axis]}: it cannot be told which belong together. A plan of an '
      "earlier version with bias='keep' left them so; plan the original network again"
    )
  return Zeros(bias_axis, channels)


def spelled(leaf: Any, zeros: Zeros) -> np.ndarray:
  """Returns dead channels of a leaf as `zeroed` takes them: the inverse of `zeros_of`."""
  return along(leaf, zeros.axis, zeros.channels)


def along(leaf: Any, axis: int, vector: Any) -> Any:
  """Returns a vector along an axis of a leaf as trees have it: of the leaf's rank if need be."""
  rank = len(leaf.shape)
  if axis in (batch_norms.channel_axis(leaf), rank - 1):
    return vector
  return vector.reshape([-1 if i == axis else 1 for i in range(rank)])


def mark(leaf: Any, axis: int) -> np.ndarray:
  """Returns the bool array that names an axis of a leaf to `chosen`."""
  return np.ones([n if i == axis else 1 for i, n in enumerate(leaf.shape)], bool)


def chosen(variables: Any, scales: Any = None) -> dict[Path, int]:
  """Returns the scales that a mask selects, and the axis of the channels of each.

  Args:
    variables: the tree of variables.
    scales: a tree of bools, a prefix of it, or a function that returns one; default
      `batch_norm_scales`. A bool array of a leaf's rank names the axis along which it goes:
      `np.ones((1, heads, 1), bool)` at a kernel [inputs, heads, features] names its heads. Otherwise
      it is the axis of the layer's outputs, see `unit_axis`.

  Raises:
    ValueError: the mask selects nothing, or does not fit.
  """
  leaves = tree.flatten(variables)
  biases = bias_of_each(leaves)

  def axis(path: Path, mark: Any) -> int:
    named = named_axis(mark, leaves[path]) if np.ndim(mark) > 1 else None
    bias = leaves.get(biases.get(path, ()))
    return unit_axis(path, leaves[path], bias) if named is None else named

  return {path: axis(path, mark) for path, mark in batch_norms.marked(variables, scales).items()}


def without(leaf: Any, zeros: Zeros | None) -> Any:
  """Returns a leaf with zeros at the dead channels, whatever stood there; None: unchanged."""
  if zeros is None:
    return leaf
  shape = [1] * leaf.ndim
  shape[zeros.axis] = -1
  where = np.where if isinstance(leaf, np.ndarray) else jnp.where
  return where(zeros.channels.reshape(shape), np.zeros((), leaf.dtype), leaf)


def bias_of_each(leaves: Mapping[Path, Any]) -> dict[Path, Path]:
  """Returns the bias of each leaf that has one: it is in the same module.

  Args:
    leaves: leaves by path: anything with a shape.
  """
  paths = {batch_norms.names_of(path, leaf): path for path, leaf in leaves.items()}
  found = {}
  for names, path in paths.items():
    if names and names[-1] not in batch_norms.BIASES and getattr(leaves[path], 'shape', ()):
      beside = (paths.get((*names[:-1], name)) for name in batch_norms.BIASES)
      other = next((p for p in beside if p is not None), None)
      if other is not None and leaves[other].shape:
        found[path] = other
  return found


def is_scale(path: Path, leaf: Any, bias: Any = None) -> bool:
  """Returns whether a leaf scales channels one by one; a kernel makes each of all inputs.

  Args:
    path: of the leaf.
    leaf: anything with a shape.
    bias: of the same module, if there is one. That of a scale has its shape.
  """
  name = batch_norms.names_of(path, leaf)[-1:]
  same = bias is not None and tuple(bias.shape) == tuple(leaf.shape)
  return len(leaf.shape) < 2 or name in (('scale',), ('gamma',)) or same


def unit_axis(path: Path, leaf: Any, bias: Any = None) -> int:
  """Returns the axis of the outputs of a layer, or of the channels of a scale.

  Kernels end with the outputs: [inputs, outputs], [inputs, heads, features]. PyTorch and Equinox keep
  `weight` as [outputs, inputs, ...], of stacked layers as [layers, outputs, inputs], which its bias
  [layers, outputs] tells. Scales of stacked layers, [layers, channels], end with the channels.

  Args:
    path: of the leaf.
    leaf: anything with a shape.
    bias: of the same module, if there is one.
  """
  if is_scale(path, leaf, bias):
    return batch_norms.channel_axis(leaf)
  name = batch_norms.names_of(path, leaf)[-1:]
  if name == ('weight',):
    return 0 if bias is None else max(sum(n != 1 for n in bias.shape), 1) - 1
  return len(leaf.shape) - 1 if name in _KERNELS else batch_norms.only_axis(leaf)


_KERNELS = (('kernel',), ('w',), ('embedding',), ('embeddings',))


def matching_axis(path: Path, leaf: Any, axis: int, bias: Any) -> int | None:
  """Returns the axis of a bias that is this axis of a leaf of the same module; None if none is.

  The axes of a bias are the output axes of a kernel: its first, if it is a `weight`, else its last.
  Those of stacked layers, [layers, outputs], are the layers and the outputs.
  """
  shape, size = tuple(leaf.shape), tuple(bias.shape)
  if shape == size:
    return axis
  outputs = unit_axis(path, leaf, bias)
  if sum(n != 1 for n in size) <= 1:
    return batch_norms.only_axis(bias) if axis == outputs else None
  last = len(shape) - 1
  if (
    outputs == last and size != shape[-len(size) :] and size == (*shape[: len(size) - 1], shape[-1])
  ):
    return {last: len(size) - 1, **{i: i for i in range(len(size) - 1)}}.get(axis)
  first = 0 if outputs < last else len(shape) - len(size)
  return axis - first if 0 <= axis - first < len(size) else None
