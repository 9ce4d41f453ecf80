"""Sends the metrics of a run to Weights & Biases or MLflow as well: `config.track`.

Each stage is a run there, in the project or experiment 'slim_jax', with the name of the workdir. What
the service needs, such as an address or a key, comes from its own environment variables. A run does
not depend on the service: if it fails, a warning is logged once, and training continues.
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import hashlib
import importlib
import importlib.util
from typing import Any

from absl import logging

from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, columns
from slim_jax.runtime import processes

PROJECT = 'slim_jax'

Log = Callable[[Mapping[str, Any]], None]


def missing(name: str) -> bool:
  """Returns whether a service is not installed."""
  return importlib.util.find_spec(name) is None


@contextlib.contextmanager
def tracker(
  name: str, workdir: Workdir, stage: Stage, config: Mapping[str, Any], *, module: Any = None
) -> Iterator[Log]:
  """Opens a stage at a service; does nothing if there is none.

  Args:
    name: key of `SERVICES`, or ''.
    workdir: directory of the run.
    stage: the stage.
    config: of the run.
    module: the service's package; None imports it.

  Yields:
    A function that takes a line of metrics.
  """
  if not name or not processes.is_first():
    yield lambda line: None
    return
  with contextlib.ExitStack() as stack:
    service: Log | None = None
    with _tolerating(name):
      opened = SERVICES[name](module or importlib.import_module(name), workdir, stage, config)
      service = stack.enter_context(opened)

    def log(line: Mapping[str, Any]) -> None:
      nonlocal service
      if service is not None:
        before, service = service, None
        with _tolerating(name):
          before(line)
          service = before

    yield log
    with _tolerating(name):
      stack.close()


@contextlib.contextmanager
def _wandb(module: Any, workdir: Workdir, stage: Stage, config: Mapping[str, Any]) -> Iterator[Log]:
  name = f'{workdir.path.name}: {stage}'
  run = module.init(
    project=PROJECT,
    name=name,
    group=workdir.path.name,
    # The same stage continues its run.
    id=_identity(workdir, stage),
    resume='allow',
    config=dict(config),
  )
  try:
    yield lambda line: run.log(numbers(line), step=line['step'])
  finally:
    run.finish()


@contextlib.contextmanager
def _mlflow(
  module: Any, workdir: Workdir, stage: Stage, config: Mapping[str, Any]
) -> Iterator[Log]:
  module.set_experiment(PROJECT)
  identity = _identity(workdir, stage)
  begun = module.search_runs(
    experiment_names=[PROJECT], filter_string=f"tags.identity = '{identity}'", output_format='list'
  )
  with module.start_run(
    run_id=begun[0].info.run_id if begun else None,
    run_name=f'{workdir.path.name}: {stage}',
    tags={'identity': identity},
  ):
    module.log_params({name: str(value)[:500] for name, value in columns(config)})
    yield lambda line: module.log_metrics(
      # MLflow takes fewer characters in a name than JSON.
      {name.replace('<', 'below '): value for name, value in numbers(line).items()},
      step=line['step'],
    )


def _identity(workdir: Workdir, stage: Stage) -> str:
  """Returns what tells a stage from all others, so that it continues its run."""
  return hashlib.blake2b(f'{workdir.path}: {stage}'.encode(), digest_size=8).hexdigest()


SERVICES = {'wandb': _wandb, 'mlflow': _mlflow}


def numbers(line: Mapping[str, Any]) -> dict[str, float]:
  """Returns the numbers of a line of metrics by name."""
  return {
    name: value
    for name, value in columns(line)
    if isinstance(value, (int, float)) and name not in ('pass', 'step', 'time')
  }


@contextlib.contextmanager
def _tolerating(name: str) -> Iterator[None]:
  try:
    yield
  except Exception as error:  # pylint: disable=broad-except  (of a service on the network)
    logging.warning('%s no longer gets the metrics of this stage: %s', name, error)
