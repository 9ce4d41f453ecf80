"""Every command of the README is executed: those that start slim_jax here, scripts in launch_test.

`launch/demo.sh` and `launch/test.sh` are the first two; the second is what runs this.
"""

import importlib.util
import pathlib
import re
import shlex
import sys

from helpers.commands import TINY, run
import pytest

ROOT = pathlib.Path(__file__).parents[1]
README = (ROOT / 'README.md').read_text()
# In blocks of code, a command a line; those in tables have dots where options belong.
COMMANDS = [
  line
  for language, block in re.findall(r'^```(\w*)\n(.*?)^```$', README, re.M | re.S)
  if language in ('', 'bash')
  for line in block.splitlines()
  if line.startswith(('python ', 'bash '))
]
MODULES = [line for line in COMMANDS if line.startswith('python -m slim_jax.')]
FIELDS = {**TINY, 'passes': 1, 'baseline_epochs': 0, 'train.epochs': 1, 'finetune.epochs': 1}


def order(command):
  """A run is begun, looked at, ended, and then shown and exported."""
  steps = ['--until=sparse', 'slim_jax.look', 'slim_jax.main', '']
  return next(i for i, step in enumerate(steps) if step in command)


def as_typed(command, directory):
  """The command for a run of seconds in `directory`, instead of its capitals and brackets."""
  command = re.sub(r' \[.*\]', '', command).replace('configs/NAME.py', 'configs/digits.py')
  words = shlex.split(command.replace('=DIR', f'={directory}'))
  if any(word.startswith('--config=') for word in words):
    words += [f'--config.{name}={value}' for name, value in FIELDS.items()]
  return [sys.executable, *words[1:]]


def test_commands_are_executed_in_the_order_of_their_use(tmp_path):
  ran = []
  for command in sorted(MODULES, key=order):
    if 'onnx' in command and not importlib.util.find_spec('jax2onnx'):
      continue
    is_study = 'slim_jax.sweep' in command
    # Two points of a study: the others are like them.
    short = re.sub(r'(--sweep=[\w.]+=[^,]+,[^,]+),\S*', r'\1', command)
    run(as_typed(short, tmp_path / ('study' if is_study else 'run')))
    ran.append(command)
  left = {path.name for path in (tmp_path / 'run').iterdir()}
  assert {
    'summary.json',
    'look.json',
    'network.stablehlo',
    'network.safetensors',
    'latency.json',
    'report',
  } <= left
  assert len(ran) >= 10


@pytest.mark.parametrize('command', [c for c in COMMANDS if c not in MODULES])
def test_the_other_commands_of_blocks_are_the_first_two(command):
  assert command in ('bash launch/demo.sh', 'bash launch/test.sh')
