"""The page of a run shows all that the run has, loads nothing, and names what is damaged."""

import json
import re
import shlex
import shutil
import subprocess
import sys

from etils import epath
from helpers import commands, configs, pages
import jax
import pytest

import slim_jax
from slim_jax.display import plot, tables
from slim_jax.report import architecture, blocks, measure, page
from slim_jax.runs import pipeline, stages, workdir

FIGURES = ['curves', 'heat-1', 'heat-2', 'scales', 'shares-1', 'shares-2', 'widths']


@pytest.fixture
def run(two_passes, tmp_path):
  """A copy of a complete run."""
  shutil.copytree(two_passes[1], tmp_path / 'run')
  return tmp_path / 'run'


@pytest.fixture(scope='module')
def written(two_passes, tmp_path_factory):
  """A complete run with its page."""
  path = tmp_path_factory.mktemp('written') / 'run'
  shutil.copytree(two_passes[1], path)
  assert page.write(path) == path / 'report' / 'index.html'
  return path


def test_every_stage_has_its_row(written, two_passes):
  _, _, records = two_passes
  read = pages.check(written)
  header, *rows = read.rows['stages']
  assert header == ['stage', 'accuracy', 'loss', 'params', 'MACs', 'FLOPs', 'activations', 'time']
  for row, record in zip(rows, records, strict=True):
    assert row[0] == str(stages.Stage.of(record))
    assert row[1:3] == [f'{record["accuracy"]:.2%}', f'{record["loss"]:.4f}']
    assert row[3] == (
      tables.short(record['params']) + tables.change(record['params'], records[0]['params'])
    )
    assert row[5] == tables.short(2 * record['macs'])
  full, *_, thin = (row[6] for row in rows)
  assert full.endswith('B') and thin.endswith('%')
  warnings = tables.warnings(records)
  assert warnings and read.texts['warning'] == warnings


def test_widths_are_those_of_the_plan(written):
  plan = slim_jax.Plan.load(written / 'plan-2.npz')
  expected = [
    [path[1], f'{cut.shape[0]} → {cut.thin_shape[0]}']
    for path, cut in sorted(plan.cuts.items())
    if path[-1] == 'scale'
  ]
  assert pages.check(written).rows['widths'] == expected and len(expected) == 2


def test_every_figure_is_there_in_the_page_and_beside_it(written):
  assert [path.stem for path in sorted((written / 'report').glob('*.svg'))] == FIGURES
  curves = (written / 'report' / 'curves.svg').read_text()
  assert all(f'>{name}<' in curves for name in ('baseline', 'sparse', 'pruned', 'finetuned'))
  assert '<image' in (written / 'report' / 'heat-1.svg').read_text()


def test_it_says_what_made_the_run(written):
  text = (written / 'report' / 'index.html').read_text()
  (start,) = map(json.loads, (written / 'starts.jsonl').read_text().splitlines())
  assert start['jax'] == jax.__version__ and start['command'] == shlex.join(sys.orig_argv)
  for name in {'python', 'jax', 'flax', 'optax', 'device', 'time', *start} - {'command'}:
    assert f'<dt>{name}</dt><dd>{start[name]}</dd>' in text
  assert 'finetune' in text
  if (commands.ROOT / '.git').exists():
    head = subprocess.run(
      ['git', 'rev-parse', 'HEAD'], cwd=commands.ROOT, capture_output=True, text=True, check=False
    )
    assert head.returncode or head.stdout.startswith(start['commit'].removesuffix('-dirty'))


def test_full_and_thin_network_are_timed(run):
  page.write(run, timed=True)
  header, *rows = pages.check(run).rows['latency']
  assert header == ['network', 'batch', 'latency', 'images/s', 'speed-up']
  assert [row[:2] for row in rows] == [['full', '1'], ['thin', '1'], ['full', '64'], ['thin', '64']]
  saved = json.loads((run / 'report' / 'latency.json').read_text())
  assert all(0 < row['seconds'] < 10 for row in saved['rows'])
  assert rows[3][4] == f'{saved["rows"][2]["seconds"] / saved["rows"][3]["seconds"]:.2f} times'
  page.write(run)  # does not measure again
  assert pages.check(run).rows['latency'][1:] == rows


def test_calls_that_take_long_are_skipped(run):
  net = architecture.read(workdir.Workdir(epath.Path(run)))
  measured = measure.latency(net, slim_jax.Plan.load(run / 'plan-2.npz'), most_macs=1)
  (run / 'report').mkdir()
  (run / 'report' / 'latency.json').write_text(json.dumps(measured))
  page.write(run)
  read = pages.check(run)
  assert read.rows['latency'][1:] == []
  assert sum('takes long on this device' in text for text in read.texts['note']) == 4


def test_rows_of_look_are_drawn(run):
  rows = [
    {
      'fraction': 0.1 * i,
      'accuracy': 0.9 - 0.1 * i,
      'recalibrated': 0.9,
      'params': 100 - i,
      'macs': 100 - i,
      'full_params': 100,
      'full_macs': 100,
    }
    for i in range(3)
  ]
  (run / 'look.json').write_text(json.dumps(rows))
  page.write(run)
  pages.check(run)
  assert (run / 'report' / 'look.svg').exists()


DAMAGES = {
  'what is for people': {
    'look.json': (lambda path: path.write_text('[{}]'), 'look.json is damaged'),
    'scales-1.npz': (
      lambda path: path.write_bytes(path.read_bytes()[:-200]),
      'scales-1.npz cannot be read',
    ),
    'latency.json': (
      lambda path: (
        (path.parent / 'report').mkdir() or (path.parent / 'report' / path.name).write_text('[]')
      ),
      'latency.json is damaged',
    ),
    'dataset.json': (lambda path: path.unlink(), 'dataset.json cannot be read'),
  },
  'the plan': {'plan-1.npz': (lambda path: path.unlink(), 'plan-1.npz cannot be read')},
  'the config': {'config.json': (lambda path: path.write_text('['), 'config.json cannot be read')},
  'checkpoints and metrics': {
    'checkpoints/1-sparse': (shutil.rmtree, 'there is no directory of checkpoints .*1-sparse'),
    'metrics.jsonl': (lambda path: path.write_text('{"pass": 1}\n'), 'metrics.jsonl, line 1, is'),
  },
  'fields of the config': {
    'config.json': (lambda path: path.write_text('{"seed": 0}'), 'do not have all that')
  },
  'the list of stages': {
    'stages.json': (
      lambda path: path.write_text('[{"pass": 1, "stage": "sparse"}]'),
      'stages.json is damaged',
    )
  },
}


@pytest.mark.parametrize('what', DAMAGES)
def test_a_damaged_file_costs_its_section(run, two_passes, what):
  for name, (damage, _) in DAMAGES[what].items():
    damage(run / name)
  page.write(run)
  read = pages.check(run)
  told = [text for text in read.texts['warning'] if text.startswith('Left out')]
  for _, message in DAMAGES[what].values():
    assert any(re.search(message, text) for text in told), told
  assert not any('\n' in text for text in told)
  if 'stages.json' not in DAMAGES[what]:
    assert [row[0] for row in read.rows['stages'][1:]] == [
      str(stages.Stage.of(record)) for record in two_passes[2]
    ]


def test_a_run_without_recordings_has_its_page(run):
  """Of an earlier version, or one that has just begun."""
  for path in (*run.glob('scales-*'), run / 'starts.jsonl', run / 'metrics.jsonl'):
    path.unlink()
  page.write(run)
  notes = pages.check(run).texts['note']
  for text in (
    'The scales of the epochs were not recorded.',
    'No epoch is recorded yet.',
    'Command and versions were not recorded.',
  ):
    assert text in notes
  (run / 'stages.json').write_text('[]')
  shutil.rmtree(run / 'report')
  page.write(run)
  text = (run / 'report' / 'index.html').read_text()
  assert 'No stage is complete yet.' in text and not list((run / 'report').glob('*.svg'))


def test_layers_can_be_chosen_and_are_in_order(run):
  page.write(run, layers='*BatchNorm_1*')
  text = (run / 'report' / 'heat-1.svg').read_text()
  assert 'BatchNorm_1, layer 2' in text and 'BatchNorm_0, layer' not in text
  page.write(run, layers='*Dense*')
  assert any(
    note.startswith('No scale has a path like *Dense*; there are params/BatchNorm_0/scale')
    for note in pages.check(run).texts['note']
  )
  paths = [
    f'params/{name}/scale'
    for name in (
      'BatchNorm_0',
      'Block_10/BatchNorm_0',
      'Block_2/BatchNorm_0',
      'Extra_10',
      'Extra_9',
    )
  ]
  modules = ['Block_2', 'Block_2/BatchNorm_0', 'Block_10/BatchNorm_0', 'BatchNorm_0']
  assert [architecture.module_of(path) for path in architecture.in_order(paths, modules)] == [
    'Block_2/BatchNorm_0',
    'Block_10/BatchNorm_0',
    'BatchNorm_0',
    'Extra_9',
    'Extra_10',
  ]


def test_the_page_is_written_after_every_stage(digits_dir, tmp_path):
  config = configs.load('digits')
  config.update_from_flattened_dict({**commands.TINY, 'data_dir': digits_dir, 'passes': 1})
  shown = []

  def after_stage():
    page.at_end(tmp_path)
    shown.append([row[0] for row in pages.check(tmp_path).rows['stages'][1:]])

  pipeline.run(config, tmp_path, after_stage=after_stage)
  names = ['baseline', 'sparse, pass 1', 'pruned, pass 1']
  assert shown == [names[:1], names[:2], names]


def test_an_end_without_a_page_is_no_failure(run, tmp_path, caplog):
  page.at_end(tmp_path)
  assert 'holds neither a run nor a study' in caplog.text
  (run / 'report').write_text('where the folder would be')
  page.at_end(run)
  assert 'Results are complete' in caplog.text


def test_a_mistake_in_one_part_is_shown_in_it(caplog):
  def make():
    raise ZeroDivisionError('no epochs')

  (paragraph,) = blocks.attempt(make)
  assert paragraph == blocks.Paragraph('Left out: ZeroDivisionError: no epochs', 'warning')
  assert 'Traceback' in caplog.text


def test_text_is_escaped():
  section = blocks.Section(
    '<b>',
    [
      blocks.Paragraph('<i>'),
      blocks.Table('t', [blocks.Column('<u>', '<s>')], [[blocks.Cell('<td>', '<q>')]]),
      blocks.Bars('b', [('<a>/<a>', 2, 1)]),
      blocks.Facts([('<dt>', '<dd>')]),
      blocks.Code('<pre>', title='<h3>'),
    ],
  )
  text = page.render('<h1>', [section], foot='"&')
  for tag in ('b', 'i', 'u', 's', 'td', 'q', 'dt', 'dd', 'pre', 'h3', 'h1', 'a'):
    assert f'&lt;{tag}&gt;' in text, tag
  assert '<i>' not in text and '&#34;&amp;' in text


def test_repeated_commands_are_shown_once():
  starts = [
    {'command': 'first', 'time': '1', 'jax': '0.10'},
    {'command': 'again', 'time': '2', 'jax': '0.10'},
    {'command': 'again', 'time': '3', 'jax': '0.10'},
    {'command': 'again', 'time': '4', 'jax': '0.12'},
  ]
  assert blocks.of_starts(starts) == [
    blocks.Code('first'),
    blocks.Facts([('time', '1'), ('jax', '0.10')]),
    blocks.Code('again'),
    blocks.Facts([('time', '2, 3')]),
    blocks.Code('again'),
    blocks.Facts([('time', '4'), ('jax', '0.12')]),
  ]


def test_figures_do_not_change_between_calls(run):
  page.write(run)
  before = {path.name: path.read_bytes() for path in (run / 'report').glob('*.svg')}
  page.write(run)
  assert before == {path.name: path.read_bytes() for path in (run / 'report').glob('*.svg')}


def test_every_stage_has_a_colour():
  assert set(plot.STAGES) == {
    'baseline',
    'sparse',
    'pruned',
    'recalibrated',
    'finetuned',
    'scratch-e',
    'scratch-b',
  }
  assert len(set(plot.STAGES.values())) == 7


def test_the_command_line(run, tmp_path):
  command = [sys.executable, '-m', 'slim_jax.report', f'--workdir={run}', '--nomeasure']
  assert f'report: {run}/report/index.html' in commands.run(command)
  pages.check(run)
  command[3] = f'--workdir={tmp_path}/nothing'
  assert 'holds neither a run nor a study' in commands.run(command, code=1)
