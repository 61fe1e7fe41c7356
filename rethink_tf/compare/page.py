"""The report as one HTML file without external links: the answer first, details folded; for wide and narrow screens."""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from rethink_tf.errors import plain

ICONS = {'scratch': '\u2714', 'pretrain': '\u25b2', 'open': '?'}
_STYLE = '''
:root { color-scheme: light; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif; color: #24272c; }
h2 { font-size: 1.1rem; margin-top: 2rem; }
h1 { font-size: 1rem; font-weight: normal; color: #6a7078; }
.answer { border-left: 6px solid; padding: .7rem 1rem; margin: 1rem 0; }
.answer strong { display: block; font-size: 1.5rem; line-height: 1.25; margin-bottom: .3rem; }
.scratch { border-color: #1f6fb4; background: #eef5fb; } .scratch strong { color: #174f80; }
.pretrain { border-color: #c03546; background: #fbeff0; } .pretrain strong { color: #8f1626; }
.open { border-color: #b07a1c; background: #fbf5ea; } .open strong { color: #7a5310; }
.facts { color: #4a4f57; } .caution { border-left: 4px solid #b07a1c; padding-left: .8rem; }
details { margin-top: 2rem; } summary { cursor: pointer; font-weight: 600; }
.plot { margin: 1rem 0; } .plot svg { width: 100%; height: auto; max-width: 46rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1rem; }
.wide { overflow-x: auto; background: linear-gradient(to left, #e3e5e8, #fff 1.2rem) right; padding-right: 2px; }
table { background: #fff; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid #e3e5e8; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } footer { margin-top: 2rem; color: #6a7078; font-size: .85rem; }
'''


class Answer(NamedTuple):
  """What a verdict says, with its chart."""

  kind: str  # 'scratch', 'pretrain' or 'open': the colour and icon
  headline: str
  words: str
  chart: bytes = b''  # SVG file; empty: none
  caption: str = ''  # alternative text of the chart


def page(title: str, answers: Sequence[Answer], facts: Sequence[str], cautions: Sequence[str],
         panels: Mapping[str, bytes], plots: Mapping[str, bytes], tables: Mapping[str, Sequence[Sequence[str]]],
         notes: Sequence[str]) -> str:
  """Return the HTML of a report.

  Args:
    title: heading of the page: what is compared.
    answers: most important first.
    facts: short statements of what the answers rest on.
    cautions: what readers must know besides, a paragraph each.
    panels: SVG files by caption, side by side where there is room; these and the rest are folded away.
    plots: SVG files by caption, one below another.
    tables: rows by heading; the first row of each is its header.
    notes: paragraphs of the footer.
  """
  elements = [f'<h1>{html.escape(title)}</h1>']
  for number, answer in enumerate(answers):
    headline = f'<strong>{ICONS[answer.kind]} {html.escape(plain(answer.headline))}</strong>' if answer.headline else ''
    elements.append(f'<div class="answer {answer.kind}">{headline}{html.escape(plain(answer.words))}</div>')
    if answer.chart:
      elements.append(_plot(answer.caption, answer.chart, f'a{number}'))
  elements.append(f'<p class="facts">{" · ".join(html.escape(plain(fact)) for fact in facts)}</p>')
  elements += [f'<p class="caution">{html.escape(plain(words))}</p>' for words in cautions]
  elements.append('<details><summary>Curves, tables and settings</summary>')
  drawn = [_plot(caption, svg, f'f{number}') for number, (caption, svg) in enumerate([*panels.items(), *plots.items()])]
  elements += ['<div class="panels">', *drawn[:len(panels)], '</div>', *drawn[len(panels):]]
  for heading, rows in tables.items():
    if rows:
      body = ''.join(f'<tr>{_cells(row)}</tr>' for row in rows[1:])
      elements.append(f'<h2>{html.escape(heading)}</h2><div class="wide"><table><thead><tr>{_cells(rows[0], "th")}</tr>'
                      f'</thead><tbody>{body}</tbody></table></div>')
  elements.append('</details>')
  elements.append(f'<footer>{"".join(f"<p>{html.escape(plain(note))}</p>" for note in notes)}</footer>')
  return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n' + '\n'.join(elements)
          + '\n</body></html>\n')


def _plot(caption: str, svg: bytes, prefix: str) -> str:
  return f'<div class="plot" role="img" aria-label="{html.escape(caption)}">{_inline(svg, prefix)}</div>'


def _cells(row: Sequence[str], tag: str = 'td') -> str:
  return ''.join(f'<{tag}>{html.escape(plain(str(cell)))}</{tag}>' for cell in row)


def _inline(svg: bytes, prefix: str) -> str:
  """Return an SVG file for inclusion in a page: without fixed size, and with ids that are unique in the page."""
  text = svg.decode()
  text = text[text.index('<svg'):]
  text = re.sub(r'<metadata>.*?</metadata>', '', text, flags=re.DOTALL)
  for fixed in ('height', 'width'):
    text = re.sub(rf'(<svg[^>]*?) {fixed}="[^"]*"', r'\1', text, count=1)
  text = re.sub(r'\bid="', f'id="{prefix}-', text)
  text = re.sub(r'url\(#', f'url(#{prefix}-', text)
  return re.sub(r'href="#', f'href="#{prefix}-', text)
