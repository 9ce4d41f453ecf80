"""Configs: they load, are locked, have the same fields, and every field is read."""

import pathlib
import re

from helpers import configs
import ml_collections
import pytest

from slim_jax import tree
from slim_jax.runs import checks, schema

ROOT = pathlib.Path(__file__).parents[1]


def names_of(config):
  """Dotted names; the arguments of the model are the model's own affair."""
  names = {'.'.join(path) for path in tree.flatten(config.to_dict(), is_leaf=is_value)}
  return {name for name in names if not re.match(r'model\.(?!name)', name)}


def is_value(node):
  return not isinstance(node, dict)


def test_there_are_configs():
  assert 'digits' in configs.NAMES


@pytest.mark.parametrize('name', configs.NAMES)
def test_config_is_locked_and_can_work(name):
  config = configs.load(name)
  assert config.is_locked
  # The tests have eight devices, which need not divide every batch size.
  config.batch_size *= 8
  checks.check_config(config)


@pytest.mark.parametrize('name', configs.NAMES)
def test_fields_are_those_of_the_table(name):
  """And no field of the table is left out."""
  assert not list(schema.problems(configs.load(name)))


def test_table_has_every_field_of_the_demonstration():
  named = {
    f'{section}.{name}'.removeprefix('.')
    for section, types in schema.FIELDS.items()
    for name in types
  }
  assert named == names_of(configs.load('digits'))


@pytest.mark.parametrize(
  'change, problems',
  [
    (lambda c: c.pop('passes'), ['passes is missing; configs/digits.py explains it']),
    (lambda c: c['prune'].pop('fraction'), ['prune.fraction is missing; configs/digits.py expl']),
    (lambda c: c.pop('finetune'), ['finetune is missing']),
    (lambda c: c.update(finetune=20), ['finetune=20 must be a section: epochs, learning_rate']),
    (lambda c: c.update(pases=2), ["pases is no field, did you mean 'passes'?"]),
    (lambda c: c['train'].update(epoch=2), ["train.epoch is no field, did you mean 'epochs'?"]),
    (lambda c: c['train'].update(epochs='3'), ["train.epochs='3' must be an integer"]),
    (lambda c: c['train'].update(epochs=True), ['train.epochs=True must be an integer']),
    (lambda c: c['train'].update(learning_rate='0.1'), ["train.learning_rate='0.1' must be a num"]),
    (
      lambda c: c['train'].update(learning_rate=float('nan')),
      ['train.learning_rate=nan must be a fi'],
    ),
    (lambda c: c['train'].update(strength=float('inf')), ['train.strength=inf must be a finite']),
    (lambda c: c['train'].update(drops=0.5), ['train.drops=0.5 must be a tuple']),
    (
      lambda c: c['train'].update(drops=('a', 0.5)),
      ['must be a tuple in which each must be a num'],
    ),
    (lambda c: c['prune'].update(per_layer=1), ['prune.per_layer=1 must be True or False']),
    (lambda c: c.update(dataset=None), ['dataset=None must be a text']),
    (
      lambda c: c.update(passes=1.0, seed='0'),
      ["seed='0' must be an integer", 'passes=1.0 must be an integer'],
    ),
  ],
)
def test_types_are_checked_before_values(change, problems):
  config = configs.load('digits').to_dict()
  change(config)
  with pytest.raises(checks.ConfigError) as error:
    checks.check_config(ml_collections.ConfigDict(config))
  lines = str(error.value).splitlines()[1:]
  assert len(lines) == len(problems)
  for line, problem in zip(lines, problems, strict=True):
    assert problem in line


def test_what_is_no_config_is_refused():
  with pytest.raises(checks.ConfigError, match='is None, not what get_config'):
    checks.check_config(None)


@pytest.mark.parametrize('name', configs.NAMES)
def test_config_stands_alone_and_says_how_to_run_it(name):
  source = (ROOT / 'configs' / f'{name}.py').read_text()
  imports = re.findall(r'^(?:import|from) (\S+)', source, re.M)
  assert imports == ['ml_collections']
  assert f'--config=configs/{name}.py' in source
  module = configs.module(name)
  assert module.__doc__ and module.get_config.__doc__


@pytest.mark.parametrize('name', configs.NAMES)
def test_every_field_is_explained(name):
  """Above each run of assignments stands a comment."""
  lines = (ROOT / 'configs' / f'{name}.py').read_text().splitlines()
  for before, line in zip(lines, lines[1:]):
    if line.startswith('  config.') and not before.strip():
      pytest.fail(f'no comment above: {line}')


def test_every_field_is_read():
  source = '\n'.join(path.read_text() for path in (ROOT / 'slim_jax').rglob('*.py'))
  for name in names_of(configs.load('digits')):
    section, _, field = name.rpartition('.')
    if section == 'augment':  # handed on whole, as keyword arguments
      assert '**config.augment' in source or '**context.config.augment' in source
      assert re.search(rf'\b{field}: ', source), name
    else:
      assert re.search(rf'(config|section|(config\.)?{section})\.{field}\b', source), name


def test_nothing_is_read_with_a_default():
  for path in (ROOT / 'slim_jax').rglob('*.py'):
    assert not re.search(r'(config|section)\.get\(', path.read_text()), path


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prune.fraction': 1.5}, r'config.prune.fraction=1.5 must be at least 0 and less than 1'),
    ({'prune.max_fraction': -0.1}, 'config.prune.max_fraction=-0.1 must lie between 0 and 1'),
    ({'prune.min_channels': -1}, 'config.prune.min_channels=-1 must not be negative'),
    ({'batch_size': 60}, 'config.batch_size=60 must be a multiple of the 8 devices'),
    ({'batch_size': 0}, 'config.batch_size=0 must be at least 1'),
    ({'train.epochs': 0}, 'config.train.epochs=0 must be at least 1'),
    ({'finetune.epochs': -1}, 'config.finetune.epochs=-1 must not be negative'),
    ({'baseline_epochs': -1}, 'config.baseline_epochs=-1 must not be negative'),
    ({'passes': 0}, 'config.passes=0 must be at least 1'),
    ({'train.strength': -1e-4}, 'config.train.strength=-0.0001 must not be negative'),
    ({'train.learning_rate': 0.0}, 'config.train.learning_rate=0.0 must be positive'),
    ({'train.drops': (0.5, 80.0)}, r'config.train.drops=\(0.5, 80.0\) must be fractions'),
    ({'train.schedule': 'step'}, "config.train.schedule='step' is not one of piecewise, cosine"),
    ({'finetune.schedule': 'cosin'}, "did you mean 'cosine'"),
    ({'finetune.drop_factor': 10.0}, 'config.finetune.drop_factor=10.0'),
    ({'finetune.warmup_epochs': -1.0}, 'config.finetune.warmup_epochs=-1.0'),
    ({'momentum': 1.0}, 'config.momentum=1.0 must be at least 0 and less than 1'),
    ({'weight_decay': -1.0}, 'config.weight_decay=-1.0 must not be negative'),
    ({'momentum': 0.0}, 'config.nesterov=True needs'),
    ({'seed': -1}, 'config.seed=-1 must lie between'),
    ({'augment.pad': -1}, 'config.augment.pad=-1 must not be negative'),
    ({'augment.kind': 'crop'}, "config.augment.kind='crop' is not one of crop_flip, imagenet"),
    ({'train.pull': -1.0}, 'config.train.pull=-1.0 must not be negative'),
    (
      {'prune.target': 'macs=0.5'},
      "config.prune.target='macs=0.5' must be '', 'gap', 'threshold:SCALE', or",
    ),
    ({'prune.target': 'threshold:inf'}, "config.prune.target='threshold:inf' must be ''"),
    ({'prune.target': 'params:2'}, "config.prune.target='params:2' must be '', 'gap'"),
    (
      {'train.term': 'polarisation'},
      "train.term='polarisation' is not one of l1, proximal, "
      "polarization, did you mean 'polarization'?",
    ),
    ({'train.polarization_t': 3.0}, 'config.train.polarization_t=3.0 must lie between 0'),
    ({'train.strength_warmup_epochs': -1.0}, 'config.train.strength_warmup_epochs=-1.0 must not'),
    ({'recalibrate_batches': -1}, 'config.recalibrate_batches=-1 must not be negative'),
    ({'accumulate_steps': 0}, 'config.accumulate_steps=0 must be at least 1'),
    ({'accumulate_steps': 5}, 'config.accumulate_steps=5 must divide the 8 images of each'),
    ({'steps_per_call': 2, 'image_size': 8}, 'config.steps_per_call=2 is for images that lie in'),
    ({'prune.multiple_of': 0}, 'config.prune.multiple_of=0 must be at least 1'),
    ({'prune.bias': 'drop'}, "config.prune.bias='drop' must be 'zero' or 'keep'"),
    ({'prune.tied': 'min'}, "config.prune.tied='min' must be '' "),
    ({'devices': 9}, 'config.devices=9 must lie between 0, for all, and 8'),
    ({'devices': 3}, 'config.batch_size=64 must be a multiple of the 3 devices'),
    ({'base_batch_size': -1}, 'config.base_batch_size=-1 must not be negative'),
    ({'keep_checkpoints': 0}, 'config.keep_checkpoints=0 must be at least 1'),
    ({'dtype': 'float8'}, "config.dtype='float8' must be"),
    ({'dataset': 'cifar1'}, "config.dataset='cifar1' is not one of .* did you mean 'cifar10'"),
    ({'model.name': 'vg19'}, "config.model.name='vg19' is not one of .* did you mean 'vgg19'"),
  ],
)
def test_what_cannot_work_is_refused_with_its_field(changes, message):
  config = configs.load('digits')
  config.update_from_flattened_dict(changes)
  with pytest.raises(checks.ConfigError, match=message):
    checks.check_config(config)


def test_all_that_is_wrong_is_listed_at_once():
  config = configs.load('digits')
  config.update_from_flattened_dict({'passes': 0, 'train.epochs': 0, 'momentum': 2.0})
  with pytest.raises(checks.ConfigError) as error:
    checks.check_config(config)
  assert len(str(error.value).splitlines()) == 4


def test_model_takes_only_its_arguments():
  config = configs.load('digits')
  with config.unlocked():
    config.model.depth = 3
  with pytest.raises(checks.ConfigError, match="config.model: model 'vgg' takes no argument depth"):
    checks.check_config(config)


def test_unknown_field_is_refused():
  with pytest.raises(AttributeError, match='epochs'):
    configs.load('digits').train.epoch = 3
  assert isinstance(configs.load('digits'), ml_collections.ConfigDict)
