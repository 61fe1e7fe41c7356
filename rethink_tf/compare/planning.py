"""What would settle a comparison that is too noisy: more held-out images, or more seeds."""

from __future__ import annotations

import math
from typing import NamedTuple

from rethink_tf.compare import intervals
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.groups import Side
from rethink_tf.compare.intervals import Interval, SeedSpread

MOST_SEEDS, MOST_TIMES = 30, 1000  # of images; beyond, an addition is no advice


def half_width(images: float, spread: SeedSpread, seeds: tuple[int, int], num_images: int, tail: float,
               times_images: float = 1.0, seeds_before: tuple[int, int] | None = None) -> float:
  """Return half the width that an interval would have with other numbers of images and seeds.

  Args:
    images: variance of the difference over the present images, with `seeds_before`.
    spread: between seeds, on the present images.
    seeds: numbers of seeds of the two sides.
    num_images: present number of images.
    tail: probability outside one end of the interval.
    times_images: images in units of the present number.
    seeds_before: present numbers of seeds; None: as `seeds`.
  """
  before, after = (sum(1 / n for n in each) for each in (seeds_before or seeds, seeds))
  between = max(images - spread.of_images * before, 0.0)  # of the sides, whatever their seeds
  own = max(spread.variance - spread.of_images, 0.0)  # of the seeds, whatever the images
  variance = (between + spread.of_images * after) / times_images + own * after
  added = sum(seeds) - sum(seeds_before or seeds)
  degrees = min(spread.degrees + added, 1e6)
  uncertain = ((spread.of_images / times_images + own) * after) ** 2 / max(degrees, 1)
  uncertain += ((between + spread.of_images * after) / times_images) ** 2 / (num_images * times_images - 1)
  return math.sqrt(variance) * intervals.quantile(tail, variance ** 2 / uncertain if uncertain else math.inf)


class Need(NamedTuple):
  """What would settle a difference."""

  short: str
  words: str


def needed(side: Side, best: Side, difference: Interval | None, differences: Differences, margin: float,
           comparisons: int = 1) -> Need:
  """Describe how many more images or seeds would settle a difference, should it stay as it is."""
  spread, num_images = differences.spread(side), differences.num_images(side)
  if difference is None or spread is None or num_images is None:
    return Need('no interval can be given',
                'Detections are missing (CocoEvaluator.save_results) or of different images, or the metric has no '
                'intervals: no interval can be given.')
  target = max(abs(difference.value), margin - abs(difference.value))  # not 0, or within the margin
  text = f'The interval is {difference.half:.1f} points to either side, and {target:.1f} would settle it: '
  first, second = differences.scores(side), differences.scores(best)
  images = intervals.variance_over_images(first, second, num_images)
  seeds = (len(first.values), len(second.values))
  tail = (1 - difference.confidence) / (2 * comparisons)
  choices = []
  for times in (1.5, 2, 3, 4, 6, 8, 12, 16, 25, 50, 100, MOST_TIMES):
    if half_width(images, spread, seeds, num_images, tail, times) <= target:
      choices.append(f'about {math.ceil((times - 1) * num_images)} more held-out images')
      break
  for more in range(1, MOST_SEEDS):
    if half_width(images, spread, (seeds[0] + more, seeds[1] + more), num_images, tail, 1.0, seeds) <= target:
      choices.append(f'{more} more seed{"s" if more > 1 else ""} of each side')
      break
  if not choices:
    return Need('the sides are as good as equal',
                text + 'more than a thousand times the images or thirty seeds; the sides are as good as equal.')
  return Need(' or '.join(choices), text + ' or '.join(choices) + ', should the difference stay as it is.')
