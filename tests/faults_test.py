"""What becomes of a run that is killed, stopped or damaged, and of what it is told wrongly."""

import json
import re
import signal
import time

import jax
import numpy as np
import pytest

import commands
from slim_jax import checkpoint
from slim_jax import data


@pytest.fixture(scope='module')
def data_dir(tmp_path_factory):
  """Where the digits are prepared."""
  directory = str(tmp_path_factory.mktemp('tfds'))
  data.load('digits', data_dir=directory, split='train')
  return directory


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(
      jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def test_killed_run_ends_bit_identical(tmp_path, data_dir):
  """SIGKILL in the middle of fine-tuning."""
  fields = {**commands.LONG, 'data_dir': data_dir}
  whole = commands.start(commands.main(tmp_path / 'whole', **fields))
  killed = commands.start(commands.main(tmp_path / 'killed', **fields))
  saved = tmp_path / 'killed' / 'checkpoints' / '1-finetuned'
  while not saved.exists() or len(list(saved.iterdir())) < 2:
    assert killed.poll() is None, killed.stdout.read()
    time.sleep(0.001)
  killed.send_signal(signal.SIGKILL)
  killed.communicate()
  stages = json.loads((tmp_path / 'killed' / 'stages.json').read_text())
  assert [row['stage'] for row in stages] == ['sparse', 'pruned']
  commands.finish(whole)
  again = commands.run(commands.main(tmp_path / 'killed', **fields))
  assert 'finetuned, pass 1: continues from step' in again
  a, b = (json.loads((tmp_path / name / 'summary.json').read_text())['stages']
          for name in ('whole', 'killed'))
  assert [row['accuracy'] for row in a] == [row['accuracy'] for row in b]
  assert same(checkpoint.read(tmp_path / 'whole' / 'checkpoints' / '1-finetuned'),
              checkpoint.read(tmp_path / 'killed' / 'checkpoints' / '1-finetuned'))
  lines = (tmp_path / 'killed' / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['epoch'] for line in lines] == [1, *range(1, 41)]


def test_terminated_run_saves_at_once_and_ends_bit_identical(tmp_path, data_dir):
  """SIGTERM in the middle of an epoch, where no checkpoint is due."""
  fields = {**commands.LONG, 'data_dir': data_dir, 'finetune.epochs': 15, 'batch_size': 2,
            'checkpoint_every_epochs': 15, 'log_every_steps': 1}
  whole = commands.start(commands.main(tmp_path / 'whole', **fields))
  ended = commands.start(commands.main(tmp_path / 'ended', **fields))
  saved = tmp_path / 'ended' / 'checkpoints' / '1-finetuned'
  while not saved.exists():
    assert ended.poll() is None, ended.stdout.read()
    time.sleep(0.001)
  lines = tmp_path / 'ended' / 'metrics.jsonl'
  while sum('finetuned' in line for line in lines.read_text().splitlines()) < 1:
    assert ended.poll() is None, ended.stdout.read()
    time.sleep(0.001)
  ended.send_signal(signal.SIGTERM)
  output = commands.finish(ended, code=143)
  step = int(re.search(r'finetuned, pass 1: stopped at step (\d+), as SIGTERM', output)[1])
  assert 'Traceback' not in output and (saved / str(step)).exists()
  commands.finish(whole)
  again = commands.run(commands.main(tmp_path / 'ended', **fields))
  assert f'continues from step {step}' in again
  assert same(*(checkpoint.read(tmp_path / name / 'checkpoints' / '1-finetuned')
                for name in ('whole', 'ended')))
  # The line of the epoch in between, too, is that of all its steps.
  a, b = (map(json.loads, (tmp_path / name / 'metrics.jsonl').read_text().splitlines())
          for name in ('whole', 'ended'))
  for one, other in zip(a, b, strict=True):
    for name in ('step', 'loss', 'accuracy'):
      assert one[name] == pytest.approx(other[name], rel=1e-6)


def test_command_line_says_what_is_wrong(tmp_path):
  output = commands.run(commands.main(tmp_path, **{'train.epoch': 3}), code=1)
  assert 'Traceback' not in output
  assert "no field 'epoch'" in output and '"epochs"' in output
