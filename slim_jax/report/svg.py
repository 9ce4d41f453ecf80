"""Matplotlib figures as SVG that follows light and dark mode, in the page and as files.

Matplotlib draws the figures and writes the SVG. This module sets their colours, makes their ids
unique among the figures of a page, and lets them follow dark mode, which Matplotlib does not do:
figures are drawn in light colours, and one CSS rule for each colour replaces it where the reader
prefers dark. Viewers that do not know such rules show the light figure.
"""

from collections.abc import Iterator
import contextlib
import io
import re
from xml.etree import ElementTree

import matplotlib
from matplotlib import figure, rcsetup

# Light and dark colours by name. c0 to c6 are those of curves and can be told apart with any kind
# of colour vision (after Okabe and Ito).
COLORS = {
  'paper': ('#ffffff', '#14171a'),
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

_SVG, _XLINK = 'http://www.w3.org/2000/svg', 'http://www.w3.org/1999/xlink'


@contextlib.contextmanager
def style() -> Iterator[None]:
  """Sets the colours and fonts of figures that are drawn within this context."""
  light = {name: pair[0] for name, pair in COLORS.items()}
  ink, rule = light['ink'], light['rule']
  cycle = [color for name, color in light.items() if re.fullmatch(r'c\d', name)]
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
      'axes.prop_cycle': rcsetup.cycler('color', cycle),
    }
  ):
    yield


def render(picture: figure.Figure, name: str) -> str:
  """Returns a figure as SVG in light colours on a transparent background.

  The same figure gives the same text: no date, no random ids.

  Args:
    picture: the figure, drawn within `style`.
    name: of the figure; every id in the SVG begins with it.
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
  for metadata in list(root.findall(f'{{{_SVG}}}metadata')):
    root.remove(metadata)
  seen = set()
  for element in root.iter():
    if element.get('id') in seen:  # Matplotlib may define the same marker twice.
      del element.attrib['id']
    seen.add(element.get('id', ''))
    for key, value in element.items():
      if key == 'id':
        value = f'{name}-{value}'
      elif key == f'{{{_XLINK}}}href' and value.startswith('#'):
        value = f'#{name}-{value[1:]}'
      element.set(key, re.sub(r'url\(#', f'url(#{name}-', value))
  return _text(root)


def inline(text: str, label: str) -> str:
  """Returns the SVG of `render` for a page whose style sheet holds `dark_rules`.

  Args:
    text: what `render` returns.
    label: read out by screen readers.
  """
  root = ElementTree.fromstring(text)
  for key in ('width', 'height', 'version'):
    root.attrib.pop(key, None)
  root.set('role', 'img')
  root.set('aria-label', label)
  return _text(root)


def standalone(text: str) -> str:
  """Returns the SVG of `render` as a file with its own background, in light and in dark mode."""
  root = ElementTree.fromstring(text)
  rules = ElementTree.Element(f'{{{_SVG}}}style')
  rules.text = dark_rules()
  background = {'width': '100%', 'height': '100%', 'style': f'fill: {COLORS["paper"][0]}'}
  root.insert(0, ElementTree.Element(f'{{{_SVG}}}rect', background))
  root.insert(0, rules)
  return _text(root)


def dark_rules() -> str:
  """Returns the CSS that replaces the light colours of figures in dark mode.

  Matplotlib writes colours into `style` attributes, which only `!important` overrides.
  """
  rules = ''.join(
    f'svg [style*="{key}: {light}"]{{{key}:{dark}!important}}'
    for light, dark in COLORS.values()
    for key in ('fill', 'stroke')
  )
  return f'@media screen and (prefers-color-scheme:dark){{{rules}}}'


def _text(root: ElementTree.Element) -> str:
  ElementTree.register_namespace('', _SVG)
  ElementTree.register_namespace('xlink', _XLINK)
  return ElementTree.tostring(root, encoding='unicode')
