"""What a result is made with: the command, the versions, the devices."""

from importlib import metadata
import platform
import shlex
import sys
import time
from typing import Any

import jax

PACKAGES = ('slim_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def of_process() -> dict[str, Any]:
  """What this process is.

  Returns:
    command, as it can be typed; time, when this was asked (ISO 8601, UTC); python, and each of
    `PACKAGES` that is installed, its version; device, the kind of the devices ('cpu' where they
    have none), devices, how many all processes have, and processes.
  """
  return {
    'command': shlex.join(sys.orig_argv),
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'python': platform.python_version(),
    **{name: found for name in PACKAGES if (found := _version(name))},
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
  }


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:  # the sources are on the path, not installed
    return ''
