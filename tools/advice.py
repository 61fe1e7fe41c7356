"""Whether what studies say of themselves comes true, in simulated studies whose truth is known.

    python -m tools.advice --output=results/advice.md

Studies are those of tools/coverage.py. Three sentences are checked: the smallest differences that a study says it finds
(`planning.found`), the seeds and images of which an open verdict says that they settle it (`planning.needed`), which
are then added to the same study, and the probability of a study that stops early to be settled with the seeds that it
has left (`planning.chance`).
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from rethink_tf.compare import intervals, planning, verdict
from rethink_tf.compare.differences import Differences
from rethink_tf.compare.groups import Side
from rethink_tf.compare.intervals import HeldOut, SideScores
from rethink_tf.compare.planning import Noise
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Curve, Run
from rethink_tf.compare.sequential import Look
from rethink_tf.console import Progress
from rethink_tf.storage import files
from tools import coverage, early_stopping
from tools.coverage import Study

FLAGS = flags.FLAGS
SEEDS, IMAGES, SPREADS, SCHEDULES = (2, 3, 5), (20, 100, 500, 5000), (0.3, 2.3), (1, 2)
GAPS = 0.0, -1.0, -3.0, 1.0, 3.0
DRAWS, MARGIN = 400, 0.5
_BINS = (0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.01)


class Power(NamedTuple):
  """Of studies whose true difference is the one that they say they find."""

  found: float  # that difference, in points
  behind: float  # percent that find it, where scratch is behind
  ahead: float  # and where it is ahead: it catches up


class Counts(NamedTuple):
  """Numbers of studies."""

  seeds: int = 0  # told a number of seeds
  settled_by_seeds: int = 0  # of them
  images: int = 0  # told a number of images
  settled_by_images: int = 0


class Settled(NamedTuple):
  """Numbers of studies with an open verdict."""

  open: int = 0
  even: Counts = Counts()  # told what settles it in half of the cases
  sure: Counts = Counts()  # in four of five

  @classmethod
  def added(cls, several: Iterable[Settled]) -> Settled:
    """Return the sum."""
    opened, even, sure = zip(*several, strict=True)
    return cls(sum(opened), *(Counts(*map(sum, zip(*of, strict=True))) for of in (even, sure)))


class Simulated:
  """A study to which seeds and images can be added; `coverage.scores` from the distribution of its means."""

  def __init__(self, study: Study, noise: np.random.Generator, bootstrap: tuple[np.ndarray, np.ndarray]) -> None:
    """bootstrap: standard normal values [sides, DRAWS] and [sides, seeds, DRAWS], as of resampled images."""
    sides, most = 2 * study.schedules, planning.MOST_SEEDS
    self._study, self._noise, self._bootstrap = study, noise, bootstrap
    self._images, self._seeds = study.images, study.seeds
    self._of_sides = noise.normal(0, study.of_side / study.images ** 0.5, sides)
    self._of_runs = noise.normal(0, study.of_run / study.images ** 0.5, (sides, most))
    self._of_seeds = noise.normal(0, study.spread, (sides, most))
    self._squares = noise.chisquare(study.images - 1, sides * (most + 1))  # of the deviations of images

  def with_seeds(self, number: int) -> Simulated:
    """Return the study with so many seeds more."""
    more = self._copied()
    more._seeds += number
    return more

  def with_images(self, number: int) -> Simulated:
    """Return the study with so many images more, on which the same runs are evaluated."""
    more, total = self._copied(), self._images + number
    for name, deviation in (('_of_sides', self._study.of_side), ('_of_runs', self._study.of_run)):
      old = getattr(self, name)
      new = self._noise.normal(0, deviation / number ** 0.5, old.shape)
      setattr(more, name, (self._images * old + number * new) / total)
    more._squares = self._squares + self._noise.chisquare(number, self._squares.shape)
    more._images = total
    return more

  def _copied(self) -> Simulated:
    copy = Simulated.__new__(Simulated)
    copy.__dict__.update(self.__dict__)
    return copy

  def verdict(self, look: Look | None = None) -> verdict.Verdict:
    """Return the verdict on the study."""
    half, sides = self._study.schedules, len(self._of_sides)
    truth = 42 + self._study.gap * (np.arange(sides) < half) + self._of_sides
    values = (truth[:, None] + self._of_seeds + self._of_runs)[:, :self._seeds]
    deviations = (self._squares / self._images ** 2) ** 0.5  # of a mean over resampled images
    of_sides, of_runs = np.split(deviations, [sides])
    of_runs = of_runs.reshape(sides, -1)[:, :self._seeds, None]
    draws = (values[:, :, None] + self._study.of_side * of_sides[:, None, None] * self._bootstrap[0][:, None]
             + self._study.of_run * of_runs * self._bootstrap[1][:, :self._seeds])
    runs = [_run(i >= half, i % half + 1, seed, values[i, seed]) for i in range(sides) for seed in range(self._seeds)]
    tables = {(runs[i * self._seeds].init, runs[i * self._seeds].schedule): SideScores(values[i], draws[i])
              for i in range(sides)}
    return verdict.verdicts(runs, _Known(runs, tables, self._images, look), MARGIN)[0]


def _run(pretrained: bool, k: int, seed: int, score: float) -> Run:
  settings = {'run.seed': seed, 'KTimesSchedule.k': k}
  if pretrained:
    settings |= {'run.initial_weights': '@PretrainedWeights()', 'PretrainedWeights.path': 'weights'}
  seen = (np.array([float(k)]),) * 4
  curve = Curve(np.array([k]), *seen, {'box/AP': np.array([score])})
  nothing = np.zeros(0), np.zeros(0)
  return Run(f'{pretrained} {k} {seed}', None, settings, PRETRAINED if pretrained else SCRATCH, f'{k}x', seed, curve,
             nothing, nothing, None, '')


class _Known(Differences):
  """Differences of simulated scores."""

  def __init__(self, runs: Sequence[Run], tables: dict[tuple[str, str], SideScores], images: int,
               look: Look | None) -> None:
    super().__init__(runs, 'box/AP', None, look=look)
    self._tables, self._number = tables, images

  def scores(self, side: Side) -> SideScores:
    return self._tables[side.runs[0].init, side.schedule]

  def held_out(self, side: Side) -> HeldOut:
    del side
    return HeldOut.alike(self._number)

  def _images(self, side: Side) -> np.ndarray:
    del side
    return np.zeros(self._number)

  def _truth(self, side: Side) -> str:
    del side
    return ''


def settled(study: Study, count: int, seed: int) -> Settled:
  """Add what `count` studies say would settle them, and return how many are settled then.

  A true difference of NaN is drawn for each study from the distribution that is assumed of them.
  """
  noise = np.random.default_rng(seed)
  results = [Settled()]
  for number in range(count):
    if number % coverage.SHARED == 0:
      shape = 2 * study.schedules, planning.MOST_SEEDS, DRAWS
      bootstrap = noise.normal(size=(shape[0], DRAWS)), noise.normal(size=shape)
    gap = float(noise.normal(0, planning.TRUE_DIFFERENCE))
    one = Simulated(study._replace(gap=gap) if np.isnan(study.gap) else study, noise, bootstrap)
    judged = one.verdict()
    if judged.answer == verdict.OPEN and judged.need is None:  # a shorter schedule is level, and a longer one behind
      results.append(Settled(1))
    elif judged.answer == verdict.OPEN:
      results.append(Settled(1, _after(one, judged.need.even), _after(one, judged.need.sure)))
  return Settled.added(results)


def _after(study: Simulated, addition: planning.Addition) -> Counts:
  by_seeds = by_images = False
  if addition.seeds:
    more = study.with_seeds(addition.seeds)
    by_seeds = more.verdict(Look(more._seeds, more._seeds)).answer != verdict.OPEN
  if addition.images:
    by_images = study.with_images(addition.images).verdict().answer != verdict.OPEN
  return Counts(bool(addition.seeds), by_seeds, bool(addition.images), by_images)


def power(seeds: int, images: int, spread: float, schedules: int, count: int, seed: int) -> Power:
  """Return how many of `count` studies find the difference that they are said to find; their noise is the expected."""
  noise = Noise.expected(images, spread)
  found = planning.found(noise, (seeds, seeds), (schedules, schedules), intervals.outside(0.95, schedules))
  shares = []
  for gap, relations in ((-found, (verdict.WORSE,)), (found, verdict.CAUGHT_UP)):
    study = Study(seeds, images, spread, gap, schedules, of_side=(noise.between * images / 2) ** 0.5,
                  of_run=(noise.of_images * images) ** 0.5)
    drawn = coverage.draw_statistics(study, count, np.random.default_rng(seed))
    shares.append(100 * np.mean([one in relations for one in coverage.relations(
      *coverage.judged(drawn, study, seeds), MARGIN)]))
  return Power(found, *map(float, shares))


def reliability(count: int, seed: int) -> list[tuple[str, float, float, int]]:
  """Return, by intervals of the probability to be settled with all seeds, in percent: its name, its mean, the share
  that was settled, and the number of studies. count: of each kind."""
  said, happened = [], []
  for gap in GAPS:
    for most, now, schedules in ((5, 2, 1), (5, 3, 2), (8, 3, 2)):
      for spread in SPREADS:
        for images in IMAGES:
          study = Study(most, images, spread, gap, schedules)
          drawn = coverage.draw_statistics(study, count, np.random.default_rng(seed))
          judged = coverage.judged(drawn, study, now, look=Look(now, most))
          is_open = np.array(coverage.relations(*judged, MARGIN)) == verdict.UNSURE
          final = coverage.relations(*coverage.judged(drawn, study, most, look=Look(most, most)), MARGIN)
          said += early_stopping.chances(drawn, study, Look(now, most), judged)[is_open].tolist()
          happened += (np.array(final)[is_open] != verdict.UNSURE).tolist()
  chances, shares, rows = 100 * np.array(said), 100 * np.array(happened, float), []
  for low, high in zip(_BINS[:-1], _BINS[1:], strict=True):
    those = (chances >= 100 * low) & (chances < 100 * high)
    rows.append((f'{100 * low:.0f} to {min(100 * high, 100):.0f}', float(np.mean(chances[those])),
                 float(np.mean(shares[those])), int(those.sum())))
  return rows


def power_table(count: int) -> str:
  """Return the lines of a Markdown table of forecasts."""
  rows = ['| seeds a side | schedules a side | images | spread | says it finds, points | found, scratch behind | '
          'found, scratch ahead |', '|' + '---|' * 7]
  for seeds in SEEDS:
    for schedules in SCHEDULES:
      for images in IMAGES:
        for spread in SPREADS:
          one = power(seeds, images, spread, schedules, count, seeds)
          rows.append(f'| {seeds} | {schedules} | {images} | {spread:g} | {one.found:.1f} | {one.behind:.0f} | '
                      f'{one.ahead:.0f} |')
  return '\n'.join(rows)


def settled_table(count: int) -> str:
  """Return the lines of a Markdown table of what settles open verdicts."""
  cells = [(gap, spread, images) for gap in (*GAPS, np.nan) for spread in SPREADS for images in IMAGES]
  progress, found = Progress('lines', len(cells)), []
  for gap, spread, images in cells:
    found.append(Settled.added(settled(Study(seeds, images, spread, gap, schedules), count, seeds)
                               for seeds in SEEDS for schedules in SCHEDULES))
    progress.count()
  progress.close()
  rows = ['| truth | spread | images | open | half: told seeds | settled | told images | settled | four of five: told '
          'seeds | settled | told images | settled |', '|' + '---|' * 12]
  lines = [('drawn' if np.isnan(gap) else f'{gap:+g}', f'{spread:g}', f'{images}', one)
           for (gap, spread, images), one in zip(cells, found, strict=True)]
  for name in dict.fromkeys(line[0] for line in lines):
    lines.append((f'{name}, all', '', '', Settled.added(line[-1] for line in lines if line[0] == name)))
  return '\n'.join([*rows, *(f'| {truth} | {spread} | {images} | {one.open} | {_told(one)} |'
                             for truth, spread, images, one in lines)])


def _told(one: Settled) -> str:
  cells = []
  for counts in (one.even, one.sure):
    for told, by in ((counts.seeds, counts.settled_by_seeds), (counts.images, counts.settled_by_images)):
      cells += [f'{told}', f'{100 * by / told:.0f}' if told else '-']
  return ' | '.join(cells)


def main(argv: Sequence[str]) -> None:
  del argv
  count = FLAGS.count
  about = (f'Written by `python -m tools.advice --count={count} --output=results/advice.md`: simulated studies, those '
           'of [coverage.md](coverage.md), in percent. Spreads and true differences (scratch minus pre-trained) are in '
           'points of AP.')
  finds = (f'{10 * count} studies a line whose true difference is exactly that which they say, before they start, that '
           'they find in four of five cases, with the noise that they assume. *Found*: pre-training is needed where '
           'scratch is behind, and is not where it is ahead. With several schedules it suffices to be behind one of '
           'them, and to be ahead is to be so of each. (Half the width of the interval plus Student\'s quantile, as '
           'was said before: 43 to 69 with two seeds and one schedule.)')
  settles = (f'Of {count} studies each with 2, 3 and 5 seeds and one and two schedules a side, those whose verdict '
             'is open. *Told*: they name a number of seeds, or of images, with which they say to be settled in half of '
             'the cases, or in four of five; *settled*: the share that is once exactly these are added (seeds by '
             '`--until_settled`, at its last look). Before anything is measured, true differences are taken to be '
             f'normal around 0, with a standard deviation of {planning.TRUE_DIFFERENCE:g} points; (drawn): they are. '
             'So the shares are those of many studies, of which those without a true difference are settled less '
             'often, and those with a large one more often. (With the difference that was measured taken for the '
             'truth, as before: of the studies with truths from -3 to +3 that named seeds 42 % were settled, of those '
             'that named images 32 %; without a true difference 14 to 24 %.)')
  likely = ('Studies that stop early, at looks with 2 or 3 of at most 5 or 8 seeds, whose verdict is open: the '
            'probability that they name of being settled with all seeds, and the share that is.')
  lines = ['| said | mean | settled | studies |', '|---|---|---|---|']
  lines += [f'| {name} | {said:.0f} | {share:.0f} | {number} |' for name, said, share, number in reliability(count, 1)]
  parts = ['# Whether studies find and need what they say', textwrap.fill(about, 120),
           '## What a study says that it finds', textwrap.fill(finds, 120), power_table(10 * count),
           '## What an open verdict says would settle it', textwrap.fill(settles, 120), settled_table(count),
           '## The probability that the seeds left settle it', textwrap.fill(likely, 120), '\n'.join(lines)]
  text = '\n\n'.join(parts) + '\n'
  if FLAGS.output:
    files.write_output(FLAGS.output, text.encode())
  print(text)


if __name__ == '__main__':
  flags.DEFINE_string('output', None, 'Markdown file', module_name=sys.argv[0])
  flags.DEFINE_integer('count', 200, 'simulated studies of each kind', module_name=sys.argv[0])
  app.run(main)
