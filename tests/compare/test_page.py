"""The page: contrast, alternative texts, hostile names, one element of each kind where it belongs."""

import html.parser
import itertools
import re

import pytest

from rethink_tf.compare import page, plots
from rethink_tf.visualization import plotting

SVG = b'<?xml version="1.0"?><svg width="9pt" height="9pt"><g id="a"><use href="#a"/></g></svg>'
HOSTILE = '<img src=x onerror=alert(1)>"\'&amp;\x1b[2J\u202e' + 'w' * 300


def content(**changes):
  answer = page.Answer('open', 'Cannot tell yet', 'Too noisy', 'It costs', SVG, 'a chart')
  return page.Content(**{
    'title': 'title', 'answers': [answer], 'facts': [('Data', 'coco')], 'cautions': [], 'drawn': [], 'legend': [],
    'panels': {}, 'tables': {}, 'notes': [], **changes})


class Reader(html.parser.HTMLParser):
  """Collects tags with their attributes, and the text outside of styles."""

  def __init__(self):
    super().__init__()
    self.tags, self.open, self.text = [], [], ''

  def handle_starttag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))
    if tag not in ('meta', 'img', 'circle', 'path', 'use'):
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text += data if self.open[-1:] != ['style'] else ''


def read(text):
  reader = Reader()
  reader.feed(text)
  assert not reader.open
  return reader


def contrast(first, second):
  """WCAG 2.1's contrast ratio of two colours '#rrggbb'."""
  def luminance(colour):
    values = [int(colour[i:i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
  low, high = sorted((luminance(first), luminance(second)))
  return (high + 0.05) / (low + 0.05)


def test_contrast():
  assert contrast('#000000', '#ffffff') == pytest.approx(21)
  for strong, tint in page.TONES.values():
    assert contrast(strong, tint) >= 4.5 and contrast(page.INK, tint) >= 4.5
    assert contrast(strong, '#ffffff') >= 4.5, 'the icon is white on the strong colour'
  assert min(contrast(page.INK, page.PAPER), contrast(page.MUTED, page.PAPER)) >= 4.5
  shades = [*(shade for pairs in plots.SHADES.values() for pair in pairs for shade in pair), *plotting.COLOURS]
  assert min(contrast(shade, page.PAPER) for shade in shades) >= 3


def test_answers_differ_in_more_than_colour():
  pages = [page.page(content(answers=[page.Answer(kind, 'x', 'y')])) for kind in page.TONES]
  icons = [re.search(r'<svg viewBox="0 0 24 24" role="img" aria-label="([^"]+)".*?d="([^"]+)"', one).groups()
           for one in pages]
  assert all(len(set(column)) == 3 for column in zip(*icons, strict=True))


def test_nothing_in_a_name_is_markup():
  drawn = [page.Drawn(HOSTILE, {HOSTILE: b'\xff\xd8'})]
  answers = [page.Answer('open', HOSTILE, HOSTILE, HOSTILE, SVG, HOSTILE, HOSTILE)]
  text = page.page(page.Content(HOSTILE, answers, [(HOSTILE, HOSTILE)], [HOSTILE], drawn,
                                [page.Line(HOSTILE, '#000000', '7 4', 'X')], {HOSTILE: SVG},
                                {HOSTILE: [[HOSTILE], [HOSTILE]]}, [HOSTILE]))
  assert not set(text) & set('\x1b\u202e')
  found = read(text)
  assert all(attrs.get('src', 'data:').startswith('data:') and 'onerror' not in attrs for _, attrs in found.tags)
  assert found.text.count('<img src=x onerror=alert(1)>') == 16
  assert 'overflow-wrap: anywhere' in text, 'a long name wraps'


def test_every_image_has_an_alternative_text():
  drawn = [page.Drawn('a.jpg', {'ground truth': b'\xff', 'scratch 2x': b'\xff'})]
  text = page.page(content(drawn=drawn, panels={'curves': SVG}, legend=[page.Line('a', '#123456', '', 'o')]))
  for tag, attrs in read(text).tags:
    if tag == 'img':
      assert attrs['alt'] in ('a.jpg: ground truth', 'a.jpg: scratch 2x')
    if tag == 'figure' and 'plot' in attrs.get('class', ''):
      assert attrs['role'] == 'img' and attrs['aria-label'] in ('a chart', 'curves')
  assert text.count('<svg') == text.count('role="img" aria-label=') + text.count('aria-hidden="true"')


def test_plots_have_ids_of_their_own():
  ids = re.findall(r'\bid="([^"]+)"', page.page(content(panels={'one': SVG, 'two': SVG})))
  assert len(ids) == 3 == len(set(ids)) and not re.search(r'<svg[^>]* width="9pt"', page.page(content()))


def test_wide_tables_scroll_and_long_ones_end():
  rows = [['run', 'AP'], *([f'run {k}', '1'] for k in range(150))]
  text = page.page(content(tables={'Runs': rows, 'empty': [['run']]}))
  assert text.count('<tr>') == 101 and '50 more rows are not shown' in text
  assert '<div class="wide" tabindex="0" role="region" aria-label="Runs">' in text and 'empty' not in text


def test_one_main_heading():
  text = page.page(content(answers=[page.Answer('open', 'a', 'b', about='x = 1'), page.Answer('scratch', 'c', 'd')]))
  assert text.count('<h1>') == text.count('<h2>') == 1 and text.index('<h1>') < text.index('<h2>')


def test_every_marker_has_a_sample():
  samples = [page._sample(page.Line('a', '#000000', '', marker)) for marker in plotting.MARKERS]
  assert all(a != b for a, b in itertools.combinations(samples, 2))
