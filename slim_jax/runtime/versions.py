"""The command, versions and devices of this process, for records."""

from importlib import metadata
import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from typing import Any

import jax

PACKAGES = ('slim_jax', 'jax', 'jaxlib', 'flax', 'optax', 'numpy')


def of_process() -> dict[str, Any]:
  """Describes this process.

  Returns:
    command, as it can be typed; time, now (ISO 8601, UTC); the versions of python and of each of
    `PACKAGES` that is installed; commit of the sources, with '-dirty' if they were changed, unless
    they are installed without their repository; device, the kind of the devices ('cpu' on a CPU); devices, their
    number in all processes; and processes, their number.
  """
  return {
    'command': shlex.join(sys.orig_argv),
    'time': time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime()),
    'python': platform.python_version(),
    **{name: version for name in PACKAGES if (version := _version(name))},
    **({'commit': commit} if (commit := _commit()) else {}),
    'device': jax.devices()[0].device_kind,
    'devices': jax.device_count(),
    'processes': jax.process_count(),
  }


def _version(name: str) -> str:
  try:
    return metadata.version(name)
  except metadata.PackageNotFoundError:  # the sources are on the path, not installed
    return ''


def _commit() -> str:
  root = pathlib.Path(__file__).parents[2]
  if not (root / '.git').exists():
    return ''
  command = [
    'git',
    '-C',
    str(root),
    'describe',
    '--always',
    '--dirty',
    '--abbrev=12',
    '--exclude=*',
  ]
  try:
    environ = {**os.environ, 'GIT_OPTIONAL_LOCKS': '0'}
    return subprocess.run(
      command, env=environ, capture_output=True, text=True, check=True
    ).stdout.strip()
  except (OSError, subprocess.CalledProcessError):  # no git, or a repository of another user
    return ''
