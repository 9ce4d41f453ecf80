"""Budgets: selections whose thin network meets a target.

Bisection on the fraction of removed channels finds the selection. Each step plans the network and
counts or times what is left, with `slim_jax.count` of the thin function, evaluated on shapes alone.
"""

from collections.abc import Callable
import time
from typing import Any, NamedTuple, Unpack

import jax
import numpy as np

from slim_jax.channels.plan import Plan
from slim_jax.channels.planning import DisconnectedError
from slim_jax.costs import candidates
from slim_jax.costs.candidates import TracedCall
from slim_jax.errors import SlimError
from slim_jax.selection.options import SelectionKeywords
from slim_jax.selection.select import by_fraction, selector

_MOST = 1 - 2**-30  # the largest fraction: removes all that the options allow
_STEP = 2**-32
_TIMED = 8  # networks that are compiled to meet a latency

# From a traced call and a plan, None for the full network, to MACs, parameters, bytes or seconds.
_Measure = Callable[[TracedCall, Plan | None], float]


class BudgetError(SlimError, ValueError):
  """No selection meets the target; the message says how near one comes."""


class Budget(NamedTuple):
  """How a target was met.

  Attributes:
    dead: as `select_global` returns it.
    reached: cost of the thin network as a share of the full one's, at most the target.
    full: cost of the full network: MACs, parameters, bytes or seconds.
    probes: number of networks that were planned and measured, besides the full one.
    seconds: duration of the search.
  """

  dead: Any
  reached: float
  full: float
  probes: int
  seconds: float


def select_budget(
  f: Callable[..., Any],
  variables: Any,
  *args: Any,
  target: str,
  **options: Unpack[SelectionKeywords],
) -> Any:
  """Marks just enough of the smallest channels to bring the thin network within a target.

      dead = slim_jax.select_budget(apply, variables, x, target='macs:0.5', multiple_of=8)
      plan = slim_jax.plan(apply, variables, x, dead=dead)

  The channels are those of `select_global` for the smallest fraction that meets the target: never
  above it, and as close below it as single channels (tied ones, multiples) allow. With
  `strict=True` channels with equal scores are removed together, too.

  Args:
    f: `f(variables, *args)`, the function that is planned. It is traced once.
    variables: tree with the scales (concrete arrays; the other leaves may be shapes).
    *args: further arguments, arrays or `jax.ShapeDtypeStruct`s.
    target: a quantity and a share in (0, 1] of its value for the full network `f(variables, *args)`:
      'macs:0.5': multiply-accumulates, `slim_jax.count(...).macs` of the thin function;
      'params:0.3': parameters, `count(...).params`;
      'memory:0.5': activation memory, `count(...).value_bytes`: the bytes of the results of all
        operations, if none is fused, freed or recomputed;
      'latency:0.6': seconds, the median of repeated runs of the jitted thin function on these
        arguments, on the default device. Every step compiles a network, so there are at most 8, and
        the nearest network is taken. Measured times vary, so another call may choose differently.
    **options: `min_channels`, `max_fraction`, `keep`, `multiple_of`, `per_layer`, `strict`, `tied`,
      `tied_by`, `scores` and `scales`: see `slim_jax.selection.options.SelectionOptions`.

  Returns:
    A tree like `variables`: bool [channels] at each scale leaf, True = removed; None elsewhere.

  Raises:
    BudgetError: a ValueError: no selection meets the target. The message says how near one comes.
    ValueError: the target is malformed, shapes are given where arrays are needed, or
      `select_global` raises it.
  """
  return search(f, variables, *args, target=target, **options).dead


def search(
  f: Callable[..., Any],
  variables: Any,
  *args: Any,
  target: str,
  seconds: _Measure = candidates.seconds,
  **options: Unpack[SelectionKeywords],
) -> Budget:
  """Returns what `select_budget` selects, with what was reached and how long it took.

  Args:
    f: as in `select_budget`.
    variables: as in `select_budget`.
    *args: as in `select_budget`.
    target: as in `select_budget`.
    seconds: measures 'latency'.
    **options: as in `select_budget`.
  """
  start = time.perf_counter()
  name, share = parse(target)
  select = selector(variables, **options)
  call = candidates.trace(f, variables, *args)
  measure = seconds if name == 'latency' else _COUNTED[name]
  full = measure(call, None)
  if not full:
    raise ValueError(f'{target}: the full network has no {_QUANTITIES[name]}')
  shares: dict[bytes, float | None] = {}

  def attempt(fraction: float) -> _Probe:
    dead = select(by_fraction(fraction))
    marks = jax.tree.leaves(dead)
    key = b''.join(mark.tobytes() for mark in marks)
    if key not in shares:
      shares[key] = _share(call, dead, measure, full)
    return _Probe(fraction, dead, sum(int(mark.sum()) for mark in marks), shares[key])

  limit = _TIMED if name == 'latency' else np.inf
  last = best = _Probe(0.0, select(by_fraction(0)), 0, 1.0)  # the full network
  if best.exceeds(share):
    last, best = _bisect(attempt, last, attempt(_MOST), share, lambda: len(shares) >= limit)
  if best.share is None or best.share > share:
    raise BudgetError(_unmet(target, _QUANTITIES[name], last, best))
  return Budget(best.dead, best.share, full, len(shares), time.perf_counter() - start)


def parse(target: str) -> tuple[str, float]:
  """Returns ('macs', 0.5) for 'macs:0.5'; raises ValueError if the target is malformed."""
  name, _, number = target.partition(':')
  try:
    share = float(number)
  except ValueError:
    share = 0.0
  if name not in _QUANTITIES or not 0 < share <= 1:
    raise ValueError(
      "target must be 'NAME:SHARE' with a name of "
      f'{", ".join(_QUANTITIES)} and a share in (0, 1], got {target!r}'
    )
  return name, share


_QUANTITIES = {
  'macs': 'MACs',
  'params': 'parameters',
  'memory': 'activation memory',
  'latency': 'latency',
}
_COUNTED: dict[str, _Measure] = {
  'macs': lambda call, plan: candidates.counted(call, plan).macs,
  'params': lambda call, plan: candidates.counted(call, plan).params,
  'memory': lambda call, plan: candidates.counted(call, plan).value_bytes,
}


class _Probe(NamedTuple):
  """A selection that was tried.

  Attributes:
    fraction: of `select_global`.
    dead: what it selects.
    removed: number of removed channels.
    share: cost of the thin network as a share of the full one's; None if the selection cuts the
      network through.
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
  """Returns the last selection that exceeds `share` and the first that does not.

  Steps interpolate linearly; after a step that did not halve the interval, the next one does.

  Args:
    attempt: tries the selection of a fraction.
    low: a selection that exceeds `share`.
    high: the selection that removes most.
    share: the target.
    spent: whether no further selection may be tried.
  """
  halve, width = True, high.fraction - low.fraction
  if high.exceeds(share):
    return low, high
  while high.removed - low.removed > 1 and width > _STEP and not spent():
    middle = attempt(low.fraction + (0.5 if halve else _aim(low, high, share)) * width)
    if middle.exceeds(share):
      low = middle
    else:
      high = middle
    before, width = width, high.fraction - low.fraction
    halve = width > before / 2
  return low, high


def _aim(low: _Probe, high: _Probe, share: float) -> float:
  """Returns where between two selections the straight line through their shares meets `share`."""
  if low.share is None or high.share is None:
    return 0.5
  return min(max((low.share - share) / (low.share - high.share), 0.02), 0.98)


def _share(call: TracedCall, dead: Any, measure: _Measure, full: float) -> float | None:
  """Returns the share that is left without the dead channels; None if they cut the network through."""
  try:
    plan = candidates.planned(call, dead)
  except DisconnectedError:
    return None
  return measure(call, plan) / full


def _unmet(target: str, quantity: str, last: _Probe, most: _Probe) -> str:
  """Returns why no selection meets a target, and how near one comes."""
  if most.share is None:
    nearest, why = last, 'removing more cuts the network through: its results lose their inputs'
  else:
    nearest, why = most, 'the options allow no more'
  return (
    f'{target} cannot be met: with {nearest.removed} channels removed (fraction '
    f'{nearest.fraction:.4g}) the smallest network has {nearest.share:.3g} of the {quantity} of '
    f'the full one; {why}. Choose a larger share, or weaker constraints (min_channels=, '
    'max_fraction=, keep=, multiple_of=).'
  )
