"""Budgets: channels chosen so that the thin network meets a target.

What is removed is found by bisection on the fraction of channels. Each try plans the network
and counts, or times, what is really left: `slim_jax.count` of the thin function, evaluated on
shapes alone.
"""

from collections.abc import Callable
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from slim_jax.channels.plan import Plan
from slim_jax.channels.planning import CutThroughError
from slim_jax.costs import candidates
from slim_jax.errors import SlimError
from slim_jax.selection.select import by_fraction, selector

_MOST = 1 - 2**-30  # the largest fraction: all that there is
_STEP = 2**-32
_TIMED = 8  # networks that are compiled to meet a latency


class BudgetError(SlimError, ValueError):
  """A target that no selection meets; the message says how near it comes."""


class Budget(NamedTuple):
  """How a target was met.

  Attributes:
    dead: as `select_global` gives it.
    reached: what the thin network has, as a share of the full one, at most the target.
    full: what the full network has: MACs, parameters, bytes or seconds.
    probes: how many networks were planned and measured, beside the full one.
    seconds: what it took.
  """

  dead: Any
  reached: float
  full: float
  probes: int
  seconds: float


def select_budget(
  f: Callable[..., Any], variables: Any, *args: Any, target: str, **options: Any
) -> Any:
  """Marks as few of the smallest channels as bring the thin network within a target.

      dead = slim_jax.select_budget(apply, variables, x, target='macs:0.5', multiple_of=8)
      plan = slim_jax.plan(apply, variables, x, dead=dead)

  The channels are those of `select_global` for the smallest fraction that meets the target: never
  above it, and as near below as single channels (tied ones, multiples) allow.

  Args:
    f: `f(variables, *args)`, the function that is planned. It is traced once.
    variables: tree with the scales (concrete arrays, the other leaves may be shapes).
    *args: further arguments, arrays or `jax.ShapeDtypeStruct`s.
    target: what, and which share in (0, 1] of what the full network `f(variables, *args)` has:
      'macs:0.5': multiply-accumulates, `slim_jax.count(...).macs` of the thin function;
      'params:0.3': parameters, `count(...).params`;
      'memory:0.5': activation memory, `count(...).value_bytes`: the bytes of all that operations
        make, none fused, freed or recomputed;
      'latency:0.6': seconds, the median of repeated runs of the jitted thin function on these
        very arguments, on the default device. Every try compiles a network, so only 8 are made,
        and the nearest of them is taken. It is a measurement: another run may choose otherwise.
    **options: of `select_global`, all but `fraction` and `threshold`.

  Returns:
    A tree like `variables`: bool [channels] at each scale leaf, True = goes; None elsewhere.

  Raises:
    BudgetError: a ValueError: the target cannot be met. It says how near one can come.
    ValueError: for a target that cannot be read, shapes where arrays are needed, and what
      `select_global` raises.
  """
  return search(f, variables, *args, target=target, **options).dead


def search(
  f: Callable[..., Any], variables: Any, *args: Any, target: str, **options: Any
) -> Budget:
  """`select_budget` with what was reached and what it took; see there."""
  start = time.perf_counter()
  name, share = parse(target)
  select = selector(variables, **options)
  network = candidates.trace(f, variables, *args)
  measure = _TARGETS[name].measure
  full = measure(network, None)
  if not full:
    raise ValueError(f'{target}: the full network has no {_TARGETS[name].what}')
  shares: dict[bytes, float | None] = {}

  def attempt(fraction: float) -> _Probe:
    dead = select(by_fraction(fraction))
    marks = jax.tree.leaves(dead)
    key = b''.join(mark.tobytes() for mark in marks)
    if key not in shares:
      shares[key] = _share(network, dead, measure, full)
    return _Probe(fraction, dead, sum(int(mark.sum()) for mark in marks), shares[key])

  nothing = select(by_fraction(0))  # the full network, which need not be measured again
  low, high = _Probe(0.0, nothing, 0, 1.0), None
  if low.exceeds(share):
    limit = _TIMED if name == 'latency' else np.inf
    low, high = _bisect(attempt, low, attempt(_MOST), share, lambda: len(shares) >= limit)
    if high.share is None or high.exceeds(share):
      raise BudgetError(_unmet(target, _TARGETS[name].what, low, high))
  best = high or low
  return Budget(best.dead, best.share, full, len(shares), time.perf_counter() - start)


class _Probe(NamedTuple):
  """One try.

  Attributes:
    fraction: of `select_global`.
    dead: what it selects.
    removed: how many channels that are.
    share: what is left of what is measured; None where the network is cut through.
  """

  fraction: float
  dead: Any
  removed: int
  share: float | None

  def exceeds(self, share: float) -> bool:
    return self.share is not None and self.share > share


def _bisect(
  attempt: Callable[[float], _Probe],
  low: _Probe,
  high: _Probe,
  share: float,
  spent: Callable[[], bool],
) -> tuple[_Probe, _Probe]:
  """The last network that exceeds `share` and the first that does not, as near as they come.

  Aims by linear interpolation; where that did not halve the interval, the next step does.
  """
  halve, width = True, high.fraction - low.fraction
  if high.exceeds(share):  # nothing lies between
    return low, high
  while high.removed - low.removed > 1 and width > _STEP and not spent():
    at = 0.5
    if not halve and high.share is not None:
      at = min(max((low.share - share) / (low.share - high.share), 0.02), 0.98)
    middle = attempt(low.fraction + at * width)
    if middle.exceeds(share):
      low = middle
    else:
      high = middle
    before, width = width, high.fraction - low.fraction
    halve = width > before / 2
  return low, high


_Measure = Callable[[candidates.Network, Plan | None], float]


def _share(network: candidates.Network, dead: Any, measure: _Measure, full: float) -> float | None:
  """What is left without the dead channels; None where the network is cut through."""
  try:
    found = candidates.planned(network, dead)
  except CutThroughError:
    return None
  return measure(network, found) / full


def parse(target: str) -> tuple[str, float]:
  """('macs', 0.5) for 'macs:0.5'; raises ValueError where that is no target."""
  name, _, number = target.partition(':')
  try:
    share = float(number)
  except ValueError:
    share = 0.0
  if name not in _TARGETS or not 0 < share <= 1:
    raise ValueError(
      "target must be 'NAME:SHARE' with a name of "
      f'{", ".join(_TARGETS)} and a share in (0, 1], got {target!r}'
    )
  return name, share


def _unmet(target: str, what: str, smallest: _Probe, beyond: _Probe) -> str:
  """Why a target cannot be met, and how near it comes."""
  if beyond.share is None:
    removed, why = smallest, 'removing more cuts the network through from its inputs'
  else:
    removed, why = beyond, 'that is all that these options let go'
  return (
    f'{target} cannot be met: with {removed.removed} channels removed (fraction '
    f'{removed.fraction:.4g}) the smallest network has {removed.share:.3g} of the {what} of '
    f'the full one; {why}. Choose a larger share, or other guards (min_channels=, '
    'max_fraction=, keep=, multiple_of=).'
  )


class _Target(NamedTuple):
  """What can be asked for: how it is called in errors, and how it is measured."""

  what: str
  measure: _Measure


_TARGETS = {
  'macs': _Target('MACs', lambda network, found: candidates.counted(network, found).macs),
  'params': _Target('parameters', lambda network, found: candidates.counted(network, found).params),
  'memory': _Target(
    'activation memory', lambda network, found: candidates.counted(network, found).value_bytes
  ),
  'latency': _Target('latency', candidates.seconds),
}
