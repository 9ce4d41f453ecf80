"""Writes the page of a run or a study, and its figures."""

from collections.abc import Sequence
import time

from absl import logging
from etils import epath
import jax
import jinja2

from slim_jax.errors import SlimError
from slim_jax.report import architecture, blocks, measure, run_page, study_page, svg
from slim_jax.report.gallery import Gallery
from slim_jax.runs.workdir import Workdir, WorkdirError
from slim_jax.runtime import files, processes, versions

_TEMPLATES = jinja2.Environment(
  loader=jinja2.PackageLoader('slim_jax.report'),
  autoescape=True,
  undefined=jinja2.StrictUndefined,
  trim_blocks=True,
  lstrip_blocks=True,
)


def write(workdir: files.PathLike, *, timed: bool = False, layers: str = '') -> epath.Path:
  """Writes DIR/report: the page of a run or of a study, and its figures.

  Nothing else in the directory is changed, and the run may be in progress.

  Args:
    workdir: directory of a run, or of a study.
    timed: whether to measure the full and the thin network of a run first; otherwise the page
      shows the last measurement. Several processes measure nothing.
    layers: a pattern of the paths of the scales to show by epoch; '' for three layers.

  Returns:
    The path of the page.

  Raises:
    WorkdirError: there is neither a run nor a study, or sweep.json is damaged.
    LinkError: DIR/report is a link.
  """
  path = files.path_of(workdir)
  gallery = Gallery()
  if (path / 'sweep.json').exists():
    title, sections = study_page.title(path), study_page.sections(path, gallery)
  elif (path / 'stages.json').exists() or (path / 'metrics.jsonl').exists():
    run = Workdir(path)
    problems = blocks.attempt(lambda: _measure(run)) if timed and jax.process_count() == 1 else []
    title, sections = run_page.title(run), run_page.sections(run, gallery, layers=layers)
    if problems:
      sections.insert(0, blocks.Section('Measurement', problems))
  else:
    raise WorkdirError(f'{path} holds neither a run nor a study: nothing to report')
  report = path / 'report'
  files.refuse_links(report)
  for name, content in gallery.files.items():
    files.write(report / name, content)
  if processes.is_first():
    for old in report.glob('*.svg'):
      if old.name not in gallery.files:
        old.unlink()
  files.write(report / 'index.html', render(title, sections, foot=_foot(path)))
  return report / 'index.html'


def at_end(workdir: files.PathLike, *, timed: bool = False) -> None:
  """Writes the page of the stages that are complete; logs why if that fails, and raises nothing.

  Args:
    workdir: directory of a run, or of a study.
    timed: whether to measure the networks of a run that were not measured before.
  """
  path = files.path_of(workdir)
  advice = f'Results are complete; python -m slim_jax.report --workdir={path} writes it again'
  try:
    timed = timed and not (path / 'report' / 'latency.json').exists()
    logging.info('report: %s', write(path, timed=timed))
  except (SlimError, OSError) as error:
    logging.warning('no report: %s. %s', error, advice)
  except Exception:  # pylint: disable=broad-except  (a page must not end a run)
    logging.exception('no report. %s', advice)


def render(title: str, sections: Sequence[blocks.Section], *, foot: str) -> str:
  """Returns a page as HTML: one file that loads nothing else.

  Args:
    title: heading of the page.
    sections: in order.
    foot: a line of text at the end.
  """
  return _TEMPLATES.get_template('page.html.j2').render(
    title=title, sections=sections, foot=foot, colors=svg.COLORS, dark_rules=svg.dark_rules()
  )


def _foot(path: epath.Path) -> str:
  version = versions.of_process().get('slim_jax', '')
  now = time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())
  return f'Written by slim_jax {version}, {now}, from {path}'


def _measure(workdir: Workdir) -> list[blocks.Block]:
  """Writes the latency of the full and the thin network to latency.json."""
  done = workdir.complete_stages()
  if done:
    net = architecture.read(workdir)
    measured = measure.latency(net, workdir.plan_after(done[-1]))
    files.write_json(workdir.path / 'report' / 'latency.json', measured)
  return []
