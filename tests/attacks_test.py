"""Attacks on whole runs; all are long. Each prints what it tried.

  python -m pytest --slow -s tests/attacks_test.py -k kills          ATTACKS=200
  python -m pytest --slow -s tests/attacks_test.py -k "want_one or stopped or study or switches or odd"
  python -m pytest --slow -s tests/attacks_test.py -k torn           ATTACKS=500
  python -m pytest --slow -s tests/attacks_test.py -k image_files    (80)
  python -m pytest --slow -s tests/attacks_test.py -k mistakes       (40)
  python -m pytest --slow -s tests/readers_test.py                   (10,000 for each reader)

The variable ATTACKS of the environment sets how many kills and damaged files there are.
"""

import collections
import io
import json
import os
import pathlib
import re
import shutil
import signal
import sys
import time
import warnings

from helpers import commands, compiling, configs, pages, pictures
from helpers.trees import same
import numpy as np
import PIL.Image
import pytest

import slim_jax
from slim_jax import data
from slim_jax.errors import SlimError
from slim_jax.report import page
from slim_jax.runs import finished, pipeline

pytestmark = pytest.mark.slow

KILLER = str(pathlib.Path(__file__).parent / 'helpers' / 'killer')

# A run with every kind of stage.
FIELDS = {
  **commands.TINY,
  'model.name': 'mlp',
  'model.widths': (12, 8),
  'passes': 1,
  'recalibrate_batches': 1,
  'finetune.epochs': 3,
  'scratch.e': True,
}
TWO = {'XLA_FLAGS': compiling.flags(2)}


def attacks(default):
  return int(os.environ.get('ATTACKS', default))


def records_of(workdir):
  """Returns the records of a run without what differs from call to call."""
  records = json.loads((workdir / 'stages.json').read_text())
  return [{**record, 'seconds': 0} for record in records]


# -- Kills ---------------------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def venv(tmp_path_factory):
  return commands.make_venv(tmp_path_factory.mktemp('venv'))


def programs(workdir, digits_dir, processes):
  """The commands of a run, one after another, and what they are called."""
  fields = {**FIELDS, 'data_dir': digits_dir}
  if processes > 1:
    train = ['bash', 'launch/processes.sh', str(processes), *commands.flags_of(workdir, **fields)]
  else:
    train = commands.main(workdir, report=True, **fields)
  export = [sys.executable, '-m', 'slim_jax.export', f'--workdir={workdir}']
  return {'train': [*train, '--report'], 'export': export}


@pytest.mark.parametrize('processes', [1, 2])
def test_kills_at_random_changes_of_files_lose_nothing(processes, digits_dir, venv, tmp_path):
  """Every run ends as one that nobody disturbs: records with their digests, page, exported file."""
  environ = {'PYTHONPATH': KILLER, 'VENV': str(venv), **(TWO if processes > 1 else {})}

  def call(name, workdir, **attack):
    started = commands.start(
      programs(workdir, digits_dir, processes)[name],
      **environ,
      ATTACK_ROOT=str(workdir),
      **{f'ATTACK_{key}': str(value) for key, value in attack.items()},
    )
    output, _ = started.communicate()
    assert 'Traceback' not in output or 'SIGKILL' == attack.get('SIGNAL'), output
    return started.returncode, output

  whole, changes = tmp_path / 'whole', {}
  for name in ('train', 'export'):
    code, output = call(name, whole, COUNT=tmp_path / 'count')
    assert code == 0, output
    changes[name] = int((tmp_path / 'count').read_text())
  random, kills, runs = np.random.default_rng(processes), collections.Counter(), 0
  while sum(kills.values()) < attacks(200) // 2:
    workdir, runs = tmp_path / f'run{runs}', runs + 1
    for name in ('train', 'export'):
      while True:
        number = random.choice(['SIGKILL', 'SIGKILL', 'SIGTERM', 'SIGINT'])
        # An export starts from the beginning each time, so some must not be killed.
        at = int(random.integers(1, 2 * changes[name] if name == 'export' else changes[name]))
        code, output = call(name, workdir, AT=at, SIGNAL=number)
        if code == 0:
          break
        kills[str(number)] += 1
        print(f'{number} before change {at} of {name}', flush=True)
        assert code in (-9, 137, 143, 130, -15, -2, 1), output
        assert not re.search(r'^\w*Error', output, re.M) or processes > 1, output
    assert records_of(workdir) == records_of(whole)
    assert same(slim_jax.load(workdir)[1], slim_jax.load(whole)[1])
    pages.check(workdir)
    assert (workdir / 'network.stablehlo').read_bytes() == (
      whole / 'network.stablehlo'
    ).read_bytes()
    print(f'{processes} processes: {dict(kills)} in {runs} runs, none lost anything', flush=True)
    shutil.rmtree(workdir)


def test_several_runs_want_one_workdir(digits_dir, tmp_path):
  """One gets it, the others say so; the run is as any other."""
  fields = {**FIELDS, 'data_dir': digits_dir}
  all_at_once = [commands.start(commands.main(tmp_path / 'run', **fields)) for _ in range(4)]
  outputs = [(process.communicate()[0], process.returncode) for process in all_at_once]
  refused = [output for output, code in outputs if code]
  assert len(refused) == 3 or all(
    'complete already' in output for output, code in outputs if not code
  )
  assert all('WorkdirError: another run is at work' in output for output in refused), refused
  commands.run(commands.main(tmp_path / 'alone', **fields))
  assert records_of(tmp_path / 'run') == records_of(tmp_path / 'alone')


@pytest.mark.parametrize('processes', [1, 2])
def test_a_process_that_is_stopped_for_a_while_changes_nothing(
  processes, digits_dir, venv, tmp_path
):
  """SIGSTOP and SIGCONT, as batch systems suspend jobs; of two processes, the second one."""
  environ = {'VENV': str(venv), **(TWO if processes > 1 else {})}

  def start(workdir):
    command = programs(workdir, digits_dir, processes)['train']
    return commands.start([*command, '--noreport'], **environ)

  commands.finish(start(tmp_path / 'whole'))
  run = start(tmp_path / 'run')
  while not (tmp_path / 'run' / 'metrics.jsonl').exists():
    assert run.poll() is None, run.communicate()[0]
    time.sleep(0.01)
  stopped = run.pid if processes == 1 else _trainers(run.pid)[-1]
  for _ in range(3):
    os.kill(stopped, signal.SIGSTOP)
    time.sleep(3)
    os.kill(stopped, signal.SIGCONT)
    time.sleep(0.5)
    if run.poll() is not None:
      break
  commands.finish(run)
  assert records_of(tmp_path / 'run') == records_of(tmp_path / 'whole')


def _trainers(pid):
  """Returns the processes below one that are Python, by number."""
  below = []
  for child in pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text().split():
    name = pathlib.Path(f'/proc/{child}/cmdline').read_bytes()
    below += [int(child)] * (b'slim_jax.main' in name.split(b'\0')) + _trainers(child)
  return sorted(set(below))


def test_a_study_that_is_killed_goes_on(digits_dir, tmp_path):
  fields = {**FIELDS, 'data_dir': digits_dir, 'scratch.e': False}

  def call(workdir, **attack):
    command = commands.main(workdir, **fields)
    command[2] = 'slim_jax.sweep'
    process = commands.start(
      [*command, '--sweep=prune.fraction=0.2,0.5'],
      PYTHONPATH=KILLER,
      ATTACK_ROOT=str(workdir),
      **{f'ATTACK_{key}': str(value) for key, value in attack.items()},
    )
    output, _ = process.communicate()
    return process.returncode, output

  def points(workdir):
    saved = json.loads((workdir / 'sweep.json').read_text())['points']
    return [
      {**point, 'stages': [{**row, 'seconds': 0} for row in point['stages']]} for point in saved
    ]

  code, output = call(tmp_path / 'whole', COUNT=tmp_path / 'count')
  assert code == 0, output
  changes, random, kills = int((tmp_path / 'count').read_text()), np.random.default_rng(2), 0
  while kills < attacks(200) // 20:
    while call(tmp_path / 'run', AT=int(random.integers(1, changes // 2)))[0] != 0:
      kills += 1
    assert points(tmp_path / 'run') == points(tmp_path / 'whole')
    shutil.rmtree(tmp_path / 'run')
  print(f'{kills} kills of studies, none lost anything')


@pytest.mark.parametrize(
  'switch',
  [
    'JAX_ENABLE_X64=1',
    'JAX_DEBUG_NANS=1',
    'JAX_NUMPY_RANK_PROMOTION=raise',
    'JAX_DISABLE_JIT=1',
    'JAX_CHECK_TRACER_LEAKS=1',
    'JAX_THREEFRY_PARTITIONABLE=0',
    'JAX_DEFAULT_MATMUL_PRECISION=highest',
    'JAX_ENABLE_COMPILATION_CACHE=0',
  ],
)
def test_switches_of_jax(switch, digits_dir, tmp_path):
  """A run works under every switch, or says that it does not."""
  name, _, value = switch.partition('=')
  fields = {**FIELDS, 'data_dir': digits_dir, 'train_split': 'train[:64]', 'finetune.epochs': 1}
  process = commands.start(commands.main(tmp_path, report=True, **fields), **{name: value})
  output, _ = process.communicate()
  assert 'Traceback' not in output, output
  assert process.returncode == 0 or re.search(r'^\w+Error: ', output, re.M), output
  print(f'{switch}: {"complete" if process.returncode == 0 else output.splitlines()[-1]}')


@pytest.mark.parametrize(
  'name', ['a b', 'é ü 漢', 'a\nb', 'it\'s "it"', '--config', '$HOME;x', '%s{0}', '<b>']
)
def test_odd_paths(name, digits_dir, tmp_path):
  fields = {**FIELDS, 'data_dir': digits_dir, 'finetune.epochs': 1, 'train_split': 'train[:64]'}
  workdir = tmp_path / name
  commands.run(commands.main(workdir, report=True, **fields))
  pages.check(workdir)
  commands.run([sys.executable, '-m', 'slim_jax.export', f'--workdir={workdir}'])
  assert (workdir / 'network.stablehlo').exists() and slim_jax.load(workdir)


# -- Torn and flipped files ----------------------------------------------------------------------------


def damage(path, random):
  """Damages a file; returns how."""
  whole = path.read_bytes()
  how = random.choice(['flip', 'flip', 'tear', 'empty', 'delete', 'zeros'])
  if how == 'delete':
    path.unlink()
  elif how == 'flip' and whole:
    changed = bytearray(whole)
    changed[random.integers(len(whole))] ^= 1 << int(random.integers(8))
    path.write_bytes(changed)
  elif how == 'zeros' and whole:
    start = int(random.integers(len(whole)))
    path.write_bytes(whole[:start] + bytes(len(whole) - start))
  else:
    path.write_bytes(whole[: int(random.integers(len(whole) + 1)) if how == 'tear' else 0])
  return how


def opened(workdir):
  """Returns what `load` and `about` give: variables, logits, plan and figures."""
  apply, variables = slim_jax.load(workdir)
  about = finished.about(workdir)
  image = np.arange(2 * np.prod(about['image'])).reshape(2, *about['image']).astype(np.uint8)
  return variables, np.asarray(apply(variables, image)), str(finished.plan(workdir)), about


def test_torn_and_flipped_files_of_a_workdir(digits_dir, tmp_path):
  """A damaged file is refused, or makes no difference to the network; the page is always written."""
  config = configs.load('digits', **FIELDS, data_dir=digits_dir)
  whole = tmp_path / 'whole'
  records = pipeline.run(config, whole)
  page.write(whole)
  variables, logits, plan, _ = opened(whole)
  files = sorted(path for path in whole.rglob('*') if path.is_file())
  random, seen = np.random.default_rng(0), collections.Counter()
  for number in range(attacks(500)):  # about half a second each
    run = tmp_path / 'run'
    shutil.copytree(whole, run)
    path = run / files[random.integers(len(files))].relative_to(whole)
    how = damage(path, random)
    what = f'{how} of {path.relative_to(run)}'
    try:
      found = opened(run)
      assert same(found[0], variables), what
      np.testing.assert_array_equal(found[1], logits, what)
      assert found[2] == plan, what
      seen['opened'] += 1
    except SlimError:
      seen['refused'] += 1
    if number % 5 == 0:
      try:
        page.write(run)
        pages.check(run)
        seen['page'] += 1
      except SlimError as error:
        assert 'neither a run nor a study' in str(error), what
    try:
      again = pipeline.run(config, run)
      # A flip within a text that says what happened says another thing.
      if path.name != 'stages.json':
        assert [record['result'] for record in again] == [r['result'] for r in records], what
      seen['complete'] += 1
    except SlimError:
      seen['not continued'] += 1
    shutil.rmtree(run)
    if number % 50 == 49:
      print(f'{number + 1} tried, 0 failed: {dict(seen)}', flush=True)


def test_torn_files_of_a_run_that_goes_on(digits_dir, tmp_path):
  """Fine-tuning begins again from what is left; it ends bit for bit as before, or is refused."""
  config = configs.load('digits', **FIELDS, data_dir=digits_dir)
  whole = tmp_path / 'whole'
  records = pipeline.run(config, whole)
  fine = next(n for n, record in enumerate(records) if record['stage'] == 'finetuned')
  text = json.loads((whole / 'stages.json').read_text())
  (whole / 'stages.json').write_text(json.dumps(text[:fine]))
  shutil.rmtree(whole / 'checkpoints' / '1-scratch-e')
  files = sorted(path for path in whole.rglob('*') if path.is_file())
  random, seen = np.random.default_rng(1), collections.Counter()
  for _ in range(attacks(500) // 10):
    run = tmp_path / 'run'
    shutil.copytree(whole, run)
    path = run / files[random.integers(len(files))].relative_to(whole)
    what = f'{damage(path, random)} of {path.relative_to(run)}'
    try:
      again = pipeline.run(config, run)
      assert [r['result'] for r in again[fine:]] == [r['result'] for r in records[fine:]], what
      seen['complete'] += 1
    except SlimError:
      seen['refused'] += 1
    shutil.rmtree(run)
  print(f'{sum(seen.values())} tried, 0 failed: {dict(seen)}')


# -- Image files ---------------------------------------------------------------------------------------

MODES = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr', 'I;16', 'I', 'F')
KINDS = ('png', 'jpeg', 'bmp', 'gif', 'webp', 'tiff')


def picture(mode):
  values = pictures.photo(24, 20)
  if mode in ('I', 'F', 'I;16'):
    dtype = {'I': np.int32, 'F': np.float32, 'I;16': np.uint16}[mode]
    return PIL.Image.fromarray(values[..., 0].astype(dtype) * 256)
  return PIL.Image.fromarray(values).convert(mode)


def image_files():
  """Yields names and contents of files that call themselves images."""
  for mode in MODES:
    for kind in KINDS:
      content = io.BytesIO()
      try:
        picture(mode).save(content, kind)
      except (OSError, ValueError, KeyError):
        continue  # this kind has no such mode
      yield f'{mode}.{kind}', content.getvalue()
  good = pictures.encode(pictures.photo(24, 20))
  random = np.random.default_rng(0)
  for number in range(10):
    yield f'torn{number}.jpg', good[: len(good) * number // 10]
  for number in range(20):
    changed = bytearray(good)
    changed[random.integers(len(good))] ^= 1 << int(random.integers(8))
    yield f'flipped{number}.jpg', bytes(changed)
  yield 'text.jpg', b'no image'
  yield 'empty.png', b''
  yield 'png.jpg', pictures.encode(pictures.photo(24, 20), 'png')
  yield 'no channels.png', pictures.encode(pictures.photo(1, 1))
  yield 'zeros.bmp', bytes(500)


def test_image_files_are_read_or_refused_by_name(tmp_path):
  seen = collections.Counter()
  for number, (name, content) in enumerate(image_files()):
    root = tmp_path / str(number)
    folder = pictures.make_folder(root, n=(4, 3))
    path = root / 'train' / 'cat' / name
    path.write_bytes(content)
    try:
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # PIL warns of damage that it can read past
        split = data.load(folder, split='train', image_size=16)
        batch = next(iter(split.eval_batches(8)))
      assert batch['image'].dtype == np.uint8 and batch['image'].shape[1:] == split.shape, name
      seen['read'] += 1
    except SlimError as error:
      assert name in str(error) or 'train' in str(error), (name, error)
      seen['refused'] += 1
  print(f'{sum(seen.values())} image files: {dict(seen)}')
  assert sum(seen.values()) >= 60


# -- Mistakes ------------------------------------------------------------------------------------------

TRAIN = ['slim_jax.main', '--config=configs/digits.py', '--workdir={run}', '--noreport']
# Arguments, and what the one line that they end with must say.
MISTAKES = [
  ([], 'config'),
  (['slim_jax.main', '--config=configs/digits.py'], 'workdir'),
  (['slim_jax.main', '--workdir={run}'], 'config'),
  (['slim_jax.main', '--config=nothing', '--workdir={run}'], 'nothing'),
  (['slim_jax.main', '--config=configs/digit.py', '--workdir={run}'], 'digit.py'),
  (['slim_jax.main', '--config={file}', '--workdir={run}'], 'file'),
  ([*TRAIN, '--config.epochs=3'], 'epochs'),
  ([*TRAIN, '--config.train.epoch=3'], 'epochs'),
  ([*TRAIN, '--config.train.epochs=three'], 'three'),
  ([*TRAIN, '--config.train.epochs=0'], 'train.epochs=0'),
  ([*TRAIN, '--config.train.epochs=-1'], 'train.epochs=-1'),
  ([*TRAIN, '--config.batch_size=0'], 'batch_size=0'),
  ([*TRAIN, '--config.batch_size=1e9'], '1e9|batch_size'),
  ([*TRAIN, '--config.batch_size=1000000000'], 'batch_size'),
  ([*TRAIN, '--config.train.learning_rate=0'], 'learning_rate'),
  ([*TRAIN, '--config.train.learning_rate=nan'], 'learning_rate'),
  ([*TRAIN, '--config.prune.fraction=1'], 'prune.fraction'),
  ([*TRAIN, '--config.prune.fraction=70'], 'prune.fraction'),
  ([*TRAIN, '--config.prune.target=macs'], 'prune.target'),
  ([*TRAIN, '--config.prune.target=flops:0.5'], 'prune.target'),
  ([*TRAIN, "--config.prune.keep=('nothing',)"], 'nothing'),
  ([*TRAIN, '--config.model.name=vgg99'], 'vgg99'),
  ([*TRAIN, '--config.model.name=os:getcwd'], 'os:getcwd|getcwd'),
  ([*TRAIN, '--config.model.name=no.such:Model'], 'no'),
  ([*TRAIN, '--config.model.width=12'], 'width'),
  ([*TRAIN, "--config.model.widths=('a',)"], 'widths|model'),
  ([*TRAIN, '--config.dataset=digit'], 'digit'),
  ([*TRAIN, '--config.dataset=folder:/no/such'], '/no/such'),
  ([*TRAIN, '--config.dataset=/no/such.npz'], 'such.npz'),
  ([*TRAIN, '--config.train_split=training'], 'training'),
  ([*TRAIN, '--config.train_split=train[:0]'], 'train'),
  ([*TRAIN, '--config.loss=mse'], 'mse'),
  ([*TRAIN, '--config.dtype=float8'], 'float8'),
  ([*TRAIN, '--config.devices=99'], 'devices'),
  ([*TRAIN, '--config.init_from=/no/such'], '/no/such'),
  ([*TRAIN, '--config.init_from={file}'], 'file'),
  ([*TRAIN, '--until=finetune'], 'until'),
  ([*TRAIN, 'run'], 'not a flag: run'),
  ([*TRAIN[:2], '--workdir={file}'], 'file'),
  ([*TRAIN[:2], '--workdir=s3://bucket/run'], 'gs://'),
  ([*TRAIN[:2], '--workdir=/proc/run'], '/proc/run'),
  (['slim_jax.export', '--workdir={run}'], 'run'),
  (['slim_jax.export', '--workdir={run}', '--format=pt'], 'format'),
  (['slim_jax.report', '--workdir={run}'], 'neither a run nor a study'),
  (['slim_jax.latency', '--workdir={run}', '--batches=0'], 'batches'),
  (['slim_jax.look', *TRAIN[1:3], '--points=0'], 'points'),
  (['slim_jax.look', *TRAIN[1:3]], 'no run with a complete sparse stage'),
  (['slim_jax.sweep', *TRAIN[1:3]], 'sweep'),
  (['slim_jax.sweep', *TRAIN[1:3], '--sweep=seed'], 'seed'),
  (['slim_jax.sweep', *TRAIN[1:3], '--sweep=sed=1,2'], 'sed'),
  (['slim_jax.sweep', *TRAIN[1:3], '--sweep=seed=a'], 'seed'),
]


@pytest.mark.parametrize('number', range(len(MISTAKES)))
def test_mistakes_end_with_a_line_that_says_what(number, digits_dir, tmp_path):
  arguments, message = MISTAKES[number]
  (tmp_path / 'file').write_text('something')
  names = {'run': tmp_path / 'run', 'file': tmp_path / 'file'}
  arguments = [argument.format(**names) for argument in arguments] or ['slim_jax.main']
  if f'--workdir={tmp_path}/run' in arguments and arguments[0] in (
    'slim_jax.main',
    'slim_jax.look',
  ):
    arguments.append(f'--config.data_dir={digits_dir}')
  process = commands.start([sys.executable, '-m', *arguments, '--allocator=system'])
  output, _ = process.communicate()
  assert process.returncode not in (0, None), output
  assert process.returncode > 0 and 'Traceback' not in output, output
  assert re.search(message, output), output
  assert not list(tmp_path.glob('run/checkpoints/*')), 'work was begun'
