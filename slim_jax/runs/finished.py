"""What complete stages have left, opened again."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from slim_jax import data
from slim_jax.channels.plan import Plan
from slim_jax.models import narrow
from slim_jax.runs import context, network, schema, stages
from slim_jax.runs.context import Run
from slim_jax.runs.network import Network
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError, read_json
from slim_jax.runtime import files
from slim_jax.runtime.config import Config
from slim_jax.training import checkpoint, evaluation, train_state

PyTree = Any


def load(
  workdir: files.PathLike, *, dtype: str | None = None, compiled: bool = False
) -> tuple[Callable[..., jax.Array], PyTree]:
  """The network that the last complete stage of a run left, but for stages from scratch.

  Args:
    workdir: directory of a run, wherever it has been moved.
    dtype: what it computes in; that of the config unless given.
    compiled: whether it is to be compiled here, not exported: `infer` of the network.

  Returns:
    (apply, variables): `apply(variables, image)` gives logits float32 [n, classes] for
    images uint8 [n, height, width, channels] as the data set has them; normalisation
    is inside. A function like any other: wrap it in `jax.jit`.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
    CheckpointError: no checkpoint of the stage can be read.
  """
  workdir = Workdir(files.path_of(workdir))
  stage = _last(workdir)
  config, dataset = _read(workdir)
  config.dtype = dtype or config.dtype
  net, variables = _left(config, workdir, stage, dataset['num_classes'], dataset['image'])
  return _of_pixels(net.infer if compiled else net.predict, dataset), variables


def plan(workdir: files.PathLike) -> Plan | None:
  """What is left of the original network in the one that `load` returns; None for all of it."""
  workdir = Workdir(files.path_of(workdir))
  return workdir.plan_after(_last(workdir))


def fresh(workdir: files.PathLike) -> tuple[Callable[..., jax.Array], PyTree]:
  """The network of a run as it was before any cut, with new weights; see `load`."""
  config, dataset = _read(Workdir(files.path_of(workdir)))
  net = network.create(config, dataset['num_classes'])
  image = jax.ShapeDtypeStruct((1, *dataset['image']), jnp.float32)
  return _of_pixels(net.predict, dataset), net.init(jax.random.key(config.seed), image)


def module(workdir: files.PathLike) -> nn.Module:
  """The network that `load` returns as an ordinary Linen module of the same variables.

  Called as `module.apply(variables, x, train=False)` with normalised images.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
    NarrowError: `slim_jax.thin` is the only way to run it, see `narrow`.
  """
  workdir = Workdir(files.path_of(workdir))
  config, dataset = _read(workdir)
  left = workdir.plan_after(_last(workdir))
  model = network.model_of(config, dataset['num_classes'])
  return model if left is None else narrow.module(model, left)


def about(workdir: files.PathLike) -> dict[str, Any]:
  """What one needs to know of the network that `load` returns.

  Returns:
    image: height, width and channels; num_classes, class_names; mean and std of the channels of
    the training images, in pixel values; stage, accuracy (0 to 1), loss (nats), params, macs (of
    one image) and widths (channels by path of the scale) of the stage that left it; module: class
    and arguments of the Linen module that it is, as `narrow.describe`, None where it is none.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
  """
  workdir = Workdir(files.path_of(workdir))
  stage = _last(workdir)
  try:
    described = narrow.describe(module(workdir.path))
  except narrow.NarrowError:
    described = None
  (record,) = (record for record in workdir.records() if Stage.of(record) == stage)
  return {
    **read_json(workdir.path / 'dataset.json'),
    'stage': str(stage),
    **{name: record[name] for name in ('accuracy', 'loss', 'params', 'macs', 'widths')},
    'module': described,
  }


class Sparse(NamedTuple):
  """What a complete sparse stage has left, to look at.

  Attributes:
    run: config, directory and data.
    net: the network.
    state: its parameters and statistics; the optimiser state is a fresh one.
    evaluate: what `loop.make_evaluate` returns for the network.
    image: shape of one normalised image.
  """

  run: Run
  net: Network
  state: train_state.TrainState
  evaluate: Callable[..., evaluation.Result]
  image: jax.ShapeDtypeStruct


def open_sparse(config: Config, workdir: files.PathLike) -> Sparse:
  """Opens the last complete sparse stage of a run.

  Args:
    config: that of the run; what comes after the stage may differ.
    workdir: directory of the run.

  Raises:
    WorkdirError: no run with such a stage, or one with another config.
    As `run` for all else.
  """
  workdir = Workdir(files.path_of(workdir))
  done = [stage for stage in map(Stage.of, workdir.records()) if stage.name == 'sparse']
  if not done:
    raise WorkdirError(
      f'{workdir.path} holds no run with a complete sparse stage: call '
      'slim_jax.main with this config and workdir first'
    )
  workdir.compare(
    'config.json', context.to_json(config), free=('passes', *stages.free_after('sparse'))
  )
  opened = context.open_run(config, workdir)
  net, variables = _left(
    config, workdir, done[-1], opened.train_data.num_classes, opened.train_data.shape
  )
  state = train_state.create_state(net.apply, variables, optax.identity())
  return Sparse(
    opened, net, state, context.evaluator(opened, net), context.image(opened.train_data)
  )


def _last(workdir: Workdir) -> Stage:
  """The last complete stage that is not from scratch."""
  done = workdir.complete()
  if not done:
    raise WorkdirError(f'{workdir.path} holds no run with a complete stage')
  return done[-1]


def _read(workdir: Workdir) -> tuple[Config, dict[str, Any]]:
  """The config of a run, and its dataset.json."""
  config = schema.complete(ml_collections.ConfigDict(read_json(workdir.path / 'config.json')))
  return config, read_json(workdir.path / 'dataset.json')


def _of_pixels(
  predict: Callable[..., jax.Array], dataset: dict[str, Any]
) -> Callable[..., jax.Array]:
  """Logits of images as the data set has them."""
  mean, std = (np.asarray(dataset[name], np.float32) for name in ('mean', 'std'))

  def apply(variables: PyTree, image: jax.Array) -> jax.Array:
    return predict(variables, data.normalize(image, mean, std))

  return apply


def _left(
  config: Config, workdir: Workdir, stage: Stage, num_classes: int, shape: Sequence[int]
) -> tuple[Network, PyTree]:
  """The network and the variables that a stage has left, for images of that shape."""
  net = network.create(config, num_classes, workdir.plan_after(stage))
  directory = workdir.checkpoints(stage)
  arrays = checkpoint.read(directory)
  like = net.shapes(jax.ShapeDtypeStruct((1, *shape), jnp.float32))
  variables = checkpoint.fit(
    {name: arrays.get(name, {}) for name in like}, like, name=str(directory)
  )
  return net, jax.tree.map(jnp.asarray, variables)
