"""How long functions take, measured in turns."""

from collections.abc import Callable, Mapping
import statistics
import time
from typing import Any

import jax


def medians(
  runs: Mapping[str, Callable[[], Any]], *, least: int = 5, enough: float = 1.0
) -> dict[str, float]:
  """Median seconds of functions that take turns, so that a busy machine is busy for all alike.

  Args:
    runs: by name; each returns arrays. A first call of each, which may compile, does not count.
    least: how many calls of each there are, however long they take; at most 50.
    enough: seconds of each, after which there are no more.
  """
  times: dict[str, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    jax.block_until_ready(run())
  rounds, spent = 0, 0.0
  while rounds < least or (rounds < 50 and spent < enough * len(runs)):
    for name, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run())
      times[name].append(time.perf_counter() - start)
      spent += times[name][-1]
    rounds += 1
  return {name: statistics.median(found) for name, found in times.items()}
