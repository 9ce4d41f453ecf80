"""The method from end to end on a tiny network, and what a killed run leaves."""

import json
import shutil
import subprocess
import sys

from helpers.trees import same
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import data, tree
from slim_jax.display import tables
from slim_jax.runs import errors, pipeline
from slim_jax.runs import stages as stages_module
from slim_jax.runs import workdir as workdir_module
from slim_jax.runs.run import config_to_json
from slim_jax.runtime import files
from slim_jax.training import checkpoint


@pytest.fixture
def config(two_passes):
  return two_passes[0]


@pytest.fixture
def finished(two_passes):
  """A complete run of two passes."""
  return two_passes[1:]


def variables_of(workdir, stage):
  arrays = checkpoint.read(workdir / 'checkpoints' / stage)
  return {name: arrays[name] for name in ('params', 'batch_stats')}


def changed(config, **changes):
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(changes)
  return config


def test_stages_follow_the_config(config):
  names = [str(stage) for stage in stages_module.of(config)]
  assert names == [
    'baseline',
    'sparse, pass 1',
    'pruned, pass 1',
    'finetuned, pass 1',
    'sparse, pass 2',
    'pruned, pass 2',
    'finetuned, pass 2',
  ]
  short = changed(config, **{'baseline_epochs': 0, 'finetune.epochs': 0, 'passes': 1})
  assert [stage.name for stage in stages_module.of(short)] == ['sparse', 'pruned']


def test_summary_has_every_stage(config, finished):
  workdir, records = finished
  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['config'] == config_to_json(config)
  assert [(row['pass'], row['stage']) for row in summary['stages']] == stages_module.of(config)
  for row, record in zip(summary['stages'], records, strict=True):
    only = {'strength', 'pull', 'start', 'small_scales'} if row['stage'] == 'sparse' else set()
    assert set(row) == only | {'pass', 'stage', 'accuracy', 'loss', 'params', 'macs', 'seconds'}
    assert row.items() <= record.items()
    assert 0 <= row['accuracy'] <= 1 and row['seconds'] > 0


def test_summary_warns_of_a_pull_that_is_too_small(finished):
  """8 steps at strength 0.01 do not bring scales from 0.5 to 0."""
  workdir, records = finished
  sparse = records[1]
  assert sparse['pull'] < sparse['start'] == 0.5
  warnings = json.loads((workdir / 'summary.json').read_text())['warnings']
  assert warnings[0] == f'sparse, pass 1: {sparse["warning"]}'
  assert f'pulls a scale by {sparse["pull"]:.3g} in all' in warnings[0]
  assert len(warnings) == 2


def test_network_gets_thinner_in_each_pass(finished):
  _, records = finished
  by_stage = {(r['pass'], r['stage']): r for r in records}
  widths = [
    sum(by_stage[key]['widths'].values()) for key in ((1, 'sparse'), (1, 'pruned'), (2, 'pruned'))
  ]
  # sorted[int(12 * 0.3)] and below go: 4 of 12, then 3 of 8, of which one stays without a scale to
  # carry the biases of its layer.
  assert widths == [12, 8, 6]
  for figure in ('params', 'macs'):
    figures = [
      by_stage[key][figure]
      for key in (
        (0, 'baseline'),
        (1, 'sparse'),
        (1, 'pruned'),
        (1, 'finetuned'),
        (2, 'sparse'),
        (2, 'pruned'),
        (2, 'finetuned'),
      )
    ]
    a, b, c, d, e, f, g = figures
    assert a == b > c == d == e > f == g


def test_pruned_network_is_the_masked_one(config, finished):
  """Pass 1: the thin network computes what the masked one does, and keeps momentum."""
  workdir, _ = finished
  sparse = checkpoint.read(workdir / 'checkpoints' / '1-sparse')
  pruned = checkpoint.read(workdir / 'checkpoints' / '1-pruned')
  variables = variables_of(workdir, '1-sparse')
  dead = slim_jax.select_global(variables, fraction=0.3, min_channels=1)
  image = np.random.RandomState(0).randn(5, 8, 8, 1).astype(np.float32)
  model = slim_jax.models.create('vgg', num_classes=10, widths=(6, 'M', 6))
  plan = slim_jax.Plan.load(workdir / 'plan-1.npz')

  def predict(variables, image):
    return model.apply(variables, image, train=False)

  np.testing.assert_allclose(
    slim_jax.thin(predict, plan)(variables_of(workdir, '1-pruned'), image),
    predict(slim_jax.mask(variables, dead), image),
    rtol=1e-4,
    atol=1e-5,
  )
  trace = plan['params'].slice(sparse['opt_state']['2']['0']['trace'])
  assert same(trace, pruned['opt_state']['2']['0']['trace'])
  assert any(np.any(leaf) for leaf in jax.tree.leaves(trace))


def test_plan_speaks_of_the_original_network(finished):
  workdir, _ = finished
  plan = slim_jax.Plan.load(workdir / 'plan-2.npz')
  original = tree.flatten(variables_of(workdir, '0-baseline'))
  thin = tree.flatten(variables_of(workdir, '2-finetuned'))
  assert {path: cut.shape for path, cut in plan.cuts.items()} == (
    {path: leaf.shape for path, leaf in original.items()}
  )
  assert {path: cut.thin_shape for path, cut in plan.cuts.items()} == (
    {path: leaf.shape for path, leaf in thin.items()}
  )


def test_load_gives_the_last_network_wherever_it_lies(config, finished, tmp_path):
  workdir, records = finished
  shutil.copytree(workdir, tmp_path / 'moved')
  apply, variables = slim_jax.load(tmp_path / 'moved')
  test = data.load('digits', data_dir=config.data_dir, split=config.test_split)
  logits = jax.jit(apply)(variables, test.image)
  assert logits.shape == (100, 10) and logits.dtype == jnp.float32
  assert np.mean(np.argmax(logits, -1) == test.label) == pytest.approx(records[-1]['accuracy'])


def test_load_imports_no_data_sets(finished):
  """Only the checkpoint is read; TFDS alone would double the time."""
  code = (
    'import sys, slim_jax\n'
    'slim_jax.load(sys.argv[1])\n'
    'heavy = {"tensorflow_datasets", "grain", "matplotlib", "sklearn"} & set(sys.modules)\n'
    'assert not heavy, heavy\n'
  )
  subprocess.run([sys.executable, '-c', code, str(finished[0])], check=True)


def test_load_needs_a_complete_stage(tmp_path):
  with pytest.raises(errors.WorkdirError, match='no run with a complete stage'):
    slim_jax.load(tmp_path)


def test_metrics_have_a_line_for_each_epoch(finished):
  workdir, _ = finished
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert [(line['pass'], line['stage'], line['epoch']) for line in lines] == [
    (0, 'baseline', 1),
    (1, 'sparse', 1),
    (1, 'sparse', 2),
    (1, 'finetuned', 1),
    (1, 'finetuned', 2),
    (2, 'sparse', 1),
    (2, 'sparse', 2),
    (2, 'finetuned', 1),
    (2, 'finetuned', 2),
  ]
  assert all(('test_accuracy' in line) == (line['epoch'] == 2) for line in lines)


def test_complete_run_is_left_alone(config, finished):
  workdir, records = finished
  # Neither the data nor another way of saving them matters any more.
  again = changed(config, data_dir='/nowhere', keep_checkpoints=1)
  assert pipeline.run(again, workdir) == records


def test_another_config_is_refused_field_by_field(config, finished):
  workdir, _ = finished
  other = changed(config, **{'seed': 7, 'prune.fraction': 0.5, 'log_every_steps': 1})
  with pytest.raises(errors.WorkdirError) as error:
    pipeline.run(other, workdir)
  assert str(error.value).splitlines()[1:] == [
    '  prune.fraction: 0.3 there, 0.5 now',
    '  seed: 0 there, 7 now',
  ]


def test_run_continues_after_any_stage(config, finished, tmp_path, monkeypatch):
  """Fails at the first pruning, goes on, and ends as if nothing had been."""

  def fail(*_):
    raise OSError('disk on fire')

  workdir, records = finished
  config = changed(config, passes=1)
  monkeypatch.setattr(workdir_module.Workdir, 'save_plan', fail)
  with pytest.raises(OSError):
    pipeline.run(config, tmp_path)
  stages = json.loads((tmp_path / 'stages.json').read_text())
  assert [row['stage'] for row in stages] == ['baseline', 'sparse']
  monkeypatch.undo()
  resumed = pipeline.run(config, tmp_path)
  assert [r['accuracy'] for r in resumed] == [r['accuracy'] for r in records[:4]]
  assert same(variables_of(tmp_path, '1-finetuned'), variables_of(workdir, '1-finetuned'))


def test_what_is_not_used_yet_may_change(config, finished, tmp_path):
  """Another fraction can be tried without training again, also after a kill while pruning."""
  workdir, records = finished
  config = changed(config, passes=1)
  files.write_json(tmp_path / 'config.json', config_to_json(config))
  for stage in ('0-baseline', '1-sparse'):
    shutil.copytree(workdir / 'checkpoints' / stage, tmp_path / 'checkpoints' / stage)
  (tmp_path / 'stages.json').write_text(json.dumps(records[:2]))
  # Killed between the checkpoint of the pruned network and its record.
  shutil.copytree(workdir / 'checkpoints' / '1-pruned', tmp_path / 'checkpoints' / '1-pruned')
  shutil.copy(workdir / 'plan-1.npz', tmp_path)
  bad = changed(config, **{'prune.fraction': 0.99, 'prune.min_channels': 0})
  with pytest.raises(errors.ConfigError, match='config.prune: the network is disconnected'):
    pipeline.run(bad, tmp_path)
  good = changed(config, **{'prune.fraction': 0.5, 'finetune.epochs': 1})
  assert pipeline.run(good, tmp_path)[2]['widths'] != records[2]['widths']
  assert json.loads((tmp_path / 'config.json').read_text()) == config_to_json(good)


def test_table_shows_the_reduction(finished):
  _, records = finished
  table = tables.table(records)
  assert table.row_count == len(records)
  assert [tables.short(n) for n in (85, 65_834, 20_035_018)] == ['85', '65.83k', '20.04M']
  assert tables.change(25, 100) == '-75.0 %' and tables.change(100, 100) == ''


@pytest.mark.parametrize(
  'changes, error, message',
  [
    (
      {'model.name': 'mlp', 'model.widths': ()},
      errors.ConfigError,
      'config.model: no BatchNorm scale',
    ),
    ({'model.widths': (4, 'M', 'M', 'M', 'M', 4)}, errors.ConfigError, 'too small'),
    ({'batch_size': 512}, errors.ConfigError, 'batch_size=512 is larger than the 256'),
    ({'train_split': 'nowhere'}, data.DataError, 'nowhere'),
    ({'dataset': 'nothing'}, data.DataError, 'nothing'),
  ],
)
def test_errors_come_before_any_training(config, tmp_path, changes, error, message):
  with pytest.raises(error, match=message):
    pipeline.run(changed(config, **changes), tmp_path)
  assert not (tmp_path / 'checkpoints').exists()


def test_two_runs_in_one_directory_are_refused(config, tmp_path):
  with workdir_module.Workdir(files.path_of(tmp_path)).locked():
    with pytest.raises(errors.WorkdirError, match='another run is at work in'):
      pipeline.run(config, tmp_path)
  with workdir_module.Workdir(files.path_of(tmp_path)).locked():
    pass  # and given back
