"""The cost of a channel, against one plan for every channel."""

import time

import flax.linen as nn
from helpers import random_networks, zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import batch_norms, models, tree
from slim_jax.costs import per_channel


def brute_force(apply, variables, x, scales=None):
  """By path of a scale, the MACs that each channel saves when it alone is dead: one plan each."""

  def macs(dead):
    plan = slim_jax.plan(apply, variables, x, dead=dead)
    return slim_jax.count(slim_jax.thin(apply, plan), plan.slice(variables), x).macs

  leaves = tree.flatten(variables)
  full = macs(tree.like(variables, {}))
  saved = {}
  for path in batch_norms.chosen(variables, scales):
    n = leaves[path].shape[batch_norms.channel_axis(leaves[path])]
    saved[path] = [full - macs(tree.like(variables, {path: np.arange(n) == i})) for i in range(n)]
  return saved


def check(apply, variables, x, scales=None):
  saved = brute_force(apply, variables, x, scales)
  leaves = tree.flatten(variables)
  mean = sum(map(sum, saved.values())) / sum(leaves[path].size for path in saved)
  want = {path: sum(macs) / leaves[path].size / mean for path, macs in saved.items()}
  got = tree.flatten(slim_jax.macs_per_channel(apply, variables, x, scales=scales))
  assert got == pytest.approx(want, rel=1e-9)
  return want


@pytest.mark.parametrize(
  'name',
  [
    'densenet',
    'grouped',
    'mixer',
    *(
      pytest.param(name, marks=pytest.mark.slow)
      for name in (
        'preactivation_resnet',
        'resnet',
        'inverted_residual',
        'inception',
        'scanned',
        'nnx_resnet',
        'haiku_resnet',
        'equinox_resnet',
      )
    ),
  ],
)
def test_brute_force(name):
  model = zoo.build(zoo.case(name), jnp.float32)
  check(model.infer, model.variables, model.x, model.scales)


@pytest.mark.parametrize('seed', range(4))
def test_random_networks(seed):
  """Every channel is evaluated: in these networks any two neighbours may differ."""
  case = zoo.Case('random', lambda dtype: random_networks.Random(dtype, seed), (6, 6, 6, 2))
  model = zoo.build(case, jnp.float32, seed)
  saved = per_channel.saved_by_channel(
    model.infer,
    model.variables,
    model.x,
    evaluate=lambda value, n: np.array([value(i) for i in range(n)]),
  )
  want = brute_force(model.infer, model.variables, model.x)
  assert {path: macs.tolist() for path, macs in saved.items()} == want


class Chain(nn.Module):
  """Convolution, BatchNorm, convolution; then two BatchNorms that read one stream."""

  @nn.compact
  def __call__(self, x):
    bn = lambda name: nn.BatchNorm(use_running_average=True, name=name)
    x = nn.Conv(6, (3, 3), use_bias=False)(x)
    x = nn.Conv(10, (1, 1), use_bias=False)(nn.relu(bn('between')(x)))
    x = x + nn.Conv(10, (3, 3), use_bias=False)(nn.relu(bn('stream')(x)))
    return nn.Dense(7)(bn('last')(x).mean((1, 2)))


@pytest.mark.parametrize('batch', [1, 4])
def test_by_hand(batch):
  x = jax.ShapeDtypeStruct((batch, 8, 8, 3), jnp.float32)
  variables = jax.eval_shape(lambda: Chain().init(jax.random.key(0), jnp.zeros(x.shape)))
  weights = slim_jax.macs_per_channel(Chain().apply, variables, x)
  want = {
    'between': 64 * 9 * 3 + 64 * 10,  # an output of the first, an input of the second
    'stream': 64 * 9 * 10,  # the stream stays: an input of the third
    'last': 64 * 9 * 10 + 7,  # an output of the third, which nothing else reads
  }
  mean = (6 * want['between'] + 10 * want['stream'] + 10 * want['last']) / 26
  for name, macs in want.items():
    assert weights['params'][name]['scale'] == pytest.approx(macs / mean)
    assert weights['params'][name]['bias'] is None
  assert jax.tree.structure(weights['batch_stats']).num_leaves == 0


def two_norms(variables, x):
  """The input of the first norm is a result too, so what computes it cannot be removed."""
  y = x @ variables['in']
  z = (y * variables['bn_0']['scale'][None]) @ variables['between']
  return (z * variables['bn_1']['scale'][None]) @ variables['out'], y


def looped(variables, x):
  """Inside the loop, a constant matrix multiplies the first two channels."""

  def turn(h, _):
    y = h * variables['bn_0']['scale'][None]
    return h + y + y[:, :2] @ jnp.ones((2, 6)), None

  h, _ = jax.lax.scan(turn, x @ variables['in'], length=3)
  return (h @ variables['between'] * variables['bn_1']['scale'][None]) @ variables['out']


@pytest.mark.parametrize('function', [two_norms, looped])
def test_functions(function):
  variables = {
    'in': jnp.ones((3, 6)),
    'between': jnp.ones((6, 4)),
    'out': jnp.ones((4, 5)),
    'bn_0': {'scale': jnp.ones(6)},
    'bn_1': {'scale': jnp.ones(4)},
  }
  want = check(function, variables, jnp.ones((1, 3)))
  assert want['bn_0', 'scale'] / want['bn_1', 'scale'] == pytest.approx(
    {two_norms: 4 / (6 + 5), looped: 2 * 3 * 6 / 6 / (6 + 5)}[function]
  )


def test_ends_in_a_sparsity_term():
  """The penalty is proportional to the weights, also on thin parameters."""
  x = jnp.ones((1, 8, 8, 3))
  variables = Chain().init(jax.random.key(0), x)
  weights = slim_jax.macs_per_channel(Chain().apply, variables, x)['params']
  tx = slim_jax.add_l1(0.1, weights=weights)
  params = variables['params']
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, state = tx.update(zeros, tx.init(params), params)
  for name in ('between', 'stream', 'last'):
    np.testing.assert_allclose(updates[name]['scale'], 0.1 * weights[name]['scale'], rtol=1e-6)
  dead = tree.like(variables, {('params', 'between', 'scale'): np.arange(6) < 2})
  plan = slim_jax.plan(Chain().apply, variables, x, dead=dead)['params']
  thin, thin_state = plan.slice(params), plan.slice_opt_state(tx, state, params)
  updates, _ = tx.update(plan.slice(zeros), thin_state, thin)
  assert updates['between']['scale'].shape == (4,)


def test_piecewise_finds_every_step():
  rng = np.random.default_rng(0)
  for n in (1, 2, 3, 5, 64, 257):
    for _ in range(20):
      step = np.sort(rng.integers(0, 4, n))
      asked = []
      values = per_channel.piecewise(lambda i: (asked.append(i), int(step[i]))[1], n)
      assert values.tolist() == step.tolist()
      assert len(asked) == len(set(asked)) <= 5 + 3 * 2 * n.bit_length()
  assert per_channel.piecewise(lambda i: 1 // 0, 0).tolist() == []


@pytest.mark.parametrize('n', [9, 65, 257])
def test_piecewise_evaluates_five_places_where_ends_and_middle_agree(n):
  asked = []
  values = per_channel.piecewise(lambda i: (asked.append(i), int(i == n // 4))[1], n)
  assert {0, n // 4, n // 2, 3 * n // 4, n - 1} <= set(asked)
  assert values[n // 4] == 1 and values[0] == values[-1] == 0


@pytest.mark.slow
def test_a_deep_network_takes_seconds():
  """163 layers take seconds, since only the equations around each channel are analysed again."""
  x = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32)
  net = models.create('preresnet164', num_classes=10)
  variables = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.zeros(x.shape), train=False))
  start = time.process_time()
  weights = slim_jax.macs_per_channel(lambda v, x: net.apply(v, x, train=False), variables, x)
  assert time.process_time() - start < 30  # about 3 on two cores
  assert len(jax.tree.leaves(weights)) == 163


def test_errors():
  with pytest.raises(ValueError, match='no BatchNorm scale'):
    slim_jax.macs_per_channel(
      lambda v, x: x @ v['kernel'], {'kernel': jnp.ones((2, 2))}, jnp.ones((1, 2))
    )
  with pytest.raises(ValueError, match='saves no MACs'):
    slim_jax.macs_per_channel(
      lambda v, x: x * v['bn']['scale'][None], {'bn': {'scale': jnp.ones(2)}}, jnp.ones((1, 2))
    )
