"""Coverage of the intervals and error rates of the verdicts in simulated studies whose truth is known.

    python -m tools.coverage --output=results/coverage.md

A simulated study has two arms and several schedules, N held-out images and n seeds a side. The score of a run is the
mean over images of: a level, the difficulty of the image (shared by all runs), an effect of the arm and schedule on the
image, an effect of the run on the image, and an effect of the seed, which is the same for all images. The intervals
under test get what they get from real runs: the scores and their bootstrap draws. For rare classes detections are
simulated instead, so that AP itself, which is no mean over images, is what varies.
"""

from __future__ import annotations

import json
import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from rethink_tf.compare import bootstrap, intervals, verdict
from rethink_tf.compare.intervals import HeldOut, Interval, SeedSpread, SideScores, Spreads
from rethink_tf.compare.sequential import Look
from rethink_tf.console import Progress
from rethink_tf.storage import files

FLAGS = flags.FLAGS
SEEDS, IMAGES, SPREADS, GAPS = (1, 2, 3, 5), (20, 100, 500, 5000), (0.3, 2.3), (0.0, 1.0, 3.0)
DIFFICULTY, OF_SIDE, OF_RUN = 25.0, 8.0, 15.0  # standard deviations of an image's score, in points
MANY = 100  # times as many studies of which only statistics are drawn
OTHERS = 200  # settings of `other_studies`
DRAWS, SHARED = 200, 10  # bootstrap draws, and studies that use the same ones, which are independent of their scores


class Study(NamedTuple):
  """The setting of simulated studies."""

  seeds: int
  images: int
  spread: float  # standard deviation between seeds, in points
  gap: float = 0.0  # truth: scratch minus pre-trained, at every schedule
  schedules: int = 2
  ratio: float = 1.0  # of the spread from scratch to that of the other side
  longest: float = 1.0  # of the spread of the longest schedules to that of the others
  correlation: float = 0.0  # between the schedules of one seed
  classes: int = 1  # of detections; the k-th has 1 / k times as many objects as the first
  of_side: float = OF_SIDE
  of_run: float = OF_RUN

  def spreads(self) -> np.ndarray:
    """Return the standard deviations between seeds of all sides, scratch first; that of the longest ones is `spread`
    in the mean."""
    own = np.full((2, self.schedules), float(self.spread))
    own[:, :-1] /= self.longest
    return (own * np.array([[self.ratio ** 0.5], [self.ratio ** -0.5]])).ravel()


class Rates(NamedTuple):
  """Shares of studies, in percent."""

  covered: float  # the interval holds the truth
  claimed: float  # better or worse
  wrong: float  # better or worse, and it is not, or the other way round
  equal: float  # equal or not worse
  wrong_equal: float  # equal or not worse, and it is more than the margin apart


def scores(study: Study, noise: np.random.Generator, weights: np.ndarray) -> list[SideScores]:
  """Draw one study: scratch sides first, then pre-trained ones. weights: bootstrap weights [draws, images] / images."""
  difficulty = noise.normal(0, DIFFICULTY, study.images)
  sides = []
  for number in range(2 * study.schedules):
    level = 42 + difficulty + noise.normal(0, study.of_side, study.images) + study.gap * (number < study.schedules)
    runs = level + noise.normal(0, study.of_run, (study.seeds, study.images)) + noise.normal(0, study.spread,
                                                                                      (study.seeds, 1))
    sides.append(SideScores(runs.mean(1), runs @ weights.T))
  return sides


def draw_weights(study: Study, noise: np.random.Generator) -> np.ndarray:
  """Draw bootstrap weights [draws, images], each row with the sum 1."""
  return bootstrap.draw_weights(study.images, DRAWS, int(noise.integers(2 ** 31))) / study.images


def detections(study: Study, noise: np.random.Generator, weights: np.ndarray) -> tuple[list[SideScores], HeldOut]:
  """Draw one study of detectors: each image has objects, each found with a probability that depends on all effects."""
  counts = noise.integers(1, 4, study.images)
  images = np.repeat(np.arange(study.images), counts)
  shares = 1 / np.arange(1, study.classes + 1)
  classes = noise.choice(study.classes, len(images), p=shares / shares.sum())
  false = noise.choice(study.classes, 2 * len(images), p=shares / shares.sum())
  difficulty = noise.normal(0, 0.8, study.images)[images] + noise.normal(0, 0.8, len(images))
  sides, objects = [], []
  for number in range(2 * study.schedules):
    level = difficulty + noise.normal(0, 1, study.images)[images] + noise.normal(0, 1, len(images))
    runs = []
    for _ in range(study.seeds):
      # A logit moves AP by about 25 points here.
      own = level + noise.normal(0, 0.3, len(images)) + noise.normal(0, study.spread / 25)
      runs.append(_matches(own + study.gap / 25 * (number < study.schedules), images, classes, false, study.images,
                           noise))
    objects = [one.objects for one in runs[0].categories]
    draws = np.stack([bootstrap.average_precision(run, weights * study.images) for run in runs])
    values = np.concatenate([bootstrap.average_precision(run, np.ones((1, study.images))) for run in runs])
    sides.append(SideScores(values, draws))
  return sides, HeldOut.of(objects)


def _matches(logits: np.ndarray, images: np.ndarray, classes: np.ndarray, false: np.ndarray, num_images: int,
             noise: np.random.Generator) -> bootstrap.Matches:
  """Return the matches of a detector: a detection of each object, found by its logit, and false ones of lower score.

  logits, images, classes: [objects]. false: classes of false detections.
  """
  found = noise.random(len(logits)) < 1 / (1 + np.exp(-3 * logits))
  scores_found = logits + noise.normal(0, 0.3, len(logits))
  false_images, false_scores = noise.integers(0, num_images, len(false)), noise.normal(-1.5, 1, len(false))
  tables = []
  for k in np.unique(classes):
    own, other = classes == k, false == k
    order = np.argsort(-np.concatenate([scores_found[own], false_scores[other]]), kind='stable')
    matched = np.concatenate([found[own], np.zeros(other.sum(), bool)])[None, order]
    tables.append(bootstrap.CategoryMatches(np.concatenate([images[own], false_images[other]])[order], matched,
                                            np.zeros_like(matched), np.bincount(images[own], minlength=num_images)))
  return bootstrap.Matches(np.arange(num_images), tuple(tables))


def before(first: SideScores, second: SideScores, noise: np.random.Generator) -> Interval:
  """Return the percentile bootstrap over images, runs of a side resampled along with them: version 0.1.0's interval."""
  def mean(side: SideScores) -> np.ndarray:
    chosen = noise.integers(len(side.values), size=side.draws.shape)
    return np.take_along_axis(side.draws, chosen, 0).mean(0)

  low, high = np.percentile(mean(first) - mean(second), [2.5, 97.5])
  return Interval(float(first.values.mean() - second.values.mean()), float(low), float(high))


def spreads(scratch: Sequence[SideScores], pretrained: Sequence[SideScores], schedule: int,
            held_out: HeldOut) -> Spreads | None:
  """Return the spreads between seeds of the longest schedule from scratch, the last, and a pre-trained one."""
  first, second = (intervals.seed_spread(arm, arm[i], held_out) for arm, i in ((scratch, -1), (pretrained, schedule)))
  return None if first is None or second is None else (first, second)


def rates(study: Study, count: int, seed: int, method: str = 'now', margin: float = 0.5) -> Rates:
  """Return the rates over `count` studies, of detections if they have several classes.

  method: 'now' for the package's intervals and verdicts, 'before' for version 0.1.0's.
  """
  noise = np.random.default_rng(seed)
  truth, counts = study.gap, np.zeros(5)
  for number in range(count):
    if number % SHARED == 0:
      weights = draw_weights(study, noise)
    if study.classes > 1:
      sides, held_out = detections(study, noise, weights)
    else:
      sides, held_out = scores(study, noise, weights), HeldOut.alike(study.images)
    scratch, pretrained = sides[:study.schedules], sides[study.schedules:]
    best = max(pretrained, key=lambda side: side.values.mean())
    if method == 'before':
      shown = before(scratch[-1], pretrained[-1], noise)
      relation = verdict.relation(before(scratch[-1], best, noise), margin)
    else:
      shown = intervals.difference(scratch[-1], pretrained[-1], spreads(scratch, pretrained, -1, held_out), held_out)
      each = [intervals.difference(scratch[-1], side, spreads(scratch, pretrained, i, held_out), held_out, 0.95,
                                   len(pretrained)) for i, side in enumerate(pretrained)]
      relation = verdict.joint_relation(each, each[[side is best for side in pretrained].index(True)], margin)
    counts += (shown.low <= truth <= shown.high, *_counted(relation, truth, margin))
  return Rates(*(100 * counts / count))


class Drawn(NamedTuple):
  """Statistics of `count` studies, [count, ...], from which their intervals are computed."""

  sides: np.ndarray  # [count, sides] mean of a side over all seeds there could be; scratch sides first
  runs: np.ndarray  # [count, sides, seeds] deviations of the runs
  of_images: np.ndarray  # [count] T² of compare/intervals.py
  between: np.ndarray  # [count] bootstrap variance of the difference of two sides, without that of their runs


def draw_statistics(study: Study, count: int, noise: np.random.Generator) -> Drawn:
  """Draw what `scores` and a bootstrap would give from its distribution, for many studies at once."""
  images, half = study.images, study.schedules
  error = noise.chisquare(images - 1, (2, count)) / (images - 1)  # of variances over images
  shared = np.repeat(noise.normal(0, 1, (count, 2, study.seeds)), half, 1)  # by the schedules of an arm
  own = noise.normal(0, 1, (count, 2 * half, study.seeds))
  of_seeds = study.spreads()[:, None] * (study.correlation ** 0.5 * shared + (1 - study.correlation) ** 0.5 * own)
  runs = of_seeds + noise.normal(0, study.of_run / images ** 0.5, (count, 2 * half, study.seeds))
  sides = study.gap * (np.arange(2 * half) < half) + noise.normal(0, study.of_side / images ** 0.5, (count, 2 * half))
  return Drawn(sides, runs, study.of_run ** 2 / images * error[0], 2 * study.of_side ** 2 / images * error[1])


def judged(drawn: Drawn, study: Study, seeds: int, confidence: float = 0.95, look: Look | None = None,
           comparisons: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Return the intervals of the longest schedule from scratch minus each pre-trained one, with so many seeds.

  comparisons: None: as many as there are pre-trained schedules.

  Returns:
    Values and half widths [count, schedules], and which schedule is the best [count].
  """
  half = study.schedules
  tail = intervals.outside(confidence, comparisons or half, look)
  widths = [intervals.half_width(drawn.between + drawn.of_images * 2 / seeds, side_spreads(drawn, study, seeds, i),
                                 (seeds, seeds), HeldOut.alike(study.images), tail) for i in range(half)]
  means = drawn.sides + drawn.runs[..., :seeds].mean(2)
  return means[:, [half - 1]] - means[:, half:], np.stack(widths, 1), means[:, half:].argmax(1)


def side_spreads(drawn: Drawn, study: Study, seeds: int, schedule: int) -> Spreads:
  """Return what intervals.seed_spread does, for the longest schedule from scratch and a pre-trained one."""
  variances = drawn.runs[..., :seeds].var(2, ddof=1).reshape(-1, 2, study.schedules)
  degrees = seeds - 1, intervals.degrees_of_arm(study.schedules, seeds)
  first, second = (SeedSpread.observed(variances[:, arm, side], variances[:, arm].mean(1), drawn.of_images, degrees)
                   for arm, side in ((0, -1), (1, schedule)))
  return first, second


def relations(values: np.ndarray, half: np.ndarray, best: np.ndarray, margin: float = 0.5) -> list[str]:
  """Return the relation of each study from what `judged` returns."""
  found = []
  for value, own, at in zip(values.tolist(), half.tolist(), best.tolist(), strict=True):
    each = [Interval(one, one - width, one + width) for one, width in zip(value, own, strict=True)]
    found.append(verdict.joint_relation(each, each[at], margin))
  return found


def drawn_rates(study: Study, count: int, seed: int, margin: float = 0.5) -> Rates:
  """Return what `rates` returns, from many more studies: those of `draw_statistics`."""
  if study.seeds == 1:
    return Rates(np.nan, 0.0, 0.0, 0.0, 0.0)  # no spread is known: no verdict
  drawn = draw_statistics(study, count, np.random.default_rng(seed))
  judgements = np.array([_counted(one, study.gap, margin)
                         for one in relations(*judged(drawn, study, study.seeds), margin)])
  return Rates(_covered(drawn, study), *(100 * judgements.mean(0)))


def _counted(relation: str, truth: float, margin: float) -> tuple[bool, bool, bool, bool]:
  """Return whether a relation is better or worse; and wrongly so; equal or not worse; and wrongly so."""
  claimed, level = relation in (verdict.BETTER, verdict.WORSE), relation in (verdict.EQUAL, verdict.NOT_WORSE)
  wrong = relation == verdict.BETTER and truth <= 0 or relation == verdict.WORSE and truth >= 0
  wrong_level = relation == verdict.EQUAL and abs(truth) > margin or level and truth < -margin
  return claimed, wrong, level, wrong_level


def table(lines: Sequence[tuple[Study, Rates, Rates]]) -> str:
  """Return the lines of a Markdown table: a study, version 0.1.0's rates and the present ones."""
  rows = ['| seeds a side | schedules | images | spread | truth | covered | (0.1.0) | better or worse | wrong | '
          '(0.1.0) | equal | wrong |', '|' + '---|' * 12]
  for study, old, new in lines:
    covered = 'one seed: none given' if study.seeds == 1 else f'{new.covered:.1f}'
    rows.append(f'| {study.seeds} | {study.schedules} | {study.images} | {study.spread:g} | {study.gap:+g} | '
                f'{covered} | {old.covered:.1f} | {new.claimed:.1f} | {new.wrong:.1f} | {old.wrong:.1f} | '
                f'{new.equal:.1f} | {new.wrong_equal:.1f} |')
  return '\n'.join(rows)


def studies() -> Iterator[Study]:
  """Yield all combinations with two schedules a side, and the smallest study that has a verdict: one, two seeds."""
  for gap in GAPS:
    for spread in SPREADS:
      for images in IMAGES:
        for seeds in SEEDS:
          yield Study(seeds, images, spread, gap)
        yield Study(2, images, spread, gap, schedules=1)


def unequal_studies() -> Iterator[Study]:
  """Yield studies of equal sides whose spreads differ, or whose schedules share their beginning."""
  for seeds in (2, 3, 5):
    for ratio in (2, 5):
      for schedules in (1, 3):
        yield Study(seeds, 5000, 1.0, 0.0, schedules, ratio=ratio, correlation=0.5 * (schedules > 1))
    for longest in (2, 3):
      yield Study(seeds, 5000, 1.0, 0.0, 3, longest=longest, correlation=0.5)
    yield Study(seeds, 5000, 1.0, 0.0, 3, correlation=0.8)
    yield Study(seeds, 5000, 1.0, 0.0, 4, ratio=3, longest=3, correlation=0.5)


def other_studies(count: int, seed: int) -> Iterator[Study]:
  """Yield random studies of equal sides: the numbers in compare/intervals.py were not chosen by any of them."""
  random = np.random.default_rng(seed)
  for _ in range(count):
    schedules = int(random.integers(1, 6))
    seeds, images = int(random.choice([2, 2, 3, 4, 6])), int(random.choice([30, 60, 150, 250, 1000, 3000]))
    spread, correlation = float(random.choice([0.1, 0.5, 0.8, 1.5, 3])), float(random.choice([0, 0.3, 0.6, 0.8]))
    yield Study(seeds, images, spread, 0.0, schedules, correlation=correlation * (schedules > 1),
                of_side=float(random.choice([3, 8, 15])), of_run=float(random.choice([5, 10, 20])))


def covered(study: Study, count: int, seed: int) -> float:
  """Return how often the interval between the longest schedules holds the truth, in percent."""
  return _covered(draw_statistics(study, count, np.random.default_rng(seed)), study)


def _covered(drawn: Drawn, study: Study) -> float:
  values, half, _ = judged(drawn, study, study.seeds, comparisons=1)
  return 100 * float(np.mean(np.abs(values[:, -1] - study.gap) <= half[:, -1]))


def studies_of_classes() -> Iterator[Study]:
  """Yield studies of equal sides with rare classes."""
  for images, classes in ((20, 10), (50, 30), (100, 20), (500, 20)):
    yield Study(3, images, 0.3, 0.0, 1, classes=classes)


def unequal_table(found: Sequence[tuple[Study, Rates]]) -> str:
  """Return the lines of a Markdown table of studies whose spreads are unequal."""
  rows = ['| seeds a side | schedules | images | spread from scratch over pre-trained | longest schedule over the '
          'others | correlation | classes | covered | better or worse, wrong |', '|' + '---|' * 9]
  rows += [f'| {study.seeds} | {study.schedules} | {study.images} | {study.ratio:g} | {study.longest:g} | '
           f'{study.correlation:g} | {study.classes} | {one.covered:.1f} | {one.wrong:.1f} |' for study, one in found]
  return '\n'.join(rows)


def resumed(path: str | None, compute: Callable[[int], Sequence[float]], count: int) -> list[list[float]]:
  """Return compute(0), ..., compute(count - 1), with those that an interrupted call has written to a file."""
  done = []
  if path and os.path.exists(path):
    with open(path) as file:
      done = [json.loads(line) for line in file][:count]
  progress = Progress('lines', count)
  for number in range(count):
    if number >= len(done):
      done.append(list(map(float, compute(number))))
      if path:
        with open(path, 'a') as file:
          file.write(json.dumps(done[-1]) + '\n')
    progress.count()
  progress.close()
  return done


def _of_before(study: Study, count: int) -> int:
  return count if study.images < 5000 else max(count // 4, 1)


def main(argv: Sequence[str]) -> None:
  del argv
  todo, count = list(studies()), FLAGS.count
  found = resumed(FLAGS.lines, lambda i: rates(todo[i], _of_before(todo[i], count), i, 'before'), len(todo))
  lines = [(study, Rates(*old), drawn_rates(study, MANY * count, i))
           for i, (study, old) in enumerate(zip(todo, found, strict=True))]
  errors = [100 * (0.05 * 0.95 / number) ** 0.5 for number in (MANY * count, count)]
  about = (f'Written by `python -m tools.coverage --count={count} --output=results/coverage.md`: {MANY * count} '
           'simulated studies a line, two arms, one or two schedules, in percent. *Covered*: the 95 % interval of '
           'scratch minus pre-training at the same schedule holds the truth. *Better or worse*, *equal* (or not worse, '
           'margin 0.5): the verdict on the longest schedule from scratch against all pre-trained ones; *wrong*: and '
           f'it is not so. A rate of 5 % has a standard error of {errors[0]:.1f}. Means, spreads and bootstrap '
           'variances are drawn from their distributions; a test compares them with a bootstrap of scores. (0.1.0): '
           f'as version 0.1.0 computed it, in {count} studies, a quarter of them with 5,000 images: a standard error '
           f'of {errors[1]:.1f} and {2 * errors[1]:.1f}.')
  unequal = [(study, drawn_rates(study, MANY * count, i)) for i, study in enumerate(unequal_studies())]
  unequal += [(study, rates(study, count // 2, i)) for i, study in enumerate(studies_of_classes())]
  beside = ('Both sides are equal here as well, but seeds spread more from scratch than pre-trained, or more at the '
            'longest schedule; the deviations of one seed at several schedules are correlated; or images hold several '
            f'classes, the rarer ones in few of them ({count // 2} studies of detections and their AP).')
  others = [covered(study, MANY * count // 4, i) for i, study in enumerate(other_studies(OTHERS, 0))]
  apart = sum(not 93 <= one <= 98 for one in others)
  chosen = (f'The numbers in `rethink_tf/compare/intervals.py` were chosen by these studies. Of {OTHERS} others, with '
            'equal spreads too, but random numbers of seeds (2 to 6), schedules (1 to 5) and images (30 to 3,000), '
            'spreads (0.1 to 3 points), correlations between schedules (0 to 0.8) and noise of images, intervals hold '
            f'the truth in {min(others):.1f} to {max(others):.1f} %, {np.median(others):.1f} % in the median '
            f'({MANY * count // 4} studies of each setting; outside 93 to 98 %: {apart}).')
  text = (f'# Coverage of intervals and error rates of verdicts\n\n{textwrap.fill(about, 120)}\n\n{table(lines)}\n\n'
          f'{textwrap.fill(chosen, 120)}\n\n'
          f'## Where spreads are unequal, and classes rare\n\n{textwrap.fill(beside, 120)}\n\n'
          f'{unequal_table(unequal)}\n')
  if FLAGS.output:
    files.write_output(FLAGS.output, text.encode())
  print(text)


if __name__ == '__main__':
  flags.DEFINE_string('output', None, 'Markdown file', module_name=sys.argv[0])
  flags.DEFINE_string('lines', None, 'file of finished lines, from which the same command resumes',
                      module_name=sys.argv[0])
  flags.DEFINE_integer('count', 400, 'simulated studies a line', module_name=sys.argv[0])
  app.run(main)
