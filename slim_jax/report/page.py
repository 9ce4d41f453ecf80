"""Puts a page together and writes it."""

import time

from absl import logging
from etils import epath
import jax

from slim_jax.report import html, measure, run, study
from slim_jax.report.drawn import DAMAGED, Drawn, attempt
from slim_jax.runs.workdir import Workdir, WorkdirError
from slim_jax.runtime import files, processes, versions


def write(workdir: files.PathLike, *, timed: bool = False, layers: str = '') -> epath.Path:
  """Writes DIR/report: the page of a run or of a study, and its figures.

  Nothing else in the directory is changed, and it may be that of a run that is at work.

  Args:
    workdir: directory of a run, or of a study.
    timed: whether to measure the full and the thin network of a run first; otherwise the page
      shows what was measured before. Several processes measure nothing.
    layers: a pattern of the paths of scales; those are shown by epoch. '' for three layers.

  Returns:
    The path of the page.

  Raises:
    WorkdirError: there is neither a run nor a study, or its list of stages or points is damaged.
  """
  path = files.path_of(workdir)
  drawn, here = Drawn(), path / 'report'
  if (path / 'sweep.json').exists():
    title, sections = study.title(path), study.sections(path, drawn)
  elif (path / 'stages.json').exists() or (path / 'metrics.jsonl').exists():
    if timed and jax.process_count() == 1:
      attempt(lambda: _measure(Workdir(path)))
    title, sections = run.title(Workdir(path)), run.sections(Workdir(path), drawn, layers=layers)
  else:
    raise WorkdirError(f'{path} holds neither a run nor a study: nothing to report')
  made = versions.of_process()
  foot = (
    f'This page: slim_jax {made.get("slim_jax", "")}, '
    f'{time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())}, {path}'
  )
  for name, content in drawn.files.items():
    files.write(here / name, content)
  if processes.is_first():
    for old in here.glob('*.svg'):
      if old.name not in drawn.files:
        old.unlink()
  files.write(here / 'index.html', html.document(title, sections, foot=foot))
  return here / 'index.html'


def at_end(workdir: files.PathLike, *, timed: bool = False) -> None:
  """The page of what is complete, which nothing that is wrong with the page shall spoil.

  Args:
    workdir: directory of a run, or of a study.
    timed: whether to measure the networks of a run, unless they have been.
  """
  path = files.path_of(workdir)
  try:
    timed = timed and not (path / 'report' / 'latency.json').exists()
    logging.info('report: %s', write(path, timed=timed))
  except DAMAGED as error:
    logging.warning(
      'no report: %s. All else is complete; when that is put right, python -m '
      'slim_jax.report --workdir=%s makes it',
      error,
      path,
    )


def _measure(workdir: Workdir) -> str:
  """Writes what the networks of a run take to latency.json."""
  done = workdir.complete()
  if done:
    found = measure.latency(measure.networks(workdir), workdir.plan_after(done[-1]))
    files.write_json(workdir.path / 'report' / 'latency.json', found)
  return ''
