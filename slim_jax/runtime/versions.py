"""The command, versions and devices of this process, for records."""

from importlib import metadata
import platform
import shlex
import sys
import time
from typing import Any

import jax

PACKAGES = ('slim_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def of_process() -> dict[str, Any]:
  """Describes this process.

  Returns:
    command, as it can be typed; time, now (ISO 8601, UTC); the versions of python and of each of
    `PACKAGES` that is installed; device, the kind of the devices ('cpu' on a CPU); devices, their
    number in all processes; and processes, their number.
  """
  return {
    'command': shlex.join(sys.orig_argv),
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'python': platform.python_version(),
    **{name: version for name in PACKAGES if (version := _version(name))},
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
  }


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:  # the sources are on the path, not installed
    return ''
