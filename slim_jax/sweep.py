"""Studies: the same run for several values of some fields.

  python -m slim_jax.sweep --config=configs/NAME.py --workdir=DIR --sweep=FIELD=VALUE,VALUE,...

lambda    --sweep=train.strength=0,1e-5,1e-4
fraction  --sweep=prune.fraction=0.1,0.3,0.5,0.7,0.9
scratch   --config.scratch.e=True --config.scratch.b=True, with any other sweep
spread    --sweep=seed=0,1,2, alone or with another field: all combinations are run

A point of a study is a run in its own directory, DIR/FIELD=VALUE. Stages that do not depend on the
fields that vary are trained once, in DIR/shared, and every point begins with them. The same command
continues an interrupted study; values can be added. The results are a table, DIR/sweep.json, the
page DIR/report and, if fractions or strengths vary, plots.
"""

from collections.abc import Mapping, Sequence
import itertools
from typing import Any

from absl import flags, logging
from etils import epath

from slim_jax import command
from slim_jax.display import plot, quantities, tables
from slim_jax.report import page
from slim_jax.runs import checks, gated, pipeline, results, schema, stages, summary
from slim_jax.runs.errors import ConfigError, PruneError
from slim_jax.runs.run import config_to_json
from slim_jax.runs.stages import Stage
from slim_jax.runs.workdir import Workdir
from slim_jax.runtime import files, processes
from slim_jax.runtime.config import Config
from slim_jax.sparsity import observe
from slim_jax.training import loop

Values = dict[str, Any]  # values of the fields that vary, by dotted field


_STRENGTHS = ('train.strength', 'train.pull')


def define_flags() -> None:
  """Defines the flags of this command."""
  flags.DEFINE_multi_string('sweep', None, 'FIELD=VALUE,VALUE,...; can be repeated.', required=True)


def main() -> None:
  """Runs the study of the command line; prints and draws its results."""
  config = schema.complete(flags.FLAGS.config)
  workdir = files.path_of(flags.FLAGS.workdir)
  points = run(config, parse(config, flags.FLAGS.sweep or ()), workdir)
  if processes.is_first():
    tables.show_sweep(points)
  for path in draw(points, workdir):
    logging.info('plot: %s', path)
  if flags.FLAGS.report:
    page.at_end(workdir)


def parse(config: Config, texts: Sequence[str]) -> dict[str, list[Any]]:
  """Returns the values of each field.

  Args:
    config: a config with the fields.
    texts: 'FIELD=VALUE,VALUE,...' for each field.

  Raises:
    ConfigError: there is no such field, or a value does not have its type.
  """
  result = {}
  for text in texts:
    field, _, values = text.partition('=')
    section, _, name = ('.' + field).rpartition('.')
    parent: Any = config
    for step in filter(None, section.split('.')):
      parent = parent[step] if step in parent else {}
    if name not in parent or not isinstance(parent[name], (bool, int, float, str)):
      raise ConfigError(f'--sweep={text}: the config has no field {field!r} of one value')
    try:
      result[field] = [_value(value, parent[name]) for value in values.split(',')]
    except ValueError as error:
      raise ConfigError(f'--sweep={text}: {error}') from error
  return result


def run(
  config: Config, sweep: Mapping[str, Sequence[Any]], workdir: files.PathLike
) -> list[dict[str, Any]]:
  """Runs the points of a study that are not complete yet.

  Args:
    config: config of every point except for the fields that vary.
    sweep: values by dotted field; all combinations are points.
    workdir: directory of the study.

  Returns:
    For each point: values by field; workdir, the name of its directory; stages, in the form of
    summary.json; error, the reason if the point cannot be pruned or diverges, else ''.

  Raises:
    ConfigError: the config of a point cannot work. Nothing has been run.
    As `pipeline.run` otherwise.
  """
  config, here = schema.complete(config), files.path_of(workdir)
  every = [dict(zip(sweep, values)) for values in itertools.product(*sweep.values())]
  for values in every:
    checks.check_config(_with(config, values))
  points = []
  for values in every:
    name = _name(values)
    logging.info('point %d of %d: %s', len(points) + 1, len(every), name)
    try:
      _share(config, values, here)
      records, error = pipeline.run(_with(config, values), here / name), ''
    except (PruneError, loop.DivergedError) as problem:
      # This is a result as well; the other points still run.
      logging.error('%s: %s', name, problem)
      records, error = Workdir(here / name).records(), str(problem)
    points.append(
      {'values': values, 'workdir': name, 'stages': summary.rows(records), 'error': error}
    )
    files.write_json(
      here / 'sweep.json',
      {
        'config': config_to_json(config),
        'sweep': {k: list(v) for k, v in sweep.items()},
        'points': points,
      },
    )
  return points


def draw(points: Sequence[dict[str, Any]], workdir: epath.Path) -> list[epath.Path]:
  """Draws errors by fraction and histograms of scales by strength, if these fields vary.

  Args:
    points: the points of `run`.
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
        judge=quantities.judge_of_study(points),
      ),
      paths[-1],
    )
  if any(field in _STRENGTHS for field in points[0]['values']):
    paths.append(workdir / 'scales.png')
    scales = {}
    for point in points:
      stage = Stage(1, 'sparse')
      if any(Stage.of(row) == stage for row in point['stages']):
        arrays = results.read_variables(Workdir(workdir / point['workdir']), stage)
        scales[point['workdir']] = {'all': observe.scales(arrays['params'], gated.scales_of)}
    plot.save(plot.histograms(scales, name='|scale|'), paths[-1])
  return paths


def _share(config: Config, values: Values, workdir: epath.Path) -> None:
  """Trains the stages that a point shares with others, once, and begins the point with them."""
  shared: dict[str, tuple[Values, Stage]] = {}
  for stage in (Stage(0, 'baseline'), Stage(1, 'sparse')):
    own = {field: value for field, value in values.items() if stages.depends(stage.name, field)}
    if stage in stages.of(config) and len(own) < len(values):
      shared[','.join(filter(None, ['shared', _name(own)]))] = own, stage
  source = None
  for name, (own, stage) in shared.items():
    target = Workdir(workdir / name)
    if source:
      target.begin_from(source)
    pipeline.run(_with(config, own), target.path, last=stage)
    source = target
  if source:
    Workdir(workdir / _name(values)).begin_from(source)


def _value(text: str, now: Any) -> Any:
  """Returns the text as a value of the type of `now`."""
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
  """Returns the error of each stage, in per cent for an accuracy, in the last pass that has it."""
  return {
    row['stage']: quantities.error(quantities.judge_of(row), row[quantities.judge_of(row)])
    for row in point['stages']
  }


if __name__ == '__main__':
  command.run(main, define_flags)
