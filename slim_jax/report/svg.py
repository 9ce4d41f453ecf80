"""Figures as SVG: within a page, in the colours of the page, and as files by themselves.

A figure is drawn with colours that stand for names. In a page they become its CSS variables, so
that a figure follows light, dark and print; in a file they become the light ones, on white.
"""

from collections.abc import Iterator
import contextlib
import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib import figure, rcsetup

# Light and dark, by name. Those of curves are told apart by eyes of any kind (after Okabe and Ito).
COLORS = {
  'ink': ('#1f2328', '#e6e8eb'),
  'rule': ('#8c959f', '#6e7681'),
  'c0': ('#0072b2', '#4ea8f0'),
  'c1': ('#d55e00', '#ff8a3d'),
  'c2': ('#6b6b6b', '#b0b0b0'),
  'c3': ('#3a9bd9', '#a5dcff'),
  'c4': ('#009e73', '#35d0a2'),
  'c5': ('#b5538a', '#eba6cf'),
  'c6': ('#b07d00', '#f2c14e'),
}
# What stands for them while a figure is drawn: colours that nothing else has.
_STANDS = {name: f'#0102{number:02x}' for number, name in enumerate(COLORS, start=16)}

_SVG, _XLINK = 'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Figures are drawn within this, and made SVG."""
  ink, rule = _STANDS['ink'], _STANDS['rule']
  lines = [_STANDS[name] for name in COLORS if re.fullmatch(r'c\d', name)]
  with matplotlib.rc_context(
    {
      'svg.fonttype': 'none',
      'font.family': 'sans-serif',
      'font.size': 10,
      'text.color': ink,
      'axes.labelcolor': ink,
      'axes.titlecolor': ink,
      'axes.edgecolor': rule,
      'xtick.color': rule,
      'ytick.color': rule,
      'xtick.labelcolor': ink,
      'ytick.labelcolor': ink,
      'grid.color': rule,
      'axes.spines.top': False,
      'axes.spines.right': False,
      'legend.frameon': False,
      'legend.labelcolor': ink,
      'axes.facecolor': 'none',
      'figure.facecolor': 'none',
      'axes.prop_cycle': rcsetup.cycler('color', lines),
    }
  ):
    yield


def of(picture: figure.Figure, name: str) -> str:
  """The SVG of a figure, its colours still names; within `style`.

  Args:
    picture: the figure.
    name: of the figure; no id in it is that of another figure.
  """
  content = io.StringIO()
  with matplotlib.rc_context({'svg.hashsalt': name}):
    picture.savefig(
      content,
      format='svg',
      transparent=True,
      dpi=150,
      metadata=dict.fromkeys(('Creator', 'Date', 'Format', 'Type')),
    )
  root = ElementTree.fromstring(content.getvalue())
  for element in list(root.findall(f'{{{_SVG}}}metadata')):
    root.remove(element)
  seen = set()
  for element in root.iter():
    if element.get('id') in seen:  # matplotlib defines what it uses twice twice
      del element.attrib['id']
    seen.add(element.get('id', ''))
    for key, value in element.items():
      if key == 'id':
        value = f'{name}-{value}'
      elif key == f'{{{_XLINK}}}href' and value.startswith('#'):
        value = f'#{name}-{value[1:]}'
      element.set(key, re.sub(r'url\(#', f'url(#{name}-', value))
  ElementTree.register_namespace('', _SVG)
  ElementTree.register_namespace('xlink', _XLINK)
  return ElementTree.tostring(root, encoding='unicode')


def inline(text: str, label: str) -> str:
  """What `of` gives, for a page that defines the variables of `css`."""
  for name, stands in _STANDS.items():
    text = text.replace(stands, f'var(--{name})')
  root = ElementTree.fromstring(text)
  for key in ('width', 'height', 'version'):
    root.attrib.pop(key, None)
  root.set('role', 'img')
  root.set('aria-label', label)
  return ElementTree.tostring(root, encoding='unicode')


def alone(text: str) -> str:
  """What `of` gives, as a file."""
  for name, stands in _STANDS.items():
    text = text.replace(stands, COLORS[name][0])
  root = ElementTree.fromstring(text)
  root.insert(
    0,
    ElementTree.Element(f'{{{_SVG}}}rect', {'width': '100%', 'height': '100%', 'fill': '#ffffff'}),
  )
  return ElementTree.tostring(root, encoding='unicode')


def css() -> str:
  """The variables, for light, dark and print."""
  light, dark = (''.join(f'--{name}:{pair[i]};' for name, pair in COLORS.items()) for i in range(2))
  return f':root{{{light}}}\n@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}\n'
