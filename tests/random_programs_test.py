"""Random programs: any graph of operations obeys the law, not only layers in a row.

A program is drawn as a list of steps. Each step picks earlier values (so they are shared), an
operation that fits their shapes, and constants; several values come out. Hypothesis draws the
steps and shrinks a program that fails to a short one.
"""

import itertools
import math

from helpers.programs import Case, Check, Operand
import hypothesis
from hypothesis import strategies as st
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from slim_jax.channels import regions

pytestmark = pytest.mark.usefixtures('x64_module')


SIZES = st.integers(1, 4)
SHAPES = st.lists(SIZES, max_size=4).filter(lambda shape: math.prod(shape) <= 96).map(tuple)


class Step:
  """One operation on values drawn before; its text is the line that hypothesis reports."""

  def __init__(self, text, f, *sources):
    self.text = text
    self.f = f
    self.sources = sources

  def __repr__(self):
    return f'{self.text}({", ".join(f"v{i}" for i in self.sources)})'


@jax.custom_jvp
def skewed(x):
  """x * |x| with a derivative of its own."""
  return x * jnp.abs(x)


@skewed.defjvp
def _skewed_jvp(primals, tangents):
  (x,), (t,) = primals, tangents
  return skewed(x), t * (jnp.abs(x) + 1)


@jax.custom_vjp
def reversing(x):
  """The identity, whose cotangent has its sign changed."""
  return x * 1


reversing.defvjp(lambda x: (x * 1, None), lambda _, ct: (-ct,))


@jax.custom_vjp
def normalising(x):
  """The identity, whose cotangent is divided by its norm."""
  return x * 1


normalising.defvjp(lambda x: (x * 1, None), lambda _, ct: (ct / jnp.sqrt(1 + jnp.sum(ct * ct)),))


# Most are bounded, so that deep programs keep small values.
UNARY = {
  'tanh': jnp.tanh,
  'sin': jnp.sin,
  'cos': jnp.cos,
  'neg': lax.neg,
  'half': lambda x: x * 0.5,
  'plus one': lambda x: x + 1.0,
  'one minus': lambda x: 1.0 - x,
  'logistic': jax.nn.sigmoid,
  'relu': jax.nn.relu,
  'relu6': jax.nn.relu6,
  'silu': jax.nn.silu,
  'abs': jnp.abs,
  'square': lambda x: jnp.square(jnp.tanh(x)),
  'cube': lambda x: jnp.tanh(x) ** 3,
  'clip': lambda x: jnp.clip(x, -0.5, 2.0),
  'skewed': lambda x: skewed(jnp.tanh(x)),
  'reversing': reversing,
  'normalising': normalising,
  'stop': lax.stop_gradient,
  'remat': jax.checkpoint(lambda x: jnp.sin(jnp.tanh(x) * 2)),
  'log1p': lambda x: jnp.log1p(x * x),
  'loop': lambda x: lax.fori_loop(0, 2, lambda _, y: jnp.tanh(x - y), x * 0.5),
  'while': lambda x: (
    x
    + lax.while_loop(
      lambda y: jnp.abs(jnp.max(jnp.abs(y), initial=0) - 1e3) < 999,
      lambda y: y * 0.5,
      lax.stop_gradient(x),
    )
  ),
  'branch': lambda x: lax.cond(jnp.sum(x) > 0, jnp.tanh, lambda x: jax.nn.relu(-x), x),
  'barrier': lax.optimization_barrier,
  'above': lambda x: jnp.where(x > 0.25, x, 0.0),
  'below': lambda x: jnp.minimum(x, -0.1),
  'by int': lambda x: lax.round(jnp.tanh(x) * 8).astype(np.int32).astype(x.dtype),
}
BINARY = {
  'add': jnp.add,
  'sub': jnp.subtract,
  'mul': jnp.multiply,
  'max': jnp.maximum,
  'min': jnp.minimum,
  'select': lambda x, y: jnp.where(x > y, x, y * 2),
  'over': lambda x, y: x / (1 + y * y),
  'atan2': lambda x, y: jnp.arctan2(x, y * y + 1),
  'unequal': lambda x, y: (x != y) * x,
}
REDUCE = {
  'sum': jnp.sum,
  'mean': jnp.mean,
  'max': jnp.max,
  'min': jnp.min,
  'prod': jnp.prod,
  'argmax': lambda x, axis: jnp.argmax(x, axis).astype(x.dtype),
}


def fenced(f):
  """Windows that slide over a padded axis of size 1 XLA computes wrong, see `bind_fenced`."""
  return lambda x, *axis: lax.optimization_barrier(f(lax.optimization_barrier(x), *axis))


ALONG = {
  'cumsum': fenced(lax.cumsum),
  'cummax': fenced(lax.cummax),
  'cumprod': fenced(lax.cumprod),
  'sort': lambda x, axis: jnp.sort(x, axis),
  'flip': lambda x, axis: jnp.flip(x, axis),
  'softmax': lambda x, axis: jax.nn.softmax(x, axis),
  'scan': lambda x, axis: jnp.moveaxis(
    lax.scan(
      lambda carry, row: (jnp.tanh(carry - row), carry * row),
      jnp.moveaxis(x, axis, 0).sum(0),
      jnp.moveaxis(x, axis, 0),
    )[1],
    0,
    axis,
  ),
  'fft': lambda x, axis: jnp.fft.fft(x, axis=axis).real,
}


def name(text, *choices):
  return f'{text}[{", ".join(map(str, choices))}]'


@st.composite
def steps(draw, shapes):
  """A step on values of these shapes."""
  i = draw(st.integers(0, len(shapes) - 1))
  shape = shapes[i]
  rank = len(shape)
  kinds = ['unary', 'binary', 'constant', 'outer', 'reshape', 'broadcast']
  if rank:
    kinds += [
      'reduce',
      'along',
      'transpose',
      'concatenate',
      'slice',
      'pad',
      'gather',
      'take',
      'split',
      'dot',
      'update',
      'matrix',
    ]
  if 0 in shape:
    kinds = ['unary', 'binary', 'transpose', 'concatenate', 'pad', 'broadcast']
  elif rank >= 3:
    kinds += ['conv', 'pool']
  kind = draw(st.sampled_from(kinds))
  axis = draw(st.integers(0, rank - 1)) if rank else 0
  n = shape[axis] if rank else 1

  if kind == 'unary':
    key = draw(st.sampled_from(sorted(UNARY)))
    return Step(key, UNARY[key], i)
  if kind == 'binary':
    key = draw(st.sampled_from(sorted(BINARY)))
    fitting = [
      j
      for j, other in enumerate(shapes)
      if other == shape
      or not other
      or (len(other) == rank and all(m in (1, k) for m, k in zip(other, shape)))
    ]
    return Step(key, BINARY[key], i, draw(st.sampled_from(fitting)))
  if kind == 'constant':
    seed = draw(st.integers(0, 99))
    values = np.random.default_rng(seed).integers(-1, 2, shape).astype(float)
    key = draw(st.sampled_from(['add', 'max', 'mul', 'sub']))
    return Step(name(key, f'constant {seed}'), lambda x: BINARY[key](x, values), i)
  if kind == 'outer':
    j = draw(st.integers(0, len(shapes) - 1))
    if rank + len(shapes[j]) > 4 or math.prod(shape + shapes[j]) > 96:
      return Step('sin', jnp.sin, i)
    return Step('outer', lambda x, y: jnp.tensordot(x, y, 0), i, j)
  if kind == 'reshape':
    factors = [p for n in shape for p in ([2, 2] if n == 4 else [n])] + draw(
      st.lists(st.just(1), max_size=1)
    )
    order = draw(st.permutations(factors))
    cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=3)))
    out = tuple(math.prod(order[a:b]) for a, b in itertools.pairwise([0, *cuts, len(order)]))
    return Step(name('reshape', *out), lambda x: x.reshape(out), i)
  if kind == 'broadcast':
    if rank == 4 or math.prod(shape) > 32:
      return Step('neg', lax.neg, i)
    at = draw(st.integers(0, rank))
    size = draw(st.integers(1, 3))
    out = shape[:at] + (size,) + shape[at:]
    return Step(
      name('broadcast', at, size), lambda x: jnp.broadcast_to(jnp.expand_dims(x, at), out), i
    )
  if kind == 'reduce':
    key = draw(st.sampled_from(sorted(REDUCE)))
    return Step(name(key, axis), lambda x: REDUCE[key](x, axis), i)
  if kind == 'along':
    key = draw(st.sampled_from(sorted(ALONG)))
    return Step(name(key, axis), lambda x: ALONG[key](x, axis), i)
  if kind == 'transpose':
    order = draw(st.permutations(range(rank)))
    return Step(name('transpose', *order), lambda x: jnp.transpose(x, order), i)
  if kind == 'concatenate':
    fitting = [
      j
      for j, other in enumerate(shapes)
      if len(other) == rank
      and all(m == k for d, (m, k) in enumerate(zip(other, shape)) if d != axis)
    ]
    j = draw(st.sampled_from(fitting))
    if math.prod(shape) + math.prod(shapes[j]) > 96:
      return Step('neg', lax.neg, i)
    return Step(name('concatenate', axis), lambda x, y: jnp.concatenate([x, y], axis), i, j)
  if kind == 'slice':
    start = draw(st.integers(0, n - 1))
    stop, stride = draw(st.integers(start, n)), draw(st.integers(1, 2))
    return Step(
      name('slice', axis, start, stop, stride),
      lambda x: lax.slice_in_dim(x, start, stop, stride, axis),
      i,
    )
  if kind == 'pad':
    low, high, interior = (
      draw(st.integers(-1 if n else 0, 1)),
      draw(st.integers(0, 1)),
      draw(st.integers(0, 1)),
    )
    value = draw(st.sampled_from([0.0, 1.0]))
    config = [(low, high, interior) if d == axis else (0, 0, 0) for d in range(rank)]
    return Step(
      name('pad', axis, low, high, interior, value),
      lambda x: lax.pad(x, np.float64(value), config),
      i,
    )
  if kind == 'gather':
    index = np.array(draw(st.lists(st.integers(-n, n - 1), min_size=1, max_size=4)))
    mode = draw(st.sampled_from(['wrap', 'clip', 'fill']))
    return Step(
      name('constant take', axis, mode, *index), lambda x: jnp.take(x, index, axis, mode=mode), i
    )
  if kind == 'take':
    j = draw(st.integers(0, len(shapes) - 1))
    if len(shapes[j]) + rank > 5 or math.prod(shape) * math.prod(shapes[j]) > 200:
      return Step('neg', lax.neg, i)
    return Step(
      name('take', axis),
      lambda x, y: jnp.take(x, jnp.abs(lax.round(y * 2)).astype(np.int32) % n, axis, mode='clip'),
      i,
      j,
    )
  if kind == 'split':
    at = draw(st.integers(0, n))
    return Step(name('split', axis, at), lambda x: jnp.split(x, [at], axis)[1], i)
  if kind == 'dot':
    fitting = [
      (j, d)
      for j, other in enumerate(shapes)
      for d, m in enumerate(other)
      if m == n
      and rank + len(other) - 2 <= 4
      and math.prod(shape) * math.prod(other) // (n * n) <= 96
    ]
    if not fitting:
      return Step('neg', lax.neg, i)
    j, d = draw(st.sampled_from(fitting))
    return Step(
      name('dot', axis, d), lambda x, y: lax.dot_general(x, y, (((axis,), (d,)), ((), ()))), i, j
    )
  if kind == 'matrix':
    width = draw(st.integers(1, 4))
    kernel = np.random.default_rng(draw(st.integers(0, 99))).normal(size=(n, width)) / n
    kernel[:, draw(st.integers(0, width - 1))] = 0
    return Step(name('matrix', axis, width), lambda x: jnp.tensordot(x, kernel, (axis, 0)), i)
  if kind == 'update':  # not by a slice of x itself: XLA on CPU overwrites what it still reads
    start, size = draw(st.integers(0, n)), draw(st.integers(0, n))
    return Step(
      name('update', axis, start, size),
      lambda x: lax.dynamic_update_slice_in_dim(
        x,
        jnp.broadcast_to(
          jnp.sum(x, axis, keepdims=True), shape[:axis] + (size,) + shape[axis + 1 :]
        ),
        start,
        axis,
      ),
      i,
    )
  if kind == 'conv':
    channels = shape[-1]
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if channels % g == 0]))
    out = groups * draw(st.integers(1, 2))
    seed = draw(st.integers(0, 99))
    kernel = np.random.default_rng(seed).normal(size=(2,) * (rank - 2) + (channels // groups, out))
    spatial = 'HWD'[: rank - 2]
    dims = (f'N{spatial}C', f'{spatial}IO', f'N{spatial}C')
    return Step(
      name('conv', groups, out),
      lambda x: jnp.tanh(
        lax.conv_general_dilated(
          x, kernel, (1,) * (rank - 2), 'SAME', dimension_numbers=dims, feature_group_count=groups
        )
      ),
      i,
    )
  assert kind == 'pool'
  window = (1,) + (2,) * (rank - 2) + (1,)
  key = draw(st.sampled_from(['max', 'sum']))
  start, f = {'max': (-np.inf, lax.max), 'sum': (0.0, lax.add)}[key]
  return Step(
    name('pool', key),
    fenced(lambda x: lax.reduce_window(x, start, f, window, (1,) * rank, 'SAME')),
    i,
  )


def drawn_blocks(shape):
  """A region of a value: whole axes, random axes, or nothing."""
  axes = st.tuples(
    *[
      st.one_of(
        st.none(), st.lists(st.booleans(), min_size=n, max_size=n).map(lambda v: np.array(v, bool))
      )
      for n in shape
    ]
  )
  return axes.map(regions.normal)


class Graph:
  """A drawn program with what is dead of its inputs and wanted of its outputs."""

  def __init__(self, shapes, steps, outputs, supports, demands, seed):
    self.shapes, self.steps, self.outputs = shapes, steps, outputs
    self.supports, self.demands, self.seed = supports, demands, seed

  def __call__(self, *inputs):
    values = list(inputs)
    for step in self.steps:
      values.append(step.f(*[values[i] for i in step.sources]))
    return [values[i] for i in self.outputs]

  def __repr__(self):
    lines = [
      f'v{i}: input {shape}, held {_show(region)}'
      for i, (shape, region) in enumerate(zip(self.shapes, self.supports))
    ]
    lines += [f'v{i} = {step!r}' for i, step in enumerate(self.steps, len(self.shapes))]
    lines += [
      f'return v{i}, wanted {_show(region)}' for i, region in zip(self.outputs, self.demands)
    ]
    return '\n'.join(['', *lines, f'seed {self.seed}'])


def _show(region):
  if region.empty:
    return 'nothing'
  return [None if axis is None else np.flatnonzero(axis).tolist() for axis in region.axes]


@st.composite
def graphs(draw):
  shapes = draw(st.lists(SHAPES, min_size=1, max_size=3))
  inputs, drawn = list(shapes), []
  for _ in range(draw(st.integers(1, 12))):
    step = draw(steps(shapes))
    out = jax.eval_shape(
      step.f, *[jax.ShapeDtypeStruct(shapes[i], np.float64) for i in step.sources]
    ).shape
    if math.prod(out) <= 200 and len(out) <= 4 and max(out, default=0) <= 16:
      drawn.append(step)
      shapes.append(out)
  # The last value is wanted, so that programs are not mostly dead code.
  outputs = [len(shapes) - 1, *draw(st.lists(st.integers(0, len(shapes) - 1), max_size=2))]
  supports = [draw(drawn_blocks(shape)) for shape in inputs]
  demands = [draw(drawn_blocks(shapes[i])) for i in outputs]
  return Graph(inputs, drawn, outputs, supports, demands, draw(st.integers(0, 9999)))


def law(graph):
  case = Case('random', graph, tuple(Operand(shape) for shape in graph.shapes), rtol=1e-10)
  Check(case, np.random.default_rng(graph.seed)).run(graph.supports, graph.demands)


def settings(count):
  return hypothesis.settings(
    max_examples=count,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
    print_blob=False,
  )


@settings(20)
@hypothesis.given(graphs())
def test_thin_equals_full(graph):
  law(graph)


@pytest.mark.slow
@settings(2000)
@hypothesis.given(graphs())
def test_thin_equals_full_at_length(graph):
  law(graph)
