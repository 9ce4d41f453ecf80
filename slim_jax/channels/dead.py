"""Trees of dead channels: which slices of which leaves they set to zero.

At a leaf, dead channels are a bool vector along its channel axis, or, for any other axis, a bool
array of the leaf's rank whose other axes have size 1: [1, heads, 1] for a kernel
[inputs, heads, features]. The bias of the same module goes with them.
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
      docstring. At stacked layers [layers, channels] it may also have their shape: a channel is dead
      if it is dead in all. A vector at the bias of a scale takes the place of the scale's there.
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
  named = {path: zeros_of(path, array, leaves[path]) for path, array in given.items()}
  biases = bias_of_each(leaves)
  beside = {biases[path] for path in named if path in biases}
  zero = {path: z for path, z in named.items() if path not in beside}
  if bias == 'zero':
    for path in named:
      other = biases.get(path)
      own = None if other is None else named.get(other) or _beside(leaves, named, path, other)
      if other is not None and own is not None:
        zero[other] = zero[other] | own if other in zero else own
  return zero


def zeros_of(path: Path, dead: np.ndarray, leaf: Any) -> Zeros:
  """Returns what a bool array says is dead at a leaf.

  Raises:
    ValueError: it does not fit; the message names the leaf.
  """
  shape = tuple(leaf.shape)
  axis = batch_norms.channel_axis(leaf)
  if dead.ndim > 1 and dead.shape == shape:
    dead = np.asarray(dead.all(axis=tuple(i for i in range(dead.ndim) if i != axis)))
  elif dead.ndim > 1 and dead.ndim == len(shape):
    long = [i for i, n in enumerate(dead.shape) if n != 1]
    axis = long[0] if len(long) == 1 else axis
    dead = dead.ravel() if len(long) <= 1 else dead
  size = shape[axis] if shape else 0
  if dead.dtype != bool or dead.shape != (size,):
    raise ValueError(
      f'dead at {tree.show(path)} must be bool[{size}], it is {dead.dtype}{list(dead.shape)}'
    )
  return Zeros(axis, dead)


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
  if zeros.axis == batch_norms.channel_axis(leaf):
    return zeros.channels
  return zeros.channels.reshape([-1 if i == zeros.axis else 1 for i in range(len(leaf.shape))])


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


def unit_axis(path: Path, leaf: Any) -> int:
  """Returns the axis of the outputs of a layer: the first of a `weight`, else the channel axis.

  PyTorch and Equinox keep `weight` as [outputs, inputs, ...]; the kernels of other libraries end with
  the outputs. A vector has one axis, a scale of stacked layers [layers, channels] ends with it.
  """
  is_kernel = sum(n != 1 for n in leaf.shape) > 1
  if is_kernel and batch_norms.names_of(path, leaf)[-1:] == ('weight',):
    return 0
  return batch_norms.channel_axis(leaf)


def matching_axis(path: Path, leaf: Any, axis: int, bias: Any) -> int | None:
  """Returns the axis of a bias that is this axis of a leaf of the same module; None if none is.

  The axes of a bias are the output axes of a kernel: its first, if it is a `weight`, else its last.
  """
  long = [i for i, n in enumerate(bias.shape) if n != 1]
  if len(long) <= 1:
    return batch_norms.channel_axis(bias) if axis == unit_axis(path, leaf) else None
  first = 0 if unit_axis(path, leaf) == 0 else len(leaf.shape) - len(bias.shape)
  return axis - first if 0 <= axis - first < len(bias.shape) else None
