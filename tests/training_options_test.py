"""Options of training: soft labels, RandAugment, clipping, averages, distillation, early stopping."""

import json
import os
import subprocess
import sys

from absl import logging
from helpers import commands, own_parts
import jax
import jax.numpy as jnp
import numpy as np
import optax
import PIL.Image
import PIL.ImageOps
import pytest

import slim_jax
from slim_jax import data
from slim_jax.data import rand_augment
from slim_jax.runs import checks, default, pipeline, tracking
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files
from slim_jax.training import checkpoint, distillation, losses, mixing, optimiser, train_state

HERE = 'helpers.own_parts'


def config_of(**fields):
  config = default.get_config()
  config.update_from_flattened_dict(
    {
      'dataset': f'{HERE}:classes',
      'model.name': f'{HERE}:LinenNet',
      'augment.flip': False,
      'augment.pad': 0,
      'eval_batch_size': 100,
      'batch_size': 50,
      'devices': 1,
      'baseline_epochs': 1,
      'train.epochs': 1,
      'train.strength': 0.01,
      'finetune.epochs': 1,
      'checkpoint_every_epochs': 1,
      **fields,
    }
  )
  return config.lock()


# Soft labels.


def batch_of(label, size=6, seed=0):
  image = np.random.default_rng(seed).normal(size=(len(label), size, size, 1)).astype(np.float32)
  return {'image': jnp.asarray(image), 'label': jnp.asarray(label)}


def test_smoothed_labels():
  batch = batch_of(np.array([2, 0]))
  mixed = mixing.mix(jax.random.key(0), batch, mixing.Mixing(0.3, 0.0, 0.0, 3))
  np.testing.assert_allclose(mixed['label'], [[0.1, 0.1, 0.8], [0.8, 0.1, 0.1]], rtol=1e-6)
  assert mixed['image'] is batch['image']
  # The metric counts the class, and the loss is that of the probabilities.
  logits = jnp.array([[0.0, 0.0, 5.0], [0.0, 3.0, 0.0]])
  loss, metrics = losses.classification(logits, mixed)
  np.testing.assert_array_equal(metrics['accuracy'], [True, False])
  want = -(mixed['label'] * jax.nn.log_softmax(logits)).sum(-1)
  np.testing.assert_allclose(loss, want, rtol=1e-6)


def test_mixup_blends_images_as_labels():
  batch = batch_of(np.arange(4))
  mixed = mixing.mix(jax.random.key(1), batch, mixing.Mixing(0.0, 0.4, 0.0, 4))
  share = np.diag(mixed['label'])
  assert ((share > 0) & (share < 1)).all() and len(set(share.tolist())) == 4
  np.testing.assert_allclose(mixed['label'].sum(1), 1, rtol=1e-6)
  np.testing.assert_allclose(np.diag(mixed['label'][:, ::-1]), 1 - share, rtol=1e-6)
  own, other = batch['image'], batch['image'][::-1]
  want = share[:, None, None, None] * own + (1 - share)[:, None, None, None] * other
  np.testing.assert_allclose(mixed['image'], want, rtol=1e-5, atol=1e-6)


def test_cutmix_labels_are_the_shares_of_the_pixels():
  batch = batch_of(np.arange(40) % 4, size=16)
  batch['label'] = jax.nn.one_hot(batch['label'], 4)
  mixed = mixing.mix(jax.random.key(2), batch, mixing.Mixing(0.0, 0.0, 1.0, 4))
  from_other = np.asarray(mixed['image'] == batch['image'][::-1])[..., 0]
  from_own = np.asarray(mixed['image'] == batch['image'])[..., 0]
  np.testing.assert_array_equal(from_other, ~from_own)
  # Each part that comes from the partner is a box.
  for inside in from_other:
    rows, columns = inside.any(1), inside.any(0)
    np.testing.assert_array_equal(inside, rows[:, None] & columns[None])
  share = from_own.mean((1, 2))[:, None]
  want = share * batch['label'] + (1 - share) * batch['label'][::-1]
  np.testing.assert_allclose(mixed['label'], want, atol=1e-6)
  assert 0.3 < share.mean() < 0.85


def test_cutmix_pastes_the_labels_of_pixels():
  batch = batch_of(np.arange(8))
  batch['label'] = jnp.asarray(np.random.default_rng(1).integers(0, 9, (8, 6, 6)))
  mixed = mixing.mix(jax.random.key(3), batch, mixing.Mixing(0.0, 0.0, 1.0, 9))
  other = mixed['image'][..., 0] == batch['image'][::-1, ..., 0]
  np.testing.assert_array_equal(
    mixed['label'], jnp.where(other, batch['label'][::-1], batch['label'])
  )
  assert 0 < other.mean() < 1


def test_both_kinds_share_the_images():
  batch = batch_of(np.arange(400) % 4, size=8)
  mixed = mixing.mix(jax.random.key(4), batch, mixing.Mixing(0.0, 1.0, 1.0, 4))
  untouched_pixels = (mixed['image'] == batch['image']).any((1, 2, 3))
  assert 0.35 < untouched_pixels.mean() < 0.65


# RandAugment.


def as_pil(operation, image):
  return np.asarray(operation(PIL.Image.fromarray(image)), np.float32)


@pytest.mark.parametrize(
  'ours, theirs',
  [
    (rand_augment._equalize, PIL.ImageOps.equalize),
    (rand_augment._solarize, lambda image: PIL.ImageOps.solarize(image, 128)),
    (rand_augment._posterize, lambda image: PIL.ImageOps.posterize(image, 6)),
    (rand_augment._autocontrast, PIL.ImageOps.autocontrast),
    (rand_augment._identity, lambda image: image),
  ],
)
def test_operations_are_those_of_pil(ours, theirs):
  image = np.random.default_rng(0).integers(30, 200, (32, 24, 3), np.uint8)
  got = ours(jnp.asarray(image, jnp.float32), 0.5, jnp.float32(1))
  np.testing.assert_allclose(got, as_pil(theirs, image), atol=1)


@pytest.mark.parametrize('channels', [1, 3])
def test_rand_augment_keeps_the_shape_and_depends_on_the_key_alone(channels):
  image = np.random.default_rng(0).integers(0, 256, (1, 12, 12, channels), np.uint8)
  change = jax.jit(
    lambda key: data.augment(key, image, pad=0, flip=False, rand_layers=2, rand_magnitude=10)
  )
  results = [np.asarray(change(jax.random.key(seed))) for seed in range(12)]
  assert all(x.shape == image.shape and np.isfinite(x).all() for x in results)
  assert all(-1 <= x.min() and x.max() <= 256 for x in results)
  assert len({x.tobytes() for x in results}) > 8
  np.testing.assert_array_equal(results[0], change(jax.random.key(0)))


def test_geometry_turns_and_shifts():
  image = jnp.arange(49, dtype=jnp.float32).reshape(7, 7, 1)
  names = {'rotate': -5, 'shift rows': -2}
  none = jnp.float32(0)
  for at in names.values():
    np.testing.assert_allclose(rand_augment.OPERATIONS[at](image, 0.0, none), image, atol=1e-4)
  moved = rand_augment.OPERATIONS[-2](image, 331 / 700, jnp.float32(1))  # by one pixel
  np.testing.assert_allclose(moved[:-1], image[1:], atol=1e-3)


# Gradients and averages.


def test_the_gradient_is_clipped_before_the_penalty():
  config = config_of(clip_norm=1.0, weight_decay=0.0, momentum=0.0, nesterov=False)
  params = {'BatchNorm_0': {'scale': jnp.array([1.0, 1.0]), 'bias': jnp.zeros(2)}}
  tx = optimiser.make_tx(config, lambda step: 1.0, strength=0.5)
  grads = jax.tree.map(lambda x: jnp.full_like(x, 10.0), params)
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates['BatchNorm_0']['bias'], [-0.5, -0.5], rtol=1e-6)
  np.testing.assert_allclose(updates['BatchNorm_0']['scale'], [-1.0, -1.0], rtol=1e-6)


def test_averages_follow_the_formula():
  tx = optax.identity()
  state = train_state.create_state(None, {'params': {'w': jnp.ones(2)}}, tx, ema_decay=0.5)
  want, w = 1.0, 1.0
  for step in range(1, 30):
    w = w * 0.9
    state = state.replace(step=jnp.int32(step), params={'w': jnp.full(2, w)})
    state = train_state.averaged(state)
    decay = min(0.5, (1 + step) / (10 + step))
    want = decay * want + (1 - decay) * w
  np.testing.assert_allclose(train_state.variables_of(state)['params']['w'], want, rtol=1e-5)
  plain = train_state.create_state(None, {'params': {'w': jnp.ones(2)}}, tx)
  assert plain.ema == {} and train_state.averaged(plain) is plain


# Distillation.


@pytest.mark.parametrize('loss', ['classification', 'multi_label'])
def test_a_network_that_agrees_with_its_teacher_has_no_slope(loss):
  teacher = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
  apart = lambda logits: distillation.DIFFERENCES[loss](logits, teacher, 3.0).sum()
  np.testing.assert_allclose(jax.grad(apart)(teacher), 0, atol=1e-6)
  assert jnp.abs(jax.grad(apart)(teacher + jnp.arange(3.0)[None])).max() > 0.1


def test_distillation_of_classes_is_the_formula():
  rng = np.random.default_rng(0)
  logits, teacher = rng.normal(size=(2, 4, 3)).astype(np.float32)
  p, q = jax.nn.softmax(teacher / 2), jax.nn.softmax(logits / 2)
  want = 4 * (p * (jnp.log(p) - jnp.log(q))).sum(-1)
  np.testing.assert_allclose(distillation.of_classes(logits, teacher, 2.0), want, rtol=1e-4)
  made = distillation.Teacher(None, None, 0.25, 2.0, distillation.of_classes)
  batch = {'label': jnp.array([0, 1, 2, 0]), 'teacher': teacher}
  loss, metrics = made.loss(losses.classification)(jnp.asarray(logits), batch)
  task, _ = losses.classification(jnp.asarray(logits), batch)
  np.testing.assert_allclose(loss, 0.75 * task + 0.25 * want, rtol=1e-4)
  assert set(metrics) == {'accuracy'}


# A run with everything.


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  """Directory and records of a run that uses the options together."""
  workdir = tmp_path_factory.mktemp('options')
  config = config_of(
    **{
      'ema_decay': 0.9,
      'label_smoothing': 0.1,
      'mixup': 0.2,
      'cutmix': 1.0,
      'clip_norm': 1.0,
      'augment.rand_layers': 1,
      'recalibrate_batches': 2,
      'valid_split': 'test[:50]',
      'patience': 2,
      'finetune.distill': 0.5,
      'finetune.epochs': 8,
      'finetune.learning_rate': 1e-12,
    }
  )
  return config, workdir, pipeline.run(config, workdir)


@pytest.mark.slow
def test_a_run_ends_its_stages_and_loads_the_averages(run):
  config, workdir, records = run
  rows = {row['stage']: row for row in records}
  assert list(rows) == ['baseline', 'sparse', 'pruned', 'recalibrated', 'finetuned']
  # Nothing becomes better with such a learning rate but for the statistics.
  assert rows['finetuned']['stopped_epoch'] < 8 and 'stopped_epoch' not in rows['baseline']
  image, label, _ = own_parts.classes('test')
  apply, variables = slim_jax.load(workdir)
  accuracy = np.mean(np.asarray(apply(variables, image[..., None])).argmax(-1) == label)
  assert accuracy == pytest.approx(rows['finetuned']['accuracy'], abs=1e-6)
  here = Workdir(files.path_of(workdir))
  arrays = checkpoint.read(here.checkpoints(Stage(1, 'sparse')))
  raw, averaged = arrays['params']['Conv_0']['kernel'], arrays['ema']['params']['Conv_0']['kernel']
  assert not np.array_equal(raw, averaged)
  # A stage begins with the averages of the one before.
  pruned = checkpoint.read(here.checkpoints(Stage(1, 'pruned')))
  plan = here.plan_after(Stage(1, 'pruned'))
  cut = plan.slice(checkpoint.evaluated(checkpoint.read(here.checkpoints(Stage(1, 'sparse')))))
  jax.tree.map(np.testing.assert_array_equal, cut['params'], pruned['params'])
  jax.tree.map(np.testing.assert_array_equal, cut['params'], pruned['ema']['params'])


@pytest.mark.slow
def test_a_stage_that_was_stopped_early_stays_so(run):
  """A run that was killed before its last stage was recorded trains no further epoch."""
  config, workdir, records = run
  path = workdir / 'stages.json'
  path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
  lines = (workdir / 'metrics.jsonl').read_text()
  again = pipeline.run(config, workdir)
  assert (workdir / 'metrics.jsonl').read_text() == lines
  for name in ('accuracy', 'loss', 'stopped_epoch', 'best_epoch'):
    assert again[-1][name] == records[-1][name]


@pytest.mark.slow
def test_the_test_split_is_evaluated_after_each_epoch_by_default(run):
  _, workdir, _ = run
  lines = [json.loads(line) for line in (workdir / 'metrics.jsonl').read_text().splitlines()]
  assert all(0 <= line['test_accuracy'] <= 1 for line in lines)


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'patience': 2}, 'patience=2 needs a valid_split'),
    ({'finetune.distill': 0.5, 'baseline_epochs': 0}, 'learns from the baseline'),
    ({'finetune.distill': 0.5, 'loss': f'{HERE}:worst_pixel'}, 'is for a loss of'),
    ({'label_smoothing': 0.1, 'loss': 'multi_label'}, "is for loss='classification'"),
    ({'ema_decay': 1.0}, 'ema_decay=1.0 must be'),
    ({'augment.rand_magnitude': 11}, 'between 0 and 10'),
    ({'track': 'wand'}, "did you mean 'wandb'"),
  ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
  with pytest.raises(checks.ConfigError, match=message):
    checks.check_config(config_of(**fields))


@pytest.mark.parametrize(
  'fields, message',
  [
    ({'augment.rand_layers': 1}, 'but not the labels'),
    ({'mixup': 0.2}, 'cannot mix the labels of pixels'),
  ],
)
def test_labels_of_pixels_are_not_mixed(fields, message, tmp_path):
  config = config_of(dataset=f'{HERE}:scenes', loss='segmentation', **fields)
  with pytest.raises(checks.ConfigError, match=message):
    pipeline.run(config, tmp_path)


# Services.


class Service:
  """What tracking calls of wandb and of mlflow; fails at a step."""

  def __init__(self, fails_at=None):
    self.calls, self.fails_at = [], fails_at

  def search_runs(self, **_):
    return []

  def __getattr__(self, name):
    def call(*args, step=None, **kwargs):
      if step is not None and step == self.fails_at:
        raise ConnectionError('no network')
      self.calls.append((name, args, {**kwargs, **({} if step is None else {'step': step})}))
      return self

    return call

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.calls.append(('end', (), {}))


LINE = {'pass': 1, 'stage': 'sparse', 'epoch': 2, 'step': 8, 'loss': 0.5, 'time': 1.0}


@pytest.mark.parametrize('name, last', [('wandb', 'finish'), ('mlflow', 'end')])
def test_services_get_the_metrics(name, last, tmp_path):
  service, here = Service(), Workdir(files.path_of(tmp_path / 'mine'))
  config = {'seed': 0, 'train': {'epochs': 3}}
  with tracking.tracker(name, here, Stage(1, 'sparse'), config, module=service) as track:
    track({**LINE, 'scales_below': {'0.1': 0.25}})
  called = {call[0]: call[1:] for call in service.calls}
  logged = called['log' if name == 'wandb' else 'log_metrics']
  assert logged == (({'epoch': 2, 'loss': 0.5, 'scales_below/0.1': 0.25},), {'step': 8})
  assert service.calls[-1][0] == last
  if name == 'mlflow':
    assert called['start_run'][1]['run_name'] == 'mine: sparse, pass 1'
    assert called['log_params'][0] == ({'seed': '0', 'train/epochs': '3'},)
  else:
    assert called['init'][1]['name'] == 'mine: sparse, pass 1'


# Tracks a stage that is continued once, with the real package.
TRACK = """
import sys
from slim_jax.runs import tracking
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files
here = Workdir(files.path_of('mine').absolute())
config = {'seed': 0, 'train': {'epochs': 3}, 'model': {'widths': [4, 'M']}}
for step in (8, 16):
  with tracking.tracker(sys.argv[1], here, Stage(1, 'sparse'), config) as track:
    track({'pass': 1, 'stage': 'sparse', 'step': step, 'loss': 1 / step, 'scales_below': {'0.1': 0.25}})
"""
READ = """
import mlflow
(run,) = mlflow.search_runs(experiment_names=['slim_jax'], output_format='list')
assert run.info.run_name == 'mine: sparse, pass 1'
assert run.data.params['train/epochs'] == '3'
history = mlflow.MlflowClient().get_metric_history(run.info.run_id, 'loss')
assert [(line.step, line.value) for line in history] == [(8, 1 / 8), (16, 1 / 16)]
assert run.data.metrics['scales_below/0.1'] == 0.25
"""


@pytest.mark.slow
@pytest.mark.parametrize('name', ['wandb', 'mlflow'])
def test_real_services_get_the_metrics(name, tmp_path):
  if tracking.missing(name):
    pytest.skip(f'{name} is not installed')
  environ = {
    **os.environ,
    'PYTHONPATH': f'{commands.ROOT}:{os.environ.get("PYTHONPATH", "")}',
    'WANDB_MODE': 'offline',
    'MLFLOW_TRACKING_URI': f'sqlite:///{tmp_path}/ml.db',
  }

  def run(code):
    command = [sys.executable, '-c', code, name]
    done = subprocess.run(
      command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert 'no longer gets' not in done.stderr

  run(TRACK)
  if name == 'wandb':
    written = list(tmp_path.glob('wandb/offline-run-*/*.wandb'))
    assert written and all(b'scales_below' in path.read_bytes() for path in written)
    assert len({path.name for path in written}) == 1  # the same run
  else:
    run(READ)


def test_a_service_that_fails_does_not_end_the_run(tmp_path, caplog):
  service, here = Service(fails_at=8), Workdir(files.path_of(tmp_path))
  logging.get_absl_logger().propagate = True
  with tracking.tracker('wandb', here, Stage(1, 'sparse'), {}, module=service) as track:
    for step in (4, 8, 12):
      track({**LINE, 'step': step})
  assert [call[2]['step'] for call in service.calls if call[0] == 'log'] == [4]
  assert caplog.text.count('no network') == 1
