"""The pull is how far SGD moves a scale that gets no gradient from the task."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

import slim_jax
from slim_jax.sparsity import pull
from slim_jax.training import optimiser

SECTION = ml_collections.ConfigDict(
  dict(
    learning_rate=0.1, schedule='piecewise', drops=(0.5, 0.75), drop_factor=0.1, warmup_epochs=1.0
  )
)


@pytest.mark.parametrize('momentum, nesterov', [(0.0, False), (0.9, False), (0.9, True)])
def test_pull_is_what_sgd_does(momentum, nesterov):
  schedule = optimiser.make_schedule(SECTION, epochs=8, steps_per_epoch=25)
  tx = optax.chain(
    slim_jax.add_l1(1e-3, mask={'scale': True}),
    optax.sgd(schedule, momentum=momentum or None, nesterov=nesterov),
  )
  start = {'scale': jnp.array([0.5, -0.5])}

  def step(carry, _):
    params, opt_state = carry
    updates, opt_state = tx.update(jax.tree.map(jnp.zeros_like, params), opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), None

  (end, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=200)
  moved = np.abs(start['scale']) - np.abs(end['scale'])
  want = pull.l1_pull(
    pull.by_step(schedule, 200), strength=1e-3, momentum=momentum, nesterov=nesterov
  )
  assert 0 < want < 0.5
  np.testing.assert_allclose(moved, want, rtol=1e-4)


def test_pull_of_the_paper():
  """160 epochs of 781 steps pull 6.6 at 1e-4; the momentum's start from zero is negligible."""
  section = SECTION.copy_and_resolve_references()
  section.warmup_epochs = 0.0
  rates = pull.by_step(optimiser.make_schedule(section, epochs=160, steps_per_epoch=781), 160 * 781)
  distance = pull.l1_pull(rates, strength=1e-4, momentum=0.9, nesterov=True)
  assert distance == pytest.approx(1e-4 / (1 - 0.9) * rates.sum(), rel=1e-3)
  assert distance == pytest.approx(6.6, abs=0.1)


def test_far_too_many_small_scales_are_warned_of():
  assert not pull.excess(0.85, fraction=0.7)
  assert '94% of the scales are below 0.01 and 70% of the channels are to go' in pull.excess(
    0.94, fraction=0.7
  )


def test_warning_names_pull_start_and_strength():
  text = pull.warning(start=0.5, pull=0.1, strength=1e-4)
  assert 'by 0.1 in all' in text and 'start at 0.5' in text and 'strength to 0.0005' in text
  assert not pull.warning(start=0.5, pull=0.6, strength=1e-4)
  assert not pull.warning(start=1.0, pull=1 - 1e-9, strength=1e-4)
  assert not pull.warning(start=0.5, pull=0.0, strength=0.0)
