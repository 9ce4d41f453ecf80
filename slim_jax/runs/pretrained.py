"""Weights that were trained elsewhere, to start from instead of new ones: `config.init_from`.

  PATH.safetensors   by our paths ('params/Conv_0/kernel'), as `slim_jax.export` writes them, or by
                     the names of PyTorch code, see `torch_names`
  a directory        an Orbax checkpoint of a tree with 'params' and 'batch_stats', such as a
                     TrainState, or a directory of numbered ones, of which the newest is taken
  a workdir          of a run of slim_jax of which nothing is pruned yet; or WORKDIR/checkpoints/
                     STAGE, one stage of a run

A head for other classes is drawn anew: when all fits but the number of outputs of one layer.
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
from slim_jax.runs.checks import ConfigError
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files
from slim_jax.training import checkpoint

PyTree = Any

# Beside the arrays of a tree Orbax keeps a list of them.
_ORBAX = '_METADATA'
# Characters of a line of an error.
_LONGEST = 400


class Pretrained(NamedTuple):
  """Variables to start from.

  Attributes:
    variables: {'params': ..., 'batch_stats': ...}.
    new: paths of the leaves that are new, those of the head or none.
  """

  variables: PyTree
  new: tuple[str, ...]


def load(path: str, model: nn.Module, fresh: PyTree, image: tuple[int, int, int]) -> Pretrained:
  """The variables of a model with weights from elsewhere.

  Args:
    path: see the top of this file.
    model: the whole network.
    fresh: new variables for it; or their shapes, to see whether the weights fit.
    image: height, width and channels of the images.

  Raises:
    ConfigError: nothing is there, it cannot be read, or it does not fit the model; with a list
      of what is missing, unexpected and of another shape.
    CheckpointError: an Orbax checkpoint cannot be read.
  """
  arrays = read(path)
  if not _is_ours(arrays):
    try:
      classes = from_torch.num_classes(model, arrays)
      found = from_torch.from_state_dict(model.clone(num_classes=classes), arrays, image=image)
    except (TypeError, ValueError) as error:
      raise ConfigError(_short(f'config.init_from={path}: {error}')) from error
    arrays = tree.flatten(found)
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
  """What is there: arrays by our paths, as tuples, or by the names of PyTorch.

  Raises:
    ConfigError: nothing is there, or no weights.
    CheckpointError: an Orbax checkpoint cannot be read.
  """
  place = files.path_of(path)
  if not place.exists():
    raise ConfigError(f'config.init_from={path}: there is no such file or directory')
  if place.is_dir():
    arrays = tree.flatten(_read_directory(place))
    if not _is_ours(arrays):
      raise ConfigError(
        f"config.init_from={path} holds no tree with 'params', only "
        + ', '.join(dict.fromkeys(name[0] for name in arrays if name))
      )
    return arrays
  try:
    arrays = safetensors.numpy.load(place.read_bytes())
  except KeyError as error:  # a type that NumPy does not have
    raise ConfigError(
      f'config.init_from={path} has arrays of type {error.args[0]}: save them as '
      'float32, which parameters are here'
    ) from error
  except (safetensors.SafetensorError, OSError, ValueError) as error:
    raise ConfigError(
      f'config.init_from={path} is no safetensors file, or is damaged: {error}. PyTorch writes '
      'one by safetensors.torch.save_file(state_dict, path)'
    ) from error
  ours = {tree.parse(name): array for name, array in arrays.items()}
  return ours if _is_ours(ours) else arrays


def _is_ours(arrays: Mapping[Any, Any]) -> bool:
  """Whether arrays are named by path, which begins with the collection."""
  return any(name[:1] == ('params',) for name in arrays)


def _read_directory(place: epath.Path) -> PyTree:
  if (place / 'stages.json').exists():
    return _read_run(Workdir(place))
  if any((step / 'meta').exists() for step in _numbered(place)):  # a stage, whose best may count
    return checkpoint.read(place)
  for directory in (place, *reversed(_numbered(place))):
    for item in (directory, *(item for item in directory.iterdir() if item.is_dir())):
      if (item / _ORBAX).exists():
        return checkpoint.read_other(item)
  raise ConfigError(
    f'config.init_from={place} is neither an Orbax checkpoint nor a workdir: give '
    'the directory of one checkpoint, or that of numbered ones'
  )


def _numbered(place: epath.Path) -> list[epath.Path]:
  return sorted(
    (path for path in place.iterdir() if path.name.isdecimal()), key=lambda path: int(path.name)
  )


def _read_run(workdir: Workdir) -> PyTree:
  done = workdir.complete()
  whole = [stage for stage in done if stage.number == 0 or stage == Stage(1, 'sparse')]
  if not done:
    raise ConfigError(f'config.init_from={workdir.path} is a run without a complete stage')
  if done[-1] not in whole:
    raise ConfigError(
      f'config.init_from={workdir.path} is a run that is pruned already; give a '
      'stage of it: ' + ' or '.join(str(workdir.checkpoints(s)) for s in whole)
    )
  return checkpoint.read(workdir.checkpoints(done[-1]))


def _head(expected: Mapping[tree.Path, Any], found: Mapping[tree.Path, Any]) -> list[tree.Path]:
  """The leaves of the one layer that differs, in its outputs alone; [] unless it is that.

  The outputs of any other layer are some other layer's inputs, so it is the last one.
  """
  differ = [
    path for path, leaf in expected.items() if path in found and np.shape(found[path]) != leaf.shape
  ]
  layers = {path[:-1] for path in differ}
  return (
    differ
    if len(layers) == 1
    and all(np.shape(found[path])[:-1] == expected[path].shape[:-1] for path in differ)
    else []
  )


def _problems(
  expected: Mapping[tree.Path, Any], found: Mapping[tree.Path, Any], new: list[tree.Path]
) -> Iterator[str]:
  if lines := tree.differences(expected, found):
    yield from lines.splitlines()
  shapes = [
    f'{tree.show(path)} is {list(np.shape(found[path]))}, not {list(leaf.shape)}'
    for path, leaf in expected.items()
    if path in found and path not in new and np.shape(found[path]) != leaf.shape
  ]
  if shapes:
    yield 'of another shape: ' + ', '.join(shapes)


def _short(text: str) -> str:
  """Lines that a person still reads: of another network hundreds of names are missing."""
  return '\n'.join(
    line if len(line) <= _LONGEST else f'{line[:_LONGEST]} ...' for line in text.splitlines()
  )
