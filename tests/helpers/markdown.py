"""Markdown files of the repository: their blocks of code, their prose and their headings."""

import pathlib
import re
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
DOCS = sorted(
  path
  for path in ROOT.rglob('*.md')
  if not any(
    part in ('runs', 'build') or (part.startswith('.') and part != '.github')
    for part in path.relative_to(ROOT).parts
  )
)


class Block(NamedTuple):
  """A block of code: its file, the heading above it, its language and its text."""

  path: pathlib.Path
  heading: str
  language: str
  code: str


def blocks(path):
  """The blocks of code of a Markdown file, in order."""
  heading, language, code = '', None, []
  for line in path.read_text().splitlines():
    if line.startswith('```'):
      if language is None:
        language, code = line[3:].strip(), []
      else:
        yield Block(path, heading, language, '\n'.join(code) + '\n')
        language = None
    elif language is not None:
      code.append(line)
    elif line.startswith('#'):
      heading = line.lstrip('# ')
  assert language is None, f'{path}: a block of code has no end'


def prose(path):
  """The text of a Markdown file without its blocks of code."""
  return re.sub(r'^```.*?^```$', '', path.read_text(), flags=re.M | re.S)


def name_of(path):
  return str(path.relative_to(ROOT))


def anchors(path):
  """What GitHub calls the headings of a file."""
  headings = re.findall(r'^#+ (.*)$', prose(path), flags=re.M)
  return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings}
