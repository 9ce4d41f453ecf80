"""A person's own model, data, loss, term, score and optimiser: used, recorded, and found again."""

import json
import os
import re
import subprocess
import sys

from helpers import own_parts
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import slim_jax
from slim_jax import data, look, tree
from slim_jax.data import DataError
from slim_jax.errors import SlimError
from slim_jax.export import stablehlo
from slim_jax.report import page
from slim_jax.runs import checks, default, finished, pipeline
from slim_jax.runtime import parts
from slim_jax.sparsity import observe, penalties
from slim_jax.training import checkpoint, losses, optimiser

HERE = 'helpers.own_parts'
TESTS = os.path.dirname(__file__)


def config_of(**fields):
  """The config of a run of seconds; of the optimiser by its whole section."""
  config = default.get_config()
  config.update_from_flattened_dict(
    {
      'augment.flip': False,
      'augment.pad': 0,
      'eval_batch_size': 100,
      'batch_size': 50,
      'devices': 1,
      'baseline_epochs': 0,
      'train.epochs': 1,
      'train.strength': 0.01,
      'finetune.epochs': 0,
    }
  )
  for name, value in fields.items():
    section, _, field = name.rpartition('.')
    setattr(config[section] if section else config, field, value)
  return config.lock()


TASKS = {
  'multi_label': {
    'dataset': f'{HERE}:properties',
    'model.name': f'{HERE}:LinenNet',
    'loss': 'multi_label',
    'optimizer.name': 'adamw',
    'optimizer.b2': 0.99,
    'train.learning_rate': 0.01,
  },
  'regression': {
    'dataset': f'{HERE}:ink',
    'model.name': f'{HERE}:LinenNet',
    'model.width': 6,
    'loss': 'regression',
    'optimizer.name': f'{HERE}:signed',
    'train.learning_rate': 1e-3,
    'train.term': 'proximal',
  },
  'segmentation': {
    'dataset': f'{HERE}:scenes',
    'model.name': f'{HERE}:NnxSegmenter',
    'augment.flip': True,
    'augment.pad': 1,
    'loss': 'segmentation',
    'valid_split': 'test[:20]',
    'finetune.epochs': 1,
    'scratch.e': True,
  },
  'own loss': {
    'dataset': f'{HERE}:scenes',
    'model.name': f'{HERE}:NnxSegmenter',
    'loss': f'{HERE}:worst_pixel',
    'judge': 'worst_row',
    'train.term': f'{HERE}:half_l1',
    'prune.score': f'{HERE}:reversed_scale',
  },
}


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """Makes the run of a task on its first use: config, directory, records."""
  made = {}

  def run(task):
    if task not in made:
      workdir = tmp_path_factory.mktemp(task.replace(' ', '_'))
      config = config_of(**TASKS[task])
      made[task] = config, workdir, pipeline.run(config, workdir)
    return made[task]

  return run


def outputs_of(workdir, task):
  """Outputs of the finished network for the test split, and the labels."""
  image, label, _ = getattr(own_parts, TASKS[task]['dataset'].split(':')[1])('test')
  apply, variables = slim_jax.load(workdir)
  return np.asarray(apply(variables, image[..., None])), label


def test_multi_label(runs):
  _, workdir, records = runs('multi_label')
  logits, label = outputs_of(workdir, 'multi_label')
  right = (logits > 0) == label
  assert records[-1]['label_accuracy'] == pytest.approx(right.mean(), abs=1e-6)
  assert records[-1]['exact_accuracy'] == pytest.approx(right.all(1).mean(), abs=1e-6)
  assert records[-1]['params'] < records[0]['params']
  about = finished.about(workdir)
  assert about['class_names'] == ['even', 'large', 'loops'] and about['module'] is None
  assert about['exact_accuracy'] == records[-1]['exact_accuracy']


def test_regression_on_images_of_floating_numbers(runs):
  _, workdir, records = runs('regression')
  outputs, label = outputs_of(workdir, 'regression')
  error = np.abs(outputs - label).mean()
  assert records[-1]['absolute_error'] == pytest.approx(error, rel=1e-5)
  assert finished.about(workdir)['dtype'] == 'float32'
  # The proximal term is a step of its own, whatever the optimiser: it pulls by the learning rates.
  assert records[0]['pull'] == pytest.approx(0.01 * 1e-3 * (6 + 3 * 0.1 + 3 * 0.01))


@pytest.mark.slow
def test_segmentation(runs):
  _, workdir, records = runs('segmentation')
  names = [record['stage'] for record in records]
  assert names == ['sparse', 'pruned', 'finetuned', 'scratch-e']
  logits, label = outputs_of(workdir, 'segmentation')
  right = (logits.argmax(-1) == label).mean()
  assert records[2]['pixel_accuracy'] == pytest.approx(right, abs=1e-6)
  assert records[2]['best_epoch'] == 1
  line = json.loads((workdir / 'metrics.jsonl').read_text().splitlines()[-1])
  assert 0 <= line['pixel_accuracy'] <= 1 and 'accuracy' not in line


def test_own_loss_term_and_score(runs):
  config, workdir, records = runs('own loss')
  assert records[-1]['metrics'] == ['worst_row'] and records[-1]['judge'] == 'worst_row'
  logits, label = outputs_of(workdir, 'own loss')
  worst = (logits.argmax(-1) == label).mean(2).min(1).mean()
  assert records[-1]['worst_row'] == pytest.approx(worst, abs=1e-6)
  rows = look.run(config.copy_and_resolve_references(), workdir, [0.0, 0.5])
  assert rows[0]['worst_row'] == pytest.approx(records[0]['worst_row'])
  assert rows[1]['worst_row'] == pytest.approx(records[1]['worst_row'], abs=1e-6)
  assert look.suggest(rows, 1e3) == rows[1] and look.suggest(rows, -1e3) is None
  page.write(workdir)
  text = (workdir / 'report' / 'index.html').read_text()
  assert 'Worst row' in text and 'Traceback' not in text and 'damaged' not in text


def test_the_score_decides(runs):
  """The score keeps the smallest scales."""
  _, workdir, _ = runs('own loss')
  kept, removed = [], []
  scales = observe.by_layer(checkpoint.read(workdir / 'checkpoints' / '1-sparse')['params'])
  for path, scale in scales.items():
    live = finished.plan(workdir).cuts[tree.parse(path)].indices[0]
    kept.append(scale[live])
    removed.append(np.delete(scale, live))
  assert np.concatenate(kept).max() < np.concatenate(removed).min()


# In another process.

LOAD = """
import sys
import numpy as np
import slim_jax
workdir = sys.argv[1]
apply, variables = slim_jax.load(workdir)
print(np.asarray(apply(variables, np.zeros((2, 8, 16, 1), np.uint8))).shape)
"""


@pytest.mark.parametrize('path', [TESTS, ''], ids=['found', 'not found'])
def test_a_run_is_opened_where_its_model_can_be_imported(runs, path, tmp_path):
  _, workdir, _ = runs('own loss')
  environ = {**os.environ, 'PYTHONPATH': os.pathsep.join([os.path.dirname(TESTS), path])}
  done = subprocess.run(
    [sys.executable, '-c', LOAD, str(workdir)],
    env=environ,
    cwd=tmp_path,
    text=True,
    capture_output=True,
  )
  if path:
    assert done.stdout == '(2, 8, 16, 3)\n', done.stderr
  else:
    last = done.stderr.strip().splitlines()[-1]
    assert f"config.model.name='{HERE}:NnxSegmenter'" in last
    assert "Put the directory that holds 'helpers' on PYTHONPATH" in last


def test_exports_of_own_data_take_its_images(runs):
  _, workdir, _ = runs('regression')
  apply, variables = finished.load(workdir)
  content = stablehlo.convert(lambda x: apply(variables, x), (8, 8, 1), dtype='float32')
  image = own_parts.ink('test')[0][..., None].astype(np.float32)
  want = apply(variables, image)
  np.testing.assert_allclose(jax.export.deserialize(content).call(image), want, atol=1e-5)


# What is refused, before any work.


WRONG = [
  ({'model.name': 'no_such_package.x:Net'}, "holds 'no_such_package' on PYTHONPATH"),
  ({'model.name': f'{HERE}:Missing'}, "has no 'Missing'"),
  ({'model.name': f'{HERE}:__doc__'}, 'is str, which cannot be called'),
  ({'model.name': f'{HERE}:digits'}, 'unexpected keyword argument'),
  ({'model.width': 3, 'model.depth': 2}, 'depth'),
  ({'dataset': f'{HERE}:no_data'}, "has no 'no_data'"),
  ({'dataset': f'{HERE}:ink', 'image_size': 32}, 'image_size=32 must be 0'),
  ({'loss': 'multilabel'}, "did you mean 'multi_label'"),
  ({'loss': f'{HERE}:no_loss'}, "has no 'no_loss'"),
  ({'train.term': f'{HERE}:no_term'}, "has no 'no_term'"),
  ({'prune.score': 'largest'}, "your own is 'module:name'"),
  ({'optimizer.name': 'adamm'}, "optax has no 'adamm'"),
  ({'optimizer.name': 'adamw', 'optimizer.beta': 1}, "unexpected keyword argument 'beta'"),
  ({'optimizer.b2': 0.9}, "optimizer.name='sgd' takes its arguments from momentum"),
  ({'optimizer.name': 'global_norm'}, 'optimizer.name'),
]


@pytest.mark.parametrize('fields, message', WRONG, ids=[str(fields) for fields, _ in WRONG])
def test_what_cannot_be_found_is_one_line(fields, message):
  fields = {'dataset': f'{HERE}:ink', 'model.name': f'{HERE}:LinenNet', **fields}
  with pytest.raises(checks.ConfigError, match=re.escape(message)) as error:
    checks.check_config(config_of(**fields))
  assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'dataset': f'{HERE}:ink'}, 'config.loss may be classification, multi_label'),
    ({'loss': f'{HERE}:not_one_each'}, r'loss is \[\]'),
    ({'loss': 'segmentation', 'dataset': f'{HERE}:properties'}, "config.loss='segmentation'"),
    ({'loss': 'multi_label', 'judge': 'f1'}, 'none of the figures .*loss, label_accuracy'),
  ],
)
def test_what_does_not_fit_is_said_before_training(fields, message, tmp_path):
  fields = {'dataset': f'{HERE}:properties', 'model.name': f'{HERE}:LinenNet', **fields}
  with pytest.raises(SlimError, match=message):
    pipeline.run(config_of(**fields), tmp_path)


# Data.


def test_a_file_of_arrays(tmp_path):
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (10, 4, 4, 3), np.uint8)
  label = rng.integers(0, 3, 10)
  arrays = {'train_image': image, 'train_label': label, 'x_test': image[:4], 'y_test': label[:4]}
  np.savez(tmp_path / 'a.npz', **arrays)
  name = str(tmp_path / 'a.npz')
  train = data.load(name, split='train[20%:]+test')
  np.testing.assert_array_equal(train.image, np.concatenate([image[2:], image[:4]]))
  np.testing.assert_array_equal(train.label, np.concatenate([label[2:], label[:4]]))
  assert train.label.dtype == np.int32 and train.class_names == ('0', '1', '2')
  np.testing.assert_allclose(train.mean, train.image.mean((0, 1, 2)), rtol=1e-6)
  with pytest.raises(DataError, match="no split 'valid': it needs the arrays valid_image"):
    data.load(name, split='valid')
  np.savez(tmp_path / 'b.npz', train_image=image, train_label=label[:3])
  with pytest.raises(DataError, match='there are 10 images, but labels of shape'):
    data.load(str(tmp_path / 'b.npz'), split='train')
  (tmp_path / 'c.npz').write_text('no arrays')
  for missing in ('c.npz', 'd.npz'):
    with pytest.raises(DataError, match='cannot be read'):
      data.load(str(tmp_path / missing), split='train')


def test_statistics_of_floating_images():
  image = np.random.default_rng(0).normal(3, 2, (50, 4, 4, 2)).astype(np.float32)
  image[..., 1] = 7
  mean, std = data.channel_statistics(image)
  np.testing.assert_allclose(mean, [image[..., 0].mean(), 7], rtol=1e-5)
  np.testing.assert_allclose(std, [image[..., 0].std(), 1], rtol=1e-5)


def test_labels_of_pixels_move_with_their_image():
  image = np.arange(1, 65, dtype=np.uint8).reshape(8, 8, 1)
  for seed in range(8):
    key = jax.random.key(seed)
    moved = data.augment(key, image[None], pad=2, flip=True)[0, ..., 0]
    label = data.augment_pixels(key, image[..., 0].astype(np.int32), pad=2, flip=True)
    np.testing.assert_array_equal(np.where(moved == 0, -1, np.int32(moved)), label)


def test_pixels_of_the_padding_count_for_nothing():
  logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2, 3)))
  label = np.array([[[0, 1], [-1, -1]], [[2, 2], [0, 1]]])
  loss, metrics = losses.segmentation(logits, {'label': label})
  want = losses.cross_entropy(logits[0, 0], label[0, 0]).mean()
  np.testing.assert_allclose(loss[0], want, rtol=1e-6)
  right = logits[0, 0].argmax(-1) == label[0, 0]
  np.testing.assert_allclose(metrics['pixel_accuracy'][0], right.mean())


# Optimisers.


def test_the_term_of_other_optimisers_is_decoupled():
  """A scale without gradient moves by lr * strength each step, whatever Adam divides by."""
  config = config_of(**{'optimizer.name': 'adamw', 'weight_decay': 0.0})
  params = {'BatchNorm_0': {'scale': jnp.array([0.5, -0.5]), 'bias': jnp.zeros(2)}}
  tx = optimiser.make_tx(config, lambda step: 0.1, strength=0.2)
  state = tx.init(params)
  for _ in range(3):
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    params = optax.apply_updates(params, updates)
  np.testing.assert_allclose(params['BatchNorm_0']['scale'], [0.44, -0.44], rtol=1e-5)
  silent = optimiser.make_tx(config, lambda step: 0.1, strength=0.0).init(params)
  assert jax.tree.structure(state) == jax.tree.structure(silent)


def test_sgd_is_as_it_was():
  config = config_of()
  schedule = lambda step: 0.1 / (1 + step)
  mine = optimiser.make_tx(config, schedule, strength=0.01)
  want = optax.chain(
    optax.add_decayed_weights(1e-4),
    penalties.add_l1(0.01),
    optax.sgd(schedule, momentum=0.9, nesterov=True),
  )
  params = {'BatchNorm_0': {'scale': jnp.ones(2), 'bias': jnp.zeros(2)}}
  assert jax.tree.structure(mine.init(params)) == jax.tree.structure(want.init(params))


def test_names_of_parts():
  assert parts.is_name('a.b:C.d') and parts.is_name('a:b')
  for text in ('', 'a', 'a:', ':b', 'mnist:3.0.1', 'folder:/data', 'a b:c'):
    assert not parts.is_name(text)
