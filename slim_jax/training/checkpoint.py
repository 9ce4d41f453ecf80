"""Checkpoints of one stage: Orbax underneath, host arrays in and out.

A stage has a directory, a checkpoint in it a number (the step) and two items: the
state as nested dictionaries of numpy arrays, and a JSON of what belongs to it.
Nothing in them depends on the number of devices. When Orbax has finished a
checkpoint, a list of the checksums of its files is added, so that a damaged file is
known by name before anything is read from it.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import errno
import functools
import json
import logging
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

# In each checkpoint: crc32 of the files of its items, by path.
CHECKSUMS = 'crc32.json'


class CheckpointError(SlimError):
  """Checkpoints are damaged or not of this run; the message names the files."""


@contextlib.contextmanager
def open_manager(directory: files.PathLike, *, keep: int) -> Iterator[ocp.CheckpointManager]:
  """The checkpoints of a directory, which is made if it does not exist.

  Args:
    directory: one stage's own.
    keep: how many checkpoints stay, the newest ones; and the one with the best score.

  Yields:
    A manager; what it is writing is complete when the block ends.

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
    with contextlib.suppress(Exception):  # it might hide what has happened
      manager.close()
    raise
  with _writing(directory):
    manager.close()


def wait(manager: ocp.CheckpointManager) -> None:
  """Waits until what was saved is written; raises CheckpointError where it cannot be."""
  with _writing(manager.directory):
    manager.wait_until_finished()


class Restored(NamedTuple):
  """What `restore` returns.

  Attributes:
    state: numpy arrays in the structure that was asked for.
    seconds: as `save` was given it.
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
  """Saves `state` under `step`, in the background once it is copied to the host.

  A step that is saved already stays as it is: the state is a function of the step.

  Args:
    manager: from `open_manager`.
    step: number of the checkpoint.
    state: a pytree that `flax.serialization` knows.
    seconds: time spent on the state so far; `restore` gives it back.
    score: the higher the better; None if it has none.
    totals: of an epoch that has begun; `restore` gives them back.

  Raises:
    CheckpointError: this checkpoint, or the one before, cannot be written.
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
  """The newest checkpoint that can be read.

  A checkpoint that cannot be read is named in a warning and set aside under the name
  `STEP.unreadable`, and the one before it is taken.

  Args:
    manager: from `open_manager`.
    like: a pytree of the structure, shapes and dtypes that are expected.

  Returns:
    What `save` was given; None when there is no checkpoint at all.

  Raises:
    CheckpointError: the checkpoint does not fit `like`, and its differences are
      listed; or there are checkpoints and none can be read.
  """
  found = _read_first(manager, sorted(manager.all_steps(), reverse=True))
  if found is None:
    return None
  directory, arrays, meta, unreadable = found
  processes.wait('restore')  # all have seen what is damaged
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
  """Nested dictionaries of what a stage ends with: the checkpoint with the best score.

  The later of equal ones; the newest one where none has a score. Of those that can be read.

  Raises:
    CheckpointError: there is none; the error says why.
  """
  if not files.path_of(directory).is_dir():
    raise CheckpointError(f'there is no directory of checkpoints {directory}')
  with _manager(directory, read_only=True) as manager:
    scores = {step: manager.metrics(step) or {'score': -1.0} for step in manager.all_steps()}
    found = _read_first(
      manager, sorted(scores, key=lambda step: (_score(scores[step]), step), reverse=True)
    )
  if found is None:
    raise CheckpointError(f'there is no checkpoint in {directory}')
  return found.arrays


def read_other(directory: files.PathLike) -> PyTree:
  """A tree that other code saved with Orbax, as host arrays, from however many devices.

  Args:
    directory: of the tree itself, in which its `_METADATA` lie.

  Raises:
    CheckpointError: it cannot be read.
  """
  absl_logging.get_absl_logger().addFilter(_no_orbax_chatter)
  directory = files.path_of(directory)
  try:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      saved = reader.metadata(directory).item_metadata
      if saved is None:
        raise ValueError('what says which arrays there are is damaged or missing')
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
  """Nested dictionaries, as checkpoints hold them, in the structure of `like`.

  Args:
    arrays: nested dictionaries of arrays.
    like: a pytree of the structure, shapes and dtypes that are expected.
    name: what to call `arrays` in the error.

  Raises:
    CheckpointError: with a list of every kind of difference.
  """
  target = serialization.to_state_dict(like)
  expected, found = tree.flatten(target), tree.flatten(arrays)
  lines = [tree.differences(expected, found)]
  mismatched = [
    f'{tree.show(path)} is {_form(found[path])}, not {_form(leaf)}'
    for path, leaf in expected.items()
    if path in found and _form(found[path]) != _form(leaf)
  ]
  if mismatched:
    lines.append('mismatched: ' + ', '.join(mismatched))
  if any(lines):
    raise CheckpointError(
      f'{name} does not hold the state that this run expects\n'
      + '\n'.join(line for line in lines if line)
    )
  filled = tree.map_with_path(lambda path, _: found[path], target)
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
  # What a full disk raises depends on who meets it: Python, Orbax or TensorStore.
  except Exception as error:  # pylint: disable=broad-except
    complete = [path.name for path in files.path_of(directory).iterdir() if path.name.isdecimal()]
    kept = ', '.join(sorted(complete, key=int)) or 'none'
    full = os.strerror(errno.ENOSPC)
    reason = full if full in str(error) else str(error).strip().partition('\n')[0][:300]
    raise CheckpointError(
      f'cannot write a checkpoint to {directory}: {reason}. Those that are complete stay '
      f'(steps: {kept}): when that is put right, the same command continues'
    ) from error


class _Found(NamedTuple):
  directory: epath.Path  # of the first checkpoint that can be read
  arrays: PyTree
  meta: dict[str, Any]
  unreadable: list[epath.Path]  # those before it


def _read_first(manager: ocp.CheckpointManager, steps: Sequence[int]) -> _Found | None:
  unreadable, reasons = [], []
  for step in steps:
    directory = files.path_of(manager.directory) / str(step)
    try:
      return _Found(directory, *_read_step(manager, step), unreadable)
    # What a damaged file raises depends on where the damage is: Orbax, TensorStore
    # and the JSON reader each have their own errors.
    except Exception as error:  # pylint: disable=broad-except
      reason = str(error).strip().partition('\n')[0][:300] or type(error).__name__
      unreadable.append(directory)
      reasons.append(f'{directory}: {reason}')
      absl_logging.warning(
        'This checkpoint cannot be read, so the next one is taken. %s', reasons[-1]
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
  """Takes out the arrays without elements, which Orbax refuses to save.

  A layer that has lost all its channels has some.

  Returns:
    (the other arrays, [path, shape, dtype] of those taken out).
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
  """Puts back what `_split_empty` took out."""
  flat = traverse_util.flatten_dict(arrays, keep_empty_nodes=True)
  flat |= {tuple(path): np.zeros(shape, dtype) for path, shape, dtype in empty}
  # A module of which nothing else is left has come back as an empty node.
  inner = {path[:n] for path in flat for n in range(len(path))}
  return traverse_util.unflatten_dict(
    {path: leaf for path, leaf in flat.items() if path not in inner}
  )


def _add_checksums(directory: epath.Path) -> None:
  """Lists the files of every checkpoint that has no list yet.

  Orbax calls it when the files of a checkpoint are written and before the directory
  is renamed to the step, so the list appears together with the checkpoint.
  """
  if files.is_remote(directory) or not processes.is_first():
    return  # an object store has its own
  for step in directory.iterdir():
    if step.name.partition('.')[0].isdecimal() and not (step / CHECKSUMS).exists():
      files.write(step / CHECKSUMS, json.dumps(_checksums(step)))


def _check_files(step: epath.Path) -> None:
  """Raises ValueError with the names of the files of a checkpoint that are damaged."""
  if not (step / CHECKSUMS).exists():
    return  # Orbax itself still notices most damage.
  found = _checksums(step)
  damaged = [
    name
    for name, checksum in json.loads((step / CHECKSUMS).read_text()).items()
    if found.get(name) != checksum
  ]
  if damaged:
    raise ValueError(f'damaged or missing: {", ".join(damaged)}')


def _checksums(step: epath.Path) -> dict[str, int]:
  """crc32 of the files of the items; what lies beside the items Orbax may rewrite."""
  return {
    str(path.relative_to(step)): zlib.crc32(path.read_bytes())
    for path in sorted(pathlib.Path(step).glob('*/**/*'))
    if path.is_file()
  }


def _form(leaf: Any) -> str:
  return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def _no_orbax_chatter(record: logging.LogRecord) -> bool:
  # Its errors come as exceptions, too.
  return record.levelno > logging.ERROR or 'orbax' not in record.pathname
