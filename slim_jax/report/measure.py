"""How fast the networks of a run are on this machine."""

import time
from typing import Any

from absl import logging
import jax

from slim_jax.channels.plan import Plan
from slim_jax.costs import timing
from slim_jax.display import progress
from slim_jax.report.architecture import Architecture

BATCHES = (1, 64)
# A call with more MACs than this takes seconds.
_MOST_MACS = {'cpu': 1e11}
_MOST_MACS_ELSEWHERE = 2e13


def latency(
  architecture: Architecture, plan: Plan | None, *, most_macs: float | None = None
) -> dict[str, Any]:
  """Times the full network and the thin one on the first device of this process.

  Args:
    architecture: of the run.
    plan: the thin network; None if there is none yet.
    most_macs: calls with more MACs are skipped; by default, those that would take seconds on
      this kind of device.

  Returns:
    device and platform; jax, its version; time of the measurement (ISO 8601, UTC); and rows:
    network ('full', 'thin'), batch, and seconds of one call, or skipped, the reason.
  """
  device = jax.local_devices()[0]
  if most_macs is None:
    most_macs = _MOST_MACS.get(device.platform, _MOST_MACS_ELSEWHERE)
  plans = {'full': None} if plan is None else {'full': None, 'thin': plan}
  macs = {name: architecture.cost(each).macs for name, each in plans.items()}
  rows = []
  for batch in BATCHES:
    todo = [name for name in plans if batch * macs[name] <= most_macs]
    reason = 'a call with this many MACs takes long on this device'
    seconds: dict[str, float] = {}
    try:
      with progress.phase(f'measuring the network, images at a time: {batch}'):
        seconds = timing.medians(
          {name: architecture.call(plans[name], batch) for name in todo}, least=3, enough=0.3
        )
    except jax.errors.JaxRuntimeError as error:  # usually out of memory
      reason = str(error).partition('\n')[0][:200]
      logging.warning('the network was not measured: %s', reason)
    rows += [
      {
        'network': name,
        'batch': batch,
        **({'seconds': seconds[name]} if name in seconds else {'skipped': reason}),
      }
      for name in plans
    ]
  return {
    'device': device.device_kind,
    'platform': device.platform,
    'jax': jax.__version__,
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'rows': rows,
  }
