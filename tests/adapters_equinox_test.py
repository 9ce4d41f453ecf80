"""Thin Equinox modules: used like the full one, and equal to the masked one in float64."""

import equinox as eqx
from helpers import laws
from helpers.zoo.model import randomise
import jax
import jax.numpy as jnp
import optax
import pytest

import slim_jax
from slim_jax.errors import SlimError


class Net(eqx.Module):
  """Two inputs, a keyword, dropout, a layer that is called twice, and a second method."""

  stem: eqx.nn.Conv2d
  norms: list[eqx.nn.BatchNorm]
  shared: eqx.nn.Conv2d
  last: eqx.nn.Conv2d
  drop: eqx.nn.Dropout
  head: eqx.nn.Linear
  order: jax.Array

  def __init__(self, dtype, key):
    keys = jax.random.split(key, 4)
    self.stem = eqx.nn.Conv2d(2, 6, 3, padding=1, dtype=dtype, key=keys[0])
    self.norms = [eqx.nn.BatchNorm(6, 'images', mode='batch', dtype=dtype) for _ in range(3)]
    self.shared = eqx.nn.Conv2d(6, 6, 1, dtype=dtype, key=keys[1])
    self.last = eqx.nn.Conv2d(6, 6, 3, padding=1, dtype=dtype, key=keys[2])
    self.drop = eqx.nn.Dropout(0.3)
    self.head = eqx.nn.Linear(6, 3, dtype=dtype, key=keys[3])
    self.order = jnp.array([2, 0, 1])

  def encode(self, x, state, key=None):
    x = self.stem(x)
    for norm in self.norms[:2]:
      x, state = norm(self.shared(x), state)
      x = jax.nn.relu(x)
    return self.drop(x, key=key), state

  def __call__(self, x, y, state, *, gain=1.0, key=None):
    x, state = self.encode(x, state, key)
    x, state = self.norms[2](self.last(x) + y, state)
    return gain * self.head(jax.nn.relu(x).mean((1, 2)))[self.order], state


def make(dtype):
  model, state = eqx.nn.make_with_state(Net)(dtype, jax.random.key(0))
  params, static = eqx.partition(model, eqx.is_inexact_array)
  params, state = randomise((params, state), dtype, 0)
  x = jax.random.normal(jax.random.key(1), (3, 2, 4, 4), dtype)
  y = jax.random.normal(jax.random.key(2), (3, 6, 4, 4), dtype)
  return eqx.combine(params, static), state, x, y


def masked(model, state, dead):
  params, static = eqx.partition(model, eqx.is_inexact_array)
  params, state = slim_jax.mask((params, state), dead)
  return eqx.combine(params, static), state


@eqx.filter_jit
def batch(model, state, x, y, keys=None, gain=1.0):
  """The call of Equinox's examples: one example, mapped by the user."""
  one = lambda x, y, state, key: model(x, y, state, gain=gain, key=key)
  axes = (0, 0, None, None if keys is None else 0)
  return jax.vmap(one, axes, (0, None), axis_name='images')(x, y, state, keys)


def step(tx):
  """The training step of Equinox's examples."""

  @eqx.filter_jit
  def run(model, state, opt_state, x, y, keys):
    def loss(model, state):
      out, state = batch(model, state, x, y, keys, gain=0.5)
      return (out**2).sum(), state

    (value, state), grads = eqx.filter_value_and_grad(loss, has_aux=True)(model, state)
    params = eqx.filter(model, eqx.is_inexact_array)
    updates, opt_state = tx.update(grads, opt_state, params)
    return value, grads, eqx.apply_updates(model, updates), state, opt_state

  return run


def params_of(model):
  return jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))


def test_the_thin_module_is_the_masked_one(x64):
  model, state, x, y = make(jnp.float64)
  tx = optax.chain(slim_jax.add_l1(1e-3), optax.adam(1e-2))
  opt_state = tx.init(eqx.filter(model, eqx.is_inexact_array))
  keys = jax.random.split(jax.random.key(3), 3)
  run = step(tx)
  *_, opt_state = run(model, state, opt_state, x, y, keys)  # moments that are not zero
  thin, info = slim_jax.equinox.slim(model, state, x, y, fraction=0.5, tx=tx, opt_state=opt_state)
  assert isinstance(thin, Net) and 0.4 < info.removed < 0.6
  assert info.after.macs < 0.8 * info.before.macs and info.after.params < info.before.params
  full, full_state = masked(model, state, info.dead)
  inference = eqx.nn.inference_mode
  got, _ = batch(inference(thin), info.variables[1], x, y, gain=2.0)
  assert laws.distance(got, batch(inference(full), full_state, x, y, gain=2.0)[0]) < 1e-12
  encoded = [
    jax.vmap(inference(net).encode, (0, None), (0, None), axis_name='images')(x, state)[0]
    for net, state in ((thin, info.variables[1]), (full, full_state))
  ]
  assert laws.distance(*encoded) < 1e-12

  got = run(thin, info.variables[1], info.opt_state, x, y, keys)
  want = run(full, full_state, opt_state, x, y, keys)
  assert laws.distance(got[0], want[0]) < 1e-12
  sliced = lambda model: jax.tree.leaves(
    info.plan['0'].slice(eqx.filter(model, eqx.is_inexact_array))
  )
  assert laws.distance(params_of(got[1]), sliced(want[1])) < 1e-10
  assert type(got[2]) is type(thin)
  assert laws.distance(params_of(got[2]), sliced(want[2])) < 1e-10
  assert laws.distance(got[3], info.plan['1'].slice(want[3])) < 1e-12
  params = eqx.filter(full, eqx.is_inexact_array)
  opt_state = info.plan['0'].slice_opt_state(tx, want[4], params)
  assert laws.distance(jax.tree.leaves(got[4]), jax.tree.leaves(opt_state)) < 1e-10


def test_it_is_an_ordinary_module(tmp_path):
  model, state, x, y = make(jnp.float32)
  thin, info = slim_jax.equinox.slim(model, state, x, y, fraction=0.5)
  state = info.variables[1]
  want, _ = batch(eqx.nn.inference_mode(thin), state, x, y)
  eqx.tree_serialise_leaves(tmp_path / 'thin.eqx', (thin, state))
  info.plan.save(tmp_path / 'plan.npz')
  plan = slim_jax.Plan.load(tmp_path / 'plan.npz')
  other, state = eqx.nn.make_with_state(Net)(jnp.float32, jax.random.key(9))
  like = slim_jax.equinox.thin(other, plan), plan['1'].slice(state)
  other, state = eqx.tree_deserialise_leaves(tmp_path / 'thin.eqx', like)
  assert laws.distance(batch(eqx.nn.inference_mode(other), state, x, y)[0], want) < 1e-6
  scale = jnp.zeros_like(thin.norms[0].weight)
  changed = eqx.tree_at(lambda model: model.norms[0].weight, thin, scale)
  assert type(changed) is type(thin) and (changed.norms[0].weight == 0).all()
  with pytest.raises(SlimError, match=r'one eqx.nn.State'):
    thin(x[0], (state, state), state)


def test_cuts_compose(x64):
  model, state, x, y = make(jnp.float64)
  once, first = slim_jax.equinox.slim(model, state, x, y, fraction=0.3)
  twice, second = slim_jax.equinox.slim(once, first.variables[1], x, y, fraction=0.3)
  dead = first.plan.lift(second.dead)
  full, full_state = masked(*masked(model, state, first.dead), dead)
  inference = eqx.nn.inference_mode
  got, _ = batch(inference(twice), second.variables[1], x, y)
  assert laws.distance(got, batch(inference(full), full_state, x, y)[0]) < 1e-12
  assert second.before == first.after and second.after.params < second.before.params


def test_modules_without_state():
  """Which channels go is the caller's choice where there is no BatchNorm."""
  model = eqx.nn.MLP(5, 3, 8, 2, key=jax.random.key(0))
  x = jax.random.normal(jax.random.key(1), (4, 5))
  biases = lambda tree: eqx.tree_at(
    lambda tree: [layer.bias for layer in tree[0].layers[:2]],
    jax.tree.map(lambda _: False, tree),
    [True, True],
  )
  thin, info = slim_jax.equinox.slim(model, None, x, fraction=0.4, scales=biases)
  params, static = eqx.partition(model, eqx.is_inexact_array)
  zeroed = eqx.combine(slim_jax.mask((params, None), info.dead)[0], static)
  assert laws.distance(jax.vmap(thin)(x), jax.vmap(zeroed)(x)) < 1e-6
  assert info.after.params < info.before.params
  with pytest.raises(SlimError, match='no argument has a batch axis'):
    slim_jax.equinox.slim(model, None, x, fraction=0.4, scales=biases, in_axes=None)
  with pytest.raises(SlimError, match='2 entries for 1'):
    slim_jax.equinox.slim(model, None, x, fraction=0.4, scales=biases, in_axes=(0, 0))
  with pytest.raises(SlimError, match='needs an equinox.Module'):
    slim_jax.equinox.thin(len, info.plan)
