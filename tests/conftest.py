"""Eight CPU devices, no silent rank promotion, and `slow` tests only on request."""

import os

# Tests compile much and run little: unoptimised code halves their time.
os.environ['XLA_FLAGS'] = (
  os.environ.get('XLA_FLAGS', '')
  + ' --xla_force_host_platform_device_count=8'
  + ' --xla_backend_optimization_level=0'
)

from helpers import commands, configs
import jax
import pytest

jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='run the long tests too')


def pytest_configure(config):
  config.addinivalue_line('markers', 'slow: takes minutes; run with --slow')


def pytest_collection_modifyitems(config, items):
  if not config.getoption('--slow'):
    for item in items:
      if 'slow' in item.keywords:
        item.add_marker(pytest.mark.skip(reason='long: run with --slow'))


@pytest.fixture(autouse=True, scope='module')
def forget():
  """What one file has compiled is of no use to the next, and all together takes gigabytes."""
  yield
  jax.clear_caches()


@pytest.fixture
def x64():
  """Double precision within one test."""
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


@pytest.fixture(scope='session')
def digits_dir(tmp_path_factory):
  """Where the digits are prepared."""
  return str(tmp_path_factory.mktemp('tfds'))


@pytest.fixture(scope='session')
def two_passes(digits_dir, tmp_path_factory):
  """Config, directory and records of a complete run of two passes; copy it to change it."""
  from slim_jax.runs import pipeline  # takes seconds

  config = configs.load('digits', **commands.TINY, data_dir=digits_dir)
  workdir = tmp_path_factory.mktemp('two_passes')
  return config, workdir, pipeline.run(config, workdir)
