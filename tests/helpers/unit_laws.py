"""What units and their gates are held to, as functions for any model; and a table of it.

PYTHONPATH=.:tests python -m helpers.unit_laws       prints the table
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from helpers import laws
import slim_jax


class Row(NamedTuple):
  """Of one network without half of its units.

  Attributes:
    units: number of entries of the table of units.
    params: share of the parameters that is left.
    macs: share of the multiply-accumulates that is left.
    error: largest relative difference to the masked network.
    full_width: number of operations without a rule.
  """

  units: int
  params: float
  macs: float
  error: float
  full_width: int


def gated(model, units):
  """The model with gates: its variables are the pair of both, gates not all 1."""
  infer, gates = slim_jax.gate(model.infer, model.variables, units)
  train, _ = slim_jax.gate(model.train, model.variables, units)
  outs = jax.tree.map(lambda path: f'0/{path}' if path else '0', model.outs)
  scales = jax.tree.map(lambda _: False, model.variables), jax.tree.map(lambda _: True, gates)
  return model._replace(
    infer=infer,
    train=train,
    variables=(model.variables, uneven(gates)),
    outs=outs,
    params='0',
    scales=scales,
  )


def uneven(gates, seed=0):
  """Gates between a half and three halves."""
  rng = np.random.default_rng(seed)
  return {
    name: jnp.asarray(rng.uniform(0.5, 1.5, gate.shape), gate.dtype) for name, gate in gates.items()
  }


def cut(model, units, dead):
  """The plan of the variables without dead units, bool [size] by name."""
  infer, gates = slim_jax.gate(model.infer, model.variables, units)
  plan = slim_jax.plan(infer, (model.variables, gates), model.x, dead=(None, dead))
  return slim_jax.without_gates(plan, dead, units)


def check_inference(model, units, fraction=0.5, seed=0, tolerance=1e-10) -> Row:
  """Gates at 1 are the identity, folding is exact, thin equals masked with random units dead."""
  with_gates = gated(model, units)
  infer, run = jax.jit(model.infer), jax.jit(with_gates.infer)
  variables, gates = with_gates.variables
  ones = jax.tree.map(jnp.ones_like, gates)
  np.testing.assert_array_equal(run((variables, ones), model.x), infer(variables, model.x))
  folded = slim_jax.fold(variables, gates, units)
  assert laws.distance(infer(folded, model.x), run((variables, gates), model.x)) < tolerance

  dead = laws.random_dead(with_gates.variables, fraction, seed, scales=with_gates.scales)
  plan = slim_jax.plan(with_gates.infer, with_gates.variables, model.x, dead=dead)
  masked = slim_jax.mask(with_gates.variables, dead)
  alone = slim_jax.without_gates(plan, dead[1], units)
  thin_variables = alone.slice(slim_jax.fold(*masked, units))
  thin = slim_jax.thin(model.infer, alone)
  error = laws.distance(jax.jit(thin)(thin_variables, model.x), run(masked, model.x))
  assert error < tolerance
  before = slim_jax.count(model.infer, model.variables, model.x)
  after = slim_jax.count(thin, thin_variables, model.x)
  return Row(
    len(units),
    after.params / before.params,
    after.macs / before.macs,
    float(error),
    len(plan.unknown),
  )


def check_training(model, units, fraction=0.5, seed=0, tolerance=1e-10):
  """Thin equals masked in training too, with statistics and gradients, of gates as well."""
  with_gates = gated(model, units)
  dead = laws.random_dead(with_gates.variables, fraction, seed, scales=with_gates.scales)
  laws.check(with_gates, dead, tolerance)


def check_costs(model, units):
  """What is removed with one unit is what the unit says: parameters, MACs and indices."""
  nothing = {name: np.zeros(unit.size, bool) for name, unit in units.items()}
  plan = cut(model, units, nothing)
  # What is never read, as all but one token at the end, is not computed with nothing dead.
  before = slim_jax.count(slim_jax.thin(model.infer, plan), model.variables, model.x)
  for name, unit in units.items():
    dead = {name: np.arange(unit.size) == 0}
    plan = cut(model, units, dead)
    for place in unit.places:
      kept = plan.cuts[place.path].indices[place.axis]
      np.testing.assert_array_equal(kept, np.flatnonzero(place.member != 0), f'{name}: {place}')
    after = slim_jax.count(slim_jax.thin(model.infer, plan), plan.slice(model.variables), model.x)
    assert before.params - after.params == unit.params, (name, 'params')
    saved = before.macs - after.macs
    assert saved == unit.macs, f'{name} saves {saved} MACs, not {unit.macs}'


def table(models: dict[str, Any]) -> str:
  """Returns a row for each model, by name."""
  lines = [f'{"network":16} units  params   MACs    error  full width']
  for name, model in models.items():
    row = check_inference(model, slim_jax.units(model.infer, model.variables, model.x))
    lines.append(
      f'{name:16} {row.units:5}  {row.params:6.1%} {row.macs:6.1%}  {row.error:.0e}  {row.full_width}'
    )
  return '\n'.join(lines)


def main() -> None:
  from helpers import unit_networks  # pylint: disable=g-import-not-at-top

  jax.config.update('jax_enable_x64', True)
  print(table({case.name: unit_networks.build(case, jnp.float64) for case in unit_networks.CASES}))


if __name__ == '__main__':
  main()
