"""Machines without locks, memory or file handles, and links in the way of files."""

import errno
import fcntl
import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
import sys

from etils import epath
from helpers import commands
import numpy as np
import pytest

from slim_jax.report import page
from slim_jax.runs import events
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError
from slim_jax.runtime import files
from slim_jax.training import checkpoint


@pytest.fixture
def run(tmp_path):
  (tmp_path / 'run').mkdir()
  return Workdir(epath.Path(tmp_path / 'run'))


@pytest.fixture
def foreign(tmp_path):
  """A directory of somebody else, with files that have names of ours."""
  directory = tmp_path / 'foreign'
  for name in ('index.html', 'a.svg', 'events.out.tfevents.1', '0/x', 'lock', 'stages.json'):
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text('foreign')
  return directory


def contents(directory):
  return {path: path.read_text() for path in directory.rglob('*') if path.is_file()}


# -- Locks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('number', [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_used_with_a_warning(number, run, caplog):
  def flock(*_):
    raise OSError(number, os.strerror(number))

  with run.locked(flock=flock):
    assert (run.path / 'lock').read_text()
  assert 'this file system has no locks' in caplog.text


def test_any_other_failure_of_a_lock_is_an_error(run):
  def flock(*_):
    raise OSError(errno.EIO, 'broken')

  with pytest.raises(WorkdirError, match='cannot write in the workdir'):
    with run.locked(flock=flock):
      pass


def test_the_lock_is_held_by_one(run):
  with run.locked():
    with pytest.raises(WorkdirError, match='another run is at work'):
      with run.locked():
        pass
    with open(run.path / 'lock') as file, pytest.raises(BlockingIOError):
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  with run.locked():
    pass


# -- Links --------------------------------------------------------------------------------------------


@pytest.mark.parametrize('name', ['lock', 'checkpoints', 'tensorboard', 'report'])
def test_a_run_does_not_begin_among_links(name, run, foreign):
  os.symlink(foreign / name if name == 'lock' else foreign, run.path / name)
  before = contents(foreign)
  with pytest.raises(files.LinkError, match=f'{name} is a link to {foreign}'):
    with run.locked():
      pass
  assert contents(foreign) == before


def write_checkpoint(run):
  with checkpoint.open_manager(run.checkpoints(Stage(1, 'sparse')), keep=1) as manager:
    checkpoint.save(manager, 1, {'w': np.zeros(1)}, seconds=0.0)


def write_events(run):
  with events.replace(run.events(Stage(1, 'sparse'))):
    pass


def write_page(run):
  (run.path / 'stages.json').write_text('[]')
  page.write(run.path)


@pytest.mark.parametrize(
  'link, write',
  [
    ('report', write_page),
    ('report', lambda run: files.write(run.path / 'report' / 'index.html', 'ours')),
    ('tensorboard', write_events),
    ('tensorboard/1-sparse', write_events),
    ('checkpoints/1-sparse', write_checkpoint),
    ('checkpoints/1-sparse', lambda run: run.discard(Stage(1, 'sparse'))),
    ('starts.jsonl', lambda run: run.add_start({})),
  ],
)
def test_nothing_is_written_or_deleted_through_a_link(link, write, run, foreign):
  path = run.path / link
  path.parent.mkdir(parents=True, exist_ok=True)
  os.symlink(foreign / 'stages.json' if link.endswith('.jsonl') else foreign, path)
  before = contents(foreign)
  with pytest.raises(files.LinkError, match='is a link to'):
    write(run)
  assert contents(foreign) == before


def test_a_link_in_the_place_of_a_file_is_replaced(run, foreign):
  before = contents(foreign)
  for name in ('stages.json', 'stages.json.part'):
    os.symlink(foreign / 'stages.json', run.path / name)
  run.write_records([])
  assert json.loads((run.path / 'stages.json').read_text()) == []
  assert not os.path.islink(run.path / 'stages.json') and contents(foreign) == before


def test_a_workdir_may_itself_be_a_link(run, tmp_path):
  os.symlink(run.path, tmp_path / 'link')
  here = Workdir(files.path_of(tmp_path / 'link'))
  with here.locked():
    here.write_records([])
  assert (run.path / 'stages.json').exists()


# -- Memory and file handles -------------------------------------------------------------------------

# A command in which something is exhausted.
EXHAUSTED = """
import resource, sys
from absl import flags
from slim_jax import command
import jax, jax.numpy as jnp
from slim_jax.training import checkpoint
import numpy as np

def main():
  what = sys.argv.pop()
  if what == 'files':
    with checkpoint.open_manager(flags.FLAGS.workdir, keep=9) as manager:
      resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
      held = []
      try:
        while True:
          held.append(open('/dev/null'))
      except OSError:
        checkpoint.restore(manager, {'w': np.zeros(2, np.int32)})
  elif what == 'handles':
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
    held = [open('/dev/null') for _ in range(100)]
  elif what == 'memory':
    bytearray(1 << 60)
  elif what == 'device':
    jax.block_until_ready(jnp.zeros(1 << 50, jnp.int8))

what = sys.argv.pop()
argv = sys.argv
command.run(lambda: (sys.argv.append(what), main()), needs_config=False)
"""


@pytest.mark.parametrize(
  'what, message',
  [
    ('files', r'CheckpointError: cannot read the checkpoint .*Too many open files'),
    ('handles', r'OSError: too many files are open \(ulimit -n\)'),
    pytest.param('memory', 'MemoryError: out of memory', marks=pytest.mark.slow),
    pytest.param('device', 'JaxRuntimeError: out of memory; --config', marks=pytest.mark.slow),
  ],
)
def test_exhaustion_ends_with_a_line_and_leaves_checkpoints_alone(what, message, tmp_path):
  with checkpoint.open_manager(tmp_path, keep=9) as manager:
    for step in (1, 2):
      checkpoint.save(manager, step, {'w': np.zeros(2, np.int32)}, seconds=0.0)
  command = [sys.executable, '-c', EXHAUSTED, f'--workdir={tmp_path}', '--allocator=system', what]
  process = commands.start(command)
  output, _ = process.communicate()
  assert process.returncode == 1, output
  assert re.search(message, output), output
  assert 'Traceback' not in output, output
  assert sorted(path.name for path in tmp_path.iterdir()) == ['1', '2']


# -- Installation --------------------------------------------------------------------------------------


def test_an_interrupted_installation_mends_itself(tmp_path):
  """At each step of the way; pip itself is a stub that says how it was called."""
  clone = tmp_path / 'clone'
  shutil.copytree(commands.ROOT / 'launch', clone / 'launch')
  shutil.copy(commands.ROOT / 'setup.cfg', clone)
  python = tmp_path / 'python3'
  python.write_text(
    f"""#!/bin/bash
if [[ $* == '-m venv '* ]]; then
  mkdir -p "$3/bin" "$3/lib/python3.11/site-packages/pip"
  cp "$0" "$3/bin/python"
  touch "$3/lib/python3.11/site-packages/pip/whole"
elif [[ $* == '-m pip install '* ]]; then
  [[ -e ${{0%/bin/*}}/lib/python3.11/site-packages/pip/whole ]] || {{ echo 'half of pip' >&2; exit 1; }}
  echo "$@" >> "{tmp_path}/calls"
  [[ -e "{tmp_path}/interrupt" ]] && kill -KILL $PPID
  exit 0
else
  exec {sys.executable} "$@"
fi
"""
  )
  python.chmod(python.stat().st_mode | stat.S_IXUSR)
  environ = {**os.environ, 'PYTHON': str(python), 'VENV': str(tmp_path / 'venv')}

  def install():
    return subprocess.run(
      ['bash', clone / 'launch/install.sh'], env=environ, capture_output=True, text=True
    )

  def calls():
    path = tmp_path / 'calls'
    return path.read_text().splitlines() if path.exists() else []

  assert install().returncode == 0, install().stderr
  assert len(calls()) == 1 and '--ignore-installed' not in calls()[0]
  assert install().returncode == 0 and len(calls()) == 1  # nothing left to do
  (tmp_path / 'venv/setup.cfg').unlink()
  (tmp_path / 'interrupt').touch()
  assert install().returncode == -signal.SIGKILL
  (tmp_path / 'interrupt').unlink()
  pathlib.Path(tmp_path / 'venv/lib/python3.11/site-packages/pip/whole').unlink()
  mended = install()
  assert mended.returncode == 0, mended.stderr
  assert 'was interrupted, so everything is installed again' in mended.stdout
  assert '--ignore-installed' in calls()[-1] and len(calls()) == 3
  assert install().returncode == 0 and len(calls()) == 3
