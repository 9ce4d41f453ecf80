"""Rewrites a function into operations that jax2onnx converts well.

jax2onnx replaces functions of JAX and layers of Flax by its own while it traces. A thin function
that is traced there meets operations for which `thin` has no rule, and runs at full width. So the
function is traced here first, without jax2onnx. Then

- everything that the weights alone determine is computed (indices, the factors of a BatchNorm);
- the rest is rewritten, one rule for each primitive: the channels that are selected from a stream
  become one Gather, zeros that are put back one Pad, windows become pooling, and no shape is
  computed at run time.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from slim_jax import jaxprs
from slim_jax.channels import shuffle


def rewrite(
  f: Callable[[jax.Array], jax.Array], batch: jax.ShapeDtypeStruct
) -> Callable[[jax.Array], jax.Array]:
  """Returns the same function for jax2onnx.

  Args:
    f: maps an array to an array.
    batch: shape of its input, whose first axis may be symbolic.

  Raises:
    ValueError: it computes in bfloat16, or returns several arrays.
  """
  program = shuffle.merged(jaxprs.flatten(jax.make_jaxpr(f)(batch), plain=True))
  if any(aval.dtype == jnp.bfloat16 for aval in program.avals):
    raise ValueError(
      'the network computes in bfloat16, for which ONNX runtimes have no convolutions on a CPU: '
      'load it with dtype float32'
    )
  if len(program.outputs) != 1:
    raise ValueError(f'the function returns {len(program.outputs)} arrays, not one')
  known, left = _fold(program)

  def rewritten(x: jax.Array) -> jax.Array:
    env = {**known, program.inputs[0]: x}
    for eqn in left:
      operands = [env[number] for number in eqn.inputs]
      rule = _RULES.get(eqn.primitive)
      result = None if rule is None else rule(eqn, *operands)
      results = jaxprs.bind(eqn, *operands) if result is None else [result]
      env.update(zip(eqn.outputs, results, strict=True))
    return env[program.outputs[0]]

  return rewritten


def _fold(program: jaxprs.Program) -> tuple[dict[int, np.ndarray], list[jaxprs.Equation]]:
  """Computes what the constants of a program determine; returns it, and the equations left."""
  known, done, left = set(program.constants), [], []
  for eqn in program.equations:
    if known.issuperset(eqn.inputs) and not eqn.effects and not _has_batch(eqn):
      known.update(eqn.outputs)
      done.append(eqn)
    else:
      left.append(eqn)
  read = {number for eqn in left for number in eqn.inputs} | set(program.outputs)

  def compute(env: dict[int, jax.Array]) -> dict[int, jax.Array]:
    for eqn in done:
      results = jaxprs.bind(eqn, *[env[number] for number in eqn.inputs])
      env |= dict(zip(eqn.outputs, results, strict=True))
    return {number: env[number] for number in known & read}

  return jax.tree.map(np.asarray, jax.jit(compute)(program.constants)), left


def _has_batch(eqn: jaxprs.Equation) -> bool:
  """Returns whether an axis of a result is the symbolic batch."""
  return any(jax.export.is_symbolic_dim(n) for aval in eqn.out_avals for n in aval.shape)


# A rule takes an equation and its operands, of which numpy arrays are known, and returns the
# result in functions that jax2onnx converts; or None to leave the equation as it is.


def _sub(eqn: jaxprs.Equation, x: Any, y: Any) -> Any:
  """Subtracting a constant becomes adding one, which onnxruntime merges into convolutions."""
  return x + -y if isinstance(y, np.ndarray) else None


def _max(eqn: jaxprs.Equation, x: Any, y: Any) -> Any:
  is_relu = isinstance(y, np.ndarray) and y.ndim == 0 and y == 0
  return jax.nn.relu(x) if is_relu else None


def _gather(eqn: jaxprs.Equation, x: Any, index: Any) -> Any:
  """Selects channels of a stream; indices out of bounds read the fill value."""
  numbers, mode = eqn.params['dimension_numbers'], eqn.params['mode']
  if not isinstance(index, np.ndarray) or len(numbers.start_index_map) != 1:
    return None
  (axis,) = numbers.start_index_map
  sizes = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
  others = tuple(i for i in range(x.ndim) if i != axis)
  if (numbers.collapsed_slice_dims, numbers.offset_dims) != ((axis,), others) or (
    numbers.operand_batching_dims or eqn.params['slice_sizes'] != sizes or index.ndim != 2
  ):
    return None
  index, size = index[:, 0].astype(np.int64), x.shape[axis]
  outside = (index < 0) | (index >= size)
  if not outside.any():
    return _take(x, index, axis)
  if mode is not lax.GatherScatterMode.FILL_OR_DROP or eqn.params['fill_value'] is None:
    return None
  return _spread(x, axis, np.where(outside, size, index), eqn.params['fill_value'])


def _pad(eqn: jaxprs.Equation, x: Any, value: Any) -> Any:
  config = eqn.params['padding_config']
  if not isinstance(value, np.ndarray) or min(min(low, high) for low, high, _ in config) < 0:
    return None
  for axis, (low, high, inside) in enumerate(config):
    if inside:  # ONNX pads only at the ends.
      size = x.shape[axis]
      index = np.full((size - 1) * (inside + 1) + 1, size)
      index[:: inside + 1] = np.arange(size)
      index = np.pad(index, (low, high), constant_values=size)
      x = _spread(x, axis, index, value.item())
  ends = [(0, 0) if inside else (low, high) for low, high, inside in config]
  return jnp.pad(x, ends, constant_values=value.item()) if any(map(any, ends)) else x


def _spread(x: Any, axis: int, index: np.ndarray, fill: float) -> Any:
  """Takes entries along an axis by index; index x.shape[axis] reads the fill value."""
  ends = [(0, int(i == axis)) for i in range(x.ndim)]
  return _take(jnp.pad(x, ends, constant_values=float(fill)), index, axis)


def _permute(eqn: jaxprs.Equation, x: Any) -> Any:
  return _take(x, eqn.params['index'], eqn.params['axis'])


def _take(x: Any, index: np.ndarray, axis: int) -> Any:
  """Takes entries along an axis; channels of images in the layout of ONNX, [n, channels, ...]."""
  if x.ndim != 4 or axis != 3:
    return jnp.take(x, index, axis=axis)
  return jnp.take(x.transpose(0, 3, 1, 2), index, axis=1).transpose(0, 2, 3, 1)


def _slice(eqn: jaxprs.Equation, x: Any) -> Any:
  """Slices one axis by index: a Slice of ONNX needs the ends of all axes, also of the batch."""
  start, end = eqn.params['start_indices'], eqn.params['limit_indices']
  strides = eqn.params['strides'] or (1,) * x.ndim
  axes = [i for i, n in enumerate(x.shape) if (start[i], end[i], strides[i]) != (0, n, 1)]
  if len(axes) != 1 or jax.export.is_symbolic_dim(x.shape[axes[0]]):
    return None
  (axis,) = axes
  return _take(x, np.arange(start[axis], end[axis], strides[axis]), axis)


def _sum(eqn: jaxprs.Equation, x: Any) -> Any:
  """Sums all pixels in the layout of ONNX, so that a BatchNorm before it merges as well."""
  if x.ndim != 4 or tuple(eqn.params['axes']) != (1, 2):
    return None
  return jnp.sum(x.transpose(0, 3, 1, 2), axis=(2, 3))


def _reshape(eqn: jaxprs.Equation, x: Any) -> Any:
  """Reshapes with -1 for the batch, so that no shape is computed."""
  (result,) = eqn.out_avals
  is_any = [jax.export.is_symbolic_dim(n) for n in result.shape]
  if is_any[:1] != [True] or any(is_any[1:]) or result.size != x.size:
    return None
  return jnp.reshape(x, (-1, *result.shape[1:]))


def _broadcast(eqn: jaxprs.Equation, x: Any) -> Any:
  kept = eqn.params['broadcast_dimensions']
  return _reshape(eqn, x) if list(kept) == sorted(kept) else None


def _pool(pool: Callable[..., Any], fill: float) -> Callable[..., Any]:
  """Returns a rule for windows of images [n, height, width, channels], padded beforehand."""

  def rule(eqn: jaxprs.Equation, x: Any) -> Any:
    window, strides = eqn.params['window_dimensions'], eqn.params['window_strides']
    dilations = (*eqn.params['base_dilation'], *eqn.params['window_dilation'])
    outer = [window[0], window[-1], strides[0], strides[-1], *dilations]
    padding = [tuple(map(int, ends)) for ends in eqn.params['padding']]
    if x.ndim != 4 or any(n != 1 for n in outer) or padding[0] != (0, 0) != padding[-1]:
      return None
    if any(map(any, padding)):
      x = jnp.pad(x, padding, constant_values=fill)
    return pool(x, tuple(window[1:3]), tuple(strides[1:3]))

  return rule


# These are looked up when they are called, because jax2onnx replaces them while it traces.
def _max_pool(x: Any, window: tuple[int, ...], strides: tuple[int, ...]) -> Any:
  return nn.max_pool(x, window_shape=window, strides=strides, padding='VALID')


def _sum_pool(x: Any, window: tuple[int, ...], strides: tuple[int, ...]) -> Any:
  return nn.avg_pool(x, window_shape=window, strides=strides, padding='VALID') * math.prod(window)


_p = jaxprs.primitives
_RULES: dict[Any, Callable[..., Any]] = {
  _p.sub_p: _sub,
  _p.max_p: _max,
  _p.gather_p: _gather,
  _p.pad_p: _pad,
  _p.slice_p: _slice,
  _p.reduce_sum_p: _sum,
  _p.reshape_p: _reshape,
  _p.broadcast_in_dim_p: _broadcast,
  shuffle.permute_p: _permute,
  _p.reduce_window_max_p: _pool(_max_pool, -math.inf),
  _p.reduce_window_sum_p: _pool(_sum_pool, 0.0),
}
