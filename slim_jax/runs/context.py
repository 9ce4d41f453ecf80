"""What every stage of a run needs: its config, its directory and its data."""

from collections.abc import Callable
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import slim_jax
from slim_jax import data
from slim_jax.data.stream import Data
from slim_jax.runs import checks, network
from slim_jax.runs.network import Network
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import devices, files, processes
from slim_jax.runtime.config import Config
from slim_jax.training import evaluation


class Run(NamedTuple):
  """A run that has been opened."""

  config: Config
  workdir: Workdir
  train_data: Data
  test_data: Data
  valid_data: Data | None


def to_json(config: Config) -> dict[str, Any]:
  """The config as JSON gives it back: tuples are lists."""
  return json.loads(json.dumps(config.to_dict()))


def open_run(config: Config, workdir: Workdir) -> Run:
  """Loads the data of a run, and checks config, data and network against each other.

  Raises:
    ConfigError: they do not fit.
    DataError: the data cannot be had.
    WorkdirError: the directory is that of other data.
  """
  with processes.one_after_another('data'):  # the first prepares what is not there yet
    train_data, test_data, valid_data = (
      data.load(
        config.dataset,
        data_dir=config.data_dir,
        split=split,
        image_size=config.image_size,
        workers=config.workers,
      )
      if split
      else None
      for split in (config.train_split, config.test_split, config.valid_split)
    )
  for split_data, name in ((test_data, 'test_split'), (valid_data, 'valid_split')):
    if split_data is not None:
      checks.check_data(config, train_data, split_data, name)
  net = network.create(config, train_data.num_classes)
  checks.check_network(config, lambda: net.shapes(image(train_data)))
  dataset = {
    'image': list(train_data.shape),
    'num_classes': train_data.num_classes,
    'class_names': list(train_data.class_names),
    'mean': train_data.mean.tolist(),
    'std': train_data.std.tolist(),
  }
  workdir.compare('dataset.json', dataset)
  files.write_json(workdir.path / 'dataset.json', dataset)
  return Run(config, workdir, train_data, test_data, valid_data)


def evaluator(context: Run, net: Network) -> Callable[..., evaluation.Result]:
  """What `loop.make_evaluate` returns for a network of the run."""
  return evaluation.make_evaluate(
    net.infer,
    mean=context.train_data.mean,
    std=context.train_data.std,
    batch_size=context.config.eval_batch_size,
    places=devices.local(context.config.devices),
  )


def image(train_data: Data) -> jax.ShapeDtypeStruct:
  """One normalised image."""
  return jax.ShapeDtypeStruct((1, *train_data.shape), jnp.float32)


def macs(context: Run, net: Network) -> int:
  """MACs of one image."""
  shape = image(context.train_data)
  return slim_jax.count(net.predict, net.shapes(shape), shape).macs


def full_macs(context: Run) -> int:
  """MACs of one image of the original network."""
  return macs(context, network.create(context.config, context.train_data.num_classes))
