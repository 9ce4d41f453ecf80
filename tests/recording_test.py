"""What a stage leaves to look at: each epoch once, however often the stage is continued."""

import csv
import errno
import json
import resource
import struct

from helpers import curves
import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2

from slim_jax.display import tables
from slim_jax.runs import errors, events, recording, scale_history
from slim_jax.runs import workdir as workdir_module
from slim_jax.runs.stages import Stage
from slim_jax.runtime import files

SPARSE = Stage(1, 'sparse')


def steps(directory):
  """Steps of all events with a summary, whatever a reader makes of them."""
  found = []
  for path in directory.iterdir():
    content, at = path.read_bytes(), 0
    while at < len(content):
      (length,) = struct.unpack('<Q', content[at : at + 8])
      event = event_pb2.Event.FromString(content[at + 12 : at + 12 + length])
      found += [(event.step, value.tag) for value in event.summary.value]
      at += 16 + length
  return found


def record(workdir, numbers, *, step=0, factor=1.0):
  """Records epochs of ten steps, as a stage does that continues from a step."""
  with recording.recorder(workdir, SPARSE, step=step) as write:
    for number in numbers:
      write(
        epoch=number,
        step=10 * number,
        loss=factor * number,
        learning_rate=0.1,
        scales_below={'0.01': 0.5},
        scales={'params/A/scale': np.full(3, factor * number), 'params/B/scale': np.full(5, 1e9)},
      )


@pytest.fixture
def workdir(tmp_path):
  return workdir_module.Workdir(files.path_of(tmp_path))


@pytest.mark.parametrize(
  'step, expected', [(10, [1.0, 20.0, 30.0]), (0, [10.0, 20.0, 30.0]), (20, [1.0, 2.0, 30.0])]
)
def test_a_stage_that_continues_has_each_epoch_once(workdir, step, expected):
  record(workdir, [1, 2])
  first = range(step // 10 + 1, 4)
  record(workdir, first, step=step, factor=10.0)
  assert [line['loss'] for line in workdir.metrics(SPARSE)] == expected
  scales = scale_history.read(workdir.scales(SPARSE))
  assert scales.epoch.tolist() == [1, 2, 3] and scales.step.tolist() == [10, 20, 30]
  assert scales.values['params/A/scale'].tolist() == [[x] * 3 for x in expected]
  assert scales.values['params/A/scale'].dtype == np.float16
  assert np.all(np.isfinite(scales.values['params/B/scale']))
  scalars, histograms, _ = curves.read(workdir.events(SPARSE))
  assert scalars['loss'] == [(10, expected[0]), (20, expected[1]), (30, expected[2])]
  assert set(scalars) == {'epoch', 'loss', 'learning_rate', 'scales_below/0.01'}
  assert histograms == {
    'scales': [(10, 8), (20, 8), (30, 8)],
    'scales/params/A/scale': [(10, 3), (20, 3), (30, 3)],
    'scales/params/B/scale': [(10, 5), (20, 5), (30, 5)],
  }
  found = steps(workdir.events(SPARSE))
  assert len(found) == len(set(found)) == 3 * 7


def test_a_killed_stage_leaves_what_it_has_seen(workdir):
  """Not closed, and half an event at the end."""
  with recording.recorder(workdir, SPARSE, step=0) as write:
    write(epoch=1, step=10, loss=1.0)
    (path,) = workdir.events(SPARSE).iterdir()
    assert curves.read(workdir.events(SPARSE))[0]['loss'] == [(10, 1.0)]
    content = path.read_bytes()
  path.write_bytes(content[:-5])
  record(workdir, [2], step=10)
  assert curves.read(workdir.events(SPARSE))[0]['loss'] == [(10, 1.0), (20, 2.0)]


def test_damaged_scales_are_said_and_begin_anew(workdir, caplog):
  record(workdir, [1, 2])
  workdir.scales(SPARSE).write_bytes(b'a')
  record(workdir, [3], step=20)
  assert (
    'scales-1.npz cannot be read' in caplog.text and 'recorded from this epoch on' in caplog.text
  )
  assert scale_history.read(workdir.scales(SPARSE)).epoch.tolist() == [3]
  assert len(workdir.metrics(SPARSE)) == 3
  epoch, step = np.array([[1, 2], [10, 20]], np.int32)
  np.savez(str(workdir.scales(SPARSE)), epoch=epoch, step=step, a=np.zeros((1, 3)))
  with pytest.raises(errors.WorkdirError, match='epochs are missing'):
    scale_history.read(workdir.scales(SPARSE))


def test_what_the_disk_does_not_take_is_said_once(workdir, caplog, monkeypatch):
  def fail(*_):
    raise OSError(errno.ENOSPC, 'No space left on device')

  monkeypatch.setattr(scale_history, 'write', fail)
  record(workdir, [1, 2, 3])
  assert [line['epoch'] for line in workdir.metrics(SPARSE)] == [1, 2, 3]
  assert caplog.text.count('are no longer recorded: [Errno 28] No space left') == 1


def test_a_full_disk_raises_and_does_not_block(workdir):
  """SummaryWriter would wait for ever for a thread that has ended."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  line = {f'curve/{number}': 0.5 for number in range(100)}
  with pytest.raises(OSError, match='too large'), events.replace(workdir.events(SPARSE)) as board:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
      for step in range(100):
        board.metrics({**line, 'step': step})
        board.flush()
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert curves.read(workdir.events(SPARSE))[0]['curve/0'][0] == (0, 0.5)


def test_events_of_a_bucket_are_copied_there(tmp_path, monkeypatch):
  monkeypatch.setattr(files, 'is_remote', lambda path: 'far-away' in str(path))
  target = files.path_of(tmp_path) / 'far-away' / 'tensorboard'
  monkeypatch.setattr(
    files,
    'write',
    lambda path, content: (
      path.parent.mkdir(parents=True, exist_ok=True),
      path.write_bytes(content),
    ),
  )
  for value in (1.0, 2.0):
    with events.replace(target) as board:
      board.metrics({'step': 5, 'loss': value, 'time': 100.0})
      board.flush()
      assert value == 2.0 or not target.exists()  # a minute has not gone by
  assert curves.read(target)[0] == {'loss': [(5, 2.0)]}
  assert len(list(target.iterdir())) == 1


def test_a_run_has_curves_histograms_and_its_table(two_passes):
  _, path, records = two_passes
  workdir = workdir_module.Workdir(files.path_of(path))
  trained = [Stage.of(row) for row in records if row['stage'] != 'pruned']
  assert sorted(each.name for each in (path / 'tensorboard').iterdir()) == sorted(
    ['stages', *(f'{stage.number}-{stage.name}' for stage in trained)]
  )
  for stage in trained:
    lines = workdir.metrics(stage)
    scalars, histograms, _ = curves.read(workdir.events(stage))
    for name in ('loss', 'accuracy', 'learning_rate'):
      assert [at for at, _ in scalars[name]] == [line['step'] for line in lines]
      assert [value for _, value in scalars[name]] == pytest.approx([line[name] for line in lines])
    assert len(histograms) == (3 if stage.name == 'sparse' else 0)
    assert all(len(found) == len(lines) for found in histograms.values())
  _, _, (text,) = curves.read(path / 'tensorboard' / 'stages')
  assert text == tables.markdown(records)
  assert text.count('\n| ') == 1 + len(records) and 'Warning: sparse, pass 1' in text


def test_the_last_scales_are_those_of_the_checkpoint(two_passes):
  _, path, records = two_passes
  workdir = workdir_module.Workdir(files.path_of(path))
  for number in (1, 2):
    found = scale_history.read(workdir.scales(Stage(number, 'sparse')))
    (record_,) = [row for row in records if Stage.of(row) == Stage(number, 'sparse')]
    assert {name: values.shape for name, values in found.values.items()} == {
      name: (2, width) for name, width in record_['widths'].items()
    }
    last = np.concatenate([values[-1] for values in found.values.values()])
    assert np.mean(last < 0.01) == pytest.approx(record_['small_scales'], abs=0.01)


def test_the_table_of_metrics_has_every_line(two_passes):
  _, path, _ = two_passes
  lines = [json.loads(line) for line in (path / 'metrics.jsonl').read_text().splitlines()]
  with open(path / 'metrics.csv', newline='') as file:
    rows = list(csv.DictReader(file))
  for row, line in zip(rows, lines, strict=True):
    assert row['stage'] == line['stage'] and float(row['loss']) == line['loss']
    assert row['test_accuracy'] == str(line.get('test_accuracy', ''))
    below = line.get('scales_below', {})
    assert row['scales_below/0.01'] == str(below.get('0.01', ''))
