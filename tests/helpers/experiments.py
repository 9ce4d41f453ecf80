"""The tables of configs/README.md, made from the docstrings of the configs.

  python tests/helpers/experiments.py

writes them between the two marks of the file.
"""

import ast
import pathlib
import re

CONFIGS = pathlib.Path(__file__).parents[2] / 'configs'
README = CONFIGS / 'README.md'
BEGIN = '<!-- from the docstrings, by tests/helpers/experiments.py -->\n'
END = '<!-- end -->\n'
NOT_RUN = 'not yet run.'


def docstring(path):
  """Returns the docstring of a config."""
  return ast.get_docstring(ast.parse(path.read_text()))


def read(path):
  """Returns what a docstring says: the title, and what follows 'Time:', 'Paper:' and 'Result:'."""
  text = docstring(path)
  labelled = re.findall(r'^(Time|Paper|Result): (.*(?:\n  \S.*)*)', text, re.M)
  return {
    'title': text.splitlines()[0].rstrip('.'),
    **{label: re.sub(r'\s+', ' ', value) for label, value in labelled},
  }


def tables():
  """Returns a table of the experiments with results, and a line that names the others."""
  experiments = {path: read(path) for path in sorted(CONFIGS.glob('*.py'))}
  lines = ['| config | experiment | result | time | paper |', '|---|---|---|---|---|']
  for path, parts in experiments.items():
    if parts['Result'] != NOT_RUN:
      cells = [parts[name].rstrip('.') for name in ('title', 'Result', 'Time')]
      cells.append(parts.get('Paper', '').rstrip('.'))
      lines.append(f'| {" | ".join([_link(path), *cells])} |')
  others = [_link(path) for path, parts in experiments.items() if parts['Result'] == NOT_RUN]
  lines += ['', f'Ready and not yet run, most of them for an accelerator: {", ".join(others)}.', '']
  return '\n'.join(lines)


def split(text):
  """Returns the parts of configs/README.md: before the tables, the tables, after them."""
  before, _, rest = text.partition(BEGIN)
  between, _, after = rest.partition(END)
  return before + BEGIN, between, END + after


def _link(path):
  return f'[`{path.name}`]({path.name})'


if __name__ == '__main__':
  head, _, tail = split(README.read_text())
  README.write_text(head + tables() + tail)
