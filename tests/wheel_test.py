"""The wheel has all that the clone has; slim-jax and the names of experiments work from anywhere."""

import configparser
import os
import re
import subprocess
import sys
import zipfile

from helpers import commands, configs
import pytest

from slim_jax import cli, command
from slim_jax.runs import experiments
from slim_jax.runs.errors import ConfigError

ROOT = commands.ROOT

BUILD = """
import sys
from setuptools import build_meta
print(build_meta.build_wheel(sys.argv[1]))
"""


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
  """The wheel of a copy of the sources, so that no build folder is left here."""
  source, target = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('dist')
  names = ['slim_jax', 'configs', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE']
  subprocess.run(['cp', '-r', *(str(ROOT / name) for name in names), str(source)], check=True)
  build = [sys.executable, '-W', 'ignore', '-c', BUILD, str(target)]
  done = subprocess.run(build, cwd=source, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  (path,) = target.glob('*.whl')
  return path


def test_the_wheel_has_every_file(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  for path in (ROOT / 'slim_jax').rglob('*'):
    if path.suffix in ('.py', '.j2', '.typed') and '__pycache__' not in path.parts:
      assert str(path.relative_to(ROOT)) in names, path
  for name in configs.NAMES:
    assert f'slim_jax/configs/{name}.py' in names
  assert not any(name.startswith(('tests/', 'configs/', 'launch/')) for name in names)


def test_the_wheel_works_without_the_clone(wheel, tmp_path):
  """The library and `slim-jax`, unpacked, where nothing else of slim_jax can be found."""
  zipfile.ZipFile(wheel).extractall(tmp_path / 'site')
  (tmp_path / 'here').mkdir()
  code = (
    'import sys; sys.path = [p for p in sys.path if p not in ("", sys.argv[1])]; del sys.argv[1]\n'
    'import slim_jax, slim_jax.cli\n'
    f'assert slim_jax.__file__.startswith({str(tmp_path)!r}), slim_jax.__file__\n'
    'slim_jax.cli.main()'
  )
  environ = {**os.environ, 'PYTHONPATH': str(tmp_path / 'site')}
  run = [
    *(sys.executable, '-c', code, str(ROOT), 'train'),
    *('--config=mlp-mnist', '--workdir=runs/a', '--config.passes=0'),
  ]
  done = subprocess.run(
    run, env=environ, cwd=tmp_path / 'here', capture_output=True, text=True, check=False
  )
  assert done.returncode == 1 and 'config.passes=0 must be at least 1' in done.stderr, done.stderr


def requirements(wheel):
  archive = zipfile.ZipFile(wheel)
  (name,) = (name for name in archive.namelist() if name.endswith('METADATA'))
  found = re.findall(r'^Requires-Dist: ([\w-]+)\S*(.*)$', archive.read(name).decode(), re.M)
  return {package for package, rest in found if 'extra ==' not in rest}


def test_the_library_needs_four_packages(wheel):
  assert requirements(wheel) == {'jax', 'numpy', 'optax', 'scipy'}


BLOCKED = """
import importlib.abc, sys
class Block(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path=None, target=None):
    if name.partition('.')[0] in {blocked!r}:
      raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)
sys.meta_path.insert(0, Block())
"""


def without_the_extra():
  """Code that hides the packages of the extra `train`."""
  setup = configparser.ConfigParser()
  setup.read(ROOT / 'setup.cfg')
  lines = setup['options.extras_require']['train'].split()
  names = {re.split(r'[\[><=]', line)[0].lower().replace('-', '_') for line in lines}
  modules = {'pillow': 'PIL', 'scikit_learn': 'sklearn', 'orbax_checkpoint': 'orbax'}
  needed_by_optax = {'absl_py'}
  return BLOCKED.format(blocked=sorted({modules.get(n, n) for n in names - needed_by_optax}))


def test_the_library_works_without_the_extra():
  code = without_the_extra() + (
    'import jax.numpy as jnp, slim_jax\n'
    'from slim_jax import costs, cpu, selection, sparsity\n'
    "variables = {'BatchNorm_0': {'scale': jnp.arange(4.), 'bias': jnp.ones(4)}}\n"
    "f = lambda v, x: (x * v['BatchNorm_0']['scale'] + v['BatchNorm_0']['bias']).sum(-1)\n"
    'dead = slim_jax.select_global(variables, fraction=0.25)\n'
    'plan = slim_jax.plan(f, variables, jnp.ones((2, 4)), dead=dead)\n'
    "assert plan.slice(variables)['BatchNorm_0']['scale'].shape == (2,)\n"
    'try:\n'
    "  slim_jax.load('nowhere')\n"
    'except ModuleNotFoundError as error:\n'
    "  assert 'slim_jax[train]' in str(error), error\n"
    'else:\n'
    '  raise AssertionError\n'
  )
  subprocess.run([sys.executable, '-c', code], cwd=ROOT, check=True)


# What the consumer of an export has: JAX and flatbuffers, and nothing of this repository.

CONSUME = """
import sys
import jax, numpy as np
content = open(sys.argv[1], 'rb').read()
images = np.zeros((3, 2, 2, 1), np.uint8)
print(np.asarray(jax.export.deserialize(content).call(images)).tolist())
assert not {'slim_jax', 'flax', 'optax', 'absl'} & set(sys.modules), sys.modules
"""


def test_a_stablehlo_file_needs_jax_and_flatbuffers(tmp_path):
  from slim_jax.export import stablehlo

  path = tmp_path / 'network.stablehlo'
  path.write_bytes(stablehlo.convert(lambda x: x.sum((1, 2, 3)) + 1.0, (2, 2, 1)))
  blocked = BLOCKED.format(blocked=['slim_jax', 'flax', 'optax', 'absl', 'orbax', 'ml_collections'])
  done = subprocess.run(
    [sys.executable, '-c', f'{blocked}{CONSUME}', str(path)],
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.stdout == '[1.0, 1.0, 1.0]\n', done.stderr


# The command line.


def test_experiments_are_found_by_name_and_path(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert set(experiments.names()) == set(configs.NAMES)
  want = str(ROOT / 'configs' / 'cifar10_vgg19.py')
  for text in ('cifar10_vgg19', 'vgg19-cifar10', 'cifar10-vgg19'):
    assert experiments.find(text) == want
  assert experiments.find('digits:argument').endswith('digits.py:argument')
  (tmp_path / 'digits').write_text('mine')
  assert experiments.find('digits') == 'digits'
  with pytest.raises(ConfigError, match="did you mean 'mnist_mlp'.*cifar10_vgg19"):
    experiments.find('configs/mnist_mlq.py')
  assert command.with_found_config(['x', '--config=mnist-mlp', '--config', 'mnist_mlp'])[1:] == [
    f'--config={ROOT}/configs/mnist_mlp.py',
    '--config',
    f'{ROOT}/configs/mnist_mlp.py',
  ]


def test_programs_are_modules(capsys):
  assert set(cli.MODULES) == {'train', 'look', 'sweep', 'report', 'export', 'latency'}
  for arguments, code in ([], 2), (['--help'], 0):
    with pytest.raises(SystemExit) as end:
      cli.main(arguments)
    assert end.value.code == code
    assert all(f'slim-jax {name}' in capsys.readouterr().out for name in ['train'])
  with pytest.raises(SystemExit, match="no program 'trian'"):
    cli.main(['trian'])


def test_what_is_missing_is_named():
  code = without_the_extra() + ("from slim_jax import cli\ncli.main(['report', '--workdir=x'])\n")
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
  )
  assert done.returncode == 1 and "pip install 'slim_jax[train]'" in done.stderr, done.stderr
  assert 'Traceback' not in done.stderr
