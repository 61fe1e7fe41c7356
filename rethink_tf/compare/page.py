"""The report as one HTML file without external links: the answer first, details folded; for wide and narrow screens.

Text has a contrast of 4.5 : 1 at least and graphics 3 : 1 (WCAG 2.1, level AA); no meaning is in a colour alone.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from rethink_tf.errors import plain

MOST_ROWS = 100  # of a table; all of them are in the CSV files
INK, MUTED, PAPER, LINE = '#24272c', '#4a4f57', '#ffffff', '#c9cdd3'
TONES = {  # kind of answer -> strong colour, of the icon and on `tint`; tint, of its box
  'scratch': ('#174f80', '#eef5fb'), 'pretrain': ('#8f1626', '#fbeff0'), 'open': ('#7a5310', '#fbf5ea')}
_ICONS = {  # in a circle of radius 12
  'scratch': ('tick', 'M6.5 12.5l4 4 7-8.5'), 'pretrain': ('arrow up', 'M12 18V6.5M7 11.5l5-5 5 5'),
  'open': ('question mark', 'M8.5 9.5a3.5 3.5 0 1 1 5.2 3c-1.2.7-1.7 1.3-1.7 2.4M12 18v.4')}
_STYLE = f'''
:root {{ color-scheme: light; }}
body {{ margin: 0 auto; padding: 1rem; max-width: 58rem; font: 16px/1.5 system-ui, sans-serif; color: {INK};
  background: {PAPER}; overflow-wrap: anywhere; }}
h1, h2 {{ font-size: 1.6rem; line-height: 1.25; margin: 0; display: flex; gap: .6rem; }}
h1 svg, h2 svg {{ flex: none; width: 2rem; height: 2rem; }}
h3 {{ font-size: 1.05rem; margin: 1.5rem 0 .3rem; }}
.title, .about {{ margin: 0 0 .5rem; color: {MUTED}; }} .about {{ margin: 0; font-weight: 600; }}
.answer {{ border-left: 6px solid; padding: .8rem 1rem; margin: 1rem 0; }}
.answer p {{ margin: .4rem 0 0; color: {INK}; }}
''' + ''.join(f'.{kind} {{ border-color: {strong}; background: {tint}; color: {strong}; }}\n'
              for kind, (strong, tint) in TONES.items()) + f'''
figure {{ margin: 1rem 0; }} figure svg, figure img {{ display: block; width: 100%; height: auto; }}
.plot {{ max-width: 34rem; }} .cost strong {{ display: block; }}
@media (min-width: 56rem) {{ .beside {{ display: grid; grid-template-columns: 34rem 1fr; gap: 1.5rem; }} }}
dl {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); gap: .6rem 1.2rem; margin: 0;
  border-top: 1px solid {LINE}; padding: .8rem 0; }}
dt {{ color: {MUTED}; font-size: .9rem; }} dd {{ margin: 0; font-weight: 600; }}
.caution {{ border-left: 4px solid {TONES['open'][0]}; padding-left: .8rem; }}
details {{ border-top: 1px solid {LINE}; }} details:last-of-type {{ border-bottom: 1px solid {LINE}; }}
summary {{ cursor: pointer; font-weight: 600; padding: .7rem 0; }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)); gap: 0 1.5rem; }}
.same {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 15rem), 1fr)); gap: .5rem 1rem; }}
.same figure {{ margin: 0; }} figcaption {{ font-size: .9rem; color: {MUTED}; }}
.legend {{ list-style: none; padding: 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; font-size: .9rem; }}
.legend svg {{ width: 3rem; height: 1rem; vertical-align: middle; margin-right: .4rem; }}
.wide {{ overflow-x: auto; margin-right: -1rem; padding-right: 1rem; background:
  linear-gradient(to right, {PAPER} 30%, transparent) left / 3rem 100%,
  linear-gradient(to left, {PAPER} 30%, transparent) right / 3rem 100%,
  radial-gradient(farthest-side at 0 50%, #0006, transparent) left / 1rem 100%,
  radial-gradient(farthest-side at 100% 50%, #0006, transparent) right / 1rem 100%;
  background-repeat: no-repeat; background-attachment: local, local, scroll, scroll; }}
.hint {{ color: {MUTED}; font-size: .85rem; margin: 0; }} @media (min-width: 40rem) {{ .hint {{ display: none; }} }}
table {{ border-collapse: collapse; font-size: .9rem; width: max-content; }}
th, td {{ padding: .3rem .6rem; border-bottom: 1px solid {LINE}; text-align: right; white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; max-width: 14rem; }}
footer {{ margin-top: 1.5rem; color: {MUTED}; font-size: .85rem; }}
'''


class Answer(NamedTuple):
  """A verdict as shown on the page, with its chart."""

  kind: str  # 'scratch', 'pretrain' or 'open': the colour and icon
  headline: str
  words: str
  cost: str = ''
  chart: bytes = b''  # SVG file; empty: none
  caption: str = ''  # alternative text of the chart
  about: str = ''  # the settings it is of, where a page has several


class Drawn(NamedTuple):
  """An image with its ground truth and the detections of each side."""

  name: str
  sides: Mapping[str, bytes]  # JPEG files by side


class Line(NamedTuple):
  """An entry of the legend of all curves: runs that differ only in their seed, and how their lines look."""

  name: str
  colour: str
  dashes: str  # SVG's stroke-dasharray, '' for a solid line
  marker: str  # of Matplotlib


class Content(NamedTuple):
  """What a page shows."""

  title: str  # what is compared
  answers: Sequence[Answer]
  facts: Sequence[tuple[str, str]]  # what the answers rest on: name and value
  cautions: Sequence[str]  # what readers must know besides, a paragraph each
  drawn: Sequence[Drawn]  # the same images for all sides; this and the rest is folded away
  legend: Sequence[Line]  # of all plots below
  panels: Mapping[str, bytes]  # SVG files by alternative text, side by side where there is room
  tables: Mapping[str, Sequence[Sequence[str]]]  # rows by heading; the first row of each is its header
  notes: Sequence[str]  # paragraphs of the footer


def page(content: Content) -> str:
  """Return the HTML of a report."""
  parts = [f'<p class="title">{_text(content.title)}</p>']
  for number, answer in enumerate(content.answers):
    parts += _answer(answer, number)
  parts.append(f'<dl>{"".join(f"<div><dt>{_text(k)}</dt><dd>{_text(v)}</dd></div>" for k, v in content.facts)}</dl>')
  parts += [f'<p class="caution">{_text(words)}</p>' for words in content.cautions]
  if content.drawn:
    rows = (f'<h3>{_text(one.name)}</h3><div class="same">'
            f'{"".join(_image(one.name, *side) for side in one.sides.items())}</div>' for one in content.drawn)
    parts.append(_folded('Predictions of both sides on the same images', rows))
  if content.panels:
    legend = ''.join(f'<li>{_sample(line)}{_text(line.name)}</li>' for line in content.legend)
    plots = (_plot(caption, svg, f'p{number}') for number, (caption, svg) in enumerate(content.panels.items()))
    parts.append(_folded('Curves, AP by size and losses',
                         [f'<ul class="legend">{legend}</ul><div class="panels">', *plots, '</div>']))
  tables = [_table(heading, rows) for heading, rows in content.tables.items() if len(rows) > 1]
  if tables:
    parts.append(_folded('Tables and settings', tables))
  parts.append(f'<footer>{"".join(f"<p>{_text(note)}</p>" for note in content.notes)}</footer>')
  return ('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
          '<meta name="viewport" content="width=device-width, initial-scale=1">'
          f'<title>{_text(content.title)}</title><style>{_STYLE}</style></head>\n<body><main>\n' + '\n'.join(parts)
          + '\n</main></body></html>\n')


def _text(text: object) -> str:
  return html.escape(plain(str(text)))


def _answer(answer: Answer, number: int) -> list[str]:
  level = 'h2' if number else 'h1'
  about = f'<p class="about">{_text(answer.about)}</p>' if answer.about else ''
  parts = [f'<section class="answer {answer.kind}">{about}<{level}>{_icon(answer.kind)}<span>{_text(answer.headline)}'
           f'</span></{level}><p>{_text(answer.words)}</p></section>']
  chart = _plot(answer.caption, answer.chart, f'a{number}') if answer.chart else ''
  cost = f'<p class="cost"><strong>Cost</strong> {_text(answer.cost)}</p>' if answer.cost else ''
  return [*parts, f'<div class="beside">{chart}{cost}</div>']


def _icon(kind: str) -> str:
  name, path = _ICONS[kind]
  return (f'<svg viewBox="0 0 24 24" role="img" aria-label="{name}">'
          f'<circle cx="12" cy="12" r="12" fill="currentColor"/><path d="{path}" fill="none" stroke="#fff" '
          'stroke-width="2.4" stroke-linecap="round" stroke-linejoin="round"/></svg>')


def _folded(heading: str, parts: Iterable[str]) -> str:
  return f'<details><summary>{heading}</summary>\n{"".join(parts)}\n</details>'


def _plot(caption: str, svg: bytes, prefix: str) -> str:
  return f'<figure class="plot" role="img" aria-label="{_text(caption)}">{_inline(svg, prefix)}</figure>'


def _image(name: str, side: str, jpeg: bytes) -> str:
  data = base64.b64encode(jpeg).decode()
  return (f'<figure><img src="data:image/jpeg;base64,{data}" alt="{_text(name)}: {_text(side)}">'
          f'<figcaption>{_text(side)}</figcaption></figure>')


def _sample(line: Line) -> str:
  """Draw a piece of a run's line with its marker."""
  shape = {'o': '<circle cx="24" cy="8" r="4"/>', 's': '<path d="M20 4h8v8h-8z"/>', '^': '<path d="M24 3l5 9h-10z"/>',
           'D': '<path d="M24 3l5 5-5 5-5-5z"/>', 'v': '<path d="M24 13l5-9h-10z"/>',
           'X': '<path d="M20 4l8 8m0-8l-8 8" stroke-width="3"/>'}[line.marker]
  dash = f' stroke-dasharray="{line.dashes}"' if line.dashes else ''
  return (f'<svg viewBox="0 0 48 16" aria-hidden="true" fill="{line.colour}" stroke="{line.colour}">'
          f'<path d="M0 8h48" fill="none" stroke-width="2.5"{dash}/>{shape}</svg>')


def _table(heading: str, rows: Sequence[Sequence[str]]) -> str:
  header, *body = rows
  cells = ''.join(f'<tr>{_cells(row)}</tr>' for row in body[:MOST_ROWS])
  more = f'<p>{len(body) - MOST_ROWS} more rows are not shown.</p>' if len(body) > MOST_ROWS else ''
  return (f'<h3>{_text(heading)}</h3><p class="hint">wide tables scroll sideways \u2192</p>'
          f'<div class="wide" tabindex="0" role="region" aria-label="{_text(heading)}"><table><thead><tr>'
          f'{_cells(header, "th")}</tr></thead><tbody>{cells}</tbody></table></div>{more}')


def _cells(row: Sequence[str], tag: str = 'td') -> str:
  return ''.join(f'<{tag}>{_text(cell)}</{tag}>' for cell in row)


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
