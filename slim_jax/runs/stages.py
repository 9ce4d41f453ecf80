"""The stages of a config, and the config fields that each stage depends on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from slim_jax.runs.errors import ConfigError
from slim_jax.runtime.config import Config


class Stage(NamedTuple):
  """A stage of a run, one row of its table.

  Attributes:
    number: number of the pass, from 1; 0 for the baseline.
    name: 'baseline'; or 'sparse', 'pruned', 'recalibrated' or 'finetuned' of a pass; or
      'scratch-e' or 'scratch-b', the network of the last pass trained from new weights.
  """

  number: int
  name: str

  @staticmethod
  def of(record: Mapping[str, Any]) -> 'Stage':
    """Returns the stage of a record or of a line of metrics."""
    return Stage(record['pass'], record['stage'])

  @property
  def is_scratch(self) -> bool:
    """Whether the stage trains a pruned network from new weights."""
    return self.name.startswith('scratch')

  def has_gates(self, config: Config) -> bool:
    """Returns whether the stage starts with gates on units. The cut folds them."""
    return bool(config.prune.units) and self.name in ('sparse', 'pruned')

  @property
  def prunings(self) -> int:
    """How many times the network of this stage has been pruned."""
    return self.number - (self.name == 'sparse')

  def __str__(self) -> str:
    return self.name if self.number == 0 else f'{self.name}, pass {self.number}'


# Fields that may change between two calls of a run: where data and checkpoints are, what is
# logged, which devices are used, and which networks are trained from scratch for comparison.
HARMLESS = (
  'data_dir',
  'workers',
  'devices',
  'steps_per_call',
  'eval_batch_size',
  'eval_every_epochs',
  'track',
  'log_every_steps',
  'checkpoint_every_epochs',
  'keep_checkpoints',
  'scratch',
)

# Fields and sections that matter from the named stage on, and to no stage before it.
LATER = {
  'sparse': (
    'train.strength',
    'train.pull',
    'train.term',
    'train.polarization_t',
    'train.strength_warmup_epochs',
    'train.weigh_macs',
    'prune.units',
  ),
  'pruned': (
    'prune.fraction',
    'prune.per_layer',
    'prune.strict',
    'prune.target',
    'prune.score',
    'prune.calibration_batches',
    'prune.min_channels',
    'prune.max_fraction',
    'prune.keep',
    'prune.multiple_of',
    'prune.tied',
    'prune.bias',
    'prune.reconstruct_batches',
  ),
  'recalibrated': ('recalibrate_batches',),
  'finetuned': ('finetune',),
}

# What a stage may be called.
NAMES = ('baseline', 'sparse', 'pruned', 'recalibrated', 'finetuned', 'scratch-e', 'scratch-b')

# Stages without training. They take seconds and are repeated if they were interrupted.
AT_ONCE = ('pruned', 'recalibrated')


def of(config: Config) -> list[Stage]:
  """Returns the stages of a run, in order."""
  result = [Stage(0, 'baseline')] if config.baseline_epochs else []
  for number in range(1, config.passes + 1):
    result += [Stage(number, 'sparse'), Stage(number, 'pruned')]
    if config.recalibrate_batches:
      result.append(Stage(number, 'recalibrated'))
    if config.finetune.epochs:
      result.append(Stage(number, 'finetuned'))
  scratch = {'scratch-e': config.scratch.e, 'scratch-b': config.scratch.b}
  return result + [Stage(config.passes, name) for name, wanted in scratch.items() if wanted]


def epochs(config: Config, stage: Stage) -> int:
  """Returns how many epochs a stage trains; 'scratch-b', whose network is not known here, at least."""
  if stage.name in AT_ONCE:
    return 0
  if stage.name == 'baseline':
    return config.baseline_epochs
  return (config.finetune if stage.name == 'finetuned' else config.train).epochs


def named(config: Config, name: str) -> Stage:
  """Returns the first stage of that name.

  Raises:
    ConfigError: the config has no such stage.
  """
  order = of(config)
  for stage in order:
    if stage.name == name:
      return stage
  raise ConfigError(
    f'the config asks for no stage {name!r}, only for '
    + ', '.join(dict.fromkeys(stage.name for stage in order))
  )


def previous(config: Config, stage: Stage) -> Stage | None:
  """Returns the stage whose network this one starts from; None for new weights."""
  if stage.number == 0 or stage == Stage(1, 'sparse') or stage.is_scratch:
    return None
  order = of(config)
  return order[order.index(stage) - 1]


def depends(stage: str, field: str) -> bool:
  """Returns whether 'baseline', or a stage of the first pass, depends on a dotted field."""
  return not any(f'{field}.'.startswith(f'{name}.') for name in free_after(stage))


def free_after(stage: str) -> tuple[str, ...]:
  """Returns the fields and sections that 'baseline', or a stage of pass 1, does not depend on."""
  order = ['baseline', *LATER]
  return (*HARMLESS, *(name for later in order[order.index(stage) + 1 :] for name in LATER[later]))


def unused_fields(config: Config, begun: Callable[[Stage], bool]) -> tuple[str, ...]:
  """Returns the fields and sections that no stage depends on that has begun.

  Args:
    config: the config.
    begun: returns whether the run's directory holds anything of a stage.
  """
  # With `valid_split`, the best checkpoint becomes the result of a stage.
  free = [
    name for name in HARMLESS if not (name == 'checkpoint_every_epochs' and config.valid_split)
  ]
  used = False
  for name, fields in reversed(LATER.items()):
    used |= begun(Stage(1, name))
    if not used:
      free += fields
  return tuple(free)
