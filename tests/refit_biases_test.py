"""`reconstruct` where a channel carries the constants of removed ones."""

from helpers import laws, zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax


@pytest.mark.slow
def test_constants_are_moved_once(x64):
  model = zoo.build(zoo.case('vgg'), jnp.float64)
  dead = laws.random_dead(model.variables, 0.4, 0, scales=model.scales)
  plan = slim_jax.plan(model.infer, model.variables, model.x, dead=dead, bias='keep')
  assert plan.folds
  # A ridge that allows no change leaves the thin network as it is.
  stiff = slim_jax.reconstruct(model.infer, model.variables, model.x, plan=plan, ridge=1e15)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10),
    plan.slice(stiff),
    plan.slice(model.variables),
  )
  # Without it, the outputs come near those of the full network.
  x = jax.random.normal(jax.random.key(1), (64, *model.x.shape[1:]), jnp.float64)
  fitted = slim_jax.reconstruct(model.infer, model.variables, x, plan=plan)
  want, thin = model.infer(model.variables, x), slim_jax.thin(model.infer, plan)
  plain, near = (jnp.std(thin(plan.slice(v), x) - want) for v in (model.variables, fitted))
  assert near < 0.7 * plain
