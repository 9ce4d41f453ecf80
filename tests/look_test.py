"""A look before the cut shows what the cut would do, and changes nothing."""

import json
import subprocess
import sys

from helpers import configs
import pytest

from slim_jax import look
from slim_jax.runs import errors, pipeline, stages
from slim_jax.runs import workdir as workdir_module
from slim_jax.runtime import files

PLAIN = {'valid_split': '', 'scratch.e': False, 'scratch.b': False, 'baseline_epochs': 0}


@pytest.fixture(scope='module')
def sparse(digits_dir, tmp_path_factory):
  config = configs.with_options(data_dir=digits_dir, **PLAIN)
  workdir = tmp_path_factory.mktemp('run')
  pipeline.run(config, workdir, last=stages.named(config, 'sparse'))
  return config, workdir


@pytest.mark.parametrize('bias', ['zero', 'keep'])
def test_a_row_is_what_the_cut_gives(sparse, tmp_path, bias):
  config, workdir = sparse
  changes = {'prune.bias': bias, 'recalibrate_batches': 3, 'finetune.epochs': 0}
  config = configs.with_options(data_dir=config.data_dir, **PLAIN, **changes)
  rows = look.run(config, workdir, [0.0, 0.4, 0.6])
  assert [row['fraction'] for row in rows] == [0.0, 0.4, 0.6]
  assert rows == json.loads((workdir / 'look.json').read_text())
  assert rows[0]['params'] == rows[0]['full_params'] and rows[0]['macs'] == rows[0]['full_macs']
  assert len(workdir_module.Workdir(files.path_of(workdir)).records()) == 1
  here = workdir_module.Workdir(files.path_of(tmp_path))
  here.begin_from(workdir_module.Workdir(files.path_of(workdir)))
  done = {row['stage']: row for row in pipeline.run(config, tmp_path)}
  assert rows[0]['accuracy'] == pytest.approx(done['sparse']['accuracy'])
  assert rows[1]['accuracy'] == pytest.approx(done['pruned']['accuracy'])
  assert (rows[1]['params'], rows[1]['macs']) == (done['pruned']['params'], done['pruned']['macs'])
  assert rows[2]['macs'] < rows[1]['macs'] < rows[0]['macs']
  # Other batches than the stage takes, of the same data.
  assert rows[1]['recalibrated'] == pytest.approx(done['recalibrated']['accuracy'], abs=0.1)


def test_the_largest_cut_within_the_tolerance():
  def rows(*accuracies):
    return [
      {'fraction': 0.1 * i, 'accuracy': 0.9 if i == 0 else 0.0, 'recalibrated': accuracy}
      for i, accuracy in enumerate(accuracies)
    ]

  assert look.suggest(rows(0.9, 0.899, 0.896, 0.7, 0.9), 0.5)['fraction'] == pytest.approx(0.2)
  assert look.suggest(rows(0.9, 0.7), 0.5) is None
  assert look.suggest(rows(0.2, 0.95), 0.0)['fraction'] == pytest.approx(0.1)
  # Statistics that were stale before the cut do not excuse what it costs.
  stale = [{'fraction': x, 'accuracy': 0.3, 'recalibrated': a} for x, a in ((0, 0.9), (0.1, 0.3))]
  assert look.suggest(stale, 0.5) is None


def test_what_cannot_be_looked_at_is_said(sparse, tmp_path):
  config, workdir = sparse
  with pytest.raises(errors.WorkdirError, match='no run with a complete sparse stage'):
    look.run(config, tmp_path, [0.1])
  with pytest.raises(errors.WorkdirError, match='train.epochs: 2 there, 3 now'):
    look.run(
      configs.with_options(data_dir=config.data_dir, **PLAIN, **{'train.epochs': 3}), workdir, [0.1]
    )
  with pytest.raises(errors.ConfigError, match="no stage 'baseline', only for sparse, pruned"):
    stages.named(config, 'baseline')


@pytest.mark.slow
def test_the_command_line(tmp_path):
  root = configs.ROOT
  common = [
    '--config=configs/digits.py',
    f'--workdir={tmp_path}/run',
    '--config.baseline_epochs=0',
    f'--config.data_dir={tmp_path}/data',
    '--config.train.epochs=1',
    '--config.train_split=train[:256]',
    '--config.test_split=test[:100]',
    "--config.model.widths=(6, 'M', 6)",
  ]

  def call(module, *arguments):
    return subprocess.run(
      [sys.executable, '-m', f'slim_jax.{module}', *common, *arguments],
      cwd=root,
      capture_output=True,
      text=True,
      check=False,
    )

  first = call('main', '--until=sparse')
  assert first.returncode == 0 and 'sparse' in first.stdout and 'pruned' not in first.stdout
  shown = call('look', '--points=4', '--tolerance=100')
  assert shown.returncode == 0, shown.stderr
  assert '--config.prune.fraction=' in shown.stdout
  assert (tmp_path / 'run/look.png').stat().st_size > 5000
  assert (tmp_path / 'run/report/look.svg').exists()
  assert [row['fraction'] for row in json.loads((tmp_path / 'run/look.json').read_text())][0] == 0
