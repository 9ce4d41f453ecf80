"""Pages of reports, read and checked."""

import html.parser
import re
from xml.etree import ElementTree


class Reader(html.parser.HTMLParser):
  """Rows of tables and lists by id, texts by class, and what the page asks for."""

  def __init__(self, text):
    super().__init__()
    self.rows, self.texts, self.asks, self.ids, self.tags = {}, {}, [], [], []
    self._id = self._row = self._class = None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append(tag)
    if 'id' in attrs:
      self.ids.append(attrs['id'])
    self.asks += [value for name, value in attrs.items() if name in ('href', 'src', 'xlink:href')]
    if tag in ('table', 'ul'):
      self._id = attrs['id']
      self.rows[self._id] = []
    elif tag in ('tr', 'li') and self._id:
      self._row = []
      self.rows[self._id].append(self._row)
    elif tag in ('td', 'th') or attrs.get('class') in ('name', 'count'):
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
    elif self._row:
      self._row[-1] += data.strip()


def check(directory):
  """That a page is whole and asks for nothing; returns what is read from it."""
  text = (directory / 'report' / 'index.html').read_text()
  page = Reader(text)
  assert not {'script', 'link', 'iframe', 'img'} & set(page.tags)
  assert all(ask.startswith(('#', 'data:')) for ask in page.asks), page.asks
  assert '@import' not in text and not re.findall(r'url\((?!#)', text)
  assert len(set(page.ids)) == len(page.ids)
  used = re.findall(r'url\(#([^)]*)\)', text) + [ask[1:] for ask in page.asks if ask[0] == '#']
  assert used and set(used) <= set(page.ids)
  defined = set(re.findall(r'(--[\w]+):', text))
  assert set(re.findall(r'var\((--\w+)\)', text)) <= defined
  pictures = re.findall(r'<svg.*?</svg>', text, re.S)
  files = sorted((directory / 'report').glob('*.svg'))
  assert len(pictures) == len(files)
  for picture in (*pictures, *(path.read_text() for path in files)):
    root = ElementTree.fromstring(picture)
    assert root.tag == '{http://www.w3.org/2000/svg}svg' and root.get('viewBox')
    assert '#0102' not in picture  # a colour that only stands for a name
  assert not any('var(' in path.read_text() for path in files)
  return page
