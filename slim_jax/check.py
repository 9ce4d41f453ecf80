"""Checks of a config before anything is computed or downloaded."""

from collections.abc import Callable, Iterator
import difflib
from typing import Any

import jax
import ml_collections

from slim_jax import batch_norms
from slim_jax import data
from slim_jax import models
from slim_jax import train

PyTree = Any


class ConfigError(Exception):
  """A config that cannot work; the message names the fields and what they may be."""


def check_config(config: ml_collections.ConfigDict) -> None:
  """Checks every value that can be checked without the data.

  Raises:
    ConfigError: listing all that is wrong.
  """
  problems = [*_check_method(config), *_check_sizes(config), *_check_model(config)]
  for name in ('train', 'finetune'):
    problems += _check_schedule(config[name], name)
  if problems:
    raise ConfigError('the config cannot work:\n'
                      + '\n'.join(f'  config.{problem}' for problem in problems))


def check_data(config: ml_collections.ConfigDict, train_data: data.ArrayData,
               test_data: data.ArrayData) -> None:
  """Checks the config against the data.

  Raises:
    ConfigError: a split is too small, or the splits do not belong together.
  """
  if len(train_data) < config.batch_size:
    raise ConfigError(f'config.batch_size={config.batch_size} is larger than the '
                      f'{len(train_data)} examples of {config.train_split!r}')
  if not len(test_data):
    raise ConfigError(f'config.test_split={config.test_split!r} holds no examples')
  if train_data.image.shape[1:] != test_data.image.shape[1:]:
    raise ConfigError(
        f'{config.train_split!r} has images {train_data.image.shape[1:]} and '
        f'{config.test_split!r} {test_data.image.shape[1:]}')


def check_network(init: Callable[[], PyTree]) -> None:
  """Checks that a network can be made for the images and can be slimmed.

  Args:
    init: makes the variables; only their shapes are computed.

  Raises:
    ConfigError: the model does not take such images, or has no scale to slim by.
  """
  try:
    variables = jax.eval_shape(init)
    batch_norms.chosen(variables)
  except (TypeError, ValueError) as error:
    raise ConfigError(f'config.model: {error}') from error


def nearest(name: str, names: Any) -> str:
  """', did you mean ...?' where one of `names` looks like `name`, else ''."""
  close = difflib.get_close_matches(name, list(names), n=1, cutoff=0.5)
  return f', did you mean {close[0]!r}?' if close else ''


def _check_method(config: ml_collections.ConfigDict) -> Iterator[str]:
  prune = config.prune
  if not 0 <= prune.fraction < 1:
    yield f'prune.fraction={prune.fraction} must be at least 0 and less than 1'
  if not 0 <= prune.max_fraction <= 1:
    yield f'prune.max_fraction={prune.max_fraction} must lie between 0 and 1'
  if prune.min_channels < 0:
    yield f'prune.min_channels={prune.min_channels} must not be negative'
  if config.passes < 1:
    yield f'passes={config.passes} must be at least 1'
  if config.train.strength < 0:
    yield f'train.strength={config.train.strength} must not be negative'
  if config.train.epochs < 1:
    yield f'train.epochs={config.train.epochs} must be at least 1'
  for name in ('baseline_epochs', 'eval_every_epochs'):
    if config[name] < 0:
      yield f'{name}={config[name]} must not be negative; 0 is never'
  if config.finetune.epochs < 0:
    yield f'finetune.epochs={config.finetune.epochs} must not be negative'


def _check_sizes(config: ml_collections.ConfigDict) -> Iterator[str]:
  for name in ('batch_size', 'eval_batch_size', 'log_every_steps',
               'checkpoint_every_epochs', 'keep_checkpoints'):
    if config[name] < 1:
      yield f'{name}={config[name]} must be at least 1'
  devices = jax.local_device_count()
  if config.batch_size % devices:
    yield (f'batch_size={config.batch_size} must be a multiple of the {devices} '
           'devices')
  if config.augment.pad < 0:
    yield f'augment.pad={config.augment.pad} must not be negative'
  if not 0 <= config.momentum < 1:
    yield f'momentum={config.momentum} must be at least 0 and less than 1'
  if config.nesterov and not config.momentum:
    yield 'nesterov=True needs a momentum above 0'
  if config.weight_decay < 0:
    yield f'weight_decay={config.weight_decay} must not be negative'
  if not 0 <= config.seed < 2**32:
    yield f'seed={config.seed} must lie between 0 and {2**32 - 1}'


def _check_model(config: ml_collections.ConfigDict) -> Iterator[str]:
  if config.model.name not in models.MODELS:
    yield (f'model.name={config.model.name!r} is not one of '
           f'{", ".join(models.MODELS)}{nearest(config.model.name, models.MODELS)}')
  else:
    arguments = {k: v for k, v in config.model.items() if k != 'name'}
    try:
      models.create(config.model.name, num_classes=1, **arguments)
    except (TypeError, ValueError) as error:
      yield f'model: {error}'
  if config.dtype not in ('float32', 'bfloat16', 'float16'):
    yield f"dtype={config.dtype!r} must be 'float32', 'bfloat16' or 'float16'"
  if not config.data_dir and config.dataset not in data.BUILDERS:
    yield (f'dataset={config.dataset!r} is not one of {", ".join(data.BUILDERS)}'
           f'{nearest(config.dataset, data.BUILDERS)}; for another one, give the '
           'data_dir in which it is prepared')


def _check_schedule(section: ml_collections.ConfigDict, name: str) -> Iterator[str]:
  if section.schedule not in train.SCHEDULES:
    yield (f'{name}.schedule={section.schedule!r} is not one of '
           f'{", ".join(train.SCHEDULES)}{nearest(section.schedule, train.SCHEDULES)}')
  if section.learning_rate <= 0:
    yield f'{name}.learning_rate={section.learning_rate} must be positive'
  if not all(0 < drop < 1 for drop in section.drops):
    yield (f'{name}.drops={section.drops} must be fractions of the training, between '
           '0 and 1')
  if not 0 < section.drop_factor <= 1:
    yield f'{name}.drop_factor={section.drop_factor} must be above 0 and at most 1'
  if section.warmup_epochs < 0:
    yield f'{name}.warmup_epochs={section.warmup_epochs} must not be negative'
