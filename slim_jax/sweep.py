"""Studies: the same run for several values of some fields.

  python -m slim_jax.sweep --config=configs/NAME.py --workdir=DIR --sweep=FIELD=VALUE,VALUE,...

lambda    --sweep=train.strength=0,1e-5,1e-4
fraction  --sweep=prune.fraction=0.1,0.3,0.5,0.7,0.9
scratch   --config.scratch.e=True --config.scratch.b=True, with any other
spread    --sweep=seed=0,1,2, alone or with another: all combinations are run

A point is a run in a directory of its own, DIR/FIELD=VALUE. Stages that do not depend on
what varies are trained once, in DIR/shared, and every point begins with them. The same
command again continues; values can be added. Ends with a table, DIR/sweep.json, the page
DIR/report and, where fractions or strengths vary, plots.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

from absl import flags, logging
from etils import epath

from slim_jax import command
from slim_jax.display import plot, tables
from slim_jax.report import page
from slim_jax.runs import checks, context, pipeline, schema, stages
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files, processes
from slim_jax.runtime.config import Config
from slim_jax.sparsity import observe
from slim_jax.training import checkpoint, loop

Values = dict[str, Any]  # of the fields that vary

_SWEEP = flags.DEFINE_multi_string('sweep', None, 'FIELD=VALUE,VALUE,...; can be repeated.')

_STRENGTHS = ('train.strength', 'train.pull')


def main() -> None:
  """Runs the study of the command line and shows what came of it."""
  config = schema.complete(command.CONFIG.value)
  workdir = files.path_of(command.WORKDIR.value)
  points = run(config, parse(config, _SWEEP.value), workdir)
  if processes.is_first():
    tables.show_sweep(points)
  for path in draw(points, workdir):
    logging.info('plot: %s', path)
  if command.REPORT.value:
    page.at_end(workdir)


def parse(config: Config, texts: Sequence[str]) -> dict[str, list[Any]]:
  """Values by field.

  Args:
    config: has the fields.
    texts: each 'FIELD=VALUE,VALUE,...'.

  Raises:
    ConfigError: no such field, or a value that is not of its type.
  """
  result = {}
  for text in texts:
    field, _, values = text.partition('=')
    section, _, name = ('.' + field).rpartition('.')
    parent = config
    for step in filter(None, section.split('.')):
      parent = parent[step] if step in parent else {}
    if name not in parent or not isinstance(parent[name], (bool, int, float, str)):
      raise checks.ConfigError(f'--sweep={text}: the config has no field {field!r} of one value')
    try:
      result[field] = [_value(value, parent[name]) for value in values.split(',')]
    except ValueError as error:
      raise checks.ConfigError(f'--sweep={text}: {error}') from error
  return result


def run(
  config: Config, sweep: Mapping[str, Sequence[Any]], workdir: files.PathLike
) -> list[dict[str, Any]]:
  """Runs all points, or what is left of them.

  Args:
    config: of every point, but for the fields that vary.
    sweep: values by dotted field; all combinations are points.
    workdir: directory of the study.

  Returns:
    For each point: values, by field; workdir, its name in the directory; stages, as
    summary.json has them; error, where it cannot be pruned as asked or diverges, else ''.

  Raises:
    ConfigError: some point cannot work, and nothing has been run.
    As `pipeline.run` for all else.
  """
  config, workdir = schema.complete(config), files.path_of(workdir)
  every = [dict(zip(sweep, values)) for values in itertools.product(*sweep.values())]
  for values in every:
    checks.check_config(_with(config, values))
  points = []
  for values in every:
    name = _name(values)
    logging.info('point %d of %d: %s', len(points) + 1, len(every), name)
    try:
      _share(config, values, workdir)
      records, error = pipeline.run(_with(config, values), workdir / name), ''
    except (checks.PruneError, loop.DivergedError) as problem:
      # A finding, too, and no reason to do without the others.
      logging.error('%s: %s', name, problem)
      records, error = Workdir(workdir / name).records(), str(problem)
    points.append(
      {'values': values, 'workdir': name, 'stages': tables.rows(records), 'error': error}
    )
    files.write_json(
      workdir / 'sweep.json',
      {
        'config': context.to_json(config),
        'sweep': {k: list(v) for k, v in sweep.items()},
        'points': points,
      },
    )
  return points


def draw(points: Sequence[dict[str, Any]], workdir: epath.Path) -> list[epath.Path]:
  """Draws what the study varies: errors by fraction, scales by strength.

  Args:
    points: what `run` returns.
    workdir: directory of the study.

  Returns:
    The files, in `workdir`.
  """
  paths = []
  if 'prune.fraction' in points[0]['values']:
    paths.append(workdir / 'fraction.png')
    plot.save(
      plot.errors(
        [(point['values']['prune.fraction'], _errors(point)) for point in points],
        name='fraction of channels removed',
      ),
      paths[-1],
    )
  if any(field in _STRENGTHS for field in points[0]['values']):
    paths.append(workdir / 'scales.png')
    scales = {}
    for point in points:
      stage = Stage(1, 'sparse')
      if any(Stage.of(row) == stage for row in point['stages']):
        arrays = checkpoint.read(Workdir(workdir / point['workdir']).checkpoints(stage))
        scales[point['workdir']] = {'all': observe.scales(arrays['params'])}
    plot.save(plot.histograms(scales, name='|scale|'), paths[-1])
  return paths


def _share(config: Config, values: Values, workdir: epath.Path) -> None:
  """Trains what a point has in common with others, once, and begins the point with it."""
  shared: dict[str, tuple[Values, Stage]] = {}
  for stage in (Stage(0, 'baseline'), Stage(1, 'sparse')):
    own = {field: value for field, value in values.items() if stages.depends(stage.name, field)}
    if stage in stages.of(config) and len(own) < len(values):
      shared[','.join(filter(None, ['shared', _name(own)]))] = own, stage
  source = None
  for name, (own, stage) in shared.items():
    here = Workdir(workdir / name)
    if source:
      here.adopt(source)
    pipeline.run(_with(config, own), here.path, last=stage)
    source = here
  if source:
    Workdir(workdir / _name(values)).adopt(source)


def _value(text: str, now: Any) -> Any:
  """Text as a value of the type of `now`."""
  if isinstance(now, bool):
    if text not in ('True', 'False'):
      raise ValueError(f'{text!r} is neither True nor False')
    return text == 'True'
  return type(now)(text)


def _with(config: Config, values: Values) -> Config:
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(values)
  return config


def _name(values: Values) -> str:
  return ','.join(f'{field}={value}' for field, value in values.items()).replace('/', '_')


def _errors(point: dict[str, Any]) -> dict[str, float]:
  """Error of each stage, of the last pass that has it, in per cent."""
  return {row['stage']: 100 * (1 - row['accuracy']) for row in point['stages']}


if __name__ == '__main__':
  flags.mark_flag_as_required('sweep')
  command.run(main)
