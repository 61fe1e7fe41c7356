"""Image grids of training images and of annotations with problems, and plots of the distributions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.images import ImageError
from rethink_tf.data.problems import Case
from rethink_tf.inspect_data.report import Split
from rethink_tf.structures import NO_MASK
from rethink_tf.visualization import drawing, plotting

if TYPE_CHECKING:
  from matplotlib.axes import Axes

NAMED_CLASSES = 90  # with more classes, their names are not readable below the bars
COLUMNS = 4  # of the grid of training images
EXAMPLES = 6  # of each reason
CELL = 320  # pixels of an example


def plot_training_images(inputs: TrainInput, count: int) -> bytes:
  """Draw the first training images as the network receives them: padding hatched, boxes, masks and keypoints; PNG."""
  names = [category.name for category in inputs.source.categories]
  skeleton = next((category.skeleton for category in inputs.source.categories if category.keypoints), ())
  cells, titles, step = [], [], 0
  while len(cells) < count:
    batch = inputs.batch(step)
    for row in range(min(len(batch.images), count - len(cells))):
      size = batch.image_sizes[row].astype(int)
      used = batch.gt_classes[row] > 0
      image = drawing.hatch(batch.images[row], *size.tolist())
      crops, masks = batch.gt_masks[row][used], None
      crops = np.where(crops == NO_MASK, 0, crops)
      if not crops.all():  # masks that fill their boxes (a data set without masks) would only hide the objects
        masks = drawing.paste_masks(crops, batch.gt_boxes[row][used], *image.shape[:2])
      cells.append(drawing.draw(image, batch.gt_boxes[row][used], batch.gt_classes[row][used], names, masks=masks,
                                keypoints=batch.gt_keypoints[row][used] if inputs.source.num_keypoints else None,
                                skeleton=skeleton))
      titles.append(f'image {batch.image_ids[row]}: {size[0]}x{size[1]} in {"x".join(map(str, image.shape[:2]))}')
    step += 1
  return drawing.png(drawing.image_grid(cells, COLUMNS, titles))


def plot_problems(splits: Sequence[Split]) -> bytes | None:
  """Draw annotations that were repaired, left out or look wrong, one row per reason; PNG, or None if there are none."""
  rows = []
  for split in splits:
    for reason, (outcome, cases) in split.problems.by_reason().items():
      drawn = [one for one in (_draw_case(split, case) for case in cases[:EXAMPLES]) if one is not None]
      if not drawn:
        continue
      blank = np.full((8, 8, 3), 255, np.uint8)
      cells, titles = zip(*drawn, *([(blank, '')] * (EXAMPLES - len(drawn))), strict=True)
      row = drawing.image_grid(cells, EXAMPLES, titles, CELL)
      rows.append(drawing.under_heading(f'{split.title}, {outcome}: {reason} ({split.problems.counts[reason]})', row))
  if not rows:
    return None
  key = np.full((8, rows[0].shape[1], 3), 255, np.uint8)
  heading = 'green: annotated box; orange: the other box, or the extent of the mask'
  return drawing.png(drawing.stack([drawing.under_heading(heading, key), *rows]))


def _draw_case(split: Split, case: Case) -> tuple[np.ndarray, str] | None:
  """Return a rendered annotation and its title, None if it has no box or its image cannot be read."""
  found = np.flatnonzero(split.source.image_ids == case.image_id)
  if not len(found) or case.box is None:
    return None
  try:
    image = split.source.load(int(found[0])).image
  except ImageError:
    return None
  size = np.tile(image.shape[:2], 2)  # boxes far outside would make the crop around them huge
  box, other = (None if one is None else np.clip(one, -size, 2 * size) for one in (case.box, case.other))
  rendered = drawing.draw_error(image, None if other is None else drawing.DrawnObject(other),
                                drawing.DrawnObject(box, case.label or ''))
  return rendered, f'image {case.image_id}, annotation {case.annotation_id}'


def plot_statistics(training: Split, held_out: Split, inputs: TrainInput, padding: list[dict[str, Any]]) -> bytes:
  """Plot instances by class, the distributions of the training data, and padding; PNG. padding: report.padding."""
  fig = plotting.new_figure((15, 11), dpi=100)
  axes = fig.subplot_mosaic([['classes'] * 4, ['area', 'side', 'ratio', 'count'],
                             ['size', 'size', 'padding', 'padding']])
  _plot_classes(axes['classes'], training, held_out)
  _plot_boxes(axes, training, inputs)
  heights, widths = np.asarray(training.source.sizes).T
  axes['size'].plot(widths, heights, 'o', markersize=3, alpha=0.3, color='#1f6fb4')
  axes['size'].set_xlim(left=0)
  axes['size'].set_ylim(bottom=0)
  axes['size'].set_title('images: width, height, px', loc='left', fontsize=10)
  _plot_padding(axes['padding'], padding)
  for each in axes.values():
    each.spines[['top', 'right']].set_visible(False)
  return plotting.encode(fig)


def instances_by_name(classes: Sequence[dict[str, Any]], names: Sequence[str]) -> list[int]:
  """Return the instances of classes of the given names, of equal names in turn; 0 for those that are not there."""
  found: dict[str, list[int]] = {}
  for each in classes:
    found.setdefault(each['name'], []).append(each['instances'])
  return [found[name].pop(0) if found.get(name) else 0 for name in names]


def _plot_classes(axes: Axes, training: Split, held_out: Split) -> None:
  """Plot instances by class, most frequent first."""
  classes = training.summary['classes']
  order = sorted(range(len(classes)), key=lambda k: -classes[k]['instances'])
  positions = np.arange(len(order))
  axes.bar(positions, [classes[k]['instances'] for k in order], color='#1f6fb4', width=0.8, label='training')
  counts = instances_by_name(held_out.summary['classes'], [each['name'] for each in classes])
  axes.plot(positions, [counts[k] for k in order], 'o', markersize=3,
            color='#d1495b', label='held out')
  axes.set_yscale('symlog', linthresh=1)
  axes.set_xlim(-0.8, max(len(order), 8) - 0.2)
  if len(order) <= NAMED_CLASSES:
    axes.set_xticks(positions, [classes[k]['name'][:20] for k in order], rotation=90 if len(order) > 12 else 0,
                    fontsize=8)
  axes.set_title('instances by class', loc='left', fontsize=10)
  axes.legend(frameon=False, fontsize=9)


def _plot_boxes(axes: dict[str, Axes], training: Split, inputs: TrainInput) -> None:
  """Plot areas, sides and aspect ratios of boxes, and instances per image."""
  table, objects = training.table, ~training.table.crowds
  sides = np.maximum(table.boxes[:, 2:] - table.boxes[:, :2], 0)
  valid = objects & (sides > 0).all(axis=1)
  areas = training.summary['areas']
  bars = axes['area'].bar(list(areas), list(areas.values()), color=['#4aa5a8', '#1f6fb4', '#7a52a3'])
  axes['area'].bar_label(bars)
  axes['area'].margins(y=0.12)  # space for the labels
  axes['area'].set_title("instances by COCO's areas", loc='left', fontsize=10)
  original = training.source.sizes
  scale = (inputs.resize.largest_sizes(original) / np.maximum(original, 1)).mean(axis=1)
  roots = np.sqrt(sides.prod(axis=1))
  bins = np.geomspace(2, 2048, 41)
  axes['side'].hist(roots[valid], bins, color='#c3cad3', label='in the image file')
  axes['side'].hist((roots * scale[table.images])[valid], bins, histtype='step', color='#1f6fb4', linewidth=1.6,
                    label='in the network input')
  axes['side'].set_xscale('log')
  axes['side'].margins(y=0.3)  # space for the legend
  axes['side'].legend(frameon=False, fontsize=8, loc='upper left')
  axes['side'].set_title('box side (square root of the area), px', loc='left', fontsize=10)
  axes['ratio'].hist(np.log2(sides[valid, 1] / sides[valid, 0]), np.linspace(-4, 4, 33), color='#1f6fb4')
  axes['ratio'].set_xticks([-4, -2, 0, 2, 4], ['1:16', '1:4', '1:1', '4:1', '16:1'])
  axes['ratio'].set_title('width : height of boxes', loc='left', fontsize=10)
  counts = np.bincount(table.images[objects], minlength=len(training.source.image_ids))
  axes['count'].hist(counts, np.arange(min(counts.max(), 100) + 2) - 0.5, color='#1f6fb4')
  axes['count'].set_title('instances per image', loc='left', fontsize=10)


def _plot_padding(axes: Axes, padding: list[dict[str, Any]]) -> None:
  """Plot the fraction of padding by padded shape."""
  rows = padding[:-1][::-1]
  bars = axes.barh([f'{"x".join(map(str, row["padded_shape"]))}  ({row["images"]})' for row in rows],
                   [100 * row['waste'] for row in rows], color='#e08e2b')
  axes.bar_label(bars, fmt='%.1f', padding=3)
  axes.margins(x=0.1)
  axes.set_ylim(min(0, len(rows) - 5) - 0.6, len(rows) - 0.4)
  axes.set_title(f'padding by padded shape (images), %; {100 * padding[-1]["waste"]:.1f} % of all', loc='left',
                 fontsize=10)
