"""Every rule of the table by brute force, and what the rules are built upon.

Each case lowers to a primitive of the table; `programs.check` cuts random slices out of its
operands and results and compares thin with full evaluation. A primitive without a case fails.
"""

import zlib

from helpers import programs
from helpers.programs import check, program_of, thin
from helpers.rule_cases import (
  CASES,
  CUT_BY_CONSTANTS,
  FAMILIES,
  MAX,
  POOL,
  ZERO_ROWS,
  blended,
  case,
  checkpointed,
  conv,
  of,
  product,
  residual,
  shuffle,
  tripled,
  window,
)
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import jaxprs
from slim_jax.channels import analysis, regions, rule
from slim_jax.channels.rule import RULES, Fact
from slim_jax.jaxprs import primitives as p

pytestmark = pytest.mark.usefixtures('x64')

each = pytest.mark.parametrize('case', CASES, ids=lambda c: c.name.replace(' ', '-'))


def seeded(case, *more):
  return np.random.default_rng([zlib.crc32(case.name.encode()), *more])


# How often each case of a family is compiled: once where cases are many and rules are few; often
# where a derivative is carried, which one trial may miss.
TRIALS = dict(
  UNARY=1, BINARY=1, CHOICE=1, WINDOW=1, MOVEMENT=1, PIECES=1, SCATTER=1, GENERATOR=1, CALL=6
)


@pytest.mark.parametrize(
  'family, case',
  [(n, c) for n, f in FAMILIES.items() for c in f],
  ids=[c.name.replace(' ', '-') for c in CASES],
)
def test_thin_equals_full(family, case):
  check(case, seeded(case), trials=TRIALS.get(family, 2))


@pytest.mark.slow
@each
def test_thin_equals_full_at_length(case):
  check(case, seeded(case, 1), trials=12, analyses=200)


@pytest.mark.parametrize(
  'case',
  [c for name, f in FAMILIES.items() if name not in ('CARRIED', 'SOLVE') for c in f],
  ids=lambda c: c.name.replace(' ', '-'),
)
def test_nothing_dead_adds_nothing(case):
  """With whole operands and results the thin program is the program itself."""
  program = program_of(case)
  supports = [regions.whole(len(o.shape)) for o in case.operands]
  demands = [regions.whole(len(program.avals[i].shape)) for i in program.outputs]
  needed = analysis.analyse(program, list(map(Fact, supports)), demands)
  same = program_of(case, thin(program, supports, demands))

  def steps(equations):
    return [(e.primitive, [jaxprs.short(a) for a in e.out_avals]) for e in equations]

  # Index arithmetic with a known result is not run, nor is an operation without elements.
  ran = [e for e, reads in zip(program.equations, needed.reads, strict=True) if reads is not None]
  if not any(0 in aval.shape for aval in program.avals):
    assert (steps(same.equations) == steps(ran)) == (case.name not in CUT_BY_CONSTANTS)


def test_a_right_hand_side_that_becomes_constant_has_a_derivative():
  """JAX transposes a solution only if all of its right-hand sides have one."""
  (solved,) = (c.f for c in CASES if c.name == 'custom_linear_solve of two')
  x, scale = jnp.arange(12.0).reshape(3, 4) + 1, jnp.array([0.5, 2.0, 3.0, 4.0])

  def f(variables, x):
    first, second = solved(x, x * variables['norm']['scale'][None])
    return first[:, 2:].sum() + second[:, :2].sum()

  variables = {'norm': {'scale': scale}}
  dead = {'norm': {'scale': np.arange(4) < 2}}
  plan = slim_jax.plan(f, variables, x, dead=dead)
  got = jax.jit(jax.value_and_grad(slim_jax.thin(f, plan)))(plan.slice(variables), x)
  want = jax.jit(jax.value_and_grad(f))(slim_jax.mask(variables, dead), x)
  np.testing.assert_allclose(got[0], want[0])
  np.testing.assert_allclose(got[1]['norm']['scale'], want[1]['norm']['scale'][2:])


def test_every_primitive_of_the_table_has_a_case():
  seen = {eqn.primitive for c in CASES for eqn in program_of(c).equations}
  elsewhere = {jaxprs.dim_as_value_p}  # in exports alone: symbolic_test.py
  missing = sorted(str(primitive) for primitive in set(RULES) - seen - elsewhere)
  assert not missing, f'write cases for {", ".join(missing)}'


def test_cases_are_single_equations_with_names_of_their_own():
  assert len({c.name for c in CASES}) == len(CASES)
  several = [c.name for c in CASES if c.single and len(program_of(c).equations) != 1]
  assert not several, f'not one equation: {several}'


def test_a_primitive_has_one_rule():
  with pytest.raises(ValueError, match='mul has a rule already'):
    rule.register([p.mul_p], rule.FULL_WIDTH)


# Forward derivatives of the calls that carry one (`check` takes cotangents back).


@pytest.mark.parametrize(
  'f', [jax.nn.relu, jax.nn.relu6, tripled, blended], ids=['relu', 'relu6', 'wrong', 'mixing']
)
def test_custom_jvp_forwards(f):
  support = regions.normal([None, np.array([True, False, True, True, False])])
  demand = regions.normal(
    [np.array([True, False, True]), np.array([False, True, True, False, True])]
  )
  rng = np.random.default_rng(1)
  inside = programs.mask(support, (3, 5))
  x, t = rng.integers(-2, 3, (3, 5)) * 0.5 * inside, rng.normal(size=(3, 5)) * inside
  program = jaxprs.trace(f, jax.ShapeDtypeStruct((3, 5), np.float64))[0]
  full = jax.jvp(f, (x,), (t,))
  cut = [programs.part(v, support, (3, 5)) for v in (x, t)]
  (value,), (slope,) = jax.jvp(thin(program, [support], [demand]), cut[:1], cut[1:])
  np.testing.assert_array_equal(value, programs.part(np.asarray(full[0]), demand, (3, 5)))
  np.testing.assert_allclose(slope, programs.part(np.asarray(full[1]), demand, (3, 5)), 1e-12)


def test_second_derivatives_keep_the_rule():
  support = regions.normal([np.array([True, False, True, True])])
  program = jaxprs.trace(tripled, jax.ShapeDtypeStruct((4,), np.float64))[0]
  thin_f = thin(program, [support], [regions.whole(1)])
  x = np.array([0.5, 0, -1, 2])

  def curvature(f):
    return jax.grad(lambda x: jnp.sum(jax.grad(lambda x: jnp.sum(f(x)))(x) ** 2))

  full = curvature(tripled)(x)
  kept = np.array([0, 2, 3])
  np.testing.assert_allclose(curvature(lambda x: thin_f(x)[0])(x[kept]), full[kept], 1e-12)
  np.testing.assert_allclose(full, -18 * np.cos(x) * np.sin(x), 1e-12)


def test_relu_keeps_its_slope_at_zero():
  program = jaxprs.trace(jax.nn.relu, jax.ShapeDtypeStruct((3,), np.float64))[0]
  support = regions.normal([np.array([True, False, True])])
  thin_f = thin(program, [support], [regions.whole(1)])
  np.testing.assert_array_equal(jax.grad(lambda x: thin_f(x)[0].sum())(np.zeros(2)), np.zeros(2))


def test_remat_keeps_its_policy():
  f = checkpointed(policy=jax.checkpoint_policies.save_only_these_names('hidden'))
  program = jaxprs.trace(f, *[jax.ShapeDtypeStruct(s, np.float64) for s in ((3, 4), (4, 5))])[0]
  support = regions.normal([None, np.array([True, False, True, True])])
  same = jaxprs.trace(
    thin(program, [support, regions.whole(2)], [regions.whole(2), regions.whole(1)]),
    *[jax.ShapeDtypeStruct(s, np.float64) for s in ((3, 3), (4, 5))],
  )[0]
  (call,) = [e for e in same.equations if e.primitive is p.remat_p]
  assert call.params['policy'] is program.equations[0].params['policy']
  assert [a.shape for a in call.in_avals][-2:] == [(3, 3), (4, 5)]


# What the rules save: the shapes that thin programs compute with.


HALF = np.array([True, False, True, False])


def equations_of(f, shapes, supports, demands=None):
  program = jaxprs.trace(f, *[jax.ShapeDtypeStruct(s, np.float64) for s in shapes])[0]
  demands = demands or [regions.whole(len(program.avals[i].shape)) for i in program.outputs]
  structs = [
    jax.ShapeDtypeStruct(regions.shape_of(b, s), np.float64)
    for b, s in zip(supports, shapes, strict=True)
  ]
  return jaxprs.trace(thin(program, supports, demands), *structs)[0].equations


def last_axis(rank, axis=HALF):
  return regions.normal([None] * (rank - 1) + [axis])


THIN_ARITHMETIC = [
  (
    lambda x, w: x @ w,
    [(3, 4), (4, 5)],
    [last_axis(2), regions.whole(2)],
    p.dot_general_p,
    [(3, 2), (2, 5)],
  ),
  (
    lambda x, w: x @ w,
    [(3, 4), (4, 5)],
    [last_axis(2), regions.normal([np.array([False, True, True, True]), None])],
    p.dot_general_p,
    [(3, 1), (1, 5)],
  ),
  (
    conv(),
    [(1, 3, 3, 4), (2, 2, 4, 5)],
    [last_axis(4), regions.whole(4)],
    p.conv_general_dilated_p,
    [(1, 3, 3, 2), (2, 2, 2, 5)],
  ),
  (
    conv(groups=4),
    [(1, 3, 3, 4), (2, 2, 1, 8)],
    [last_axis(4), regions.whole(4)],
    p.conv_general_dilated_p,
    [(1, 3, 3, 2), (2, 2, 1, 4)],
  ),
  (
    conv(groups=2),
    [(1, 3, 3, 4), (2, 2, 2, 4)],
    [last_axis(4), regions.whole(4)],
    p.conv_general_dilated_p,
    [(1, 3, 3, 2), (2, 2, 1, 4)],
  ),
  (lambda x: jnp.sum(x * 2, -1), [(3, 4)], [last_axis(2)], p.reduce_sum_p, [(3, 2)]),
  (lambda x: jnp.max(x * 2, 0), [(3, 4)], [last_axis(2)], p.reduce_max_p, [(3, 2)]),
  (lambda x: jax.nn.relu(x), [(3, 4)], [last_axis(2)], p.max_p, [(3, 2)]),
  (window(MAX, *POOL), [(1, 4, 4, 4)], [last_axis(4)], p.reduce_window_max_p, [(1, 4, 4, 2)]),
  (lambda x: lax.cumsum(x, 0), [(3, 4)], [last_axis(2)], p.cumsum_p, [(3, 2)]),
  (lambda x: jnp.minimum(x, 6.0), [(3, 4)], [last_axis(2)], p.min_p, [(3, 2)]),
  (lambda x: x / 3, [(3, 4)], [last_axis(2)], p.div_p, [(3, 2)]),
  (lambda x: x**3, [(3, 4)], [last_axis(2)], p.integer_pow_p, [(3, 2)]),
  (
    lambda x: lax.pad(x, np.float64(0), ((1, 1, 0), (0, 0, 0))),
    [(3, 4)],
    [last_axis(2)],
    p.pad_p,
    [(3, 2)],
  ),
  (
    lambda x: (x * 2).reshape(1, 3, 4).transpose(2, 1, 0),
    [(3, 4)],
    [last_axis(2)],
    p.transpose_p,
    [(1, 3, 2)],
  ),
  (
    lambda x, i: jnp.take(x, i.astype(int), 0, mode='clip'),
    [(3, 4), (5,)],
    [last_axis(2), regions.whole(1)],
    p.gather_p,
    [(3, 2)],
  ),
  (lambda x: shuffle(1, (2, 2))(x * 2) * 3, [(3, 4)], [last_axis(2)], p.mul_p, [(3, 2)]),
  (product, [(3, 4), (4, 5)], [last_axis(2), regions.whole(2)], p.dot_general_p, [(3, 2), (2, 5)]),
  (
    lambda x, w: jnp.sum(jnp.stack([x, 2 * x]), 0) @ w,
    [(3, 4), (4, 5)],
    [last_axis(2), regions.whole(2)],
    p.dot_general_p,
    [(3, 2), (2, 5)],
  ),
  (
    lambda x, w: jnp.tile(jnp.fft.fft(x, axis=0).real, (2, 1)) @ w,
    [(3, 4), (4, 5)],
    [last_axis(2), regions.whole(2)],
    p.dot_general_p,
    [(6, 2), (2, 5)],
  ),
  (
    lambda x, w: residual(x, w, jnp.ones((2, 5))),
    [(3, 4), (2, 4, 5)],
    [regions.whole(2), last_axis(3, np.arange(5) < 2)],
    p.dot_general_p,
    [(3, 4), (4, 2)],
  ),
  (
    lambda x: lax.while_loop(lambda y: jnp.sum(y) < 3, lambda y: y * 2, x),
    [(3, 4)],
    [last_axis(2)],
    p.mul_p,
    [(3, 2)],
  ),
  (
    lambda x: lax.cond(jnp.sum(x) > 0, jnp.sin, lambda y: 2 * y, x),
    [(3, 4)],
    [last_axis(2)],
    p.sin_p,
    [(3, 2)],
  ),
]


@pytest.mark.parametrize(
  'f, shapes, supports, primitive, operands',
  THIN_ARITHMETIC,
  ids=[str(row[3]) for row in THIN_ARITHMETIC],
)
def test_arithmetic_is_thin(f, shapes, supports, primitive, operands):
  equations = equations_of(f, shapes, supports)
  for eqn in [*equations, *(e for q in equations for b in jaxprs.bodies(q) for e in b.equations)]:
    if eqn.primitive is primitive:
      assert [a.shape for a in eqn.in_avals if a.shape][: len(operands)] == operands
      return
  raise AssertionError(f'no {primitive} among {[str(e) for e in equations]}')


def test_dead_results_are_not_computed():
  assert not equations_of(
    lambda x, w: jnp.tanh(x) @ w, [(3, 4), (4, 5)], [regions.whole(2)] * 2, [regions.nothing(2)]
  )


# Primitives without a rule run whole, exactly, and are named.


def on_host(x):
  return jax.pure_callback(np.sin, x, x)


UNKNOWN = [case('pure_callback', on_host, of(3, 4), grad=False)]


@pytest.mark.parametrize('case', UNKNOWN, ids=lambda c: c.name)
def test_primitives_without_a_rule(case):
  check(case, seeded(case), trials=2)
  program = program_of(case)
  needed = analysis.analyse(
    program,
    [Fact(regions.whole(len(o.shape))) for o in case.operands],
    [regions.whole(len(program.avals[i].shape)) for i in program.outputs],
  )
  named = analysis.without_rule(program, needed)
  assert case.name in {text.split('(')[0] for text in named}
  assert not {text.split('(')[0] for text in named} & {str(primitive) for primitive in RULES}


def test_an_unknown_primitive_stops_zeros_and_nothing_else():
  def f(x, w):
    return on_host(x * 2) @ w

  shapes, supports = [(3, 4), (4, 5)], [last_axis(2), regions.whole(2)]
  dots = [e for e in equations_of(f, shapes, supports) if e.primitive is p.dot_general_p]
  products = [e for e in equations_of(f, shapes, supports) if e.primitive is p.mul_p]
  assert [a.shape for a in dots[0].in_avals] == [(3, 4), (4, 5)]
  assert products[0].out_avals[0].shape == (3, 2)


# The walk alone, with a table of two toy rules.


def test_the_walk_with_a_toy_table():
  """`sin` keeps zeros and indices, `add` runs at full width: the passes with just that."""
  asked = []

  def support(ctx):
    asked.append(('support', ctx.supports[0]))
    return ctx.supports

  def reads(ctx):
    asked.append(('reads', ctx.live[0]))
    return ctx.live

  def evaluate(ctx, x):
    asked.append(('evaluate', x.shape))
    return [jnp.sin(x)]

  walk = rule.Walk({p.sin_p: rule.Rule(support, reads, evaluate)})
  program = jaxprs.trace(
    lambda x: (jnp.sin(x), jnp.sin(x) + 1.0, jnp.cos(x)), jax.ShapeDtypeStruct((3, 4), np.float64)
  )[0]
  kept, wanted = last_axis(2), last_axis(2, np.array([True, True, False, False]))
  facts = analysis.forward(program, [Fact(kept)], walk=walk)
  first, second, third = program.outputs
  assert regions.same(facts[first].support, kept)
  assert facts[second].support.is_whole and facts[third].support.is_whole

  # Need: of the first sine only what is wanted and not zero; the rest is not run.
  demands = [wanted, regions.nothing(2), regions.nothing(2)]
  needed = analysis.backward(program, facts, demands, walk=walk)
  only = last_axis(2, HALF & np.array([True, True, False, False]))
  assert regions.same(needed.live[first], only)
  assert regions.same(needed.live[program.inputs[0]], only)
  assert [reads is None for reads in needed.reads] == [False, True, True, True]
  assert analysis.without_rule(program, needed) == []
  x = np.arange(6.0).reshape(3, 2) + 1
  result, *rest = analysis.run(program, needed, [x], [kept], demands)
  np.testing.assert_array_equal(result, np.stack([np.sin(x[:, 0]), np.zeros(3)], 1))
  assert rest == [None, None]
  assert [what for what, _ in asked] == ['support', 'support', 'reads', 'evaluate']
  assert regions.same(asked[2][1], only)
  assert asked[3][1] == (3, 1)

  # A primitive without a rule reads everything, zeros put back, and is named.
  demands = [regions.nothing(2), wanted, regions.nothing(2)]
  needed = analysis.backward(program, facts, demands, walk=walk)
  assert [text.split('(')[0] for text in analysis.without_rule(program, needed)] == ['add']
  assert regions.same(needed.live[program.inputs[0]], kept)
  _, result, _ = analysis.run(program, needed, [x], [kept], demands)
  np.testing.assert_array_equal(result, np.stack([np.sin(x[:, 0]), np.zeros(3)], 1) + 1)


def test_a_value_with_two_readers_is_held_for_both():
  program = jaxprs.trace(
    lambda x: (jnp.sum(jnp.tanh(x)[:, :1]), jnp.tanh(x)[:, 2]),
    jax.ShapeDtypeStruct((3, 4), np.float64),
  )[0]
  demands = [regions.whole(0), regions.whole(1)]
  needed = analysis.analyse(program, [Fact(regions.whole(2))], demands)
  assert regions.same(
    needed.live[program.inputs[0]], regions.normal([None, np.array([True, False, True, False])])
  )


def test_inputs_may_be_outputs_and_outputs_may_repeat():
  program = jaxprs.trace(lambda x, y: (x, y, x), *[jax.ShapeDtypeStruct((4,), np.float64)] * 2)[0]
  demands = [regions.whole(1), regions.nothing(1), last_axis(1, ~HALF)]
  needed = analysis.analyse(program, [Fact(last_axis(1)), Fact(regions.whole(1))], demands)
  x, y, again = analysis.run(
    program, needed, [np.array([1.0, 2])] * 2, [last_axis(1), regions.whole(1)], demands
  )
  np.testing.assert_array_equal(x, [1, 0, 2, 0])
  assert y is None
  np.testing.assert_array_equal(again, [0, 0])


# Regions.


def test_regions_have_one_normal_form():
  whole, none = np.ones(3, bool), np.zeros(3, bool)
  some = np.array([True, False, True])
  assert regions.normal([whole, None]) == regions.whole(2)
  assert regions.normal([some, none]) == regions.nothing(2)
  assert regions.normal([]) == regions.whole(0)
  assert regions.normal([np.zeros(0, bool)]) == regions.whole(1)
  assert regions.normal([some]).axes[0] is some
  assert regions.whole(2).is_whole and not regions.nothing(2).is_whole
  assert not regions.normal([some]).is_whole


def test_region_algebra_is_the_algebra_of_sets():
  rng = np.random.default_rng(0)
  for _ in range(200):
    shape = tuple(rng.integers(1, 4, rng.integers(0, 4)))
    a, b = programs.draw_region(rng, shape), programs.draw_region(rng, shape)
    x, y = programs.mask(a, shape), programs.mask(b, shape)
    np.testing.assert_array_equal(programs.mask(regions.intersect(a, b), shape), x & y)
    union = programs.mask(regions.union(a, b), shape)
    assert (union >= (x | y)).all()
    assert regions.contains(a, b) == (x >= y).all()
    assert regions.same(a, b) == (x == y).all()
    assert np.prod(regions.shape_of(a, shape)) == x.sum() or (a.empty and not shape)
    # The smallest region: no smaller one holds both.
    assert regions.same(regions.support_of(x | y), regions.union(a, b))


INDEX_SETS = {
  'whole': [1, 1, 1, 1, 1, 1, 1],
  'none': [0, 0, 0, 0, 0, 0, 0],
  'front': [1, 1, 1, 0, 0, 0, 0],
  'back': [0, 0, 0, 0, 1, 1, 1],
  'one': [0, 0, 1, 0, 0, 0, 0],
  'strided': [0, 1, 0, 1, 0, 1, 0],
  'irregular': [1, 0, 1, 1, 0, 0, 1],
}


@pytest.mark.parametrize('where', ['host', 'device', 'traced'])
@pytest.mark.parametrize('want', [name for name in INDEX_SETS if name != 'none'])
@pytest.mark.parametrize('have', list(INDEX_SETS))
def test_take(have, want, where):
  """Held indices are read, all others are zero."""
  full = np.arange(1.0, 43).reshape(2, 7, 3)
  held, wanted = (
    regions.normal([None, np.array(INDEX_SETS[name], bool), None]) for name in (have, want)
  )
  array = programs.part(full, held, full.shape)
  expected = programs.part(full * programs.mask(held, full.shape), wanted, full.shape)

  def taken(array):
    return regions.take(array, held, wanted, full.shape)

  if where == 'traced':
    result = jax.jit(taken)(array)
    gradient = jax.grad(lambda x: jnp.sum(taken(x) * expected))(jnp.asarray(array))
    weights = np.zeros_like(full)
    weights[programs.mask(wanted, full.shape)] = expected.ravel()
    np.testing.assert_array_equal(gradient, programs.part(weights, held, full.shape))
  else:
    result = taken(array if where == 'host' else jnp.asarray(array))
    assert isinstance(result, np.ndarray) == (where == 'host' and have != 'none')
  assert result.dtype == full.dtype
  np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize('reverse', [False, True])
def test_one_live_index_among_windows(reverse):
  """XLA folds windows that slide over a padded axis of size 1 to a wrong constant."""
  program = jaxprs.trace(
    lambda x: lax.cumsum(x, 1, reverse=reverse), jax.ShapeDtypeStruct((2, 3, 4), np.float64)
  )[0]
  support = regions.normal([None, np.array([False, True, False]), None])
  thin_f = jax.jit(thin(program, [support], [regions.whole(3)]))
  column = [1, 1, 0] if reverse else [0, 1, 1]
  np.testing.assert_array_equal(
    thin_f(np.ones((2, 1, 4)))[0], np.broadcast_to(np.reshape(column, (1, 3, 1)), (2, 3, 4))
  )

  # Backwards, where the slice to one index is what pads.
  back = jax.jit(jax.grad(lambda x: jnp.sum(thin(program, [regions.whole(3)], [support])(x)[0])))
  np.testing.assert_array_equal(back(np.ones((2, 3, 4)))[0, :, 0], column[::-1])


def test_take_of_several_axes_of_ints():
  full = np.arange(1, 36, dtype=np.int32).reshape(5, 7)
  rng = np.random.default_rng(0)
  for _ in range(20):
    have, want = programs.draw_region(rng, full.shape), programs.draw_region(rng, full.shape)
    if not want.empty:
      result = regions.take(programs.part(full, have, full.shape), have, want, full.shape)
      assert result.dtype == np.int32
      np.testing.assert_array_equal(
        result, programs.part(full * programs.mask(have, full.shape), want, full.shape)
      )


def test_take_of_everything_is_free():
  x = np.ones((2, 3))
  assert regions.take(x, regions.whole(2), regions.whole(2), x.shape) is x
  some = regions.normal([None, np.array([True, False, True])])
  again = regions.normal([None, np.array([True, False, True])])
  assert regions.take(x[:, :2], some, again, x.shape).shape == (2, 2)


@pytest.mark.parametrize(
  'want, primitives',
  [
    ([1, 1, 1, 0, 0, 0, 0], {'slice'}),
    ([0, 1, 0, 1, 0, 1, 0], {'slice'}),
    ([1, 0, 1, 1, 0, 0, 1], {'gather'}),
  ],
  ids=['contiguous', 'strided', 'irregular'],
)
def test_a_slice_where_that_will_do(want, primitives):
  region = regions.normal([np.array(want, bool)])

  def names(f, size):
    program = jaxprs.trace(f, jax.ShapeDtypeStruct((size,), float))[0]
    return {
      str(e.primitive) for e in program.equations if e.primitive in (p.slice_p, p.gather_p, p.pad_p)
    }

  assert names(lambda x: regions.take(x, regions.whole(1), region, (7,)), 7) == primitives
  back = {'pad'} if primitives == {'slice'} else {'gather'}
  assert names(lambda x: regions.take(x, region, regions.whole(1), (7,)), sum(want)) == back


def test_support_of_constants():
  assert regions.support_of(np.zeros((2, 3))).empty
  rows, columns = np.array([False, True, True]), np.array([True, False, True, False])
  assert regions.same(regions.support_of(ZERO_ROWS), regions.normal([rows, columns]))
  assert regions.support_of(np.array([np.nan, 1])).is_whole
  assert regions.support_of(np.float64(0)).empty and regions.support_of(np.float64(1)).is_whole
