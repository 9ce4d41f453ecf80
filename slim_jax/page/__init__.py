"""The page of a run or a study: DIR/report/index.html, and its figures as files beside it.

What a piece of it needs may be missing or damaged: then a line says so in its place. `write` makes
the page, `run` and `study` have its parts, `measure` the times in it, `html` and `svg` the form.
"""

from slim_jax.page.write import at_end
from slim_jax.page.write import write

__all__ = ['at_end', 'write']
