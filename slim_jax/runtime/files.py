"""Files of a run, on this machine or in an object store such as gs://.

A file is written whole or not at all, whenever the process ends, and only by the first process.
"""

import errno
import importlib.util
import json
import os
import stat
from typing import Any

from etils import epath

from slim_jax.errors import SlimError
from slim_jax.runtime import processes

PathLike = str | os.PathLike[str]


class StoreError(SlimError):
  """An object store cannot be used; the message says what to do."""


class LinkError(SlimError):
  """A link stands where files of a run are written; it might lead to somebody else's files."""


def path_of(path: PathLike) -> epath.Path:
  """Returns a path of either kind; a path of this machine becomes absolute, without links.

  Raises:
    StoreError: it is in an object store that this installation cannot use.
  """
  if not is_remote(path):
    return epath.Path(os.path.realpath(os.path.expanduser(path)))
  if not os.fspath(path).startswith('gs://'):
    raise StoreError(f'{path}: only gs:// can be used, or a path of this machine')
  if importlib.util.find_spec('gcsfs') is None:
    raise StoreError(f"{path} needs the extra gcs: python -m pip install 'slim_jax[gcs]'")
  return epath.Path(path)


def is_remote(path: PathLike) -> bool:
  """Returns whether a path is in an object store, where writes are atomic and locks unknown."""
  return '://' in os.fspath(path)


def memory() -> int:
  """Returns the bytes of memory of this machine."""
  return os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')


def read(path: epath.Path, *, most: int) -> bytes:
  """Reads a file.

  Args:
    path: of the file.
    most: bytes that it may have.

  Raises:
    OSError: it cannot be read, is no file (a pipe or a device never ends), or is larger.
  """
  if is_remote(path):
    size = path.stat().length
  else:
    about = os.stat(path)
    if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):  # those say so themselves
      raise OSError(errno.EINVAL, 'it is no ordinary file', os.fspath(path))
    size = about.st_size
  if size > most:
    raise OSError(errno.EFBIG, f'it has {size:,} bytes, more than the {most:,} of any such file')
  return path.read_bytes()


def write(path: epath.Path, content: bytes | str) -> None:
  """Replaces a file, and makes its directory if it does not exist."""
  if not processes.is_first():
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  content = content.encode() if isinstance(content, str) else content
  if is_remote(path):
    path.write_bytes(content)
  else:
    refuse_links(path.parent)
    part = path.with_name(path.name + '.part')
    part.unlink(missing_ok=True)
    with open(part, 'xb') as file:  # never through a link
      file.write(content)
    part.replace(path)


def write_json(path: epath.Path, value: Any) -> None:
  """Replaces a file with a value as JSON."""
  write(path, json.dumps(value, indent=2) + '\n')


def append(path: epath.Path, line: str) -> None:
  """Adds a line to a file; half a line may be left if the process is killed."""
  if not processes.is_first():
    return
  if is_remote(path):  # object stores cannot append
    path.write_text((path.read_text() if path.exists() else '') + line + '\n')
  else:
    refuse_links(path)
    with path.open('a') as file:
      file.write(line + '\n')


def refuse_links(*paths: PathLike) -> None:
  """Raises LinkError if one of the paths of a run is a link, before anything is written or deleted.

  The directory that a person names may be one; within it the program makes none.
  """
  for path in paths:
    if not is_remote(path) and os.path.islink(path):
      raise LinkError(
        f'{os.fspath(path)} is a link to {os.readlink(path)}; a run writes and deletes nothing '
        'through links. Put what it leads to in its place, or remove it'
      )


def copy(source: epath.Path, target: epath.Path) -> None:
  """Copies a file or directory that is never changed afterwards; hard links where possible."""
  if source.is_dir():
    target.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
      copy(path, target / path.name)
    return
  target.unlink(missing_ok=True)
  try:
    os.link(source, target)
  except OSError:
    source.copy(target)
