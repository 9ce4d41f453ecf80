"""Shows before pruning how accuracy and size depend on the fraction of channels removed.

  python -m slim_jax.look --config=configs/NAME.py --workdir=DIR [--points=20] [--tolerance=0.5]

Masks the network of the last complete sparse stage of a run at many fractions, and suggests the
largest fraction that costs no more accuracy than the tolerance. The run itself is not changed; to
prune it, call `slim_jax.main` with the suggested field.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags, logging
import jax
import numpy as np

import slim_jax
from slim_jax import command
from slim_jax.costs import candidates
from slim_jax.display import plot, progress, quantities, tables
from slim_jax.report import page
from slim_jax.runs import checks, pruning, schema
from slim_jax.runs.run import open_sparse_stage
from slim_jax.runtime import files, processes
from slim_jax.runtime.config import Config
from slim_jax.training import recalibration
from slim_jax.training.train_state import variables_of

# Training batches for recalibration if the config has none.
_BATCHES = 20


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_integer('points', 20, 'Number of fractions to try.', lower_bound=1)
  flags.DEFINE_float(
    'tolerance', 0.5, 'Accuracy that may be lost after recalibration, in points.', lower_bound=0
  )


def main() -> None:
  """Prints and draws the table of the run of the command line."""
  config: Any = flags.FLAGS.config
  workdir = files.path_of(flags.FLAGS.workdir)
  fractions = np.linspace(0, 1, flags.FLAGS.points + 1)[:-1].round(4)
  rows = run(config, workdir, fractions.tolist())
  best = suggest(rows, flags.FLAGS.tolerance)
  if processes.is_first():
    tables.show_look(rows, best)
  path = workdir / 'look.png'
  plot.save(plot.look(rows, best=best), path)
  logging.info('plot: %s', path)
  if flags.FLAGS.report:
    page.at_end(workdir)


def run(
  config: Config, workdir: files.PathLike, fractions: Sequence[float]
) -> list[dict[str, Any]]:
  """Evaluates the last sparse network of a run at each fraction. Writes look.json.

  Evaluates masked networks, which compute the same as the thin ones with arrays of one size, so
  that evaluation compiles once. Accuracies are those on `valid_split`, or on `test_split` if the
  config names none.

  Args:
    config: config of the run; prune and recalibrate_batches may differ. prune.fraction and
      prune.target are not used.
    workdir: directory of the run.
    fractions: fractions of the channels, increasing, each at least 0 and less than 1.

  Returns:
    For each fraction: fraction, accuracy and recalibrated (the accuracy after recalibration), both
    0 to 1, or the figure that judges another loss, and its name as judge; params and macs of the thin network; full_params and full_macs of the network before.
    The list ends before the first fraction that cannot be removed.

  Raises:
    ConfigError: the config cannot work.
    DataError: the data cannot be loaded.
    WorkdirError: there is no complete sparse stage, or the run has another config.
  """
  config = schema.complete(config)
  checks.check_config(config)
  with config.unlocked():
    config.prune.target = ''
    config.recalibrate_batches = config.recalibrate_batches or _BATCHES
  sparse = open_sparse_stage(config, workdir)
  opened, variables = sparse.run, variables_of(sparse.state)
  recalibrate = recalibration.make_recalibrate(
    opened.train_data, config=config, key=jax.random.key(config.seed)
  )
  split_data = opened.valid_data or opened.test_data
  network = candidates.trace(sparse.net.predict, variables, opened.image)
  full = candidates.counted(network, None)
  judge, rows = opened.objective.figure, []
  described = {} if judge.name == 'accuracy' else {'judge': judge.text}
  for fraction in progress.each(fractions, 'fractions', total=len(fractions)):
    with config.unlocked():
      config.prune.fraction = fraction
    try:
      dead = pruning.select_dead(
        sparse.net, variables, opened.image, config.prune, calibration=pruning.calibration(opened)
      )
      plan = candidates.planned(network, dead, bias=config.prune.bias)
    except ValueError as error:
      logging.info('fractions from %g on cannot be removed: %s', fraction, error)
      break
    masked = slim_jax.mask(variables, dead, bias=config.prune.bias)
    state = sparse.state.replace(params=masked['params'], batch_stats=masked['batch_stats'])
    cost = candidates.counted(network, plan)
    rows.append(
      {
        'fraction': fraction,
        judge.name: sparse.evaluate(masked, split_data).value(judge.name),
        'recalibrated': sparse.evaluate(variables_of(recalibrate(state)), split_data).value(
          judge.name
        ),
        **described,
        'params': cost.params,
        'macs': cost.macs,
        'full_params': full.params,
        'full_macs': full.macs,
      }
    )
    logging.info(
      'fraction %.3g: %s %s, recalibrated %s',
      fraction,
      judge.name,
      *(quantities.show(judge.name, rows[-1][name]) for name in (judge.name, 'recalibrated')),
    )
  files.write_json(files.path_of(workdir) / 'look.json', rows)
  return rows


def suggest(rows: Sequence[dict[str, Any]], tolerance: float) -> dict[str, Any] | None:
  """Returns the row of the largest fraction up to which no row exceeds the tolerance.

  Args:
    rows: rows of `run` in order of the fraction; the first one has fraction 0.
    tolerance: accuracy that may be lost, in percentage points: accuracy before pruning, as it is or
      after recalibration if that is better, minus accuracy after pruning and recalibration. For a
      figure that is no accuracy, the amount by which it may become worse.

  Returns:
    The row; None if every fraction exceeds the tolerance.
  """
  best = None
  for row in rows:
    before = (rows[0][quantities.judge_of(row)], rows[0]['recalibrated'])
    lost = max(quantities.lost(row, figure, row['recalibrated']) for figure in before)
    if lost > tolerance and row['fraction']:
      break
    best = row if row['fraction'] else None
  return best


if __name__ == '__main__':
  command.run(main, define_flags)
