"""The fields of a config and their types: what configs/digits.py explains, as a table."""

from collections.abc import Iterator
import difflib
import math
from typing import Any

import ml_collections

# By section; '' are those of the config itself. What a model takes it checks by itself.
FIELDS: dict[str, dict[str, type]] = {
  '': {
    'seed': int,
    'dataset': str,
    'data_dir': str,
    'image_size': int,
    'workers': int,
    'train_split': str,
    'test_split': str,
    'valid_split': str,
    'batch_size': int,
    'eval_batch_size': int,
    'devices': int,
    'accumulate_steps': int,
    'steps_per_call': int,
    'base_batch_size': int,
    'init_from': str,
    'dtype': str,
    'cross_replica_batch_norm': bool,
    'momentum': float,
    'nesterov': bool,
    'weight_decay': float,
    'baseline_epochs': int,
    'passes': int,
    'recalibrate_batches': int,
    'eval_every_epochs': int,
    'log_every_steps': int,
    'checkpoint_every_epochs': int,
    'keep_checkpoints': int,
  },
  'augment': {'kind': str, 'pad': int, 'flip': bool},
  'model': {'name': str},
  'train': {
    'epochs': int,
    'learning_rate': float,
    'schedule': str,
    'drops': tuple,
    'drop_factor': float,
    'warmup_epochs': float,
    'strength': float,
    'pull': float,
    'term': str,
    'polarization_t': float,
    'strength_warmup_epochs': float,
    'weigh_macs': bool,
  },
  'prune': {
    'fraction': float,
    'target': str,
    'per_layer': bool,
    'min_channels': int,
    'max_fraction': float,
    'keep': tuple,
    'multiple_of': int,
    'tied': str,
    'bias': str,
  },
  'finetune': {
    'epochs': int,
    'learning_rate': float,
    'schedule': str,
    'drops': tuple,
    'drop_factor': float,
    'warmup_epochs': float,
  },
  'scratch': {'e': bool, 'b': bool},
}

# Of the values of a tuple.
_WITHIN = {'drops': float, 'keep': str}


def problems(config: Any) -> Iterator[str]:
  """What is wrong with the fields of a config, whatever their values mean.

  Args:
    config: what `get_config` of a config returns.

  Yields:
    A line for each field that is missing, unknown, or of another type, and for each number that
    is not finite.
  """
  if not isinstance(config, ml_collections.ConfigDict):
    yield f'is {config!r}, not what get_config of a file such as configs/digits.py returns'
    return
  sections = [name for name in FIELDS if name]
  yield from _differences('', config, [*FIELDS[''], *sections])
  for section, types in FIELDS.items():
    if section and section not in config:
      continue
    found = config[section] if section else config
    if not isinstance(found, ml_collections.ConfigDict):
      yield f'{section}={found!r} must be a section: ' + ', '.join(types)
      continue
    prefix = f'{section}.' if section else ''
    if section:
      yield from _differences(prefix, found, list(types), others=section == 'model')
    for name, type_ in types.items():
      if name in found and (problem := _problem(found[name], type_, _WITHIN.get(name))):
        yield f'{prefix}{name}={found[name]!r} {problem}'


def nearest(name: str, names: Any) -> str:
  """', did you mean ...?' where one of `names` looks like `name`, else ''."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f', did you mean {close[0]!r}?' if close else ''


def _differences(
  prefix: str, found: Any, names: list[str], *, others: bool = False
) -> Iterator[str]:
  for name in names:
    if name not in found:
      yield f'{prefix}{name} is missing; configs/digits.py explains it'
  for name in found:
    if name not in names and not others:
      yield f'{prefix}{name} is no field{nearest(name, names)}'


def _problem(value: Any, type_: type, within: type | None = None) -> str:
  """What is wrong with a value; '' if nothing is."""
  if type_ is tuple:
    if not isinstance(value, (tuple, list)):
      return 'must be a tuple'
    found = [_problem(one, within) for one in value]
    return next((f'must be a tuple in which each {problem}' for problem in found if problem), '')
  if type_ is float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
      return 'must be a number'
    return '' if math.isfinite(value) else 'must be a finite number'
  if type_ is int and isinstance(value, bool) or not isinstance(value, type_):
    return {int: 'must be an integer', bool: 'must be True or False', str: 'must be a text'}[type_]
  return ''
