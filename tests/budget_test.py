"""Selections meet a target: no more of the network stays, and no more channels are removed than needed."""

import functools
import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models
from slim_jax.costs import candidates
from slim_jax.selection import budget


class Mixed(nn.Module):
  """Depthwise and grouped convolutions, a loop, two concatenated streams."""

  @nn.compact
  def __call__(self, x, train=False):
    x = nn.relu(nn.BatchNorm(not train)(nn.Conv(8, (3, 3))(x)))
    y = nn.relu(nn.BatchNorm(not train)(nn.Conv(8, (3, 3), feature_group_count=8)(x)))
    z = nn.relu(nn.BatchNorm(not train)(nn.Conv(12, (3, 3), feature_group_count=4)(x)))
    x = nn.max_pool(jnp.concatenate([x + y, z], -1), (2, 2), (2, 2)).mean((1, 2))
    w = self.param('w', nn.initializers.lecun_normal(), (20, 20))
    x, _ = jax.lax.scan(lambda h, _: (jnp.tanh(h @ w), None), x, length=3)
    return nn.Dense(10)(x)


NETWORKS = {
  'vgg': models.create('vgg', num_classes=10, widths=(8, 12, 'M', 16, 16)),
  'preresnet20': models.create('preresnet20', num_classes=10),
  'densenet': models.create('densenet', num_classes=10, depth=13),
  'mlp': models.create('mlp', num_classes=10, widths=(20, 30)),
  'mixed': Mixed(),
}


def network(module, size=8):
  """(apply, variables, image): all are shapes except the scales, which are random."""
  image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
  shapes = jax.eval_shape(
    lambda: module.init(jax.random.key(0), jnp.zeros(image.shape), train=False)
  )
  rng = np.random.default_rng(0)
  variables = jax.tree.map(
    lambda leaf, is_scale: rng.uniform(size=leaf.shape).astype('float32') if is_scale else leaf,
    shapes,
    slim_jax.batch_norm_scales(shapes),
  )
  return lambda v, x: module.apply(v, x, train=False), variables, image


def shapes_of(variables):
  return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), variables)


def counted(apply, variables, image, dead):
  """`slim_jax.count` of the thin network, by the public functions."""
  plan = slim_jax.plan(apply, variables, image, dead=dead)
  return slim_jax.count(slim_jax.thin(apply, plan), plan.slice(shapes_of(variables)), image)


@pytest.mark.parametrize('target', ['macs:0.6', 'params:0.7', 'memory:0.8'])
@pytest.mark.parametrize('name', NETWORKS)
def test_what_is_reached_is_what_count_says(name, target):
  apply, variables, image = network(NETWORKS[name])
  met = budget.search(apply, variables, image, target=target)
  field = {'macs': 'macs', 'params': 'params', 'memory': 'value_bytes'}[target.split(':')[0]]
  assert getattr(slim_jax.count(apply, variables, image), field) == met.full
  assert getattr(counted(apply, variables, image, met.dead), field) / met.full == met.reached
  assert met.reached <= float(target.split(':')[1])


@pytest.mark.parametrize(
  'options', [{}, dict(multiple_of=4, min_channels=2), dict(per_layer=True)], ids=str
)
@pytest.mark.parametrize('share', [0.2, 0.5, 0.83])
def test_no_smaller_fraction_meets_the_target(share, options):
  """Compares with every possible threshold."""
  apply, variables, image = network(NETWORKS['vgg'], 4)
  full = slim_jax.count(apply, variables, image).macs
  sizes = (8, 12, 16, 16)
  ends = {k / n for n in ((52,) if 'per_layer' not in options else sizes) for k in range(n)}
  for fraction in sorted(end + 1e-6 for end in ends):
    dead = slim_jax.select_global(variables, fraction=fraction, **options)
    if counted(apply, variables, image, dead).macs <= share * full:
      break
  got = slim_jax.select_budget(apply, variables, image, target=f'macs:{share}', **options)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(dead), strict=True):
    assert a.tolist() == b.tolist()


def test_a_share_of_one_removes_nothing():
  apply, variables, image = network(NETWORKS['vgg'])
  met = budget.search(apply, variables, image, target='macs:1')
  assert (met.reached, met.probes) == (1, 0)
  assert not any(mark.any() for mark in jax.tree.leaves(met.dead))


def test_tied_channels():
  apply, variables, image = network(NETWORKS['preresnet20'])
  labels = slim_jax.streams(apply, variables, image)
  met = budget.search(apply, variables, image, target='params:0.5', tied=labels)
  assert 0.48 < met.reached <= 0.5
  gone = {}
  for label, mark in zip(jax.tree.leaves(labels), jax.tree.leaves(met.dead), strict=True):
    for number, goes in zip(label.tolist(), mark.tolist()):
      assert gone.setdefault(number, goes) == goes


def test_equal_scores():
  """A network that is not trained: all scales are 1, and every layer gives its share."""
  apply, variables, image = network(NETWORKS['vgg'])
  is_scale = slim_jax.batch_norm_scales(variables)
  variables = jax.tree.map(lambda s, leaf: jnp.ones(leaf.shape) if s else leaf, is_scale, variables)
  met = budget.search(apply, variables, image, target='macs:0.5')
  assert 0.4 < met.reached <= 0.5
  shares = [mark.mean() for mark in jax.tree.leaves(met.dead)]
  assert max(shares) - min(shares) <= 1 / 8  # one channel
  with pytest.raises(slim_jax.BudgetError, match='cuts the network through'):
    slim_jax.select_budget(apply, variables, image, target='macs:0.5', strict=True)


def test_scores():
  """Scores that fall with the channel's number: the last channels are removed first."""
  apply, variables, image = network(NETWORKS['vgg'])
  order = jax.tree.map(
    lambda leaf, is_scale: -np.arange(leaf.size) if is_scale else None,
    variables,
    slim_jax.batch_norm_scales(variables),
  )
  dead = slim_jax.select_budget(apply, variables, image, target='macs:0.5', scores=order)
  widths = [len(mark) - mark.sum() for mark in jax.tree.leaves(dead)]
  assert len(set(widths)) == 1 or widths[0] == 8
  for mark, width in zip(jax.tree.leaves(dead), widths):
    assert mark.tolist() == (np.arange(len(mark)) >= width).tolist()


def test_the_function_is_traced_once():
  apply, variables, image = network(NETWORKS['vgg'])
  calls = []

  def traced(variables, x):
    calls.append(x)
    return apply(variables, x)

  assert budget.search(traced, variables, image, target='macs:0.5').probes > 3
  assert len(calls) == 1


def test_a_target_that_constraints_forbid():
  apply, variables, image = network(NETWORKS['vgg'])
  most = slim_jax.select_global(variables, fraction=0.999, max_fraction=0.25)
  left = counted(apply, variables, image, most).macs / slim_jax.count(apply, variables, image).macs
  assert left > 0.5
  message = f'macs:0.5 cannot be met.* has {left:.3g} of the MACs.*the options allow no more'
  with pytest.raises(slim_jax.BudgetError, match=message):
    slim_jax.select_budget(apply, variables, image, target='macs:0.5', max_fraction=0.25)


def test_a_target_beyond_which_the_network_is_cut_through():
  apply, variables, image = network(NETWORKS['vgg'])
  # The layer with the smallest scales is empty before any other becomes thin.
  variables['params']['BatchNorm_2']['scale'] *= 1e-3
  with pytest.raises(
    slim_jax.BudgetError,
    match='params:0.1 cannot be met: with 15 channels.*cuts the network through',
  ):
    slim_jax.select_budget(apply, variables, image, target='params:0.1')
  dead = slim_jax.select_budget(apply, variables, image, target='params:0.1', min_channels=1)
  assert (
    counted(apply, variables, image, dead).params
    <= 0.1 * slim_jax.count(apply, variables, image).params
  )


@pytest.mark.parametrize(
  'target', ['macs', 'macs:', 'macs:0', 'macs:1.1', 'macs:nan', 'flops:0.5', 'macs:half', '']
)
def test_targets_that_cannot_be_read(target):
  apply, variables, image = network(NETWORKS['mlp'])
  with pytest.raises(ValueError, match='target must be'):
    slim_jax.select_budget(apply, variables, image, target=target)


def test_a_network_without_what_is_asked_for():
  variables = {'BatchNorm_0': {'scale': jnp.ones(3), 'mean': jnp.ones(3)}}
  with pytest.raises(ValueError, match='the full network has no MACs'):
    slim_jax.select_budget(
      lambda v, x: x * v['BatchNorm_0']['scale'][None],
      variables,
      jnp.ones((2, 3)),
      target='macs:0.5',
    )


def test_other_mistakes_are_not_taken_for_a_cut():
  apply, variables, image = network(NETWORKS['mlp'])
  with pytest.raises(ValueError, match='max_fraction must be in'):
    slim_jax.select_budget(apply, variables, image, target='macs:0.5', max_fraction=2)
  with pytest.raises(TypeError, match='fraction'):
    slim_jax.select_budget(apply, variables, image, target='macs:0.5', fraction=0.5)


def test_latency_needs_arrays():
  apply, variables, image = network(NETWORKS['mlp'])
  with pytest.raises(ValueError, match='latency is measured: it needs arrays'):
    slim_jax.select_budget(apply, variables, image, target='latency:0.5')


def test_latency_is_the_time_of_the_thin_network():
  """By this clock a call takes as many seconds as its variables have parameters."""
  apply, variables, image = network(NETWORKS['mlp'])
  variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
  rng = np.random.default_rng(0)
  variables['params']['BatchNorm_0']['scale'] = jnp.asarray(rng.uniform(size=20))
  variables['params']['BatchNorm_1']['scale'] = jnp.asarray(rng.uniform(size=30))
  now = [0.0]

  def compiled(f):
    run = jax.jit(f)

    def timed(variables, *args):
      now[0] += sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
      return run(variables, *args)

    return timed

  met = budget.search(
    apply,
    variables,
    jnp.ones(image.shape),
    target='latency:0.5',
    seconds=functools.partial(candidates.seconds, compiled=compiled, clock=lambda: now[0]),
  )
  params = sum(leaf.size for leaf in jax.tree.leaves(variables['params']))
  assert met.full == params and 0 < met.probes <= 8
  left = counted(apply, variables, image, met.dead).params
  assert met.reached == left / params and 0.4 < met.reached <= 0.5


def test_latency_of_a_real_run():
  apply, variables, image = network(NETWORKS['mlp'])
  variables = jax.tree.map(lambda leaf: jnp.ones(leaf.shape), variables)
  start = time.perf_counter()
  met = budget.search(apply, variables, jnp.ones(image.shape), target='latency:1')
  assert 0 < met.full < time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.parametrize(
  'name, size', [('vgg19', 32), ('preresnet164', 32), ('densenet40', 32), ('resnet50', 224)]
)
def test_half_of_the_macs_to_one_percent(name, size):
  classes = 10 if size == 32 else 1000
  apply, variables, image = network(models.create(name, num_classes=classes), size)
  met = budget.search(apply, variables, image, target='macs:0.5')
  print(
    f'{name}: {met.reached:.5f}, {met.probes} probes, {met.seconds:.1f} s, '
    f'{met.seconds / met.probes:.2f} s each'
  )
  assert 0.495 <= met.reached <= 0.5
  assert counted(apply, variables, image, met.dead).macs == met.reached * met.full
