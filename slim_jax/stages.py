"""Which stages a config asks for, and which of its fields each depends on."""

from typing import Any

import ml_collections

from slim_jax.check import ConfigError
from slim_jax.workdir import Stage
from slim_jax.workdir import Workdir

# Fields that may change between two calls of a run: where data and checkpoints are, what is seen
# of it, what it runs on, and which networks are trained from new weights to compare with.
HARMLESS = ('data_dir', 'workers', 'devices', 'steps_per_call', 'eval_batch_size',
            'eval_every_epochs', 'log_every_steps', 'checkpoint_every_epochs', 'keep_checkpoints',
            'scratch')

# Fields and sections that no stage depends on before the one that is named.
LATER = {
    'sparse': ('train.strength', 'train.pull', 'train.term', 'train.polarization_t',
               'train.strength_warmup_epochs', 'train.weigh_macs'),
    'pruned': ('prune',),
    'recalibrated': ('recalibrate_batches',),
    'finetuned': ('finetune',),
}

# Stages without training, done again in no time.
AT_ONCE = ('pruned', 'recalibrated')


def of(config: ml_collections.ConfigDict) -> list[Stage]:
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


def named(config: ml_collections.ConfigDict, name: str) -> Stage:
  """The first stage of that name.

  Raises:
    ConfigError: the config does not ask for one.
  """
  found = [stage for stage in of(config) if stage.name == name]
  if not found:
    raise ConfigError(f'the config asks for no stage {name!r}, only for '
                      + ', '.join(dict.fromkeys(stage.name for stage in of(config))))
  return found[0]


def previous(config: ml_collections.ConfigDict, stage: Stage) -> Stage | None:
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
  return (*HARMLESS, *(name for later in order[order.index(stage) + 1:] for name in LATER[later]))


def unused_fields(config: ml_collections.ConfigDict, workdir: Workdir,
                  records: list[dict[str, Any]]) -> tuple[str, ...]:
  """Fields and sections of the config that nothing that is there depends on."""
  # The model is chosen among the checkpoints.
  free = [name for name in HARMLESS
          if not (name == 'checkpoint_every_epochs' and config.valid_split)]
  begun = False
  for name, fields in reversed(LATER.items()):
    # Of what is done again in no time only a complete stage counts.
    begun |= name not in AT_ONCE and workdir.checkpoints(Stage(1, name)).exists()
    begun |= any(record['stage'] == name for record in records)
    if not begun:
      free += fields
  return tuple(free)
