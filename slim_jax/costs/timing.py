"""Median run times of functions that take turns."""

from collections.abc import Callable, Mapping
import statistics
import time
from typing import Any

import jax


def medians(
  runs: Mapping[str, Callable[[], Any]],
  *,
  least: int = 5,
  enough: float = 1.0,
  clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
  """Returns the median seconds of functions that run in turns.

  Taking turns spreads the load that other programs put on the machine over all functions alike.

  Args:
    runs: functions by name; each returns arrays. The first call of each, which may compile, is not
      timed.
    least: number of timed calls of each function, however long they take; at most 50.
    enough: seconds per function after which the measurement ends.
    clock: returns the time in seconds.
  """
  times: dict[str, list[float]] = {name: [] for name in runs}
  for run in runs.values():
    jax.block_until_ready(run())
  rounds, spent = 0, 0.0
  while rounds < least or (rounds < 50 and spent < enough * len(runs)):
    for name, run in runs.items():
      start = clock()
      jax.block_until_ready(run())
      times[name].append(clock() - start)
      spent += times[name][-1]
    rounds += 1
  return {name: statistics.median(seconds) for name, seconds in times.items()}
