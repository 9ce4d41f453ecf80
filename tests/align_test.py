"""Layers under one scan: their units change places, the function does not."""

from helpers import laws, unit_laws, unit_networks
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax.structure.unit import UnitsError


def stacked(where):
  case = next(case for case in unit_networks.CASES if case.name == 'scanned_llama')
  model = unit_networks.build(case, jnp.float64)
  return model, slim_jax.units(model.infer, model.variables, model.x, where=where)


def test_aligned_layers_compute_the_same_and_keep_their_own(x64):
  model, units = stacked('neurons,kv_groups,query_heads,value_dims')
  scores = unit_laws.uneven({n: jnp.zeros(u.shape) for n, u in units.items()}, seed=1)
  aligned = slim_jax.align(model.variables, units, scores)
  infer = jax.jit(model.infer)
  assert laws.distance(infer(aligned, model.x), infer(model.variables, model.x)) < 1e-12
  of_neurons = next(name for name, unit in units.items() if unit.kind == 'neurons')
  ordered = slim_jax.align(scores, units, scores)
  assert (np.diff(ordered[of_neurons], axis=1) <= 0).all()

  # Both layers lose the same indices: once these are ranks, each layer keeps its own best.
  _, gates = slim_jax.gate(model.infer, aligned, units)

  def kept(scores):
    dead = slim_jax.select_global(
      gates, fraction=0.5, scales=True, per_layer=True, tied_by='sum', scores=scores
    )
    live = ~dead[of_neurons]
    return np.asarray(scores[of_neurons])[:, live].sum()

  assert kept(ordered) > kept(scores)
  # Everything that is aligned alike stays exact: gates, momentum.
  gates = unit_laws.uneven(gates, seed=2)
  want = infer(slim_jax.fold(model.variables, gates, units), model.x)
  got = infer(slim_jax.fold(aligned, slim_jax.align(gates, units, scores), units), model.x)
  assert laws.distance(got, want) < 1e-12


def test_positions_that_matter_stay(x64):
  model, units = stacked('rotary_pairs')
  with pytest.raises(UnitsError, match='cannot change places'):
    slim_jax.align(model.variables, units, {n: np.zeros(u.shape) for n, u in units.items()})


def test_units_that_are_not_stacked_stay(x64):
  model, units = stacked('stream')
  same = slim_jax.align(model.variables, units, {'stream': np.arange(12.0)})
  assert all(map(np.array_equal, jax.tree.leaves(same), jax.tree.leaves(model.variables)))


def test_wrong_scores_are_named(x64):
  model, units = stacked('neurons')
  (name,) = units
  with pytest.raises(UnitsError, match='must have shape'):
    slim_jax.align(model.variables, units, {name: np.zeros(20)})
  with pytest.raises(UnitsError, match="no unit 'other'"):
    slim_jax.align(model.variables, units, {'other': np.zeros(20)})
