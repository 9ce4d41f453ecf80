"""`thin` of a function that reads what its plan removed."""

import json

from helpers import laws
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import tree


def draw(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape, jnp.float64)


def network(params, x, *, noise=0.0, normalised=False, decay=0.0, auxiliary=False):
  kernel = params['in']['kernel']
  if normalised:
    kernel = kernel / jnp.linalg.norm(kernel)
  before = x @ kernel
  hidden = jax.nn.relu(before * params['bn']['scale'][None] + params['bn']['bias'][None])
  if noise:
    hidden = hidden + noise * jax.random.normal(jax.random.key(3), hidden.shape, hidden.dtype)
  out = hidden @ params['out']['kernel']
  if auxiliary:
    out = out + before @ params['aux']['kernel']
  return out + decay * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params))


def variant(**options):
  def train(params, x):
    return network(params, x, **options)

  return train


@pytest.fixture
def made(x64):
  params = {
    'in': {'kernel': draw(0, 4, 6)},
    'bn': {'scale': jnp.linspace(0.1, 0.6, 6), 'bias': draw(4, 6)},
    'out': {'kernel': draw(1, 6, 3)},
    'aux': {'kernel': draw(5, 6, 3)},
  }
  dead = slim_jax.select_global(params, fraction=0.4)
  return params, draw(2, 8, 4), dead


READS_MORE = {
  'noise': (variant(noise=0.1), 'out/kernel, axis 0: 3 of 6'),
  'norm of weights': (variant(normalised=True), 'in/kernel, axis 1: 3 of 6'),
  'weight decay': (variant(decay=0.1), 'in/kernel, axis 1: 3 of 6 .0, 1, 2.; out/kernel, axis 0'),
  'auxiliary head': (variant(auxiliary=True), 'in/kernel, axis 1: 3 of 6'),
}


@pytest.mark.parametrize(('train', 'message'), READS_MORE.values(), ids=list(READS_MORE))
def test_it_is_refused_by_name_and_exact_with_also(made, train, message):
  params, x, dead = made
  plan = slim_jax.plan(network, params, x, dead=dead)
  thin_params, masked = plan.slice(params), slim_jax.mask(params, dead)
  assert laws.distance(slim_jax.thin(network, plan)(thin_params, x), network(masked, x)) < 1e-12
  for widen in (False, True):
    with pytest.raises(ValueError, match=message) as error:
      slim_jax.thin(train, plan, widen=widen)(thin_params, x)
    assert 'also=[(train, args, outs)]' in str(error.value)
  # The gradient of a loss reads as much.
  with pytest.raises(ValueError, match=message.partition(',')[0]):
    jax.grad(lambda params: slim_jax.thin(train, plan)(params, x).sum())(thin_params)
  both = slim_jax.plan(network, params, x, dead=dead, also=[(train, (x,), None)])
  for f in (network, train):
    assert laws.distance(slim_jax.thin(f, both)(both.slice(params), x), f(masked, x)) < 1e-12


def test_zeros_are_read_on_request(made):
  params, x, dead = made
  plan = slim_jax.plan(network, params, x, dead=dead)
  thin_params, (decayed, _) = plan.slice(params), READS_MORE['weight decay']
  got = slim_jax.thin(decayed, plan, missing='zero')(thin_params, x)
  assert laws.distance(got, decayed(plan.expand(thin_params), x)) < 1e-12
  with pytest.raises(ValueError, match="missing must be 'error' or 'zero'"):
    slim_jax.thin(decayed, plan, missing='ignore')


def test_every_form_of_a_plan_knows_what_was_removed(made, tmp_path):
  params, x, dead = made
  plan = slim_jax.plan(network, params, x, dead=dead)
  thin_params, (noisy, _) = plan.slice(params), READS_MORE['noise']
  more = tree.like(thin_params, {('bn', 'scale'): np.array([True, False, False])})
  second = slim_jax.plan(slim_jax.thin(network, plan), thin_params, x, dead=more)
  both = plan.then(second)
  plan.save(tmp_path / 'plan')
  both.save(tmp_path / 'both')
  forms = {
    'read from a file': (slim_jax.Plan.load(tmp_path / 'plan'), noisy, params),
    'a second pass': (both, noisy, params),
    'a second pass from a file': (slim_jax.Plan.load(tmp_path / 'both'), noisy, params),
    'the way from the first': (
      both.relative_to(plan),
      slim_jax.thin(noisy, plan, missing='zero'),
      thin_params,
    ),
    'both passes at once': (slim_jax.plan(network, params, x, dead=plan.lift(more)), noisy, params),
  }
  for form, f, variables in forms.values():
    with pytest.raises(ValueError, match='reads what its plan removed: out/kernel, axis 0'):
      slim_jax.thin(f, form)(form.slice(variables), x)
  want = network(slim_jax.mask(params, plan.lift(more)), x)
  for form in (forms['a second pass'][0], forms['both passes at once'][0]):
    assert laws.distance(slim_jax.thin(network, form)(form.slice(params), x), want) < 1e-12
  part, noise_of_part = plan['out'], lambda out, x: jnp.ones((2, 6)) @ out['kernel'] + x
  with pytest.raises(ValueError, match='reads what its plan removed: kernel, axis 0'):
    slim_jax.thin(noise_of_part, part)(part.slice(params['out']), 0.0)


def test_files_of_earlier_versions_are_read(made, tmp_path):
  """They do not say what was zero: all that was removed counts as zero, as it did then."""
  params, x, dead = made
  plan = slim_jax.plan(network, params, x, dead=dead)
  plan.save(tmp_path / 'new')
  with np.load(tmp_path / 'new') as file:
    arrays = {name: array for name, array in file.items() if 'support' not in name}
  head = json.loads(str(arrays['head']))
  for leaf in head['leaves']:
    del leaf['support'], leaf['filled']
  arrays['head'] = np.array(json.dumps(head))
  with open(tmp_path / 'old', 'wb') as file:
    np.savez_compressed(file, **arrays)
  old = slim_jax.Plan.load(tmp_path / 'old')
  thin_params = old.slice(params)
  want = network(slim_jax.mask(params, dead), x)
  assert laws.distance(slim_jax.thin(network, old)(thin_params, x), want) < 1e-12
  noisy, _ = READS_MORE['noise']
  want = noisy(old.expand(thin_params), x)
  assert laws.distance(slim_jax.thin(noisy, old)(thin_params, x), want) < 1e-12


def test_mask_selects_whatever_stands_at_a_dead_channel():
  params = {
    'bn': {'scale': jnp.array([np.nan, 1.0, np.inf]), 'bias': jnp.array([np.nan, 2.0, 3.0])}
  }
  dead = tree.like(params, {('bn', 'scale'): np.array([True, False, True])})
  masked = slim_jax.mask(params, dead)['bn']
  assert masked['scale'].tolist() == [0, 1, 0] and masked['bias'].tolist() == [0, 2, 0]


def test_a_bias_goes_with_the_outputs_of_its_layer_alone():
  """A `weight` is [outputs, inputs]: its last axis is not that of the bias, square or not."""
  layer = {'weight': jnp.ones((4, 4)), 'bias': jnp.ones(4)}
  for dead, left in ((np.arange(4) < 1, 4), ((np.arange(4) < 1)[:, None], 3)):
    masked = slim_jax.mask(layer, {'weight': dead, 'bias': None})
    assert masked['bias'].sum() == left and masked['weight'].sum() == 12
