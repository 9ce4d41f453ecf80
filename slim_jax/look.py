"""One look before the cut: how accuracy and size would fall with the fraction of channels.

  python -m slim_jax.look --config=configs/NAME.py --workdir=DIR [--points=20] [--tolerance=0.5]

Takes the network of the last complete sparse stage of a run, masks it at many fractions, and
suggests the largest cut that costs no more than the tolerance. Nothing of the run is changed: to
cut so, call `slim_jax.main` with the suggested field.
"""

from collections.abc import Sequence
from typing import Any

from absl import flags, logging
import jax
import numpy as np

import slim_jax
from slim_jax import command
from slim_jax.costs import candidates
from slim_jax.display import plot, progress, tables
from slim_jax.report import page
from slim_jax.runs import checks, finished, pruning, schema
from slim_jax.runtime import files, processes
from slim_jax.runtime.config import Config
from slim_jax.training import recalibration, train_state

# Training batches to recalibrate with where the config asks for none.
_BATCHES = 20

_POINTS = flags.DEFINE_integer('points', 20, 'How many fractions to try.', lower_bound=1)
_TOLERANCE = flags.DEFINE_float(
  'tolerance', 0.5, 'Accuracy that may be lost after recalibration, in points.', lower_bound=0
)


def main() -> None:
  """Looks at the run of the command line and shows what was found."""
  config, workdir = command.CONFIG.value, files.path_of(command.WORKDIR.value)
  fractions = np.linspace(0, 1, _POINTS.value + 1)[:-1].round(4)
  rows = run(config, workdir, fractions.tolist())
  best = suggest(rows, _TOLERANCE.value)
  if processes.is_first():
    tables.show_look(rows, best)
  path = workdir / 'look.png'
  plot.save(plot.look(rows, best=best), path)
  logging.info('plot: %s', path)
  if command.REPORT.value:
    page.at_end(workdir)


def run(
  config: Config, workdir: files.PathLike, fractions: Sequence[float]
) -> list[dict[str, Any]]:
  """Judges the last sparse network of a run at each fraction.

  Masked networks are evaluated, which compute what the thin ones do with arrays of one size, so
  that evaluation compiles once. Judged on `valid_split`, or on `test_split` where there is none.

  Args:
    config: of the run; prune (but for fraction and target) and recalibrate_batches may differ.
    workdir: of the run.
    fractions: of the channels, each at least 0 and less than 1.

  Returns:
    For each fraction: fraction, accuracy, recalibrated (the accuracy after recalibration; both 0
    to 1), params and macs of the thin network, and those before as full_params and full_macs. A
    fraction that cannot be cut is left out, with all above it. Also written to look.json.

  Raises:
    ConfigError, DataError: the config cannot work, or the data cannot be had.
    WorkdirError: no run with a complete sparse stage, or one with another config.
  """
  config = schema.complete(config)
  checks.check_config(config)
  with config.unlocked():
    config.prune.target = ''
    config.recalibrate_batches = config.recalibrate_batches or _BATCHES
  sparse = finished.open_sparse(config, workdir)
  opened, variables = sparse.run, train_state.variables_of(sparse.state)
  recalibrate = recalibration.make_recalibrate(
    opened.train_data, config=config, key=jax.random.key(config.seed)
  )
  split_data = opened.valid_data or opened.test_data
  network = candidates.trace(sparse.net.predict, variables, sparse.image)
  full = candidates.counted(network, None)
  rows = []
  for fraction in progress.each(fractions, 'fractions', total=len(fractions)):
    with config.unlocked():
      config.prune.fraction = fraction
    try:
      dead = pruning.select_dead(sparse.net, variables, sparse.image, config.prune)
      plan = candidates.planned(network, dead, bias=config.prune.bias)
    except ValueError as error:
      logging.info('fraction %g and more cannot be cut: %s', fraction, error)
      break
    masked = slim_jax.mask(variables, dead, bias=config.prune.bias)
    state = sparse.state.replace(params=masked['params'], batch_stats=masked['batch_stats'])
    cost = candidates.counted(network, plan)
    rows.append(
      {
        'fraction': fraction,
        'accuracy': sparse.evaluate(masked, split_data).accuracy,
        'recalibrated': sparse.evaluate(
          train_state.variables_of(recalibrate(state)), split_data
        ).accuracy,
        'params': cost.params,
        'macs': cost.macs,
        'full_params': full.params,
        'full_macs': full.macs,
      }
    )
    logging.info(
      'fraction %.3g: accuracy %.2f%%, recalibrated %.2f%%',
      fraction,
      100 * rows[-1]['accuracy'],
      100 * rows[-1]['recalibrated'],
    )
  files.write_json(files.path_of(workdir) / 'look.json', rows)
  return rows


def suggest(rows: Sequence[dict[str, Any]], tolerance: float) -> dict[str, Any] | None:
  """The row of the largest cut up to which no cut costs more than so many points.

  Args:
    rows: what `run` returns, in order of the fraction, the first of fraction 0.
    tolerance: points of accuracy after recalibration, against the network before the cut.
  """
  best = None
  for row in rows:
    if 100 * (rows[0]['accuracy'] - row['recalibrated']) > tolerance and row['fraction']:
      break
    best = row if row['fraction'] else None
  return best


if __name__ == '__main__':
  command.run(main)
