"""Readers of files: whatever is in a file, it is refused with one kind of error or read as it is.

The long tests give each reader 10,000 damaged files: python -m pytest --slow tests/readers_test.py
"""

import io
import json
import os
import struct
import tracemalloc

from etils import epath
from helpers import configs, mutants
import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import slim_jax
from slim_jax import data, npz
from slim_jax.channels import plan_file
from slim_jax.channels.cuts import Fold
from slim_jax.errors import SlimError
from slim_jax.report import read, study_page
from slim_jax.runs import pretrained, readers, scale_history
from slim_jax.runs.workdir import Workdir

# Files for each reader that the fast tests try.
FEW, MANY = 30, 10_000

VARIABLES = {
  'bn': {'scale': np.arange(1.0, 9), 'bias': np.ones(8)},
  'out': {'kernel': np.ones((8, 2))},
}

RECORDS = [
  {
    'pass': number,
    'stage': stage,
    'accuracy': 0.5,
    'loss': 1.0,
    'params': 10,
    'macs': 20,
    'seconds': 1.5,
    'widths': {'params/BatchNorm_0/scale': 8},
    'result': {'step': 4, 'arrays': '0123', 'network': '4567'},
  }
  for number, stage in ((0, 'baseline'), (1, 'sparse'))
]
LINE = {'epoch': 1, 'step': 4, 'loss': 1.0, 'accuracy': 0.5, 'learning_rate': 0.1}
DATASET = {
  'image': [8, 8, 1],
  'num_classes': 2,
  'class_names': ['cat', 'dog'],
  'mean': [3.5],
  'std': [1.5],
  'splits': {'train': {'images': 5, 'digest': 'abc'}},
}
LOOK = [
  {
    **dict.fromkeys(('fraction', 'accuracy', 'recalibrated'), 0.5),
    **dict.fromkeys(('params', 'macs', 'full_params', 'full_macs'), 10),
  }
]
LATENCY = {
  'device': 'cpu',
  'platform': 'cpu',
  'jax': '0',
  'time': 'now',
  'rows': [
    {'network': 'full', 'batch': 1, 'seconds': 0.5},
    {'network': 'thin', 'batch': 1, 'skipped': 'long'},
  ],
}
SWEEP = {
  'config': {'seed': 0},
  'points': [
    {'values': {'prune.fraction': 0.5}, 'workdir': 'a', 'stages': RECORDS, 'error': ''},
    {'values': {'prune.fraction': 0.2}, 'workdir': 'b', 'stages': RECORDS, 'error': 'no'},
  ],
}


def f(variables, x):
  x = x * variables['bn']['scale'][None] + variables['bn']['bias'][None]
  return x @ variables['out']['kernel']


def make_plan():
  """Returns a plan with everything that a file of a plan can have."""
  x = jnp.ones((3, 8))
  plan = slim_jax.plan(
    f, VARIABLES, x, dead=slim_jax.select_global(VARIABLES, fraction=0.25), bias='keep'
  )
  first, *_ = plan.cuts
  fold = Fold(0, np.arange(2), np.array([0.5, 1.0]), 1)
  return slim_jax.Plan(plan.cuts, ('sort(a)',), {first: 'a reason'}, {('out', 'kernel'): (fold,)})


def npz_of(**arrays):
  content = io.BytesIO()
  np.savez_compressed(content, **arrays)
  return content.getvalue()


def plan_bytes():
  content = io.BytesIO()
  make_plan().save(content)
  return content.getvalue()


def lines_of(*values):
  return b''.join(json.dumps(value).encode() + b'\n' for value in values)


def json_of(value):
  return json.dumps(value).encode()


def config_bytes():
  return json_of(configs.load('digits').to_dict())


def history_bytes(directory):
  scales = scale_history.empty().and_then(1, 4, {'params/bn/scale': np.ones(3)})
  scale_history.write(directory / 'x', scales.and_then(2, 8, {'params/bn/scale': np.zeros(3)}))
  return (directory / 'x').read_bytes()


# -- What a file says, told without the readers -----------------------------------------------------


def naive_json(content):
  return json.loads(content)


def naive_lines(content):
  return [json.loads(line) for line in content.decode().split('\n')[:-1]]


def naive_starts(content):
  result = []
  for line in content.decode().split('\n'):
    try:
      result.append(json.loads(line))
    except ValueError:
      continue
  return [line for line in result if isinstance(line, dict)]


def naive_npz(content):
  with np.load(io.BytesIO(content)) as file:
    return dict(file)


def naive_safetensors(content):
  (length,) = struct.unpack('<Q', content[:8])
  header = json.loads(content[8 : 8 + length])
  body = content[8 + length :]
  return {
    tuple(name.split('/')): (tuple(entry['shape']), body[slice(*entry['data_offsets'])])
    for name, entry in header.items()
    if name != '__metadata__'
  }


def same_arrays(arrays, naive):
  return arrays.keys() == naive.keys() and all(
    arrays[name].dtype == naive[name].dtype
    and np.array_equal(arrays[name], naive[name], equal_nan=naive[name].dtype.kind in 'fc')
    for name in arrays
  )


def same_plan(plan, content):
  """Whether a plan has the index sets of its file, and can be used."""
  arrays = naive_npz(content)
  head = json.loads(str(arrays['head']))
  assert str(plan)
  for n, (leaf, cut) in enumerate(plan.cuts.items()):
    assert list(leaf) == head['leaves'][n]['path'] and list(cut.shape) == head['leaves'][n]['shape']
    for axis, kept in enumerate(cut.live.axes):
      there = arrays.get(f'{n}.{axis}')
      if not cut.live.empty:
        assert (kept is None) == (there is None)
        assert kept is None or np.array_equal(kept, there)
    if np.prod(cut.shape, dtype=float) < 10**6:
      thin = cut.slice(np.ones(cut.shape))
      assert thin.shape == cut.thin_shape and cut.expand(thin).shape == cut.shape
  return True


def same_history(scales, content):
  naive = naive_npz(content)
  return same_arrays({'epoch': scales.epoch, 'step': scales.step, **scales.values}, naive)


def same_config(config, content):
  return _holds(json.loads(json.dumps(config.to_dict())), json.loads(content))


def _holds(value, part):
  """Whether a value of JSON has all that another has; readers add defaults."""
  if isinstance(part, dict):
    return isinstance(value, dict) and all(_holds(value.get(k), v) for k, v in part.items())
  return json.dumps(value) == json.dumps(part)


def same_weights(arrays, content):
  naive = naive_safetensors(content)
  return arrays.keys() == naive.keys() and all(
    (array.shape, array.tobytes()) == naive[name] for name, array in arrays.items()
  )


def same_split(split, content):
  naive = naive_npz(content)
  label = naive['train_label']
  return np.array_equal(split.label, label.astype(split.label.dtype))


def equal(read_value, content):
  # A NaN somewhere the readers do not look is not equal to itself, but is printed alike.
  return json.dumps(read_value) == json.dumps(naive_json(content))


def equal_lines(read_value, content):
  return json.dumps(read_value) == json.dumps(naive_lines(content))


def equal_starts(read_value, content):
  return len(read_value) <= len(naive_starts(content))


def own_data(path):
  target = path.with_suffix('.npz')
  path.replace(target)
  return data.load(str(target), split='train')


def study(path):
  assert study_page.title(path.parent)
  return readers.read_json(path)


SPLIT = {'image': np.zeros((5, 4, 4, 1), np.uint8), 'label': np.arange(5) % 2}
OWN = {f'{split}_{name}': array for split in ('train', 'test') for name, array in SPLIT.items()}
WEIGHTS = {
  'params/bn/scale': np.ones(3, np.float32),
  'params/bn/bias': np.zeros((2, 2), np.float16),
}

# The reader of a kind of file: (name of the file, content, mutations, reader, whether what it
# returns is what the file says).
READERS = {
  'plan': ('plan-1.npz', plan_bytes, mutants.of_npz, slim_jax.Plan.load, same_plan),
  'scales': (
    'scales-1.npz',
    lambda: npz_of(
      epoch=np.int32([1, 2]),
      step=np.int32([4, 8]),
      **{'params/bn/scale': np.ones((2, 3), np.float16)},
    ),
    mutants.of_npz,
    scale_history.read,
    same_history,
  ),
  'own data': ('own', lambda: npz_of(**OWN), mutants.of_npz, own_data, same_split),
  'weights': (
    'w.safetensors',
    lambda: safetensors.numpy.save(WEIGHTS),
    mutants.of_bytes,
    lambda path: pretrained.read(str(path)),
    same_weights,
  ),
  'config': ('config.json', config_bytes, mutants.of_json, readers.config, same_config),
  'dataset': ('dataset.json', lambda: json_of(DATASET), mutants.of_json, readers.dataset, equal),
  'stages': ('stages.json', lambda: json_of(RECORDS), mutants.of_json, readers.records, equal),
  'metrics': (
    'metrics.jsonl',
    lambda: lines_of(*({'pass': 1, 'stage': 'sparse', **LINE, 'step': step} for step in (4, 8))),
    mutants.of_lines,
    lambda path: [line for _, line in readers.metrics(path)],
    equal_lines,
  ),
  'starts': (
    'starts.jsonl',
    lambda: lines_of({'command': 'a'}, {'command': 'b'}),
    mutants.of_lines,
    readers.starts,
    equal_starts,
  ),
  'look': (
    'look.json',
    lambda: json_of(LOOK),
    mutants.of_json,
    lambda path: read.look(Workdir(path.parent)),
    equal,
  ),
  'latency': ('latency.json', lambda: json_of(LATENCY), mutants.of_json, read.latency, equal),
  'study': ('sweep.json', lambda: json_of(SWEEP), mutants.of_json, study, equal),
}


def attack(name, directory, count):
  """Gives a reader damaged files, and checks what it makes of them; returns how many it took."""
  file, content, mutate, reader, is_same = READERS[name]
  whole, path = content(), epath.Path(directory) / file
  path.write_bytes(whole)
  assert is_same(reader(path), whole)
  taken = []

  @hypothesis.settings(
    max_examples=count,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
  )
  @hypothesis.given(mutate(whole))
  def try_one(damaged):
    path.write_bytes(damaged)
    try:
      result = reader(path)
    except (SlimError, read.Missing):
      return
    taken.append(None)
    assert is_same(result, damaged)

  try_one()
  return len(taken)


@pytest.mark.parametrize('name', READERS)
def test_a_damaged_file_is_refused_or_read_as_it_is(name, tmp_path):
  attack(name, tmp_path, FEW)


def newer_plan():
  arrays = naive_npz(plan_bytes())
  head = {**json.loads(str(arrays['head'])), 'version': 2}
  return npz_of(**{**arrays, 'head': np.array(json.dumps(head))})


def plan_of(**changes):
  """A plan whose first leaf has other values in its head."""
  arrays = naive_npz(plan_bytes())
  head = json.loads(str(arrays['head']))
  head['leaves'][0] |= changes
  return npz_of(**{**arrays, 'head': np.array(json.dumps(head))})


@pytest.mark.parametrize(
  'content, message',
  [
    (newer_plan, r'a newer slim_jax wrote it \(format 2; this one knows 1\)'),
    (lambda: plan_of(shape=[2**40]), r'indices of an axis of 1099511627776 are bool\[8\]'),
    (lambda: plan_of(shape=[-8]), r'bn/bias has the shape \[-8\]'),
    (lambda: plan_of(path=['out', 'kernel']), 'out/kernel is there twice'),
    (lambda: plan_of(folds=[[1, 0]]), r'a fold has the axis and carrier \[1, 0\]'),
    (lambda: plan_of(empty=True), 'bn/bias: empty, and not'),
    (lambda: mutants.bomb('head', 2**28 + 2**20), r'it unpacks to 269,484,\d+ bytes, more than'),
    (lambda: b'PK', 'not a zip file'),
  ],
)
def test_a_plan_that_is_none_takes_no_memory_and_says_why(content, message):
  content = content()
  tracemalloc.start()
  try:
    with pytest.raises(plan_file.PlanError, match=message):
      slim_jax.Plan.load(io.BytesIO(content))
    assert tracemalloc.get_traced_memory()[1] < 2**24
  finally:
    tracemalloc.stop()


def test_a_header_that_lies_takes_no_memory(tmp_path):
  """80 TB in a file of some bytes, for every reader of arrays."""
  lie = mutants.zipped({'train_image.npy': mutants.lying((10**13,))})
  for read_file in (
    lambda path: npz.read(path, most=2**40),
    lambda path: data.load(str(path), split='train'),
    lambda path: scale_history.read(epath.Path(path)),
  ):
    (tmp_path / 'a.npz').write_bytes(lie)
    with pytest.raises(SlimError, match='claims to hold 80,000,000,000,000 bytes where 16 are'):
      read_file(tmp_path / 'a.npz')
  weights = json.dumps({'a': {'dtype': 'F64', 'shape': [10**13], 'data_offsets': [0, 8 * 10**13]}})
  content = struct.pack('<Q', len(weights)) + weights.encode() + bytes(16)
  (tmp_path / 'a.safetensors').write_bytes(content)
  with pytest.raises(SlimError, match='is no safetensors file, or is damaged'):
    pretrained.read(str(tmp_path / 'a.safetensors'))


@pytest.mark.parametrize('name', [name for name in READERS if name != 'own data'])
def test_a_pipe_is_refused_at_once(name, tmp_path):
  file, *_, read_file, _ = READERS[name]
  os.mkfifo(tmp_path / file)
  with pytest.raises(SlimError, match='it is no ordinary file|is no ordinary file'):
    read_file(epath.Path(tmp_path / file))


def test_names_in_files_lead_nowhere(tmp_path):
  """A stage or a point that is called like a path."""
  for record in ({'stage': '../../../etc'}, {'stage': 'sparse/x'}, {'pass': '../1'}):
    (tmp_path / 'stages.json').write_text(json.dumps([{**RECORDS[0], **record}]))
    with pytest.raises(SlimError, match='stages.json is damaged: record 1 has'):
      Workdir(epath.Path(tmp_path)).records()
  for name in ('..', '/etc', 'a/../..', ''):
    points = [{**SWEEP['points'][0], 'workdir': name}]
    (tmp_path / 'sweep.json').write_text(json.dumps({**SWEEP, 'points': points}))
    with pytest.raises(SlimError, match='sweep.json is damaged'):
      study_page.title(epath.Path(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize('name', READERS)
def test_ten_thousand_damaged_files(name, tmp_path):
  taken = attack(name, tmp_path, MANY)
  print(f'{name}: {MANY} tried, {taken} read as they are, the others refused')
