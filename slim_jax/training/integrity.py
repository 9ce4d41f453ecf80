"""Tells whether a checkpoint is what was saved: a digest of its arrays, and checksums of its files.

The digest is part of what Orbax writes, so every checkpoint has it, in object stores as well. On a
disk the checksums name the damaged file, before Orbax reads any.
"""

from collections.abc import Mapping
import hashlib
import json
import pathlib
from typing import Any
import zlib

from etils import epath
import jax
import numpy as np

from slim_jax import tree
from slim_jax.runtime import files, processes

PyTree = Any

# The file in each checkpoint with the crc32 of the files of its items, by path.
CHECKSUMS = 'crc32.json'

# Fields of the description of a checkpoint: the digest of its arrays, and the crc32 of the others.
_DIGEST, _CRC = 'digest', 'crc32'


def digest(arrays: PyTree) -> str:
  """Returns a hash of the paths, dtypes, shapes and values of arrays, 16 hexadecimal digits.

  It is the same for all trees that have the same leaves at the same paths.

  Args:
    arrays: a tree of arrays, on the host or on devices.
  """
  state = hashlib.blake2b(digest_size=8)
  leaves = tree.flatten(jax.device_get(arrays))
  for path in sorted(leaves):
    array = np.ascontiguousarray(leaves[path])
    state.update(f'{path} {array.dtype.name} {np.shape(leaves[path])}'.encode())
    state.update(array.reshape(-1).view(np.uint8).data)
  return state.hexdigest()


def sealed(meta: Mapping[str, Any], arrays: PyTree) -> dict[str, Any]:
  """Returns the description of a checkpoint with the digest of its arrays and its own checksum."""
  whole = {**meta, _DIGEST: digest(arrays)}
  return {**whole, _CRC: _crc_of(whole)}


def check_seal(meta: Mapping[str, Any], arrays: PyTree) -> bool:
  """Checks a description, and arrays against it.

  Returns:
    Whether there is anything to check against: older checkpoints have no digest.

  Raises:
    ValueError: they are not what was saved.
  """
  if _DIGEST not in meta:
    return False
  if meta.get(_CRC) != _crc_of({name: meta[name] for name in meta if name != _CRC}):
    raise ValueError('its description is not the one that was saved')
  if meta[_DIGEST] != digest(arrays):
    raise ValueError('its arrays are not those that were saved')
  return True


def add_checksums(directory: epath.Path) -> None:
  """Writes the checksums of every checkpoint in a directory that has none yet.

  Orbax calls it when the files of a checkpoint are written and before the directory is renamed to
  the step, so the checksums appear together with the checkpoint. In an object store, files would
  have to be downloaded again; there, the digest is all.
  """
  if files.is_remote(directory) or not processes.is_first():
    return
  for step in directory.iterdir():
    if step.name.partition('.')[0].isdecimal() and not (step / CHECKSUMS).exists():
      files.write(step / CHECKSUMS, json.dumps(_checksums(step)))


def check_files(step: epath.Path) -> bool:
  """Checks the files of a checkpoint.

  Returns:
    Whether there are checksums.

  Raises:
    ValueError: files are damaged or missing; the message names them.
  """
  if not (step / CHECKSUMS).exists():
    return False
  try:
    expected = dict(json.loads((step / CHECKSUMS).read_text()))
  except (TypeError, ValueError) as error:
    raise ValueError(f'{CHECKSUMS} is damaged') from error
  actual = _checksums(step)
  damaged = [name for name, checksum in expected.items() if actual.get(name) != checksum]
  if damaged:
    raise ValueError(f'damaged or missing: {", ".join(damaged)}')
  return True


def _checksums(step: epath.Path) -> dict[str, int]:
  """Returns the crc32 of the files of the items; Orbax may rewrite files beside the items."""
  return {
    str(path.relative_to(step)): zlib.crc32(path.read_bytes())
    for path in sorted(pathlib.Path(step).glob('*/**/*'))
    if path.is_file()
  }


def _crc_of(meta: Mapping[str, Any]) -> int:
  return zlib.crc32(json.dumps(meta, sort_keys=True).encode())
