"""Every architecture of the zoo is held to the law, every small one to what follows from it."""

import tempfile

from helpers import laws, zoo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slim_jax
from slim_jax import models
from slim_jax.channels import planning


def over(cases, slow=('slow',)):
  """One test for each case, those of a `slow` size on request."""
  return pytest.mark.parametrize(
    'case',
    [
      pytest.param(case, id=case.name, marks=[pytest.mark.slow] if case.size in slow else [])
      for case in cases
    ],
  )


each = over(zoo.CASES)
each_trained = over(zoo.CASES, slow=('slow', 'inference'))
small = over([case for case in zoo.CASES if case.size == 'small'])
library = over(zoo.LIBRARIES.values())
two_libraries = pytest.mark.parametrize(
  'case',
  [
    pytest.param(case, id=case.name, marks=[] if name in ('linen', 'keras') else [pytest.mark.slow])
    for name, case in zoo.LIBRARIES.items()
  ],
)
# All but these have the law in float64 beside it.
single = over(zoo.CASES, slow=('slow', 'large', 'small'))


def planned(case, dtype, fraction=0.5, seed=0):
  """The case as a model, random channels of it, and the plan without them."""
  model = zoo.build(case, dtype)
  dead = laws.random_dead(model.variables, fraction, seed, scales=model.scales)
  return model, dead, slim_jax.plan(model.infer, model.variables, model.x, dead=dead)


@each_trained
def test_thin_equals_masked_in_double_precision(case, x64):
  model = zoo.build(case, jnp.float64)
  dead = laws.random_dead(model.variables, 0.5, seed=3, scales=model.scales)
  plan = laws.check(model, dead, 1e-10)
  assert not plan.unknown
  thin, full = np.sum(laws.widths(plan, model.scales), axis=0)
  assert thin < 0.75 * full


@pytest.mark.slow
@library
def test_thin_equals_masked_in_single_precision(case):
  model = zoo.build(case, jnp.float32)
  laws.check(model, laws.random_dead(model.variables, 0.5, scales=model.scales), 1e-5)


@pytest.mark.slow
@small
@pytest.mark.parametrize('fraction', [0.3, 0.8])
def test_thin_equals_masked_whatever_the_fraction(case, fraction):
  model = zoo.build(case, jnp.float32)
  dead = laws.random_dead(model.variables, fraction, seed=4, scales=model.scales)
  try:
    laws.check(model, dead, 1e-5)
  except planning.DisconnectedError:  # as depthwise layers are: the masked network is constant
    masked = slim_jax.mask(model.variables, dead)
    np.testing.assert_array_equal(model.infer(masked, model.x), model.infer(masked, -model.x))


@single
def test_inference_in_single_precision(case):
  model, dead, plan = planned(case, jnp.float32)
  got = jax.jit(slim_jax.thin(model.infer, plan))(plan.slice(model.variables), model.x)
  want = jax.jit(model.infer)(slim_jax.mask(model.variables, dead), model.x)
  assert laws.distance(got, want) < 1e-5


@each
def test_nothing_dead_is_the_identity(case):
  laws.check_identity(zoo.build(case, jnp.float32))


@each
def test_dead_channels_leave_their_producers_and_readers(case):
  """What goes is what surgery would remove: parameters and MACs shrink with the widths."""
  model, _, plan = planned(case, jnp.float32)
  thin, thin_variables = slim_jax.thin(model.infer, plan), plan.slice(model.variables)
  before = slim_jax.count(model.infer, model.variables, model.x)
  after = slim_jax.count(thin, thin_variables, model.x)
  assert after.params < 0.9 * before.params
  assert after.macs < 0.8 * before.macs
  full, cut = (
    jax.eval_shape(model.infer, model.variables, model.x),
    jax.eval_shape(thin, thin_variables, model.x),
  )
  assert (cut.shape, cut.dtype) == (full.shape, full.dtype)


@small
def test_plans_compose_over_passes(case, x64):
  """A second pass planned on the thin function is the plan of both passes on the full one."""
  model, _, first = planned(case, jnp.float64, 0.3, seed=1)
  thin_variables, thin_infer = first.slice(model.variables), slim_jax.thin(model.infer, first)
  more = laws.random_dead(thin_variables, 0.3, seed=2, scales=model.scales)
  second = slim_jax.plan(thin_infer, thin_variables, model.x, dead=more)
  both = slim_jax.plan(model.infer, model.variables, model.x, dead=first.lift(more))
  chained = first.then(second)
  again = first.then(both.relative_to(first))
  for path, cut in both.cuts.items():
    for a, b, c in zip(cut.indices, chained.cuts[path].indices, again.cuts[path].indices):
      np.testing.assert_array_equal(a, c)
      assert set(a) <= set(b), path
  want = jax.jit(model.infer)(slim_jax.mask(model.variables, first.lift(more)), model.x)
  got = jax.jit(slim_jax.thin(model.infer, both))(both.slice(model.variables), model.x)
  assert laws.distance(got, want) < 1e-10
  got = jax.jit(slim_jax.thin(thin_infer, second))(second.slice(thin_variables), model.x)
  assert laws.distance(got, want) < 1e-10


@small
def test_sliced_optimizer_state_is_that_of_the_sliced_parameters(case):
  model, _, plan = planned(case, jnp.float32)
  params, plan = part(model.variables, model.params), plan[model.params]
  scales = part(model.scales, model.params)
  for tx in (
    optax.sgd(0.1, momentum=0.9, nesterov=True),
    optax.adamw(1e-3),
    optax.chain(
      optax.add_decayed_weights(1e-4),
      slim_jax.add_l1(lambda step: 1e-4, mask=lambda p: scales),
      optax.sgd(0.1, momentum=0.9),
    ),
  ):
    state = jax.eval_shape(tx.init, params)
    got = plan.slice_opt_state(tx, state, params)
    want = jax.eval_shape(tx.init, plan.slice(params))
    assert jax.tree.structure(got) == jax.tree.structure(want)
    assert jax.tree.map(jnp.shape, got) == jax.tree.map(jnp.shape, want)


@small
def test_plan_survives_the_disk(case):
  model, _, plan = planned(case, jnp.float32, 0.6)
  with tempfile.NamedTemporaryFile(suffix='.plan') as file:
    plan.save(file.name)
    loaded = slim_jax.Plan.load(file.name)
  assert str(loaded) == str(plan)
  sliced, again = plan.slice(model.variables), loaded.slice(model.variables)
  same(sliced, again)
  same(loaded.expand(again), plan.expand(sliced))


@small
def test_expanded_thin_variables_are_the_masked_network(case, x64):
  model, dead, plan = planned(case, jnp.float64)
  infer = jax.jit(model.infer)
  expanded = plan.expand(plan.slice(model.variables))
  masked = slim_jax.mask(model.variables, dead)
  assert laws.distance(infer(expanded, model.x), infer(masked, model.x)) < 1e-10
  same(plan.slice(expanded), plan.slice(masked))


@over([zoo.case('vgg'), zoo.case('bottleneck_resnet'), zoo.case('densenet'), zoo.case('scanned')])
def test_a_function_may_contain_its_own_gradient(case, x64):
  """A whole training step made thin is the step of the thin network."""
  model, dead, plan = planned(case, jnp.float64)
  key = jax.random.key(0)

  def step(variables, x):
    def loss(params):
      out, state = model.train({**variables, 'params': params}, x, key)
      return jnp.mean(jnp.square(out - 1)), state

    grads, state = jax.grad(loss, has_aux=True)(variables['params'])
    return {'params': jax.tree.map(lambda p, g: p - 0.1 * g, variables['params'], grads), **state}

  thin, thin_variables = slim_jax.thin(step, plan, outs=''), plan.slice(model.variables)
  want = jax.jit(step)(slim_jax.mask(model.variables, dead), model.x)
  assert laws.distance(jax.jit(thin)(thin_variables, model.x), plan.slice(want)) < 1e-9
  before = slim_jax.count(step, model.variables, model.x)
  after = slim_jax.count(thin, thin_variables, model.x)
  assert after.macs < 0.7 * before.macs
  assert not slim_jax.plan(step, model.variables, model.x, dead=dead, outs='').unknown


@library
def test_training_results_demanded_in_full(case, x64):
  """Without `outs` state comes back full size, right at the live channels."""
  model, dead, plan = planned(case, jnp.float64)
  key = jax.random.key(0)
  results = jax.jit(slim_jax.thin(model.train, plan))(plan.slice(model.variables), model.x, key)
  want = jax.jit(model.train)(slim_jax.mask(model.variables, dead), model.x, key)
  got, want = (laws.sliced(plan, laws.declared(model.outs, r)) for r in (results, want))
  assert laws.distance(got, want) < 1e-10


@small
def test_planning_with_the_training_function(case):
  """State declared with `outs` follows the scales: the plan is that of inference."""
  model, dead, plan = planned(case, jnp.float32)
  trained = slim_jax.plan(
    model.train, model.variables, model.x, jax.random.key(0), dead=dead, outs=model.outs
  )
  assert plan.cuts.keys() == trained.cuts.keys()
  for path, cut in plan.cuts.items():
    assert cut.thin_shape == trained.cuts[path].thin_shape, path


@small
def test_planning_needs_shapes_alone(case):
  model, dead, plan = planned(case, jnp.float32)
  shapes = jax.eval_shape(lambda: model.variables)
  x = jax.ShapeDtypeStruct((7, *model.x.shape[1:]), jnp.float32)  # the batch size does not matter
  again = slim_jax.plan(model.infer, shapes, x, dead=dead)
  assert again.cuts.keys() == plan.cuts.keys()
  same([cut.indices for cut in again.cuts.values()], [cut.indices for cut in plan.cuts.values()])
  sliced, arrays = plan.slice(shapes), plan.slice(model.variables)
  assert list(map(jnp.shape, jax.tree.leaves(sliced))) == list(
    map(jnp.shape, jax.tree.leaves(arrays))
  )


@library
def test_another_batch_size_than_the_plan_s(case):
  model, _, plan = planned(case, jnp.float32)
  v, f = plan.slice(model.variables), jax.jit(slim_jax.thin(model.infer, plan))
  batch = jnp.concatenate([model.x, model.x, model.x])
  assert laws.distance(f(v, batch)[: len(model.x)], f(v, model.x)) < 1e-5


@two_libraries
def test_works_under_the_transformations_of_functions(case):
  model, _, plan = planned(case, jnp.float32)
  v, f, x = plan.slice(model.variables), slim_jax.thin(model.infer, plan), model.x
  floats, whole = laws.differentiable(v)
  want = jax.jit(f)(v, x)
  xs = jnp.stack([x, 2 * x])
  each_alone = jnp.stack([want, jax.jit(f)(v, xs[1])])
  assert laws.distance(jax.jit(jax.vmap(f, (None, 0)))(v, xs), each_alone) < 1e-5
  pmapped = jax.pmap(
    lambda floats, x: f(whole(floats), x), in_axes=(None, 0), devices=jax.devices()[:2]
  )
  assert laws.distance(pmapped(floats, xs), each_alone) < 1e-5

  def loss(f):
    return jax.jit(jax.grad(lambda floats: jnp.sum(jnp.sin(f(whole(floats), x)))))

  assert laws.distance(loss(jax.checkpoint(f))(floats), loss(f)(floats)) < 1e-4


@library
def test_survives_export(case):
  model, _, plan = planned(case, jnp.float32)
  v, f, x = plan.slice(model.variables), slim_jax.thin(model.infer, plan), model.x
  floats, whole = laws.differentiable(v)
  leaves = list(floats.values())  # a file format does not know the trees of every library

  def of_leaves(leaves, x):
    return f(whole(dict(zip(floats, leaves, strict=True))), x)

  exported = jax.export.export(jax.jit(of_leaves))(leaves, x)
  call = jax.export.deserialize(exported.serialize()).call
  assert laws.distance(call(leaves, x), jax.jit(f)(v, x)) < 1e-5


@library
def test_exports_for_any_batch_what_can_be(case):
  model, _, plan = planned(case, jnp.float32)
  v, thin = plan.slice(model.variables), slim_jax.thin(model.infer, plan)
  any_batch = jax.ShapeDtypeStruct(
    (*jax.export.symbolic_shape('batch'), *model.x.shape[1:]), model.x.dtype
  )

  def export(f, variables):
    return jax.export.export(jax.jit(lambda x: f(variables, x)))(any_batch)

  try:
    export(model.infer, model.variables)
  except Exception as error:  # pylint: disable=broad-exception-caught  (each library has its own)
    pytest.skip(f'nor can the full network: {error}'[:100])
  call = jax.export.deserialize(export(thin, v).serialize()).call
  x = jnp.concatenate([model.x, -model.x, 2 * model.x])
  assert laws.distance(call(x), jax.jit(thin)(v, x)) < 1e-5


@library
def test_works_in_bfloat16(case):
  model, dead, plan = planned(case, jnp.bfloat16)
  got = jax.jit(slim_jax.thin(model.infer, plan))(plan.slice(model.variables), model.x)
  want = jax.jit(model.infer)(slim_jax.mask(model.variables, dead), model.x)
  assert got.dtype == want.dtype == jnp.bfloat16
  assert laws.distance(got, want) < 0.1


def test_a_branch_that_dies_is_gone(x64):
  """Every channel of one residual branch dead: the stream goes on, the branch costs nothing."""
  model = zoo.build(zoo.case('preactivation_resnet'), jnp.float64)
  dead = laws.random_dead(model.variables, 0.2)
  dead['params']['BatchNorm_4']['scale'][:] = True
  plan = laws.check(model, dead, 1e-10)
  assert plan.cuts[('params', 'Conv_6', 'kernel')].live.empty
  assert plan.cuts[('params', 'BatchNorm_4', 'scale')].thin_shape == (0,)


def test_a_network_without_batch_norms_has_no_scales():
  for name in ('mixer', 'vit'):
    model = zoo.build(zoo.case(name), jnp.float32)
    assert not any(jax.tree.leaves(slim_jax.batch_norm_scales(model.variables)))
    nothing = jax.tree.map(lambda _: None, model.variables)
    plan = slim_jax.plan(model.infer, model.variables, model.x, dead=nothing)
    assert all(cut.live.is_whole for cut in plan.cuts.values())


def test_a_network_cut_through_is_an_error():
  model = zoo.build(zoo.case('vgg'), jnp.float32)
  dead = laws.random_dead(model.variables, 0.2)
  dead['params']['BatchNorm_4']['scale'][:] = True
  with pytest.raises(ValueError, match='params/BatchNorm_4/scale'):
    slim_jax.plan(model.infer, model.variables, model.x, dead=dead)


def test_wrong_trees_are_named():
  model, dead, plan = planned(zoo.case('mlp'), jnp.float32)
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
  case = zoo.Case(
    'vgg19',
    lambda dtype: models.VGG(widths=models.WIDTHS['vgg19'], num_classes=10, dtype=dtype),
    (2, 32, 32, 3),
  )
  model = zoo.build(case, jnp.float64)
  laws.check(model, laws.random_dead(model.variables, 0.7), 1e-10)


def part(variables, path):
  """The part of a tree at a path of one name."""
  return variables[path] if isinstance(variables, dict) else variables[int(path)]


def same(a, b):
  """Asserts that two trees have equal leaves."""
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    np.testing.assert_array_equal(x, y)
