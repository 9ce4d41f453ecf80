"""The experiments that come with slim_jax, by name: 'cifar10_vgg19', or 'vgg19-cifar10'."""

import pathlib
import re

import slim_jax
from slim_jax.runs import schema
from slim_jax.runs.errors import ConfigError

# In the package where slim_jax is installed, beside it in a clone.
_PACKAGE = pathlib.Path(slim_jax.__file__).parent
_FOLDERS = (_PACKAGE / 'configs', _PACKAGE.parent / 'configs')


def names() -> list[str]:
  """Returns the names of the experiments."""
  return sorted(_paths())


def find(text: str) -> str:
  """Returns the path of a config, given by its path or by the name of an experiment.

  Args:
    text: a path, which counts from where the person stands; or a name, whose words may be in any
      order and be separated by '-' or '_'. Anything after a colon is for the config itself.

  Raises:
    ConfigError: there is neither such a file nor such an experiment.
  """
  path, colon, argument = text.partition(':')
  if pathlib.Path(path).exists():
    return text
  by_words = {_words(name): found for name, found in _paths().items()}
  if _words(path) in by_words:
    return f'{by_words[_words(path)]}{colon}{argument}'
  stem = pathlib.Path(path).stem
  hint = schema.nearest(stem, names())
  raise ConfigError(
    f'--config={text}: there is no such file{hint}. Give the path of a config, or the name of one of '
    f'the experiments: {", ".join(names())}'
  )


def _paths() -> dict[str, pathlib.Path]:
  for folder in _FOLDERS:
    if found := {path.stem: path for path in folder.glob('*.py') if path.stem != '__init__'}:
      return found
  return {}


def _words(name: str) -> tuple[str, ...]:
  return tuple(sorted(re.split('[-_]', name)))
