"""Checks of a config before anything is computed or downloaded."""

from collections.abc import Callable, Iterator
import math
from typing import Any

import jax
import numpy as np

from slim_jax import batch_norms, data, models, tree
from slim_jax.data import ArrayData, folder, own, prepare
from slim_jax.data.stream import Data
from slim_jax.errors import SlimError
from slim_jax.runs import network, schema, scoring, tracking
from slim_jax.runs.errors import ConfigError
from slim_jax.runtime import devices, parts
from slim_jax.runtime.config import Config
from slim_jax.selection import budget, constraints
from slim_jax.selection.options import SelectionOptions
from slim_jax.sparsity import terms
from slim_jax.training import distillation, losses, optimiser

PyTree = Any

# Smallest values of fields that may be as large as you like.
_AT_LEAST = {
  'image_size': 0,
  'workers': 0,
  'augment.pad': 0,
  'augment.rand_layers': 0,
  'batch_size': 1,
  'eval_batch_size': 1,
  'accumulate_steps': 1,
  'steps_per_call': 1,
  'weight_decay': 0,
  'clip_norm': 0,
  'mixup': 0,
  'cutmix': 0,
  'patience': 0,
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
  'prune.calibration_batches': 1,
  'prune.reconstruct_batches': 0,
  'recalibrate_batches': 0,
  'eval_every_epochs': 0,
  'log_every_steps': 1,
  'checkpoint_every_epochs': 1,
  'keep_checkpoints': 1,
}

# What other fields must fulfil, and how to say it.
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
  'seed': (lambda seed: 0 <= seed < 2**32, 'must be at least 0 and less than 2**32'),
  'augment.rand_magnitude': (lambda magnitude: 0 <= magnitude <= 10, 'must be between 0 and 10'),
  'ema_decay': (lambda decay: 0 <= decay < 1, 'must be at least 0 and less than 1'),
  'label_smoothing': (lambda share: 0 <= share < 1, 'must be at least 0 and less than 1'),
  'finetune.distill': (lambda share: 0 <= share <= 1, 'must be between 0 and 1'),
  'finetune.temperature': (lambda temperature: temperature > 0, 'must be above 0'),
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

# Fields that may also name a person's own part, 'module:name'.
_OR_PARTS = {
  'loss': tuple(losses.LOSSES),
  'model.name': tuple(models.MODELS),
  'train.term': tuple(terms.TERMS),
  'prune.score': ('', *scoring.SCORES),
}

_CHOICES = {
  'augment.kind': data.AUGMENTATIONS,
  'dtype': ('float32', 'bfloat16', 'float16'),
  'track': ('', *tracking.SERVICES),
  'train.schedule': optimiser.SCHEDULES,
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
  for each, where in (
    (train_data, f'config.train_split={config.train_split!r}'),
    (other_data, split),
  ):
    _check_labels(config, each, where)
  _check_mixing(config, train_data)
  if config.augment.kind == 'imagenet' and train_data.shape[-1] != 3:
    raise ConfigError(
      "config.augment.kind='imagenet' needs images of 3 channels, but these "
      f'have {train_data.shape[-1]}'
    )


def _check_labels(config: Config, split_data: Data, where: str) -> None:
  """Checks that the labels of a split are numbers of classes, if the loss is classification."""
  if config.loss != 'classification' or not isinstance(split_data, ArrayData):
    return
  label = split_data.label
  if label.ndim != 1 or not np.issubdtype(label.dtype, np.integer):
    raise ConfigError(
      f'{where} has labels {label.dtype}{list(label.shape)}; classification needs the number of one '
      f'class for each image. config.loss may be {", ".join(losses.LOSSES)}, or your own'
    )
  lowest, highest = int(label.min()), int(label.max())
  if not 0 <= lowest <= highest < split_data.num_classes:
    raise ConfigError(
      f'{where} has labels from {lowest} to {highest}, but there are names of '
      f'{split_data.num_classes} classes'
    )


def _check_mixing(config: Config, train_data: Data) -> None:
  """Checks that labels can be mixed and augmented as the config says."""
  shape = (len(train_data), *train_data.label_shape)
  if data.is_of_pixels(shape, (len(train_data), *train_data.shape)):
    if config.augment.rand_layers:
      raise ConfigError(
        f'config.augment.rand_layers={config.augment.rand_layers} moves images, but not the labels '
        'of their pixels'
      )
    if config.mixup:
      raise ConfigError(f'config.mixup={config.mixup} cannot mix the labels of pixels; cutmix can')
  elif (
    (config.mixup or config.cutmix)
    and config.loss != 'classification'
    and train_data.label_dtype != np.float32
  ):
    raise ConfigError(
      f'config.mixup={config.mixup} and config.cutmix={config.cutmix} mix labels, which must be '
      f'floating numbers for config.loss={config.loss!r}, not {train_data.label_dtype}'
    )
  if config.augment.rand_layers and train_data.shape[-1] not in (1, 3):
    raise ConfigError(
      f'config.augment.rand_layers={config.augment.rand_layers} needs images of 1 or 3 channels, '
      f'but these have {train_data.shape[-1]}'
    )


def check_network(config: Config, shapes: Callable[[], PyTree]) -> PyTree:
  """Checks that the network can be made for the images.

  Args:
    config: the config.
    shapes: returns the shapes of the variables.

  Returns:
    These shapes.

  Raises:
    ConfigError: the model does not take such images.
  """
  try:
    return shapes()
  except (TypeError, ValueError) as error:
    raise ConfigError(f'config.model: {error}') from error


def check_scales(config: Config, variables: PyTree, scales: Any) -> None:
  """Checks that the network can be slimmed.

  Args:
    config: the config.
    variables: shapes of the variables, with gates if the config names units.
    scales: which of them are scales, as a function.

  Raises:
    ConfigError: there are no scales, or a pattern of `prune.keep` matches no layer.
  """
  try:
    paths = batch_norms.chosen(variables, scales)
  except ValueError as error:
    raise ConfigError(
      f'config.model: {error} For a model without BatchNorm, config.prune.units names units that '
      "get gates, such as 'heads,neurons' or '*' for all."
    ) from error
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
  yield from _part_problems(config)
  yield from _training_problems(config)
  yield from _device_problems(config)
  if config.nesterov and not config.momentum:
    yield 'nesterov=True needs a momentum above 0'
  if config.steps_per_call > 1 and config.image_size:
    yield (
      f'steps_per_call={config.steps_per_call} needs images in device memory (image_size=0); '
      'photographs are read step by step'
    )
  if config.prune.units:
    yield from _unit_problems(config)
  if not _is_target(config.prune.target):
    yield (
      f"prune.target={config.prune.target!r} must be '', 'gap', 'threshold:SCALE', or "
      "'macs:SHARE', 'params:SHARE', 'memory:SHARE' or 'latency:SHARE' with a share above 0 and at "
      'most 1'
    )
  yield from _dataset_problems(config)
  yield from _model_problems(config)


def _unit_problems(config: Config) -> Iterator[str]:
  """Lists the options that units do not have."""
  units = f'prune.units={config.prune.units!r}'
  if config.prune.bias != 'zero':
    yield f"{units} removes units with their biases: prune.bias must be 'zero'"
  if config.prune.tied:
    yield f"{units} removes whole units, tied already: prune.tied must be ''"
  if not (config.train.strength or config.train.pull or config.prune.score):
    yield f'{units} without a strength or a pull leaves gates at 1: set prune.score to rank them'


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


def _training_problems(config: Config) -> Iterator[str]:
  """Lists the options of training that do not fit the loss, or each other."""
  if config.patience and not config.valid_split:
    yield (
      f'patience={config.patience} needs a valid_split: a stage that ends when test_split becomes '
      'worse would be chosen on it'
    )
  if config.label_smoothing and config.loss != 'classification':
    yield f"label_smoothing={config.label_smoothing} is for loss='classification'"
  if config.finetune.distill:
    if not config.baseline_epochs:
      yield f'finetune.distill={config.finetune.distill} learns from the baseline: baseline_epochs=0'
    if config.loss not in distillation.DIFFERENCES:
      known = ', '.join(map(repr, distillation.DIFFERENCES))
      yield f'finetune.distill={config.finetune.distill} is for a loss of {known}'
  if config.track in tracking.SERVICES and tracking.missing(config.track):
    yield (
      f'track={config.track!r} needs {config.track}, which is not installed: '
      f'python -m pip install {config.track}'
    )


def _part_problems(config: Config) -> Iterator[str]:
  """Lists the fields that name a part which cannot be found."""
  for name, choices in _OR_PARTS.items():
    value = _value(config, name)
    if value in choices:
      continue
    if parts.is_name(value):
      yield from _lines(lambda: parts.find(value, field=name))
    else:
      listed = ', '.join(repr(choice) for choice in choices if choice)
      yield (
        f'{name}={value!r} is not {f"one of {listed}" if listed else repr("")}'
        f"{schema.nearest(value, choices)}; your own is 'module:name'"
      )
  if own.is_own(config.dataset) and parts.is_name(config.dataset):
    yield from _lines(lambda: parts.find(config.dataset, field='dataset'))
  if not optimiser.is_sgd(config):
    yield from _lines(lambda: optimiser.make_tx(config, lambda step: 0.1, strength=0.0))
  elif len(config.optimizer.to_dict()) > 1:
    yield "optimizer.name='sgd' takes its arguments from momentum, nesterov and weight_decay"


def _lines(call: Callable[[], Any]) -> Iterator[str]:
  """Yields what is wrong with a part, if `call` raises."""
  try:
    call()
  except SlimError as error:
    yield str(error).removeprefix('config.')


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
  if name in prepare.BUILDERS or name.startswith(folder.PREFIX) or (name and config.data_dir):
    return
  if own.is_own(name):
    if config.image_size:
      yield f'image_size={config.image_size} must be 0 for your own data, whose images have one size'
    return
  yield (
    f'dataset={name!r} is not one of {", ".join(map(repr, prepare.BUILDERS))}'
    f"{schema.nearest(name, prepare.BUILDERS)}; it may also be 'folder:PATH', another data set that "
    "is prepared in data_dir, or your own: 'module:name' or an .npz file"
  )


def _model_problems(config: Config) -> Iterator[str]:
  section = config.model
  if section.name not in models.MODELS:
    if parts.is_name(section.name) and not list(_lines(lambda: parts.find(section.name, field=''))):
      yield from _lines(lambda: network.model_of(config, 1))
    return  # otherwise one of `_part_problems`
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
