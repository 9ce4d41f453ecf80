"""The second law: removing a channel and folding its bias into a kernel changes nothing."""

import dataclasses

from flax import linen as nn
from helpers import laws, random_networks, zoo
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slim_jax
from slim_jax import tree
from slim_jax.channels import planning

small = pytest.mark.parametrize(
  'case',
  [
    pytest.param(
      case, id=case.name, marks=[] if case is zoo.LIBRARIES['linen'] else [pytest.mark.slow]
    )
    for case in zoo.CASES
    if case.size == 'small'
  ],
)


def check(infer, variables, x, dead, tolerance=1e-10):
  """Thin with folded biases is the network with dead scales; returns the plan."""
  plan = slim_jax.plan(infer, variables, x, dead=dead, bias='keep')
  got = jax.jit(slim_jax.thin(infer, plan))(plan.slice(variables), x)
  want = jax.jit(infer)(slim_jax.mask(variables, dead, bias='keep'), x)
  assert np.all(np.isfinite(want))
  assert laws.distance(got, want) < tolerance
  return plan


@small
def test_a_dead_scale_alone_changes_nothing(case, x64):
  model = zoo.build(case, jnp.float64)
  dead = laws.random_dead(model.variables, 0.5, seed=5, scales=model.scales)
  plan = check(model.infer, model.variables, model.x, dead)
  # And it is no small thing that the biases would take away.
  without = jax.jit(model.infer)(slim_jax.mask(model.variables, dead), model.x)
  kept = jax.jit(model.infer)(slim_jax.mask(model.variables, dead, bias='keep'), model.x)
  if plan.folds:
    assert laws.distance(without, kept) > 1e-3


@pytest.mark.parametrize(
  'seed', [pytest.param(seed, marks=[pytest.mark.slow] if seed >= 8 else []) for seed in range(100)]
)
def test_random_networks(seed, x64):
  x = jax.random.normal(jax.random.key(seed), (2, 8, 8, 3), jnp.float64)
  model = zoo.linen.functions(random_networks.Random(jnp.float64, seed), x)
  variables = zoo.randomise(model.variables, jnp.float64, seed)
  dead = laws.random_dead(variables, 0.6, seed=seed, emptied=seed % 2)
  try:
    check(model.infer, variables, x, dead)
  except planning.DisconnectedError:  # then the network with dead scales is constant
    masked, infer = slim_jax.mask(variables, dead, bias='keep'), jax.jit(model.infer)
    np.testing.assert_array_equal(infer(masked, x), infer(masked, 1 - 2 * x))


class Plain(nn.Module):
  """Two convolutions with a BatchNorm between them; `act` and `padding` as given."""

  act: callable = nn.softplus
  padding: str = 'SAME'
  twice: bool = False
  residual: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(6, (3, 3), use_bias=False)(x)
    y = self.act(nn.BatchNorm(use_running_average=True)(x))
    z = nn.Conv(4, (3, 3), padding=self.padding, name='reader')(y)
    if self.twice:
      z = z + nn.Conv(4, (1, 1), name='second')(y)
    if self.residual:
      z = jnp.concatenate([z, x + y], -1)
    return z


def plain(size=7, biases=None, **options):
  net = Plain(**options)
  x = jax.random.normal(jax.random.key(1), (2, size, size, 3))
  variables = zoo.randomise(net.init(jax.random.key(0), x), jnp.float64, 0)
  if biases is not None:
    variables['params']['BatchNorm_0']['bias'] = np.asarray(biases, np.float64)
  dead = tree.like(variables, {('params', 'BatchNorm_0', 'scale'): np.arange(6) < 4})
  return net.apply, variables, x.astype(jnp.float64), dead


def test_one_carrier_stays(x64):
  infer, variables, x, dead = plain()
  plan = check(infer, variables, x, dead)
  thin = plan.slice(variables)['params']
  assert thin['reader']['kernel'].shape == (3, 3, 3, 4)  # two that live, and the carrier
  assert thin['BatchNorm_0']['bias'].shape == (3,)
  assert np.count_nonzero(thin['BatchNorm_0']['scale']) == 2  # the carrier's is zero
  assert thin['Conv_0']['kernel'].shape == (3, 3, 3, 2)  # and nothing before it


@pytest.mark.parametrize('padding', ['SAME', 'VALID'])
@pytest.mark.parametrize('size', [5, 7, 12])
def test_other_image_and_batch_sizes_than_planned_with(padding, size, x64):
  infer, variables, x, dead = plain(padding=padding)
  plan = check(infer, variables, x, dead)
  x = jax.random.normal(jax.random.key(3), (5, size, size, 3), jnp.float64)
  got = slim_jax.thin(infer, plan)(plan.slice(variables), x)
  want = infer(slim_jax.mask(variables, dead, bias='keep'), x)
  assert laws.distance(got, want) < 1e-12


def test_biases_that_the_activation_stops_need_no_carrier(x64):
  infer, variables, x, dead = plain(act=nn.relu, biases=[-1, -2, -3, -4, 1, 2])
  plan = check(infer, variables, x, dead)
  thin = plan.slice(variables)['params']
  assert thin['reader']['kernel'].shape == (3, 3, 2, 4)
  assert thin['BatchNorm_0']['bias'].shape == (2,)


def test_every_reader_folds_for_itself(x64):
  infer, variables, x, dead = plain(twice=True)
  plan = check(infer, variables, x, dead)
  assert len(plan.folds) == 2
  thin = plan.slice(variables)['params']
  assert thin['second']['kernel'].shape == (1, 1, 3, 4)
  assert thin['BatchNorm_0']['bias'].shape == (3,)


def test_biases_on_a_stream_stay(x64):
  infer, variables, x, dead = plain(residual=True)
  plan = check(infer, variables, x, dead)
  assert plan.slice(variables)['params']['BatchNorm_0']['bias'].shape == (6,)


def test_a_kernel_that_is_used_twice_takes_nothing(x64):
  def infer(variables, x):
    kernel, scale = variables['kernel'], variables['BatchNorm']['scale']
    for _ in range(2):
      x = jnp.tanh(x * scale[None] + variables['BatchNorm']['bias'][None]) @ kernel
    return x

  rng = np.random.default_rng(0)
  variables = {
    'kernel': rng.normal(size=(4, 4)),
    'BatchNorm': {'scale': rng.uniform(size=4), 'bias': rng.normal(size=4)},
  }
  dead = tree.like(variables, {('BatchNorm', 'scale'): np.array([True, True, False, False])})
  plan = check(infer, variables, rng.normal(size=(3, 4)), dead)
  assert not plan.folds


def test_channels_that_never_depended_on_the_data_stay(x64):
  """Position codes beside the image: constant, and none of our business."""

  def infer(variables, x):
    scale, bias = (variables['BatchNorm'][name][None, None] for name in ('scale', 'bias'))
    y = jax.nn.softplus(x * scale + bias)
    codes = jnp.broadcast_to(variables['codes'][None, None], (*y.shape[:-1], 2))
    return jnp.concatenate([y, codes], -1) @ variables['kernel']

  rng = np.random.default_rng(0)
  variables = {
    'kernel': rng.normal(size=(6, 3)),
    'codes': rng.normal(size=2),
    'BatchNorm': {'scale': rng.uniform(size=4), 'bias': rng.normal(size=4)},
  }
  x = rng.normal(size=(2, 5, 4))
  dead = tree.like(variables, {('BatchNorm', 'scale'): np.arange(4) < 3})
  plan = check(infer, variables, x, dead)
  assert plan.slice(variables)['kernel'].shape == (4, 3)  # one lives, the carrier, the codes
  alive = tree.like(variables, {('BatchNorm', 'scale'): np.zeros(4, bool)})
  assert not slim_jax.plan(infer, variables, x, dead=alive, bias='keep').folds


def test_nothing_dead_is_the_identity(x64):
  infer, variables, x, dead = plain()
  nothing = jax.tree.map(np.zeros_like, dead)
  plan = slim_jax.plan(infer, variables, x, dead=nothing, bias='keep')
  assert not plan.folds and all(cut.live.is_whole for cut in plan.cuts.values())


def test_a_second_pass_takes_the_first_carrier_in(x64):
  infer, variables, x, first_dead = plain()
  first = check(infer, variables, x, first_dead)
  thin = first.slice(variables)
  dead = tree.like(thin, {('params', 'BatchNorm_0', 'scale'): np.array([False, True, False])})
  full = first.expand(thin)
  both = slim_jax.plan(infer, full, x, dead=first.lift(dead), bias='keep')
  want = infer(slim_jax.mask(variables, first.lift(dead), bias='keep'), x)
  got = slim_jax.thin(infer, both)(both.slice(full), x)
  assert laws.distance(got, want) < 1e-12
  again = both.relative_to(first).slice(thin)
  assert again['params']['reader']['kernel'].shape == (3, 3, 2, 4)
  for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(both.slice(full)), strict=True):
    np.testing.assert_array_equal(a, b)
  chained = first.then(both.relative_to(first)).slice(variables)
  assert laws.distance(slim_jax.thin(infer, both)(chained, x), want) < 1e-12


def test_training_goes_on(x64):
  """The thin network trains, its state is cut alike, the carrier's bias moves."""

  def train(variables, x):
    y = nn.Conv(6, (3, 3), use_bias=False).apply({'params': variables['params']['Conv_0']}, x)
    y, state = nn.BatchNorm(use_running_average=False).apply(
      {
        'params': variables['params']['BatchNorm_0'],
        'batch_stats': variables['batch_stats']['BatchNorm_0'],
      },
      y,
      mutable=['batch_stats'],
    )
    z = nn.Conv(4, (3, 3)).apply({'params': variables['params']['reader']}, nn.softplus(y))
    return z, {'batch_stats': {'BatchNorm_0': state['batch_stats']}}

  infer, variables, x, dead = plain()
  plan = slim_jax.plan(infer, variables, x, dead=dead, bias='keep')
  thin_train = slim_jax.thin(train, plan, outs=(None, {'batch_stats': 'batch_stats'}))
  thin = plan.slice(variables)
  got, state = thin_train(thin, x)
  want, full_state = train(slim_jax.mask(variables, dead, bias='keep'), x)
  assert laws.distance(got, want) < 1e-10
  full_state = {'batch_stats': plan['batch_stats'].slice(full_state['batch_stats'])}
  assert laws.distance(state, full_state) < 1e-10
  tx = optax.sgd(0.1, momentum=0.9)
  opt_state = plan['params'].slice_opt_state(tx, tx.init(variables['params']), variables['params'])
  grads = jax.grad(lambda params: jnp.sum(thin_train({**thin, 'params': params}, x)[0] ** 2))(
    thin['params']
  )
  assert np.all(np.abs(grads['BatchNorm_0']['bias']) > 0)
  updates, _ = tx.update(grads, opt_state, thin['params'])
  assert jax.tree.structure(updates) == jax.tree.structure(thin['params'])


def test_the_plan_survives_the_disk(tmp_path, x64):
  infer, variables, x, dead = plain()
  plan = check(infer, variables, x, dead)
  plan.save(tmp_path / 'plan')
  loaded = slim_jax.Plan.load(tmp_path / 'plan')
  for a, b in zip(
    jax.tree.leaves(plan.slice(variables)), jax.tree.leaves(loaded.slice(variables)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
  (fold,), (again,) = plan.folds.values(), loaded.folds.values()
  assert jax.tree.all(
    jax.tree.map(np.array_equal, dataclasses.astuple(fold[0]), dataclasses.astuple(again[0]))
  )


def test_bad_requests_are_refused(x64):
  infer, variables, x, dead = plain()
  with pytest.raises(ValueError, match='not their shapes'):
    slim_jax.plan(infer, jax.eval_shape(lambda v: v, variables), x, dead=dead, bias='keep')
  for call in (
    lambda: slim_jax.plan(infer, variables, x, dead=dead, bias='fold'),
    lambda: slim_jax.mask(variables, dead, bias=True),
  ):
    with pytest.raises(ValueError, match="'zero' or 'keep'"):
      call()
