"""Each sparsity term of the configs moves scales as far as `term_pull` says."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from slim_jax.sparsity import observe, terms
from slim_jax.training import optimiser

LENGTH = optimiser.Length(steps=200, epoch_steps=25)


def make_config(**changes):
  config = ml_collections.ConfigDict(
    dict(
      momentum=0.9,
      nesterov=True,
      optimizer=dict(name='sgd'),
      weight_decay=0.0,
      clip_norm=0.0,
      train=dict(
        learning_rate=0.1,
        schedule='piecewise',
        drops=(0.5, 0.75),
        drop_factor=0.1,
        warmup_epochs=0.0,
        strength=1e-3,
        pull=0.0,
        term='l1',
        polarization_t=1.2,
        strength_warmup_epochs=0.0,
        weigh_macs=False,
      ),
    )
  )
  config.update_from_flattened_dict(changes)
  return config


def moved(config, highest):
  """Returns how far two small scales move without a gradient of the task, and all parameters."""
  schedule = optimiser.make_schedule(config.train, epochs=8, steps_per_epoch=25)
  tx = optimiser.make_sparse_tx(config, schedule, LENGTH, highest)
  start = {'BatchNorm_0': {'scale': jnp.array([0.3, 0.4, 0.9, 0.9])}}

  def step(carry, _):
    params, opt_state = carry
    updates, opt_state = tx.update(jax.tree.map(jnp.zeros_like, params), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  (end, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=LENGTH.steps)
  return (start['BatchNorm_0']['scale'] - end['BatchNorm_0']['scale'])[:2], end


@pytest.mark.parametrize('warmup', [0.0, 2.5])
@pytest.mark.parametrize('nesterov', [False, True])
@pytest.mark.parametrize('name', terms.TERMS)
def test_pull_is_how_far_the_optimiser_moves_the_scales(name, nesterov, warmup):
  config = make_config(
    **{'train.term': name, 'train.strength_warmup_epochs': warmup, 'nesterov': nesterov}
  )
  schedule = optimiser.make_schedule(config.train, epochs=8, steps_per_epoch=25)
  want = optimiser.stage_pull(config, schedule, LENGTH, 1e-3)
  distance, _ = moved(config, 1e-3)
  np.testing.assert_allclose(distance, want, rtol=1e-3)
  with config.unlocked():
    config.train.pull = 0.25
  strength = optimiser.stage_strength(config, schedule, LENGTH)
  np.testing.assert_allclose(moved(config, strength)[0], 0.25, rtol=1e-3)


@pytest.mark.parametrize('name', terms.TERMS)
def test_no_strength_leaves_the_scales_and_has_the_same_state(name):
  config = make_config(**{'train.term': name})
  params = {'BatchNorm_0': {'scale': jnp.array([-0.5, 2.0])}}
  schedule = lambda step: 0.1
  off, on = (optimiser.make_sparse_tx(config, schedule, LENGTH, highest) for highest in (0.0, 1e-3))
  assert jax.tree.structure(off.init(params)) == jax.tree.structure(on.init(params))
  updates, _ = off.update(jax.tree.map(jnp.zeros_like, params), off.init(params), params)
  np.testing.assert_array_equal(
    optax.apply_updates(params, updates)['BatchNorm_0']['scale'], params['BatchNorm_0']['scale']
  )


def test_proximal_scales_are_exactly_zero_and_polarized_ones_bounded():
  _, end = moved(make_config(**{'train.term': 'proximal'}), 1.0)
  assert np.all(end['BatchNorm_0']['scale'] == 0)
  # With t = 0 the minimum of the penalty has half of the scales at 0.
  _, end = moved(make_config(**{'train.term': 'polarization', 'train.polarization_t': 0.0}), 0.05)
  np.testing.assert_array_equal(end['BatchNorm_0']['scale'], [0, 0, 1, 1])


def test_shares_are_said():
  params = {'BatchNorm_0': {'scale': jnp.array([0.0, 0.005, 0.5, 0.7])}}
  shares = observe.shares(params)
  assert shares == {'scales_below': {'0.0001': 0.25, '0.001': 0.25, '0.01': 0.5, '0.1': 0.5}}
  assert observe.say(shares) == '50.0% of scales below 0.01'
