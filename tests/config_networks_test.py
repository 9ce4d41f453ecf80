"""Every config at tiny size: its network trains, and is pruned as it says."""

from helpers import configs, zoo
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import slim_jax
from slim_jax import data
from slim_jax.runs import gated, network, pruning
from slim_jax.training import feed, loop, optimiser, steps, train_state

# Arguments of a small model, by the name of the model of a config.
SMALL = {
  'vgg': {'widths': (4, 'M', 4, 4, 6)},
  'vgg_a': {'name': 'vgg', 'widths': (4, 'M', 6), 'dense_widths': (8, 8), 'conv_bias': True},
  'preresnet': {'depth': 11, 'width': 4},
  'densenet': {'depth': 7, 'growth': 2, 'stem': 4},
  'resnet50': {'name': 'resnet', 'blocks': (1, 1), 'width': 4},
  'mlp': {'widths': (8, 6)},
  'vit': {'patch': 4, 'width': 8, 'heads': (2, 2), 'head_dim': 4, 'neurons': (8, 6)},
  'convnext': {'patch': 2, 'widths': (4, 8), 'neurons': ((8,), (8, 6)), 'kernel': 3},
}


def small(name):
  config = configs.load(name)
  with config.unlocked():
    config.model.update(SMALL[config.model.name])
    config.batch_size, config.devices = 8, 1
    config.shape = (8, 8, 1 if config.dataset in ('mnist', 'digits') else 3)
  return config


def make_data(shape, n=16):
  random = np.random.RandomState(0)
  image = random.randint(0, 256, (n, *shape)).astype(np.uint8)
  return data.ArrayData(
    image,
    random.randint(0, 5, n).astype(np.int32),
    5,
    tuple('abcde'),
    *data.channel_statistics(image),
  )


def original(config, classes, image):
  """The network that is pruned: with gates, if the config names units."""
  net = network.create(config, classes)
  return network.with_gates(net, image, config.prune.units) if config.prune.units else net


def traced_step(net, variables, config):
  """Shapes of the parameters after a step, without compiling it."""
  train_data = make_data(config.shape)
  tx = optimiser.make_tx(config, lambda step: 0.1, strength=1e-4, mask=net.scales)
  state = jax.eval_shape(lambda: train_state.create_state(net.apply, variables, tx))

  def step(state, batch, key):
    batch, key = steps.prepare(
      batch,
      device=jnp.int32(0),
      augment=config.augment,
      mean=train_data.mean,
      std=train_data.std,
      key=key,
    )
    return steps.train_step(state, batch, key=key, accumulate=config.accumulate_steps)

  batch = {
    'image': np.zeros((1, config.batch_size, *config.shape), np.uint8),
    'label': np.zeros((1, config.batch_size), np.int32),
  }
  mapped = jax.vmap(step, in_axes=(None, 0, None), axis_name='batch')
  after, _ = jax.eval_shape(mapped, state, batch, jax.random.key(0))
  return jax.tree.map(lambda x: x.shape[1:], after.params)


@pytest.mark.parametrize(
  'name',
  [
    # Networks that others have for CIFAR-10.
    pytest.param(name, marks=[pytest.mark.slow] if name.startswith(('cifar100', 'svhn')) else [])
    for name in configs.NAMES
  ],
)
def test_config_trains_and_is_pruned(name):
  config = small(name)
  image = jax.ShapeDtypeStruct((8, *config.shape), np.float32)
  net = original(config, 5, image)
  variables = zoo.randomise(net.shapes(image), np.float32, seed=0)
  assert traced_step(net, variables, config) == jax.tree.map(np.shape, variables['params'])

  dead = pruning.select_dead(net, variables, image, config.prune)
  plan = pruning.planned(net, variables, dead, image, config.prune.bias)
  before = slim_jax.count(net.predict, variables, image).macs
  if net.units is not None:
    variables = gated.folded(variables, net.units)
  thin, thin_variables = network.create(config, 5, plan), plan.slice(variables)
  assert slim_jax.count(thin.predict, thin_variables, image).macs < before
  shapes = jax.tree.map(np.shape, thin_variables['params'])
  assert traced_step(thin, thin_variables, config) == shapes


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] if model in ('resnet', 'convnext') else [])
    for model, name in {small(name).model.name: name for name in configs.NAMES}.items()
  ],
)
def test_each_architecture_takes_two_steps(name):
  config = small(name)
  train_data = make_data(config.shape)
  image = jax.ShapeDtypeStruct((1, *config.shape), np.float32)
  net = original(config, train_data.num_classes, image)
  variables = net.init(jax.random.key(0), image)
  schedule = optimiser.make_schedule(config.train, epochs=1, steps_per_epoch=2)
  tx = optimiser.make_tx(config, schedule, strength=1e-4, mask=net.scales)
  state = train_state.create_state(net.apply, variables, tx)
  batches = feed.create(train_data, config, key=jax.random.key(1))
  run = loop.make_step(batches, train_data, config, key=jax.random.key(2))
  totals = {name: np.zeros([], np.float32) for name in ('loss', 'accuracy', 'steps')}
  for _, part in zip(range(2), batches.steps(0)):
    state, totals = run(state, totals, part)
  assert totals['steps'] == 2 and np.isfinite(totals['loss'])
