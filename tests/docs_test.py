"""What the READMEs say is true: examples and commands run, links lead somewhere.

Every Markdown file of the repository is read. Blocks of `python` are executed, those under one
heading one after another. Blocks of `bash` hold a command a line: those that start slim_jax are
executed on a tiny run; of the rest, `NOT_RUN` gives the reason, and files, flags, fields of configs
and extras that they name must exist.
"""

import configparser
import functools
import importlib.util
import os
import pathlib
import pkgutil
import re
import shlex
import sys

os.environ.setdefault('KERAS_BACKEND', 'jax')

from absl import flags
from helpers import commands
from helpers.markdown import DOCS, ROOT, anchors, blocks, name_of, prose
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_flags
import pytest

import slim_jax
from slim_jax.command import define_flags, with_whole_sections
from slim_jax.runs import checks

BENCHMARKS = ROOT / 'tests' / 'benchmarks'
README = ROOT / 'README.md'

# Files that users or commands write.
WRITTEN = ('NAME', 'own', 'offline', 'network')

# Why a command is not executed here.
NOT_RUN = {
  r'bash launch/test\.sh': 'it is what runs these tests',
  r'bash launch/\w+\.sh': 'launch_test runs the scripts, on stubs where they need a cluster',
  r'sbatch .*launch/slurm\.sh': 'needs a SLURM cluster; launch_test runs the script on stubs',
  r'kubectl apply -f launch/kubernetes\.yaml': 'needs a Kubernetes cluster',
  r'python -m pip install ': 'downloads',
  r'pip install ': 'downloads',
  r'python -m venv \.venv$': 'launch/install.sh does the same',
  r'source \.venv/bin/activate$': 'changes the shell',
  r'pre-commit install$': 'changes the repository',
  r'(ruff check|ruff check --fix|ruff format|basedpyright)$': 'launch/test.sh checks the source',
  r'python -m pytest tests/\w+\.py': 'it is what runs these tests',
  r'tensorboard --logdir=': 'serves until it is stopped',
  r'python tests/benchmarks/\w+\.py': 'takes minutes; its flags are parsed below',
}

TINY = {**commands.TINY, 'passes': 1, 'baseline_epochs': 0, 'train.epochs': 1, 'finetune.epochs': 1}


BLOCKS = [block for path in DOCS for block in blocks(path)]
docs = pytest.mark.parametrize('path', DOCS, ids=name_of)


# The root README.


def test_the_readme_is_short():
  text = README.read_text()
  assert len(text.splitlines()) <= 180
  assert len(text.split()) <= 2000


def test_the_first_two_commands():
  first = next(blocks(README))
  assert first.code.splitlines() == ['bash launch/demo.sh', 'bash launch/test.sh']
  assert 'bash launch/test.sh' in (ROOT / '.ci/run').read_text()


def test_the_first_example_is_short():
  code = next(block.code for block in blocks(README) if block.language == 'python')
  assert len(code.splitlines()) <= 20


# Examples.


def examples():
  """The python blocks under each heading, as one program."""
  programs = {}
  for block in BLOCKS:
    if block.language == 'python':
      programs.setdefault((block.path, block.heading), []).append(block.code)
  return {
    f'{name_of(path)}: {heading}': ''.join(codes) for (path, heading), codes in programs.items()
  }


EXAMPLES = examples()


def test_there_are_examples():
  assert len(EXAMPLES) >= 8
  assert {block.language for block in BLOCKS} <= {'', 'bash', 'python', 'text'}


# Keras 3.15 gives weights to NumPy in the way of NumPy 1.
@pytest.mark.filterwarnings('ignore:__array__ implementation')
@pytest.mark.parametrize('name', EXAMPLES)
def test_examples_run(name, request, tmp_path, monkeypatch):
  code = EXAMPLES[name]
  if 'slim_jax.load(' in code:
    (tmp_path / 'runs').mkdir()
    (tmp_path / 'runs' / 'digits').symlink_to(request.getfixturevalue('finished'))
  monkeypatch.chdir(tmp_path)
  made = {'__name__': 'example'}
  with jax.numpy_rank_promotion('allow'):  # JAX's default
    exec(compile(code, name, 'exec'), made)
    if 'info' in made:
      assert made['info'].after.macs < 0.7 * made['info'].before.macs
    if 'plan' in made:
      check_thin(made, bias='keep' if "bias='keep'" in code else 'zero')


def check_thin(made, *, bias):
  """The law, for an example that plans half of the channels away; and that arithmetic is saved."""
  apply = made.get('apply') or made['Net']().apply
  plan, variables, x = (made[name] for name in ('plan', 'variables', 'x'))
  dead = made.get('dead') or slim_jax.select_global(variables, fraction=0.5)
  thin_apply, thin_variables = slim_jax.thin(apply, plan), plan.slice(variables)
  full = slim_jax.count(apply, variables, x).macs
  assert slim_jax.count(thin_apply, thin_variables, x).macs < 0.7 * full
  want = jax.jit(apply)(slim_jax.mask(variables, dead, bias=bias), x)
  assert jnp.allclose(jax.jit(thin_apply)(thin_variables, x), want, rtol=1e-4, atol=1e-5)


# Commands.


def lines_of(block):
  """The commands of a block, one a line."""
  text = re.sub(r'\\\n\s*', '', block.code)
  return [line for line in text.splitlines() if line.strip() and not line.startswith('#')]


COMMANDS = list(
  dict.fromkeys(
    line for block in BLOCKS if block.language in ('', 'bash') for line in lines_of(block)
  )
)
# Those in tables and sentences.
MENTIONED = list(
  dict.fromkeys(
    text
    for path in DOCS
    for text in re.findall(r'`((?:python|bash|sbatch|kubectl|pip) [^`]+)`', prose(path))
    if 'COMMAND' not in text
  )
)
# ml_collections reads configs with it.
old_import = pytest.mark.filterwarnings('ignore:the load_module')
PROGRAMS = {f'slim_jax.{name}' for name in ('main', 'look', 'sweep', 'report', 'export', 'latency')}
STARTS = r'python -m slim_jax\.\w+( |$)'


def bare(command):
  """A command without environment variables, `taskset`, and what stands for options."""
  command = re.sub(r'^([A-Z]+=\S+ )*(taskset -c \S+ )?', '', command)
  return re.sub(r' \[[^\]]*=[^\]]*\]', '', command)


def words_of(command):
  return shlex.split(bare(command))


def flags_of(command):
  """The flags of the program that a command starts, behind the script or module."""
  words = words_of(command)
  start = next(i for i, word in enumerate(words) if re.search(r'\.sh$|^slim_jax\.', word))
  return [word for word in words[start:] if word.startswith('--')]


def module_of(command):
  """The program that a command starts with flags, or None."""
  if chosen := re.search(r'MODULE=(slim_jax\.\w+)|python -m (slim_jax\.\w+)(?![\w.])', command):
    return chosen[1] or chosen[2]
  if re.search(r'launch/(demo|train|processes|slurm|tpu|sweep)\.sh', command):
    return 'slim_jax.sweep' if 'sweep.sh' in command else 'slim_jax.main'
  return None


def order(command):
  """A run is begun, looked at and ended; then it is shown and exported."""
  steps = ['--until=sparse', 'slim_jax.look', 'slim_jax.main', '']
  return next(i for i, step in enumerate(steps) if step in command)


def to_execute():
  """The commands that start slim_jax, but for those that differ in config and directory alone."""
  kept = {}
  for command in COMMANDS:
    if re.match(STARTS, command):
      words = [
        word for word in words_of(command)[2:] if not word.startswith(('--config', '--workdir'))
      ]
      kept.setdefault(tuple(words), command)
  return sorted(kept.values(), key=order)


def as_typed(command, directory):
  """The command for a run of seconds in `directory`."""
  words = words_of(command)
  has_config = any(word.startswith('--config=') for word in words)
  words = [
    sys.executable,
    *(word for word in words[1:] if not word.startswith(('--config', '--workdir'))),
    f'--workdir={directory / ("study" if "slim_jax.sweep" in command else "run")}',
  ]
  # Two points of a study: the others are like them.
  words = [re.sub(r'^(--sweep=[\w.]+=[^,]+,[^,]+),.*', r'\1', word) for word in words]
  if has_config:
    words += ['--config=configs/digits.py']
    words += [f'--config.{name}={value}' for name, value in TINY.items()]
  return words


@pytest.fixture(scope='module')
def directory(tmp_path_factory):
  """Where commands are executed. The demo has begun a run there."""
  path = tmp_path_factory.mktemp('docs')
  venv = commands.make_venv(path / 'venv')
  fields = [f'--config.{name}={value}' for name, value in TINY.items()]
  demo = ['bash', 'launch/demo.sh', f'--workdir={path / "run"}', *fields, '--until=sparse']
  commands.run(demo, VENV=str(venv), **cache(path))
  return path


@pytest.fixture(scope='module')
def finished(directory):
  """A run that has ended, whatever else has been done to it."""
  command = 'python -m slim_jax.main --config=configs/digits.py --workdir=DIR'
  commands.run(as_typed(command, directory), **cache(directory))
  return directory / 'run'


def cache(path):
  """Processes share what they compile."""
  return {
    'JAX_COMPILATION_CACHE_DIR': str(path / 'cache'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }


@pytest.mark.parametrize('command', to_execute())
def test_commands_are_executed(command, directory):
  if 'onnx' in command and not importlib.util.find_spec('jax2onnx'):
    pytest.skip('the extra onnx is not installed')
  commands.run(as_typed(command, directory), **cache(directory))


def test_every_program_is_executed():
  assert {module_of(command) for command in to_execute()} == PROGRAMS


@pytest.mark.parametrize('command', COMMANDS)
def test_commands_are_executed_or_there_is_a_reason(command):
  assert re.match(STARTS, bare(command)) or any(
    re.match(pattern, bare(command)) for pattern in NOT_RUN
  )


@pytest.mark.parametrize('pattern', NOT_RUN)
def test_reasons_are_needed(pattern):
  assert any(re.search(pattern, command) for command in COMMANDS + MENTIONED)


@pytest.mark.parametrize('command', COMMANDS + MENTIONED)
def test_files_and_extras_of_commands_exist(command):
  for name in re.findall(r'(?:launch|tests|configs)/[\w/]+\.\w+', command):
    assert (ROOT / name).exists() or name == 'configs/NAME.py'
  extras = configparser.ConfigParser()
  extras.read(ROOT / 'setup.cfg')
  for names in re.findall(r'\.\[([\w,]+)\]', command):
    assert set(names.split(',')) <= set(extras['options.extras_require'])


@old_import
@pytest.mark.parametrize('command', [c for c in COMMANDS + MENTIONED if module_of(c)])
def test_flags_of_commands_exist(command):
  known = known_flags(module_of(command))
  for flag in flags_of(command):
    assert flag.startswith('--config.') or flag[2:].partition('=')[0] in known, flag
  check_fields(flags_of(command))


def test_flags_that_are_mentioned_exist():
  known = set().union(*map(known_flags, PROGRAMS))
  names = re.findall(r'`--(\w+)', prose(ROOT / 'launch/README.md'))
  assert len(names) > 20 and set(names) <= known


@functools.cache
def known_flags(module):
  """The flags that a program defines or shares, with `no` before those that are true or false."""
  is_folder = (ROOT / module.replace('.', '/')).is_dir()
  program = importlib.import_module(f'{module}.__main__' if is_folder else module)
  before = set(flags.FLAGS)
  define_flags()
  program.define_flags()
  names = set(flags.FLAGS)
  for name in names - before:  # other programs have flags of the same names
    delattr(flags.FLAGS, name)
  return names | {f'no{name}' for name in names}


def check_fields(arguments):
  """Fails unless `--config=` and `--config.FIELD=` flags give a config that can work."""
  given = [word for word in arguments if word.startswith('--config')]
  if not any(word.startswith('--config=') for word in given):
    given = ['--config=configs/digits.py', *given]
  given = [
    word.replace('configs/NAME.py', 'configs/digits.py').replace('=configs/', f'={ROOT}/configs/')
    for word in given
  ]
  has_value = lambda word: '=' in word and not word.endswith('=...')
  values = flags.FlagValues()
  line = with_whole_sections(['docs', *filter(has_value, given)])
  config_flags.DEFINE_config_file('config', lock_config=True, flag_values=values, sys_argv=line)
  values(line)
  config = values['config'].value
  checks.check_config(config)
  for word in given:
    if not has_value(word):
      assert word.partition('=')[0].removeprefix('--config.') in flat(config), word


def flat(config):
  """The fields of a config, with dots."""
  return {
    f'{name}.{field}' if isinstance(value, ml_collections.ConfigDict) else name
    for name, value in config.items()
    for field in (value if isinstance(value, ml_collections.ConfigDict) else [''])
  }


FIELDS = sorted({text for path in DOCS for text in re.findall(r'`(--config\.[^`]+)`', prose(path))})


@old_import
@pytest.mark.parametrize('text', [text for text in FIELDS if 'FIELD' not in text])
def test_fields_that_are_mentioned_exist(text):
  check_fields(shlex.split(text))


@pytest.mark.parametrize('command', [c for c in COMMANDS + MENTIONED if 'tests/benchmarks/' in c])
def test_benchmarks_take_the_options(command, monkeypatch, capsys):
  path = ROOT / next(word for word in words_of(command) if word.startswith('tests/benchmarks/'))
  if 'argparse' not in path.read_text() and 'side_by_side' not in path.read_text():
    assert not [word for word in words_of(command) if word.startswith('--')]
    return
  monkeypatch.syspath_prepend(BENCHMARKS)
  monkeypatch.setattr(sys, 'argv', [str(path), '--help'])
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  with pytest.raises(SystemExit):
    module.main()
  options = capsys.readouterr().out
  for word in words_of(command):
    if word.startswith('--'):
      assert word.partition('=')[0] in options


# Links and names.


@docs
def test_links_lead_somewhere(path):
  for target in re.findall(r'\]\(([^)\s]+)\)', prose(path)):
    if target.startswith(('https://', 'http://')):
      continue
    file, _, anchor = target.partition('#')
    there = (path.parent / file).resolve() if file else path
    assert there.exists(), target
    assert not anchor or anchor in anchors(there), target


@docs
def test_files_that_are_named_exist(path):
  names = re.findall(r'`((?:[\w.]+/)*[\w.]+\.(?:py|sh|ipynb|yaml))`', prose(path))
  for name in names:
    if path.name != 'CHANGELOG.md' and pathlib.Path(name).stem not in WRITTEN:
      places = (ROOT, path.parent, ROOT / 'slim_jax')
      assert any((place / name).exists() for place in places), name


@docs
def test_names_that_are_mentioned_exist(path):
  if path.name != 'CHANGELOG.md':
    for name in re.findall(r'`(slim_jax(?:\.\w+)+)', prose(path)):
      pkgutil.resolve_name(name)


def test_modules_that_were_moved_are_where_the_changelog_says():
  rows = re.findall(r'^\| `[\w.]+` \| (.*) \|$', (ROOT / 'CHANGELOG.md').read_text(), flags=re.M)
  assert len(rows) > 40
  for name in re.findall(r'`([\w.]+)`', ' '.join(rows)):
    assert importlib.util.find_spec(f'slim_jax.{name}'), name


def test_the_citation_has_the_version():
  assert f'version: {slim_jax.__version__}\n' in (ROOT / 'CITATION.cff').read_text()
