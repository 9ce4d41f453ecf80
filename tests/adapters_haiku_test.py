"""Thin Haiku networks: used like the full one, and equal to the masked one in float64."""

import haiku as hk
from helpers import laws
from helpers.zoo.model import randomise
import jax
import jax.numpy as jnp
import optax
import pytest

import slim_jax
from slim_jax.errors import SlimError


def encode(x, is_training):
  """Dropout, and a layer that is called twice."""
  x, shared = hk.Conv2D(6, 3)(x), hk.Conv2D(6, 1)
  for _ in range(2):
    x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(shared(x), is_training))
  return hk.dropout(hk.next_rng_key(), 0.3, x) if is_training else x


def forward(x, y, is_training, *, gain=1.0):
  """Two inputs and a keyword."""
  x = encode(x, is_training)
  x = hk.Conv2D(6, 3)(x) + y
  x = jax.nn.relu(hk.BatchNorm(True, True, 0.9)(x, is_training))
  return gain * hk.Linear(3)(x.mean((1, 2)))


def make(dtype):
  net = hk.transform_with_state(forward)
  x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2), dtype)
  y = jax.random.normal(jax.random.key(1), (3, 4, 4, 6), dtype)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, y, True))
  return net, randomise(shapes, dtype, 0), x, y


def step(net, tx):
  """A training step as Haiku's examples have it."""

  @jax.jit
  def run(params, state, opt_state, key, x, y):
    def loss(params):
      out, new = net.apply(params, state, key, x, y, True, gain=0.5)
      return (out**2).sum(), new

    (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
    updates, opt_state = tx.update(grads, opt_state, params)
    return value, grads, optax.apply_updates(params, updates), new, opt_state

  return run


def test_the_thin_network_is_the_masked_one(x64):
  net, variables, x, y = make(jnp.float64)
  tx = optax.chain(slim_jax.add_l1(1e-3), optax.adam(1e-2))
  key, run = jax.random.key(2), step(net, tx)
  # moments that are not zero
  *_, opt_state = run(*variables, tx.init(variables[0]), key, x, y)
  thin, info = slim_jax.haiku.slim(
    net, variables, x, y, True, fraction=0.5, tx=tx, opt_state=opt_state
  )
  assert isinstance(thin, hk.TransformedWithState) and 0.4 < info.removed < 0.6
  assert info.after.macs < 0.8 * info.before.macs and info.after.params < info.before.params
  masked = slim_jax.mask(variables, info.dead)
  got, _ = thin.apply(*info.variables, None, x, y, False, gain=2.0)
  want, _ = net.apply(*masked, None, x, y, False, gain=2.0)
  assert laws.distance(got, want) < 1e-12

  got = step(thin, tx)(*info.variables, info.opt_state, key, x, y)
  want = run(*masked, opt_state, key, x, y)
  params = info.plan['0']
  assert laws.distance(got[0], want[0]) < 1e-12
  assert laws.distance(got[1], params.slice(want[1])) < 1e-10
  assert laws.distance(got[2], params.slice(want[2])) < 1e-10
  assert laws.distance(got[3], info.plan['1'].slice(want[3])) < 1e-12
  opt_state = params.slice_opt_state(tx, want[4], masked[0])
  assert laws.distance(got[4], opt_state) < 1e-10


def test_cuts_compose_in_every_kind_of_transform(x64, tmp_path):
  net, variables, x, y = make(jnp.float64)
  once, first = slim_jax.haiku.slim(net, variables, x, y, False, fraction=0.3)
  twice, second = slim_jax.haiku.slim(once, first.variables, x, y, False, fraction=0.3)
  masked = slim_jax.mask(slim_jax.mask(variables, first.dead), first.plan.lift(second.dead))
  want, _ = net.apply(*masked, None, x, y, False)
  got, _ = twice.apply(*second.variables, None, x, y, is_training=False)
  assert laws.distance(got, want) < 1e-12
  assert second.before == first.after and second.after.params < second.before.params
  second.plan.save(tmp_path / 'plan.npz')
  plan = slim_jax.Plan.load(tmp_path / 'plan.npz')

  bare = slim_jax.haiku.thin(hk.without_apply_rng(net), plan)
  assert laws.distance(bare.apply(*second.variables, x, y, False)[0], want) < 1e-12
  bare = hk.without_apply_rng(twice)
  assert laws.distance(bare.apply(*second.variables, x, y, False)[0], want) < 1e-12
  params, state = jax.eval_shape(lambda: twice.init(jax.random.key(0), x, y, True))
  assert jax.tree.map(jnp.shape, (params, state)) == jax.tree.map(jnp.shape, second.variables)

  def both():
    return forward, (forward, encode)

  several = slim_jax.haiku.thin(hk.multi_transform_with_state(both), plan)
  got, _ = several.apply[0](*second.variables, None, x, y, False)
  assert laws.distance(got, want) < 1e-12
  got, _ = several.apply[1](*second.variables, None, x, False)
  want, _ = hk.transform_with_state(encode).apply(*masked, None, x, False)
  assert laws.distance(got, want) < 1e-12
  with pytest.raises(SlimError, match='say which function'):
    slim_jax.haiku.slim(hk.multi_transform_with_state(both), variables, x, y, fraction=0.3)


def test_networks_without_state():
  """Which channels go is the caller's choice where there is no BatchNorm."""
  net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([8, 3])(x)))
  x = jax.random.normal(jax.random.key(0), (4, 5))
  params = net.init(jax.random.key(1), x)
  scales = jax.tree_util.tree_map_with_path(
    lambda path, _: 'linear_0' in str(path) and "'w'" in str(path), (params, None)
  )
  thin, info = slim_jax.haiku.slim(net, (params, None), x, fraction=0.4, scales=scales)
  assert isinstance(thin, hk.Transformed)
  got = thin.apply(info.variables[0], x)
  want = net.apply(slim_jax.mask((params, None), info.dead)[0], x)
  assert laws.distance(got, want) < 1e-5 and info.after.macs < info.before.macs
  made = thin.init(jax.random.key(1), x)
  assert laws.distance(made, info.variables[0]) == 0
  with pytest.raises(SlimError, match=r'must be \(params, state\)'):
    slim_jax.haiku.slim(net, params, x, fraction=0.4)
  with pytest.raises(SlimError, match='needs what hk.transform'):
    slim_jax.haiku.thin(len, info.plan)
