"""Which stages a config asks for, and which of its fields each depends on."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from slim_jax.runs.checks import ConfigError
from slim_jax.runtime.config import Config


class Stage(NamedTuple):
  """One row of the table: 'baseline', or what is done in a pass.

  'sparse', 'pruned', 'recalibrated', 'finetuned'; and 'scratch-e' and 'scratch-b', the network
  of the last pass trained from new weights.
  """

  number: int  # of the pass, from 1; 0 for the baseline
  name: str

  @staticmethod
  def of(record: Mapping[str, Any]) -> 'Stage':
    """The stage that a record or a line of metrics is of."""
    return Stage(record['pass'], record['stage'])

  @property
  def is_scratch(self) -> bool:
    return self.name.startswith('scratch')

  @property
  def cuts(self) -> int:
    """How many passes have cut the network that it leaves."""
    return self.number - (self.name == 'sparse')

  def __str__(self) -> str:
    return self.name if self.number == 0 else f'{self.name}, pass {self.number}'


# Fields that may change between two calls of a run: where data and checkpoints are, what is seen
# of it, what it runs on, and which networks are trained from new weights to compare with.
HARMLESS = (
  'data_dir',
  'workers',
  'devices',
  'steps_per_call',
  'eval_batch_size',
  'eval_every_epochs',
  'log_every_steps',
  'checkpoint_every_epochs',
  'keep_checkpoints',
  'scratch',
)

# Fields and sections that no stage depends on before the one that is named.
LATER = {
  'sparse': (
    'train.strength',
    'train.pull',
    'train.term',
    'train.polarization_t',
    'train.strength_warmup_epochs',
    'train.weigh_macs',
  ),
  'pruned': ('prune',),
  'recalibrated': ('recalibrate_batches',),
  'finetuned': ('finetune',),
}

# Stages without training, done again in no time.
AT_ONCE = ('pruned', 'recalibrated')


def of(config: Config) -> list[Stage]:
  """The stages of a run, in order."""
  result = [Stage(0, 'baseline')] if config.baseline_epochs else []
  for number in range(1, config.passes + 1):
    result += [Stage(number, 'sparse'), Stage(number, 'pruned')]
    if config.recalibrate_batches:
      result.append(Stage(number, 'recalibrated'))
    if config.finetune.epochs:
      result.append(Stage(number, 'finetuned'))
  scratch = {'scratch-e': config.scratch.e, 'scratch-b': config.scratch.b}
  return result + [Stage(config.passes, name) for name, wanted in scratch.items() if wanted]


def named(config: Config, name: str) -> Stage:
  """The first stage of that name.

  Raises:
    ConfigError: the config does not ask for one.
  """
  found = [stage for stage in of(config) if stage.name == name]
  if not found:
    raise ConfigError(
      f'the config asks for no stage {name!r}, only for '
      + ', '.join(dict.fromkeys(stage.name for stage in of(config)))
    )
  return found[0]


def previous(config: Config, stage: Stage) -> Stage | None:
  """The stage whose network this one starts from; None for new weights."""
  if stage.number == 0 or stage == Stage(1, 'sparse') or stage.is_scratch:
    return None
  order = of(config)
  return order[order.index(stage) - 1]


def depends(stage: str, field: str) -> bool:
  """Whether 'baseline', or a stage of the first pass, depends on a dotted field."""
  return not any(f'{field}.'.startswith(f'{name}.') for name in free_after(stage))


def free_after(stage: str) -> tuple[str, ...]:
  """Fields and sections that 'baseline', or a stage of the first pass, does not depend on."""
  order = ['baseline', *LATER]
  return (*HARMLESS, *(name for later in order[order.index(stage) + 1 :] for name in LATER[later]))


def unused_fields(config: Config, begun: Callable[[Stage], bool]) -> tuple[str, ...]:
  """Returns the fields and sections of the config that no stage that has begun depends on.

  Args:
    config: the config.
    begun: whether there is anything of a stage in the run's directory.
  """
  # The model is chosen among the checkpoints.
  free = [
    name for name in HARMLESS if not (name == 'checkpoint_every_epochs' and config.valid_split)
  ]
  used = False
  for name, fields in reversed(LATER.items()):
    used |= begun(Stage(1, name))
    if not used:
      free += fields
  return tuple(free)
