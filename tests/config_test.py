"""The default config, the experiments that change it, and what is refused."""

import ast
import json
import pathlib
import re

from absl import flags
from absl import logging as absl_logging
from helpers import commands, configs, experiments
import ml_collections
from ml_collections import config_flags
import pytest

import slim_jax
from slim_jax import command, models, tree
from slim_jax.report import architecture
from slim_jax.runs import checks, default, pipeline, schema
from slim_jax.runs.run import config_to_json
from slim_jax.runs.workdir import Workdir, WorkdirError

ROOT = pathlib.Path(__file__).parents[1]


def flat(config):
  """Values by dotted name."""
  leaves = tree.flatten(config.to_dict(), is_leaf=lambda node: not isinstance(node, dict))
  return {'.'.join(path): value for path, value in leaves.items()}


DEFAULTS = flat(default.get_config())
NUMBERS = [name for name, value in DEFAULTS.items() if type(value) in (int, float)]


def digits(**changes):
  return configs.load('digits', **changes)


def without(config, *names):
  """A copy of a config that lacks fields or sections."""
  fields = config.to_dict()
  for name in names:
    *sections, last = name.split('.')
    parent = fields
    for section in sections:
      parent = parent[section]
    del parent[last]
  return ml_collections.ConfigDict(fields).lock()


def refused(config, message):
  with pytest.raises(checks.ConfigError, match=message):
    checks.check_config(config)


# The default config.


def test_every_field_has_a_comment():
  """Above each group of assignments."""
  lines = (ROOT / 'slim_jax/runs/default.py').read_text().splitlines()
  is_field = re.compile(r'  (config|section)\.\S+ = (?!_section)').match
  is_neighbour = re.compile(r'  (#|config\.|section\.|_add_schedule)').match
  assert sum(bool(is_field(line)) for line in lines) == len(DEFAULTS) - 5  # schedules: once
  for before, line in zip(lines, lines[1:]):
    if is_field(line):
      assert is_neighbour(before) or 'section.learning_rate' in line, line


def test_default_needs_only_a_data_set_and_a_model():
  config = default.get_config()
  with pytest.raises(checks.ConfigError) as error:
    checks.check_config(config)
  lines = str(error.value).splitlines()[1:]
  assert [line.split('=')[0].strip() for line in lines] == ['config.model.name', 'config.dataset']
  config.dataset, config.model.name = 'cifar10', 'vgg19'
  checks.check_config(config)


def test_sections_take_no_new_fields_but_arguments_of_model_and_optimiser():
  config = default.get_config()
  config.model.widths = (8,)
  for name, section in config.items():
    if isinstance(section, ml_collections.ConfigDict) and name not in ('model', 'optimizer'):
      with pytest.raises(AttributeError):
        section.nothing_of_this_name = 1
  assert default.get_config().model.to_dict() == {'name': ''}


def test_every_field_is_read():
  source = '\n'.join(path.read_text() for path in (ROOT / 'slim_jax').rglob('*.py'))
  for name in DEFAULTS:
    section, _, field = name.rpartition('.')
    if section == 'augment':  # passed on as keyword arguments
      assert 'augment=config.augment' in source
      assert re.search(rf'\b{field}: ', source), name
    else:
      pattern = rf'(config|section|(config\.)?{section})\.{field}\b(?! =)'
      assert re.search(pattern, source), name


def test_no_field_is_read_with_a_default():
  for path in (ROOT / 'slim_jax').rglob('*.py'):
    assert not re.search(r'(config|section)\.get\(', path.read_text()), path


# The experiments.


def test_there_are_experiments():
  assert {'digits', 'cifar10_vgg19'} <= set(configs.NAMES)


@pytest.mark.parametrize('name', configs.NAMES)
def test_experiment_is_locked_and_can_work(name):
  config = configs.load(name)
  assert config.is_locked and config.model.is_locked
  checks.check_config(config)


@pytest.mark.parametrize('name', configs.NAMES)
def test_experiment_sets_only_what_differs(name):
  (function,) = (
    node
    for node in ast.parse((ROOT / f'configs/{name}.py').read_text()).body
    if isinstance(node, ast.FunctionDef)
  )
  _, first, *changes, last = function.body
  assert ast.unparse(first) == 'config = default.get_config()'
  assert ast.unparse(last) == 'return config.lock()'
  config = default.get_config()
  for change in changes:
    before = flat(config)
    exec(ast.unparse(change), {'config': config})
    after = flat(config)
    changed = [field for field in after if field not in before or after[field] != before[field]]
    named = len(change.targets) if isinstance(change, ast.Assign) else len(change.value.keywords)
    assert len(changed) == named, f'equal to the default: {ast.unparse(change)}'


@pytest.mark.parametrize('name', configs.NAMES)
def test_experiment_is_short_and_documented(name):
  path = ROOT / f'configs/{name}.py'
  assert 15 <= len(path.read_text().splitlines()) <= 40
  text, parts = experiments.docstring(path), experiments.read(path)
  assert f'  python -m slim_jax.main --config=configs/{name}.py ' in text
  assert parts.keys() >= {'title', 'Time', 'Result'}
  if parts['Result'] == experiments.NOT_RUN:
    assert parts['Paper'] and parts['Time'].startswith('not yet run')


def test_readme_has_the_tables():
  _, between, after = experiments.split(experiments.README.read_text())
  assert after.startswith(experiments.END)
  assert between == experiments.tables(), 'run python tests/helpers/experiments.py'


@pytest.mark.filterwarnings('ignore:the load_module')  # by ml_collections
def test_every_field_can_be_set_on_the_command_line():
  changed = {
    bool: lambda value: not value,
    int: lambda value: value + 1,
    float: lambda value: value + 0.25,
    str: lambda value: f'{value}x',
    tuple: lambda value: (*value, 0.875) if value else ('*/a/*', 'b'),
  }
  wanted = {name: changed[type(value)](value) for name, value in DEFAULTS.items()}
  wanted['model.widths'] = (3, 'M')
  argv = ['test', f'--config={ROOT}/configs/cifar10_vgg19.py']
  argv += [f'--config.{name}={value}' for name, value in wanted.items()]
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  assert flat(values.config) == wanted


# Fields that a config lacks.


@pytest.fixture
def logged():
  """What is logged at level INFO."""
  lines = []
  verbosity = absl_logging.get_verbosity()
  absl_logging.set_verbosity(absl_logging.INFO)
  handler = absl_logging.PythonHandler()
  handler.emit = lambda record: lines.append(record.getMessage())
  absl_logging.get_absl_logger().addHandler(handler)
  yield lines
  absl_logging.get_absl_logger().removeHandler(handler)
  absl_logging.set_verbosity(verbosity)


@pytest.mark.parametrize('name', [*DEFAULTS, 'augment', 'train', 'prune', 'finetune', 'scratch'])
def test_a_field_that_is_missing_gets_its_default(name, logged):
  config = without(digits(), name)
  before = config.to_dict()
  done = schema.complete(config)
  assert done.is_locked and config.to_dict() == before
  expected = {
    field: DEFAULTS[field] if f'{field}.'.startswith(f'{name}.') else value
    for field, value in flat(digits()).items()
  }
  assert flat(done) == expected
  assert len(logged) == 1 and f'get their defaults: {name}=' in logged[0]


def test_a_complete_config_stays_as_it_is(logged):
  assert schema.complete(digits()) == digits()
  assert not logged
  unlocked = ml_collections.ConfigDict(digits().to_dict())
  assert not schema.complete(unlocked).is_locked
  assert schema.complete(None) is None


def test_a_field_that_is_unknown_is_not_lost():
  config = without(digits(), 'passes')
  with config.unlocked():
    config.pases = 2
  refused(schema.complete(config), "config.pases is not a field, did you mean 'passes'?")


def test_an_older_run_continues(tmp_path, logged):
  config = digits(**commands.LONG, data_dir=str(tmp_path / 'data'))
  config.update_from_flattened_dict({'finetune.epochs': 0, 'model.widths': (12, 8)})
  run = tmp_path / 'run'
  pipeline.run(config, run)
  saved = json.loads((run / 'config.json').read_text())
  del saved['scratch'], saved['train']['term'], saved['cross_replica_batch_norm']
  older = json.dumps(saved)
  (run / 'config.json').write_text(older)
  logged.clear()
  assert len(pipeline.run(without(config, 'weight_decay', 'train.term'), run)) == 2
  assert any("defaults: train.term='l1', weight_decay=0.0001" in line for line in logged)
  (run / 'config.json').write_text(older)
  apply, variables = slim_jax.load(run)
  assert callable(apply) and variables
  assert architecture.read(Workdir(run)).network(None)
  with pytest.raises(WorkdirError, match='train.term: "l1" there, "proximal" now'):
    Workdir(run).check_unchanged(
      'config.json', config_to_json(digits(**{'train.term': 'proximal'}))
    )


def test_overriding_a_field_that_an_older_file_lacks_says_what_to_do(tmp_path):
  (tmp_path / 'old.py').write_text(
    'import ml_collections\n'
    f'def get_config(): return ml_collections.ConfigDict({without(digits(), "prune").to_dict()})\n'
  )
  arguments = commands.main(tmp_path / 'run', **{'prune.bias': 'keep'})
  arguments = [arg.replace('configs/digits.py', str(tmp_path / 'old.py')) for arg in arguments]
  output = commands.run(arguments, code=1)
  assert '--config.prune.bias can override it once the config file sets it' in output


# What is refused.


@pytest.mark.parametrize(
  'change, problems',
  [
    (lambda c: c.pop('passes'), ['config.passes is missing; its default is 1']),
    (lambda c: c['prune'].pop('bias'), ["config.prune.bias is missing; its default is 'zero'"]),
    (lambda c: c.pop('scratch'), ['config.scratch is missing']),
    (lambda c: c.update(finetune=20), ['finetune=20 must be a section with the fields distill, ']),
    (lambda c: c.update(pases=2), ["config.pases is not a field, did you mean 'passes'?"]),
    (lambda c: c['train'].update(epoch=2), ["train.epoch is not a field, did you mean 'epochs'?"]),
    (lambda c: c['train'].update(epochs='3'), ["train.epochs='3' must be an integer"]),
    (lambda c: c['train'].update(epochs=True), ['train.epochs=True must be an integer']),
    (lambda c: c['train'].update(learning_rate='0.1'), ["train.learning_rate='0.1' must be a num"]),
    (lambda c: c['train'].update(learning_rate=True), ['train.learning_rate=True must be a numb']),
    (
      lambda c: c['train'].update(learning_rate=float('nan')),
      ['train.learning_rate=nan must be a fi'],
    ),
    (lambda c: c['train'].update(strength=float('inf')), ['train.strength=inf must be a finite']),
    (lambda c: c['train'].update(drops=0.5), ['train.drops=0.5 must be a tuple']),
    (
      lambda c: c['train'].update(drops=('a', 0.5)),
      ["train.drops=('a', 0.5) must be a tuple in which each must be a number"],
    ),
    (lambda c: c['prune'].update(keep=(1,)), ['must be a tuple in which each must be a string']),
    (lambda c: c['prune'].update(per_layer=1), ['prune.per_layer=1 must be True or False']),
    (lambda c: c.update(dataset=None), ['dataset=None must be a string']),
    (
      lambda c: c.update(passes=1.0, seed='0'),
      ['passes=1.0 must be an integer', "seed='0' must be an integer"],
    ),
  ],
)
def test_fields_and_types_are_checked_first(change, problems):
  fields = digits().to_dict()
  change(fields)
  fields['batch_size'] = 0  # is not reported yet
  with pytest.raises(checks.ConfigError) as error:
    checks.check_config(ml_collections.ConfigDict(fields))
  lines = str(error.value).splitlines()[1:]
  assert len(lines) == len(problems)
  for line, problem in zip(lines, problems, strict=True):
    assert problem in line


def test_integers_are_numbers_and_lists_are_tuples():
  fields = digits().to_dict()
  fields['train'].update(pull=1, drops=[0.5])
  checks.check_config(ml_collections.ConfigDict(fields))


def test_what_is_not_a_config_is_refused():
  refused(None, 'config.is None, not a ConfigDict: get_config')


@pytest.mark.parametrize('name', NUMBERS)
def test_no_number_may_be_negative(name):
  refused(digits(**{name: -1}), f'config.{name}=-1(.0)? must')


@pytest.mark.parametrize(
  'changes, message',
  [
    ({'prune.fraction': 1.0}, r'config.prune.fraction=1.0 must be at least 0 and less than 1'),
    ({'prune.max_fraction': 1.1}, 'config.prune.max_fraction=1.1 must be between 0 and 1'),
    ({'batch_size': 60}, 'config.batch_size=60 must be a multiple of the 8 devices'),
    ({'batch_size': 0}, 'config.batch_size=0 must be at least 1'),
    ({'eval_batch_size': 0}, 'config.eval_batch_size=0 must be at least 1'),
    ({'steps_per_call': 0}, 'config.steps_per_call=0 must be at least 1'),
    ({'log_every_steps': 0}, 'config.log_every_steps=0 must be at least 1'),
    ({'checkpoint_every_epochs': 0}, 'config.checkpoint_every_epochs=0 must be at least 1'),
    ({'keep_checkpoints': 0}, 'config.keep_checkpoints=0 must be at least 1'),
    ({'train.epochs': 0}, 'config.train.epochs=0 must be at least 1'),
    ({'passes': 0}, 'config.passes=0 must be at least 1'),
    ({'train.learning_rate': 0.0}, 'config.train.learning_rate=0.0 must be above 0'),
    ({'train.drops': (0.5, 80.0)}, r'config.train.drops=\(0.5, 80.0\) must be fractions'),
    ({'finetune.drops': (0.0,)}, r'config.finetune.drops=\(0.0,\) must be fractions'),
    ({'train.schedule': 'step'}, "config.train.schedule='step' is not one of 'piecewise', 'cosine"),
    ({'finetune.schedule': 'cosin'}, "did you mean 'cosine'"),
    ({'finetune.drop_factor': 10.0}, 'config.finetune.drop_factor=10.0 must be above 0 and at mo'),
    ({'momentum': 1.0}, 'config.momentum=1.0 must be at least 0 and less than 1'),
    ({'momentum': 0.0}, 'config.nesterov=True needs'),
    ({'seed': 2**32}, 'config.seed=4294967296 must be at least 0 and less than'),
    ({'augment.kind': 'crop'}, "config.augment.kind='crop' is not one of 'crop_flip', 'imagenet'"),
    (
      {'prune.target': 'macs=0.5'},
      "config.prune.target='macs=0.5' must be '', 'gap', 'threshold:SCALE', or",
    ),
    ({'prune.target': 'threshold:inf'}, "config.prune.target='threshold:inf' must be ''"),
    ({'prune.target': 'params:2'}, "config.prune.target='params:2' must be '', 'gap'"),
    (
      {'train.term': 'polarisation'},
      "train.term='polarisation' is not one of 'l1', 'proximal', "
      "'polarization', did you mean 'polarization'?",
    ),
    ({'train.polarization_t': 3.0}, 'config.train.polarization_t=3.0 must be between 0'),
    ({'accumulate_steps': 0}, 'config.accumulate_steps=0 must be at least 1'),
    ({'accumulate_steps': 5}, 'config.accumulate_steps=5 must divide the 8 images of each'),
    ({'steps_per_call': 2, 'image_size': 8}, 'config.steps_per_call=2 needs images in device mem'),
    ({'prune.multiple_of': 0}, 'config.prune.multiple_of=0 must be at least 1'),
    ({'prune.bias': 'drop'}, "config.prune.bias='drop' is not one of 'zero', 'keep'"),
    ({'prune.tied': 'min'}, "config.prune.tied='min' is not one of '', 'sum'"),
    ({'devices': 9}, r'config.devices=9 must be between 0 \(all\) and 8'),
    ({'devices': 3}, 'config.batch_size=64 must be a multiple of the 3 devices'),
    ({'dtype': 'float8'}, "config.dtype='float8' is not one of 'float32', 'bfloat16', 'float16'"),
    ({'dataset': 'cifar1'}, "config.dataset='cifar1' is not one of .* did you mean 'cifar10'"),
    ({'model.name': 'vg19'}, "config.model.name='vg19' is not one of .* did you mean 'vgg19'"),
  ],
)
def test_what_cannot_work_is_refused_with_its_field(changes, message):
  refused(digits(**changes), message)


def test_data_sets_that_are_prepared_elsewhere():
  checks.check_config(digits(dataset='mine', data_dir='/data'))
  checks.check_config(digits(dataset='folder:/data'))
  refused(digits(dataset='mine'), "config.dataset='mine' is not one of .*folder:PATH")


def test_all_that_is_wrong_is_listed_at_once():
  with pytest.raises(checks.ConfigError) as error:
    checks.check_config(digits(**{'passes': 0, 'train.epochs': 0, 'momentum': 2.0}))
  assert len(str(error.value).splitlines()) == 4


def test_model_takes_only_its_arguments():
  config = digits()
  with config.unlocked():
    config.model.depth = 3
  refused(config, "config.model: model 'vgg' takes no argument depth")


@pytest.mark.parametrize(
  'name, arguments, message',
  [
    ('vgg11', {'widths': (8, 'M', 8)}, r"'vgg11' has widths=.*\(8, 'M', 8\) contradicts.*'vgg'"),
    ('preresnet20', {'depth': 164}, "'preresnet20' has depth=20, which depth=164 .*'preresnet'"),
    ('resnet18', {'bottleneck': True}, "'resnet18' has bottleneck=False.*use model 'resnet'"),
    ('densenet_bc100', {'compression': 1.0}, "'densenet_bc100' has compression=0.5"),
  ],
)
def test_an_argument_must_not_contradict_the_name_of_the_model(name, arguments, message):
  config = digits()
  with config.unlocked():
    config.model = {'name': name, **arguments}
  refused(config, f'{message}.*; --config.model={name} drops the arguments')


def test_an_argument_may_repeat_what_the_name_of_the_model_says():
  assert models.create('preresnet20', num_classes=2, depth=20).depth == 20
  widths = list(models.VGG(num_classes=2).widths)  # as JSON has it
  assert models.create('vgg19', num_classes=2, widths=widths).widths


@pytest.mark.parametrize(
  'given, model',
  [
    (['--config.model=resnet18'], {'name': 'resnet18'}),
    (
      ['--config.model=resnet', '--config.model.blocks=(1, 1)', '--config.model.width=8'],
      {'name': 'resnet', 'blocks': (1, 1), 'width': 8},
    ),
    (['--config.model=vgg', '--config.model.widths=(4,)'], {'name': 'vgg', 'widths': (4,)}),
    (['--config.model=vgg', '--config.model=mlp'], {'name': 'mlp'}),
    (['--config.model=a.b:C', '--config.model.kind=x y'], {'name': 'a.b:C', 'kind': 'x y'}),
    (["--config.model={'name': 'mlp'}"], {'name': 'mlp'}),
    (['--config.model.widths=(4,)'], {'name': 'vgg', 'widths': (4,)}),
  ],
)
@pytest.mark.filterwarnings('ignore:the load_module')  # by ml_collections
def test_the_model_is_replaced_as_a_whole(given, model):
  argv = ['test', f'--config={ROOT}/configs/digits.py', '--config.seed=1', *given]
  argv = command.with_whole_sections([*argv, '--config.passes=2'])
  values = flags.FlagValues()
  config_flags.DEFINE_config_file('config', flag_values=values, sys_argv=argv)
  values(argv)
  assert values.config.model.to_dict() == model
  assert (values.config.seed, values.config.passes) == (1, 2)
  assert schema.complete(values.config).model.is_locked


def test_a_program_takes_another_model(tmp_path):
  given = ['--config.model=mlp', '--config.model.widths=(12, 8)', '--config.model.depth=3']
  output = commands.run([*commands.main(tmp_path / 'run'), *given], code=1)
  assert "config.model: model 'mlp' takes no argument depth; it takes" in output


def test_unknown_field_is_refused():
  with pytest.raises(AttributeError, match='epochs'):
    digits().train.epoch = 3
