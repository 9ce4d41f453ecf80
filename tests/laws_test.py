"""Every architecture of the zoo is held to every law."""

import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import laws
import slim_jax
from slim_jax import models, tree
import zoo

each = pytest.mark.parametrize('case', zoo.CASES, ids=lambda case: case.name)


@each
@pytest.mark.parametrize('fraction', [0.3, 0.7])
def test_thin_equals_masked_in_double_precision(case, fraction, x64):
  model = zoo.build(case, jnp.float64)
  plan = laws.check(model, laws.random_dead(model.variables, fraction, seed=3), 1e-10)
  assert not plan.unknown
  assert sum(laws.widths(plan, model.variables)) < 0.85 * sum(
      leaf.size for leaf, s in zip(jax.tree.leaves(model.variables), jax.tree.leaves(
          slim_jax.batch_norm_scales(model.variables)), strict=True) if s)


@each
def test_thin_equals_masked_in_single_precision(case):
  model = zoo.build(case, jnp.float32)
  laws.check(model, laws.random_dead(model.variables, 0.5), 1e-5)


@each
def test_nothing_dead_is_the_identity(case):
  laws.check_identity(zoo.build(case, jnp.float32))


@each
def test_dead_channels_leave_their_producers_and_readers(case):
  """What goes is what surgery would remove: parameters and MACs shrink by more than the widths."""
  model = zoo.build(case, jnp.float32)
  dead = slim_jax.select_global(model.variables, fraction=0.5)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  full = slim_jax.count(model.infer, model.variables, model.x)
  thin = slim_jax.count(slim_jax.thin(model.infer, plan), plan.slice(model.variables), model.x)
  assert thin.params < 0.75 * full.params
  assert thin.macs < 0.75 * full.macs
  assert thin.params == sum(
      cut.live.empty or int(np.prod(cut.thin_shape)) for path, cut in plan['params'].cuts.items()
      if not cut.live.empty)


@each
def test_plans_compose_over_passes(case, x64):
  """A second pass planned on the thin function is the plan of both passes on the full one."""
  model = zoo.build(case, jnp.float64)
  dead = laws.random_dead(model.variables, 0.3, seed=1)
  first = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  thin_variables, thin_infer = first.slice(model.variables), slim_jax.thin(model.infer, first)
  more = laws.random_dead(thin_variables, 0.3, seed=2)
  second = slim_jax.plan(thin_infer, thin_variables, model.x, dead=more)
  both = slim_jax.plan(model.infer, model.variables, model.x, dead=first.lift(more))
  chained = first.then(second)
  again = first.then(both.relative_to(first))
  for path, cut in both.cuts.items():
    for a, b, c in zip(cut.indices, chained.cuts[path].indices, again.cuts[path].indices):
      np.testing.assert_array_equal(a, c)
      assert set(a) <= set(b), path
  got = slim_jax.thin(model.infer, both)(both.slice(model.variables), model.x)
  want = model.infer(slim_jax.mask(model.variables, first.lift(more)), model.x)
  assert laws.distance(got, want) < 1e-10
  got = slim_jax.thin(thin_infer, second)(second.slice(thin_variables), model.x)
  assert laws.distance(got, want) < 1e-10


@each
def test_sliced_optimizer_state_is_that_of_the_sliced_parameters(case):
  model = zoo.build(case, jnp.float32)
  params = model.variables['params']
  plan = slim_jax.plan(model.infer, model.variables, model.x,
                       dead=laws.random_dead(model.variables, 0.5))['params']
  for tx in (optax.sgd(0.1, momentum=0.9, nesterov=True), optax.adamw(1e-3),
             optax.chain(optax.add_decayed_weights(1e-4), slim_jax.add_l1(
                 lambda step: 1e-4, mask=lambda p: tree.map_with_path(
                     lambda path, _: path[-1] == 'scale', p)), optax.sgd(0.1, momentum=0.9))):
    _, state = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    got, want = plan.slice_opt_state(tx, state, params), tx.init(plan.slice(params))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


@each
def test_plan_survives_the_disk(case):
  model = zoo.build(case, jnp.float32)
  plan = slim_jax.plan(model.infer, model.variables, model.x,
                       dead=laws.random_dead(model.variables, 0.6))
  with tempfile.NamedTemporaryFile(suffix='.plan') as file:
    plan.save(file.name)
    loaded = slim_jax.Plan.load(file.name)
  assert str(loaded) == str(plan)
  sliced, again = plan.slice(model.variables), loaded.slice(model.variables)
  jax.tree.map(np.testing.assert_array_equal, sliced, again)
  jax.tree.map(np.testing.assert_array_equal, loaded.expand(again), plan.expand(sliced))


@each
def test_expanded_thin_variables_are_the_masked_network(case, x64):
  model = zoo.build(case, jnp.float64)
  dead = laws.random_dead(model.variables, 0.5)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  expanded = plan.expand(plan.slice(model.variables))
  assert laws.distance(model.infer(expanded, model.x),
                       model.infer(slim_jax.mask(model.variables, dead), model.x)) < 1e-10


def test_training_results_demanded_in_full(x64):
  """Without `outs` state comes back full size, right at the live channels."""
  model = zoo.build(zoo.CASES[3], jnp.float64)
  dead = laws.random_dead(model.variables, 0.5)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  key = jax.random.key(0)
  _, state = slim_jax.thin(model.train, plan)(plan.slice(model.variables), model.x, key)
  _, want = model.train(slim_jax.mask(model.variables, dead), model.x, key)
  stats = plan['batch_stats']
  assert laws.distance(stats.slice(state['batch_stats']), stats.slice(want['batch_stats'])) < 1e-10


def test_planning_with_the_training_function():
  """State declared with `outs` follows the scales: the plan is that of inference."""
  for case in zoo.CASES:
    model = zoo.build(case, jnp.float32)
    dead = laws.random_dead(model.variables, 0.5)
    plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
    trained = slim_jax.plan(lambda v, x: model.train(v, x, jax.random.key(0)), model.variables,
                            model.x, dead=dead, outs=laws.FOLLOW)
    assert str(plan) == str(trained)


def test_works_under_the_transformations():
  model = zoo.build(zoo.CASES[2], jnp.float32)
  dead = laws.random_dead(model.variables, 0.5)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  v, f, x = plan.slice(model.variables), slim_jax.thin(model.infer, plan), model.x
  want = f(v, x)
  assert jax.eval_shape(f, v, x).shape == want.shape
  xs = jnp.stack([x, 2 * x])
  per_example = jax.vmap(f, (None, 0))(v, xs)
  assert laws.distance(per_example, jnp.stack([f(v, xs[0]), f(v, xs[1])])) < 1e-5
  assert laws.distance(jax.pmap(f, in_axes=(None, 0), devices=jax.devices()[:2])(v, xs), per_example) < 1e-5
  assert laws.distance(jax.checkpoint(f)(v, x), want) < 1e-6
  exported = jax.export.deserialize(jax.export.export(jax.jit(f))(v, x).serialize())
  assert laws.distance(exported.call(v, x), want) < 1e-5
  batch = jnp.concatenate([x, x, x])  # another batch size than the plan's
  assert laws.distance(f(v, batch)[:2], want) < 1e-5
  bfloat16 = jax.tree.map(lambda a: a.astype(jnp.bfloat16), v)
  assert laws.distance(f(bfloat16, x.astype(jnp.bfloat16)).astype(jnp.float32), want) < 0.1


def test_planning_needs_shapes_alone():
  model = zoo.build(zoo.CASES[0], jnp.float32)
  dead = laws.random_dead(model.variables, 0.5)
  shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), model.variables)
  plan = slim_jax.plan(model.infer, shapes, jax.ShapeDtypeStruct((7, 32, 32, 3), jnp.float32),
                       dead=dead)
  assert str(plan) == str(slim_jax.plan(model.infer, model.variables, model.x, dead=dead))
  sliced = plan.slice(shapes)
  assert jax.tree.map(lambda a: a.shape, sliced) == jax.tree.map(
      lambda a: a.shape, plan.slice(model.variables))


def test_a_branch_that_dies_is_gone(x64):
  """Every channel of one residual branch dead: the stream goes on, the branch costs nothing."""
  model = zoo.build(zoo.CASES[2], jnp.float64)
  dead = laws.random_dead(model.variables, 0.2)
  dead['params']['BatchNorm_4']['scale'][:] = True
  plan = laws.check(model, dead, 1e-10)
  assert plan.cuts[('params', 'Conv_6', 'kernel')].live.empty
  assert plan.cuts[('params', 'BatchNorm_4', 'scale')].thin_shape == (0,)


def test_a_network_cut_through_is_an_error():
  model = zoo.build(zoo.CASES[0], jnp.float32)
  dead = laws.random_dead(model.variables, 0.2)
  dead['params']['BatchNorm_4']['scale'][:] = True
  with pytest.raises(ValueError, match='params/BatchNorm_4/scale'):
    slim_jax.plan(model.infer, model.variables, model.x, dead=dead)


def test_wrong_trees_are_named():
  model = zoo.build(zoo.CASES[1], jnp.float32)
  dead = laws.random_dead(model.variables, 0.5)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  with pytest.raises(ValueError, match='missing: batch_stats'):
    plan.slice({'params': model.variables['params']})
  thin_variables = plan.slice(model.variables)
  with pytest.raises(ValueError, match=r'has shape \(\d+, \d+\), the plan expects \(25, 24\)'):
    plan.slice(thin_variables)
  with pytest.raises(ValueError, match='Slice the variables with plan.slice'):
    slim_jax.thin(model.infer, plan)(model.variables, model.x)
  with pytest.raises(ValueError, match=r'must be bool\[24\]'):
    bad = jax.tree.map(lambda d: d[:5], dead)
    slim_jax.plan(model.infer, model.variables, model.x, dead=bad)
  with pytest.raises(KeyError, match="no 'nothing'"):
    plan['nothing']


def test_a_damaged_plan_file_is_an_error(tmp_path):
  (tmp_path / 'plan').write_bytes(b'no plan')
  with pytest.raises(ValueError, match='is not a plan'):
    slim_jax.Plan.load(tmp_path / 'plan')
  with pytest.raises(FileNotFoundError):
    slim_jax.Plan.load(tmp_path / 'none')


@pytest.mark.slow
def test_the_true_vgg19(x64):
  case = zoo.Case('vgg19', lambda dtype: models.VGG(
      widths=models.WIDTHS['vgg19'], num_classes=10, dtype=dtype), (2, 32, 32, 3))
  model = zoo.build(case, jnp.float64)
  laws.check(model, laws.random_dead(model.variables, 0.7), 1e-10)
