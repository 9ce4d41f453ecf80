"""Training: the optimiser's mathematics, exact evaluation, one trace, exact resumption."""

import contextlib
import dataclasses
import itertools

from helpers.trees import same
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from slim_jax import data, models, tree
from slim_jax.runtime import devices
from slim_jax.training import (
  checkpoint,
  evaluation,
  feed,
  loop,
  losses,
  optimiser,
  recalibration,
  steps,
  train_state,
)


def make_config(**changes):
  config = ml_collections.ConfigDict(
    dict(
      batch_size=16,
      devices=0,
      accumulate_steps=1,
      steps_per_call=1,
      optimizer=dict(name='sgd'),
      momentum=0.9,
      nesterov=True,
      weight_decay=1e-2,
      clip_norm=0.0,
      label_smoothing=0.0,
      mixup=0.0,
      cutmix=0.0,
      augment=dict(kind='crop_flip', pad=1, flip=True),
      log_every_steps=2,
      checkpoint_every_epochs=1,
      eval_every_epochs=0,
      train=dict(
        learning_rate=0.1,
        schedule='piecewise',
        drops=(0.5, 0.75),
        drop_factor=0.1,
        warmup_epochs=0.0,
      ),
    )
  )
  config.update(changes)
  return config


def make_data(n=50, seed=0):
  random = np.random.RandomState(seed)
  image = random.randint(0, 256, (n, 4, 4, 1)).astype(np.uint8)
  label = random.randint(0, 3, n).astype(np.int32)
  mean, std = data.channel_statistics(image)
  return data.ArrayData(image, label, 3, ('a', 'b', 'c'), mean, std)


class Toy:
  """A small network with BatchNorm, and how often it was traced in training."""

  def __init__(self):
    self.model = models.create('vgg', num_classes=3, widths=(4, 'M', 4))
    self.variables = self.model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)), train=False)
    self.traces = 0

  def apply(self, params, batch_stats, image, key):
    del key
    self.traces += 1
    logits, state = self.model.apply(
      {'params': params, 'batch_stats': batch_stats}, image, train=True, mutable=['batch_stats']
    )
    return logits, state['batch_stats']

  def predict(self, variables, image):
    return self.model.apply(variables, image, train=False)


class AskedAt:
  """A watch that asks to stop at the question of that number, from 1; 0 for never."""

  def __init__(self, number=0):
    self.left = number

  def begin(self):
    pass

  def asked(self):
    self.left -= 1
    return self.left == 0


def fit(toy, directory, config, *, epochs=3, asked_at=0, only=None, schedule=None):
  """Trains from the newest checkpoint and saves after every epoch.

  Args:
    toy: the network.
    directory: of the checkpoints.
    config: as `make_config` makes it.
    epochs: how many the stage has.
    asked_at: which question whether to stop is answered with yes.
    only: how many epochs are taken from the loop; None for all.
    schedule: learning rate by step; None for that of the config.

  Returns:
    The state after the last epoch, and the epochs without their states.
  """
  train_data = make_data()
  schedule = schedule or optimiser.make_schedule(
    config.train, epochs=epochs, steps_per_epoch=feed.steps_per_epoch(train_data, config)
  )
  task = loop.Task('toy', epochs, schedule, jax.random.key(1))
  state = train_state.create_state(
    toy.apply, toy.variables, optimiser.make_tx(config, schedule, strength=1e-3)
  )
  totals, seen = None, []
  with checkpoint.open_manager(directory, keep=3) as manager:
    restored = checkpoint.restore(manager, state)
    if restored is not None:
      state, _, totals = restored
    trained = loop.fit(
      state, train_data, task, config=config, watch=AskedAt(asked_at), totals=totals
    )
    with contextlib.closing(trained):
      for epoch in itertools.islice(trained, only):
        state = jax.device_get(epoch.state)
        checkpoint.save(manager, epoch.step, state, seconds=0.0, totals=epoch.totals)
        seen.append(epoch._replace(state=None))
  return state, seen


def test_schedule_drops_at_whole_steps():
  section = make_config().train
  # 0.55 * 100 is 55.00000000000001.
  section.update(drops=(0.55, 0.8))
  schedule = optimiser.make_schedule(section, epochs=10, steps_per_epoch=10)
  rates = [float(schedule(step)) for step in (0, 54, 55, 79, 80, 99)]
  np.testing.assert_allclose(rates, [0.1, 0.1, 0.01, 0.01, 0.001, 0.001], rtol=1e-6)


def test_schedule_warms_up_and_ends():
  section = make_config().train
  section.update(schedule='cosine', warmup_epochs=0.5)
  schedule = optimiser.make_schedule(section, epochs=10, steps_per_epoch=8)
  rates = np.array([schedule(jnp.int32(step)) for step in range(81)])
  assert (np.diff(rates[:4]) > 0).all() and (np.diff(rates[4:]) < 0).all()
  np.testing.assert_allclose(rates[[0, 3, 40, 80]], [0.025, 0.0997, 0.05, 0.0], atol=1e-4)


def closed_form(section, steps, warmup, scale):
  """Learning rates in float64 [steps + 10], past the end of the training."""
  step = np.arange(steps + 10)
  decay = {
    'piecewise': section.drop_factor
    ** sum((step >= round(drop * steps) for drop in section.drops), np.zeros(len(step))),
    'cosine': 0.5 * (1 + np.cos(np.pi * np.minimum(step, steps) / steps)),
  }[section.schedule]
  ramp = np.minimum((step + 1) / warmup, 1) if warmup else 1
  return scale * section.learning_rate * ramp * decay


@pytest.mark.parametrize('seed', range(20))
def test_schedules_are_the_closed_form(seed):
  """Also with several drops at one step, at the first step, and none."""
  random = np.random.RandomState(seed)
  section = make_config().train
  epochs, epoch_steps = random.randint(1, 12), random.randint(1, 9)
  drops = random.uniform(0, 1, random.randint(0, 4)).tolist()
  section.update(
    learning_rate=float(10 ** random.uniform(-3, 0.5)),
    schedule=['piecewise', 'piecewise', 'cosine'][seed % 3],
    drops=(*drops, *drops[:1], 1e-6)[: len(drops) + seed % 4],
    drop_factor=float(random.uniform(0.05, 1)),
    warmup_epochs=float(random.choice([0.0, 0.3, 1.0, 2.5])),
  )
  scale = float(random.choice([1.0, 0.25, 4.0]))
  schedule = optimiser.make_schedule(
    section, epochs=epochs, steps_per_epoch=epoch_steps, scale=scale
  )
  steps, warmup = epochs * epoch_steps, round(section.warmup_epochs * epoch_steps)
  want = closed_form(section, steps, warmup, scale)
  atol = 3e-7 * scale * section.learning_rate  # that of float32
  got = np.broadcast_to(schedule(jnp.arange(steps + 10)), steps + 10)
  np.testing.assert_allclose(got, want, rtol=0, atol=atol)
  one = [float(schedule(jnp.int32(step))) for step in (0, steps // 2, steps)]
  np.testing.assert_allclose(one, want[[0, steps // 2, steps]], rtol=0, atol=atol)


def test_strength_rises_to_its_highest():
  config = make_config()
  config.train.strength_warmup_epochs = 1.5
  strength = optimiser.make_strength(config, 0.02, 4)
  np.testing.assert_allclose(
    strength(np.arange(8)), 0.02 * np.minimum(np.arange(1, 9) / 6, 1), rtol=1e-6
  )
  assert optimiser.make_strength(config, 0.0, 4) == 0.0
  config.train.strength_warmup_epochs = 0.0
  assert optimiser.make_strength(config, 0.02, 4) == 0.02


@pytest.mark.parametrize('nesterov', [False, True])
def test_optimiser_is_the_formula(nesterov):
  config = make_config(nesterov=nesterov)
  params = {
    'BatchNorm_0': {
      'scale': np.array([0.5, -0.2], np.float32),
      'bias': np.array([0.1, 0.3], np.float32),
    }
  }
  tx = optimiser.make_tx(config, lambda step: 0.1 / (step + 1), strength=0.01)
  opt_state = tx.init(params)
  want = jax.tree.map(np.copy, params)
  velocity = jax.tree.map(np.zeros_like, params)
  for step in range(3):
    grads = jax.tree.map(lambda w: np.cos(w) + step, want)
    updates, opt_state = tx.update(grads, opt_state, params)
    params = jax.tree.map(np.add, params, updates)
    for name in ('scale', 'bias'):
      w, v = want['BatchNorm_0'], velocity['BatchNorm_0']
      g = grads['BatchNorm_0'][name] + 1e-2 * w[name]
      g = g + 0.01 * np.sign(w[name]) * (name == 'scale')
      v[name] = 0.9 * v[name] + g
      w[name] = w[name] - 0.1 / (step + 1) * (g + 0.9 * v[name] if nesterov else v[name])
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), params, want)


def test_cross_entropy_is_the_formula():
  logits = np.random.RandomState(0).randn(5, 3).astype(np.float32)
  label = np.array([0, 2, 1, 1, 0])
  p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_allclose(
    losses.cross_entropy(logits, label), -np.log(p[np.arange(5), label]), rtol=1e-5
  )


def test_devices_share_one_batch():
  """Without BatchNorm a step does not depend on the number of devices."""

  def apply(params, batch_stats, image, key):
    del key
    return image.reshape(image.shape[0], -1) @ params['w'], batch_stats

  variables = {'params': {'w': jnp.ones((16, 3)) * jnp.arange(3.0).reshape(1, 3)}}
  random = np.random.RandomState(0)
  image, label = random.randn(16, 4, 4, 1), random.randint(0, 3, 16)
  tx = optimiser.make_tx(make_config(), lambda step: 0.1, strength=0.0, mask={'w': True})
  state = train_state.create_state(apply, variables, tx)
  results = []
  for count in (1, 8):

    def step(state, batch):
      return steps.train_step(state, batch, key=jax.random.key(0))

    mapped = jax.pmap(
      step, axis_name='batch', in_axes=(None, 0), out_axes=None, devices=jax.devices()[:count]
    )
    batch = {
      'image': image.reshape(count, -1, 4, 4, 1).astype(np.float32),
      'label': label.reshape(count, -1),
    }
    after, metrics = mapped(state, batch)
    results.append((jax.device_get(after.params), jax.device_get(metrics)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), *results)


@pytest.mark.parametrize('count', [1, 2])
def test_evaluation_is_exact_over_the_whole_split(count):
  toy, test_data = Toy(), make_data(37)
  mean, std = np.full(1, 100, np.float32), np.full(1, 50, np.float32)
  evaluate = evaluation.make_evaluate(
    toy.predict, mean=mean, std=std, batch_size=10, places=devices.local(count)
  )
  logits = toy.predict(toy.variables, (test_data.image - np.float32(100)) / np.float32(50))
  accuracy = np.mean(np.argmax(logits, -1) == test_data.label)
  loss = np.mean(losses.cross_entropy(logits, test_data.label))
  result = evaluate(toy.variables, test_data)
  np.testing.assert_allclose([result.metrics['accuracy'], result.loss], [accuracy, loss], rtol=1e-5)


def test_filling_images_count_for_nothing_whatever_their_logits():
  """A batch is filled up with images whose logits may be NaN; 0 times NaN would be NaN."""
  logits = np.random.RandomState(0).randn(2, 4, 3).astype(np.float32)
  label = np.array([[0, 1, 2, 0], [2, 1, 0, 0]])
  mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], np.float32)
  spoilt = np.where(mask[..., None] > 0, logits, np.nan)
  evaluate = jax.vmap(
    lambda batch: steps.eval_step(lambda _, image: image, {}, batch), axis_name='batch'
  )
  result = evaluate({'image': spoilt, 'label': label, 'mask': mask})
  real = mask > 0
  want = {
    'loss': np.sum(losses.cross_entropy(logits[real], label[real])),
    'accuracy': np.sum(np.argmax(logits[real], -1) == label[real]),
    'count': 6,
  }
  for name, value in want.items():
    np.testing.assert_allclose(result[name], [value, value], rtol=1e-6)


def test_step_is_traced_once_and_state_has_no_device_axis(tmp_path):
  toy = Toy()
  state, _ = fit(toy, tmp_path, make_config())
  assert toy.traces == 1
  assert int(state.step) == 9
  assert jax.tree.map(jnp.shape, state.params) == jax.tree.map(jnp.shape, toy.variables['params'])
  assert not same(state.params, toy.variables['params'])


def test_every_image_is_seen_at_most_once_an_epoch():
  config, train_data, seen = make_config(), make_data(), []
  # An image is recognised by its value.
  train_data = dataclasses.replace(
    train_data,
    image=np.broadcast_to(np.arange(50, dtype=np.uint8).reshape(50, 1, 1, 1), (50, 4, 4, 1)),
  )
  batches = feed.create(train_data, config, key=jax.random.key(3))

  def take(*arguments):
    batch = batches.take(*arguments)
    jax.debug.callback(lambda image: seen.extend(image.tolist()), batch['image'][:, 0, 0, 0])
    return batch

  train(config, train_data, batches._replace(take=take), Toy().apply, count=6)
  jax.effects_barrier()
  epochs = [frozenset(seen[:48]), frozenset(seen[48:])]
  assert len(seen) == 96 and all(len(epoch) == 48 for epoch in epochs)


def test_resumed_run_is_bit_identical(tmp_path):
  config = make_config()
  whole, _ = fit(Toy(), tmp_path / 'whole', config)
  fit(Toy(), tmp_path / 'parts', config, only=2)
  parts, epochs = fit(Toy(), tmp_path / 'parts', config)
  assert [epoch.step for epoch in epochs] == [9]
  assert same(whole, parts)


def test_run_that_is_stopped_within_an_epoch_is_bit_identical(tmp_path):
  config = make_config(log_every_steps=1)
  whole, epochs = fit(Toy(), tmp_path / 'whole', config)
  _, begun = fit(Toy(), tmp_path / 'parts', config, asked_at=4)
  assert [(epoch.step, epoch.is_complete) for epoch in begun] == [(3, True), (5, False)]
  assert begun[-1].totals['steps'] == 2
  parts, rest = fit(Toy(), tmp_path / 'parts', config)
  assert [(epoch.step, epoch.is_complete) for epoch in rest] == [(6, True), (9, True)]
  assert same(whole, parts)
  # The epoch in between has the means of all its steps.
  assert [(e.loss, e.metrics) for e in rest] == [(e.loss, e.metrics) for e in epochs[1:]]


def test_a_stage_that_is_at_its_end_has_no_epochs_left(tmp_path):
  whole, _ = fit(Toy(), tmp_path, make_config(), epochs=1)
  again, epochs = fit(Toy(), tmp_path, make_config(), epochs=1)
  assert not epochs and same(whole, again)


def test_epochs_say_how_they_went(tmp_path):
  _, epochs = fit(Toy(), tmp_path, make_config())
  assert [epoch.number for epoch in epochs] == [1, 2, 3]
  assert [epoch.step for epoch in epochs] == [3, 6, 9]
  np.testing.assert_allclose(
    [epoch.learning_rate for epoch in epochs], [0.1, 0.01, 0.001], rtol=1e-5
  )
  assert all(epoch.is_complete for epoch in epochs)
  assert all(
    epoch.loss > 0 and 0 <= epoch.metrics['accuracy'] <= 1 and epoch.images_per_second > 0
    for epoch in epochs
  )


def test_divergence_is_one_clear_error(tmp_path):
  config = make_config()
  config.train.learning_rate = 1e30
  with pytest.raises(
    loop.DivergedError, match=r'toy: at step \d, .* rate is 1e\+\d+, the loss is not finite. Try'
  ):
    fit(Toy(), tmp_path, config)


def test_divergence_in_the_last_step_is_noticed(tmp_path):
  """The loss is that before the update: only the parameters tell of the last step."""
  config = make_config()
  rates = lambda step: jnp.where(step == 2, jnp.inf, 0.1)  # an epoch has 3 steps
  with pytest.raises(loop.DivergedError, match='toy: at step 3, .*, a parameter is not finite'):
    fit(Toy(), tmp_path, config, epochs=1, schedule=rates)
  assert not list(tmp_path.iterdir())


def test_recalibrated_statistics_are_means_over_batches():
  toy, train_data = Toy(), make_data()
  config = make_config(
    devices=1, recalibrate_batches=99, augment=dict(kind='crop_flip', pad=0, flip=False)
  )
  state = train_state.create_state(
    toy.apply, toy.variables, optimiser.make_tx(config, lambda step: 0.1, strength=0.0)
  )
  key = jax.random.key(5)
  got = recalibration.make_recalibrate(train_data, config=config, key=key)(state)
  batches = feed.create(train_data, config, key=jax.random.split(key)[0])
  estimates = []
  for number, part in zip(range(3), batches.steps(0)):  # 50 images: an epoch is 3 batches of 16
    batch = batches.take(part[0], jax.tree.map(jnp.asarray, batches.shared), number)
    image = data.normalize(batch['image'], train_data.mean, train_data.std)
    _, after = toy.apply(state.params, jax.tree.map(jnp.zeros_like, state.batch_stats), image, None)
    estimates.append(jax.tree.map(lambda x: 10 * x, after))  # momentum 0.9
  want = jax.tree.map(lambda *xs: sum(xs) / 3, *estimates)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got.batch_stats, want
  )
  jax.tree.map(np.testing.assert_array_equal, got.params, state.params)


def test_recalibration_runs_on_many_devices():
  toy, train_data = Toy(), make_data()
  config = make_config(recalibrate_batches=2)
  state = train_state.create_state(
    toy.apply, toy.variables, optimiser.make_tx(config, lambda step: 0.1, strength=0.0)
  )
  got = recalibration.make_recalibrate(train_data, config=config, key=jax.random.key(5))(state)
  assert jax.tree.map(jnp.shape, got.batch_stats) == jax.tree.map(jnp.shape, state.batch_stats)
  assert all(
    np.all(leaf > 0) for path, leaf in tree.flatten(got.batch_stats).items() if path[-1] == 'var'
  )


def train(config, train_data, batches, apply, *, count):
  """Takes so many steps; returns the mean loss of each call, and the parameters after the last."""
  state = train_state.create_state(
    apply, Toy().variables, optimiser.make_tx(config, lambda step: 0.1, strength=1e-3)
  )
  run = loop.make_step(batches, train_data, config, key=jax.random.key(4))
  state, losses = devices.replicate(state, devices.local(config.devices)), []
  with contextlib.closing(batches.steps(0)) as parts:
    while int(state.step) < count:
      totals = {name: jnp.zeros([]) for name in ('loss', 'accuracy', 'steps')}
      now = min(config.steps_per_call, count - int(state.step))
      part, *_ = (next(parts) for _ in range(now))
      state, totals = run(state, totals, part, now)
      losses.append(float(totals['loss'] / totals['steps']))
  return np.array(losses), jax.device_get(state.params)


def curve(config, *, axis_name=None, steps=6):
  """What `train` returns of a network, with BatchNorm over an axis of devices if it has a name."""
  model = models.create('vgg', num_classes=3, widths=(4, 'M', 4), axis_name=axis_name)

  def apply(params, batch_stats, image, key):
    del key
    logits, after = model.apply(
      {'params': params, 'batch_stats': batch_stats}, image, train=True, mutable=['batch_stats']
    )
    return logits, after['batch_stats']

  train_data = make_data(n=64)
  batches = feed.create(train_data, config, key=jax.random.key(3))
  return train(config, train_data, batches, apply, count=steps)


@pytest.mark.parametrize('count', [pytest.param(2, marks=pytest.mark.slow), 8])
def test_devices_do_not_matter_with_cross_replica_batch_norm(count):
  """50 steps with shifts and mirrors drawn for each image."""
  one, several = (curve(make_config(devices=n), axis_name='batch', steps=50) for n in (1, count))
  np.testing.assert_allclose(several[0], one[0], rtol=1e-5)
  alone = curve(make_config(devices=count), steps=50)
  assert np.max(np.abs(alone[0] / one[0] - 1)) > 1e-3


def test_several_steps_in_a_call_are_the_same_steps():
  # Within an epoch, of 4 steps here, as in `fit`.
  one, several = (curve(make_config(devices=1, steps_per_call=n), steps=4) for n in (1, 3))
  assert len(several[0]) == 2
  np.testing.assert_allclose(several[0][0], np.mean(one[0][:3]), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), several[1], one[1]
  )


def test_accumulated_gradient_is_the_mean_over_parts():
  toy = Toy()
  random = np.random.RandomState(0)
  half = random.randn(4, 4, 4, 1).astype(np.float32)
  label = random.randint(0, 3, 4)
  tx = optimiser.make_tx(make_config(), lambda step: 0.1, strength=1e-3)
  state = train_state.create_state(toy.apply, toy.variables, tx)

  def after(image, label, accumulate):
    batch = {'image': image[None], 'label': label[None]}
    step = jax.pmap(
      lambda batch: steps.train_step(state, batch, key=jax.random.key(0), accumulate=accumulate),
      'batch',
    )
    return jax.tree.map(lambda x: x[0], step(batch))

  # The same images twice have the same statistics: the mean over parts is that of one part.
  once, metrics = after(half, label, 1)
  twice, means = after(np.concatenate([half, half]), np.concatenate([label, label]), 2)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    (twice.params, means),
    (once.params, metrics),
  )
  assert not np.allclose(*(jax.tree.leaves(s.batch_stats)[0] for s in (once, twice)))
  # And of different parts it is the mean of their gradients.
  other = random.randn(4, 4, 4, 1).astype(np.float32)
  second, _ = after(other, label, 1)
  both, _ = after(np.concatenate([half, other]), np.concatenate([label, label]), 2)
  kernel = lambda s: s.params['Conv_0']['kernel']
  np.testing.assert_allclose(
    kernel(both), (kernel(once) + kernel(second)) / 2, rtol=1e-4, atol=1e-6
  )
