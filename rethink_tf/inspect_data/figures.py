"""Sheets of training images and suspicious annotations, and plots of the distributions."""

from __future__ import annotations

import io
from typing import Any

from rethink_tf.inspect_data.report import EXAMPLES, Part

NAMED_CLASSES = 90  # more would be unreadable below the bars
COLUMNS = 4


def training_sheet(inputs: Any, number: int) -> bytes:
  """Pictures of training as the network gets them, padding hatched, with boxes, masks and keypoints, as a PNG."""
  from rethink_tf.visualization import pictures

  names = [category.name for category in inputs.source.categories]
  skeleton = next((category.skeleton for category in inputs.source.categories if category.keypoints), ())
  cells, titles, step = [], [], 0
  while len(cells) < number:
    batch = inputs.batch(step)
    for row in range(min(len(batch.images), number - len(cells))):
      size = batch.image_sizes[row].astype(int)
      used = batch.gt_classes[row] > 0
      image = pictures.hatch(batch.images[row], *size.tolist())
      crops, masks = batch.gt_masks[row][used], None
      if not crops.all():  # as in data of boxes alone, where the whole box would be painted over
        masks = pictures.uncrop(crops, batch.gt_boxes[row][used], *image.shape[:2])
      cells.append(pictures.draw(image, batch.gt_boxes[row][used], batch.gt_classes[row][used], names, masks=masks,
                                 keypoints=batch.gt_keypoints[row][used] if inputs.source.num_keypoints else None,
                                 skeleton=skeleton))
      titles.append(f'image {batch.image_ids[row]}: {size[0]}x{size[1]} on {"x".join(map(str, image.shape[:2]))}')
    step += 1
  return pictures.png(pictures.sheet(cells, COLUMNS, titles))


def suspicious_sheet(parts: list[Part]) -> bytes | None:
  """What looks wrong, a row a kind, as a PNG; None if nothing does."""
  import numpy as np

  from rethink_tf.visualization import pictures

  rows = []
  for part in parts:
    for kind in dict.fromkeys(suspect.kind for suspect in part.suspicious):
      suspicious = [suspect for suspect in part.suspicious if suspect.kind == kind]
      drawn = [one for one in (_draw_suspect(part, suspect) for suspect in suspicious[:EXAMPLES]) if one is not None]
      if drawn:
        blank = (np.full((8, 8, 3), 255, np.uint8), '')
        row = pictures.sheet(*_columns([*drawn, *[blank] * (EXAMPLES - len(drawn))]), width=320)
        rows.append(pictures.under_heading(f'{part.title}: {kind} ({len(suspicious)})', row))
  if not rows:
    return None
  key = 'green: the box as annotated; orange: the other box, or the extent of the mask'
  return pictures.png(pictures.stack([
    pictures.under_heading(key, np.full((8, rows[0].shape[1], 3), 255, np.uint8)), *rows]))


def _columns(drawn):
  return [picture for picture, _ in drawn], EXAMPLES, [title for _, title in drawn]


def _draw_suspect(part, suspect):
  from rethink_tf.data.images import ImageError
  from rethink_tf.inspect_data.statistics import MASK_ELSEWHERE
  from rethink_tf.visualization import pictures

  table, i = part.table, int(part.table.images[suspect.row])
  names = [category.name for category in part.source.categories]
  try:
    image = part.source.load(i).image
  except ImageError:
    return None
  other, text = None, ''
  if suspect.other is not None:
    other, text = table.boxes[suspect.other], names[table.classes[suspect.other] - 1]
  elif suspect.kind == MASK_ELSEWHERE:
    other, text = table.mask_boxes[suspect.row], 'mask'
  picture = pictures.draw_mistake(image, other, text, table.boxes[suspect.row], names[table.classes[suspect.row] - 1])
  return picture, f'image {part.source.image_ids[i]}, annotation {table.ids[suspect.row]}'


# Over 60 lines: one panel after the other.
def plots(parts: list[Part], inputs: Any, waste: list[dict]) -> bytes:
  """The long tail of classes, and distributions of training, as a PNG."""
  import numpy as np
  from matplotlib.backends.backend_agg import FigureCanvasAgg  # 0.3 s, and only needed here
  from matplotlib.figure import Figure

  part, held_out = parts
  figure = Figure(figsize=(15, 11), dpi=100, layout='constrained')
  FigureCanvasAgg(figure)
  axes = figure.subplot_mosaic([['tail'] * 4, ['area', 'side', 'ratio', 'count'],
                                ['size', 'size', 'padding', 'padding']])
  classes = part.summary['classes']
  order = sorted(range(len(classes)), key=lambda k: -classes[k]['instances'])
  tail, places = axes['tail'], np.arange(len(order))
  tail.bar(places, [classes[k]['instances'] for k in order], color='#1f6fb4', width=0.8, label='training')
  tail.plot(places, [held_out.summary['classes'][k]['instances'] for k in order], 'o', markersize=3, color='#d1495b',
            label='held out')
  tail.set_yscale('symlog', linthresh=1)
  tail.set_xlim(-0.8, max(len(order), 8) - 0.2)
  if len(order) <= NAMED_CLASSES:
    tail.set_xticks(places, [classes[k]['name'][:20] for k in order], rotation=90 if len(order) > 12 else 0, fontsize=8,
                    parse_math=False)
  tail.set_title('instances by class', loc='left', fontsize=10)
  tail.legend(frameon=False, fontsize=9)

  table, objects = part.table, ~part.table.crowds
  sides = np.maximum(table.boxes[:, 2:] - table.boxes[:, :2], 0)
  good = objects & (sides > 0).all(axis=1)
  scale = (inputs.resize.largest_sizes(part.source.sizes) / np.maximum(part.source.sizes, 1)).mean(axis=1)
  areas = part.summary['areas']
  bars = axes['area'].bar(list(areas), list(areas.values()), color=['#4aa5a8', '#1f6fb4', '#7a52a3'])
  axes['area'].bar_label(bars)
  axes['area'].margins(y=0.12)  # for the numbers
  axes['area'].set_title("instances by COCO's areas", loc='left', fontsize=10)
  roots = np.sqrt(sides.prod(axis=1))
  bins = np.geomspace(2, 2048, 41)
  axes['side'].hist(roots[good], bins, color='#c3cad3', label='as annotated')
  axes['side'].hist((roots * scale[table.images])[good], bins, histtype='step', color='#1f6fb4', linewidth=1.6,
                    label='as the network sees it')
  axes['side'].set_xscale('log')
  axes['side'].margins(y=0.3)  # for the legend
  axes['side'].legend(frameon=False, fontsize=8, loc='upper left')
  axes['side'].set_title('side of boxes (root of the area), px', loc='left', fontsize=10)
  axes['ratio'].hist(np.log2(sides[good, 1] / sides[good, 0]), np.linspace(-4, 4, 33), color='#1f6fb4')
  axes['ratio'].set_xticks([-4, -2, 0, 2, 4], ['1:16', '1:4', '1:1', '4:1', '16:1'])
  axes['ratio'].set_title('width : height of boxes', loc='left', fontsize=10)
  counts = np.bincount(table.images[objects], minlength=len(part.source.image_ids))
  axes['count'].hist(counts, np.arange(min(counts.max(), 100) + 2) - 0.5, color='#1f6fb4')
  axes['count'].set_title('instances an image', loc='left', fontsize=10)
  heights, widths = np.asarray(part.source.sizes).T
  axes['size'].plot(widths, heights, 'o', markersize=3, alpha=0.3, color='#1f6fb4')
  axes['size'].set_xlim(left=0)
  axes['size'].set_ylim(bottom=0)
  axes['size'].set_title('images: width, height, px', loc='left', fontsize=10)
  rows = waste[:-1][::-1]
  bars = axes['padding'].barh([f'{"x".join(map(str, row["canvas"]))}  ({row["images"]})' for row in rows],
                              [100 * row['waste'] for row in rows], color='#e08e2b')
  axes['padding'].bar_label(bars, fmt='%.1f', padding=3)
  axes['padding'].margins(x=0.1)
  axes['padding'].set_ylim(min(0, len(rows) - 5) - 0.6, len(rows) - 0.4)
  axes['padding'].set_title(f'padding by canvas (images), %; {100 * waste[-1]["waste"]:.1f} % of all', loc='left',
                            fontsize=10)
  for each in axes.values():
    each.spines[['top', 'right']].set_visible(False)
  data = io.BytesIO()
  figure.savefig(data, format='png')
  return data.getvalue()
