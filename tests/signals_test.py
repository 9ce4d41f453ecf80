"""Signals: training saves first, everything else ends at once, and never with a traceback."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

from helpers import commands
import pytest

from slim_jax.runs import pipeline
from slim_jax.runtime import interrupt
from slim_jax.training import checkpoint

# A shell that starts the tests in the background has them ignore SIGINT.
AS_FROM_A_TERMINAL = [
  sys.executable,
  '-c',
  'import os, signal, sys\n'
  'for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):\n'
  '  signal.signal(number, signal.SIG_DFL)\n'
  'os.execv(sys.argv[1], sys.argv[1:])',
]

# Notes signals, and says how many.
NOTING = """
import sys, time
from slim_jax.runtime import interrupt
interrupt.end_at_signals()
with interrupt.watch() as watch:
  watch.begin()
  print('ready', flush=True)
  while not watch.asked():
    time.sleep(0.01)
  print('noted', watch.noted.name, flush=True)
  time.sleep(60)
"""

# As in a compilation, Python itself does not get to handle a signal.
BUSY = """
import signal, time
from slim_jax.runtime import interrupt
interrupt.end_at_signals()
signal.pthread_sigmask(signal.SIG_BLOCK, interrupt.SIGNALS)
print('ready', flush=True)
time.sleep(60)
"""


def start(text, *before):
  process = commands.start([*before, *AS_FROM_A_TERMINAL, sys.executable, '-c', text])
  assert process.stdout.readline() == 'ready\n'
  return process


@pytest.mark.parametrize('number', interrupt.SIGNALS)
def test_a_signal_ends_a_busy_process_at_once(number):
  process = start(BUSY)
  process.send_signal(number)
  output = commands.finish(process, code=128 + number)
  assert (
    output == f'stopped by {interrupt.name_of(number)}; complete stages and checkpoints are kept\n'
  )


def test_the_second_interrupt_ends_what_saves():
  process = start(NOTING)
  process.send_signal(signal.SIGINT)
  assert process.stdout.readline() == 'noted SIGINT\n'
  process.send_signal(signal.SIGINT)
  output = commands.finish(process, code=130)
  assert 'Traceback' not in output


def test_an_ignored_signal_stays_ignored():
  """As after nohup."""
  process = start('import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n' + NOTING)
  process.send_signal(signal.SIGHUP)
  time.sleep(0.2)
  process.send_signal(signal.SIGTERM)
  assert process.stdout.readline() == 'noted SIGTERM\n'
  process.kill()
  process.communicate()


def test_the_first_process_of_a_container_ends_at_sigterm():
  """The kernel does not deliver a signal without a handler to process 1."""
  container = ['unshare', '--pid', '--fork', '--map-root-user']
  try:
    subprocess.run([*container, 'true'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'no process namespace can be made: {error}')
  process = start(BUSY, *container)
  (child,) = subprocess.run(
    ['ps', '-o', 'pid=', '--ppid', str(process.pid)], check=True, capture_output=True, text=True
  ).stdout.split()
  os.kill(int(child), signal.SIGTERM)
  assert 'stopped by SIGTERM' in commands.finish(process, code=143)


@pytest.mark.parametrize(
  'number', [signal.SIGINT, pytest.param(signal.SIGHUP, marks=pytest.mark.slow)]
)
def test_training_saves_first(number, digits_dir, tmp_path):
  fields = {
    **commands.LONG,
    'data_dir': digits_dir,
    'train.epochs': 10**6,
    'checkpoint_every_epochs': 10**6,
  }
  process = commands.start([*AS_FROM_A_TERMINAL, *commands.main(tmp_path, **fields)])
  while not (tmp_path / 'metrics.jsonl').exists():
    assert process.poll() is None, process.stdout.read()
    time.sleep(0.01)
  process.send_signal(number)
  output = commands.finish(process, code=128 + number)
  step = re.search(rf'sparse, pass 1: stopped at step (\d+), as {number.name} asks', output)[1]
  assert 'Traceback' not in output
  assert (tmp_path / 'checkpoints' / '1-sparse' / step).exists()


def test_a_budget_asks_as_a_signal_does():
  process = start(NOTING.replace("print('ready'", "interrupt.end_after(0.2)\n  print('ready'"))
  assert process.stdout.readline() == 'noted SIGALRM\n'
  process.kill()
  process.communicate()


def test_the_command_takes_a_budget(digits_dir, tmp_path):
  """One that is over before there is anything to save."""
  fields = {**commands.LONG, 'data_dir': digits_dir}
  process = commands.start([*commands.main(tmp_path, **fields), '--budget=1s'])
  output = commands.finish(process, code=142)
  assert 'stopped by the budget; complete stages and checkpoints are kept' in output
  process = commands.start([*commands.main(tmp_path, **fields), '--budget=soon'])
  assert 'must be a time such as 530s' in commands.finish(process, code=1)


@pytest.mark.parametrize(
  ('text', 'seconds'),
  [('530s', 530), ('20m', 1200), ('1h30m', 5400), ('2h1s', 7201), ('', 0), ('0s', 0), ('5', 0)],
)
def test_times_of_budgets(text, seconds):
  assert interrupt.seconds_of(text) == seconds


def test_a_signal_while_the_last_checkpoint_is_written_counts(two_passes, tmp_path, monkeypatch):
  config, complete, _ = two_passes
  run = tmp_path / 'run'
  shutil.copytree(complete, run)
  records = json.loads((run / 'stages.json').read_text())
  (run / 'stages.json').write_text(json.dumps(records[:-1]))
  stage = f'{records[-1]["pass"]}-{records[-1]["stage"]}'
  shutil.rmtree(run / 'checkpoints' / stage)
  wait = checkpoint.wait

  def wait_and_signal(manager):
    os.kill(os.getpid(), signal.SIGTERM)
    wait(manager)

  before = signal.getsignal(signal.SIGTERM)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, 'wait', wait_and_signal)
    with pytest.raises(interrupt.Preempted, match='stopped at step 8, as SIGTERM asks') as error:
      pipeline.run(config, run)
  assert error.value.exit_code == 143 and signal.getsignal(signal.SIGTERM) is before
  assert len(json.loads((run / 'stages.json').read_text())) == len(records) - 1
  again = pipeline.run(config, run)
  assert again[-1]['accuracy'] == records[-1]['accuracy']
