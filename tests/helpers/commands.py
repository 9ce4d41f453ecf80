"""The programs as users start them: in processes of their own."""

import os
import pathlib
import shutil
import subprocess
import sys

from helpers import compiling

ROOT = pathlib.Path(__file__).parents[2]

# Fields of a run of a few seconds.
TINY = {
  'train_split': 'train[:256]',
  'test_split': 'test[:100]',
  'eval_batch_size': 64,
  'model.widths': (6, 'M', 6),
  'baseline_epochs': 1,
  'train.epochs': 2,
  'train.strength': 0.01,
  'prune.fraction': 0.3,
  'prune.min_channels': 1,
  'finetune.epochs': 2,
  'checkpoint_every_epochs': 1,
  'eval_every_epochs': 2,
  'passes': 2,
}


# And of one in which there is time to do something to it.
LONG = {
  **TINY,
  'model.name': 'mlp',
  'model.widths': (12, 8),
  'passes': 1,
  'baseline_epochs': 0,
  'train.epochs': 1,
  'finetune.epochs': 40,
}


def flags_of(workdir, **fields):
  """Flags of a run of the digits."""
  return [
    '--config=configs/digits.py',
    f'--workdir={workdir}',
    *(f'--config.{name}={value}' for name, value in fields.items()),
  ]


def main(workdir, *, report=False, **fields):
  """The command of a run of the digits; whether it ends with its page."""
  return [
    sys.executable,
    '-m',
    'slim_jax.main',
    *flags_of(workdir, **fields),
    '--report' if report else '--noreport',
  ]


def start(command, **environ):
  """Starts a command, on one CPU device; both outputs are in `stdout`."""
  environ = {**os.environ, 'JAX_PLATFORMS': 'cpu', 'XLA_FLAGS': compiling.flags(), **environ}
  return subprocess.Popen(
    command, cwd=ROOT, env=environ, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def finish(process, *, code=0):
  """What a process has printed; it must end with `code`, without a traceback through our code.

  Threads of TensorStore print some of their own when a file cannot be read or written.
  """
  output, _ = process.communicate()
  assert process.returncode == code, output
  assert f'File "{ROOT / "slim_jax"}' not in output, output
  return output


def run(command, *, code=0, **environ):
  """What a command prints; it must end with `code`, as for `finish`."""
  return finish(start(command, **environ), code=code)


def make_venv(directory):
  """A folder that the scripts take for an environment with slim_jax: its Python is this one."""
  python = directory / 'bin' / 'python'
  python.parent.mkdir(parents=True)
  python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
  python.chmod(0o755)
  for name in ('setup.cfg', 'setup-test.cfg', 'setup-cuda12.cfg'):
    shutil.copy(ROOT / 'setup.cfg', directory / name)
  return directory
