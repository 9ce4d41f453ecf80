"""Several processes on this machine that train together; and what happens when one fails."""

import json
import pathlib
import re
import signal
import socket
import sys
import time

from helpers import commands, compiling, pages
import numpy as np
import pytest

from slim_jax.runtime import processes
from slim_jax.training import checkpoint

TWO_DEVICES = compiling.flags(2)
FOUR_DEVICES = compiling.flags(4)

# Each step is an epoch, so that metrics.jsonl has the loss of every step. With larger learning
# rates rounding grows tenfold within a few steps.
STEPS = {
  **commands.TINY,
  'train_split': 'train[:64]',
  'passes': 1,
  'baseline_epochs': 0,
  'train.epochs': 20,
  'train.learning_rate': 0.01,
  'finetune.epochs': 1,
  'checkpoint_every_epochs': 20,
  'eval_every_epochs': 0,
  'recalibrate_batches': 1,
  'prune.target': 'macs:0.8',
  'cross_replica_batch_norm': True,
}


@pytest.fixture(scope='module')
def venv(tmp_path_factory):
  return commands.make_venv(tmp_path_factory.mktemp('venv'))


def together(venv, count, *flags, xla=TWO_DEVICES):
  """Starts a run of several processes."""
  return commands.start(
    ['bash', 'launch/processes.sh', str(count), *flags], VENV=str(venv), XLA_FLAGS=xla
  )


def losses(workdir):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [line['loss'] for line in lines if line['stage'] == 'sparse']


def test_two_processes_of_two_devices_are_as_one_device(venv, tmp_path):
  fields = {**STEPS, 'data_dir': str(tmp_path / 'tfds')}
  output = commands.finish(together(venv, 2, *commands.flags_of(tmp_path / 'two', **fields)))
  assert output.count('finetuned, pass 1: accuracy') == 1  # the first process speaks
  assert 'report: ' in output and 'no report' not in output
  pages.check(tmp_path / 'two')
  commands.run(commands.main(tmp_path / 'one', **fields))
  a, b = losses(tmp_path / 'one'), losses(tmp_path / 'two')
  assert len(a) == 20 and a[-1] < a[0]
  np.testing.assert_allclose(b, a, rtol=1e-5)
  one, two = (
    json.loads((tmp_path / name / 'summary.json').read_text())['stages'] for name in ('one', 'two')
  )
  for here, there in zip(one, two, strict=True):
    assert here['macs'] == there['macs']
    assert here['loss'] == pytest.approx(there['loss'], rel=1e-4)


@pytest.mark.slow
def test_terminated_processes_save_the_same_step_and_continue(venv, tmp_path):
  """After SIGTERM the run continues as one process with other devices."""
  fields = {
    **commands.LONG,
    'data_dir': str(tmp_path / 'tfds'),
    'train.epochs': 10**6,
    'checkpoint_every_epochs': 10**6,
    'log_every_steps': 1,
  }
  workdir = tmp_path / 'run'
  process = together(venv, 2, *commands.flags_of(workdir, **fields))
  while not (workdir / 'metrics.jsonl').exists():
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.01)
  process.send_signal(signal.SIGTERM)
  output = commands.finish(process, code=143)
  steps = set(re.findall(r'stopped at step (\d+), as SIGTERM', output))
  assert len(steps) == 1, output
  directory = workdir / 'checkpoints' / '1-sparse'
  assert int(checkpoint.read(directory)['step']) == int(*steps)
  again = commands.start(commands.main(workdir, **fields), XLA_FLAGS=FOUR_DEVICES)
  for line in again.stdout:
    if f'continues from step {int(*steps)}' in line:
      break
  again.kill()
  with again:
    assert again.wait() == -signal.SIGKILL  # not by itself


def test_one_that_fails_ends_all(venv, tmp_path):
  """The second process has an invalid config."""
  python = venv / 'bin' / 'python'
  other = tmp_path / 'venv' / 'bin' / 'python'
  commands.make_venv(tmp_path / 'venv')
  other.write_text(
    f'#!/bin/sh\nif [ "$JAX_PROCESS_ID" = 1 ]\n'
    f'then exec {python} "$@" --config.passes=0\n'
    f'else exec {python} "$@"\nfi\n'
  )
  fields = {**STEPS, 'data_dir': str(tmp_path / 'tfds')}
  process = together(tmp_path / 'venv', 2, *commands.flags_of(tmp_path / 'run', **fields))
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 1
  assert 'process 1 of 2: ConfigError' in output and 'passes=0 must be at least 1' in output


def test_processes_need_the_same_directory(venv, tmp_path):
  commands.make_venv(tmp_path / 'venv')
  (tmp_path / 'venv' / 'bin' / 'python').write_text(
    f'#!/bin/sh\nexec {venv}/bin/python "$@" --workdir={tmp_path}/run$JAX_PROCESS_ID\n'
  )
  process = together(tmp_path / 'venv', 2, *commands.flags_of('', **STEPS))
  output, _ = process.communicate(timeout=60)
  assert process.returncode == 1
  assert re.search(r'process 1 of 2: WorkdirError: .*run1 is not the directory that', output)


@pytest.mark.parametrize(
  'environ, message',
  [
    (
      {'JAX_NUM_PROCESSES': '2'},
      'JAX_NUM_PROCESSES is set and JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID is not',
    ),
    (
      {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '2'},
      'JAX_PROCESS_ID=2',
    ),
    (
      {'JAX_COORDINATOR_ADDRESS': 'a:1', 'JAX_NUM_PROCESSES': 'two', 'JAX_PROCESS_ID': '0'},
      'JAX_NUM_PROCESSES=two',
    ),
  ],
)
def test_incomplete_environment_is_refused(environ, message):
  with pytest.raises(processes.ProcessError, match=message):
    processes.join(environ=environ)


def join(address, number, **environ):
  """Starts a process that joins another one and does nothing else."""
  return commands.start(
    [sys.executable, '-c', 'from slim_jax.runtime import processes; processes.join()'],
    JAX_COORDINATOR_ADDRESS=address,
    JAX_NUM_PROCESSES='2',
    JAX_PROCESS_ID=str(number),
    **environ,
  )


@pytest.mark.parametrize('number', [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_alone_ends_with_a_reason(number):
  process = join(f'localhost:{free_port()}', number, SLIM_JAX_START_TIMEOUT='2')
  output = commands.finish(process, code=1)
  assert 'not all processes have reached localhost:' in output and 'after 2 s' in output


def test_the_first_process_listens_where_it_is_named():
  """It does not open its port to the network for an address that is of this machine alone."""
  port = free_port()
  with join(f'127.0.0.1:{port}', 0) as process:
    while not listens(port):
      assert process.poll() is None, process.stdout.read()
      time.sleep(0.05)
    # 127.0.0.1 as Linux writes it, or within an address of version 6.
    assert all(address.endswith('0100007F') for address in listens(port))
    process.kill()


@pytest.mark.parametrize('host', ['8.8.8.8', 'no.such.host.invalid', ''])
def test_an_address_of_another_machine_is_refused(host):
  environ = {'JAX_COORDINATOR_ADDRESS': f'{host}:{free_port()}'}
  environ |= {'JAX_NUM_PROCESSES': '2', 'JAX_PROCESS_ID': '0'}
  with pytest.raises(processes.ProcessError, match=f'process 0 cannot listen at .*{host}:'):
    processes.join(environ=environ)


# Restores from a directory of its own, as if it saw another state of a network file system.
RESTORE = """
import sys
import numpy as np
from slim_jax.runtime import processes
from slim_jax.training import checkpoint
processes.join()
for directory in sys.argv[1:]:
  with checkpoint.open_manager(directory, keep=9) as manager:
    try:
      restored = checkpoint.restore(manager, {'w': np.zeros(2, np.int32)})
      print('restored', restored.state['w'][0], flush=True)
    except processes.ProcessError as error:
      print(error, flush=True)
"""


def test_processes_restore_the_same_step(tmp_path):
  """The second does not see the newest checkpoint; in the second case it sees others."""
  seen = {('late', 0): (1, 2), ('late', 1): (1,), ('other', 0): (5,), ('other', 1): (5,)}
  for (name, number), steps in seen.items():
    with checkpoint.open_manager(tmp_path / f'{name}{number}', keep=9) as manager:
      for step in steps:
        value = step + number * (name == 'other')
        checkpoint.save(manager, step, {'w': np.full(2, value, np.int32)}, seconds=0.0)
  address = f'localhost:{free_port()}'
  both = [
    commands.start(
      [
        sys.executable,
        '-c',
        RESTORE,
        *(f'{tmp_path}/{name}{number}' for name in ('late', 'other')),
      ],
      JAX_COORDINATOR_ADDRESS=address,
      JAX_NUM_PROCESSES='2',
      JAX_PROCESS_ID=str(number),
      SLIM_JAX_STEP_TIMEOUT='60',
    )
    for number in range(2)
  ]
  for output in (commands.finish(process) for process in both):
    assert re.findall(r'restored \d+', output) == ['restored 1'], output
    assert re.search(r'do not agree on the checkpoint .*other\d/5: 1 differs', output), output
  assert (tmp_path / 'late0' / '2.unreadable').exists()


def free_port():
  with socket.socket() as one:
    one.bind(('localhost', 0))
    return one.getsockname()[1]


def listens(port):
  """Returns the addresses at which somebody on this machine listens at a port."""
  rows = [
    line.split()
    for name in ('tcp', 'tcp6')
    for line in pathlib.Path(f'/proc/net/{name}').read_text().splitlines()[1:]
  ]
  here = (row[1].split(':') for row in rows if row[3] == '0A')
  return {address for address, number in here if int(number, 16) == port}


@pytest.mark.slow
def test_processes_with_different_configs_end_with_a_reason(venv, tmp_path):
  """Their flags differ: each would wait for the other."""
  other = tmp_path / 'venv'
  commands.make_venv(other)
  (other / 'bin' / 'python').write_text(
    f'#!/bin/sh\nexec {venv}/bin/python "$@" --config.seed=1$JAX_PROCESS_ID\n'
  )
  fields = {**STEPS, 'data_dir': str(tmp_path / 'tfds')}
  process = together(other, 2, *commands.flags_of(tmp_path / 'run', **fields))
  output, _ = process.communicate(timeout=120)
  assert process.returncode == 1
  assert (
    'ProcessError: the processes do not agree on the config: 1 differs from the first' in output
  )


@pytest.mark.parametrize(
  'environ, joins',
  [
    ({}, None),
    ({'SLURM_PROCID': '0', 'SLURM_NTASKS': '4'}, None),  # a shell in an allocation
    ({'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '1'}, None),
    ({'SLURM_PROCID': '0', 'SLURM_STEP_NUM_TASKS': '4'}, {'initialization_timeout': 360}),
    (
      {'JAX_COORDINATOR_ADDRESS': 'host:1', 'JAX_NUM_PROCESSES': '4', 'JAX_PROCESS_ID': '3'},
      {
        'coordinator_address': 'host:1',
        'num_processes': 4,
        'process_id': 3,
        'initialization_timeout': 360,
      },
    ),
    (
      {
        'JAX_COORDINATOR_ADDRESS': 'localhost:0',
        'JAX_NUM_PROCESSES': '4',
        'JAX_PROCESS_ID': '0',
        'SLIM_JAX_START_TIMEOUT': '10',
      },
      {
        'coordinator_address': 'localhost:0',
        'num_processes': 4,
        'process_id': 0,
        'initialization_timeout': 70,
        'coordinator_bind_address': 'localhost:0',
      },
    ),
  ],
)
def test_environment_tells_whether_to_join(environ, joins, monkeypatch):
  calls = []
  monkeypatch.setattr(processes.jax.distributed, 'initialize', lambda **given: calls.append(given))
  processes.join(environ=environ)
  assert calls == ([] if joins is None else [joins])
  processes.join(multihost=True, environ=environ)
  assert len(calls) == 1 + (joins is not None)  # a pod slice is asked for
