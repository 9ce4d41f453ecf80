"""Commands run with an allocator that keeps its memory, where there is one and it helps."""

import os
import pathlib
import subprocess
import sys

import pytest

from slim_jax.runtime import allocator

ROOT = pathlib.Path(__file__).parents[1]
linux = pytest.mark.skipif(sys.platform != 'linux', reason='other systems have no LD_PRELOAD')


@linux
def test_the_library_is_loaded_first():
  environ = allocator.environment({'HOME': '/root', 'LD_PRELOAD': '/lib/other.so'}, accelerators=[])
  library, other = environ.pop('LD_PRELOAD').split(':')
  assert os.path.basename(library) == 'libmimalloc.so' and other == '/lib/other.so'
  assert environ == {'HOME': '/root', 'MIMALLOC_PURGE_DELAY': '-1'}


@linux
@pytest.mark.parametrize(
  'environ',
  [
    {'LD_PRELOAD': '/usr/lib/libjemalloc.so.2'},
    {'LD_PRELOAD': '/elsewhere/libmimalloc.so'},
    {'JAX_PLATFORMS': 'cuda,cpu'},
  ],
)
def test_a_choice_is_left_alone(environ):
  assert allocator.environment(environ, accelerators=[]) == environ


@linux
def test_settings_of_mimalloc_are_kept():
  environ = allocator.environment({'MIMALLOC_PURGE_DELAY': '10'}, accelerators=[])
  assert environ['MIMALLOC_PURGE_DELAY'] == '10' and environ['LD_PRELOAD']


@linux
def test_accelerators_need_none_unless_the_cpu_is_asked_for(tmp_path):
  driver = tmp_path / 'nvidiactl'
  driver.touch()
  assert not allocator.environment({}, accelerators=[str(driver)])
  assert allocator.environment({'JAX_PLATFORMS': 'cpu'}, accelerators=[str(driver)])['LD_PRELOAD']


@linux
def test_a_program_runs_with_it(tmp_path):
  """From its first line, with its arguments, and starting itself again changes nothing."""
  program = tmp_path / 'program.py'
  program.write_text(
    'import os, sys\n'
    'from slim_jax.runtime import allocator\n'
    "print('starts')\n"
    'allocator.restart()\n'
    "print('mimalloc' in open('/proc/self/maps').read(), sys.argv[1:])\n"
  )
  environ = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'LD_PRELOAD': '', 'PYTHONPATH': str(ROOT)}
  wrapped = ['-m', 'slim_jax.runtime.allocator', str(program), 'a b']
  by_itself = [str(program), 'a b']
  for arguments, starts in ((wrapped, 1), (by_itself, 2)):
    out = subprocess.check_output([sys.executable, *arguments], text=True, env=environ)
    assert out == 'starts\n' * starts + "True ['a b']\n"


def test_without_a_program_it_says_how_to_use_it():
  done = subprocess.run(
    [sys.executable, '-m', 'slim_jax.runtime.allocator'],
    cwd=ROOT,
    text=True,
    check=False,
    stderr=subprocess.PIPE,
  )
  assert done.returncode == 1 and done.stderr.startswith('usage: python -m')
