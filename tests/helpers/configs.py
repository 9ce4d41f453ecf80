"""The configs, and small ones made of them."""

import importlib.util
import pathlib

ROOT = pathlib.Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (ROOT / 'configs').glob('*.py'))

# Fields of a run of a few seconds that uses many options.
OPTIONS = {
  'train_split': 'train[:256]',
  'test_split': 'test[:100]',
  'eval_batch_size': 100,
  'model.widths': (6, 'M', 6),
  'baseline_epochs': 3,
  'train.epochs': 2,
  'train.pull': 1.5,
  'prune.fraction': 0.4,
  'prune.min_channels': 1,
  'finetune.epochs': 2,
  'checkpoint_every_epochs': 1,
  'keep_checkpoints': 1,
  'devices': 1,
  'batch_size': 64,
  'base_batch_size': 32,
  'valid_split': 'train[256:320]+test[100:120]',
  'scratch.e': True,
  'scratch.b': True,
}


def module(name):
  """The module of a config."""
  spec = importlib.util.spec_from_file_location(name, ROOT / 'configs' / f'{name}.py')
  result = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(result)
  return result


def load(name, **changes):
  """A config with some fields changed."""
  config = module(name).get_config()
  config.update_from_flattened_dict(changes)
  return config


def with_options(**changes):
  """The config of a run of a few seconds that uses many options."""
  return load('digits', **{**OPTIONS, **changes})
