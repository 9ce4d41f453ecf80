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
  'lax.batch_matmul': lambda x, a: lax.batch_matmul(jnp.ones((3, 4, x.shape[1])), x),
  'lax.broadcast_in_dim': lambda x, a: lax.broadcast_in_dim(x, (2, *x.shape), (1, 2, 3)),
  'lax.composite': lambda x, a: lax.composite(jnp.tanh, name='slim.tanh')(x),
  'lax.conv': lambda x, a: lax.conv(
    x if a == 2 else jnp.swapaxes(x, 1, 2), jnp.ones((4, 8, 2)), (1,), 'SAME'
  ),
  'lax.conv_general_dilated': lambda x, a: lax.conv_general_dilated(
    x if a == 1 else jnp.swapaxes(x, 1, 2),
    jnp.ones((2, 1, 8)),
    (1,),
    'SAME',
    dimension_numbers=('NWC', 'WIO', 'NWC'),
    feature_group_count=8,
  ),
  'lax.conv_general_dilated_local': lambda x, a: lax.conv_general_dilated_local(
    x if a == 2 else jnp.swapaxes(x, 1, 2), jnp.ones((4, 16, 4)), (1,), 'VALID', (2,)
  ),
  'lax.conv_general_dilated_patches': lambda x, a: lax.conv_general_dilated_patches(
    x if a == 2 else jnp.swapaxes(x, 1, 2), (2,), (1,), 'VALID'
  ),
  'lax.conv_transpose': lambda x, a: lax.conv_transpose(
    x if a == 1 else jnp.swapaxes(x, 1, 2), jnp.ones((2, 8, 4)), (1,), 'SAME'
  ),
  'lax.conv_with_general_padding': lambda x, a: lax.conv_with_general_padding(
    x if a == 2 else jnp.swapaxes(x, 1, 2), jnp.ones((4, 8, 2)), (1,), [(0, 1)], None, None
  ),
  'lax.custom_linear_solve': lambda x, a: lax.custom_linear_solve(
    lambda y: 2 * y, x, lambda _, y: y / 2, lambda _, y: y / 2
  ),
  'lax.custom_root': lambda x, a: lax.custom_root(
    lambda y: y - jnp.tanh(x), x, lambda f, y: jnp.tanh(x), lambda g, y: y
  ),
  'lax.dot': lambda x, a: lax.dot(jnp.ones((4, x.shape[0])), x[:, 0] if a == 1 else x[:, :, 0]),
  'lax.dot_general': lambda x, a: lax.dot_general(x, jnp.ones((5, 4)), (((a,), (0,)), ((), ()))),
  'lax.dynamic_slice': lambda x, a: lax.dynamic_slice(x, (1, 0, 0), (2, *x.shape[1:])),
  'lax.dynamic_update_index_in_dim': lambda x, a: lax.dynamic_update_index_in_dim(x, x[0], 1, 0),
  'lax.dynamic_update_slice': lambda x, a: lax.dynamic_update_slice(x, x[:1], (1, 0, 0)),
  'lax.fft': lambda x, a: lax.fft(jnp.moveaxis(x, a, -1).astype(np.complex64), 'FFT', (5,)),
  'lax.index_take': lambda x, a: lax.index_take(x, (jnp.array([0, 2]),), (0,)),
  'lax.ragged_dot': lambda x, a: lax.ragged_dot(
    jnp.moveaxis(x, a, -1).reshape(-1, 5), jnp.ones((2, 5, 4)), jnp.array([4, 20], np.int32)
  ),
  'lax.reduce_and': lambda x, a: lax.reduce_and(x > 0, (a,)),
  'lax.reduce_or': lambda x, a: lax.reduce_or(x > 0, (a,)),
  'lax.reduce_xor': lambda x, a: lax.reduce_xor(x.astype(np.int32), (a,)),
  'lax.slice': lambda x, a: lax.slice(x, (1, 0, 0), x.shape),
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
  'numpy.choose': lambda x, a: jnp.choose((x > 0).astype(np.int32), [x, x], mode='clip'),
  'numpy.dsplit': lambda x, a: jnp.dsplit(jnp.moveaxis(x, a, -1)[..., :4], 2),
  'numpy.matmul': lambda x, a: jnp.matmul(jnp.ones((3, 4, x.shape[1])), x),
  'numpy.matvec': lambda x, a: jnp.matvec(jnp.ones((4, 5)), jnp.moveaxis(x, a, -1)),
  'numpy.vecmat': lambda x, a: jnp.vecmat(jnp.moveaxis(x, a, -1), jnp.ones((5, 4))),
  'numpy.vsplit': lambda x, a: jnp.vsplit(x, 3),
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

# Functions of no array, or of none that has channels: what they do to channels is not asked.
NOT_CALLED = {
  'makes an array, indices or a window of numbers': """
    numpy.arange numpy.bartlett numpy.blackman numpy.diag_indices numpy.diag_indices_from numpy.empty
    numpy.eye numpy.fromfunction numpy.full numpy.hamming numpy.hanning numpy.identity numpy.indices
    numpy.kaiser numpy.mask_indices numpy.ones numpy.tri numpy.tril_indices
    numpy.tril_indices_from numpy.triu_indices numpy.triu_indices_from numpy.zeros
    lax.broadcasted_iota lax.empty lax.full lax.iota lax.rng_uniform""",
  'reads, writes, prints or describes, and computes nothing': """
    numpy.array_repr numpy.array_str numpy.broadcast_shapes numpy.einsum_path numpy.from_dlpack
    numpy.frombuffer numpy.fromfile numpy.fromiter numpy.frompyfunc numpy.fromstring
    numpy.get_printoptions numpy.load numpy.printoptions numpy.promote_types numpy.result_type
    numpy.save numpy.savez numpy.set_printoptions nn.get_scaled_dot_general_config lax.after_all
    lax.ConvGeneralDilatedDimensionNumbers lax.PrecisionLike
    lax.broadcast_shapes lax.conv_dimension_numbers lax.conv_general_permutations
    lax.conv_general_shape_tuple lax.conv_shape_tuple lax.conv_transpose_shape_tuple lax.dtype
    lax.padtype_to_pads lax.reduce_window_shape_tuple""",
  'the shape of its result depends on values, which JAX does not trace': """
    numpy.argwhere numpy.bincount numpy.compress numpy.extract numpy.flatnonzero numpy.intersect1d
    numpy.nonzero numpy.setdiff1d numpy.setxor1d numpy.trim_zeros numpy.union1d numpy.unique
    numpy.unique_all numpy.unique_counts numpy.unique_inverse numpy.unique_values""",
  'takes one or two axes, or turns channels into a matrix': """
    numpy.convolve numpy.corrcoef numpy.correlate numpy.cov numpy.cross numpy.diag numpy.histogram2d
    numpy.histogramdd numpy.ix_ numpy.meshgrid numpy.poly numpy.polydiv numpy.polyfit numpy.polyint
    numpy.polymul numpy.ravel_multi_index numpy.roots numpy.vander scipy.signal.convolve2d
    scipy.signal.correlate2d""",
  'writes into an array, which JAX does not have': 'numpy.fill_diagonal numpy.place numpy.put',
  'is for other devices, types or experiments': """
    numpy.unpackbits nn.scaled_dot_general nn.scaled_matmul lax.pbroadcast lax.pcast lax.scaled_dot
    lax.precv lax.psend lax.ragged_all_to_all""",
  'has cases by its primitive in rule_cases': """
    lax.gather lax.polynomial lax.ragged_dot_general lax.scatter lax.scatter_add lax.scatter_apply
    lax.scatter_max lax.scatter_min lax.scatter_mul lax.scatter_sub""",
  'has cases by its primitive in rule_cases, within a mesh axis': """
    lax.all_gather lax.all_to_all lax.axis_index lax.axis_size lax.pmean lax.ppermute lax.pshuffle
    lax.psum_scatter lax.psum_scatter_start lax.pswapaxes lax.with_sharding_constraint""",
}

# Functions that read all channels though half of their results are wanted.
FULL = {
  'works along the last axis, or along all': """
    numpy.lexsort numpy.sort_complex lax.sort lax.sort_key_val nn.dot_product_attention""",
  'a loop runs until all elements are done': """
    numpy.gcd numpy.lcm lax.random_gamma_grad lax.igamma_grad_a""",
  'compares each element with all others': 'numpy.isin',
  'indices of all axes are computed at run time': """
    numpy.choose numpy.nanmedian numpy.nanquantile numpy.nanpercentile numpy.put_along_axis""",
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
        with jax.numpy_rank_promotion('allow'):
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
  skipped = {name for listed in NOT_CALLED.values() for name in listed.split()}
  functions, counts = public(), {}
  for name in names:
    for layout, (shape, _) in LAYOUTS.items():
      program = traced(name, functions[name], layout)
      result = 'not called' if program is None else verdict(program, shape.index(CHANNELS))
      assert program is not None or name in skipped, f'{name} has neither a call nor a reason'
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
