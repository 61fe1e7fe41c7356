"""Fonts of plots: names in any script are drawn, or one line says which are not."""

import io
import warnings

import pytest

from rethink_tf.visualization import plotting
from tests import small_coco


def titled(text, kind='png'):
  fig = plotting.new_figure((3, 1))
  plotting.decorate(fig.add_subplot(), text, 'x', 'y')
  return plotting.encode(fig, kind)


@pytest.fixture
def fonts(monkeypatch):
  """The families of plots, found anew."""
  def use(*names):
    monkeypatch.setattr(plotting, 'FURTHER_FONTS', names)
    plotting.installed_fonts.cache_clear()
    return plotting.installed_fonts()
  yield use
  plotting.installed_fonts.cache_clear()


def test_fonts_that_are_not_installed_are_left_out(fonts):
  assert fonts('No Such Font', 'DejaVu Serif') == ['sans-serif', 'DejaVu Serif']


def test_letters_of_no_font_are_one_line(fonts, caplog):
  fonts()
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    assert titled('\U00013000\U00013001')  # hieroglyphs
    assert titled('plain')
  assert len(small_coco.warnings(caplog)) <= 1
  assert all('no installed font' in line for line in small_coco.warnings(caplog))


def test_every_kind_has_the_layout_of_matplotlib_itself():
  whole = plotting.new_figure((3, 2))
  plotting.decorate(whole.add_subplot(), 'title', 'x', 'y')
  expected = io.BytesIO()
  whole.savefig(expected, format='png')
  fig = plotting.new_figure((3, 2))
  axes = fig.add_subplot()
  plotting.decorate(axes, 'title', 'x', 'y')
  png = plotting.encode(fig)
  assert png == expected.getvalue()
  place = axes.get_position().bounds
  assert b'<svg' in plotting.encode(fig, 'svg')
  assert axes.get_position().bounds == place
  assert plotting.encode(fig) == png
