"""The page as text: one file, which asks for nothing else."""

from collections.abc import Mapping, Sequence
import html
from typing import NamedTuple

from slim_jax.report import svg

_CSS = """
:root{color-scheme:light dark;--paper:#fff;--soft:#f4f6f8;--dim:#57606a}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171a;--soft:#20252b;--dim:#9aa4af}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:76rem;padding:1rem;background:var(--paper);color:var(--ink);
 font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
h1{font-size:1.6rem;line-height:1.2;margin:.5rem 0}
h2{font-size:1.2rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--rule)}
p{margin:.5rem 0;max-width:48rem}
a{color:var(--c0)}
.note{color:var(--dim)}
.warning{border-left:4px solid var(--c1);padding-left:.75rem}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,30rem),1fr));gap:1.5rem}
figure{margin:0;min-width:0;max-width:42rem;break-inside:avoid}
figure svg{display:block;width:100%;height:auto}
figcaption{color:var(--dim);font-size:.9rem}
table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;
 font-size:.95rem}
th,td{padding:.3rem .6rem;text-align:right;border-bottom:1px solid var(--soft);vertical-align:top}
th{color:var(--dim);font-weight:600}
th:first-child,td:first-child{text-align:left}
td small{color:var(--dim);white-space:nowrap}
.bars{columns:22rem;column-gap:2rem;padding:0;margin:0;list-style:none;font-size:.85rem}
.bars li{display:grid;grid-template-columns:minmax(0,2fr) minmax(5rem,3fr) 5.5rem;gap:.5rem;
 align-items:center; break-inside:avoid;padding:.1rem 0}
.bars .name{overflow-wrap:anywhere;line-height:1.15}
.bars .count{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.bar{height:.8rem;background:var(--soft)}
.bar div{height:100%;background:var(--rule)}
.bar div div{background:var(--c4)}
pre{background:var(--soft);padding:.6rem;overflow-wrap:anywhere;white-space:pre-wrap;
 font-size:.85rem}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.5rem 0}
dt{color:var(--dim)}
dd{margin:0;overflow-wrap:anywhere}
@media screen and (max-width:48rem){
 table.wide,table.wide tbody,table.wide tr,table.wide td{display:block}
 table.wide thead{display:none}
 table.wide tr{border:1px solid var(--rule);border-radius:.4rem;margin:.6rem 0;padding:.3rem .6rem}
 table.wide td{display:flex;justify-content:space-between;gap:1rem;padding:.15rem 0;border:0}
 table.wide td.empty{display:none}
 table.wide td:first-child{font-weight:600}
 table.wide td::before{content:attr(data-label);color:var(--dim);font-weight:400}
 #stages td:first-child::before,#latency td:first-child::before{content:none}
}
@media print{
 @page{size:A4;margin:12mm}
 html{font-size:12px}
 body{max-width:none;padding:0;font-size:10pt}
 *{-webkit-print-color-adjust:exact;print-color-adjust:exact}
 h2{break-after:avoid}
 tr,figure{break-inside:avoid}
 table{font-size:8pt}
 th,td{padding:.2rem .3rem}
 .figures{grid-template-columns:1fr 1fr;gap:1rem}
 .bars{columns:2}
}
"""


class Section(NamedTuple):
  """A part of the page.

  Attributes:
    title: its heading.
    body: HTML.
  """

  title: str
  body: str


def document(title: str, sections: Sequence[Section], *, foot: str) -> str:
  """A whole page.

  Args:
    title: its heading.
    sections: in order.
    foot: a line of text at the end.
  """
  body = ''.join(
    f'<section>\n<h2>{text(part.title)}</h2>\n{part.body}\n</section>\n' for part in sections
  )
  return (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8"/>\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1"/>\n'
    f'<title>{text(title)}</title>\n<style>{svg.css()}{_CSS}</style>\n</head>\n<body>\n'
    f'<h1>{text(title)}</h1>\n{body}<p class="note">{text(foot)}</p>\n</body>\n</html>\n'
  )


def text(value: object) -> str:
  """A value as it is to be read."""
  return html.escape(str(value))


def paragraph(value: object, kind: str = '') -> str:
  """A paragraph; `kind` is 'note', 'warning' or ''."""
  return f'<p class="{kind}">{text(value)}</p>' if kind else f'<p>{text(value)}</p>'


class Cell(NamedTuple):
  """A cell of a table: what it says, and beside it in small what that is compared with another."""

  value: str
  beside: str = ''


def table(header: Sequence[str], rows: Sequence[Sequence[Cell | str]], *, name: str) -> str:
  """A table, which becomes a list of cards where it is narrow.

  Args:
    header: of each column.
    rows: a cell, or its text, for each column.
    name: its id.
  """
  head = ''.join(f'<th>{text(one)}</th>' for one in header)
  body = ''.join('<tr>' + ''.join(map(_cell, row, header)) + '</tr>\n' for row in rows)
  return (
    f'<table class="wide" id="{name}"><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>'
  )


def _cell(cell: Cell | str, label: str) -> str:
  cell = Cell(cell) if isinstance(cell, str) else cell
  beside = f' <small>{text(cell.beside)}</small>' if cell.beside else ''
  kind = '' if cell.value else ' class="empty"'
  return f'<td{kind} data-label="{text(label)}"><span>{text(cell.value)}{beside}</span></td>'


def bars(widths: Sequence[tuple[str, int, int]]) -> str:
  """A bar for each (name, before, after)."""
  most = max((before for _, before, _ in widths), default=1)
  return (
    '<ul class="bars" id="widths">\n'
    + ''.join(
      f'<li><span class="name">{text(name).replace("/", "/<wbr/>")}</span><div class="bar">'
      f'<div style="width:{100 * before / most:.2f}%">'
      f'<div style="width:{100 * after / max(before, 1):.2f}%"></div></div></div>'
      f'<span class="count">{before} → {after}</span></li>\n'
      for name, before, after in widths
    )
    + '</ul>'
  )


def facts(values: Sequence[tuple[str, object]]) -> str:
  """Names and values."""
  return (
    '<dl>'
    + ''.join(f'<dt>{text(name)}</dt><dd>{text(value)}</dd>' for name, value in values)
    + '</dl>'
  )


def starts(found: Sequence[Mapping[str, object]]) -> str:
  """The calls that made a result: what `versions.of_process` has of each; those alike once."""
  parts, before = [], None
  for start in found:
    now = [(name, value) for name, value in start.items() if name not in ('command', 'time')]
    parts.append(
      f'<pre>{text(start.get("command", ""))}</pre>'
      + facts([('time', start.get('time', '')), *(now if now != before else ())])
    )
    before = now
  return ''.join(parts) or paragraph('Command and versions were not recorded.', 'note')


def folded(title: str, content: str) -> str:
  """Text as it is, shown on request."""
  return f'<details><summary>{text(title)}</summary><pre>{text(content)}</pre></details>'


def figures(found: Sequence[tuple[str, str]]) -> str:
  """Figures side by side where there is room: (SVG, caption) of each."""
  return (
    '<div class="figures">'
    + ''.join(
      f'<figure>{picture}<figcaption>{text(caption)}</figcaption></figure>'
      for picture, caption in found
    )
    + '</div>'
  )
