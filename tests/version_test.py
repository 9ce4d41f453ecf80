"""The version is written once, in `slim_jax.__version__`, and the citation repeats it."""

import ast
import configparser
import pathlib
import re

import slim_jax

ROOT = pathlib.Path(__file__).parents[1]


def setup():
  parser = configparser.ConfigParser()
  parser.read(ROOT / 'setup.cfg')
  return parser


def test_setup_cfg_takes_it_from_the_package():
  assert setup()['metadata']['version'] == 'attr: slim_jax.__version__'


def test_it_can_be_read_without_importing_the_package():
  """setuptools reads a literal from the source; for anything else it would have to import JAX."""
  source = (ROOT / 'slim_jax' / '__init__.py').read_text()
  (value,) = (
    node.value
    for node in ast.parse(source).body
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == '__version__'
  )
  assert ast.literal_eval(value) == slim_jax.__version__


def test_the_citation_names_it():
  (version,) = re.findall(r'^version: (.*)$', (ROOT / 'CITATION.cff').read_text(), re.M)
  assert version == slim_jax.__version__


def test_the_changelog_starts_with_it():
  version, *_ = re.findall(r'^## (\d[\d.]*)', (ROOT / 'CHANGELOG.md').read_text(), re.M)
  assert version == slim_jax.__version__


def test_the_types_are_installed():
  assert 'py.typed' in setup()['options.package_data']['slim_jax']
  assert (ROOT / 'slim_jax' / 'py.typed').exists()
