"""One plan for several functions of the same variables."""

from helpers import laws, zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def normalised(params, x):
  hidden = x @ params['in']['kernel']
  hidden = (hidden - hidden.mean(0)[None]) / jnp.sqrt(hidden.var(0)[None] + 1e-5)
  return jax.nn.relu(hidden * params['bn']['scale'][None] + params['bn']['bias'][None])


def infer(params, x):
  return normalised(params, x) @ params['out']['kernel']


def with_noise(params, x):
  """Training adds noise to every channel, also to the removed ones."""
  hidden = normalised(params, x)
  hidden = hidden + 0.1 * jax.random.normal(jax.random.key(3), hidden.shape, hidden.dtype)
  return hidden @ params['out']['kernel']


def with_norm(params, x):
  """Training divides by a norm over all columns of the kernel, also of removed channels."""
  kernel = params['in']['kernel']
  return infer({**params, 'in': {'kernel': kernel / jnp.linalg.norm(kernel)}}, x)


@pytest.fixture
def network(x64):
  params = {
    'in': {'kernel': draw(0, 4, 6)},
    'bn': {'scale': jnp.linspace(0.1, 0.6, 6), 'bias': draw(4, 6)},
    'out': {'kernel': draw(1, 6, 3)},
  }
  return params, draw(2, 8, 4), slim_jax.select_global(params, fraction=0.5)


@pytest.mark.parametrize('train', [with_noise, with_norm])
def test_what_any_function_needs_stays(network, train):
  params, x, dead = network
  plan = slim_jax.plan(infer, params, x, dead=dead, also=[(train, (x,), None)])
  masked, thin_params = slim_jax.mask(params, dead), plan.slice(params)
  for f in (infer, train):
    assert laws.distance(slim_jax.thin(f, plan)(thin_params, x), f(masked, x)) < 1e-12

    def loss(params, f=f):
      return jnp.sum(f(params, x) ** 2)

    thin = slim_jax.thin(loss, plan)
    assert laws.distance(jax.grad(thin)(thin_params), plan.slice(jax.grad(loss)(masked))) < 1e-12


def test_only_what_training_reads_is_added(network):
  params, x, dead = network
  alone = slim_jax.plan(infer, params, x, dead=dead)
  noisy = slim_jax.plan(infer, params, x, dead=dead, also=[(with_noise, (x,), None)])
  shapes = [{path: cut.thin_shape for path, cut in plan.cuts.items()} for plan in (alone, noisy)]
  assert shapes[0]['out', 'kernel'] == (2, 3) and shapes[1]['out', 'kernel'] == (6, 3)
  assert shapes[0].pop(('out', 'kernel')) != shapes[1].pop(('out', 'kernel'))
  assert shapes[0] == shapes[1]


def test_the_same_function_again_changes_nothing(network):
  params, x, dead = network
  alone = slim_jax.plan(infer, params, x, dead=dead)
  twice = slim_jax.plan(infer, params, x, dead=dead, also=[(infer, (x,), None)])
  assert str(alone) == str(twice)
  for path, cut in alone.cuts.items():
    for one, other in zip(cut.indices, twice.cuts[path].indices, strict=True):
      np.testing.assert_array_equal(one, other)


def test_a_disconnected_further_function_is_an_error(network):
  params, x, _ = network
  dead = {'in': {'kernel': None}, 'bn': {'scale': np.ones(6, bool), 'bias': None},
          'out': {'kernel': None}}  # fmt: skip
  with pytest.raises(ValueError, match='the network is disconnected'):
    slim_jax.plan(
      lambda params, x: x @ params['in']['kernel'], params, x, dead=dead,
      also=[(infer, (x,), None)],
    )  # fmt: skip


@pytest.mark.parametrize('case', zoo.LIBRARIES.values(), ids=lambda case: case.name)
def test_training_of_a_network_with_batch_norm_adds_nothing(case, x64):
  """With statistics declared as state, inference and training need the same."""
  model = zoo.build(case, jnp.float64)
  dead = laws.random_dead(model.variables, 0.5, scales=model.scales)
  alone = slim_jax.plan(model.infer, model.variables, model.x, dead=dead)
  also = [(model.train, (model.x, jax.random.key(1)), model.outs)]
  both = slim_jax.plan(model.infer, model.variables, model.x, dead=dead, also=also)
  for path, cut in alone.cuts.items():
    assert cut.thin_shape == both.cuts[path].thin_shape, path
