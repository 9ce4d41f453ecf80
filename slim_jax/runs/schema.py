"""The fields that a config must have, and their types: those of the default config."""

from collections.abc import Iterator
import difflib
import json
import math
from typing import Any

from absl import logging
import ml_collections

from slim_jax.runs import default

_Fields = dict[str, Any]  # default values, and a dict of them for each section

# Type of the elements of tuples that are empty by default.
_ELEMENTS = {'prune.keep': str}

# Sections with arguments, which a model or an optimiser checks itself.
_ARGUMENTS = ('model.', 'optimizer.')

_MUST_BE = {
  bool: 'must be True or False',
  int: 'must be an integer',
  float: 'must be a number',
  str: 'must be a string',
  tuple: 'must be a tuple',
}


def complete(config: Any, *, source: str = 'the config') -> Any:
  """Returns the config with defaults for the fields that it lacks, and logs which.

  A config lacks a field that was added after the config was written or its run started.

  Args:
    config: what `get_config` of a config file returns; it is not changed.
    source: what the log calls it.

  Returns:
    A copy, locked if the config is locked. What is not a ConfigDict is returned as it is, for
    `problems` to report.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    return config
  result = ml_collections.ConfigDict(config.to_dict())
  if added := list(_fill(result, _defaults(), '')):
    logging.info('%s lacks fields, which get their defaults: %s', source, ', '.join(added))
  return result.lock() if config.is_locked else result


def complete_json(saved: Any) -> Any:
  """Returns the config.json of a run with defaults for the fields that it lacks, as JSON."""
  if not isinstance(saved, dict):
    return saved
  config = complete(ml_collections.ConfigDict(saved), source='the config of the run')
  return json.loads(json.dumps(config.to_dict()))


def problems(config: Any) -> Iterator[str]:
  """Lists the fields of a config that are missing, unknown, of another type or not finite.

  Args:
    config: what `get_config` of a config file returns.

  Yields:
    A line for each problem, which begins with the dotted name of the field.
  """
  if isinstance(config, ml_collections.ConfigDict):
    yield from _section_problems(config, _defaults(), '')
  else:
    yield f'is {config!r}, not a ConfigDict: get_config of the config file must return one'


def nearest(name: str, names: Any) -> str:
  """Returns ", did you mean ...?" if one of `names` resembles `name`, else ''."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f', did you mean {close[0]!r}?' if close else ''


def has(name: str) -> bool:
  """Whether the default config has a field or section of this dotted name."""
  fields = _defaults()
  for step in name.split('.'):
    if not isinstance(fields, dict) or step not in fields:
      return False
    fields = fields[step]
  return True


def _defaults() -> _Fields:
  return default.get_config().to_dict()


def _fill(config: Any, fields: _Fields, prefix: str) -> Iterator[str]:
  """Adds the missing fields to a section; yields 'name=value' of each."""
  for name, value in fields.items():
    if name not in config:
      config[name] = ml_collections.ConfigDict(value) if isinstance(value, dict) else value
      yield f'{prefix}{name}={value!r}'
    elif isinstance(value, dict) and isinstance(config[name], ml_collections.ConfigDict):
      yield from _fill(config[name], value, f'{prefix}{name}.')


def _section_problems(config: Any, fields: _Fields, prefix: str) -> Iterator[str]:
  for name in config:
    if name not in fields and prefix not in _ARGUMENTS:
      yield f'{prefix}{name} is not a field{nearest(name, fields)}'
  for name, value in fields.items():
    if name not in config:
      yield f'{prefix}{name} is missing; its default is {value!r}'
    elif not isinstance(value, dict):
      if problem := _type_problem(config[name], value, _ELEMENTS.get(f'{prefix}{name}')):
        yield f'{prefix}{name}={config[name]!r} {problem}'
    elif isinstance(config[name], ml_collections.ConfigDict):
      yield from _section_problems(config[name], value, f'{prefix}{name}.')
    else:
      yield f'{prefix}{name}={config[name]!r} must be a section with the fields {", ".join(value)}'


def _type_problem(value: Any, default_value: Any, element: type | None) -> str:
  """Returns what is wrong with the type of a value, '' if nothing is."""
  if not isinstance(default_value, tuple):
    return _scalar_problem(value, type(default_value))
  if not isinstance(value, (tuple, list)):  # JSON makes lists of tuples
    return _MUST_BE[tuple]
  of_elements = element or type(default_value[0])
  each = (_scalar_problem(one, of_elements) for one in value)
  return next((f'must be a tuple in which each {problem}' for problem in each if problem), '')


def _scalar_problem(value: Any, type_: type) -> str:
  accepted = (int, float) if type_ is float else type_
  if not isinstance(value, accepted) or (isinstance(value, bool) and type_ is not bool):
    return _MUST_BE[type_]
  if type_ is float and not math.isfinite(value):
    return 'must be a finite number'
  return ''
