"""Thin NNX modules: used like the full one, and equal to the masked one in float64."""

from flax import nnx
from helpers import laws
from helpers.zoo.model import randomise
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
import pytest

import slim_jax
from slim_jax.errors import SlimError


class Net(nnx.Module):
  """Two inputs, a keyword, dropout, a layer that is called twice, and a second method."""

  def __init__(self, dtype, rngs):
    kinds = dict(dtype=dtype, param_dtype=dtype, rngs=rngs)
    self.stem = nnx.Conv(2, 6, (3, 3), **kinds)
    self.norms = nnx.List([nnx.BatchNorm(6, **kinds) for _ in range(3)])
    self.shared = nnx.Conv(6, 6, (1, 1), **kinds)
    self.last = nnx.Conv(6, 6, (3, 3), **kinds)
    self.drop = nnx.Dropout(0.3, rngs=rngs)
    self.head = nnx.Linear(6, 3, **kinds)

  def encode(self, x):
    x = self.stem(x)
    for norm in self.norms[:2]:
      x = nnx.relu(norm(self.shared(x)))
    return self.drop(x)

  def __call__(self, x, y, *, gain=1.0):
    x = nnx.relu(self.norms[2](self.last(self.encode(x)) + y))
    return gain * self.head(x.mean((1, 2)))


def make(dtype):
  model = Net(dtype, nnx.Rngs(0))
  graphdef, state = nnx.split(model)
  model = nnx.merge(graphdef, randomise(state, dtype, 0))
  x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2), dtype)
  return model, x, jax.random.normal(jax.random.key(1), (3, 4, 4, 6), dtype)


def masked(model, dead):
  """The full model with zeros, and its state."""
  graphdef, state = nnx.split(model)
  state = slim_jax.mask(state, dead)
  return nnx.merge(graphdef, state, copy=True), state


@nnx.jit
def step(model, optimizer, x, y):
  """The training step of NNX's examples."""
  loss, grads = nnx.value_and_grad(lambda model: (model(x, y, gain=0.5) ** 2).sum())(model)
  optimizer.update(model, grads)
  return loss, grads


def test_the_thin_module_is_the_masked_one(x64):
  model, x, y = make(jnp.float64)
  tx = optax.chain(slim_jax.add_l1(1e-3), optax.adam(1e-2))
  optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
  step(model, optimizer, x, y)  # moments that are not zero
  thin, info = slim_jax.nnx.slim(model, x, y, fraction=0.5, opt_state=optimizer)
  assert isinstance(thin, Net) and 0.4 < info.removed < 0.6
  assert info.after.macs < 0.8 * info.before.macs and info.after.params < info.before.params
  assert info.before.params == sum(p.size for p in jax.tree.leaves(nnx.state(model, nnx.Param)))

  full, state = masked(model, info.dead)
  thin.eval(), full.eval()
  assert laws.distance(thin(x, y, gain=2.0), full(x, y, gain=2.0)) < 1e-12
  assert laws.distance(thin.encode(x), full.encode(x)) < 1e-12
  thin.train(), full.train()
  optimizer_of_full = nnx.Optimizer(full, tx, wrt=nnx.Param)
  nnx.update(optimizer_of_full, nnx.state(optimizer))
  loss, grads = step(thin, info.opt_state, x, y)
  want_loss, want_grads = step(full, optimizer_of_full, x, y)
  sliced = lambda state: laws.sliced(info.plan, slim_jax.tree.flatten(state))
  assert laws.distance(loss, want_loss) < 1e-12
  assert laws.distance(slim_jax.tree.flatten(grads), sliced(want_grads)) < 1e-10
  floats = nnx.Any(nnx.Param, nnx.BatchStat)
  got, want = nnx.state(thin, floats), nnx.state(full, floats)
  assert laws.distance(slim_jax.tree.flatten(got), sliced(want)) < 1e-10
  assert thin.drop.rngs.count[...] == full.drop.rngs.count[...] > 0
  opt_state = info.plan.slice_opt_state(tx, optimizer_of_full.opt_state, state)
  assert (
    laws.distance(jax.tree.leaves(info.opt_state.opt_state), jax.tree.leaves(opt_state)) < 1e-10
  )
  assert info.opt_state.step[...] == optimizer_of_full.step[...] == 2


def test_it_is_an_ordinary_module(tmp_path):
  model, x, y = make(jnp.float32)
  before = jax.tree.map(jnp.copy, nnx.state(model))
  thin, info = slim_jax.nnx.slim(model, x, y, fraction=0.5)
  graphdef, state = nnx.split(thin)
  assert type(nnx.merge(graphdef, state)) is type(thin) and hash(graphdef)
  assert nnx.split(nnx.clone(thin))[0] == graphdef
  thin.eval()
  want = jax.jit(lambda x, y: thin(x, y))(x, y)  # nothing changes, so a closure does
  # The network comes back from a checkpoint and the plan.
  with ocp.StandardCheckpointer() as checkpointer:
    checkpointer.save(tmp_path / 'state', nnx.to_pure_dict(nnx.state(thin, nnx.Not(nnx.RngState))))
  info.plan.save(tmp_path / 'plan.npz')
  plan = slim_jax.Plan.load(tmp_path / 'plan.npz')
  other = slim_jax.nnx.thin(Net(jnp.float32, nnx.Rngs(1)), plan)
  state = nnx.state(other, nnx.Not(nnx.RngState))
  with ocp.StandardCheckpointer() as checkpointer:
    nnx.replace_by_pure_dict(
      state, checkpointer.restore(tmp_path / 'state', nnx.to_pure_dict(state))
    )
  nnx.update(other, state)
  other.eval()
  assert laws.distance(other(x, y), want) < 1e-6
  # The full model is untouched.
  assert laws.distance(nnx.state(model, nnx.Param), nnx.filter_state(before, nnx.Param)) == 0
  abstract = slim_jax.nnx.thin(nnx.eval_shape(lambda: Net(jnp.float32, nnx.Rngs(0))), plan)
  assert abstract.head.kernel.shape == thin.head.kernel.shape


def test_cuts_compose(x64):
  model, x, y = make(jnp.float64)
  once, first = slim_jax.nnx.slim(model, x, y, fraction=0.3)
  twice, second = slim_jax.nnx.slim(once, x, y, fraction=0.3)
  again = slim_jax.nnx.thin(once, second.further)
  full, _ = masked(masked(model, first.dead)[0], first.plan.lift(second.dead))
  full.eval(), twice.eval(), again.eval()
  assert laws.distance(twice(x, y), full(x, y)) < 1e-12
  assert laws.distance(again(x, y), full(x, y)) < 1e-12
  assert second.before == first.after and second.after.params < second.before.params
  assert type(twice).__mro__[1:3] == type(once).__mro__[1:3]


class Sowing(nnx.Module):
  """Keeps what flows through it."""

  def __init__(self, rngs):
    self.first, self.norm = nnx.Linear(5, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
    self.last = nnx.Linear(8, 3, rngs=rngs)

  def __call__(self, x):
    x = self.norm(self.first(x))
    self.sow(nnx.Intermediate, 'features', x)
    return self.last(x)


@pytest.mark.filterwarnings('ignore:Using .Module.sow')
def test_what_a_model_sows_is_whole():
  model, x = Sowing(nnx.Rngs(0)), jax.random.normal(jax.random.key(0), (4, 5))
  thin, info = slim_jax.nnx.slim(model, x, fraction=0.4)
  full, _ = masked(model, info.dead)
  for net in (thin, full):
    net.eval()
    assert nnx.jit(lambda net: net(x))(net).shape == (4, 3)
    net(x)  # values are collected over calls
  for calls in (2, 1):
    got, want = (nnx.pop(net, nnx.Intermediate) for net in (thin, full))
    assert laws.distance(jax.tree.leaves(got), jax.tree.leaves(want)) < 1e-6
    assert len(jax.tree.leaves(got)) == calls
    thin(x), full(x)
  captured = [nnx.capture(net, nnx.Intermediate)(x)[1] for net in (thin, full)]
  got, want = (nnx.to_pure_dict(state)['features'] for state in captured)
  assert laws.distance(got, want) < 1e-6 and got[0].shape == (4, 8)


class Moded(nnx.Module):
  """Training is an argument; it adds noise that reads channels which inference does not."""

  def __init__(self, rngs):
    self.first, self.norm = nnx.Linear(5, 8, rngs=rngs), nnx.BatchNorm(8, rngs=rngs)
    self.last, self.rngs = nnx.Linear(8, 3, rngs=rngs), rngs
    self.calls = 0

  def __call__(self, x, train: bool):
    x = self.norm(self.first(x), use_running_average=not train)
    if train:
      x += jax.random.normal(self.rngs.params(), x.shape)
    return self.last(x)

  def counted(self, x):
    self.calls += 1
    return self.last(x)


def test_training_is_planned_with_inference():
  model, x = Moded(nnx.Rngs(0)), jnp.ones((4, 5))
  both, _ = slim_jax.nnx.slim(model, x, True, fraction=0.5)
  alone, info = slim_jax.nnx.slim(model, x, True, fraction=0.5, train=False)
  assert both.last.kernel.shape[0] == 8 > alone.last.kernel.shape[0]
  with pytest.raises(SlimError, match='counted changes attributes'):
    both.counted(jnp.ones((4, 8)))
  with pytest.raises(SlimError, match='needs a flax.nnx.Module'):
    slim_jax.nnx.thin(len, info.plan)
