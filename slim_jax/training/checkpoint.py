"""Checkpoints of one stage, written by Orbax.

A stage has a directory. Each checkpoint in it has a number (the step) and two items: the state as
nested dictionaries of numpy arrays, and a JSON with what belongs to it, among that a digest of the
arrays (`integrity`). Neither depends on the number of devices.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import functools
import logging
import math
import os
from typing import Any, NamedTuple

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
from slim_jax.training import integrity

PyTree = Any

# Errors that say nothing about the files: a checkpoint behind them must not be taken for damaged.
_NO_DAMAGE = tuple(
  os.strerror(number)
  for number in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EACCES, errno.EPERM)
)


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
    LinkError: the directory is a link.
  """
  files.refuse_links(directory)
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
      post_finalization_callback=functools.partial(integrity.add_checksums, directory)
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
  whole = arrays_of(state)
  arrays, empty = _split_empty(whole)
  meta = integrity.sealed({'seconds': seconds, 'empty': empty, 'totals': dict(totals or {})}, whole)
  with _writing(manager.directory):
    manager.save(
      step,
      args=ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(meta)),
      metrics=None if score is None else {'score': score},
    )


def arrays_of(state: PyTree) -> PyTree:
  """Returns a state as checkpoints have it: nested dictionaries of numpy arrays."""
  return jax.tree.map(np.asarray, serialization.to_state_dict(jax.device_get(state)))


def restore(manager: ocp.CheckpointManager, like: PyTree) -> Restored | None:
  """Reads the newest checkpoint that every process can read.

  A checkpoint that one of them cannot read is reported in a warning and renamed to
  `STEP.unreadable`; the previous one is read instead.

  Args:
    manager: from `open_manager`.
    like: a pytree with the expected structure, shapes and dtypes.

  Returns:
    The checkpoint, or None if there is none at all.

  Raises:
    CheckpointError: the checkpoint does not fit `like` (the message lists the differences), no
      checkpoint can be read, or this machine lacks memory, file handles or permissions to read it.
    ProcessError: the processes read different checkpoints.
  """
  steps = processes.same_numbers(sorted(manager.all_steps(), reverse=True))
  unreadable, reasons = [], []
  for step in steps:
    directory = files.path_of(manager.directory) / str(step)
    found, reason = _attempt(directory)
    if processes.all_say(found is not None):
      break
    unreadable.append(directory)
    reasons.append(f'{directory}: {reason or "another process cannot read it"}')
    absl_logging.warning(
      'This checkpoint cannot be read, so the previous one is used. %s', reasons[-1]
    )
  else:
    if reasons:
      raise CheckpointError(
        f'no checkpoint in {manager.directory} can be read; to train this stage again '
        'from its start, delete that directory\n' + '\n'.join(reasons)
      )
    return None
  assert found is not None
  processes.check_same(f'checkpoint {directory}', integrity.digest(found.arrays))
  _set_aside(unreadable)
  manager.reload()
  state = fit(found.arrays, like, name=str(directory))
  return Restored(state, found.meta['seconds'], found.meta.get('totals', {}))


def read(
  directory: files.PathLike, *, step: int | None = None, digest: str | None = None
) -> PyTree:
  """Reads the result of a stage.

  Args:
    directory: of the stage.
    step: the checkpoint; by default the one with the best score. Of equal scores the later one
      counts; without scores, the newest.
    digest: of the arrays, as `integrity.digest` returns it, if it is known.

  Returns:
    Nested dictionaries of numpy arrays.

  Raises:
    CheckpointError: that checkpoint is missing, damaged, or not the one of the digest. Another one
      is never read in its place.
  """
  here = files.path_of(directory)
  if not here.is_dir():
    raise CheckpointError(f'there is no directory of checkpoints {directory}')
  chosen = here / str(_best(here) if step is None else step)
  if not chosen.is_dir():
    others = ', '.join(map(str, _steps_in(here))) or 'none'
    raise CheckpointError(f'there is no checkpoint {chosen} (others there: {others})')
  found, reason = _attempt(chosen)
  if found is None:
    raise CheckpointError(f'the checkpoint {chosen} cannot be read: {reason}')
  if digest is not None and integrity.digest(found.arrays) != digest:
    raise CheckpointError(f'the checkpoint {chosen} is not the one that was recorded')
  return found.arrays


def evaluated(arrays: PyTree) -> PyTree:
  """Returns what is evaluated and exported of the arrays of a checkpoint.

  Returns:
    What `train_state.variables_of` returns of the state, and perhaps other parts of the state.
  """
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
  except Exception as error:  # pylint: disable=broad-except  (as for `_attempt`)
    raise CheckpointError(f'{directory} cannot be read: {_reason(error)}') from error


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
    kept = ', '.join(map(str, _steps_in(files.path_of(directory)))) or 'none'
    full = os.strerror(errno.ENOSPC)
    reason = full if full in str(error) else _reason(error)
    raise CheckpointError(
      f'cannot write a checkpoint to {directory}: {reason}. Complete checkpoints stay '
      f'(steps: {kept}): when the cause is fixed, the same command continues'
    ) from error


class _Read(NamedTuple):
  arrays: PyTree
  meta: dict[str, Any]


def _attempt(directory: epath.Path) -> tuple[_Read | None, str]:
  """Returns the checkpoint in a directory; or None, and the reason in a line."""
  try:
    return _read_step(directory), ''
  # Orbax, TensorStore and the JSON reader each raise their own errors for damaged files.
  except Exception as error:  # pylint: disable=broad-except
    if isinstance(error, MemoryError) or any(text in str(error) for text in _NO_DAMAGE):
      raise CheckpointError(f'cannot read the checkpoint {directory}: {_reason(error)}') from error
    return None, _reason(error)


def _read_step(directory: epath.Path) -> _Read:
  has_checksums = integrity.check_files(directory)
  absl_logging.get_absl_logger().addFilter(_no_orbax_chatter)
  # Each process reads by itself: one that fails must not keep the others waiting in Orbax.
  alone = ocp.options.MultiprocessingOptions(
    primary_host=jax.process_index(),
    active_processes={jax.process_index()},
    barrier_sync_key_prefix=f'read{jax.process_index()}',
  )
  with ocp.Checkpointer(ocp.CompositeCheckpointHandler(), multiprocessing_options=alone) as reader:
    restored = reader.restore(
      directory,
      args=ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore()),
    )
  meta = restored['meta']
  arrays = _join_empty(jax.tree.map(np.asarray, restored['state']), meta['empty'])
  if not integrity.check_seal(meta, arrays) and not has_checksums:
    absl_logging.warning(
      '%s has no checksums, so damage may go unnoticed: an older version wrote it', directory
    )
  return _Read(arrays, meta)


def _set_aside(unreadable: Sequence[epath.Path]) -> None:
  """Renames checkpoints that some process could not read to `STEP.unreadable`."""
  processes.wait('restore')
  if processes.is_first():
    for damaged in unreadable:
      aside = damaged.with_name(damaged.name + '.unreadable')
      if aside.exists():
        aside.rmtree()
      damaged.rename(aside)
  processes.wait('set aside')


def _best(directory: epath.Path) -> int:
  """Returns the step with the best score; of equal scores, and without scores, the newest."""
  with _manager(directory, read_only=True) as manager:
    scores = {step: manager.metrics(step) or {'score': -math.inf} for step in manager.all_steps()}
  if not scores:
    raise CheckpointError(f'there is no checkpoint in {directory}')
  return max(scores, key=lambda step: (_score(scores[step]), step))


def _steps_in(directory: epath.Path) -> list[int]:
  """Returns the steps of the checkpoints in a directory, increasing."""
  return sorted(int(path.name) for path in directory.iterdir() if path.name.isdecimal())


def _reason(error: Exception) -> str:
  return str(error).strip().partition('\n')[0][:300] or type(error).__name__


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


def _form(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def _no_orbax_chatter(record: logging.LogRecord) -> bool:
  # Orbax also raises what it logs as an error.
  return record.levelno > logging.ERROR or 'orbax' not in record.pathname
