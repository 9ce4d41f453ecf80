"""What the files of a run hold, checked before anything is drawn from it."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
import numpy as np

from slim_jax import tree
from slim_jax.runs import scale_history
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError, read_json
from slim_jax.sparsity import observe
from slim_jax.training import checkpoint


class Missing(Exception):
  """A run has not recorded something; the message is for its page."""


def rows(path: epath.Path, found: Any, fields: Sequence[str]) -> list[dict[str, Any]]:
  """Rows of a file, each a number in each of these fields.

  Raises:
    WorkdirError: they are not.
  """
  if not isinstance(found, list) or not all(
    isinstance(row, dict) and all(isinstance(row.get(name), (int, float)) for name in fields)
    for row in found
  ):
    raise WorkdirError(
      f'{path} is damaged: each of its rows must have the numbers ' + ', '.join(fields)
    )
  return found


def stages(workdir: Workdir) -> list[dict[str, Any]]:
  """The records of the complete stages."""
  return rows(
    workdir.path / 'stages.json',
    workdir.records(),
    ('pass', 'accuracy', 'loss', 'params', 'macs', 'seconds'),
  )


def lines(workdir: Workdir) -> list[dict[str, Any]]:
  """The lines of metrics of all stages; raises Missing where there is none."""
  found = rows(
    workdir.path / 'metrics.jsonl',
    workdir.lines(),
    ('pass', 'epoch', 'step', 'loss', 'accuracy', 'learning_rate'),
  )
  if not found:
    raise Missing('No epoch is recorded yet.')
  return found


def look(workdir: Workdir) -> list[dict[str, Any]]:
  """What `slim_jax.look` has found; raises Missing where it has not looked."""
  path = workdir.path / 'look.json'
  if not path.exists():
    raise Missing(
      'What other fractions would cost has not been looked at: '
      'python -m slim_jax.look, with the config and the workdir of the run, does.'
    )
  found = rows(
    path,
    read_json(path),
    ('fraction', 'accuracy', 'recalibrated', 'params', 'macs', 'full_params', 'full_macs'),
  )
  if not found:
    raise Missing('slim_jax.look has found no fraction that can be cut.')
  return found


def latency(path: epath.Path) -> dict[str, Any]:
  """What was measured for the page; raises Missing where nothing was."""
  if not path.exists():
    raise Missing(
      'Not measured: python -m slim_jax.report --workdir=DIR does, on the device that it finds.'
    )
  found = read_json(path)
  if not isinstance(found, dict) or not {'device', 'time', 'jax', 'rows'} <= found.keys():
    raise WorkdirError(f'{path} is damaged: delete it, and measure again')
  for row in rows(path, found['rows'], ('batch',)):
    if not isinstance(row.get('network'), str) or not (
      isinstance(row.get('seconds'), float) or isinstance(row.get('skipped'), str)
    ):
      raise WorkdirError(f'{path} is damaged: delete it, and measure again')
  return found


def scales(workdir: Workdir, stage: Stage) -> dict[str, np.ndarray]:
  """|scale| that a complete stage has left, float [channels] by path."""
  return observe.by_layer(checkpoint.read(workdir.checkpoints(stage))['params'])


def split(workdir: Workdir, stage: Stage, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
  """The scales of a sparse stage, those that stayed and those that went; 'all' before the cut.

  Args:
    workdir: of the run.
    stage: the sparse stage.
    found: what it has left.
  """
  together = np.concatenate(list(found.values()))
  if not any(Stage.of(record) == Stage(stage.number, 'pruned') for record in workdir.records()):
    return {'all': together}
  plan, before = (workdir.plan_after(Stage(stage.number, name)) for name in ('pruned', 'sparse'))
  plan = plan if before is None else plan.relative_to(before)
  kept = []
  for path in found:
    cut = plan.cuts[tree.parse(path)]
    live = np.zeros(cut.shape, bool)
    live[np.ix_(*cut.indices)] = True
    kept.append(live.ravel())
  left = np.concatenate(kept)
  return {'kept': together[left], 'removed': together[~left]}


def history(workdir: Workdir, stage: Stage) -> scale_history.Scales:
  """The scales of a sparse stage by epoch; raises Missing where they are not recorded."""
  path = workdir.scales(stage)
  if not path.exists():
    raise Missing(f'{stage}: the scales of its epochs were not recorded.')
  found = scale_history.read(path)
  if not len(found.epoch):
    raise Missing(f'{stage}: no epoch is recorded yet.')
  return found
