"""The results of complete stages: what the record of a stage says it is of.

A record has a `result`: the step of the checkpoint, the digest of its arrays, that of the plan, and
that of what else determines the network's function (model, shape and normalisation of the images).
Whoever opens a complete stage gets exactly that, or an error. Records of older versions have no
result; the best checkpoint of the stage is taken then, and a warning says so.
"""

from collections.abc import Mapping
import functools
import hashlib
import json
from typing import Any

from absl import logging
from etils import epath

from slim_jax.runs.errors import WorkdirError
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime.config import Config
from slim_jax.training import checkpoint, integrity

PyTree = Any

# Fields of config.json and dataset.json that the function of a network depends on.
_OF_CONFIG = ('model', 'dtype')
_OF_DATASET = ('image', 'num_classes', 'class_names', 'mean', 'std', 'dtype')


def describe(
  workdir: Workdir, stage: Stage, state: PyTree, config: Config, dataset: Mapping[str, Any]
) -> dict[str, Any]:
  """Returns the `result` for the record of a stage.

  Args:
    workdir: of the run.
    stage: the stage, whose plan is written.
    state: the state that its checkpoint holds.
    config: of the run.
    dataset: content of dataset.json.
  """
  arrays = checkpoint.arrays_of(state)
  result = {
    'step': int(arrays['step']),
    'arrays': integrity.digest(arrays),
    'network': _network(config, dataset),
  }
  return result | ({'plan': workdir.plan_digest(stage)} if stage.prunings > 0 else {})


def read(workdir: Workdir, stage: Stage) -> PyTree:
  """Reads the checkpoint that a complete stage ended with.

  Returns:
    Nested dictionaries of numpy arrays.

  Raises:
    WorkdirError: the stage is not complete.
    CheckpointError: its checkpoint is missing or damaged, or is another one than that of the
      record. The message says what to do.
  """
  directory = workdir.checkpoints(stage)
  result = workdir.record(stage).get('result')
  if result is None:
    _warn_of_old(directory)
    result = {'step': None, 'arrays': None}
  try:
    return checkpoint.read(directory, step=result['step'], digest=result['arrays'])
  except checkpoint.CheckpointError as error:
    raise checkpoint.CheckpointError(f'{error}. {_way_out(workdir, stage)}') from error


def read_variables(workdir: Workdir, stage: Stage) -> PyTree:
  """Reads the checkpoint of a complete stage; returns what is evaluated and exported of it."""
  return checkpoint.evaluated(read(workdir, stage))


def check_network(
  workdir: Workdir, stage: Stage, config: Config, dataset: Mapping[str, Any]
) -> None:
  """Raises WorkdirError if config.json or dataset.json are of another network than the stage."""
  result = workdir.record(stage).get('result')
  if result and result['network'] != _network(config, dataset):
    raise WorkdirError(
      f'{workdir.path}: config.json or dataset.json has changed since {stage} was recorded: its '
      f'network depends on {", ".join(_OF_CONFIG)} and {", ".join(_OF_DATASET)}. Put the files '
      'back as they were'
    )


def _network(config: Config, dataset: Mapping[str, Any]) -> str:
  fields = config.to_dict()
  values = [*(fields[name] for name in _OF_CONFIG), *(dataset.get(name) for name in _OF_DATASET)]
  text = json.dumps(values, sort_keys=True).encode()
  return hashlib.blake2b(text, digest_size=8).hexdigest()


def _way_out(workdir: Workdir, stage: Stage) -> str:
  """Says how to make a stage again whose checkpoint is lost."""
  order = [Stage.of(record) for record in workdir.records()]
  later = [str(workdir.checkpoints(other)) for other in order[order.index(stage) + 1 :]]
  return (
    f'It is the result of {stage}, and no other checkpoint is used in its place. Put a copy of it '
    f'back, or make the stage again: delete its record and those after it from '
    f'{workdir.path / "stages.json"}, and this checkpoint'
    + (f', and {", ".join(later)}' if later else '')
    + '; the same command then continues from what is left'
  )


@functools.cache
def _warn_of_old(directory: epath.Path) -> None:
  logging.warning(
    'An older version recorded this stage without naming its checkpoint. The best one in %s is '
    'taken; whether it is the one that was evaluated is not known',
    directory,
  )
