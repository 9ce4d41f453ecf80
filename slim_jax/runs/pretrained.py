"""Loads weights that were trained elsewhere, to start from: `config.init_from`.

  PATH.safetensors   arrays named by path ('params/Conv_0/kernel'), as `slim_jax.export` writes
                     them, or named as in PyTorch code, see `torch_names`
  a directory        an Orbax checkpoint of a tree with 'params' and 'batch_stats', such as a
                     TrainState; or a directory of numbered checkpoints, whose newest is loaded
  a workdir          of a run of slim_jax that has not been pruned yet; or WORKDIR/checkpoints/
                     STAGE, one stage of a run

If only the number of outputs of one layer differs, that layer is the head of a network for other
classes, and gets new weights.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from etils import epath
from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from slim_jax import tree
from slim_jax.models import from_torch
from slim_jax.runs import results
from slim_jax.runs.errors import ConfigError
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files
from slim_jax.training import checkpoint

PyTree = Any

# The file in which Orbax lists the arrays of a tree.
_ORBAX = '_METADATA'
# Longest line of an error message, in characters.
_LONGEST = 400


class Pretrained(NamedTuple):
  """Variables to start from.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...}.
    new: paths of the leaves with new values: those of the head, or none.
  """

  variables: PyTree
  new: tuple[str, ...]


def load(
  path: str, model: nn.Module | None, fresh: PyTree, image: tuple[int, int, int]
) -> Pretrained:
  """Loads the variables of a model.

  Args:
    path: `config.init_from`, see the top of this file.
    model: the Linen module of the original network; None for a model of NNX.
    fresh: new variables of the model; or their shapes, to check whether the weights fit.
    image: height, width and channels of the images.

  Raises:
    ConfigError: the path does not exist, cannot be read, or does not fit the model. The message
      lists leaves that are missing, unexpected or of another shape.
    CheckpointError: an Orbax checkpoint cannot be read.
  """
  arrays = read(path)
  if not _is_ours(arrays):
    if model is None:
      raise ConfigError(
        f'config.init_from={path}: a model of NNX starts from weights with the names of its own '
        "variables, such as 'params/conv/kernel'"
      )
    try:
      classes = from_torch.num_classes(model, arrays)
      variables = from_torch.from_state_dict(model.clone(num_classes=classes), arrays, image=image)
    except (TypeError, ValueError) as error:
      raise ConfigError(_short(f'config.init_from={path}: {error}')) from error
    arrays = tree.flatten(variables)
  leaves = tree.flatten(fresh)
  arrays = {p: array for p, array in arrays.items() if p[0] in fresh}
  new = _head(leaves, arrays)
  if problems := list(_problems(leaves, arrays, new)):
    raise ConfigError(
      _short(
        f'config.init_from={path} does not fit config.model:'
        + ''.join(f'\n  {problem}' for problem in problems)
      )
    )

  def start(where: tree.Path, leaf: jax.Array) -> jax.Array:
    return leaf if where in new else jnp.asarray(arrays[where], leaf.dtype)

  return Pretrained(tree.map_with_path(start, fresh), tuple(map(tree.show, new)))


def read(path: str) -> dict[Any, np.ndarray]:
  """Reads the arrays of a file or directory.

  Returns:
    Arrays by path, as a tuple of strings; or by name, if they are named as in PyTorch code.

  Raises:
    ConfigError: the path does not exist or holds no weights.
    CheckpointError: an Orbax checkpoint cannot be read.
  """
  source = files.path_of(path)
  if not source.exists():
    raise ConfigError(f'config.init_from={path}: there is no such file or directory')
  if source.is_dir():
    arrays = tree.flatten(_read_directory(source))
    if not _is_ours(arrays):
      raise ConfigError(
        f"config.init_from={path} holds no tree with 'params', only "
        + ', '.join(dict.fromkeys(name[0] for name in arrays if name))
      )
    return arrays
  try:
    arrays = safetensors.numpy.load(files.read(source, most=files.memory()))
  except KeyError as error:  # a dtype that NumPy does not have
    raise ConfigError(
      f'config.init_from={path} has arrays of type {error.args[0]}: save them as '
      'float32, the type of parameters in slim_jax'
    ) from error
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise ConfigError(
      f'config.init_from={path} is no safetensors file, or is damaged: {error}. In PyTorch, '
      'safetensors.torch.save_file(state_dict, path) writes one'
    ) from error
  ours = {tree.parse(name): array for name, array in arrays.items()}
  return ours if _is_ours(ours) else arrays


def _is_ours(arrays: Mapping[Any, Any]) -> bool:
  """Returns whether arrays are named by path, which begins with the collection."""
  return any(name[:1] == ('params',) for name in arrays)


def _read_directory(source: epath.Path) -> PyTree:
  if (source / 'stages.json').exists():
    return _read_run(Workdir(source))
  if any((step / 'meta').exists() for step in _numbered(source)):  # a stage of slim_jax
    return _read_stage(source)
  for directory in (source, *reversed(_numbered(source))):
    for item in (directory, *(item for item in directory.iterdir() if item.is_dir())):
      if (item / _ORBAX).exists():
        return checkpoint.read_other(item)
  raise ConfigError(
    f'config.init_from={source} is neither an Orbax checkpoint nor a workdir: give '
    'the directory of one checkpoint, or that of numbered ones'
  )


def _numbered(source: epath.Path) -> list[epath.Path]:
  return sorted(
    (path for path in source.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name)
  )


def _read_run(workdir: Workdir) -> PyTree:
  complete = workdir.complete_stages()
  unpruned = [stage for stage in complete if stage.number == 0 or stage == Stage(1, 'sparse')]
  if not complete:
    raise ConfigError(f'config.init_from={workdir.path} is a run without a complete stage')
  if complete[-1] not in unpruned:
    raise ConfigError(
      f'config.init_from={workdir.path} is a run that is pruned already; give one of its '
      'stages: ' + ' or '.join(str(workdir.checkpoints(s)) for s in unpruned)
    )
  return results.read_variables(workdir, complete[-1])


def _read_stage(source: epath.Path) -> PyTree:
  """Reads WORKDIR/checkpoints/STAGE: what its record names, if the stage is complete."""
  workdir = Workdir(source.parent.parent)
  for record in workdir.records():
    if workdir.checkpoints(stage := Stage.of(record)) == source:
      return results.read_variables(workdir, stage)
  return checkpoint.evaluated(checkpoint.read(source))


def _head(expected: Mapping[tree.Path, Any], loaded: Mapping[tree.Path, Any]) -> list[tree.Path]:
  """Returns the leaves of the head if it is for another number of classes, else [].

  The head is the one layer that differs only in its number of outputs. Any other layer with other
  outputs would change the inputs of a second layer.
  """
  differ = [
    path
    for path, leaf in expected.items()
    if path in loaded and np.shape(loaded[path]) != leaf.shape
  ]
  layers = {path[:-1] for path in differ}
  return (
    differ
    if len(layers) == 1
    and all(np.shape(loaded[path])[:-1] == expected[path].shape[:-1] for path in differ)
    else []
  )


def _problems(
  expected: Mapping[tree.Path, Any], loaded: Mapping[tree.Path, Any], new: list[tree.Path]
) -> Iterator[str]:
  if lines := tree.differences(expected, loaded):
    yield from lines.splitlines()
  shapes = [
    f'{tree.show(path)} is {list(np.shape(loaded[path]))}, not {list(leaf.shape)}'
    for path, leaf in expected.items()
    if path in loaded and path not in new and np.shape(loaded[path]) != leaf.shape
  ]
  if shapes:
    yield 'of another shape: ' + ', '.join(shapes)


def _short(text: str) -> str:
  """Shortens long lines: a wrong network may have hundreds of missing names."""
  return '\n'.join(
    line if len(line) <= _LONGEST else f'{line[:_LONGEST]} ...' for line in text.splitlines()
  )
