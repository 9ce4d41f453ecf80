"""`native`: thin variables that an ordinary, narrower model of the same class loads.

Where whole units go, alike in all layers, what is left is a model of the same class with smaller
widths. Three things stand between the two:

    RMSNorm    the thin network divides by all channels that there were, the narrower one by those
               that it has. So its weights are multiplied by sqrt(D / d), and its epsilon by D / d.
    LayerNorm  subtracts the mean over all channels that there were. No factor makes up for that.
    Positions  rotary frequencies depend on the number of dimensions, scores on its square root.
"""

import math
from typing import Any, NamedTuple

import numpy as np

from slim_jax import tree
from slim_jax.channels.plan import Plan
from slim_jax.structure.gates import check
from slim_jax.structure.unit import Place, Unit, Units, UnitsError

_POSITIONAL = ('query_key_dims', 'rotary_pairs', 'head_dims')

_REFUSED = {
  'centred': 'it subtracts the mean: a narrower model subtracts another one',
  'other': 'its scale is computed from a variable, so that the variable can hold no factor',
}


class Native(NamedTuple):
  """What a narrower model of the same class needs.

  Attributes:
    variables: thin variables, with the factors of its RMSNorms.
    widths: number of units that are left, by name.
    epsilon: factor on the epsilon of its RMSNorms, D / d; 1 if no channel of theirs went.
  """

  variables: Any
  widths: dict[str, int]
  epsilon: float


def native(variables: Any, plan: Plan, units: Units, *, norms: str = 'exact') -> Native:
  """Returns the thin network as variables for a narrower model of the same class.

      model = Llama(width=..., neurons=..., epsilon=1e-5 * result.epsilon)   # from result.widths
      model.apply(result.variables, x) == thin(apply, plan)(plan.slice(variables), x)

  Args:
    variables: of the original shapes, gates folded.
    plan: of the variables.
    units: all units of the network, not a part of them.
    norms: 'exact': RMSNorms get the factor that makes the narrower model compute what the thin
      network computes; LayerNorms over cut channels are refused. 'ordinary': norms keep their
      weights and run over the channels that are left, as an ordinary narrower model does. This is
      another function than the thin network, to be fine-tuned.

  Raises:
    UnitsError: the thin network is no ordinary narrower model; it says why. `thin` runs it.
  """
  if norms not in ('exact', 'ordinary'):
    raise UnitsError(f"norms must be 'exact' or 'ordinary', got {norms!r}")
  check(variables, units)
  left = units_left(units, plan)
  _check_whole_units(plan, units, left)
  factors: dict[tree.Path, float] = {}
  for name, unit in units.items():
    share = unit.size / max(int(left[name].sum()), 1)
    if share == 1:
      continue
    if unit.kind in _POSITIONAL:
      raise UnitsError(
        f'{name!r} lost {unit.kind}: a narrower model has other rotary frequencies and divides its '
        'scores by another number. Run the thin network with slim_jax.thin, or keep them.'
      )
    if unit.norm in _REFUSED and norms == 'exact':
      raise UnitsError(
        f'{name!r} lost channels over which a norm runs, and {_REFUSED[unit.norm]}. Run the thin '
        "network with slim_jax.thin, or ask for norms='ordinary' and fine-tune."
      )
    if unit.norm:
      factors |= {place.path: share for place in unit.places if place.role == 'norm'}
  shares = set(factors.values()) if norms == 'exact' else set()
  if len(shares) > 1:
    raise UnitsError(f'norms lost different shares of their channels: D / d is {sorted(shares)}')
  epsilon = shares.pop() if shares else 1.0

  def scaled(path: tree.Path, leaf: Any) -> Any:
    return leaf * np.asarray(math.sqrt(epsilon), leaf.dtype) if path in factors else leaf

  thin = tree.map_with_path(scaled, plan.slice(variables))
  return Native(thin, {name: int(alive.sum()) for name, alive in left.items()}, epsilon)


def units_left(units: Units, plan: Plan | None) -> dict[str, np.ndarray]:
  """Returns which units a plan of the variables leaves: those of which every variable has a part.

  Args:
    units: of `slim_jax.units`, for the function that was planned.
    plan: of the variables without gates; None leaves all.

  Returns:
    By the unit's name, bool [size].
  """
  if plan is None:
    return {name: np.ones(unit.size, bool) for name, unit in units.items()}
  return {name: _left(unit, plan) for name, unit in units.items()}


def _left(unit: Unit, plan: Plan) -> np.ndarray:
  left = np.ones(unit.size, bool)
  for place in unit.places:
    left &= np.bincount(place.member[_live(plan, place)] + 1, minlength=unit.size + 1)[1:] > 0
  return left


def _live(plan: Plan, place: Place) -> np.ndarray:
  return plan.cuts[place.path].indices[place.axis]


def _check_whole_units(plan: Plan, units: Units, left: dict[str, np.ndarray]) -> None:
  """Raises unless the plan removes whole units and nothing else."""
  expected: dict[tuple[tree.Path, int], np.ndarray] = {}
  for name, unit in units.items():
    for place in unit.places:
      alive = np.where(place.member >= 0, left[name][place.member], True)
      key = place.path, place.axis
      expected[key] = expected.get(key, True) & alive
  for path, cut in plan.cuts.items():
    for axis, (size, index) in enumerate(zip(cut.shape, cut.indices, strict=True)):
      whole = np.flatnonzero(expected.get((path, axis), np.ones(size, bool)))
      if not np.array_equal(index, whole):
        raise UnitsError(
          f'{tree.show(path)} keeps {len(index)} of {size} indices along axis {axis}, where whole '
          f'units leave {len(whole)}: the thin network is no narrower model of the same class.'
        )
