"""Style shared by all plots: colours, empty plots, axes, encoding."""

from __future__ import annotations

import functools
import io
import logging as standard_logging
import warnings
from typing import TYPE_CHECKING

from absl import logging

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Each has a contrast of 3 : 1 with white (WCAG 2.1, level AA).
COLOURS = ('#1f6fb4', '#d1495b', '#3a9a5b', '#c46f12', '#7a52a3', '#2f8a8d', '#8c6d4f', '#5b5f66')
MARKERS = ('o', 's', '^', 'D', 'v', 'X')
# Fonts, where they are installed, for scripts that Matplotlib's own font does not have.
FURTHER_FONTS = ('Noto Sans CJK SC', 'Noto Sans CJK JP', 'Noto Sans CJK KR', 'Source Han Sans SC', 'WenQuanYi Zen Hei',
                 'WenQuanYi Micro Hei', 'Microsoft YaHei', 'SimHei', 'PingFang SC', 'Hiragino Sans', 'Yu Gothic',
                 'Malgun Gothic', 'Arial Unicode MS', 'Noto Sans Devanagari', 'Noto Sans Thai', 'Nirmala UI')
INK, FAINT, GRID = '#33373d', '#9aa0a8', '#e3e5e8'


def new_figure(size: tuple[float, float], dpi: int = 110) -> Figure:
  """Return an empty plot of `size` inches without a window. Names are not parsed as formulas."""
  import matplotlib  # takes 0.3 s
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  matplotlib.rcParams['text.parse_math'] = False  # a run's name may contain $
  matplotlib.rcParams['font.family'] = installed_fonts()
  fig = Figure(figsize=size, dpi=dpi, layout='constrained')
  FigureCanvasAgg(fig)
  return fig


@functools.cache
def installed_fonts() -> list[str]:
  """Return the font of plots, and those for letters that it does not have."""
  from matplotlib import font_manager
  # A font without the weight that is asked for is a warning of its own.
  standard_logging.getLogger(font_manager.__name__).setLevel('ERROR')
  installed = set(font_manager.get_font_names())
  return ['sans-serif', *(name for name in FURTHER_FONTS if name in installed)]


def decorate(axes: Axes, title: str, x: str, y: str, font_size: int = 10) -> None:
  """Set title, axis labels, grid and spines."""
  axes.set_title(title, loc='left', color=INK, fontsize=font_size)
  axes.set_xlabel(x, color=INK)
  axes.set_ylabel(y, color=INK)
  axes.grid(axis='y', color=GRID, linewidth=0.8)
  axes.set_axisbelow(True)
  axes.spines[['top', 'right']].set_visible(False)
  axes.spines[['left', 'bottom']].set_color(FAINT)
  axes.tick_params(colors=INK)


def encode(fig: Figure, kind: str = 'png') -> bytes:
  """Encode a plot as 'png' or 'svg', without a date."""
  import matplotlib

  data = io.BytesIO()
  with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter('always')
    layout = fig.get_layout_engine()
    if layout is not None:  # once for all kinds: savefig would lay out for each, and draw a first time to do so
      layout.execute(fig)
      fig.set_layout_engine(None)
    fig.savefig(data, format=kind, metadata={'Date': None} if kind == 'svg' else None)
  missing = [one for one in found if 'missing from' in str(one.message)]  # a line for each letter
  if missing:
    logging.log_first_n(logging.WARNING, 'no installed font has some letters of the names in the plots, which are '
                        'boxes there: install one, such as Noto Sans CJK, and delete fontlist*.json in %s', 1,
                        matplotlib.get_cachedir())
  for other in (one for one in found if one not in missing):
    warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
  return data.getvalue()
