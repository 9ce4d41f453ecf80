"""Thin networks that are ordinary narrower models."""

from helpers import laws, unit_laws, unit_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax.structure.unit import UnitsError


def cut(case, **fractions):
  """A model, its units, and the plan that removes shares of units, by kind, alike in all layers."""
  model = unit_networks.build(next(c for c in unit_networks.CASES if c.name == case), jnp.float64)
  units = slim_jax.units(model.infer, model.variables, model.x)
  dead = {
    name: np.arange(unit.size)[::-1] < unit.size * fractions.get(unit.kind, 0)
    for name, unit in units.items()
  }
  plan = unit_laws.cut(model, units, dead)
  return model, units, plan


@pytest.mark.parametrize('case', ['llama', 'scanned_llama'])
def test_a_thin_llama_is_a_narrower_llama(case, x64):
  model, units, plan = cut(case, stream=0.5, neurons=0.25, kv_groups=0.5)
  result = slim_jax.native(model.variables, plan, units)
  assert result.widths['stream'] == 6
  net = unit_networks.Llama(
    jnp.float64, 6, 1, 15, epsilon=1e-6 * result.epsilon, stacked=case == 'scanned_llama'
  )
  run = jax.jit(lambda variables: net.apply(variables, model.x, train=False))
  got = run(result.variables)
  want = jax.jit(slim_jax.thin(model.infer, plan))(plan.slice(model.variables), model.x)
  assert laws.distance(got, want) < 1e-12
  ordinary = slim_jax.native(model.variables, plan, units, norms='ordinary')
  assert jax.tree.all(jax.tree.map(np.array_equal, ordinary.variables, plan.slice(model.variables)))
  assert laws.distance(run(ordinary.variables), want) > 0.1


def test_what_is_no_narrower_model_is_refused(x64):
  model, units, plan = cut('vit', stream=0.5)
  with pytest.raises(UnitsError, match='subtracts'):
    slim_jax.native(model.variables, plan, units)
  assert slim_jax.native(model.variables, plan, units, norms='ordinary').widths['stream'] == 6
  model, units, plan = cut('vit', query_key_dims=0.5)
  with pytest.raises(UnitsError, match='query_key_dims'):
    slim_jax.native(model.variables, plan, units)
  model, units, plan = cut('vit', neurons=0.5, heads=0.3)
  with pytest.raises(UnitsError, match='no narrower model'):
    slim_jax.native(model.variables, plan, units.where('neurons'))
  assert set(slim_jax.native(model.variables, plan, units).widths.values()) == {2, 4, 10, 12}


def test_the_scale_of_a_norm_has_to_be_a_variable():
  """Gemma's 1 + w cannot hold the factor; the same norm with w can."""

  def network(scale):
    def f(v, x):
      x = x @ v['in']
      y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6) * scale(v['w'])[None]
      return y @ v['out']

    return f

  variables = {'in': jnp.ones((3, 4)), 'w': jnp.ones(4), 'out': jnp.ones((4, 2))}
  norms = [
    slim_jax.units(network(scale), variables, jnp.ones((5, 3)))['neurons'].norm
    for scale in (lambda w: w, lambda w: 1 + w)
  ]
  assert norms == ['rms', 'other']
