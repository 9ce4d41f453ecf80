"""Runs that are killed, stopped, damaged or started with wrong flags."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

from helpers import commands, configs, curves
from helpers.trees import same
import jax
import numpy as np
import pytest

import slim_jax
from slim_jax.channels.cuts import Cut
from slim_jax.runs import pipeline, workdir
from slim_jax.training import checkpoint, loop


def test_killed_run_ends_bit_identical(tmp_path, digits_dir):
  """SIGKILL in the middle of fine-tuning."""
  fields = {**commands.LONG, 'data_dir': digits_dir, 'finetune.epochs': 12}
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
  a, b = (
    json.loads((tmp_path / name / 'summary.json').read_text())['stages']
    for name in ('whole', 'killed')
  )
  assert [row['accuracy'] for row in a] == [row['accuracy'] for row in b]
  assert same(
    checkpoint.read(tmp_path / 'whole' / 'checkpoints' / '1-finetuned'),
    checkpoint.read(tmp_path / 'killed' / 'checkpoints' / '1-finetuned'),
  )
  loss = curves.read(tmp_path / 'killed' / 'tensorboard' / '1-finetuned')[0]['loss']
  lines = (tmp_path / 'killed' / 'metrics.jsonl').read_text().splitlines()
  assert [value for _, value in loss] == pytest.approx(
    [json.loads(line)['loss'] for line in lines[1:]]
  )
  assert [json.loads(line)['epoch'] for line in lines] == [1, *range(1, 13)]


@pytest.mark.slow
def test_terminated_run_saves_at_once_and_ends_bit_identical(tmp_path, digits_dir):
  """SIGTERM in the middle of an epoch, when no checkpoint is due."""
  fields = {
    **commands.LONG,
    'data_dir': digits_dir,
    'finetune.epochs': 15,
    'batch_size': 2,
    'checkpoint_every_epochs': 15,
    'log_every_steps': 1,
  }
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
  assert same(
    *(
      checkpoint.read(tmp_path / name / 'checkpoints' / '1-finetuned')
      for name in ('whole', 'ended')
    )
  )
  # The interrupted epoch also has the metrics of all its steps.
  a, b = (
    map(json.loads, (tmp_path / name / 'metrics.jsonl').read_text().splitlines())
    for name in ('whole', 'ended')
  )
  for one, other in zip(a, b, strict=True):
    for name in ('step', 'loss', 'accuracy'):
      assert one[name] == pytest.approx(other[name], rel=1e-6)


def test_command_line_says_what_is_wrong(tmp_path):
  output = commands.run(commands.main(tmp_path, **{'train.epoch': 3}), code=1)
  assert 'Traceback' not in output
  assert "no field 'epoch'" in output and '"epochs"' in output


@pytest.mark.parametrize(
  'text, message',
  [
    (None, 'ConfigError: .* there is no such file'),
    (
      'def get_config(:',
      r'ConfigError: .* cannot be used: SyntaxError: invalid syntax \(own.py, line 1\)',
    ),
    ('x = 1', "ConfigError: .* cannot be used: AttributeError: .* no attribute 'get_config'"),
    ('def get_config(): return None', r'get_config\(\) returned None'),
    ('import nothing_of_this_name', 'ConfigError: .* cannot be used: ModuleNotFoundError'),
  ],
)
def test_config_that_is_none_ends_with_a_line(tmp_path, text, message):
  path = tmp_path / 'own.py'
  if text is not None:
    path.write_text(text + '\n')
  output = commands.run(
    [sys.executable, '-m', 'slim_jax.main', f'--config={path}', f'--workdir={tmp_path / "run"}'],
    code=1,
  )
  assert re.search(message, output, re.S), output
  assert not (tmp_path / 'run').exists()


@pytest.fixture(scope='module')
def tiny(digits_dir):
  config = configs.load('digits')
  config.update_from_flattened_dict({**commands.LONG, 'finetune.epochs': 1, 'data_dir': digits_dir})
  return config


@pytest.fixture(scope='module')
def complete(tiny, tmp_path_factory):
  """A complete run; copy it to damage it."""
  directory = tmp_path_factory.mktemp('complete')
  pipeline.run(tiny, directory)
  return directory


def only_first_stages(run, count):
  """Deletes the records and checkpoints of all stages but the first `count`."""
  path = run / 'stages.json'
  records = json.loads(path.read_text())
  for record in records[count:]:
    shutil.rmtree(run / 'checkpoints' / f'{record["pass"]}-{record["stage"]}')
  path.write_text(json.dumps(records[:count]))


def empty_all_files(directory):
  for path in directory.rglob('*'):
    if path.is_file():
      path.write_bytes(b'')


def save_again(directory, step):
  """Replaces a checkpoint with one of other weights."""
  arrays = checkpoint.read(directory, step=step)
  arrays['params'] = jax.tree.map(lambda x: x + 1, arrays['params'])
  shutil.rmtree(directory)
  with checkpoint.open_manager(directory, keep=1) as manager:
    checkpoint.save(manager, step, arrays, seconds=0.0)


def save_plan_again(path):
  """Replaces a plan with one of the same shapes that keeps other channels."""
  plan = slim_jax.Plan.load(path)

  def turned(cut):
    axes = (None if axis is None else axis[::-1].copy() for axis in cut.live.axes)
    return Cut.of(cut.shape, cut.live.with_axes(axes))

  slim_jax.Plan({leaf: turned(cut) for leaf, cut in plan.cuts.items()}).save(path)


DAMAGES = {
  'stages.json is half': (
    lambda run: (run / 'stages.json').write_text('[{'),
    'stages.json cannot be read',
  ),
  'stages.json is something else': (
    lambda run: (run / 'stages.json').write_text('{"a": 1}'),
    'stages.json is damaged',
  ),
  'config.json is half': (
    lambda run: (run / 'config.json').write_text('{'),
    'config.json cannot be read',
  ),
  'dataset.json is half': (
    lambda run: (only_first_stages(run, 1), (run / 'dataset.json').write_text('{')),
    'dataset.json cannot be read',
  ),
  'dataset.json is of other data': (
    lambda run: (
      only_first_stages(run, 1),
      (run / 'dataset.json').write_text('{"num_classes": 3}'),
    ),
    r'dataset.json differs .*num_classes: 3 there, 10 now',
  ),
  'an image of the data has changed': (
    lambda run: (
      only_first_stages(run, 1),
      (run / 'dataset.json').write_text(
        re.sub(r'"digest": "\w+"', '"digest": "0"', (run / 'dataset.json').read_text(), count=1)
      ),
    ),
    r'dataset.json differs .*splits\.train.*digest: "0" there, "\w{16}" now',
  ),
  'metrics.jsonl is damaged': (
    lambda run: (only_first_stages(run, 2), (run / 'metrics.jsonl').write_text('a\n')),
    'metrics.jsonl, line 1, is damaged',
  ),
  'the plan is damaged': (
    lambda run: (only_first_stages(run, 2), (run / 'plan-1.npz').write_bytes(b'a')),
    'plan .*plan-1.npz cannot be read: .*is not a plan, or is damaged',
  ),
  'the plan is gone': (
    lambda run: (only_first_stages(run, 2), (run / 'plan-1.npz').unlink()),
    'plan .*plan-1.npz cannot be read: .*No such file',
  ),
  'checkpoints are gone': (
    lambda run: (only_first_stages(run, 1), shutil.rmtree(run / 'checkpoints/1-sparse')),
    'there is no directory of checkpoints .*1-sparse',
  ),
  'the final checkpoint is damaged': (
    lambda run: (
      only_first_stages(run, 1),
      (run / 'checkpoints/1-sparse/4/meta/metadata').write_text('{}'),
    ),
    '1-sparse/4 cannot be read: damaged or missing: meta/metadata. It is the result of sparse',
  ),
  'the final checkpoint is gone': (
    lambda run: (
      only_first_stages(run, 1),
      (run / 'checkpoints/1-sparse/4').rename(run / 'checkpoints/1-sparse/3'),
    ),
    r'no checkpoint .*1-sparse/4 \(others there: 3\). It is the result of sparse',
  ),
  'the final checkpoint is another one': (
    lambda run: (only_first_stages(run, 1), save_again(run / 'checkpoints/1-sparse', 4)),
    '1-sparse/4 is not the one that was recorded. It is the result of sparse',
  ),
  'the plan is another one': (
    lambda run: (only_first_stages(run, 2), save_plan_again(run / 'plan-1.npz')),
    'plan-1.npz is not the one of pruned, pass 1',
  ),
  'checkpoints are empty': (
    lambda run: (only_first_stages(run, 1), empty_all_files(run / 'checkpoints/1-sparse')),
    '1-sparse/4 cannot be read: crc32.json is damaged. It is the result of sparse, pass 1, and no other',
  ),
  'the checkpoint is of another network': (
    lambda run: (
      only_first_stages(run, 1),
      shutil.rmtree(run / 'checkpoints/1-sparse'),
      shutil.copytree(run / 'other', run / 'checkpoints/1-sparse'),
    ),
    '1-sparse/4 is not the one that was recorded',
  ),
}


@pytest.mark.parametrize('what', DAMAGES)
def test_damaged_run_is_named_and_left_as_it_is(tiny, complete, tmp_path, what):
  damage, message = DAMAGES[what]
  run = tmp_path / 'run'
  shutil.copytree(complete, run)
  shutil.copytree(complete / 'checkpoints' / '1-finetuned', run / 'other')
  damage(run)
  before = sorted(run.rglob('*'))
  with pytest.raises((workdir.WorkdirError, checkpoint.CheckpointError)) as error:
    pipeline.run(tiny, run)
  assert re.search(message, str(error.value), re.S), str(error.value)
  assert set(before) <= set(run.rglob('*'))


def test_what_is_opened_is_what_the_record_says(complete, tmp_path):
  """A damaged result is an error for everybody; never an earlier epoch, other images or widths."""
  run = tmp_path / 'run'
  shutil.copytree(complete, run)
  _, variables = slim_jax.load(run)
  saved = checkpoint.read(run / 'checkpoints' / '1-finetuned', step=4)
  assert same(variables['params'], saved['params'])
  whole = (run / 'dataset.json').read_text()
  (run / 'dataset.json').write_text(whole.replace('"mean": [\n    ', '"mean": [\n    1'))
  with pytest.raises(
    workdir.WorkdirError, match='has changed since finetuned, pass 1 was recorded'
  ):
    slim_jax.load(run)
  (run / 'dataset.json').write_text(whole)
  save_plan_again(run / 'plan-1.npz')
  with pytest.raises(workdir.WorkdirError, match='plan-1.npz is not the one of pruned, pass 1'):
    slim_jax.load(run)
  shutil.copy(complete / 'plan-1.npz', run)
  save_again(run / 'checkpoints' / '1-finetuned', 4)
  with pytest.raises(checkpoint.CheckpointError, match='is not the one that was recorded'):
    slim_jax.load(run)
  output = commands.run([sys.executable, '-m', 'slim_jax.export', f'--workdir={run}'], code=1)
  assert 'CheckpointError: the checkpoint' in output and not (run / 'network.stablehlo').exists()


def test_a_lost_result_is_made_again_as_the_message_says(tiny, complete, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(complete, run)
  (run / 'checkpoints/1-pruned/0/meta/metadata').write_text('{}')
  only_first_stages(run, 2)
  with pytest.raises(checkpoint.CheckpointError, match='make the stage again: delete its record'):
    pipeline.run(tiny, run)
  only_first_stages(run, 1)
  records = pipeline.run(tiny, run)
  before = json.loads((complete / 'stages.json').read_text())
  assert [record['result'] for record in records] == [record['result'] for record in before]


def test_a_run_of_an_older_version_is_read_and_said(complete, tmp_path, caplog):
  run = tmp_path / 'run'
  shutil.copytree(complete, run)
  records = json.loads((run / 'stages.json').read_text())
  for record in records:
    del record['result']
  (run / 'stages.json').write_text(json.dumps(records))
  _, variables = slim_jax.load(run)
  assert same(variables, slim_jax.load(complete)[1])
  assert 'recorded this stage without naming its checkpoint' in caplog.text


def test_divergence_says_which_checkpoint_stays(tiny, complete, tmp_path):
  """A stage that continues from parameters that are not finite."""
  run = tmp_path / 'run'
  shutil.copytree(complete, run)
  only_first_stages(run, 2)
  arrays = checkpoint.read(complete / 'checkpoints' / '1-finetuned')
  arrays['params'] = jax.tree.map(lambda x: x * np.nan, arrays['params'])
  arrays['step'] = np.int32(2)
  directory = run / 'checkpoints' / '1-finetuned'
  with checkpoint.open_manager(directory, keep=1) as manager:
    checkpoint.save(manager, 2, arrays, seconds=0.0)
  with pytest.raises(
    loop.DivergedError,
    match=f'finetuned, pass 1: at step .*, the loss is not finite.*; the checkpoint of step 2 stays in {directory}',
  ):
    pipeline.run(tiny, run)


def test_workdir_that_cannot_be_is_refused(tiny, tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(workdir.WorkdirError, match='cannot write in the workdir .*file'):
    pipeline.run(tiny, tmp_path / 'file')


def test_full_disk_ends_with_a_line_and_what_is_complete_stays(digits_dir, tmp_path):
  """On a file system of its own; not every machine permits to mount one."""
  mount = [
    'unshare',
    '--mount',
    '--map-root-user',
    'bash',
    '-c',
    'mount -t tmpfs -o size=300k tmpfs "$0" && "$@"; code=$?; find "$0"; exit $code',
    str(tmp_path),
  ]
  try:
    subprocess.run([*mount, 'true'], check=True, capture_output=True)
  except (OSError, subprocess.CalledProcessError) as error:
    pytest.skip(f'no file system can be mounted: {error}')
  fields = {**commands.LONG, 'data_dir': digits_dir, 'train.epochs': 40, 'keep_checkpoints': 100}
  output = commands.run([*mount, *commands.main(tmp_path / 'run', **fields)], code=1)
  message = re.search(
    r'CheckpointError: cannot write a checkpoint to .*1-sparse: No space left on '
    r'device. Complete checkpoints stay \(steps: ([\d, ]+)\)',
    output,
  )
  assert message, output
  for step in message[1].split(', '):
    assert f'{tmp_path}/run/checkpoints/1-sparse/{step}/crc32.json' in output


@pytest.mark.slow
def test_kills_at_random_moments_lose_nothing(digits_dir, tmp_path):
  """Over the whole pipeline with two passes, the result is bit for bit that of no kills."""
  fields = {**commands.TINY, 'data_dir': digits_dir, 'model.name': 'mlp', 'model.widths': (12, 8)}
  commands.run(commands.main(tmp_path / 'whole', **fields))
  random, kills, runs = np.random.default_rng(0), 0, 0
  while kills < 20:  # attacks_test.py has hundreds
    runs += 1
    name = tmp_path / f'run{runs}'
    while True:
      process = commands.start(commands.main(name, **fields))
      begun = time.time()
      # The process comes to the run after it has imported all it needs.
      while process.poll() is None and not (
        (name / 'lock').exists() and (name / 'lock').stat().st_mtime > begun
      ):
        time.sleep(0.01)
      try:
        process.wait(timeout=random.uniform(0, 8))
      except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        kills += 1
      else:
        commands.finish(process)
        break
    one, other = (
      json.loads((path / 'stages.json').read_text()) for path in (tmp_path / 'whole', name)
    )
    for a, b in zip(one, other, strict=True):
      assert {**a, 'seconds': 0} == {**b, 'seconds': 0}
      stage = f'{a["pass"]}-{a["stage"]}'
      assert same(
        *(checkpoint.read(path / 'checkpoints' / stage) for path in (tmp_path / 'whole', name))
      )
    print(f'{kills} kills, {runs} runs complete', flush=True)
