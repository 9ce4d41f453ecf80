"""The figures of a page."""

from collections.abc import Callable

from matplotlib import figure

from slim_jax.report import svg
from slim_jax.report.blocks import Figure


class Gallery:
  """Draws the figures of a page and keeps the file of each.

  Attributes:
    files: the SVG of each figure by the name of its file.
  """

  def __init__(self):
    self.files: dict[str, str] = {}

  def add(self, name: str, caption: str, draw: Callable[[], figure.Figure]) -> Figure:
    """Draws a figure and returns it for the page."""
    with svg.style():
      text = svg.render(draw(), name)
    self.files[f'{name}.svg'] = svg.standalone(text)
    return Figure(svg.inline(text, caption), caption)
