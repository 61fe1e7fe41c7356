"""The report as one HTML file without external links: verdicts, plots, tables; for wide and narrow screens."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence

from rethink_tf.errors import plain

_STYLE = '''
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif; color: #24272c; }
h1 { font-size: 1.4rem; line-height: 1.25; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.verdict { border-left: 4px solid #1f6fb4; background: #f2f6fa; padding: .7rem 1rem; margin: 1rem 0; }
.plot { margin: 1rem 0; } .plot svg { width: 100%; height: auto; max-width: 46rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e3e5e8; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } footer { margin-top: 2rem; color: #6a7078; font-size: .85rem; }
'''


def page(title: str, verdicts: Sequence[str], panels: Mapping[str, bytes], plots: Mapping[str, bytes],
         tables: Mapping[str, Sequence[Sequence[str]]], notes: Sequence[str]) -> str:
  """Return the HTML of a report.

  Args:
    title: heading of the page.
    verdicts: paragraphs, most important first.
    panels: SVG files by caption, side by side where there is room.
    plots: SVG files by caption, one below another.
    tables: rows by heading; the first row of each is its header.
    notes: paragraphs of the footer.
  """
  elements = [f'<h1>{html.escape(title)}</h1>']
  elements += [f'<p class="verdict">{html.escape(plain(words))}</p>' for words in verdicts]
  drawn = [f'<div class="plot" role="img" aria-label="{html.escape(caption)}">{_inline(svg, number)}</div>'
           for number, (caption, svg) in enumerate([*panels.items(), *plots.items()])]
  elements += ['<div class="panels">', *drawn[:len(panels)], '</div>', *drawn[len(panels):]]
  for heading, rows in tables.items():
    if rows:
      body = ''.join(f'<tr>{_cells(row)}</tr>' for row in rows[1:])
      elements.append(f'<h2>{html.escape(heading)}</h2><div class="wide"><table><thead><tr>{_cells(rows[0], "th")}</tr>'
                      f'</thead><tbody>{body}</tbody></table></div>')
  elements.append(f'<footer>{"".join(f"<p>{html.escape(plain(note))}</p>" for note in notes)}</footer>')
  return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n' + '\n'.join(elements)
          + '\n</body></html>\n')


def _cells(row: Sequence[str], tag: str = 'td') -> str:
  return ''.join(f'<{tag}>{html.escape(plain(str(cell)))}</{tag}>' for cell in row)


def _inline(svg: bytes, number: int) -> str:
  """Return an SVG file for inclusion in a page: without fixed size, and with ids that are unique in the page."""
  text = svg.decode()
  text = text[text.index('<svg'):]
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  for fixed in ('height', 'width'):
    text = re.sub(rf'(<svg[^>]*?) {fixed}="[^"]*"', r'\1', text, count=1)
  text = re.sub(r'\bid="', f'id="f{number}-', text)
  text = re.sub(r'url\(#', f'url(#f{number}-', text)
  return re.sub(r'href="#', f'href="#f{number}-', text)
