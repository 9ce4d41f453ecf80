"""Several passes in a row: any mix of `bias=`, cutoffs and budgets, held to the law."""

import zlib

from flax import linen as nn
from helpers import laws
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import models, tree
from slim_jax.selection import ranking


class Mixed(nn.Module):
  """Padded convolutions after softplus and sigmoid, and a shortcut: constants that matter."""

  @nn.compact
  def __call__(self, x, train=False):
    norm = lambda x: nn.BatchNorm(use_running_average=not train)(x)
    x = nn.softplus(norm(nn.Conv(8, (3, 3))(x)))
    y = nn.sigmoid(norm(nn.Conv(8, (3, 3), use_bias=False)(x)))
    y = nn.relu(norm(nn.Conv(8, (3, 3), use_bias=False)(y)))
    return nn.Dense(3)((x + y).mean((1, 2)))


NETS = {'chain': models.VGG(num_classes=3, widths=(8, 8), dtype=jnp.float64), 'mixed': Mixed()}


@pytest.fixture(params=NETS)
def network(request, x64):
  net, x = NETS[request.param], jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 8, 3)))
  shapes = jax.eval_shape(lambda: net.init(jax.random.key(0), jnp.float32(x), train=False))

  def draw(path, leaf):
    key = jax.random.key(zlib.crc32('/'.join(path).encode()))
    return jax.random.uniform(key, leaf.shape, jnp.float64, 0.1, 1.0) * (
      1 if path[-1] in ('scale', 'var') else jax.random.rademacher(key, leaf.shape, jnp.float64)
    )

  def infer(v, x):
    return net.apply(v, x, train=False)

  def train(v, x):
    return net.apply(v, x, train=True, mutable=['batch_stats'])

  return infer, train, tree.map_with_path(draw, shapes), x


def cutoffs(f, variables, x):
  """Ways to select, by name."""
  return {
    'fraction': lambda: slim_jax.select_global(variables, fraction=0.2),
    'gap': lambda: slim_jax.select_global(variables, threshold='gap', max_fraction=0.3),
    'threshold': lambda: slim_jax.select_global(variables, threshold=0.35, max_fraction=0.3),
    'budget': lambda: slim_jax.select_budget(f, variables, x, target='macs:0.8'),
    'ties': lambda: slim_jax.select_global(
      variables, fraction=0.2, tied=slim_jax.streams(f, variables, x)
    ),
    'norms': lambda: slim_jax.select_global(
      variables, fraction=0.2, scores=slim_jax.scores.kernel_norm(f, variables, x)
    ),
  }


PASSES = [
  [('keep', 'fraction'), ('zero', 'gap'), ('keep', 'budget')],
  [('keep', 'ties'), ('keep', 'norms'), ('zero', 'threshold')],
  [('zero', 'budget'), ('keep', 'gap'), ('keep', 'fraction')],
]


@pytest.mark.parametrize('passes', PASSES, ids=lambda passes: '-'.join(map('+'.join, passes)))
def test_every_pass_obeys_the_law(network, passes):
  infer, train, variables, x = network
  outs = (None, {'batch_stats': 'batch_stats'})
  now, now_train, thin, total = infer, train, variables, None
  for bias, cutoff in passes:
    dead = cutoffs(now, thin, x)[cutoff]()
    for path, vector in tree.flatten(dead).items():  # what carries constants is not ranked
      assert not (vector & ranking.carriers(thin).get(path, False)).any()
    masked = slim_jax.mask(thin, dead, bias=bias)
    zeros = [
      sum(
        int(np.sum(leaf == 0)) for path, leaf in tree.flatten(tree_).items() if path[-1] == 'bias'
      )
      for tree_ in (thin, masked)
    ]
    assert zeros[1] - zeros[0] == (sum(map(np.sum, jax.tree.leaves(dead))) if bias == 'zero' else 0)
    plan = slim_jax.plan(now, thin, x, dead=dead, bias=bias, also=[(now_train, (x,), outs)])
    want, (want_out, want_state) = now(masked, x), now_train(masked, x)
    total = plan if total is None else total.then(plan)
    thin = plan.slice(thin)
    for f, g in (
      (slim_jax.thin(now, plan), slim_jax.thin(now_train, plan, outs=outs)),
      (slim_jax.thin(infer, total), slim_jax.thin(train, total, outs=outs)),
    ):
      assert laws.distance(f(thin, x), want) < 1e-11
      out, state = g(thin, x)
      assert laws.distance(out, want_out) < 1e-11
      want_stats = plan['batch_stats'].slice(want_state['batch_stats'])
      assert laws.distance(state, {'batch_stats': want_stats}) < 1e-11
    now, now_train = slim_jax.thin(infer, total), slim_jax.thin(train, total, outs=outs)
    for norm in slim_jax.batch_norms.find(thin):  # the leaves of a BatchNorm stay alike
      leaves = tree.flatten(thin)
      assert len({leaves[p].shape for p in (norm.scale, norm.bias, *norm.statistics)}) == 1


def test_outputs_of_kernels_count_once():
  """However many inputs a kernel has: half of all outputs, with and without scores of their own."""
  draw = np.random.default_rng(0).normal
  params = {'a': {'kernel': draw(size=(2, 50))}, 'b': {'kernel': draw(size=(40, 5, 50))}}
  marks = jax.tree.map(lambda _: True, params)
  sums = jax.tree.map(lambda kernel: np.abs(kernel).mean(tuple(range(kernel.ndim - 1))), params)
  for options in ({}, {'scores': sums}):
    dead = slim_jax.select_global(params, fraction=0.5, scales=marks, **options)
    assert sum(int(np.sum(mark)) for mark in jax.tree.leaves(dead)) == 51
