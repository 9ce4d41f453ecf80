"""The two consoles of the program: results on the standard output, progress on the standard error."""

import rich.console

# Columns of output that no terminal limits.
_WIDE = 120


def _results() -> rich.console.Console:
  console = rich.console.Console()
  if not console.is_terminal:
    console.width = _WIDE
  return console


RESULTS = _results()
PROGRESS = rich.console.Console(stderr=True)
