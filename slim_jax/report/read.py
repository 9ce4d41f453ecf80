"""Reads the files of a run for its page, and checks them before anything is drawn."""

from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath
import jax
import numpy as np

from slim_jax import tree
from slim_jax.display import quantities
from slim_jax.report import architecture
from slim_jax.runs import gated, readers, results, scale_history
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir, WorkdirError, read_json
from slim_jax.sparsity import observe
from slim_jax.structure import native
from slim_jax.training import losses


class Missing(Exception):
  """A run has not recorded something; the message is for its page."""


def rows(
  path: epath.Path, value: Any, fields: Sequence[str], *, figures: bool = False
) -> list[dict[str, Any]]:
  """Returns the rows of a file after checking that each has a number in every field.

  Args:
    path: of the file, for the message.
    value: what the file holds.
    fields: of each row.
    figures: whether each row has the figure that judges, too: accuracy for classification.

  Raises:
    WorkdirError: it holds anything else.
  """

  def wanted(row: dict[str, Any]) -> Sequence[str]:
    if not figures:
      return fields
    metrics = row.get('metrics', ())
    named = metrics if isinstance(metrics, list) else ()
    return *fields, *dict.fromkeys((quantities.judge_of(row), *map(str, named)))

  if not isinstance(value, list) or not all(
    isinstance(row, dict) and all(readers.is_number(row.get(name)) for name in wanted(row))
    for row in value
  ):
    names = ', '.join(wanted({}))
    raise WorkdirError(f'{path} is damaged: each of its rows must have the numbers {names}')
  return value


def stages(workdir: Workdir) -> list[dict[str, Any]]:
  """Returns the records of the complete stages."""
  return rows(
    workdir.path / 'stages.json',
    workdir.records(),
    ('pass', 'loss', 'params', 'macs', 'seconds'),
    figures=True,
  )


def judge(workdir: Workdir) -> str:
  """Returns the name of the figure that judges the networks of a run, such as 'accuracy'."""
  if records := workdir.records():
    return quantities.judge_of(records[0])
  path = workdir.path / 'config.json'
  if not path.exists():
    return quantities.judge_of({})
  return losses.judge(readers.config(path)).name


def metrics(workdir: Workdir) -> list[dict[str, Any]]:
  """Returns the metrics of all epochs; raises Missing if there are none."""
  lines = rows(
    workdir.path / 'metrics.jsonl',
    workdir.metrics(),
    ('pass', 'epoch', 'step', 'loss', judge(workdir), 'learning_rate'),
  )
  if not lines:
    raise Missing('No epoch is recorded yet.')
  return lines


def look(workdir: Workdir) -> list[dict[str, Any]]:
  """Returns the rows of `slim_jax.look`; raises Missing if it was not run."""
  path = workdir.path / 'look.json'
  if not path.exists():
    raise Missing(
      'Not measured yet: python -m slim_jax.look, with the config and the workdir of the run, '
      'measures what other fractions would cost.'
    )
  fractions = rows(
    path,
    read_json(path),
    ('fraction', 'recalibrated', 'params', 'macs', 'full_params', 'full_macs'),
    figures=True,
  )
  if not fractions:
    raise Missing('slim_jax.look found no fraction that can be removed.')
  return fractions


def latency(path: epath.Path) -> dict[str, Any]:
  """Returns what `measure.latency` wrote to a file; raises Missing if there is none."""
  if not path.exists():
    raise Missing(
      'Not measured yet: python -m slim_jax.report --workdir=DIR measures it on the device of '
      'the machine on which it runs.'
    )
  damaged = WorkdirError(f'{path} is damaged: delete it and measure again')
  measured = read_json(path)
  if not isinstance(measured, dict) or not {'device', 'time', 'jax', 'rows'} <= measured.keys():
    raise damaged
  for row in rows(path, measured['rows'], ('batch',)):
    if not isinstance(row.get('network'), str) or not (
      (readers.is_number(row.get('seconds')) and row['seconds'] > 0)
      or ('seconds' not in row and isinstance(row.get('skipped'), str))
    ):
      raise damaged
  return measured


def scales(workdir: Workdir, stage: Stage) -> dict[str, np.ndarray]:
  """Returns |scale| at the end of a complete stage, float [channels] by path.

  Raises:
    Missing: the network has no BatchNorm, and no gates yet.
  """
  params = results.read_variables(workdir, stage)['params']
  if not any(jax.tree.leaves(gated.scales_of(params))):
    raise Missing(f'{stage}: the network has no scales.')
  return observe.by_layer(params, gated.scales_of)


def split(
  workdir: Workdir, stage: Stage, scales_by_path: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
  """Returns the scales of a sparse stage that were kept and removed; 'all' before the cut.

  Args:
    workdir: of the run.
    stage: the sparse stage.
    scales_by_path: what `scales` returns for it.
  """
  together = np.concatenate(list(scales_by_path.values()))
  is_pruned = Stage(stage.number, 'pruned') in map(Stage.of, workdir.records())
  plan = workdir.plan_after(Stage(stage.number, 'pruned')) if is_pruned else None
  if plan is None:
    return {'all': together}
  before = workdir.plan_after(stage)
  plan = plan if before is None else plan.relative_to(before)
  units = architecture.read(workdir).units(before)
  if units is None:
    live = [plan.cuts[tree.parse(path)].is_live.ravel() for path in scales_by_path]
  else:
    left = native.units_left(units, plan)
    # Stacked layers lose the same units.
    live = [np.tile(left[name], units[name].layers or 1) for name in gated.names(scales_by_path)]
  kept = np.concatenate(live)
  return {'kept': together[kept], 'removed': together[~kept]}


def history(workdir: Workdir, stage: Stage) -> scale_history.Scales:
  """Returns the scales of a sparse stage by epoch; raises Missing if they were not recorded."""
  path = workdir.scales(stage)
  if not path.exists():
    raise Missing(f'{stage}: the scales of its epochs were not recorded.')
  recorded = scale_history.read(path)
  if not len(recorded.epoch):
    raise Missing(f'{stage}: no epoch is recorded yet.')
  return recorded
