"""Runs in an object store, a fake one on this machine."""

import json
import signal
import time

from helpers import commands, curves, fake_gcs, pages
from helpers.trees import same
import pytest

from slim_jax.runtime import files
from slim_jax.training import checkpoint


@pytest.fixture
def store():
  with fake_gcs.FakeGcs() as result:
    yield result


def start(store, command):
  return commands.start(command, GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT='false', **store.environ)


def download(store, directory):
  for (bucket, name), (content, _) in dict(store.objects).items():
    path = directory / bucket / name
    if not name.endswith('/'):
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(content)
  return directory


@pytest.mark.slow
def test_killed_run_in_a_bucket_ends_as_one_on_a_disk(store, digits_dir, tmp_path):
  fields = {**commands.LONG, 'data_dir': digits_dir, 'finetune.epochs': 8}
  disk = commands.start(commands.main(tmp_path / 'disk', **fields))
  bucket = start(store, commands.main('gs://bucket/run', **fields))
  while not any('1-finetuned/8/commit_success' in name for _, name in list(store.objects)):
    assert bucket.poll() is None, bucket.stdout.read()
    time.sleep(0.01)
  bucket.send_signal(signal.SIGKILL)
  bucket.communicate()
  commands.finish(disk)
  damaged = max(
    int(name.split('/')[3])
    for _, name in store.objects
    if name.startswith('run/checkpoints/1-finetuned/') and 'commit' in name
  )
  for bucket, name in list(store.objects):
    if f'1-finetuned/{damaged}/state' in name and '/d/' in name:
      store.put(bucket, name, b'')
  output = commands.finish(start(store, commands.main('gs://bucket/run', report=True, **fields)))
  assert f'1-finetuned/{damaged}: ' in output and 'so the previous one is used' in output
  assert any(f'1-finetuned/{damaged}.unreadable/' in name for _, name in store.objects)
  here = download(store, tmp_path / 'store') / 'bucket' / 'run'
  assert same(
    *(checkpoint.read(path / 'checkpoints' / '1-finetuned') for path in (here, tmp_path / 'disk'))
  )
  a, b = (json.loads((path / 'stages.json').read_text()) for path in (here, tmp_path / 'disk'))
  assert [{**row, 'seconds': 0} for row in a] == [{**row, 'seconds': 0} for row in b]
  loss = curves.read(here / 'tensorboard/1-finetuned')[0]['loss']
  assert [step // 4 for step, _ in loss] == [*range(1, 9)]
  assert len(list((here / 'tensorboard/1-finetuned').iterdir())) == 1
  assert pages.check(here).rows['latency'][1:]
  lines = (here / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['epoch'] for line in lines] == [1, *range(1, 9)]
  output = commands.finish(start(store, commands.main('gs://bucket/run', **fields)))
  assert 'This run is complete already: gs://bucket/run' in output


@pytest.mark.slow
def test_a_study_in_a_bucket_shares_its_stages(store, digits_dir):
  fields = {**commands.LONG, 'data_dir': digits_dir, 'finetune.epochs': 0}
  command = commands.main('gs://bucket/study', report=True, **fields)
  command[2] = 'slim_jax.sweep'
  commands.finish(start(store, [*command, '--sweep=prune.fraction=0.2,0.4']))
  names = {name for _, name in store.objects}
  assert {
    'study/sweep.json',
    'study/fraction.png',
    'study/report/index.html',
    'study/prune.fraction=0.4/summary.json',
  } <= names
  assert any(name.startswith('study/prune.fraction=0.2/checkpoints/1-sparse/') for name in names)


@pytest.mark.parametrize(
  'path, message',
  [
    ('s3://bucket/run', 'only gs:// can be used'),
    ('gs://bucket/run', r'needs the extra gcs: python -m pip install .slim_jax\[gcs\]'),
  ],
)
def test_store_that_cannot_be_used(path, message, monkeypatch):
  monkeypatch.setattr(files.importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(files.StoreError, match=message):
    files.path_of(path)
