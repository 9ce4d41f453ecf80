"""A person's own parts of a run, named by strings 'module:name', such as 'pkg.models:Net'.

The string is recorded in the config of the run, and every command that opens the run imports the
part again. The package therefore has to be importable there: installed, or in a directory on
PYTHONPATH.
"""

from collections.abc import Callable, Mapping
import importlib
import inspect
import re
from typing import Any

from slim_jax.errors import SlimError

_FORM = re.compile(r'[A-Za-z_][\w.]*:[A-Za-z_][\w.]*')


class PartError(SlimError):
  """A part cannot be found or used; the message names its string and what to do."""


def is_name(text: str) -> bool:
  """Returns whether a text has the form 'module:name'."""
  return bool(_FORM.fullmatch(text))


def find(text: str, *, field: str) -> Any:
  """Imports a part.

  Args:
    text: 'module:name'; the name may lead into classes, 'module:Class.name'.
    field: the field of the config that holds it, such as 'model.name', for the messages.

  Raises:
    PartError: the module cannot be imported, or has no such name.
  """
  name, _, inner = text.partition(':')
  what = f'config.{field}={text!r}'
  try:
    found = importlib.import_module(name)
  except ModuleNotFoundError as error:
    top = name.partition('.')[0]
    if error.name and f'{name}.'.startswith(f'{error.name}.'):
      raise PartError(
        f'{what}: there is no module {error.name!r} on the path of Python. Put the directory '
        f'that holds {top!r} on PYTHONPATH (PYTHONPATH=DIR before the command), or install its '
        'package'
      ) from error
    raise PartError(f'{what}: {name} imports {error.name!r}, which is not installed') from error
  except Exception as error:  # pylint: disable=broad-except  (a module is a program)
    raise PartError(
      f'{what}: {name} cannot be imported: {type(error).__name__}: {error}'
    ) from error
  for step in inner.split('.'):
    if not hasattr(found, step):
      raise PartError(f'{what}: {name} has no {inner!r} ({getattr(found, "__file__", name)})')
    found = getattr(found, step)
  if not callable(found):
    raise PartError(f'{what} is {type(found).__name__}, which cannot be called')
  return found


def accepted(part: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
  """Returns those of the arguments that a part has by name in its signature."""
  # The metaclass of NNX hides the signature of a class.
  parameters = inspect.signature(part.__init__ if isinstance(part, type) else part).parameters
  return {name: value for name, value in arguments.items() if name in parameters}


def call(part: Callable[..., Any], text: str, *, field: str, **arguments: Any) -> Any:
  """Calls a part with keyword arguments.

  Raises:
    PartError: its signature does not take them, or it raises ValueError or TypeError.
  """
  try:
    inspect.signature(part).bind(**arguments)
    return part(**arguments)
  except (TypeError, ValueError) as error:
    raise PartError(f'config.{field}={text!r}: {error}') from error
