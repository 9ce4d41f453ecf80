"""Kernels that lose inputs are fitted so that their outputs stay."""

from helpers import laws, unit_laws, unit_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import tree


def twins(case, kind, dtype=jnp.float64, seed=0):
  """A model in which each second unit of a kind is the copy of the one before, and their units."""
  model = unit_networks.build(next(c for c in unit_networks.CASES if c.name == case), dtype, seed)
  units = slim_jax.units(model.infer, model.variables, model.x, where=kind)
  leaves = tree.flatten(model.variables)
  for unit in units.values():
    for place in unit.places:
      if place.role != 'reader':
        leaf = np.moveaxis(np.array(leaves[place.path]), place.axis, 0)
        for u in range(0, unit.size - 1, 2):
          leaf[place.member == u + 1] = leaf[place.member == u]
        leaves[place.path] = jnp.asarray(np.moveaxis(leaf, 0, place.axis))
  return model._replace(variables=tree.like(model.variables, leaves)), units


def without_copies(model, units):
  """The plan that removes all copies."""
  dead = {
    name: (np.arange(unit.size) % 2 == 1) & (np.arange(unit.size) < unit.size // 2 * 2)
    for name, unit in units.items()
  }
  return unit_laws.cut(model, units, dead)


@pytest.mark.parametrize(
  'case, kind',
  [
    ('mlp', 'Dense_1/neurons'),
    ('convolutions', 'Conv_3/channels'),
    ('convnext', 'neurons'),
    ('vit', 'heads'),
    ('llama', 'neurons'),
    ('fused', 'value_dims'),
  ],
)
def test_what_others_can_stand_in_for_is_recovered(case, kind, x64):
  """A copy may go: the kernel that reads both then reads one of them twice."""
  model, units = twins(case, kind)
  plan = without_copies(model, units)
  thin, want = (
    jax.jit(slim_jax.thin(model.infer, plan)),
    jax.jit(model.infer)(model.variables, model.x),
  )
  fitted = slim_jax.reconstruct(model.infer, model.variables, model.x, plan=plan, ridge=1e-12)
  assert laws.distance(thin(plan.slice(fitted), model.x), want) < 1e-7
  assert laws.distance(thin(plan.slice(model.variables), model.x), want) > 1e-3


def test_fitted_networks_are_nearer(x64):
  """Whatever goes, the outputs on the batch are nearer than without."""
  model, units = twins('vit', 'neurons,heads,value_dims', seed=1)
  dead = {name: np.arange(unit.size) < unit.size // 2 for name, unit in units.items()}
  plan = unit_laws.cut(model, units, dead)
  thin, want = jax.jit(slim_jax.thin(model.infer, plan)), model.infer(model.variables, model.x)
  fitted = slim_jax.reconstruct(model.infer, model.variables, model.x, plan=plan)
  plain, near = (
    float(jnp.linalg.norm(thin(plan.slice(v), model.x) - want)) for v in (model.variables, fitted)
  )
  assert near < 0.7 * plain


def test_nothing_removed_nothing_changes(x64):
  model, units = twins('mlp', 'neurons')
  nothing = {name: np.zeros(unit.size, bool) for name, unit in units.items()}
  plan = unit_laws.cut(model, units, nothing)
  same = slim_jax.reconstruct(model.infer, model.variables, model.x, plan=plan)
  assert all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(model.variables)))
  with pytest.raises(ValueError, match='ridge'):
    slim_jax.reconstruct(model.infer, model.variables, model.x, plan=plan, ridge=-1)
