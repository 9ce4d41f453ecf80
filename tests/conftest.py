"""Eight CPU devices, no silent rank promotion, and `slow` tests only on request."""

import atexit
import contextlib
import gc
import os
import shutil
import tempfile

from helpers import compiling  # which does not import JAX

os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {compiling.flags(devices=8)}'

# A program that is compiled again is loaded instead: after `forget` below, and in the processes that
# tests start. Entries are not written atomically, so each worker of pytest-xdist has its own.
os.environ['JAX_COMPILATION_CACHE_DIR'] = tempfile.mkdtemp(prefix='slim_jax_tests_')
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0.05'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

from helpers import commands, configs
import jax
import pytest

# Traces make many objects that live long.
gc.set_threshold(100_000, 20, 20)
atexit.register(shutil.rmtree, os.environ['JAX_COMPILATION_CACHE_DIR'], ignore_errors=True)
jax.config.update('jax_platforms', 'cpu')
jax.config.update('jax_numpy_rank_promotion', 'raise')


def pytest_addoption(parser):
  parser.addoption('--slow', action='store_true', help='run the long tests too')
  parser.addoption('--programs', type=int, default=5000, help='how many random programs are drawn')


def pytest_configure(config):
  config.addinivalue_line('markers', 'slow: takes minutes; run with --slow')


def pytest_collection_modifyitems(config, items):
  if not config.getoption('--slow'):
    for item in items:
      if 'slow' in item.keywords:
        item.add_marker(pytest.mark.skip(reason='long: run with --slow'))


@pytest.fixture(autouse=True, scope='module')
def forget():
  """Frees what a file has compiled: all files together would take gigabytes."""
  yield
  jax.clear_caches()


@pytest.fixture
def x64():
  """Double precision within one test."""
  with _double():
    yield


@pytest.fixture(scope='module')
def x64_module():
  """Double precision within one file, for fixtures that last as long."""
  with _double():
    yield


@contextlib.contextmanager
def _double():
  jax.config.update('jax_enable_x64', True)
  yield
  jax.config.update('jax_enable_x64', False)


@pytest.fixture(scope='session')
def digits_dir(tmp_path_factory):
  """The directory in which the digits are prepared, once per worker."""
  from slim_jax import data  # takes seconds

  directory = str(tmp_path_factory.mktemp('tfds'))
  data.load('digits', data_dir=directory, split='train')
  return directory


@pytest.fixture(scope='session')
def two_passes(digits_dir, tmp_path_factory):
  """Config, directory and records of a complete run of two passes. Change a copy only."""
  from slim_jax.runs import pipeline  # takes seconds

  config = configs.load('digits', **commands.TINY, data_dir=digits_dir)
  workdir = tmp_path_factory.mktemp('two_passes')
  return config, workdir, pipeline.run(config, workdir)
