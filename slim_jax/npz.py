"""Reads .npz files that anybody may have written.

What a file claims is compared with its size before memory is taken: a small file may unpack to
gigabytes, and a header may claim terabytes.
"""

from collections.abc import Iterator
import contextlib
import math
import os
import stat
from typing import Any, BinaryIO
import zipfile

import numpy as np

from slim_jax.errors import SlimError

Source = str | os.PathLike[str] | BinaryIO

_SUFFIX = '.npy'


class NpzError(SlimError):
  """A file is no .npz file, is damaged, or is larger than it may be."""


def read(source: Source, *, most: int) -> dict[str, np.ndarray]:
  """Reads all arrays of a file; never unpickles.

  Args:
    source: name of the file, or the open file.
    most: bytes that all arrays together may have.

  Returns:
    The arrays by name.

  Raises:
    FileNotFoundError: there is no such file.
    NpzError: the file is anything but arrays of numbers, strings and bools of at most that size.
  """
  if isinstance(source, (str, os.PathLike)) and not stat.S_ISREG(os.stat(source).st_mode):
    raise NpzError(f'{os.fspath(source)} is no ordinary file')  # a pipe never ends
  with _translating(), zipfile.ZipFile(source) as file:
    members = file.infolist()
    if members and min(member.header_offset for member in members):
      raise NpzError('something stands before its arrays')
    names = [member.filename for member in members]
    if len(set(names)) != len(names):
      raise NpzError('two of its arrays have the same name')
    if strange := [name for name in names if not name.endswith(_SUFFIX)]:
      raise NpzError(f'it holds {strange[0]!r}, which is no array')
    size = sum(member.file_size for member in members)
    if size > most:
      raise NpzError(f'it unpacks to {size:,} bytes, more than the {most:,} that it may have')
    return {member.filename.removesuffix(_SUFFIX): _read_array(file, member) for member in members}


def _read_array(file: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
  with file.open(member) as content:
    shape, dtype = _header(content)
    claimed = math.prod(shape) * dtype.itemsize
    there = member.file_size - content.tell()
    if dtype.hasobject or claimed != there:
      what = 'Python objects' if dtype.hasobject else f'{claimed:,} bytes where {there:,} are'
      raise NpzError(f'{member.filename} claims to hold {what}')
    content.seek(0)
    array = np.lib.format.read_array(content, allow_pickle=False)
    content.read(1)  # at the end, the checksum of the member is compared
  return array


def _header(content: Any) -> tuple[tuple[int, ...], np.dtype]:
  version = np.lib.format.read_magic(content)
  if version == (1, 0):
    shape, _, dtype = np.lib.format.read_array_header_1_0(content)
  else:
    shape, _, dtype = np.lib.format.read_array_header_2_0(content)
  if any(size < 0 for size in shape):
    raise NpzError(f'an array has the shape {shape}')
  return shape, dtype


@contextlib.contextmanager
def _translating() -> Iterator[None]:
  """Turns whatever the readers of zip archives and headers raise into NpzError."""
  try:
    yield
  except (NpzError, FileNotFoundError):
    raise
  # They raise a dozen different errors for damaged bytes, among them those of compression.
  except Exception as error:  # pylint: disable=broad-except
    raise NpzError(str(error).partition('\n')[0][:300] or type(error).__name__) from error
