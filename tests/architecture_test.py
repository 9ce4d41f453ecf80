"""How the code is laid out: imports point down, public things are documented."""

import ast
import configparser
import inspect
import re
import subprocess
import sys

import house

import slim_jax


def test_imports_point_down():
  assert house.climbs() <= house.CLIMBS, 'a room must import from lower floors only'


def test_every_room_has_a_floor():
  assert {house.room_of(path) for path in house.sources()} == set(house.FLOORS)


def test_no_function_hides_a_module():
  """`import package.name` gives the module, whatever the package offers under other names."""
  for path in house.PACKAGE.rglob('__init__.py'):
    modules = {other.stem for other in path.parent.glob('*.py')}
    package = '.'.join(path.parent.relative_to(house.ROOT).parts)
    for node in ast.parse(path.read_text()).body:
      if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        assert node.name not in modules, f'{package}.{node.name}'
      if isinstance(node, ast.ImportFrom) and node.module != package:
        hidden = modules & {alias.asname or alias.name for alias in node.names}
        assert not hidden, f'{package}: {hidden}'


def test_one_module_imports_what_jax_may_change():
  for path in house.sources():
    text = path.read_text()
    assert 'jax._src' not in text, path
    if path.name != 'jaxprs.py':
      assert not re.search(r'import.*jax\.extend|jax\.extend.*import', text), path


def test_files_are_short_and_documented():
  for path in house.sources():
    module = ast.parse(path.read_text())
    assert house.lines(path) < 500, path
    assert ast.get_docstring(module), f'{path} has no docstring'
    for node in module.body:
      if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
        assert ast.get_docstring(node), f'{node.name} in {path} has no docstring'


def test_public_api():
  for name in slim_jax.__all__:
    assert inspect.getdoc(getattr(slim_jax, name)), name


def test_options_are_keyword_only():
  for name in ('select_global', 'thin', 'plan'):
    for parameter in inspect.signature(getattr(slim_jax, name)).parameters.values():
      if parameter.default is not parameter.empty:
        assert parameter.kind is parameter.KEYWORD_ONLY, (name, parameter)


# What a program that only prunes a function should not have to import.
HEAVY = ('tensorflow', 'tensorflow_datasets', 'grain', 'orbax.checkpoint', 'matplotlib', 'sklearn')

LIGHT = """
import sys
import jax, jax.numpy as jnp, numpy as np
import slim_jax
import jax._src.xla_bridge as bridge
assert not bridge.backends_are_initialized()

def f(variables, x):
  norm, average = variables['params']['BatchNorm_0'], variables['batch_stats']['BatchNorm_0']
  x = x @ variables['params']['Dense_0']['kernel']
  x = (x - average['mean']) / jnp.sqrt(average['var'] + 1e-5) * norm['scale'] + norm['bias']
  return jax.nn.relu(x) @ variables['params']['Dense_1']['kernel']

ones = lambda *shape: np.ones(shape, np.float32)
variables = {
  'params': {
    'BatchNorm_0': {'scale': np.arange(4, dtype=np.float32), 'bias': ones(4)},
    'Dense_0': {'kernel': ones(3, 4)},
    'Dense_1': {'kernel': ones(4, 2)},
  },
  'batch_stats': {'BatchNorm_0': {'mean': ones(4), 'var': ones(4)}},
}
dead = slim_jax.select_global(variables, fraction=0.25)
plan = slim_jax.plan(f, variables, ones(1, 3), dead=dead)
thin, small = slim_jax.thin(f, plan), plan.slice(variables)
assert thin(small, ones(5, 3)).shape == (5, 2)
assert slim_jax.count(thin, small, ones(1, 3)).params < slim_jax.count(f, variables, ones(1, 3)).params
heavy = set(sys.argv[1].split(',')) & set(sys.modules)
assert not heavy, heavy
"""


def test_the_library_is_light():
  """Importing slim_jax starts no device; pruning a function imports no data sets or checkpoints."""
  command = [sys.executable, '-c', LIGHT, ','.join(HEAVY)]
  subprocess.run(command, check=True, cwd=house.ROOT)


def test_the_default_config_is_light():
  code = (
    'import sys, slim_jax.runs.default\n'
    'heavy = set(sys.argv[1].split(",")) & set(sys.modules)\n'
    'assert not heavy, heavy\n'
  )
  subprocess.run([sys.executable, '-c', code, ','.join(HEAVY)], check=True, cwd=house.ROOT)


def test_tests_import_no_tests():
  """What several of them need is in tests/helpers/."""
  for path in (house.ROOT / 'tests').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        assert not re.search(r'_test\b', ast.unparse(node)), path


def test_experiments_import_only_the_default_config():
  for path in (house.ROOT / 'configs').glob('*.py'):
    imports = [
      ast.unparse(node)
      for node in ast.walk(ast.parse(path.read_text()))
      if isinstance(node, (ast.Import, ast.ImportFrom))
    ]
    assert imports == ['from slim_jax.runs import default'], path


def test_every_package_is_installed():
  """setup.cfg lists them, since one of them is a folder of another name."""
  setup = configparser.ConfigParser()
  setup.read(house.ROOT / 'setup.cfg')
  listed = set(setup['options']['packages'].split())
  here = {'.'.join(path.parent.relative_to(house.ROOT).parts) for path in house.sources()}
  assert listed == here | {'slim_jax.configs'}
