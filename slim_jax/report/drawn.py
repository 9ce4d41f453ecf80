"""Sections that can do without what is missing, and the figures they draw."""

from collections.abc import Callable

from absl import logging
from matplotlib import figure

from slim_jax.report import html, svg
from slim_jax.report.html import Section
from slim_jax.report.read import Missing
from slim_jax.runs.workdir import WorkdirError
from slim_jax.training.checkpoint import CheckpointError

# What is wrong with the files of a run, as those who open them say it.
DAMAGED = (WorkdirError, CheckpointError, OSError)


class Drawn:
  """The figures of a page.

  Attributes:
    files: the SVG of each by the name of its file.
  """

  def __init__(self):
    self.files: dict[str, str] = {}

  def add(self, name: str, caption: str, draw: Callable[[], figure.Figure]) -> tuple[str, str]:
    """Draws a figure; returns its SVG for the page and its caption."""
    with svg.style():
      found = svg.of(draw(), name)
    self.files[f'{name}.svg'] = svg.alone(found)
    return svg.inline(found, caption), caption


def section(title: str, make: Callable[[], str]) -> Section:
  """A section of what `make` returns, or of a line that says why it cannot be shown."""
  return Section(title, attempt(make))


def attempt(make: Callable[[], str]) -> str:
  """What `make` returns, or a line that says why it cannot be shown."""
  try:
    return make()
  except Missing as error:
    return html.paragraph(error, 'note')
  except DAMAGED as error:
    logging.warning('a part of the report is left out: %s', error)
    return html.paragraph(f'Left out: {error}', 'warning')
