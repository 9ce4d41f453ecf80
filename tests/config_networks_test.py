"""Every config at tiny size: its network trains, and is pruned as it says."""

import functools
import json

from helpers import configs
import jax
import ml_collections
import numpy as np
import pytest

import slim_jax
from slim_jax import data
from slim_jax.runs import network, pruning
from slim_jax.runs.run import config_to_json
from slim_jax.training import feed, loop, optimiser, steps, train_state

# Arguments of a small model, by the name of the model of a config.
SMALL = {
  'vgg': {'widths': (4, 'M', 4, 4, 6)},
  'vgg_a': {'name': 'vgg', 'widths': (4, 'M', 6), 'dense_widths': (8, 8), 'conv_bias': True},
  'preresnet': {'depth': 11, 'width': 4},
  'densenet': {'depth': 7, 'growth': 2, 'stem': 4},
  'resnet50': {'name': 'resnet', 'blocks': (1, 1), 'width': 4},
  'mlp': {'widths': (8, 6)},
}


def small(name):
  config = configs.load(name)
  with config.unlocked():
    config.model.update(SMALL[config.model.name])
    config.batch_size, config.devices = 8, 1
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


@functools.cache
def train_two_steps(text):
  """Parameters after two steps of a config; of configs that train alike, the same."""
  config = ml_collections.ConfigDict(json.loads(text))
  train_data = make_data(config.shape)
  net = network.create(config, train_data.num_classes)
  variables = net.init(jax.random.key(0), jax.ShapeDtypeStruct((1, *config.shape), np.float32))
  schedule = optimiser.make_schedule(config.train, epochs=1, steps_per_epoch=2)
  tx = optimiser.make_tx(config, schedule, strength=1e-4)
  state = train_state.create_state(net.apply, variables, tx)
  batches = feed.create(train_data, config, key=jax.random.key(1))
  run = loop.make_step(batches, train_data, config, key=jax.random.key(2))
  totals = {name: np.zeros([], np.float32) for name in ('loss', 'accuracy', 'steps')}
  for _, part in zip(range(2), batches.steps(0)):
    state, totals = run(state, totals, part)
  assert totals['steps'] == 2 and np.isfinite(totals['loss'])
  return jax.device_get(train_state.variables_of(state))


@pytest.mark.parametrize('name', configs.NAMES)
def test_config_trains_and_is_pruned(name):
  config = small(name)
  shape = (8, 8, 1 if config.dataset in ('mnist', 'digits') else 3)
  relevant = (
    'model',
    'dtype',
    'augment',
    'train',
    'momentum',
    'nesterov',
    'weight_decay',
    'batch_size',
    'devices',
    'accumulate_steps',
    'steps_per_call',
    'cross_replica_batch_norm',
  )
  variables = train_two_steps(
    json.dumps(
      {
        'shape': shape,
        **{key: config_to_json(config)[key] for key in relevant},
        'train': {**config.train, 'strength': None, 'epochs': None},
      }
    )
  )
  image = jax.ShapeDtypeStruct((8, *shape), np.float32)
  net = network.create(config, 5)
  dead = pruning.select_dead(net, variables, image, config.prune)
  plan = slim_jax.plan(net.predict, variables, image, dead=dead, bias=config.prune.bias)
  assert slim_jax.count(
    network.create(config, 5, plan).predict, plan.slice(variables), image
  ).macs < (slim_jax.count(net.predict, variables, image).macs)

  # The thin network trains: traced, not compiled.
  thin = network.create(config, 5, plan)
  tx = optimiser.make_tx(config, lambda step: 0.1, strength=0.0)
  state = train_state.create_state(thin.apply, plan.slice(variables), tx)
  batch = {'image': image, 'label': jax.ShapeDtypeStruct((8,), np.int32)}
  after, _ = jax.eval_shape(
    jax.vmap(
      lambda batch: steps.train_step(state, batch, key=jax.random.key(0)), axis_name='batch'
    ),
    jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), batch),
  )
  assert jax.tree.map(lambda x: x.shape[1:], after.params) == (jax.tree.map(np.shape, state.params))
