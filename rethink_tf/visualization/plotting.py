"""Style shared by all plots: colours, empty plots, axes, encoding."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

# Each has a contrast of 3 : 1 with white (WCAG 2.1, level AA).
COLOURS = ('#1f6fb4', '#d1495b', '#3a9a5b', '#c46f12', '#7a52a3', '#2f8a8d', '#8c6d4f', '#5b5f66')
MARKERS = ('o', 's', '^', 'D', 'v', 'X')
INK, FAINT, GRID = '#33373d', '#9aa0a8', '#e3e5e8'


def new_figure(size: tuple[float, float], dpi: int = 110) -> Figure:
  """Return an empty plot of `size` inches without a window. Names are not parsed as formulas."""
  import matplotlib  # takes 0.3 s
  from matplotlib.backends.backend_agg import FigureCanvasAgg
  from matplotlib.figure import Figure

  matplotlib.rcParams['text.parse_math'] = False  # a run's name may contain $
  fig = Figure(figsize=size, dpi=dpi, layout='constrained')
  FigureCanvasAgg(fig)
  return fig


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
  data = io.BytesIO()
  fig.savefig(data, format=kind, metadata={'Date': None} if kind == 'svg' else None)
  return data.getvalue()
