"""A run that is open: its config, its directory and its data."""

from collections.abc import Callable
import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import slim_jax
from slim_jax import data
from slim_jax.data.stream import Data
from slim_jax.runs import checks, finished, network, stages
from slim_jax.runs.errors import WorkdirError
from slim_jax.runs.network import Network
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import devices, files, processes
from slim_jax.runtime.config import Config
from slim_jax.structure.unit import Units
from slim_jax.training import evaluation, feed, losses, train_state

# A number that no stage has, for the random key of batches for calibration.
_CALIBRATION = 2**31


@dataclasses.dataclass(frozen=True)
class Run:
  """A run that is open.

  Attributes:
    config: its config.
    workdir: its directory.
    train_data: the split that is trained on.
    test_data: the split that every stage is evaluated on.
    valid_data: the split that chooses among checkpoints; None if the config names none.
    objective: loss, metrics, and the figure that judges.
    units: the units of the original network that `prune.units` names; None if it is ''.
  """

  config: Config
  workdir: Workdir
  train_data: Data
  test_data: Data
  valid_data: Data | None
  objective: losses.Objective
  units: Units | None

  @property
  def image(self) -> jax.ShapeDtypeStruct:
    """Shape of one normalised image, float32 [1, height, width, channels]."""
    return _image(self.train_data)

  def network(self, plan: slim_jax.Plan | None = None, *, gates: bool = False) -> Network:
    """Returns the network of the config: thin if there is a plan, with gates if asked."""
    net = network.create(self.config, self.train_data.num_classes, plan)
    return network.with_gates(net, self.image, self.config.prune.units) if gates else net

  def calibration(self, count: int) -> list[dict[str, np.ndarray]]:
    """Returns that many training batches, images normalised; the same at every call."""
    key = jax.random.fold_in(jax.random.key(self.config.seed), _CALIBRATION)
    return feed.calibration(self.train_data, self.config, key=key, count=count)

  def macs(self, net: Network) -> int:
    """Returns the MACs of a network for one image."""
    return slim_jax.count(net.predict, net.shapes(self.image), self.image).macs

  def evaluator(self, net: Network) -> Callable[..., evaluation.Result]:
    """Returns `(variables, split_data)` -> `evaluation.Result` for a network."""
    return evaluation.make_evaluate(
      net.infer,
      mean=self.train_data.mean,
      std=self.train_data.std,
      batch_size=self.config.eval_batch_size,
      places=devices.local(self.config.devices),
      objective=self.objective,
    )


def open_run(config: Config, workdir: Workdir) -> Run:
  """Loads the data of a run. Checks config, data and network against each other.

  Raises:
    ConfigError: config, data and network do not fit together.
    DataError: the data cannot be loaded.
    LossError: the loss does not fit labels or outputs.
    PartError: a person's own part cannot be found.
    WorkdirError: the directory belongs to a run with other data.
  """
  # One process at a time, because the first prepares the data set if necessary.
  with processes.one_after_another('data'):
    train_data = load_split(config, config.train_split)
    test_data = load_split(config, config.test_split)
    valid_data = load_split(config, config.valid_split) if config.valid_split else None
  checks.check_data(config, train_data, test_data, 'test_split')
  if valid_data is not None:
    checks.check_data(config, train_data, valid_data, 'valid_split')
  net = network.create(config, train_data.num_classes)
  variables = checks.check_network(config, lambda: net.shapes(_image(train_data)))
  if config.prune.units:
    net = network.with_gates(net, _image(train_data), config.prune.units)
    variables = net.shapes(_image(train_data))
  checks.check_scales(config, variables, net.scales)
  objective = _objective(config, net, variables, train_data)
  dataset = described(train_data)
  by_split = {config.train_split: train_data, config.test_split: test_data}
  if valid_data is not None:
    by_split[config.valid_split] = valid_data
  dataset['splits'] = {
    split: {'images': len(split_data), 'digest': split_data.digest}
    for split, split_data in by_split.items()
  }
  workdir.check_unchanged('dataset.json', dataset, added=('splits',))
  files.write_json(workdir.path / 'dataset.json', dataset)
  return Run(config, workdir, train_data, test_data, valid_data, objective, net.units)


def described(train_data: Data) -> dict[str, Any]:
  """Returns what dataset.json says of the images that a network was trained on."""
  dataset = {
    'image': list(train_data.shape),
    'num_classes': train_data.num_classes,
    'class_names': list(train_data.class_names),
    'mean': train_data.mean.tolist(),
    'std': train_data.std.tolist(),
  }
  return dataset | ({} if train_data.dtype == 'uint8' else {'dtype': train_data.dtype.name})


class SparseStage(NamedTuple):
  """The network of a complete sparse stage, to try prunings on.

  Attributes:
    run: the run.
    net: the network.
    state: parameters and statistics, with a new optimiser state.
    evaluate: `(variables, split_data)` -> `evaluation.Result` for the network.
  """

  run: Run
  net: Network
  state: train_state.TrainState
  evaluate: Callable[..., evaluation.Result]


def open_sparse_stage(config: Config, workdir: files.PathLike) -> SparseStage:
  """Opens the last complete sparse stage of a run.

  Args:
    config: config of the run; fields that only later stages depend on may differ.
    workdir: directory of the run.

  Raises:
    WorkdirError: the directory holds no complete sparse stage, or a run with another config.
    As `open_run` otherwise.
  """
  here = Workdir(files.path_of(workdir))
  complete = [stage for stage in map(Stage.of, here.records()) if stage.name == 'sparse']
  if not complete:
    raise WorkdirError(
      f'{here.path} holds no run with a complete sparse stage: call '
      'slim_jax.main with this config and workdir first'
    )
  here.check_unchanged(
    'config.json', config_to_json(config), free=('passes', *stages.free_after('sparse'))
  )
  run = open_run(config, here)
  data_shape, num_classes = run.train_data.shape, run.train_data.num_classes
  net, variables = finished.restore(config, here, complete[-1], num_classes, data_shape)
  state = train_state.create_state(net.apply, variables, optax.identity())
  return SparseStage(run, net, state, run.evaluator(net))


def config_to_json(config: Config) -> dict[str, Any]:
  """Returns the config as it is read back from JSON: tuples become lists."""
  return json.loads(json.dumps(config.to_dict()))


def load_split(config: Config, split: str) -> Data:
  """Loads a split of the data of a config."""
  return data.load(
    config.dataset,
    data_dir=config.data_dir,
    split=split,
    image_size=config.image_size,
    workers=config.workers,
  )


def _objective(config: Config, net: Network, variables: Any, train_data: Data) -> losses.Objective:
  """Returns the objective, checked on the shapes of two examples."""
  batch = {
    'image': jax.ShapeDtypeStruct((2, *train_data.shape), jnp.float32),
    'label': jax.ShapeDtypeStruct((2, *train_data.label_shape), train_data.label_dtype),
  }
  outputs = jax.eval_shape(net.predict, variables, batch['image'])
  return losses.create(config, outputs, batch)


def _image(train_data: Data) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct((1, *train_data.shape), jnp.float32)
