"""Files of a run: whole or not at all, whenever a process ends, and written by the first one."""

from collections.abc import Callable
import json
import os
import pathlib
from typing import Any

from slim_jax import processes


def write(path: pathlib.Path, put: Callable[[pathlib.Path], None]) -> None:
  """Replaces a file by what `put` writes under the name that it is given.

  Its directory is made if it does not exist. Processes other than the first write nothing.
  """
  if not processes.is_first():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  part = path.with_name(path.name + '.part')
  put(part)
  os.replace(part, path)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Likewise, a value as JSON."""
  write(path, lambda part: part.write_text(json.dumps(value, indent=2) + '\n'))
