"""Checks of a config before anything is computed or downloaded."""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax

from slim_jax import batch_norms, data, models, tree
from slim_jax.data import prepare
from slim_jax.data.stream import Data
from slim_jax.errors import SlimError
from slim_jax.runs import schema
from slim_jax.runtime import devices
from slim_jax.runtime.config import Config
from slim_jax.selection import budget, constraints
from slim_jax.selection.options import SelectionOptions
from slim_jax.sparsity import terms
from slim_jax.training import optimiser

PyTree = Any


class ConfigError(SlimError):
  """A config that cannot work; the message names the fields and what they may be."""


class PruneError(ConfigError):
  """A trained network cannot be pruned as the config says."""


def check_config(config: Config) -> None:
  """Checks every value that can be checked without the data.

  Raises:
    ConfigError: listing all that is wrong.
  """
  problems = list(schema.problems(config))
  if not problems:  # of what is no number no range can be checked
    problems = [*_check_method(config), *_check_sizes(config), *_check_model(config)]
    for name in ('train', 'finetune'):
      problems += _check_schedule(config[name], name)
  if problems:
    raise ConfigError(
      'the config cannot work:\n' + '\n'.join(f'  config.{problem}' for problem in problems)
    )


def check_data(config: Config, train_data: Data, other_data: Data, name: str) -> None:
  """Checks the config against the data.

  Args:
    config: the config.
    train_data: what is trained on.
    other_data: what is evaluated on.
    name: of the field that names its split.

  Raises:
    ConfigError: a split is too small, or the splits do not belong together.
  """
  split = f'config.{name}={config[name]!r}'
  if len(train_data) < config.batch_size:
    raise ConfigError(
      f'config.batch_size={config.batch_size} is larger than the '
      f'{len(train_data)} examples of {config.train_split!r}'
    )
  if not len(other_data):
    raise ConfigError(f'{split} holds no examples')
  if train_data.shape != other_data.shape:
    raise ConfigError(
      f'{config.train_split!r} has images {train_data.shape} and {split} {other_data.shape}'
    )
  if train_data.class_names != other_data.class_names:
    raise ConfigError(f'{split} has other classes than {config.train_split!r}')
  if config.augment.kind == 'imagenet' and train_data.shape[-1] != 3:
    raise ConfigError(
      "config.augment.kind='imagenet' is for images of 3 channels; these "
      f'have {train_data.shape[-1]}'
    )


def check_network(config: Config, shapes: Callable[[], PyTree]) -> None:
  """Checks that a network can be made for the images and can be slimmed.

  Args:
    config: the config.
    shapes: makes the shapes of the variables.

  Raises:
    ConfigError: the model does not take such images, has no scale to slim by, or no layer that
      `prune.keep` names.
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


def _check_method(config: Config) -> Iterator[str]:
  prune = config.prune
  if not 0 <= prune.fraction < 1:
    yield f'prune.fraction={prune.fraction} must be at least 0 and less than 1'
  if not 0 <= prune.max_fraction <= 1:
    yield f'prune.max_fraction={prune.max_fraction} must lie between 0 and 1'
  if prune.min_channels < 0:
    yield f'prune.min_channels={prune.min_channels} must not be negative'
  if not _is_target(prune.target):
    yield (
      f"prune.target={prune.target!r} must be '', 'gap', 'threshold:SCALE', or 'macs:SHARE', "
      "'params:SHARE', 'memory:SHARE' or 'latency:SHARE' with a share above 0 and at most 1"
    )
  if prune.multiple_of < 1:
    yield f'prune.multiple_of={prune.multiple_of} must be at least 1'
  if prune.bias not in ('zero', 'keep'):
    yield f"prune.bias={prune.bias!r} must be 'zero' or 'keep'"
  if prune.tied not in ('', 'sum', 'mean', 'max'):
    yield f"prune.tied={prune.tied!r} must be '' (not tied), 'sum', 'mean' or 'max'"
  if config.passes < 1:
    yield f'passes={config.passes} must be at least 1'
  if config.train.strength < 0:
    yield f'train.strength={config.train.strength} must not be negative'
  if config.train.pull < 0:
    yield f'train.pull={config.train.pull} must not be negative; 0 is to use the strength'
  if config.train.term not in terms.TERMS:
    yield (
      f'train.term={config.train.term!r} is not one of {", ".join(terms.TERMS)}'
      f'{schema.nearest(config.train.term, terms.TERMS)}'
    )
  if config.train.strength_warmup_epochs < 0:
    yield (
      f'train.strength_warmup_epochs={config.train.strength_warmup_epochs} must not be negative'
    )
  if not 0 <= config.train.polarization_t <= 2:
    yield (
      f'train.polarization_t={config.train.polarization_t} must lie between 0, where half '
      'of the scales go to zero, and 2, where all do'
    )
  if config.train.epochs < 1:
    yield f'train.epochs={config.train.epochs} must be at least 1'
  for name in ('baseline_epochs', 'eval_every_epochs', 'recalibrate_batches'):
    if config[name] < 0:
      yield f'{name}={config[name]} must not be negative; 0 is never'
  if config.finetune.epochs < 0:
    yield f'finetune.epochs={config.finetune.epochs} must not be negative'


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


def _check_sizes(config: Config) -> Iterator[str]:
  for name in (
    'batch_size',
    'eval_batch_size',
    'accumulate_steps',
    'steps_per_call',
    'log_every_steps',
    'checkpoint_every_epochs',
    'keep_checkpoints',
  ):
    if config[name] < 1:
      yield f'{name}={config[name]} must be at least 1'
  found = len(devices.local())
  used = devices.total(devices.local(config.devices))
  if not 0 <= config.devices <= found:
    yield (
      f'devices={config.devices} must lie between 0, for all, and {found}, as many as there are'
    )
  elif config.devices and config.devices < found and jax.process_count() > 1:
    yield f'devices={config.devices} must be 0, for all, as there are {jax.process_count()} processes'
  elif found * jax.process_count() != jax.device_count():
    yield (
      f'devices={config.devices}: each of the {jax.process_count()} processes must have as '
      f'many devices; this one has {found} of {jax.device_count()}'
    )
  elif config.batch_size % used:
    yield f'batch_size={config.batch_size} must be a multiple of the {used} devices'
  elif config.accumulate_steps > 0 and config.batch_size // used % config.accumulate_steps:
    yield (
      f'accumulate_steps={config.accumulate_steps} must divide the '
      f'{config.batch_size // used} images of each device'
    )
  if config.steps_per_call > 1 and config.image_size:
    yield (
      f'steps_per_call={config.steps_per_call} is for images that lie in device memory '
      f'(image_size=0); photographs come step by step'
    )
  for name in ('base_batch_size', 'image_size', 'workers'):
    if config[name] < 0:
      yield f'{name}={config[name]} must not be negative'
  if config.augment.kind not in data.AUGMENTATIONS:
    yield (f'augment.kind={config.augment.kind!r} is not one of {", ".join(data.AUGMENTATIONS)}')
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


def _check_model(config: Config) -> Iterator[str]:
  if config.model.name not in models.MODELS:
    yield (
      f'model.name={config.model.name!r} is not one of '
      f'{", ".join(models.MODELS)}{schema.nearest(config.model.name, models.MODELS)}'
    )
  else:
    arguments = {k: v for k, v in config.model.items() if k != 'name'}
    try:
      models.create(config.model.name, num_classes=1, **arguments)
    except (TypeError, ValueError) as error:
      yield f'model: {error}'
  if config.dtype not in ('float32', 'bfloat16', 'float16'):
    yield f"dtype={config.dtype!r} must be 'float32', 'bfloat16' or 'float16'"
  if (
    not config.data_dir
    and config.dataset not in prepare.BUILDERS
    and not config.dataset.startswith('folder:')
  ):
    yield (
      f'dataset={config.dataset!r} is not one of {", ".join(prepare.BUILDERS)}'
      f'{schema.nearest(config.dataset, prepare.BUILDERS)}; for another one, give the '
      'data_dir in which it is prepared'
    )


def _check_schedule(section: Config, name: str) -> Iterator[str]:
  if section.schedule not in optimiser.SCHEDULES:
    yield (
      f'{name}.schedule={section.schedule!r} is not one of '
      f'{", ".join(optimiser.SCHEDULES)}{schema.nearest(section.schedule, optimiser.SCHEDULES)}'
    )
  if section.learning_rate <= 0:
    yield f'{name}.learning_rate={section.learning_rate} must be positive'
  if not all(0 < drop < 1 for drop in section.drops):
    yield (f'{name}.drops={section.drops} must be fractions of the training, between 0 and 1')
  if not 0 < section.drop_factor <= 1:
    yield f'{name}.drop_factor={section.drop_factor} must be above 0 and at most 1'
  if section.warmup_epochs < 0:
    yield f'{name}.warmup_epochs={section.warmup_epochs} must not be negative'
