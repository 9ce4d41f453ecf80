import doctest

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slim_jax
from slim_jax import sparsity

PARAMS = {'BatchNorm_0': {'scale': jnp.array([0.5, -0.5, 0.0]), 'bias': jnp.ones(3)},
          'Dense_0': {'kernel': jnp.ones((2, 3))}}


def test_adds_the_subgradient_to_scales_alone():
  tx = slim_jax.add_l1(0.1)
  zeros = jax.tree.map(jnp.zeros_like, PARAMS)
  updates, _ = tx.update(zeros, tx.init(PARAMS), PARAMS)
  np.testing.assert_allclose(updates['BatchNorm_0']['scale'], [0.1, -0.1, 0.0], rtol=1e-6)
  assert not updates['BatchNorm_0']['bias'].any() and not updates['Dense_0']['kernel'].any()


def test_is_the_gradient_of_the_penalty():
  """SGD with the transformation is SGD on the loss plus lambda * sum |scale|."""
  def loss(params):
    return jnp.sum(jnp.sin(params['BatchNorm_0']['scale'] * params['BatchNorm_0']['bias']))

  def penalised(params):
    scale = params['BatchNorm_0']['scale']
    return loss(params) + 0.01 * (scale * jnp.sign(scale)).sum()  # |x|, with slope 0 at 0

  sgd = optax.sgd(0.1, momentum=0.9, nesterov=True)
  ours, theirs = optax.chain(slim_jax.add_l1(0.01), sgd), sgd
  a = b = PARAMS
  state_a, state_b = ours.init(a), theirs.init(b)
  for _ in range(5):
    updates, state_a = ours.update(jax.grad(loss)(a), state_a, a)
    a = optax.apply_updates(a, updates)
    updates, state_b = theirs.update(jax.grad(penalised)(b), state_b, b)
    b = optax.apply_updates(b, updates)
  jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)


def test_pull_on_an_idle_scale():
  """lambda / (1 - momentum) * sum(lr), the figure by which short runs are planned."""
  lr, strength, steps = 0.01, 0.05, 400
  tx = optax.chain(slim_jax.add_l1(strength), optax.sgd(lr, momentum=0.9))
  params = {'bn': {'scale': jnp.array([100.0]), 'bias': jnp.zeros(1)}}
  state, step = tx.init(params), jax.jit(tx.update)
  zeros = jax.tree.map(jnp.zeros_like, params)
  for _ in range(steps):
    updates, state = step(zeros, state, params)
    params = optax.apply_updates(params, updates)
  moved = 100.0 - float(params['bn']['scale'][0])
  assert abs(moved / (strength / 0.1 * lr * steps) - 1) < 0.05


def test_schedule_counts_its_own_steps():
  tx = slim_jax.add_l1(lambda step: jnp.where(step < 2, 0.0, 1.0))
  state, zeros = tx.init(PARAMS), jax.tree.map(jnp.zeros_like, PARAMS)
  seen = []
  for _ in range(4):
    updates, state = tx.update(zeros, state, PARAMS)
    seen.append(float(updates['BatchNorm_0']['scale'][0]))
  assert seen == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize('mask', [
    {'BatchNorm_0': {'scale': True, 'bias': False}, 'Dense_0': False},  # a prefix tree
    lambda params: jax.tree.map(lambda _: False, params) | {
        'BatchNorm_0': {'scale': True, 'bias': False}}])
def test_mask(mask):
  tx = slim_jax.add_l1(1.0, mask=mask)
  updates, _ = tx.update(jax.tree.map(jnp.zeros_like, PARAMS), tx.init(PARAMS), PARAMS)
  assert updates['BatchNorm_0']['scale'].tolist() == [1.0, -1.0, 0.0]
  assert not updates['Dense_0']['kernel'].any()


def test_keeps_the_dtype_of_updates():
  params = jax.tree.map(lambda a: a.astype(jnp.bfloat16), PARAMS)
  tx = slim_jax.add_l1(optax.constant_schedule(0.5))
  updates, _ = jax.jit(tx.update)(params, tx.init(params), params)
  assert updates['BatchNorm_0']['scale'].dtype == jnp.bfloat16


def test_errors():
  with pytest.raises(ValueError, match='strength must be'):
    slim_jax.add_l1(-1.0)
  with pytest.raises(ValueError, match='no BatchNorm scale'):
    slim_jax.add_l1(1.0).init({'Dense_0': {'kernel': jnp.ones((2, 2))}})
  with pytest.raises(ValueError, match='needs the parameters'):
    tx = slim_jax.add_l1(1.0)
    tx.update(PARAMS, tx.init(PARAMS))


def test_docstring():
  assert doctest.testmod(sparsity).failed == 0
