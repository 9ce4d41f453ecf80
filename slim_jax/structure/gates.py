"""Gates: learnable scales of 1 for units, where there is no BatchNorm.

    gated((variables, gates), x) == f(fold(variables, gates, units), x)

A gate is multiplied into the variables at the indices of its unit. At 1 nothing changes, bit for bit;
at 0 the unit is dead.
"""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import tree
from slim_jax.channels import regions
from slim_jax.channels.cuts import Cut
from slim_jax.channels.plan import Plan
from slim_jax.channels.regions import Region
from slim_jax.structure.unit import Place, Unit, Units, UnitsError

_Gates = dict[str, Any]


def gate(f: Callable[..., Any], variables: Any, units: Units) -> tuple[Callable[..., Any], _Gates]:
  """Puts a gate on every unit.

      gated, gates = slim_jax.gate(apply, variables, units)
      logits = gated((variables, gates), x)              # as apply(variables, x), bit for bit
      dead = None, slim_jax.select_global(gates, fraction=0.5, scales=True)
      plan = slim_jax.plan(gated, (variables, gates), x, dead=dead)
      thin = slim_jax.thin(gated, plan)                  # or without gates: see `without_gates`

  Gates are parameters like BatchNorm scales: train them with `add_l1`, `soft_threshold` or
  `add_polarization`, whose `mask=` is `(False, True)` for the tree `(variables, gates)`.

  Args:
    f: `f(variables, *args)`, for which the units were found, or another function of the variables.
    variables: arrays or `jax.ShapeDtypeStruct`s, whose dtypes the gates get.
    units: of `slim_jax.units`.

  Returns:
    `gated`, a function of `((variables, gates), *args)`, and the gates: by the unit's name, ones
    [size], or [layers, size] for layers stacked under a scan.

  Raises:
    UnitsError: the variables are not those of the units.
  """
  check(variables, units)

  def gated(both: tuple[Any, _Gates], *args: Any, **kwargs: Any) -> Any:
    variables, gates = both
    return f(fold(variables, gates, units), *args, **kwargs)

  leaves = tree.flatten(variables)
  gates = {
    name: jnp.ones(unit.shape, _dtype([leaves[place.path].dtype for place in unit.gated]))
    for name, unit in units.items()
  }
  return gated, gates


def _dtype(dtypes: list[Any]) -> Any:
  """The widest of these, at least float32: steps of a gate are small."""
  return jnp.result_type(jnp.float32, *dtypes)


def fold(variables: Any, gates: Mapping[str, Any], units: Units) -> Any:
  """Multiplies gates into the variables.

  Args:
    variables: tree of arrays.
    gates: by the unit's name, [size] or [layers, size]; units without gates are left out.
    units: of `slim_jax.units`.

  Returns:
    Variables of the same shapes and dtypes: `f(fold(v, gates, units), x) == gated((v, gates), x)`.

  Raises:
    UnitsError: a gate has no unit or the wrong shape, or the variables are not those of the units.
  """
  check(variables, units)
  if unknown := [name for name in gates if name not in units]:
    raise UnitsError(f'gates: there is no unit {", ".join(map(repr, unknown[:5]))}')
  factors: dict[tree.Path, list[tuple[Unit, Place]]] = {}
  for name in gates:
    if tuple(np.shape(gates[name])) != units[name].shape:
      raise UnitsError(
        f'gates at {name!r} must have shape {units[name].shape}, they have {np.shape(gates[name])}'
      )
    for place in units[name].gated:
      factors.setdefault(place.path, []).append((units[name], place))

  def scaled(path: tree.Path, leaf: Any) -> Any:
    for unit, place in factors.get(path, ()):
      leaf = leaf * _factor(gates[unit.name], unit, place, leaf)
    return leaf

  return tree.map_with_path(scaled, variables)


def _factor(gates: Any, unit: Unit, place: Place, leaf: Any) -> jax.Array:
  """The gates as a factor of a leaf: 1 at indices that belong to no unit."""
  factor = jnp.asarray(gates).astype(leaf.dtype)
  member = place.member
  if not np.array_equal(member, np.arange(unit.size)):
    if (member < 0).any():
      member = np.where(member < 0, unit.size, member)
      one = jnp.ones((*factor.shape[:-1], 1), leaf.dtype)
      factor = jnp.concatenate([factor, one], axis=-1)
    factor = factor.at[..., member].get(mode='promise_in_bounds')
  shape = [1] * leaf.ndim
  shape[place.axis] = len(member)
  if unit.layers and place.layers is not None:
    shape[place.layers] = unit.layers
    if place.layers > place.axis:
      factor = factor.T
  return factor.reshape(shape)


def without_gates(plan: Plan, dead: Mapping[str, Any], units: Units) -> Plan:
  """Returns the plan of the variables alone from the plan of `gated`.

      plan = slim_jax.plan(gated, (variables, gates), x, dead=(None, dead))
      plan = slim_jax.without_gates(plan, dead, units)
      thin_variables = plan.slice(slim_jax.fold(variables, slim_jax.mask(gates, dead), units))
      thin_apply = slim_jax.thin(apply, plan)            # of the function without gates

  It knows that variables are zero where dead gates are multiplied into them.

  Args:
    plan: of `gated`.
    dead: what it was made with: bool [size] by the unit's name.
    units: of `slim_jax.units`.

  Raises:
    UnitsError: `dead` names no unit, or the plan is not of the variables and their gates.
  """
  if unknown := [name for name in dead if name not in units]:
    raise UnitsError(f'dead: there is no unit {", ".join(map(repr, unknown[:5]))}')
  if {path[0] for path in plan.cuts if path} - {'0', '1'}:
    raise UnitsError(
      'the plan is not one of (variables, gates): plan the function that gate returned'
    )
  plan = plan['0']
  cuts = dict(plan.cuts)
  for name, vector in dead.items():
    gone: np.ndarray = np.all(np.reshape(vector, (-1, units[name].size)), axis=0)
    for place in units[name].gated:
      cut = cuts[place.path]
      left = (place.member < 0) | ~gone[place.member]
      cuts[place.path] = Cut(
        cut.shape, *(_along(r, place.axis, left) for r in (cut.live, cut.filled, cut.support))
      )
  return dataclasses.replace(plan, cuts=cuts)


def _along(region: Region, axis: int, left: np.ndarray) -> Region:
  """The region without the indices that are not left of an axis."""
  return regions.along(region, axis, regions.both(region.axes[axis], left))


def check(variables: Any, units: Units) -> None:
  """Raises if a unit's variables are missing or have other sizes."""
  leaves = tree.flatten(variables)
  for unit in units.values():
    for place in unit.places:
      shape = tuple(leaves[place.path].shape) if place.path in leaves else None
      if shape is None or len(shape) <= place.axis or shape[place.axis] != len(place.member):
        raise UnitsError(
          f'the variables are not those that the units were found in: {tree.show(place.path)} is '
          f'{"missing" if shape is None else list(shape)}, and unit {unit.name!r} takes indices of '
          f'{len(place.member)} along axis {place.axis}'
        )
