"""A case for every primitive that has a rule, and for its ways of being called."""

import jax
from jax import lax
from jax.ad_checkpoint import checkpoint_name
import jax.numpy as jnp
import numpy as np

from helpers.programs import Case, Operand
from slim_jax import jaxprs
from slim_jax.jaxprs import primitives as p


def of(*shape, fill='any', dtype='float64', whole=False):
  return Operand(shape, dtype, fill, whole)


def ints(*shape, fill='any', whole=False):
  return Operand(shape, 'int32', fill, whole)


def at(n, *shape, whole=False):
  """Indices in [0, n)."""
  return Operand(shape, 'int32', n, whole)


def keys(*shape):
  """Data of random keys."""
  return Operand((*shape, 2), 'uint32')


def case(name, f, *operands, **options):
  return Case(name, f, operands, **options)


X = of(3, 4)
Y = of(3, 4)


# Element by element.

UNARY = (
  [
    case(name, f, of(3, 4, fill=fill, dtype=dtype))
    for name, f, fill, dtype in [
      ('abs', lax.abs, 'nonzero', 'float64'),
      ('acos', lax.acos, 'unit', 'float64'),
      ('acosh', lax.acosh, 'above one', 'float64'),
      ('asin', lax.asin, 'unit', 'float64'),
      ('asinh', lax.asinh, 'any', 'float64'),
      ('atan', lax.atan, 'any', 'float64'),
      ('atanh', lax.atanh, 'unit', 'float64'),
      ('bessel_i0e', lax.bessel_i0e, 'any', 'float64'),
      ('bessel_i1e', lax.bessel_i1e, 'any', 'float64'),
      ('cbrt', lax.cbrt, 'nonzero', 'float64'),
      ('ceil', lax.ceil, 'any', 'float64'),
      ('clz', lax.clz, 'any', 'int32'),
      ('conj', lambda x: p.conj_p.bind(x, input_dtype=x.dtype), 'any', 'complex128'),
      ('convert_element_type', lambda x: lax.convert_element_type(x, np.float32), 'any', 'float64'),
      ('convert to int', lambda x: lax.convert_element_type(x, np.int32), 'any', 'float64'),
      ('convert to bool', lambda x: lax.convert_element_type(x, bool), 'any', 'float64'),
      ('convert from bool', lambda x: lax.convert_element_type(x, np.float64), 'any', 'bool'),
      ('copy', p.copy_p.bind, 'any', 'float64'),
      ('cos', lax.cos, 'any', 'float64'),
      ('cosh', lax.cosh, 'any', 'float64'),
      ('digamma', lax.digamma, 'positive', 'float64'),
      ('erf', lax.erf, 'any', 'float64'),
      ('erf_inv', lax.erf_inv, 'unit', 'float64'),
      ('erfc', lax.erfc, 'any', 'float64'),
      ('exp', lax.exp, 'any', 'float64'),
      ('exp2', lax.exp2, 'any', 'float64'),
      ('expm1', lax.expm1, 'any', 'float64'),
      ('floor', lax.floor, 'any', 'float64'),
      ('imag', lax.imag, 'any', 'complex128'),
      ('integer_pow 0', lambda x: p.integer_pow_p.bind(x, y=0), 'any', 'float64'),
      ('integer_pow 2', lambda x: p.integer_pow_p.bind(x, y=2), 'any', 'float64'),
      ('integer_pow 3', lambda x: lax.integer_pow(x, 3), 'any', 'float64'),
      ('integer_pow -1', lambda x: lax.integer_pow(x, -1), 'nonzero', 'float64'),
      ('is_finite', lax.is_finite, 'any', 'float64'),
      ('lgamma', lax.lgamma, 'positive', 'float64'),
      ('log', lax.log, 'positive', 'float64'),
      ('log1p', lax.log1p, 'positive', 'float64'),
      ('logistic', lax.logistic, 'any', 'float64'),
      ('name', lambda x: checkpoint_name(x, 'here'), 'any', 'float64'),
      ('neg', lax.neg, 'any', 'float64'),
      ('not', lax.bitwise_not, 'any', 'bool'),
      ('not of ints', lax.bitwise_not, 'any', 'int32'),
      ('population_count', lax.population_count, 'any', 'uint32'),
      ('real', lax.real, 'any', 'complex128'),
      ('reduce_precision', lambda x: lax.reduce_precision(x, 5, 10), 'any', 'float64'),
      ('round', lax.round, 'any', 'float64'),
      ('rsqrt', lax.rsqrt, 'positive', 'float64'),
      ('sign', lax.sign, 'any', 'float64'),
      ('sin', lax.sin, 'any', 'float64'),
      ('sinh', lax.sinh, 'any', 'float64'),
      ('sqrt', lax.sqrt, 'positive', 'float64'),
      ('square', lax.square, 'any', 'float64'),
      ('stop_gradient', p.stop_gradient_p.bind, 'any', 'float64'),
      ('tan', lax.tan, 'any', 'float64'),
      ('tanh', lax.tanh, 'any', 'float64'),
    ]
  ]
  + [
    case(str(primitive), primitive.bind, of(3, 4, fill='positive'))
    for primitive in jaxprs.newer('one_minus_square_p')
  ]
  + [
    case(
      str(primitive),
      lambda x, primitive=primitive: primitive.bind(x, accuracy=None),
      of(3, 4, fill='positive'),
    )
    for primitive in jaxprs.newer('log2_p')
  ]
)
UNARY = [c._replace(grad=c.name not in ('stop_gradient', 'integer_pow 0')) for c in UNARY]

POSITIVE = of(3, 4, fill='positive')
ZERO_ROWS = np.array([[0.0, 0, 0, 0], [1, 0, 2, 0], [3, 0, 0, 0]])
BINARY = [
  case('add', lax.add, X, Y),
  case('add with itself', lambda x: lax.add(x, x), X),
  case('add of a literal', lambda x: lax.add(x, np.float64(2)), X),
  case('add of ints', lax.add, ints(3, 4), ints(3, 4)),
  case('add of rows', lambda x, y: x + y, X, of(1, 4)),
  case('add of a constant with zeros', lambda x: lax.add(x, ZERO_ROWS), X),
  case('add_any', p.add_jaxvals_p.bind, X, Y),
  case('and', lax.bitwise_and, of(3, 4, dtype='bool'), of(3, 4, dtype='bool')),
  case('atan2', lax.atan2, of(3, 4, fill='nonzero'), of(3, 4, fill='nonzero', whole=True)),
  case('complex', lax.complex, X, Y),
  case('div', lax.div, X, of(3, 4, fill='positive', whole=True)),
  case('div by zeros', lax.div, X, POSITIVE, grad=False),
  case('div of a literal', lambda x: lax.div(np.float64(2), x), of(3, 4, fill='positive')),
  case('div by a constant with zeros', lambda x: lax.div(x, ZERO_ROWS), X, grad=False),
  case('div by rows', lambda x, y: x / y, X, of(3, 1, fill='positive', whole=True)),
  case('igamma', lax.igamma, POSITIVE, POSITIVE, grad=False),
  case('igammac', lax.igammac, POSITIVE, POSITIVE, grad=False),
  case('mul', lax.mul, X, Y),
  case('mulhi', lax.mulhi, of(3, 4, dtype='uint32'), of(3, 4, dtype='uint32')),
  case('mul with itself', lambda x: lax.mul(x, x), X),
  case('mul by a literal', lambda x: lax.mul(x, np.float64(2)), X),
  case('mul by zero', lambda x: lax.mul(x, np.float64(0)), X),
  case('mul by columns', lambda x, y: x * y, X, of(3, 1)),
  case('mul of scalars', lax.mul, of(), of()),
  case('mul by a constant with zeros', lambda x: lax.mul(x, ZERO_ROWS), X),
  case('mul in bfloat16', lambda x: x * 3, of(3, 4, dtype='bfloat16'), rtol=1e-2),
  case('nextafter', lax.nextafter, X, Y, grad=False),
  case('or', lax.bitwise_or, ints(3, 4), ints(3, 4)),
  case(
    'polygamma', lax.polygamma, of(3, 4, fill='positive'), of(3, 4, fill='positive'), grad=False
  ),
  case('pow', lambda x, y: lax.pow(x, y), POSITIVE, POSITIVE, grad=False),
  case('pow with a positive literal', lambda x: lax.pow(x, np.float64(1.5)), POSITIVE),
  case('pow with a negative literal', lambda x: lax.pow(x, np.float64(-1.5)), POSITIVE, grad=False),
  case('pow with zero', lambda x: lax.pow(x, np.float64(0)), POSITIVE),
  case('pow of a literal', lambda x: lax.pow(np.float64(2), x), X),
  case('pow of zero', lambda x: lax.pow(np.float64(0), x), POSITIVE, grad=False),
  case(
    'pow with constant ints',
    lambda x: lax.pow(x, np.array([2, 0, 1], np.int32)),
    of(3, fill='positive'),
    grad=False,
  ),
  case('polynomial', lambda x: jnp.polyval(np.array([1.0, 2, 3]), x), X, single=False),
  case('rem', lax.rem, X, of(3, 4, fill='positive', whole=True)),
  case('rem by zeros', lax.rem, X, POSITIVE, grad=False),
  case('shift_left', lax.shift_left, ints(3, 4), at(3, 3, 4)),
  case('shift_left of a literal', lambda x: lax.shift_left(np.int32(3), x), at(3, 3, 4)),
  case('shift_right_logical', lax.shift_right_logical, ints(3, 4), at(3, 3, 4)),
  case('shift_right_arithmetic', lax.shift_right_arithmetic, ints(3, 4), at(3, 3, 4)),
  case('sub', lax.sub, X, Y),
  case('sub from a literal', lambda x: lax.sub(np.float64(2), x), X),
  case('xor', lax.bitwise_xor, ints(3, 4), ints(3, 4)),
  case('eq_to', p.eq_to_p.bind, X, Y),
  case('le_to', p.le_to_p.bind, X, Y),
  case('lt_to', p.lt_to_p.bind, X, Y),
  case('igamma_grad_a', p.igamma_grad_a_p.bind, POSITIVE, POSITIVE, grad=False),
  case(
    'regularized_incomplete_beta',
    lax.betainc,
    POSITIVE,
    POSITIVE,
    of(3, 4, fill='unit'),
    grad=False,
  ),
  *(
    case('random_gamma_grad', lax.random_gamma_grad, POSITIVE, POSITIVE, grad=False)
    for _ in jaxprs.random_gamma_grad_ps
  ),
  case('zeta', lax.zeta, of(3, 4, fill='above one', whole=True), POSITIVE, grad=False),
] + [
  case(f'{name} {how}', f, *operands)
  for name, op in [
    ('max', lax.max),
    ('min', lax.min),
    ('eq', lax.eq),
    ('ne', lax.ne),
    ('lt', lax.lt),
    ('le', lax.le),
    ('gt', lax.gt),
    ('ge', lax.ge),
  ]
  for how, f, operands in [
    ('of two', op, (X, Y)),
    ('and zero', lambda x, op=op: op(x, np.float64(0)), (X,)),
    ('and one', lambda x, op=op: op(x, np.float64(1)), (X,)),
    ('and minus one', lambda x, op=op: op(x, np.float64(-1)), (X,)),
    ('behind one', lambda x, op=op: op(np.float64(1), x), (X,)),
    ('behind minus one', lambda x, op=op: op(np.float64(-1), x), (X,)),
    ('and constant ints', lambda x, op=op: op(x, np.array([-1, 0, 2], np.int32)), (ints(3),)),
  ]
]

CHOICE = [
  case('select_n', lax.select_n, of(3, 4, dtype='bool'), X, Y),
  case('select_n of three', lax.select_n, at(3, 3, 4), X, Y, of(3, 4)),
  case('select_n by a scalar', lax.select_n, of(dtype='bool'), X, Y),
  case('select_n by a constant', lambda x, y: lax.select_n(ZERO_ROWS > 0, x, y), X, Y),
  case('select_n of ints', lax.select_n, of(3, 4, dtype='bool'), ints(3, 4), ints(3, 4)),
  case('clamp', lambda x: lax.clamp(np.float64(-1), x, np.float64(1)), X),
  case('clamp to positive', lambda x: lax.clamp(np.float64(0.5), x, np.float64(1)), X),
  case('clamp to negative', lambda x: lax.clamp(np.float64(-2), x, np.float64(-1)), X),
  case('clamp between scalars', lax.clamp, of(), X, of(), grad=False),
  case('clamp between arrays', lax.clamp, X, Y, of(3, 4)),
]


# Contractions.


def dot(contract, batch=((), ())):
  return lambda x, y: lax.dot_general(x, y, (contract, batch))


EXPERTS = np.array([1, 2, 0], np.int32)


def ragged(contract, rows, groups=()):
  numbers = lax.RaggedDotDimensionNumbers((contract, ((), ())), rows, groups)
  return lambda x, y: lax.ragged_dot_general(x, y, EXPERTS, numbers)


DOT = [
  case('ragged_dot', lambda x, w: lax.ragged_dot(x, w, EXPERTS), X, of(3, 4, 5)),
  case(
    'ragged_dot, groups at run time',
    lax.ragged_dot,
    X,
    of(2, 4, 5),
    at(2, 2, whole=True),
    grad=False,
  ),
  case('ragged_dot of summed rows', ragged(((0,), (0,)), (0,)), X, of(3, 5), grad=False),
  case('ragged_dot, transposed', ragged(((1,), (2,)), (0,), (0,)), X, of(3, 5, 4), grad=False),
  case('dot_general', dot(((1,), (0,))), of(3, 4), of(4, 5)),
  case('dot_general transposed', dot(((0,), (1,))), of(4, 3), of(5, 4)),
  case('dot_general with itself', lambda x: lax.dot_general(x, x, (((1,), (1,)), ((), ()))), X),
  case('dot_general contracts two', dot(((1, 2), (2, 0))), of(3, 4, 2), of(2, 5, 4)),
  case('dot_general batched', dot(((2,), (1,)), ((0,), (0,))), of(2, 3, 4), of(2, 4, 5)),
  case(
    'dot_general batched over two',
    dot(((1,), (3,)), ((0, 3), (2, 0))),
    of(2, 4, 3, 5),
    of(5, 2, 2, 4),
  ),
  case('dot_general outer', dot(((), ())), of(3), of(4)),
  case('dot_general inner', dot(((0,), (0,))), of(4), of(4)),
  case('dot_general of rows only', dot(((), ()), ((0,), (0,))), of(4), of(4)),
]


def conv(
  strides=(1, 1),
  padding='SAME',
  lhs_dilation=None,
  rhs_dilation=None,
  dims=('NHWC', 'HWIO', 'NHWC'),
  groups=1,
  batches=1,
):
  return lambda x, kernel: lax.conv_general_dilated(
    x,
    kernel,
    strides,
    padding,
    lhs_dilation,
    rhs_dilation,
    dims,
    feature_group_count=groups,
    batch_group_count=batches,
  )


CONV = [
  case('conv_general_dilated', conv(), of(2, 4, 4, 3), of(3, 3, 3, 5)),
  case('conv 1x1', conv(), of(2, 2, 2, 4), of(1, 1, 4, 5)),
  case('conv strided', conv((2, 2), 'VALID'), of(1, 5, 5, 3), of(2, 2, 3, 4)),
  case('conv dilated', conv(rhs_dilation=(2, 2)), of(1, 5, 5, 3), of(2, 2, 3, 4)),
  case(
    'conv transposed',
    conv(padding=((1, 2), (1, 2)), lhs_dilation=(2, 2)),
    of(1, 3, 3, 3),
    of(3, 3, 3, 4),
  ),
  case('conv channels first', conv(dims=('NCHW', 'OIHW', 'NCHW')), of(2, 3, 4, 4), of(5, 3, 3, 3)),
  case('conv of odd layout', conv(dims=('HNWC', 'IHOW', 'CWHN')), of(3, 2, 3, 4), of(4, 2, 3, 2)),
  case('conv 1d', conv((1,), dims=('NWC', 'WIO', 'NWC')), of(2, 5, 3), of(3, 3, 4)),
  case(
    'conv 3d',
    conv((1, 1, 1), dims=('NDHWC', 'DHWIO', 'NDHWC')),
    of(1, 2, 3, 2, 3),
    of(2, 2, 2, 3, 4),
  ),
  case('conv depthwise', conv(groups=4), of(2, 3, 3, 4), of(2, 2, 1, 4)),
  case('conv depthwise, multiplier', conv(groups=4), of(2, 3, 3, 4), of(2, 2, 1, 8)),
  case(
    'conv depthwise, channels first',
    conv(groups=4, dims=('NCHW', 'OIHW', 'NCHW')),
    of(2, 4, 3, 3),
    of(8, 1, 2, 2),
  ),
  case('conv grouped', conv(groups=2), of(2, 3, 3, 6), of(2, 2, 3, 4)),
  case('conv in three groups', conv((2, 2), groups=3), of(2, 3, 3, 6), of(2, 2, 2, 6)),
  case('conv batch groups', conv(batches=2), of(4, 3, 3, 3), of(2, 2, 3, 4)),
]


# Reductions and operations along an axis.


def by_the_larger(x, y):
  """The element of y where x is largest."""

  def larger(a, b):
    return tuple(jnp.where(a[0] >= b[0], *pair) for pair in zip(a, b, strict=True))

  return lax.reduce((x, y), (np.float64(-np.inf), np.float64(0)), larger, (0,))


T = of(2, 3, 4)
BOOLS = of(2, 3, 4, dtype='bool')
REDUCTION = (
  [
    case(f'{name} over {axes}', lambda x, op=op, axes=axes: op(x, axes), T)
    for name, op in [
      ('reduce_sum', lax.reduce_sum),
      ('reduce_max', lax.reduce_max),
      ('reduce_min', lax.reduce_min),
      ('reduce_prod', lax.reduce_prod),
    ]
    for axes in [(2,), (0, 1), (0, 1, 2), ()]
  ]
  + [
    case(f'{name} of {kind}', lambda x, op=op: op(x, (1,)), operand)
    for name, op in [
      ('reduce_and', lax.reduce_and),
      ('reduce_or', lax.reduce_or),
      ('reduce_xor', lax.reduce_xor),
    ]
    for kind, operand in [('bools', BOOLS), ('ints', ints(2, 3, 4))]
  ]
  + [
    case('argmax', lambda x: lax.argmax(x, 1, np.int32), T),
    case('argmin', lambda x: lax.argmin(x, 0, np.int32), T),
  ]
  + [
    case(f'{name} of nothing', lambda x, op=op: op(x, (1,)), of(2, 0, 3))
    for name, op in [
      ('reduce_sum', lax.reduce_sum),
      ('reduce_max', lax.reduce_max),
      ('reduce_min', lax.reduce_min),
      ('reduce_prod', lax.reduce_prod),
    ]
  ]
  + [
    case(
      f'{name}{" backwards" if reverse else ""}',
      lambda x, op=op, reverse=reverse: op(x, axis=1, reverse=reverse),
      T,
    )
    for name, op in [
      ('cumsum', lax.cumsum),
      ('cumprod', lax.cumprod),
      ('cummax', lax.cummax),
      ('cummin', lax.cummin),
      ('cumlogsumexp', lax.cumlogsumexp),
    ]
    for reverse in (False, True)
  ]
  + [
    case('sort', lambda x: lax.sort(x, dimension=1), T),
    case('sort with a rider', lambda x, y: lax.sort((x, y), dimension=0, num_keys=1), X, Y),
    case(
      'sort by two keys',
      lambda x, y, z: lax.sort((x, y, z), dimension=1, num_keys=2),
      ints(3, 4),
      X,
      Y,
    ),
    case('top_k', lambda x: lax.top_k(x, 2), X),
    case('approx_top_k', lambda x: lax.approx_max_k(x, 2), X),
    case('reduce', lambda x: lax.reduce(x, np.float64(0), lambda a, b: a + b + a * b, (1,)), T),
    case('reduce of two', by_the_larger, X, Y, grad=False),
  ]
)


# Windows.


def window(op, size, strides, padding=None, base=None, dilation=None):
  rank = len(size)
  one = (1,) * rank
  return lambda x: lax.reduce_window(
    x, *op, size, strides, padding or ((0, 0),) * rank, base or one, dilation or one
  )


_SUM, MAX, _MIN = (np.float64(0), lax.add), (-np.inf, lax.max), (np.inf, lax.min)
POOL = ((1, 2, 2, 1), (1, 2, 2, 1))
IMAGE = of(2, 4, 4, 3)


def both_extremes(x, y):
  return lax.reduce_window(
    (x, y),
    (np.float64(-np.inf), np.float64(np.inf)),
    lambda a, b: (lax.max(a[0], b[0]), lax.min(a[1], b[1])),
    (1, 2),
    (1, 1),
    'VALID',
  )


def scattered(size, strides):
  """The derivative of max-pooling."""

  def f(source, x):
    return p.select_and_scatter_add_p.bind(
      source,
      x,
      select_prim=p.ge_p,
      window_dimensions=size,
      window_strides=strides,
      padding=((0, 0),) * 4,
    )

  return f


def scattered_by(select, scatter):
  """Any choice of windows, and any way to put what is scattered together."""

  def jaxpr(f):
    closed = jax.make_jaxpr(f)(0.0, 0.0)
    return closed.jaxpr

  def f(x, source):
    return p.select_and_scatter_p.bind(
      x,
      source,
      np.float64(1.0),
      select_jaxpr=jaxpr(select),
      select_consts=(),
      scatter_jaxpr=jaxpr(scatter),
      scatter_consts=(),
      window_dimensions=(1, 2, 2, 1),
      window_strides=(1, 2, 2, 1),
      padding=((0, 0),) * 4,
    )

  return f


def gathered(size, strides):
  """Its forward derivative."""

  def f(tangents, x):
    return p.select_and_gather_add_p.bind(
      tangents,
      x,
      select_prim=p.ge_p,
      window_dimensions=size,
      window_strides=strides,
      padding=((0, 0),) * 4,
      base_dilation=(1,) * 4,
      window_dilation=(1,) * 4,
    )

  return f


def pooled(size, strides):
  """The result of pooling an image."""
  shape = jax.eval_shape(
    window(MAX, size, strides), jax.ShapeDtypeStruct(IMAGE.shape, np.float32)
  ).shape
  return of(*shape)


WINDOW = (
  [
    case(f'reduce_window_{name} {how}', f, IMAGE, grad=grad)
    for name, op in [('sum', _SUM), ('max', MAX), ('min', _MIN)]
    for how, f, grad in [
      ('valid', window(op, *POOL), True),
      (
        'overlapping',
        window(op, (1, 3, 3, 1), (1, 1, 1, 1), ((0, 0), (1, 1), (1, 1), (0, 0))),
        True,
      ),
      ('over channels', window(op, (1, 1, 1, 2), (1, 1, 1, 1)), True),
      (
        'padded channels',
        window(op, (1, 1, 1, 1), (1, 1, 1, 1), ((0, 0), (0, 0), (0, 0), (1, 0))),
        name == 'sum',
      ),
      (
        'wide padding',
        window(op, (1, 2, 2, 1), (1, 1, 1, 1), ((0, 0), (2, 0), (0, 2), (0, 0))),
        name == 'sum',
      ),
      ('dilated', window(op, (1, 2, 2, 1), (1, 1, 1, 1), None, None, (1, 2, 2, 1)), name == 'sum'),
      (
        'of a dilated operand',
        window(op, (1, 2, 1, 1), (1, 1, 1, 1), None, (1, 3, 1, 1)),
        name == 'sum',
      ),
    ]
  ]
  + [
    case(
      'reduce_window',
      lambda x: lax.reduce_window(x, np.float64(1), lax.mul, (2, 1), (1, 1), 'VALID'),
      of(4, 3),
      grad=False,
    ),
    case('reduce_window of two', both_extremes, X, Y, grad=False),
    case('select_and_scatter', scattered_by(lax.ge, lax.mul), IMAGE, of(2, 2, 2, 3), grad=False),
  ]
  + [
    case(f'{name} {how}', f(*pool), *shapes(*pool), grad=False)
    for name, f, shapes in [
      ('select_and_scatter_add', scattered, lambda *pool: (pooled(*pool), IMAGE)),
      ('select_and_gather_add', gathered, lambda *_: (IMAGE, IMAGE)),
    ]
    for how, pool in [
      ('of pooling', POOL),
      ('over channels', ((1, 1, 1, 2), (1, 1, 1, 1))),
      ('overlapping', ((1, 3, 3, 1), (1, 1, 1, 1))),
    ]
  ]
)


# Movement.


def shuffle(axis, groups):
  """Channels of groups, dealt out as ShuffleNet does."""

  def f(x):
    parts = (*x.shape[:axis], *groups, *x.shape[axis + 1 :])
    return x.reshape(parts).swapaxes(axis, axis + len(groups) - 1).reshape(x.shape)

  return f


MOVEMENT = (
  [
    case('tile', lambda x: jnp.tile(x, (2, 3)), X),
    case('tile along one axis', lambda x: jnp.tile(x, (1, 2)), X),
    case('permute', shuffle(1, (2, 3)), of(3, 6)),
    case('permute in front', shuffle(0, (3, 2)), of(6, 4)),
    case('permute three parts', shuffle(1, (2, 3, 2)), of(2, 12, 2)),
    case('permute, axes of size 1', shuffle(1, (2, 1, 2)), of(1, 4, 1)),
    case(
      'reshapes that permute, read in between',
      lambda x: (lambda y: (y, y.swapaxes(1, 2).reshape(3, 4)))(x.reshape(3, 2, 2)),
      X,
      single=False,
    ),
    case(
      'reshapes that merge other axes',
      lambda x: x.reshape(3, 2, 2).swapaxes(0, 1).reshape(3, 4),
      X,
      single=False,
    ),
    case('transpose', lambda x: lax.transpose(x, (2, 0, 1)), T),
    case('rev', lambda x: lax.rev(x, (0, 2)), T),
    case('squeeze', lambda x: lax.squeeze(x, (0, 2)), of(1, 3, 1, 4)),
    case('broadcast_in_dim', lambda x: lax.broadcast_in_dim(x, (3, 2, 4), (1, 2)), of(2, 4)),
    case(
      'broadcast_in_dim stretches', lambda x: lax.broadcast_in_dim(x, (3, 2, 4), (0, 2)), of(1, 4)
    ),
    case('broadcast_in_dim of a scalar', lambda x: lax.broadcast_in_dim(x, (3, 2), ()), of()),
    case('broadcast_in_dim of a constant', lambda: lax.broadcast_in_dim(np.float64(3), (3, 2), ())),
  ]
  + [
    case(f'reshape {shape} to {out}', lambda x, out=out: lax.reshape(x, out), of(*shape))
    for shape, out in [
      ((2, 3, 4), (6, 4)),
      ((2, 3, 4), (2, 12)),
      ((2, 3, 4), (24,)),
      ((24,), (2, 3, 4)),
      ((6, 4), (2, 3, 4)),
      ((6, 4), (4, 6)),
      ((2, 6, 2), (4, 3, 2)),
      ((4, 3), (1, 4, 1, 3, 1)),
      ((1, 4, 1, 3, 1), (4, 3)),
      ((1, 1), ()),
      ((), (1, 1)),
      ((1, 6), (3, 1, 2)),
      ((2, 0, 3), (0, 6)),
    ]
  ]
  + [
    case('reshape of a transpose', lambda x: lax.reshape(x, (4, 3, 2), (2, 1, 0)), T, single=False)
  ]
)


# Pieces.


def pad(*config, value=None):
  if value is None:
    return lambda x, v: lax.pad(x, v, config)
  return lambda x: lax.pad(x, np.float64(value), config)


PIECES = (
  [
    case('stack', lambda x, y: jnp.stack([x, y]), X, Y),
    case('stack behind', lambda x, y, z: jnp.stack([x, y, z], 2), X, Y, of(3, 4)),
    case('stack with itself', lambda x: jnp.stack([x, x], 1), X),
    case('stack of scalars', lambda x, y: jnp.stack([x, y]), of(), of()),
    case('unstack', lambda x: jnp.unstack(x, axis=1), T),
    case('unstack in front', jnp.unstack, T),
    case(
      'concatenate', lambda x, y, z: lax.concatenate((x, y, z), 1), of(3, 2), of(3, 4), of(3, 1)
    ),
    case('concatenate with itself', lambda x: lax.concatenate((x, x), 0), X),
    case('concatenate with nothing', lambda x, y: lax.concatenate((x, y), 1), X, of(3, 0)),
    case('concatenate with a constant', lambda x: lax.concatenate((x, ZERO_ROWS), 1), X),
    case('split', lambda x: lax.split(x, (2, 1, 3), 1), of(3, 6)),
    case('split off nothing', lambda x: lax.split(x, (0, 4), 1), X),
    case('slice', lambda x: lax.slice(x, (0, 1), (2, 4)), X),
    case('slice with strides', lambda x: lax.slice(x, (1, 0), (7, 5), (3, 2)), of(8, 5)),
    case('slice of nothing', lambda x: lax.slice(x, (0, 2), (3, 2)), X),
  ]
  + [
    case(
      f'pad {config} with {"an operand" if value is None else value}',
      pad(*config, value=value),
      *((X, of()) if value is None else (X,)),
      grad=value is not None,
    )
    for config in [
      ((0, 0, 0), (1, 2, 0)),
      ((1, 0, 0), (0, 1, 0)),
      ((0, 0, 0), (-1, 2, 0)),
      ((0, 0, 0), (-1, -1, 0)),
      ((0, 0, 1), (0, 0, 0)),
      ((1, -1, 2), (0, -2, 1)),
      ((0, 0, 0), (0, 0, 0)),
      ((-2, -1, 0), (0, 0, 0)),
    ]
    for value in (0, 2, None)
  ]
  + [case('pad with an operand, gradients', pad((0, 0, 0), (1, 2, 0)), of(3, 4), of())]
)


# Reading and writing at indices.


def gather(dims, sizes, mode='promise_in_bounds', fill=None):
  return lambda x, index: lax.gather(
    x, index, lax.GatherDimensionNumbers(**dims), sizes, mode=mode, fill_value=fill
  )


ROWS = dict(offset_dims=(1,), collapsed_slice_dims=(0,), start_index_map=(0,))
COLUMNS = dict(offset_dims=(0,), collapsed_slice_dims=(1,), start_index_map=(1,))
GRID = dict(offset_dims=(2,), collapsed_slice_dims=(0,), start_index_map=(0,))
BLOCKS = dict(offset_dims=(0, 1), collapsed_slice_dims=(), start_index_map=(1,))
POINTS = dict(offset_dims=(1,), collapsed_slice_dims=(0, 2), start_index_map=(2, 0))
ALONG = dict(
  offset_dims=(),
  collapsed_slice_dims=(1,),
  start_index_map=(1,),
  operand_batching_dims=(0,),
  start_indices_batching_dims=(0,),
)


def constant(f, *index):
  return lambda x: f(x, np.array(index, np.int32))


def update_rows(x, y, i):
  return lax.dynamic_update_slice(x, y, (i, np.int32(0)))


def sliced_by_gather(starts):
  """Slices of two, from the last axes, as indexing gives them where other sizes are symbols."""
  axes = tuple(range(2 - len(starts), 2))
  dims = lax.GatherDimensionNumbers(
    offset_dims=(0, 1), collapsed_slice_dims=(), start_index_map=axes
  )
  sizes = tuple(2 if i in axes else n for i, n in enumerate((3, 4)))
  return lambda x: lax.gather(x, np.array(starts, np.int32), dims, sizes, mode='clip')


INDEXING = [
  case(
    'take_along_axis of columns',
    lambda x, i: jnp.take_along_axis(x, i, 0, mode='clip'),
    X,
    at(3, 2, 4),
    single=False,
  ),
  case(
    'take_along_axis, filled',
    lambda x, i: jnp.take_along_axis(x, i, 1, mode='fill', fill_value=0),
    X,
    at(4, 3, 2, whole=True),
    single=False,
  ),
  case(
    'scatter in a batch',
    jax.vmap(lambda x, i, y: x.at[i].set(y), 1, 1),
    X,
    at(3, 2, 4, whole=True),
    of(2, 4),
    single=False,
    grad=False,
  ),
  case(
    'scatter-add in a batch',
    jax.vmap(lambda x, i, y: x.at[i].add(y, mode='drop'), (1, 1, 0), 1),
    X,
    at(4, 2, 4),
    of(4, 2),
    single=False,
  ),
  case(
    'put_along_axis',
    lambda x, i, y: jnp.put_along_axis(x, i, y, 0, inplace=False),
    X,
    at(3, 2, 4, whole=True),
    of(2, 4),
    single=False,
    grad=False,
  ),
  case('gather rows', gather(ROWS, (1, 4)), of(5, 4), at(5, 6, 1)),
  case('gather columns', gather(COLUMNS, (3, 1)), of(3, 4), at(4, 5, 1)),
  case('gather to a grid', gather(GRID, (1, 4)), of(5, 4), at(5, 2, 3, 1)),
  case('gather blocks', gather(BLOCKS, (3, 2)), of(3, 4), at(3, 5, 1)),
  case('gather points', gather(POINTS, (1, 4, 1)), of(3, 4, 2), at(2, 5, 2)),
  case('gather along rows', gather(ALONG, (1, 1)), of(3, 4), at(4, 3, 2, 1)),
  case('gather constant rows', constant(gather(ROWS, (1, 4)), [1], [1], [4], [0]), of(5, 4)),
  case('gather constant columns', constant(gather(COLUMNS, (3, 1)), [3], [0], [2], [3]), of(3, 4)),
  case(
    'gather a constant grid',
    constant(gather(GRID, (1, 4)), [[1], [1]], [[4], [0]], [[2], [4]]),
    of(5, 4),
  ),
  case('gather constant blocks', constant(gather(BLOCKS, (3, 2)), [2], [0]), of(3, 4)),
  case('gather constant points', constant(gather(POINTS, (1, 4, 1)), [1, 2], [0, 0]), of(3, 4, 2)),
  case('gather, clipped', gather(ROWS, (1, 4), 'clip'), of(5, 4), at(8, 6, 1)),
  case(
    'gather, constant and clipped', constant(gather(ROWS, (1, 4), 'clip'), [7], [1], [-1]), of(5, 4)
  ),
  case('gather, filled', gather(ROWS, (1, 4), 'fill'), of(5, 4), at(8, 6, 1)),
  case('gather, filled with zeros', gather(ROWS, (1, 4), 'fill', 0), of(5, 4), at(8, 6, 1)),
  case('gather, filled with ones', gather(ROWS, (1, 4), 'fill', 1), of(5, 4), at(8, 6, 1)),
  case('gather ints, filled', gather(ROWS, (1, 4), 'fill'), ints(5, 4), at(8, 6, 1)),
  case('gather, constant and filled', constant(gather(ROWS, (1, 4), 'fill'), [7], [1]), of(5, 4)),
  case(
    'gather, constant and never filled', constant(gather(ROWS, (1, 4), 'fill'), [4], [1]), of(5, 4)
  ),
  case(
    'gather nothing',
    constant(lambda x, i: gather(ROWS, (1, 4))(x, i.reshape(0, 1))),
    of(5, 4),
    single=False,
  ),
  case(
    'gather of windows',
    lambda x, i: jax.vmap(lambda i: lax.dynamic_slice_in_dim(x, i, 2, 0))(i),
    X,
    at(3, 2, whole=True),
    single=False,
  ),
  case('gather, one slice', sliced_by_gather([1]), X),
  case('gather, one slice of two axes', sliced_by_gather([1, 2]), X),
  case('gather, a slice out of bounds', sliced_by_gather([2, 0]), X),
  case('x[:, constant]', lambda x: x[:, np.array([0, -1, 2, -1])], X, single=False),
  case('x[:, i]', lambda x, i: x[:, i], X, at(4, 6), single=False),
  case('x[i, :, j]', lambda x, i, j: x[i, :, j], T, at(2, 5), at(4, 5), single=False),
  case('x[scalar]', lambda x, i: x[i], X, at(3), single=False),
  case('take_along_axis', lambda x, i: jnp.take_along_axis(x, i, 1), X, at(4, 3, 2), single=False),
  case('take', lambda x, i: jnp.take(x, i, axis=1), X, at(6, 5), single=False),
  case('take of constants', lambda x: jnp.take(x, np.array([3, 1, 1]), axis=1), X, single=False),
  case(
    'dynamic_slice',
    lambda x, i, j: lax.dynamic_slice(x, (i, j), (2, 3)),
    of(4, 5),
    at(5),
    at(5),
    single=False,
  ),
  case(
    'dynamic_slice, a start known',
    lambda x, i: lax.dynamic_slice(x, (i, np.int32(1)), (2, 3)),
    of(4, 5),
    at(5),
    single=False,
  ),
  case(
    'dynamic_slice, starts known',
    lambda x: lax.dynamic_slice(x, (np.int32(7), np.int32(1)), (2, 3)),
    of(4, 5),
  ),
  case(
    'dynamic_slice of whole rows',
    lambda x, i: lax.dynamic_slice(x, (i, np.int32(3)), (2, 5)),
    of(4, 5),
    at(5),
    single=False,
  ),
  case(
    'dynamic_update_slice',
    lambda x, y, i, j: lax.dynamic_update_slice(x, y, (i, j)),
    of(4, 5),
    of(2, 3),
    at(4),
    at(4),
    single=False,
  ),
  case('dynamic_update_slice of rows', update_rows, of(4, 5), of(2, 5), at(4), single=False),
  case('dynamic_update_slice of nothing', update_rows, of(4, 5), of(0, 5), at(4), single=False),
]


# From nothing, from keys.


def from_key(f):
  """A function of keys as one of their data."""

  def of_data(data, *operands):
    made = f(jax.random.wrap_key_data(data, impl='threefry2x32'), *operands)
    return jax.random.key_data(made) if jnp.issubdtype(made.dtype, jax.dtypes.prng_key) else made

  return of_data


def scatter(kind, dims, **options):
  """One of the scatters, as a function of operand, indices and updates."""
  numbers = lax.ScatterDimensionNumbers(**dims)
  return lambda x, i, y: kind(x, i, y, numbers, **options)


_INTO_ROWS = dict(
  update_window_dims=(1,), inserted_window_dims=(0,), scatter_dims_to_operand_dims=(0,)
)
_INTO_COLUMNS = dict(
  update_window_dims=(0,), inserted_window_dims=(1,), scatter_dims_to_operand_dims=(1,)
)
_INTO_PARTS = dict(
  update_window_dims=(0, 1), inserted_window_dims=(), scatter_dims_to_operand_dims=(1,)
)
_INTO_EACH = dict(
  update_window_dims=(),
  inserted_window_dims=(1,),
  scatter_dims_to_operand_dims=(1,),
  operand_batching_dims=(0,),
  scatter_indices_batching_dims=(0,),
)
SCATTER = [
  case(
    f'{name} {how}',
    scatter(kind, dims, mode='drop'),
    X,
    indices,
    updates,
    grad=name in ('scatter', 'scatter-add', 'scatter-sub'),
  )
  for name, kind in [
    ('scatter', lax.scatter),
    ('scatter-add', lax.scatter_add),
    ('scatter-sub', lax.scatter_sub),
    ('scatter-mul', lax.scatter_mul),
    ('scatter-max', lax.scatter_max),
    ('scatter-min', lax.scatter_min),
  ]
  for how, dims, indices, updates in [
    ('into rows', _INTO_ROWS, at(4, 2, 1, whole=True), of(2, 4)),
    ('into columns', _INTO_COLUMNS, at(4, 2, 1, whole=True), of(3, 2)),
    ('into parts of columns', _INTO_PARTS, at(3, 1, whole=True), of(3, 2)),
    ('into each row', _INTO_EACH, at(4, 3, 1, whole=True), of(3)),
  ]
]

GENERATOR = [
  case('iota', lambda: lax.broadcasted_iota(np.int32, (3, 4), 1)),
  case('iota of floats', lambda: lax.broadcasted_iota(np.float64, (3, 4), 0)),
  case('a large iota', lambda: lax.broadcasted_iota(np.float64, (3, 4), 1)),
  case('random_bits', from_key(lambda key: jax.random.bits(key, (3, 4))), keys()),
  case('random_fold_in', from_key(jax.random.fold_in), keys(), ints()),
  case('random_split', from_key(lambda key: jax.random.split(key, (2, 3))), keys()),
  case(
    'random_gamma',
    from_key(lambda key, a: jax.random.gamma(key, a, (3, 4))),
    keys(),
    of(3, 4, fill='positive', whole=True),
  ),
  case('random_seed', lambda seed: jax.random.key_data(jax.random.key(seed)), ints()),
  case('random keys', from_key(lambda key: key), keys(3)),
  case('uniform noise', from_key(lambda key: jax.random.uniform(key, (3, 4))), keys()),
  case(
    'dropout',
    from_key(lambda key, x: jnp.where(jax.random.bernoulli(key, 0.5, x.shape), x, 0)),
    keys(),
    X,
  ),
  case('threefry2x32', p.threefry2x32_p.bind, *[Operand((4,), 'uint32')] * 4),
  case(
    'rng_bit_generator',
    lambda key: lax.rng_bit_generator(key, (3, 4), algorithm=lax.RandomAlgorithm.RNG_THREE_FRY),
    Operand((2,), 'uint64'),
  ),
  case(
    'rng_uniform between equal bounds',
    lambda: lax.rng_uniform(np.float64(2), np.float64(2), (3, 4)),
  ),
  case('bitcast_convert_type', lambda x: lax.bitcast_convert_type(x, np.int64), X),
  case('bitcast to bytes', lambda x: lax.bitcast_convert_type(x, np.uint8), X),
  case('axis_index', lambda x: lax.add(x, lax.axis_index('batch')), ints(), named=True),
]
GENERATOR += [
  case('random_clone', from_key(lambda key: jax.random.bits(jax.random.clone(key), (3, 4))), keys())
]
GENERATOR = [c._replace(single=False) for c in GENERATOR]


# Fourier transforms and linear algebra: along the last axes.


def along_matrices(f):
  """`f` of matrices that are far from singular."""
  return lambda x: f(x + 5 * np.eye(3)[None])


def along_symmetric(f):
  return along_matrices(lambda x: f(x + x.mT))


M = of(4, 3, 3)
COMPLEX = of(2, 3, 4, dtype='complex128')
TRANSFORM = [
  case('symmetric_product', lax.linalg.symmetric_product, of(2, 3, 4), of(2, 3, 3), grad=False),
  case('fft', lambda x: lax.fft(x, 'FFT', (4,)), COMPLEX),
  case('fft of two axes', lambda x: lax.fft(x, 'FFT', (3, 4)), COMPLEX),
  case('fft of real numbers', lambda x: lax.fft(x, 'RFFT', (4,)), T),
  case('fft to real numbers', lambda x: lax.fft(x, 'IRFFT', (6,)), COMPLEX),
  case(
    'lu_pivots_to_permutation', lambda x: lax.linalg.lu_pivots_to_permutation(x, 4), at(4, 2, 3, 3)
  ),
] + [
  case(name, f, *operands, grad=grad, single=False, rtol=1e-9)
  for name, f, operands, grad in [
    ('fft of a middle axis', lambda x: jnp.fft.rfft(x, axis=1).real, (T,), True),
    ('cholesky', along_symmetric(jnp.linalg.cholesky), (M,), True),
    ('eig', along_matrices(jnp.linalg.eigvals), (M,), False),
    ('eigh', along_symmetric(jnp.linalg.eigvalsh), (M,), True),
    ('hessenberg', along_matrices(lax.linalg.hessenberg), (M,), False),
    ('householder_product', lax.linalg.householder_product, (M, of(4, 3)), False),
    ('lu', along_matrices(lax.linalg.lu), (M,), True),
    ('qr', along_matrices(lax.linalg.qr), (M,), True),
    ('schur', along_matrices(lax.linalg.schur), (M,), False),
    ('svd', along_matrices(lambda x: jnp.linalg.svd(x, compute_uv=False)), (M,), True),
    ('inverse', along_matrices(jnp.linalg.inv), (M,), True),
    ('tridiagonal', along_symmetric(lambda x: lax.linalg.tridiagonal(x, lower=True)), (M,), False),
    (
      'triangular_solve',
      lambda x, y: lax.linalg.triangular_solve(
        x + 5 * np.eye(3)[None], y, left_side=True, lower=True
      ),
      (M, of(4, 3, 2)),
      True,
    ),
    (
      'tridiagonal_solve',
      lambda x, y: lax.linalg.tridiagonal_solve(x, x + 9, x, y),
      (of(4, 3), of(4, 3, 2)),
      True,
    ),
  ]
]


# Where arrays live.


def constrained(*spec):
  """An array spread over two devices."""

  def f(x):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('x',))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
    return lax.with_sharding_constraint(x, spread)

  return f


def resharded(x):
  mesh = jax.make_mesh((1,), ('x',), axis_types=(jax.sharding.AxisType.Explicit,))
  return jax.sharding.reshard(x, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('x')))


PLACEMENT = [
  case('device_put', jax.device_put, X),
  case('device_put of two', lambda x, y: jax.device_put((x, y)), X, ints(3)),
  case('sharding_constraint', constrained(None, 'x'), of(3, 4)),
  case('sharding_constraint in front', constrained('x'), of(4, 3)),
  case('reshard', resharded, of(4, 3), grad=False),
]


# Collectives and barriers.


def manual(name, f, *operands, **options):
  return case(name, f, *operands, named=True, manual=True, **options)


def mapped(f, *specs, out=('x',), **options):
  """`f` on the parts of two devices."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ('x',))
  ins = tuple(jax.sharding.PartitionSpec(*spec) for spec in specs)
  out = jax.sharding.PartitionSpec(*out)
  return jax.shard_map(f, mesh=mesh, in_specs=ins, out_specs=out, **options)


COLLECTIVE = [
  case('shard_map over rows', mapped(lambda x, y: jnp.tanh(x) * y, ('x',), ()), of(4, 3), of(1, 3)),
  case('shard_map over columns', mapped(lambda x: x * 2, (None, 'x'), out=(None, 'x')), of(3, 4)),
  case(
    'shard_map of a sum over devices',
    mapped(lambda x, w: lax.psum(jax.nn.relu(x) @ w, 'x'), (None, 'x'), ('x',), out=()),
    of(3, 4),
    of(4, 3),
  ),
  case(
    'shard_map without types',
    mapped(lambda x: (x - lax.pmean(x, 'x')) * lax.axis_index('x'), ('x',), check_vma=False),
    of(4, 3),
  ),
  case('shard_map of a custom derivative', mapped(lambda x: clipped(x), ('x',)), of(4, 3)),
  case('psum', lambda x: lax.psum(x, 'batch'), X, named=True),
  case(
    'psum of several', lambda x, y: lax.psum((x, y), 'batch'), X, of(2), named=True, single=False
  ),
  case('pmean', lambda x: lax.pmean(x, 'batch'), X, named=True, single=False),
  case('pmax', lambda x: lax.pmax(x, 'batch'), X, named=True, grad=False),
  case('pmin', lambda x: lax.pmin(x, 'batch'), X, named=True, grad=False),
  manual('psum_invariant', lambda x: lax.psum(x, 'batch'), X),
  manual(
    'pvary', lambda x: x * lax.pcast(lax.psum(x, 'batch'), 'batch', to='varying'), X, single=False
  ),
  manual('psum and a literal', lambda x: jnp.minimum(lax.psum(x, 'batch'), 6) * x, X, single=False),
  manual('all_gather', lambda x: lax.all_gather(x, 'batch', axis=1), X),
  manual('all_gather, tiled', lambda x: lax.all_gather(x, 'batch', axis=1, tiled=True), X),
  manual('all_gather_invariant', lambda x: lax.all_gather(x, 'batch', to='invarying'), X),
  manual(
    'all_gather_invariant, tiled',
    lambda x: lax.all_gather(x, 'batch', tiled=True, to='invarying'),
    X,
  ),
  manual('reduce_scatter', lambda x: lax.psum_scatter(x, 'batch'), of(2, 4)),
  manual(
    'reduce_scatter, tiled',
    lambda x: lax.psum_scatter(x, 'batch', scatter_dimension=1, tiled=True),
    X,
  ),
  manual(
    'all_to_all', lambda x: lax.all_to_all(x, 'batch', 1, 0), of(3, 2, 4), single=False, grad=False
  ),
  manual('all_to_all, tiled', lambda x: lax.all_to_all(x, 'batch', 1, 0, tiled=True), X),
  manual('all_to_all of one axis', lambda x: lax.all_to_all(x, 'batch', 1, 1, tiled=True), X),
  manual('ppermute', lambda x: lax.ppermute(x, 'batch', [(0, 1)]), X),
  *[
    case(
      f'{name} in vmap',
      jax.vmap(lambda x, f=f: f(x, 'batch') * 2, axis_name='batch'),
      X,
      grad=name not in ('pmax', 'pmin'),
      single=False,
    )
    for name, f in [('psum', lax.psum), ('pmax', lax.pmax), ('pmin', lax.pmin)]
  ],
  case(
    'pmean in vmap, of several',
    jax.vmap(lambda x, y: lax.pmean((x, y), 'batch'), axis_name='batch'),
    X,
    of(3, 2),
    single=False,
  ),
  case('optimization_barrier', lambda x, y: lax.optimization_barrier((x, y)), X, of(2)),
]


# Calls that carry a derivative or a policy.


@jax.custom_jvp
def tripled(x):
  """tanh with a derivative that nobody would derive."""
  return jnp.tanh(x)


@tripled.defjvp
def _tripled_jvp(primals, tangents):
  (x,), (t,) = primals, tangents
  return jnp.tanh(x), 3 * t * jnp.cos(x)


@jax.custom_jvp
def straight_through(x, y):
  """x * y whose derivative is that of x + y."""
  return x * y


@straight_through.defjvp
def _straight_through_jvp(primals, tangents):
  (x, y), (t, s) = primals, tangents
  return x * y, t + s


@jax.custom_jvp
def blended(x):
  """x whose derivative reads every channel and mixes them."""
  return 2 * x


@blended.defjvp
def _blended_jvp(primals, tangents):
  (x,), (t,) = primals, tangents
  return 2 * x, t * jnp.sum(x, -1, keepdims=True) + jnp.sum(t, -1, keepdims=True) * jnp.tanh(x)


@jax.custom_jvp
def pair(x, n):
  """Several results, one of which has no derivative, and an operand that has none."""
  return x * 2, n + 1, jnp.tanh(x)


@pair.defjvp
def _pair_jvp(primals, tangents):
  (x, n), (t, _) = primals, tangents
  return (x * 2, n + 1, jnp.tanh(x)), (t * 5, np.zeros(n.shape, jax.dtypes.float0), t * x)


@jax.custom_vjp
def doubled(x):
  """sin with a derivative that nobody would derive."""
  return jnp.sin(x)


doubled.defvjp(lambda x: (jnp.sin(x), x), lambda x, ct: (2 * ct * jnp.exp(x),))


@jax.custom_vjp
def shuffled(x):
  """The identity, whose backward mixes channels."""
  return x * 1.5


shuffled.defvjp(
  lambda x: (x * 1.5, x), lambda x, ct: (jnp.roll(ct, 1, -1) + jnp.sum(ct * x, -1, keepdims=True),)
)


@jax.custom_vjp
def clipped(x):
  """The identity, whose cotangent is clipped to norm 1."""
  return x * 1


clipped.defvjp(
  lambda x: (x * 1, None), lambda _, ct: (ct / jnp.maximum(1, jnp.sqrt(jnp.sum(ct * ct))),)
)


@jax.custom_vjp
def selfish(x):
  """A function that its own derivative calls."""
  return jnp.sin(x)


selfish.defvjp(lambda x: (selfish(x), x), lambda x, ct: (ct * selfish(x),))


@jax.custom_vjp
def straight(x, y):
  """Of x rounded and scaled by y, with a derivative as if it were x: x is not read forward."""
  return jnp.round(y) * 2


straight.defvjp(lambda x, y: (jnp.round(y) * 2, (x, y)), lambda xy, ct: (ct * xy[0], ct * xy[1]))


@jax.custom_vjp
def product(x, w):
  """A matrix product whose cotangents are halved."""
  return x @ w


product.defvjp(lambda x, w: (x @ w, (x, w)), lambda xw, ct: (ct @ xw[1].T / 2, xw[0].T @ ct / 2))


def checkpointed(**options):
  def two_layers(x, w):
    y = checkpoint_name(jnp.tanh(x @ w), 'hidden')
    return y @ w.T, jnp.sum(y, 0)

  return jax.checkpoint(two_layers, **options)


@jax.custom_batching.custom_vmap
def batched_by_itself(x):
  return jnp.tanh(x) * 2


@batched_by_itself.def_vmap
def _(size, is_batched, x):
  return batched_by_itself(x), is_batched[0]


def halved(x):
  return lax.custom_linear_solve(lambda y: 2 * y, x, lambda _, y: y / 2, lambda _, y: y / 2)


def diagonal(scale, sides):
  """Solves for two unknowns at once, without a solution of the transposed system."""
  scale = jnp.square(scale) + 1
  return lax.custom_linear_solve(
    lambda xs: [scale * xs[0], 2 * xs[1]],
    [sides, sides + 1],
    lambda _, ys: [ys[0] / scale, ys[1] / 2],
    lambda _, ys: [ys[0] / scale, ys[1] / 2],
  )


def well_conditioned(matrices):
  return matrices + 6 * jnp.eye(matrices.shape[-1])[None]


def conjugate_gradients(matrices, sides):
  """Iterates until all systems are solved, so that all are read."""
  matrices = well_conditioned(matrices @ jnp.swapaxes(matrices, -1, -2))
  product = lambda x: jnp.einsum('bij,bj->bi', matrices, x)
  return jax.scipy.sparse.linalg.cg(product, sides, tol=1e-14)[0]


# Since JAX 0.12 these are calls that carry a derivative; before, operations in a row.
CARRIED = [
  case('searchsorted', lambda x: jnp.searchsorted(np.arange(-2.0, 3.0), x), X, single=False),
  case('searchsorted in a row that is computed', jnp.searchsorted, of(5), X, single=False),
  case('ldexp', lambda x, n: jnp.ldexp(x, n), X, ints(3, 4), single=False),
  case('frexp', lambda x: jnp.frexp(x), X, single=False),
  case('nonzero', lambda x: jnp.nonzero(x > 0, size=3)[0], of(5), single=False),
]

SOLVE = [
  case('custom_linear_solve', halved, X),
  case('custom_linear_solve of two', diagonal, of(3, 4), of(3, 4), single=False),
  case(
    'solve, batched',
    lambda m, b: jnp.linalg.solve(well_conditioned(m), b),
    of(4, 3, 3),
    of(4, 3, 2),
    single=False,
  ),
  case(
    'solve, vectors',
    lambda m, b: jnp.linalg.solve(well_conditioned(m)[0], b),
    of(1, 3, 3),
    of(3),
    single=False,
  ),
  case('cg', conjugate_gradients, of(2, 3, 3), of(2, 3), single=False, rtol=1e-8),
]

CALL = [
  case('custom_vmap_call', batched_by_itself, X, grad=False),
  case('custom_vmap_call in a batch', batched_by_itself, X, named=True, grad=False),
  case('composite', lax.composite(lambda x: jnp.tanh(x) * 2, name='slim.twice'), X, grad=False),
  case('relu', jax.nn.relu, X),
  case('relu6', jax.nn.relu6, X),
  case('silu', jax.nn.silu, X, single=False),
  case('custom_jvp, wrong derivative', tripled, X),
  case('custom_jvp, derivative of a sum', straight_through, X, Y),
  case('custom_jvp, derivative mixes channels', blended, X),
  case('custom_jvp of several', pair, X, ints(3, 4)),
  case('custom_jvp of a constant', lambda: jax.nn.relu(np.float64(2))),
  case('custom_vjp, wrong derivative', doubled, X),
  case('custom_vjp, derivative mixes channels', shuffled, X),
  case('custom_vjp, clipped norm', clipped, X),
  case('custom_vjp, derivative calls itself', selfish, X),
  case('custom_vjp, an operand for its derivative alone', straight, X, Y),
  case('custom_vjp of a product', product, X, of(4, 5)),
  case('remat', checkpointed(), of(3, 4), of(4, 5)),
  case(
    'remat with a policy',
    checkpointed(policy=jax.checkpoint_policies.save_only_these_names('hidden')),
    of(3, 4),
    of(4, 5),
  ),
  case('remat of remat', jax.checkpoint(lambda x: jax.checkpoint(jax.nn.relu)(x) * 2), X),
]


def cumulative(x):
  return lax.scan(lambda carry, row: (carry + row, carry * row), jnp.ones_like(x[0]), x)


def residual(x, w, scale):
  """Stacked layers that share a stream: x + tanh(scale * (x @ w))."""

  def layer(x, slices):
    w, scale = slices
    y = x + jnp.tanh((x @ w) * scale[None]) @ w.T
    return y, jnp.sum(y * scale[0])

  return lax.scan(layer, x, (w, scale))


def exchange(x, y, w):
  """Carried values change places, so a zero spreads from one to the other."""
  return lax.scan(
    lambda carry, _: ((carry[1], carry[0] * 2, carry[2] @ w, carry[3]), None),
    (x, y, x, y),
    length=3,
  )[0]


def shifting(x):
  """Every iteration reads the neighbour: need spreads along the axis."""
  return lax.scan(
    lambda carry, _: (jnp.concatenate([carry[:, 1:], carry[:, :1]], 1), carry[:, 0]), x, length=2
  )


def looped(x, w):
  """Ends by one part of what it carries; another part nobody asks for."""

  def step(carry):
    x, y, unused, n = carry
    return x * 0.5 + y, y * w, unused + x, n + 1

  return lax.while_loop(
    lambda carry: (jnp.max(jnp.abs(carry[0])) > 1) & (carry[3] < 4), step, (x, x * w, x, 0)
  )[:2]


def branched(x, y):
  return lax.cond(
    jnp.sum(x[:, :1]) > 0, lambda x, y: (x, jnp.sin(y)), lambda x, y: (2 * x, x * y), x, y
  )


CONTROL = [
  case(
    'cond by platform',
    lambda x: lax.platform_dependent(x, cpu=lambda x: jnp.sin(x) * 2, default=jnp.cos),
    X,
    single=False,
  ),
  case('scan', cumulative, X, single=False),
  case(
    'scan backwards',
    lambda x: lax.scan(lambda carry, row: (jnp.tanh(carry) + row, carry), x[0], x, reverse=True),
    X,
    single=False,
  ),
  case(
    'scan unrolled',
    lambda x: lax.scan(lambda carry, row: (carry * row, carry), x[0], x, unroll=2),
    X,
    single=False,
  ),
  case('scan over stacked layers', residual, of(2, 4), of(3, 4, 5), of(3, 5)),
  case('scan, carried values exchanged', exchange, X, Y, of(4, 4)),
  case('scan, need spreads', shifting, X, single=False),
  case(
    'scan of no step', lambda x: lax.scan(lambda carry, _: (carry * 2, carry), x, None, length=0), X
  ),
  case(
    'scan of scan',
    lambda x: lax.scan(lambda carry, row: (cumulative(x * row[None])[0] + carry, carry), x[0], x),
    X,
    single=False,
  ),
  case(
    'scan of a custom derivative',
    lambda x: lax.scan(lambda carry, row: (jax.nn.relu(tripled(carry) + row), carry), x[0], x),
    X,
    single=False,
  ),
  case('fori_loop', lambda x: lax.fori_loop(0, 3, lambda i, y: y * x + i, x), X),
  case('scan in remat', jax.checkpoint(residual), of(2, 4), of(3, 4, 5), of(3, 5)),
  case('while, a carried value unused', looped, X, Y, grad=False, single=False),
  case(
    'while, constants of the condition',
    lambda x, w: lax.while_loop(
      lambda y: jnp.sum(jnp.abs(y) * (w != 0)) < jnp.sum(w * w), lambda y: jnp.abs(y) * 2 + 1, x
    ),
    X,
    X,
    grad=False,
    single=False,
  ),
  case(
    'while, each example by itself',
    jax.vmap(lambda x: lax.while_loop(lambda x: jnp.max(jnp.abs(x)) > 1, lambda x: x / 2, x)),
    X,
    grad=False,
  ),
  case('cond', branched, X, Y, single=False),
  case(
    'cond of many',
    lambda n, x, y: lax.switch(
      n, [lambda x, y: x + y, lambda x, y: x * y, lambda x, y: y * 2], x, y
    ),
    at(3),
    X,
    Y,
    single=False,
  ),
  case(
    'cond of a custom derivative',
    lambda n, x: lax.cond(n > 0, jax.nn.relu, tripled, x),
    at(2),
    X,
    single=False,
  ),
]

FAMILIES = dict(
  UNARY=UNARY,
  BINARY=BINARY,
  CHOICE=CHOICE,
  DOT=DOT,
  CONV=CONV,
  REDUCTION=REDUCTION,
  WINDOW=WINDOW,
  MOVEMENT=MOVEMENT,
  PIECES=PIECES,
  INDEXING=INDEXING,
  SCATTER=SCATTER,
  GENERATOR=GENERATOR,
  TRANSFORM=TRANSFORM,
  PLACEMENT=PLACEMENT,
  COLLECTIVE=COLLECTIVE,
  CARRIED=CARRIED,
  SOLVE=SOLVE,
  CALL=CALL,
  CONTROL=CONTROL,
)
CASES = [c for family in FAMILIES.values() for c in family]

# Their constants have zeros, or select a part of the operand, or they carry what nobody asks for:
# less is read, dead channels or not.
CUT_BY_CONSTANTS = {
  'while, a carried value unused',
  'mul by zero',
  'mul by a constant with zeros',
  'concatenate with a constant',
  'slice',
  'slice with strides',
  'gather constant rows',
  'gather constant columns',
  'gather a constant grid',
  'gather, constant and never filled',
  'x[:, constant]',
  'gather, one slice',
  'gather of windows',
  'polynomial',
  'put_along_axis',
  'gather, one slice of two axes',
  'take of constants',
  'dynamic_slice, a start known',
  'dynamic_slice, starts known',
  'iota',
  'uniform noise',
  'dropout',
  'cholesky',
  'inverse',
  'pad ((0, 0, 0), (-1, 2, 0)) with 0',
  'pad ((1, -1, 2), (0, -2, 1)) with 0',
  *(c.name for c in PIECES if c.name.startswith('pad ((0, 0, 0), (0, 0, 0))')),
}
