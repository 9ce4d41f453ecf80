"""Network slimming for JAX: train with an L1 penalty on BatchNorm scales, then remove channels.

tx = optax.chain(slim_jax.add_l1(1e-4), optax.sgd(0.1, momentum=0.9))
...
dead = slim_jax.select_global(variables, fraction=0.7)
plan = slim_jax.plan(apply_fn, variables, x, dead=dead)
thin_variables = plan.slice(variables)
thin_apply = slim_jax.thin(apply_fn, plan)
logits = thin_apply(thin_variables, x)
"""

from collections.abc import Callable
import importlib
import os
from typing import Any

from slim_jax.batch_norms import scales as batch_norm_scales
from slim_jax.channels.plan import Plan
from slim_jax.channels.planning import plan
from slim_jax.channels.refit import reconstruct
from slim_jax.channels.thin import mask, thin
from slim_jax.channels.ties import streams
from slim_jax.costs.counting import Cost, count
from slim_jax.costs.per_channel import macs_per_channel
from slim_jax.cpu import cpu_options, for_cpu
from slim_jax.selection import scores
from slim_jax.selection.budget import BudgetError, select_budget
from slim_jax.selection.select import select_global
from slim_jax.sparsity.observe import scale_shares
from slim_jax.sparsity.penalties import add_l1, add_polarization, clip_scales, soft_threshold
from slim_jax.sparsity.pull import l1_pull
from slim_jax.structure.alignment import align
from slim_jax.structure.find import units
from slim_jax.structure.gates import fold, gate, without_gates
from slim_jax.structure.native import native
from slim_jax.structure.unit import Units
from slim_jax.structure.weight_norm import remove_weight_norm

# setup.cfg reads the version from this line, without importing the package.
__version__ = '0.1.0'


# Modules that need a library of models: imported when they are first used, as `slim_jax.nnx`.
_ADAPTERS = ('linen', 'nnx', 'equinox', 'haiku', 'keras')


def __getattr__(name: str) -> Any:
  if name in _ADAPTERS:
    return importlib.import_module(f'{__name__}.{name}')
  raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def load(workdir: str | os.PathLike[str]) -> tuple[Callable[[Any, Any], Any], Any]:
  """Loads the network of a finished run of `slim_jax.main`, thin if it was pruned.

  Args:
    workdir: directory of the run; it may have been moved.

  Returns:
    (apply, variables): `apply(variables, image)` returns logits float32 [n, classes] for images
    uint8 [n, height, width, channels], as the data set has them; it normalises them itself.

  Raises:
    WorkdirError: the directory holds no run with a complete stage.
    CheckpointError: no checkpoint of the stage can be read.
  """
  # Imported here, because the transformation alone needs neither data sets nor checkpoints.
  try:
    from slim_jax.runs import finished  # pylint: disable=g-import-not-at-top
  except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
      f'slim_jax.load needs {error.name}: install slim_jax with its extra train, as in '
      "pip install 'slim_jax[train]'",
      name=error.name,
    ) from error

  return finished.load(workdir, compiled=True)


__all__ = [
  'BudgetError',
  'Cost',
  'Plan',
  'Units',
  'add_l1',
  'add_polarization',
  'align',
  'batch_norm_scales',
  'clip_scales',
  'count',
  'cpu_options',
  'fold',
  'for_cpu',
  'gate',
  'l1_pull',
  'load',
  'macs_per_channel',
  'mask',
  'native',
  'plan',
  'reconstruct',
  'remove_weight_norm',
  'scale_shares',
  'scores',
  'select_budget',
  'select_global',
  'soft_threshold',
  'streams',
  'thin',
  'units',
  'without_gates',
]
