"""Checkpoints of one stage, written by Orbax.

A stage has a directory. Each checkpoint in it has a number (the step) and two items: the state as
nested dictionaries of numpy arrays, and a JSON with what belongs to it. Neither depends on the
number of devices. When Orbax has written a checkpoint, the checksums of its files are added, so
that a damaged file is named before anything is read from it.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import functools
import json
import logging
import math
import os
import pathlib
from typing import Any, NamedTuple
import zlib

from absl import logging as absl_logging
from etils import epath
from flax import serialization, traverse_util
import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as ocp_managers

from slim_jax import tree
from slim_jax.errors import SlimError
from slim_jax.runtime import files, processes

PyTree = Any

# The file in each checkpoint with the crc32 of the files of its items, by path.
CHECKSUMS = 'crc32.json'


class CheckpointError(SlimError):
  """Checkpoints are damaged or belong to another run; the message names the files."""


@contextlib.contextmanager
def open_manager(directory: files.PathLike, *, keep: int) -> Iterator[ocp.CheckpointManager]:
  """Opens the checkpoints of a directory, which is made if it does not exist.

  Args:
    directory: of one stage.
    keep: how many of the newest checkpoints stay, beside the one with the best score.

  Yields:
    A manager. All checkpoints are written when the block ends.

  Raises:
    CheckpointError: a checkpoint cannot be written.
  """
  directory = files.path_of(directory)
  manager = _manager(
    directory,
    cleanup_tmp_directories=True,
    preservation_policy=ocp_managers.AnyPreservationPolicy(
      [
        ocp_managers.LatestN(keep),
        ocp_managers.BestN(get_metric_fn=_score, n=1, keep_checkpoints_without_metrics=False),
      ]
    ),
    async_options=ocp.options.AsyncOptions(
      post_finalization_callback=functools.partial(_add_checksums, directory)
    ),
  )
  try:
    yield manager
  except BaseException:
    with contextlib.suppress(Exception):  # it would hide the error
      manager.close()
    raise
  with _writing(directory):
    manager.close()


def wait(manager: ocp.CheckpointManager) -> None:
  """Waits until all checkpoints are written; raises CheckpointError if that fails."""
  with _writing(manager.directory):
    manager.wait_until_finished()


class Restored(NamedTuple):
  """A checkpoint that was read.

  Attributes:
    state: numpy arrays in the requested structure.
    seconds: from `save`.
    totals: likewise.
  """

  state: PyTree
  seconds: float
  totals: dict[str, float]


def save(
  manager: ocp.CheckpointManager,
  step: int,
  state: PyTree,
  *,
  seconds: float,
  score: float | None = None,
  totals: Mapping[str, float] | None = None,
) -> None:
  """Saves `state` under `step`: copies it to the host, and writes it in the background.

  A step that is already saved is left alone: the state is a function of the step.

  Args:
    manager: from `open_manager`.
    step: number of the checkpoint.
    state: a pytree that `flax.serialization` knows.
    seconds: time spent on the state so far; `restore` returns it.
    score: the higher the better; None for no score.
    totals: of an incomplete epoch; `restore` returns them.

  Raises:
    CheckpointError: this checkpoint or the previous one cannot be written.
  """
  if step in manager.all_steps():
    return
  arrays = jax.tree.map(np.asarray, serialization.to_state_dict(jax.device_get(state)))
  arrays, empty = _split_empty(arrays)
  meta = {'seconds': seconds, 'empty': empty, 'totals': dict(totals or {})}
  with _writing(manager.directory):
    manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)),
      metrics=None if score is None else {'score': score},
    )


def restore(manager: ocp.CheckpointManager, like: PyTree) -> Restored | None:
  """Reads the newest readable checkpoint.

  A damaged checkpoint is reported in a warning and renamed to `STEP.unreadable`; the previous one
  is read instead.

  Args:
    manager: from `open_manager`.
    like: a pytree with the expected structure, shapes and dtypes.

  Returns:
    The checkpoint, or None if there is none at all.

  Raises:
    CheckpointError: the checkpoint does not fit `like` (the message lists the differences), or no
      checkpoint can be read.
  """
  readable = _read_first(manager, sorted(manager.all_steps(), reverse=True))
  if readable is None:
    return None
  directory, arrays, meta, unreadable = readable
  processes.wait('restore')  # until all have read what is damaged
  if processes.is_first():
    for damaged in unreadable:
      aside = damaged.with_name(damaged.name + '.unreadable')
      if aside.exists():
        aside.rmtree()
      damaged.rename(aside)
  processes.wait('set aside')
  manager.reload()
  return Restored(fit(arrays, like, name=str(directory)), meta['seconds'], meta.get('totals', {}))


def read(directory: files.PathLike) -> PyTree:
  """Reads the result of a stage: of the readable checkpoints, the one with the best score.

  Of equal scores the later checkpoint counts; without scores, the newest one.

  Returns:
    Nested dictionaries of numpy arrays.

  Raises:
    CheckpointError: there is none; the message says why.
  """
  if not files.path_of(directory).is_dir():
    raise CheckpointError(f'there is no directory of checkpoints {directory}')
  with _manager(directory, read_only=True) as manager:
    scores = {step: manager.metrics(step) or {'score': -math.inf} for step in manager.all_steps()}
    best = _read_first(
      manager, sorted(scores, key=lambda step: (_score(scores[step]), step), reverse=True)
    )
  if best is None:
    raise CheckpointError(f'there is no checkpoint in {directory}')
  return best.arrays


def read_variables(directory: files.PathLike) -> PyTree:
  """Reads the result of a stage, as `read` does, and returns what is evaluated and exported of it.

  Returns:
    What `train_state.variables_of` returns of the state, in nested dictionaries of numpy arrays, and
    perhaps other parts of the state.
  """
  arrays = read(directory)
  return arrays.get('ema') or arrays


def read_other(directory: files.PathLike) -> PyTree:
  """Reads a tree that other code saved with Orbax, from any number of devices, as numpy arrays.

  Args:
    directory: of the tree itself, with its file `_METADATA`.

  Raises:
    CheckpointError: it cannot be read.
  """
  absl_logging.get_absl_logger().addFilter(_no_orbax_chatter)
  directory = files.path_of(directory)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      saved = reader.metadata(directory).item_metadata
      if saved is None:
        raise ValueError('its list of arrays is damaged or missing')
      return reader.restore(
        directory,
        args=ocp.args.PyTreeRestore(
          restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved.tree)
        ),
      )
  except Exception as error:  # pylint: disable=broad-except  (as for `_read_first`)
    reason = str(error).strip().partition('\n')[0][:300] or type(error).__name__
    raise CheckpointError(f'{directory} cannot be read: {reason}') from error


def fit(arrays: PyTree, like: PyTree, *, name: str) -> PyTree:
  """Puts nested dictionaries, as checkpoints have them, into the structure of `like`.

  Args:
    arrays: nested dictionaries of arrays.
    like: a pytree with the expected structure, shapes and dtypes.
    name: of `arrays` in the error.

  Raises:
    CheckpointError: they differ; the message lists what is missing, unexpected and mismatched.
  """
  target = serialization.to_state_dict(like)
  expected, leaves = tree.flatten(target), tree.flatten(arrays)
  lines = [tree.differences(expected, leaves)]
  mismatched = [
    f'{tree.show(path)} is {_form(leaves[path])}, not {_form(leaf)}'
    for path, leaf in expected.items()
    if path in leaves and _form(leaves[path]) != _form(leaf)
  ]
  if mismatched:
    lines.append('mismatched: ' + ', '.join(mismatched))
  if any(lines):
    raise CheckpointError(
      f'{name} does not hold the state that this run expects\n'
      + '\n'.join(line for line in lines if line)
    )
  filled = tree.map_with_path(lambda path, _: leaves[path], target)
  return serialization.from_state_dict(like, filled)


def _manager(directory: files.PathLike, **options: Any) -> ocp.CheckpointManager:
  absl_logging.get_absl_logger().addFilter(_no_orbax_chatter)
  return ocp.CheckpointManager(
    files.path_of(directory), options=ocp.CheckpointManagerOptions(best_fn=_score, **options)
  )


def _score(metrics: dict[str, float]) -> float:
  return metrics['score']


@contextlib.contextmanager
def _writing(directory: Any) -> Iterator[None]:
  try:
    yield
  # Python, Orbax and TensorStore each raise their own errors for a full disk.
  except Exception as error:  # pylint: disable=broad-except
    complete = [path.name for path in files.path_of(directory).iterdir() if path.name.isdecimal()]
    kept = ', '.join(sorted(complete, key=int)) or 'none'
    full = os.strerror(errno.ENOSPC)
    reason = full if full in str(error) else str(error).strip().partition('\n')[0][:300]
    raise CheckpointError(
      f'cannot write a checkpoint to {directory}: {reason}. Complete checkpoints stay '
      f'(steps: {kept}): when the cause is fixed, the same command continues'
    ) from error


class _Readable(NamedTuple):
  directory: epath.Path
  arrays: PyTree
  meta: dict[str, Any]
  unreadable: list[epath.Path]  # the checkpoints tried before this one


def _read_first(manager: ocp.CheckpointManager, steps: Sequence[int]) -> _Readable | None:
  """Reads the first of the steps that can be read; None if there are no steps."""
  unreadable, reasons = [], []
  for step in steps:
    directory = files.path_of(manager.directory) / str(step)
    try:
      return _Readable(directory, *_read_step(manager, step), unreadable)
    # Orbax, TensorStore and the JSON reader each raise their own errors for damaged files.
    except Exception as error:  # pylint: disable=broad-except
      reason = str(error).strip().partition('\n')[0][:300] or type(error).__name__
      unreadable.append(directory)
      reasons.append(f'{directory}: {reason}')
      absl_logging.warning(
        'This checkpoint cannot be read, so the previous one is used. %s', reasons[-1]
      )
  if reasons:
    raise CheckpointError(
      f'no checkpoint in {manager.directory} can be read; to train this stage again '
      'from its start, delete that directory\n' + '\n'.join(reasons)
    )
  return None


def _read_step(manager: ocp.CheckpointManager, step: int) -> tuple[PyTree, Any]:
  _check_files(files.path_of(manager.directory) / str(step))
  restored = manager.restore(
    step, args=ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
  )
  arrays = jax.tree.map(np.asarray, restored['state'])
  return _join_empty(arrays, restored['meta']['empty']), restored['meta']


def _split_empty(arrays: PyTree) -> tuple[PyTree, list[Any]]:
  """Splits off the arrays without elements, which Orbax refuses to save.

  A layer that has lost all its channels has such arrays.

  Returns:
    (the other arrays, [path, shape, dtype] of the empty ones).
  """
  empty = [
    (path, leaf.shape, leaf.dtype.name)
    for path, leaf in tree.flatten(arrays).items()
    if not leaf.size
  ]
  flat = traverse_util.flatten_dict(arrays, keep_empty_nodes=True)
  for path, *_ in empty:
    del flat[path]
  return traverse_util.unflatten_dict(flat), empty


def _join_empty(arrays: PyTree, empty: list[Any]) -> PyTree:
  """Puts back the empty arrays that `_split_empty` removed."""
  flat = traverse_util.flatten_dict(arrays, keep_empty_nodes=True)
  flat |= {tuple(path): np.zeros(shape, dtype) for path, shape, dtype in empty}
  # A module with nothing but empty arrays has come back as an empty node.
  inner = {path[:n] for path in flat for n in range(len(path))}
  return traverse_util.unflatten_dict(
    {path: leaf for path, leaf in flat.items() if path not in inner}
  )


def _add_checksums(directory: epath.Path) -> None:
  """Writes the checksums of every checkpoint that has none yet.

  Orbax calls it when the files of a checkpoint are written and before the directory is renamed to
  the step, so the checksums appear together with the checkpoint.
  """
  if files.is_remote(directory) or not processes.is_first():
    return  # object stores keep checksums themselves
  for step in directory.iterdir():
    if step.name.partition('.')[0].isdecimal() and not (step / CHECKSUMS).exists():
      files.write(step / CHECKSUMS, json.dumps(_checksums(step)))


def _check_files(step: epath.Path) -> None:
  """Raises ValueError with the names of the damaged files of a checkpoint."""
  if not (step / CHECKSUMS).exists():
    return  # Orbax itself still notices most damage.
  actual = _checksums(step)
  damaged = [
    name
    for name, checksum in json.loads((step / CHECKSUMS).read_text()).items()
    if actual.get(name) != checksum
  ]
  if damaged:
    raise ValueError(f'damaged or missing: {", ".join(damaged)}')


def _checksums(step: epath.Path) -> dict[str, int]:
  """Returns the crc32 of the files of the items; Orbax may rewrite files beside the items."""
  return {
    str(path.relative_to(step)): zlib.crc32(path.read_bytes())
    for path in sorted(pathlib.Path(step).glob('*/**/*'))
    if path.is_file()
  }


def _form(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def _no_orbax_chatter(record: logging.LogRecord) -> bool:
  # Orbax also raises what it logs as an error.
  return record.levelno > logging.ERROR or 'orbax' not in record.pathname
