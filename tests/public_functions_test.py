"""The public functions of JAX between two layers: which of them keep all channels, and why.

Each is called with its channels in the last axis and in another, and works along a further axis.
Half of the channels of its results are wanted. A function that reads all channels then stays at
full width, and is in a list with its reason.
"""

from collections.abc import Callable, Iterator
import inspect
from typing import Any

import jax
from jax import lax
import jax.image
import jax.nn
import jax.numpy as jnp
import jax.scipy.signal
import numpy as np
import pytest

from slim_jax.channels import analysis, programs, regions
from slim_jax.channels.rule import Fact

pytestmark = pytest.mark.filterwarnings('ignore')

MODULES = {
  'numpy': jnp,
  'nn': jax.nn,
  'lax': lax,
  'image': jax.image,
  'scipy.signal': jax.scipy.signal,
}
CHANNELS = 8
HALF = np.arange(CHANNELS) % 2 == 0
# Shapes, and the axis that a function works along where it can be told.
LAYOUTS = {'last': ((3, 5, CHANNELS), 1), 'in the middle': ((3, CHANNELS, 5), 2)}

# Functions that the tries below do not fit, of an array and the axis to work along.
CALLS: dict[str, Callable[[Any, int], Any]] = {
  'image.resize': lambda x, a: jax.image.resize(
    x, tuple(7 if i == a else n for i, n in enumerate(x.shape)), 'cubic'
  ),
  'image.scale_and_translate': lambda x, a: jax.image.scale_and_translate(
    x,
    tuple(7 if i == a else n for i, n in enumerate(x.shape)),
    (a,),
    jnp.array([1.2]),
    jnp.array([0.1]),
    'linear',
  ),
  'lax.argmax': lambda x, a: lax.argmax(x, a, np.int32),
  'lax.argmin': lambda x, a: lax.argmin(x, a, np.int32),
  'lax.associative_scan': lambda x, a: lax.associative_scan(jnp.multiply, x, axis=a),
  'lax.bitcast_convert_type': lambda x, a: lax.bitcast_convert_type(x, np.int32),
  'lax.broadcast': lambda x, a: lax.broadcast(x, (2,)),
  'lax.concatenate': lambda x, a: lax.concatenate([x, x], a),
  'lax.cond': lambda x, a: lax.cond(x[0, 0, 0] > 0, jnp.tanh, jnp.sin, x),
  'lax.convert_element_type': lambda x, a: lax.convert_element_type(x, np.int32),
  'lax.dynamic_slice_in_dim': lambda x, a: lax.dynamic_slice_in_dim(x, 1, 2, a),
  'lax.dynamic_update_slice_in_dim': lambda x, a: lax.dynamic_update_slice_in_dim(
    x, jnp.take(x, jnp.array([0]), a), 1, a
  ),
  'lax.expand_dims': lambda x, a: lax.expand_dims(x, (0,)),
  'lax.fori_loop': lambda x, a: lax.fori_loop(0, 3, lambda i, y: jnp.tanh(y), x),
  'lax.map': lambda x, a: lax.map(jnp.tanh, x),
  'lax.pad': lambda x, a: lax.pad(x, 0.0, [(1, 1, 1) if i == a else (0, 0, 0) for i in range(3)]),
  'lax.platform_dependent': lambda x, a: lax.platform_dependent(x, cpu=jnp.sin, default=jnp.cos),
  'lax.reduce': lambda x, a: lax.reduce(x, 1.0, lambda x, y: x * y + x, (a,)),
  'lax.reduce_max': lambda x, a: lax.reduce_max(x, (a,)),
  'lax.reduce_min': lambda x, a: lax.reduce_min(x, (a,)),
  'lax.reduce_precision': lambda x, a: lax.reduce_precision(x, 5, 10),
  'lax.reduce_prod': lambda x, a: lax.reduce_prod(x, (a,)),
  'lax.reduce_sum': lambda x, a: lax.reduce_sum(x, (a,)),
  'lax.reduce_window': lambda x, a: lax.reduce_window(
    x, -np.inf, lax.max, [2 if i == a else 1 for i in range(3)], (1, 1, 1), 'SAME'
  ),
  'lax.rev': lambda x, a: lax.rev(x, (a,)),
  'lax.scan': lambda x, a: lax.scan(lambda c, y: (jnp.tanh(c + y), c), x[0], x),
  'lax.slice_in_dim': lambda x, a: lax.slice_in_dim(x, 1, 3, 1, a),
  'lax.split': lambda x, a: lax.split(x, (2, 3), a),
  'lax.squeeze': lambda x, a: lax.squeeze(x[None], (0,)),
  'lax.switch': lambda x, a: lax.switch(jnp.int32(x[0, 0, 0] > 0), [jnp.sin, jnp.tanh], x),
  'lax.tile': lambda x, a: lax.tile(x, tuple(2 if i == a else 1 for i in range(3))),
  'lax.transpose': lambda x, a: lax.transpose(x, (2, 0, 1)),
  'lax.while_loop': lambda x, a: lax.while_loop(
    lambda c: c[0] < 3, lambda c: (c[0] + 1, c[1] * 2), (0, x)
  ),
  'nn.glu': lambda x, a: jax.nn.glu(lax.slice_in_dim(x, 0, 4, 1, a), axis=a),
  'numpy.apply_along_axis': lambda x, a: jnp.apply_along_axis(jnp.cumsum, a, x),
  'numpy.apply_over_axes': lambda x, a: jnp.apply_over_axes(jnp.sum, x, (a,)),
  'numpy.argpartition': lambda x, a: jnp.argpartition(x, 2, axis=a),
  'numpy.astype': lambda x, a: jnp.astype(x, np.int32),
  'numpy.broadcast_to': lambda x, a: jnp.broadcast_to(x, (2, *x.shape)),
  'numpy.delete': lambda x, a: jnp.delete(x, 1, axis=a),
  'numpy.digitize': lambda x, a: jnp.digitize(x, jnp.arange(4.0)),
  'numpy.einsum': lambda x, a: jnp.einsum('abc,abc->abc', x, x),
  'numpy.insert': lambda x, a: jnp.insert(x, 1, 0.0, axis=a),
  'numpy.interp': lambda x, a: jnp.interp(x, jnp.arange(4.0), jnp.arange(4.0)),
  'numpy.moveaxis': lambda x, a: jnp.moveaxis(x, a, 0),
  'numpy.nanquantile': lambda x, a: jnp.nanquantile(x, 0.3, axis=a),
  'numpy.partition': lambda x, a: jnp.partition(x, 2, axis=a),
  'numpy.permute_dims': lambda x, a: jnp.permute_dims(x, (2, 0, 1)),
  'numpy.piecewise': lambda x, a: jnp.piecewise(x, [x < 0, x > 1], [lambda x: x, lambda x: x * 2]),
  'numpy.put_along_axis': lambda x, a: jnp.put_along_axis(
    x, jnp.argmax(x, a, keepdims=True), 1.0, a, inplace=False
  ),
  'numpy.quantile': lambda x, a: jnp.quantile(x, 0.3, axis=a),
  'numpy.reshape': lambda x, a: jnp.reshape(x, (1, *x.shape)),
  'numpy.roll': lambda x, a: jnp.roll(x, 2, axis=a),
  'numpy.searchsorted': lambda x, a: jnp.searchsorted(jnp.arange(4.0), x),
  'numpy.split': lambda x, a: jnp.split(x, [2], axis=a),
  'numpy.swapaxes': lambda x, a: jnp.swapaxes(x, 0, a),
  'numpy.take_along_axis': lambda x, a: jnp.take_along_axis(x, jnp.argsort(x, axis=a), axis=a),
  'numpy.tensordot': lambda x, a: jnp.tensordot(x, jnp.ones((5, 2)), (a, 0)),
  'numpy.vectorize': lambda x, a: jnp.vectorize(lambda y: jnp.tanh(y) * 2)(x),
}

# Functions that read all channels though half of their results are wanted.
FULL = {
  'works along the last axis, or along all': """
    numpy.lexsort numpy.sort_complex lax.sort lax.sort_key_val nn.dot_product_attention""",
  'a loop runs until all elements are done': """
    numpy.gcd numpy.lcm lax.random_gamma_grad lax.igamma_grad_a""",
  'compares each element with all others': 'numpy.isin',
  'indices of all axes are computed at run time': """
    numpy.nanmedian numpy.nanquantile numpy.nanpercentile numpy.put_along_axis""",
  'its values have no meaning': 'numpy.empty_like lax.empty',
  'random bits are drawn whole': 'lax.rng_bit_generator lax.rng_uniform',
}


def tries(f: Callable[..., Any], axis: int) -> Iterator[tuple[Callable[..., Any], int]]:
  """Ways to call a function of arrays, and of how many arrays."""
  yield lambda x: f(x, axis=axis), 1
  yield f, 1
  yield f, 2
  yield f, 3
  yield lambda x: f(x, axis), 1
  yield lambda x: f([x, x]), 1
  yield lambda x: f(x, 2), 1


def traced(name: str, f: Callable[..., Any], layout: str) -> programs.Program | None:
  """The program of the first way to call a function that works; None if none does."""
  shape, axis = LAYOUTS[layout]
  ways = [(lambda x: CALLS[name](x, axis), 1)] if name in CALLS else list(tries(f, axis))
  for dtype in (np.float32, np.int32, bool, np.complex64):
    for call, count in ways:
      try:
        return programs.trace(call, *[jax.ShapeDtypeStruct(shape, dtype)] * count)[0]
      except Exception:  # pylint: disable=broad-exception-caught
        continue
  return None


def verdict(program: programs.Program, channels: int) -> str:
  """'full' if all channels of an operand are read for half of the results."""
  outs = [getattr(program.avals[number], 'shape', ()) for number in program.outputs]
  if not any(CHANNELS in shape for shape in outs):
    return 'no channels'
  demands = [regions.normal([HALF if n == CHANNELS else None for n in shape]) for shape in outs]
  facts = [Fact(regions.whole(len(program.avals[i].shape))) for i in program.inputs]
  needed = analysis.analyse(program, facts, demands)
  if analysis.without_rule(program, needed):
    return 'no rule'
  reads = [needed.live[i] for i in program.inputs]
  whole = any(not region.empty and region.axes[channels] is None for region in reads)
  return 'full' if whole else 'thin'


def public() -> dict[str, Callable[..., Any]]:
  return {
    f'{module}.{name}': f
    for module, within in MODULES.items()
    for name, f in sorted(vars(within).items())
    if not name.startswith('_') and callable(f) and not inspect.isclass(f)
  }


def check(names: list[str]) -> dict[str, int]:
  """Checks functions, and counts the verdicts."""
  explained = {name for listed in FULL.values() for name in listed.split()}
  functions, counts = public(), {}
  for name in names:
    for layout, (shape, _) in LAYOUTS.items():
      program = traced(name, functions[name], layout)
      result = 'not called' if program is None else verdict(program, shape.index(CHANNELS))
      counts[result] = counts.get(result, 0) + 1
      assert result not in ('full', 'no rule') or name in explained, f'{name}, channels {layout}'
      assert name not in CALLS or program is not None, name
  return counts


def test_some_public_functions_leave_channels_out():
  counts = check(list(public())[::12])
  assert counts['thin'] > 30


@pytest.mark.slow
def test_all_public_functions_leave_channels_out():
  counts = check(list(public()))
  assert counts['thin'] > 700
  assert set(CALLS) <= set(public())
