"""Studies: what is shared is trained once, and the same command continues."""

import json
import shutil

from helpers import configs, pages
import pytest

from slim_jax import sweep
from slim_jax.display import plot, tables
from slim_jax.report import page
from slim_jax.runs import errors, pruning
from slim_jax.runs import stages as stages_module
from slim_jax.runs.run import config_to_json
from slim_jax.training import loop


@pytest.fixture(scope='module')
def config(digits_dir):
  return configs.with_options(
    data_dir=digits_dir,
    valid_split='',
    baseline_epochs=1,
    **{'scratch.e': False, 'scratch.b': False, 'prune.min_channels': 0, 'finetune.epochs': 1},
  )


@pytest.fixture(scope='module')
def study(config, tmp_path_factory):
  workdir = tmp_path_factory.mktemp('study')
  fractions = {'prune.fraction': [0.2, 0.5, 0.99]}
  return workdir, fractions, sweep.run(config, fractions, workdir)


def test_points_have_the_shared_stages_in_common(study):
  workdir, _, points = study
  assert [point['workdir'] for point in points] == [
    f'prune.fraction={fraction}' for fraction in (0.2, 0.5, 0.99)
  ]
  first, second, _ = (point['stages'] for point in points)
  assert first[:2] == second[:2] and first[2:] != second[2:]
  assert [row['stage'] for row in first] == ['baseline', 'sparse', 'pruned', 'finetuned']
  files = [
    {
      path.stat().st_ino
      for path in (workdir / name / 'checkpoints' / '1-sparse').rglob('*')
      if path.is_file()
    }
    for name in ('shared', 'prune.fraction=0.2', 'prune.fraction=0.5')
  ]
  assert files[0] == files[1] == files[2]
  for name in ('shared', 'prune.fraction=0.2'):
    lines = (workdir / name / 'metrics.jsonl').read_text().splitlines()
    assert len(lines) == (3 if name == 'shared' else 4)


def test_what_cannot_be_pruned_is_a_finding(study):
  _, _, points = study
  assert points[2]['error'].startswith('config.prune: the network is disconnected')
  assert [row['stage'] for row in points[2]['stages']] == ['baseline', 'sparse']
  assert not points[0]['error']


def test_same_study_again_trains_nothing(config, study, monkeypatch):
  workdir, fractions, points = study

  def fail(*_, **__):
    raise AssertionError('trained again')

  monkeypatch.setattr(loop, 'fit', fail)
  assert sweep.run(config, fractions, workdir) == points
  saved = json.loads((workdir / 'sweep.json').read_text())
  assert saved == {'config': config_to_json(config), 'sweep': fractions, 'points': points}


def test_a_point_that_was_interrupted_continues(config, study, tmp_path, monkeypatch):
  """After the shared stages, in the first point; here as if in another directory."""

  def fail(*_, **__):
    raise KeyboardInterrupt

  _, _, points = study
  prune = pruning.select_dead
  monkeypatch.setattr(pruning, 'select_dead', fail)
  with pytest.raises(KeyboardInterrupt):
    sweep.run(config, {'prune.fraction': [0.5]}, tmp_path)
  monkeypatch.setattr(pruning, 'select_dead', prune)
  again = sweep.run(config, {'prune.fraction': [0.5]}, tmp_path)
  assert [row['accuracy'] for row in again[0]['stages']] == [
    row['accuracy'] for row in points[1]['stages']
  ]


def test_table_has_a_row_for_each_point(study):
  _, _, points = study
  table = tables.sweep_table(points)
  assert [column.header for column in table.columns] == [
    'fraction',
    'baseline',
    'sparse',
    'pruned',
    'finetuned',
    'small scales',
    'params',
    'MACs',
  ]
  assert list(table.columns[0].cells) == ['0.2', '0.5', '0.99']
  assert list(table.columns[3].cells)[2] == '-'


def test_plots_are_drawn(study, tmp_path):
  workdir, _, points = study
  assert sweep.draw(points, workdir) == [workdir / 'fraction.png']
  as_strengths = [{**point, 'values': {'train.strength': 1e-4}} for point in points]
  assert sweep.draw(as_strengths, workdir) == [workdir / 'scales.png']
  plot.save(plot.histograms({}, name='|scale|'), tmp_path / 'none.png')
  for path in (workdir / 'fraction.png', workdir / 'scales.png', tmp_path / 'none.png'):
    assert path.read_bytes().startswith(b'\x89PNG')


def test_a_study_has_its_page(study, tmp_path):
  workdir, _, points = study
  page.write(workdir)
  found = pages.check(workdir)
  header, *rows = found.rows['points']
  assert header[:5] == ['fraction', 'baseline', 'sparse', 'pruned', 'finetuned']
  assert [row[0] for row in rows] == ['0.2', '0.5', '0.99'] and rows[2][3] == '-'
  assert rows[0][4] == f'{100 * (1 - points[0]["stages"][3]["accuracy"]):.2f}'
  assert found.texts['warning'] == [f'prune.fraction=0.99: {points[2]["error"]}']
  assert sorted(path.name for path in (workdir / 'report').glob('*.svg')) == [
    'error-prune-fraction.svg',
    'scales.svg',
  ]
  (tmp_path / 'sweep.json').write_text('{"points": [{}]}')
  with pytest.raises(errors.WorkdirError, match='sweep.json is damaged'):
    page.write(tmp_path)
  shutil.copy(workdir / 'sweep.json', tmp_path)
  page.write(tmp_path)  # the points have gone
  assert 'sparse, pass 1 is not complete' in pages.check(tmp_path).texts['warning'][1]


@pytest.mark.parametrize(
  'stage, free',
  [
    (
      'baseline',
      ['train.strength', 'train.pull', 'prune.fraction', 'finetune.epochs', 'scratch.e'],
    ),
    ('sparse', ['prune.fraction', 'finetune.learning_rate', 'scratch.b', 'workers']),
  ],
)
def test_stages_depend_on_all_but_what_comes_later(stage, free):
  every = ['seed', 'batch_size', 'model.name', 'train.epochs', 'train.strength', *free]
  assert [field for field in every if not stages_module.depends(stage, field)] == [
    field for field in every if field in free
  ]
  assert stages_module.depends('finetuned', 'finetune.epochs')
  assert stages_module.depends('pruned', 'prune.fraction')


def test_values_have_the_type_of_their_field(config):
  found = sweep.parse(
    config,
    ['train.strength=0,1e-5', 'seed=0,1', 'prune.per_layer=True,False', 'train.schedule=cosine'],
  )
  assert found == {
    'train.strength': [0.0, 1e-5],
    'seed': [0, 1],
    'prune.per_layer': [True, False],
    'train.schedule': ['cosine'],
  }
  assert [type(values[0]) for values in found.values()] == [float, int, bool, str]


@pytest.mark.parametrize(
  'text, message',
  [
    ('prune.fractions=0.1', "no field 'prune.fractions'"),
    ('prune=0.1', "no field 'prune'"),
    ('train.drops=0.5', "no field 'train.drops' of one value"),
    ('seed=one', "'one'"),
    ('prune.per_layer=yes', "'yes' is neither True nor False"),
    ('nothing.at.all=1', 'no field'),
  ],
)
def test_what_cannot_be_swept_is_refused(config, text, message):
  with pytest.raises(errors.ConfigError, match=message):
    sweep.parse(config, [text])


def test_every_point_is_checked_before_the_first_runs(config, tmp_path):
  with pytest.raises(errors.ConfigError, match='fraction=1.5'):
    sweep.run(config, {'prune.fraction': [0.5, 1.5]}, tmp_path)
  assert not list(tmp_path.iterdir())


def test_mean_is_drawn_through_equal_values(tmp_path):
  points = [(0.5, {'finetuned': y, 'pruned': 90.0}) for y in (6.0, 7.0)]
  plot.save(plot.errors(points, name='fraction'), tmp_path / 'plot.png')
  assert (tmp_path / 'plot.png').stat().st_size > 1000
