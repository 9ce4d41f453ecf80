"""How the code is laid out: imports point down, public things are documented."""

import ast
import inspect
import pathlib
import re
import subprocess
import sys

import pytest

import slim_jax

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / 'slim_jax'

# Each floor may import from the floors below it, and a folder from itself.
FLOORS = [
  {'errors', 'jaxprs', 'tree'},
  {'batch_norms', 'cpu'},
  {'channels', 'sparsity', 'runtime'},
  {'costs', 'models', 'display'},
  {'selection', 'data'},
  {'', 'training'},  # '' is slim_jax itself: the library without the program
  {'runs'},
  {'command'},
  {'report', 'export'},
  {'main', 'look', 'sweep', 'latency'},
]
FLOOR = {room: n for n, floor in enumerate(FLOORS) for room in floor}
LIBRARY = {
  '',
  'errors',
  'jaxprs',
  'tree',
  'batch_norms',
  'cpu',
  'channels',
  'sparsity',
  'costs',
  'models',
  'selection',
}
# The package offers `load`, which it finds in the program when it is called.
LAZY = {('', 'runs')}

files = pytest.mark.parametrize(
  'path', sorted(PACKAGE.rglob('*.py')), ids=lambda path: str(path.relative_to(ROOT))
)


def room(path):
  parts = path.relative_to(PACKAGE).with_suffix('').parts
  return '' if parts == ('__init__',) else parts[0]


def imported(path):
  """Rooms that a file imports."""
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      names = (
        [f'slim_jax.{alias.name}' for alias in node.names]
        if node.module == 'slim_jax'
        else [node.module]
      )
    else:
      continue
    for name in names:
      if name.split('.')[0] == 'slim_jax':
        yield name.split('.')[1] if '.' in name else ''


@files
def test_imports_point_down(path):
  here = room(path)
  for there in imported(path):
    if there != here and (here, there) not in LAZY:
      assert FLOOR[there] < FLOOR[here], f'{here} must not import {there}'


@files
def test_the_library_imports_nothing_of_the_program(path):
  if room(path) in LIBRARY:
    outside = {there for there in imported(path) if (room(path), there) not in LAZY} - LIBRARY
    assert not outside, f'{path} imports {outside}'


@files
def test_jax_extend_has_one_door(path):
  if path.name != 'jaxprs.py':
    assert 'jax.extend' not in ''.join(
      line for line in path.read_text().splitlines(keepends=True) if 'import' in line
    )
  assert 'jax._src' not in path.read_text()


@files
def test_files_are_small_and_say_what_they_are(path):
  assert len(path.read_text().splitlines()) < 500
  assert ast.get_docstring(ast.parse(path.read_text())), 'no module docstring'


@files
def test_public_things_are_documented(path):
  for node in ast.parse(path.read_text()).body:
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith('_'):
      assert ast.get_docstring(node), f'{node.name} has no docstring'


def test_public_api():
  for name in slim_jax.__all__:
    assert inspect.getdoc(getattr(slim_jax, name)), name


def test_options_are_keyword_only():
  for name in ('select_global', 'thin', 'plan'):
    for parameter in inspect.signature(getattr(slim_jax, name)).parameters.values():
      if parameter.default is not parameter.empty:
        assert parameter.kind is parameter.KEYWORD_ONLY, (name, parameter)


def test_the_library_is_light():
  """Importing slim_jax starts no device and loads neither data sets nor checkpoints."""
  code = (
    'import sys, slim_jax\n'
    'heavy = {"tensorflow", "tensorflow_datasets", "grain", "orbax.checkpoint", "matplotlib",'
    ' "sklearn"}\n'
    'assert not heavy & set(sys.modules), heavy & set(sys.modules)\n'
    'from jax.extend import backend\n'
    'import jax._src.xla_bridge as bridge\n'
    'assert not bridge.backends_are_initialized()\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_tests_import_no_tests():
  """What several of them need is in tests/helpers/."""
  for path in (ROOT / 'tests').rglob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        assert not re.search(r'_test\b', ast.unparse(node)), path


def test_configs_import_nothing_of_ours():
  for path in (ROOT / 'configs').glob('*.py'):
    for node in ast.walk(ast.parse(path.read_text())):
      if isinstance(node, (ast.Import, ast.ImportFrom)):
        assert 'ml_collections' in ast.unparse(node), path
