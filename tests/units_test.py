"""Units: what goes together in networks of every kind, and gates for it."""

import collections

from helpers import laws, unit_functions, unit_laws, unit_networks
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slim_jax
from slim_jax.structure import terms
from slim_jax.structure.unit import UnitsError

each = pytest.mark.parametrize(
  'case', [pytest.param(case, id=case.name) for case in unit_networks.CASES]
)


def found(case, dtype=jnp.float32):
  """The case as a model, and its units."""
  model = unit_networks.build(case, dtype)
  return model, slim_jax.units(model.infer, model.variables, model.x)


@each
def test_kinds_and_sizes(case):
  _, units = found(case)
  sizes = collections.defaultdict(list)
  for name, unit in units.items():
    assert name.endswith(unit.kind) or name.rsplit('_', 1)[0].endswith(unit.kind)
    sizes[unit.kind].append(unit.size)
  assert {kind: sorted(n) for kind, n in sizes.items()} == {
    kind: sorted(n) for kind, n in case.kinds.items()
  }


@each
def test_one_unit_takes_what_it_says(case):
  unit_laws.check_costs(*found(case))


@each
def test_gates_fold_and_cut_exactly(case, x64):
  row = unit_laws.check_inference(*found(case, jnp.float64))
  assert row.full_width == 0
  assert row.params < 0.6
  assert row.macs < 0.6


@pytest.mark.parametrize('case', unit_functions.CASES, ids=lambda case: case.f.__name__)
def test_functions_in_plain_jax(case, x64):
  model = unit_functions.build(case, jnp.float64)
  units = slim_jax.units(model.infer, model.variables, model.x)
  sizes = collections.defaultdict(list)
  for unit in units.values():
    sizes[unit.kind].append(unit.size)
  assert {kind: sorted(n) for kind, n in sizes.items()} == case.kinds
  unit_laws.check_costs(model, units)
  if units:
    unit_laws.check_inference(model, units)


@pytest.mark.parametrize(
  'case',
  [
    pytest.param(
      case,
      id=case.name,
      marks=[] if case.name in ('mlp', 'mixture', 'recurrent') else [pytest.mark.slow],
    )
    for case in unit_networks.CASES
  ],
)
def test_gates_train_exactly(case, x64):
  unit_laws.check_training(*found(case, jnp.float64))


def perceptron():
  """A perceptron with 6 and 4 neurons, written without a library."""
  rng = np.random.default_rng(0)
  shapes = {'first': (3, 6), 'second': (6, 4), 'third': (4, 2)}
  variables = {name: jnp.asarray(rng.normal(size=s), jnp.float32) for name, s in shapes.items()}

  def apply(v, x):
    return jnp.tanh(jnp.tanh(x @ v['first']) @ v['second']) @ v['third']

  x = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
  return apply, variables, x


def test_where_takes_kinds_and_patterns():
  apply, variables, x = perceptron()
  assert len(slim_jax.units(apply, variables, x, where='neurons')) == 2
  names = list(slim_jax.units(apply, variables, x))
  assert list(slim_jax.units(apply, variables, x, where=[names[1]])) == names[1:]
  with pytest.raises(UnitsError, match="'headz'.*neurons"):
    slim_jax.units(apply, variables, x, where='headz')


def test_the_table_says_what_goes_and_why_the_rest_stays():
  apply, variables, x = perceptron()
  text = str(slim_jax.units(apply, variables, x))
  assert 'first[1] 6' in text and 'second[0] 6*' in text
  assert 'first: axis 0 comes from the data' in text
  assert 'third: axis 1 reaches the output' in text


def test_where_nothing_can_go_there_is_a_reason():
  units = slim_jax.units(
    lambda v, x: jnp.sort(x @ v['w']), {'w': jnp.ones((3, 4))}, jnp.ones((2, 3))
  )
  assert not units
  assert 'comes from the data' in units.whole['w',]


def test_gates_train_with_the_penalties_of_scales():
  """Gates of neurons that nobody needs are driven to exactly zero; then they are selected."""
  apply, variables, x = perceptron()
  variables = variables | {'third': variables['third'].at[:2].set(0)}
  target = apply(variables, x)
  units = slim_jax.units(apply, variables, x)
  gated, gates = slim_jax.gate(apply, variables, units)
  both = variables, gates
  are_gates = jax.tree.map(lambda _: False, variables), jax.tree.map(lambda _: True, gates)
  tx = optax.chain(
    optax.masked(optax.set_to_zero(), (True, False)),  # only gates are trained here
    optax.sgd(0.05),
    slim_jax.soft_threshold(0.05, 0.05, mask=are_gates),
  )

  @jax.jit
  def step(both, state):
    grads = jax.grad(lambda both: jnp.mean(jnp.square(gated(both, x) - target)))(both)
    updates, state = tx.update(grads, state, both)
    return optax.apply_updates(both, updates), state

  state = tx.init(both)
  for _ in range(500):
    both, state = step(both, state)
  dead = slim_jax.select_global(both, threshold=0.0, scales=are_gates)
  of_second = next(dead[1][name] for name, unit in units.items() if unit.size == 4)
  assert of_second[:2].all() and not of_second[2:].any()
  plan = slim_jax.plan(gated, both, x, dead=dead)
  plan = slim_jax.without_gates(plan, dead[1], units)
  thin = slim_jax.thin(apply, plan)(plan.slice(slim_jax.fold(*both, units)), x)
  assert laws.distance(thin, gated(both, x)) < 1e-5


def test_norms_rank_units_that_weigh_less_first():
  apply, variables, x = perceptron()
  variables['second'] = variables['second'].at[:, 1].multiply(0.01)
  variables['third'] = variables['third'].at[2].multiply(0.01)
  units = slim_jax.units(apply, variables, x)
  (name,) = (name for name, unit in units.items() if unit.size == 4)
  smallest = {
    of: int(np.argmin(slim_jax.scores.unit_norm(variables, units, of=of)[name]))
    for of in ('makers', 'readers')
  }
  assert smallest == {'makers': 1, 'readers': 2}
  both = slim_jax.scores.unit_norm(variables, units, ord=1)[name]
  weights = np.concatenate([variables['second'], variables['third'].T])
  np.testing.assert_allclose(both, np.abs(weights).mean(0), rtol=1e-6)


def test_budgets_count_units_once():
  apply, variables, x = perceptron()
  units = slim_jax.units(apply, variables, x)
  gated, gates = slim_jax.gate(apply, variables, units)
  both, scores = (variables, gates), slim_jax.scores.random(gates, jax.random.key(0), scales=True)
  dead = slim_jax.select_budget(
    gated, both, x, target='macs:0.5', scales=(False, True), scores=(None, scores)
  )
  thin = slim_jax.thin(gated, plan := slim_jax.plan(gated, both, x, dead=dead))
  assert (
    slim_jax.count(thin, plan.slice(both), x).macs <= 0.5 * slim_jax.count(apply, variables, x).macs
  )


def test_misuse_of_gates_is_named():
  apply, variables, x = perceptron()
  units = slim_jax.units(apply, variables, x)
  _, gates = slim_jax.gate(apply, variables, units)
  with pytest.raises(UnitsError, match='no unit .other.'):
    slim_jax.fold(variables, gates | {'other': jnp.ones(3)}, units)
  with pytest.raises(UnitsError, match='not one of'):
    plan = slim_jax.plan(apply, variables, x, dead=dict.fromkeys(variables))
    slim_jax.without_gates(plan, {}, units)
  with pytest.raises(UnitsError, match='must have shape'):
    slim_jax.fold(variables, {name: jnp.ones(3) for name in gates}, units)
  with pytest.raises(UnitsError, match='not those'):
    slim_jax.gate(apply, variables | {'second': jnp.ones((6, 5))}, units)


def test_reasons_say_what_keeps_an_axis_whole():
  reasons = {}
  for case in unit_functions.CASES:
    model = unit_functions.build(case, jnp.float32)
    whole = slim_jax.units(model.infer, model.variables, model.x).whole
    reasons |= {(case.f.__name__, *path): why for path, why in whole.items()}
  assert reasons['experts', 'router'] == 'axis 1 is compared as a whole'
  assert 'tied to itself in two ways' in reasons['multiplied', 'out']
  assert reasons['latents', 'latents'] == 'axis 0 is needed as a whole'


def test_terms_agree_on_parts():
  """[12] as 3 * 4 and as 6 + 6: the sum cuts the major part only where it divides."""
  one, other = terms.Term(12), terms.Term(12)
  three, four = terms.split(one, 4)
  first, _ = terms.cut(other, 4)
  terms.unify(one, other)
  assert terms.find(first) is terms.find(four)
  assert [terms.find(part).size for part in terms.parts(one)] == [4, 8]
  members = terms.Members()
  np.testing.assert_array_equal(members.of(one, terms.find(four)), np.tile(np.arange(4), 3))
  with pytest.raises(terms.SizesError):
    terms.segment(one, 0, 6)
