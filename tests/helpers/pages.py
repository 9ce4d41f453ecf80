"""Reads the page of a run or a study as a browser would."""

import html.parser
import re
from xml.etree import ElementTree

from slim_jax.report import svg


class Reader(html.parser.HTMLParser):
  """Reads a page.

  Attributes:
    rows: texts of the cells of each row, by the id of the table or list; of the head of a column
      its name.
    texts: of the paragraphs, by class.
    links: everything that a browser would load or go to.
    ids: of all elements.
    tags: of all elements.
  """

  def __init__(self, text):
    super().__init__()
    self.rows, self.texts = {}, {}
    self.links, self.ids, self.tags = [], [], []
    self._id = self._row = self._class = None
    self._is_head = self._is_detail = False
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    if 'id' in attrs:
      self.ids.append(attrs['id'])
    self.links += [value for name, value in attrs.items() if name in ('href', 'src', 'xlink:href')]
    self._is_head = tag == 'th' or (self._is_head and tag != 'td')
    self._is_detail = self._is_head and tag == 'small'
    if tag in ('table', 'ul'):
      self._id = attrs['id']
      self.rows[self._id] = []
    elif tag in ('tr', 'li') and self._id:
      self._row = []
      self.rows[self._id].append(self._row)
    elif self._row is not None and (tag in ('td', 'th') or attrs.get('class') in ('name', 'count')):
      self._row.append('')
    elif tag == 'p':
      self._class = attrs.get('class', '')
      self.texts.setdefault(self._class, []).append('')

  def handle_endtag(self, tag):
    if tag in ('table', 'ul', 'p'):
      self._id = self._row = self._class = None

  def handle_data(self, data):
    if self._class is not None:
      self.texts[self._class][-1] += data
    elif self._row and not self._is_detail:
      self._row[-1] += data.strip()


def check(directory):
  """Checks that a page is complete and loads nothing; returns it, read."""
  text = (directory / 'report' / 'index.html').read_text()
  page = Reader(text)
  assert not {'script', 'link', 'iframe', 'img'} & set(page.tags)
  assert all(link.startswith(('#', 'data:')) for link in page.links), page.links
  assert '@import' not in text and not re.findall(r'url\((?!#)', text)
  assert len(set(page.ids)) == len(page.ids)
  used = re.findall(r'url\(#([^)]*)\)', text) + [link[1:] for link in page.links if link[0] == '#']
  assert set(used) <= set(page.ids)
  defined = set(re.findall(r'(--[\w]+):', text))
  assert set(re.findall(r'var\((--\w+)\)', text)) <= defined
  pictures = re.findall(r'<svg.*?</svg>', text, re.S)
  files = sorted((directory / 'report').glob('*.svg'))
  assert bool(used) == bool(pictures)
  # The page shows the widths as bars, and has them as a figure beside it.
  assert len(pictures) == sum(path.name != 'widths.svg' for path in files)
  known = {light for light, _ in svg.COLORS.values()}
  for picture in (*pictures, *(path.read_text() for path in files)):
    root = ElementTree.fromstring(picture)
    assert root.tag == '{http://www.w3.org/2000/svg}svg' and root.get('viewBox')
    # Each colour has its rule for dark mode.
    assert set(re.findall(r'style="[^"]*(?:fill|stroke): (#\w+)', picture)) <= known
  assert all(svg.dark_rules() in whole for whole in (text, *(path.read_text() for path in files)))
  return page
