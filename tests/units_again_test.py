"""Units of networks that have been cut: what is left has the kinds that it had."""

from helpers import unit_laws, unit_networks
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax


@pytest.mark.parametrize(
  'name',
  [
    'convnext',
    'fused',
    *(pytest.param(name, marks=pytest.mark.slow) for name in ('llama', 'model_vit', 'unet')),
  ],
)
def test_a_thin_network_has_units_of_the_same_kinds(name):
  case = next(case for case in unit_networks.CASES if case.name == name)
  model = unit_networks.build(case, jnp.float32)
  units = slim_jax.units(model.infer, model.variables, model.x)
  # Two of each stay at least: one alone is no axis to follow.
  dead = {n: np.arange(unit.size) < (unit.size // 2) * (unit.size > 3) for n, unit in units.items()}
  plan = unit_laws.cut(model, units, dead)
  thin, variables = slim_jax.thin(model.infer, plan), plan.slice(model.variables)
  again = slim_jax.units(thin, variables, model.x)
  assert sorted((unit.kind, unit.size) for unit in again.values()) == sorted(
    (unit.kind, int((~dead[name]).sum())) for name, unit in units.items()
  )
