"""Opens what the complete stages of a run have left: `slim_jax.load`.

Needs the checkpoint and the three JSON files of the directory, not the data set.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from slim_jax import data
from slim_jax.channels.plan import Plan
from slim_jax.display import quantities
from slim_jax.models import narrow
from slim_jax.runs import gated, network, readers, results
from slim_jax.runs.errors import WorkdirError
from slim_jax.runs.network import Network
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files, parts
from slim_jax.runtime.config import Config
from slim_jax.training import checkpoint

PyTree = Any


def load(
  workdir: files.PathLike,
  *,
  stage: Stage | None = None,
  dtype: str | None = None,
  compiled: bool = False,
) -> tuple[Callable[..., jax.Array], PyTree]:
  """Returns the network of the last complete stage of a run, except stages from scratch.

  Args:
    workdir: directory of the run, which may have been moved.
    stage: another complete stage, whose network to return.
    dtype: dtype of the computation; None for that of the config.
    compiled: whether to return `infer` of the network, which is fast under `jax.jit` on this
      machine, rather than `predict`, which can be exported.

  Returns:
    (apply, variables): `apply(variables, image)` returns the outputs, logits float32 [n, classes]
    for classification, for images [n, height, width, channels] as in the data set, uint8 for all
    but own data; normalisation is included.

  Raises:
    WorkdirError: the directory holds no run with a complete stage, or its files have changed since
      the stage was recorded.
    CheckpointError: the checkpoint of the stage's record cannot be read.
    PartError: the model is a person's own, and its module cannot be imported here.
  """
  here = Workdir(files.path_of(workdir))
  stage = stage or _last(here)
  config, dataset = _read(here, stage)
  config.dtype = dtype or config.dtype
  net, variables = restore(config, here, stage, dataset['num_classes'], dataset['image'])
  if net.units is not None:
    net, variables = net.inner, gated.folded(variables, net.units)
  return _from_pixels(net.infer if compiled else net.predict, dataset), variables


def uncut(workdir: files.PathLike) -> Stage | None:
  """Returns the stage whose network the one of `load` is compared with; None if it is not pruned.

  That is the baseline, or the first sparse stage of a run without a baseline.
  """
  complete = Workdir(files.path_of(workdir)).complete_stages()
  if not complete or not complete[-1].prunings:
    return None
  return complete[0]


def plan(workdir: files.PathLike) -> Plan | None:
  """Returns the plan of the network that `load` returns; None if it is not pruned."""
  here = Workdir(files.path_of(workdir))
  return here.plan_after(_last(here))


def unpruned(workdir: files.PathLike) -> tuple[Callable[..., jax.Array], PyTree]:
  """Returns the original network of a run with new weights, in the form of `load`."""
  here = Workdir(files.path_of(workdir))
  config, dataset = _read(here)
  with _fitting(here):
    net = network.create(config, dataset['num_classes'])
  image = jax.ShapeDtypeStruct((1, *dataset['image']), jnp.float32)
  return _from_pixels(net.predict, dataset), net.init(jax.random.key(config.seed), image)


def module(workdir: files.PathLike) -> nn.Module:
  """Returns the network of `load` as an ordinary Linen module with the same variables.

  Call it as `module.apply(variables, x, train=False)` with normalised images.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
    NarrowError: the model is a person's own; its thin form runs with `slim_jax.thin` only.
  """
  here = Workdir(files.path_of(workdir))
  stage = _last(here)
  config, dataset = _read(here, stage)
  return _thin_module(_linen_module(config, dataset), here.plan_after(stage))


def about(workdir: files.PathLike) -> dict[str, Any]:
  """Returns what one needs to know about the network that `load` returns.

  Returns:
    image (height, width and channels), num_classes, class_names, mean and std (of the channels of
    the training images, in pixel values), dtype of the images if it is not uint8; stage, loss,
    the metrics of the run's loss (accuracy, 0 to 1, for classification), params, macs (of one
    image) and widths (channels by path of the scale) of its stage; module: class and arguments of
    its Linen module as in `narrow.describe`, None if widths do not describe it; full_module: those
    of the full network, None for a person's own model, and where no narrow module is the thin one.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
    PartError: as in `load`.
  """
  here = Workdir(files.path_of(workdir))
  stage = _last(here)
  config, dataset = _read(here, stage)
  described = full = None
  if not parts.is_name(config.model.name):
    model, pruned = _linen_module(config, dataset), here.plan_after(stage)
    with contextlib.suppress(narrow.NarrowError):
      if pruned is not None:
        narrow.with_indices(model, pruned)  # raises if no narrow module computes the thin network
      full = narrow.describe(model)
    with contextlib.suppress(narrow.NarrowError):
      described = narrow.describe(_thin_module(model, pruned))
  record = here.record(stage)
  figures = (*quantities.metrics_of(record), 'loss', 'params', 'macs')
  return {
    **dataset,
    'stage': str(stage),
    **{name: record[name] for name in figures},
    'widths': record.get('widths', {}),
    'module': described,
    'full_module': full,
  }


def _thin_module(model: nn.Module, pruned: Plan | None) -> nn.Module:
  """Returns the module itself if it is not pruned, else its narrow form."""
  return model if pruned is None else narrow.module(model, pruned)


def config_of(workdir: files.PathLike) -> tuple[Config, dict[str, Any]]:
  """Returns the config of a run and its dataset.json; raises WorkdirError if there are none."""
  return _read(Workdir(files.path_of(workdir)))


def dtype(about: Mapping[str, Any]) -> str:
  """Returns the dtype of the images that the function of `load` takes: 'uint8' or 'float32'.

  Args:
    about: what the function `about` returns of the run.
  """
  return about.get('dtype', 'uint8')


def restore(
  config: Config, workdir: Workdir, stage: Stage, num_classes: int, shape: Sequence[int]
) -> tuple[Network, PyTree]:
  """Returns the network and the variables of a complete stage.

  Args:
    config: config of the run.
    workdir: directory of the run.
    stage: the stage; the network of a sparse one has its gates.
    num_classes: number of classes.
    shape: height, width and channels of an image.

  Raises:
    CheckpointError: the checkpoint of the stage's record cannot be read, or does not fit the
      config.
    WorkdirError: config, plan and images make no network.
  """
  plan = workdir.plan_after(stage)
  image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  with _fitting(workdir):
    net = network.create(config, num_classes, plan)
    if stage.name == 'sparse' and config.prune.units:
      net = network.with_gates(net, image, config.prune.units)
    like = net.shapes(image)
  arrays = results.read_variables(workdir, stage)
  variables = checkpoint.fit(
    {name: arrays.get(name, {}) for name in like}, like, name=str(workdir.checkpoints(stage))
  )
  return net, jax.tree.map(jnp.asarray, variables)


def _last(workdir: Workdir) -> Stage:
  """Returns the last complete stage that is not from scratch."""
  complete = workdir.complete_stages()
  if not complete:
    raise WorkdirError(f'{workdir.path} holds no run with a complete stage')
  return complete[-1]


def _read(workdir: Workdir, stage: Stage | None = None) -> tuple[Config, dict[str, Any]]:
  """Returns the config of a run and its dataset.json, checked against the record of a stage."""
  config = readers.config(workdir.path / 'config.json')
  dataset = readers.dataset(workdir.path / 'dataset.json')
  if stage is not None:
    results.check_network(workdir, stage, config, dataset)
  return config, dataset


@contextlib.contextmanager
def _fitting(workdir: Workdir) -> Iterator[None]:
  """Turns errors of a model that cannot be made into WorkdirError."""
  try:
    yield
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise WorkdirError(
      f'config.json, dataset.json and the plans of {workdir.path} do not make a network: {error}'
    ) from error


def _linen_module(config: Config, dataset: dict[str, Any]) -> nn.Module:
  """Returns the full network as a Linen module; raises NarrowError if it is one of NNX."""
  model = network.model_of(config, dataset['num_classes']).module
  if model is None:
    raise narrow.NarrowError(f'{config.model.name} is a model of NNX, not of Linen')
  return model


def _from_pixels(
  predict: Callable[..., jax.Array], dataset: dict[str, Any]
) -> Callable[..., jax.Array]:
  """Puts the normalisation of pixel values in front of a network."""
  mean, std = (np.asarray(dataset[name], np.float32) for name in ('mean', 'std'))

  def apply(variables: PyTree, image: jax.Array) -> jax.Array:
    return predict(variables, data.normalize(image, mean, std))

  return apply
