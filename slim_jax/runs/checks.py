"""Checks of a config before anything is computed or downloaded."""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax

from slim_jax import batch_norms, data, models, tree
from slim_jax.data import prepare
from slim_jax.data.stream import Data
from slim_jax.runs import schema
from slim_jax.runs.errors import ConfigError
from slim_jax.runtime import devices
from slim_jax.runtime.config import Config
from slim_jax.selection import budget, constraints
from slim_jax.selection.options import SelectionOptions
from slim_jax.sparsity import terms
from slim_jax.training import optimiser

PyTree = Any

# Smallest values of fields that may be as large as you like.
_AT_LEAST = {
  'image_size': 0,
  'workers': 0,
  'augment.pad': 0,
  'batch_size': 1,
  'eval_batch_size': 1,
  'accumulate_steps': 1,
  'steps_per_call': 1,
  'weight_decay': 0,
  'base_batch_size': 0,
  'baseline_epochs': 0,
  'passes': 1,
  'train.epochs': 1,
  'train.warmup_epochs': 0,
  'train.strength': 0,
  'train.pull': 0,
  'train.strength_warmup_epochs': 0,
  'finetune.epochs': 0,
  'finetune.warmup_epochs': 0,
  'prune.min_channels': 0,
  'prune.multiple_of': 1,
  'recalibrate_batches': 0,
  'eval_every_epochs': 0,
  'log_every_steps': 1,
  'checkpoint_every_epochs': 1,
  'keep_checkpoints': 1,
}

# What other fields must fulfil, and how to say it.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  'seed': (lambda seed: 0 <= seed < 2**32, 'must be at least 0 and less than 2**32'),
  'momentum': (lambda share: 0 <= share < 1, 'must be at least 0 and less than 1'),
  'train.learning_rate': (lambda rate: rate > 0, 'must be above 0'),
  'train.drops': (
    lambda drops: all(0 < drop < 1 for drop in drops),
    'must be fractions of the training, between 0 and 1',
  ),
  'train.drop_factor': (lambda factor: 0 < factor <= 1, 'must be above 0 and at most 1'),
  'train.polarization_t': (
    lambda t: 0 <= t <= 2,
    'must be between 0 (half of the scales go to zero) and 2 (all of them do)',
  ),
  'prune.fraction': (lambda share: 0 <= share < 1, 'must be at least 0 and less than 1'),
  'prune.max_fraction': (lambda share: 0 <= share <= 1, 'must be between 0 and 1'),
}
for _name in ('learning_rate', 'drops', 'drop_factor'):
  _RANGES[f'finetune.{_name}'] = _RANGES[f'train.{_name}']

_CHOICES = {
  'augment.kind': data.AUGMENTATIONS,
  'dtype': ('float32', 'bfloat16', 'float16'),
  'model.name': tuple(models.MODELS),
  'train.schedule': optimiser.SCHEDULES,
  'train.term': tuple(terms.TERMS),
  'finetune.schedule': optimiser.SCHEDULES,
  'prune.tied': ('', 'sum', 'mean', 'max'),
  'prune.bias': ('zero', 'keep'),
}


def check_config(config: Config) -> None:
  """Checks every value that can be checked without the data.

  Raises:
    ConfigError: the config cannot work; the message has a line for each problem.
  """
  # Values are checked once all fields are there and have their types.
  problems = list(schema.problems(config)) or list(_value_problems(config))
  if problems:
    raise ConfigError(
      'the config cannot work:\n' + '\n'.join(f'  config.{problem}' for problem in problems)
    )


def check_data(config: Config, train_data: Data, other_data: Data, name: str) -> None:
  """Checks the config against the data.

  Args:
    config: the config.
    train_data: the images for training.
    other_data: images for evaluation.
    name: the field with their split, such as 'test_split'.

  Raises:
    ConfigError: a split is too small, or the splits do not belong together.
  """
  split = f'config.{name}={config[name]!r}'
  if len(train_data) < config.batch_size:
    raise ConfigError(
      f'config.batch_size={config.batch_size} is larger than the '
      f'{len(train_data)} examples of config.train_split={config.train_split!r}'
    )
  if not len(other_data):
    raise ConfigError(f'{split} has no examples')
  if train_data.shape != other_data.shape:
    raise ConfigError(
      f'{split} has images {other_data.shape}, but config.train_split={config.train_split!r} has '
      f'images {train_data.shape}'
    )
  if train_data.class_names != other_data.class_names:
    raise ConfigError(f'{split} has other classes than config.train_split={config.train_split!r}')
  if config.augment.kind == 'imagenet' and train_data.shape[-1] != 3:
    raise ConfigError(
      "config.augment.kind='imagenet' needs images of 3 channels, but these "
      f'have {train_data.shape[-1]}'
    )


def check_network(config: Config, shapes: Callable[[], PyTree]) -> None:
  """Checks that the network can be made for the images and can be slimmed.

  Args:
    config: the config.
    shapes: returns the shapes of the variables.

  Raises:
    ConfigError: the model does not take such images or has no BatchNorm scales, or a pattern of
      `prune.keep` matches no layer.
  """
  try:
    variables = shapes()
    paths = batch_norms.chosen(variables)
  except (TypeError, ValueError) as error:
    raise ConfigError(f'config.model: {error}') from error
  leaves = tree.flatten(variables)
  try:
    sizes = {path: leaves[path].size for path in paths}
    constraints.resolve(sizes, SelectionOptions(keep=config.prune.keep))
  except ValueError as error:
    raise ConfigError(f'config.prune.{error}') from error


def _value_problems(config: Config) -> Iterator[str]:
  """Lists the values that cannot work, each line beginning with the dotted name of the field."""
  yield from _range_problems(config)
  yield from _choice_problems(config)
  yield from _device_problems(config)
  if config.nesterov and not config.momentum:
    yield 'nesterov=True needs a momentum above 0'
  if config.steps_per_call > 1 and config.image_size:
    yield (
      f'steps_per_call={config.steps_per_call} needs images in device memory (image_size=0); '
      'photographs are read step by step'
    )
  if not _is_target(config.prune.target):
    yield (
      f"prune.target={config.prune.target!r} must be '', 'gap', 'threshold:SCALE', or "
      "'macs:SHARE', 'params:SHARE', 'memory:SHARE' or 'latency:SHARE' with a share above 0 and at "
      'most 1'
    )
  yield from _dataset_problems(config)
  yield from _model_problems(config.model)


def _range_problems(config: Config) -> Iterator[str]:
  for name, smallest in _AT_LEAST.items():
    value = _value(config, name)
    if value < smallest:
      yield f'{name}={value} must be at least {smallest}'
  for name, (holds, text) in _RANGES.items():
    value = _value(config, name)
    if not holds(value):
      yield f'{name}={value} {text}'


def _choice_problems(config: Config) -> Iterator[str]:
  for name, choices in _CHOICES.items():
    value = _value(config, name)
    if value not in choices:
      listed = ', '.join(map(repr, choices))
      yield f'{name}={value!r} is not one of {listed}{schema.nearest(value, choices)}'


def _device_problems(config: Config) -> Iterator[str]:
  there, processes = len(devices.local()), jax.process_count()
  used = devices.total(devices.local(config.devices))
  if not 0 <= config.devices <= there:
    yield f'devices={config.devices} must be between 0 (all) and {there}, the devices there are'
  elif config.devices and config.devices < there and processes > 1:
    yield f'devices={config.devices} must be 0 (all) with {processes} processes'
  elif there * processes != jax.device_count():
    yield (
      f'devices={config.devices}: all {processes} processes must have the same number of devices, '
      f'but this one has {there} of {jax.device_count()}'
    )
  elif config.batch_size % used:
    yield f'batch_size={config.batch_size} must be a multiple of the {used} devices'
  elif config.accumulate_steps > 0 and config.batch_size // used % config.accumulate_steps:
    yield (
      f'accumulate_steps={config.accumulate_steps} must divide the '
      f'{config.batch_size // used} images of each device'
    )


def _dataset_problems(config: Config) -> Iterator[str]:
  name = config.dataset
  if name in prepare.BUILDERS or name.startswith('folder:') or (name and config.data_dir):
    return
  yield (
    f'dataset={name!r} is not one of {", ".join(map(repr, prepare.BUILDERS))}'
    f"{schema.nearest(name, prepare.BUILDERS)}; it may also be 'folder:PATH', or another data set "
    'that is prepared in data_dir'
  )


def _model_problems(section: Config) -> Iterator[str]:
  if section.name not in models.MODELS:
    return  # one of `_CHOICES`
  arguments = {name: value for name, value in section.items() if name != 'name'}
  try:
    models.create(section.name, num_classes=1, **arguments)
  except (TypeError, ValueError) as error:
    how = f'; --config.model={section.name} drops the arguments that the config file gives'
    yield f'model: {error}{how if arguments else ""}'


def _is_target(target: str) -> bool:
  if target in ('', 'gap'):
    return True
  try:
    name, _, text = target.partition(':')
    if name == 'threshold':
      return 0 <= float(text) < math.inf
    budget.parse(target)
  except ValueError:
    return False
  return True


def _value(config: Config, name: str) -> Any:
  """Returns the value of a field, given its dotted name."""
  for step in name.split('.'):
    config = config[step]
  return config
