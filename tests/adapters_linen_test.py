"""Thin Linen modules: used like the full one, and equal to the masked one in float64."""

import pickle

from flax import linen as nn
from flax.training import train_state
from helpers import laws
from helpers.zoo.model import randomise
import jax
import jax.numpy as jnp
import optax
import pytest

import slim_jax
from slim_jax import linen
from slim_jax.errors import SlimError


class Net(nn.Module):
  """Two inputs, a keyword, dropout, a layer that is called twice, a method and a collection."""

  dtype: type = jnp.float32

  def setup(self):
    kinds = dict(dtype=self.dtype, param_dtype=self.dtype)
    self.convs = [nn.Conv(6, (3, 3), **kinds) for _ in range(2)]
    self.norms = [nn.BatchNorm(**kinds) for _ in range(3)]
    self.shared = nn.Conv(6, (1, 1), **kinds)
    self.drop = nn.Dropout(0.3)
    self.head = nn.Dense(3, **kinds)

  def encode(self, x, train=False):
    x = self.convs[0](x)
    for norm in self.norms[:2]:
      x = nn.relu(norm(self.shared(x), use_running_average=not train))
      self.sow('intermediates', 'x', x)
    return self.drop(x, deterministic=not train)

  def __call__(self, x, y, train, *, gain=1.0):
    x = self.convs[1](self.encode(x, train)) + y
    x = nn.relu(self.norms[2](x, use_running_average=not train))
    return gain * self.head(x.mean((1, 2)))


def make(dtype):
  x = jax.random.normal(jax.random.key(0), (3, 4, 4, 2), dtype)
  y = jax.random.normal(jax.random.key(1), (3, 4, 4, 6), dtype)
  net = Net(dtype)
  variables = jax.eval_shape(lambda: net.init(jax.random.key(2), x, y, False))
  return net, randomise(variables, dtype, 0), x, y


def cosines(tx, params):
  """An optimiser state as if some steps had been taken."""
  return optax.tree_map_params(
    tx, lambda m: 1.1 + jnp.cos(jnp.arange(m.size, dtype=m.dtype)).reshape(m.shape), tx.init(params)
  )


def step(state, batch_stats, x, y, key):
  """The training step of Flax's examples."""

  def loss(params):
    variables = {'params': params, 'batch_stats': batch_stats}
    out, new = state.apply_fn(
      variables, x, y, True, gain=0.5, rngs={'dropout': key}, mutable=['batch_stats']
    )
    return (out**2).sum(), new

  (value, new), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
  return value, grads, new['batch_stats'], state.apply_gradients(grads=grads)


@pytest.mark.parametrize('bias', ['zero', 'keep'])
def test_the_thin_module_is_the_masked_one(bias, x64):
  net, variables, x, y = make(jnp.float64)
  tx = optax.chain(slim_jax.add_l1(1e-3), optax.adam(1e-2))
  opt_state = cosines(tx, variables['params'])
  thin, info = linen.slim(
    net,
    variables,
    x,
    y,
    True,
    kwargs={'gain': 2.0},
    fraction=0.5,
    bias=bias,
    tx=tx,
    opt_state=opt_state,
  )
  assert isinstance(thin, nn.Module) and 0.4 < info.removed < 0.6
  assert info.after.macs < 0.8 * info.before.macs and info.after.params < info.before.params
  masked = slim_jax.mask(variables, info.dead, bias=bias)
  want = net.apply(masked, x, y, False, gain=2.0)
  assert laws.distance(thin.apply(info.variables, x, y, train=False, gain=2.0), want) < 1e-12
  if bias == 'keep':
    return  # the moved constants train like any weight

  full = train_state.TrainState.create(apply_fn=net.apply, params=masked['params'], tx=tx)
  small = train_state.TrainState.create(apply_fn=thin.apply, params=info.variables['params'], tx=tx)
  want = jax.jit(step)(
    full.replace(opt_state=opt_state), masked['batch_stats'], x, y, jax.random.key(3)
  )
  got = jax.jit(step)(
    small.replace(opt_state=info.opt_state), info.variables['batch_stats'], x, y, jax.random.key(3)
  )
  params = info.plan['params']
  assert laws.distance(got[0], want[0]) < 1e-12
  assert laws.distance(got[1], params.slice(want[1])) < 1e-10
  assert laws.distance(got[2], info.plan['batch_stats'].slice(want[2])) < 1e-12
  assert laws.distance(got[3].params, params.slice(want[3].params)) < 1e-10
  opt_state = params.slice_opt_state(tx, want[3].opt_state, masked['params'])
  assert laws.distance(got[3].opt_state, opt_state) < 1e-10


def test_apply_takes_what_linen_takes():
  net, variables, x, y = make(jnp.float32)
  thin, info = linen.slim(net, variables, x, y, False, fraction=0.5)
  masked, small = slim_jax.mask(variables, info.dead), info.variables
  for method in ('encode', Net.encode):
    got, want = thin.apply(small, x, method=method), net.apply(masked, x, method=method)
    assert laws.distance(got, want) < 1e-5
  got = thin.apply(small, x, y, False, mutable=['intermediates'])
  want = net.apply(masked, x, y, False, mutable=['intermediates'])
  assert laws.distance(got, want) < 1e-5
  _, new = thin.apply(small, x, y, False, capture_intermediates=True)
  assert new['intermediates']['head']['__call__'][0].shape == (3, 3)
  key = jax.random.key(0)
  new = thin.init({'params': key}, x, y, False)
  assert laws.distance(new, info.plan.slice(net.init({'params': key}, x, y, False))) == 0
  out, again = thin.init_with_output(key, x, y, False)
  assert laws.distance(again, new) == 0 and out.shape == (3, 3)
  shapes = jax.eval_shape(lambda: thin.init(key, x, y, False))
  assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, small)
  assert hash(thin) == hash(thin.clone()) and thin == thin.clone()
  assert 'kernel' in thin.tabulate(key, x, y, False)


def test_a_thin_module_is_a_submodule():
  net, variables, x, y = make(jnp.float32)
  thin, info = linen.slim(net, variables, x, y, False, fraction=0.5)

  class Outer(nn.Module):
    inner: nn.Module

    @nn.compact
    def __call__(self, x, y, train):
      return nn.Dense(2)(self.inner(x, y, train))

  outer, key = Outer(thin), jax.random.key(0)
  made = outer.init(key, x, y, False)
  assert jax.tree.map(jnp.shape, made['params']['inner']) == jax.tree.map(
    jnp.shape, info.variables['params']
  )
  for name in ('params', 'batch_stats'):
    made[name]['inner'] = info.variables[name]
  out, new = outer.apply(made, x, y, True, mutable=['batch_stats'], rngs={'dropout': key})
  _, want = thin.apply(info.variables, x, y, True, mutable=['batch_stats'], rngs={'dropout': key})
  for norm in ('norms_0', 'norms_1'):  # those before dropout, which has a key of its own here
    assert laws.distance(new['batch_stats']['inner'][norm], want['batch_stats'][norm]) < 1e-5
  dense = made['params']['Dense_0']
  inner = thin.apply(info.variables, x, y, False)
  got = outer.apply(made, x, y, False)
  assert laws.distance(got, inner @ dense['kernel'] + dense['bias'][None]) < 1e-5
  assert out.shape == got.shape


def test_cuts_compose(x64, tmp_path):
  net, variables, x, y = make(jnp.float64)
  once, first = linen.slim(net, variables, x, y, False, fraction=0.3)
  twice, second = linen.slim(once, first.variables, x, y, False, fraction=0.3)
  assert twice.module is net
  masked = slim_jax.mask(slim_jax.mask(variables, first.dead), first.plan.lift(second.dead))
  got = twice.apply(second.variables, x, y, False)
  assert laws.distance(got, net.apply(masked, x, y, False)) < 1e-12
  assert laws.distance(second.plan.slice(variables), second.variables) == 0
  assert second.before == first.after and second.after.params < second.before.params
  # Plan and variables are the whole network: here they come back from a file.
  second.plan.save(tmp_path / 'plan.npz')
  again = linen.thin(Net(jnp.float64), slim_jax.Plan.load(tmp_path / 'plan.npz'))
  stored = pickle.loads(pickle.dumps(jax.device_get(second.variables)))
  assert laws.distance(again.apply(stored, x, y, False), got) == 0


def test_channels_are_chosen_as_by_the_functions_alone():
  net, variables, x, y = make(jnp.float32)
  infer = linen.functions(net, variables).infer
  of = lambda **options: linen.slim(net, variables, x, y, False, **options)[1]
  same = lambda info, dead: jax.tree.all(jax.tree.map(lambda a, b: (a == b).all(), info.dead, dead))
  info = of(budget='macs:0.6', min_channels=1)
  dead = slim_jax.select_budget(infer, variables, x, y, target='macs:0.6', min_channels=1)
  assert same(info, dead) and info.after.macs <= 0.6 * info.before.macs
  tied = slim_jax.select_global(
    variables, fraction=0.4, tied=slim_jax.streams(infer, variables, x, y)
  )
  assert same(of(fraction=0.4, tied=True), tied)
  assert same(of(dead=tied), tied)
  norms = slim_jax.scores.kernel_norm(infer, variables, x, y)
  dead = slim_jax.select_global(variables, fraction=0.4, scores=norms)
  assert same(of(fraction=0.4, scores=slim_jax.scores.kernel_norm), dead)
  assert 'channels -' in str(info) and 'MACs' in str(info)


class Noisy(nn.Module):
  """Training adds noise behind a BatchNorm, so it reads channels that inference does not."""

  @nn.compact
  def __call__(self, x, *, deterministic):
    x = nn.BatchNorm(use_running_average=deterministic)(nn.Dense(8)(x))
    if not deterministic:
      x += jax.random.normal(self.make_rng('noise'), x.shape)
    return nn.Dense(3)(x)


def test_training_is_planned_with_inference():
  x = jnp.ones((4, 5))
  variables = randomise(Noisy().init(jax.random.key(0), x, deterministic=True), jnp.float32, 0)
  both = linen.slim(Noisy(), variables, x, fraction=0.5)[1]
  alone = linen.slim(Noisy(), variables, x, fraction=0.5, train=False)[1]
  kernel = lambda info: info.variables['params']['Dense_1']['kernel'].shape[0]
  assert kernel(both) == 8 > kernel(alone)


class Transformer(nn.Module):
  """No BatchNorm; noise in training."""

  dtype: type

  @nn.compact
  def __call__(self, x, deterministic):
    kinds = dict(dtype=self.dtype, param_dtype=self.dtype)
    y = nn.LayerNorm(**kinds)(x)
    x = x + nn.MultiHeadDotProductAttention(4, **kinds)(y)
    y = nn.gelu(nn.Dense(12, **kinds)(nn.LayerNorm(**kinds)(x)))
    x = x + nn.Dense(8, **kinds)(nn.Dropout(0.3)(y, deterministic))
    return nn.Dense(3, **kinds)(x.mean(1))


@pytest.mark.slow
def test_networks_without_batch_norm(x64):
  net, x = Transformer(jnp.float64), jax.random.normal(jax.random.key(0), (2, 5, 8), jnp.float64)
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), x, True))
  variables, tx = randomise(shapes, jnp.float64, 0), optax.adam(1e-2)
  opt_state = cosines(tx, variables['params'])
  options = dict(where='heads,neurons', fraction=0.4, tx=tx, opt_state=opt_state)
  once, first = linen.slim(net, variables, x, **options)
  assert 0.3 < first.removed < 0.5 and first.after.macs < first.before.macs
  full = first.plan.expand(first.variables)  # removed units are zeros
  key = {'dropout': jax.random.key(1)}
  got = once.apply(first.variables, x, False, rngs=key)
  assert laws.distance(got, net.apply(full, x, False, rngs=key)) < 1e-12
  units = slim_jax.units(linen.functions(net, variables).infer, variables, x, where='heads,neurons')
  gates = {name: ~dead * jnp.ones(dead.shape) for name, dead in first.dead.items()}
  want = net.apply(slim_jax.fold(variables, gates, units), x, False, rngs=key)
  assert laws.distance(got, want) < 1e-12
  moments = jax.tree.map(jnp.shape, first.opt_state[0].mu)
  assert moments == jax.tree.map(jnp.shape, first.variables['params'])

  twice, second = linen.slim(once, first.variables, x, where='neurons', budget='macs:0.9')
  assert second.after.macs <= 0.9 * second.before.macs
  got = twice.apply(second.variables, x, True)
  assert laws.distance(got, net.apply(second.plan.expand(second.variables), x, True)) < 1e-12


@pytest.mark.parametrize(
  'options, words',
  [
    ({}, 'give one of'),
    ({'fraction': 0.5, 'budget': 'macs:0.5'}, 'give one of'),
    ({'fraction': 0.5, 'tx': optax.sgd(0.1)}, 'both tx and opt_state'),
    ({'dead': {}, 'min_channels': 1}, 'chosen already'),
    ({'fraction': 0.5, 'where': '*', 'bias': 'keep'}, 'where= and bias='),
    ({'fraction': 0.5, 'where': '*', 'tied': True}, 'which are whole'),
    ({'fraction': 0.5, 'train': {'mode': 'train'}}, 'infer= is needed'),
  ],
)
def test_options_that_contradict_each_other(options, words):
  net, variables, x, y = make(jnp.float32)
  with pytest.raises(SlimError, match=words):
    linen.slim(net, variables, x, y, False, **options)


def test_other_things_than_modules():
  with pytest.raises(SlimError, match='needs a flax.linen.Module'):
    linen.thin(len, slim_jax.Plan({}))
