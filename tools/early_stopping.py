"""Error rates and savings of studies that stop early, in simulated studies whose truth is known.

    python -m tools.early_stopping --output=results/early_stopping.md

Studies are those of tools/coverage.py. Each is run twice: with the intervals, verdicts and stopping rule of
`Study.until_settled`, look by look, and with the same most seeds at once, as a study of fixed size. `outcome` draws
what the intervals are computed from (coverage.draw_statistics); `exact` draws scores and bootstraps them.
"""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import app, flags

from rethink_tf.compare import intervals, planning, sequential, verdict
from rethink_tf.compare.intervals import HeldOut, SideScores
from rethink_tf.compare.sequential import Look
from rethink_tf.storage import files
from rethink_tf.study.seeds import UntilSettled
from tools import coverage
from tools.coverage import Drawn, Study

FLAGS = flags.FLAGS
MOST, IMAGES, SPREADS, GAPS, SCHEDULES = (3, 5, 8), (100, 500, 5000), (0.3, 1.0, 2.3), (0.0, -1.0, -3.0), (1, 2)
MARGIN, LEAST_CHANCE = 0.5, UntilSettled().least_chance


class Outcome(NamedTuple):
  """Of studies, in percent, but for `seeds`."""

  wrong: float  # better or worse, and it is not, or equal, and it is more than the margin apart
  settled: float
  seeds: float  # a side, on average
  wrong_fixed: float  # of studies of fixed size
  settled_fixed: float


def outcome(study: Study, count: int, seed: int) -> Outcome:
  """Return the outcome of `count` studies of at most study.seeds seeds."""
  drawn = coverage.draw_statistics(study, count, np.random.default_rng(seed))
  final, stopped = [verdict.UNSURE] * count, [study.seeds] * count
  for seeds in range(sequential.FIRST, study.seeds + 1):
    look = Look(seeds, study.seeds)
    judged = coverage.judged(drawn, study, seeds, look=look)
    hopeless = chances(drawn, study, look, judged) < LEAST_CHANCE
    for i, found in enumerate(coverage.relations(*judged)):
      if stopped[i] == study.seeds and final[i] == verdict.UNSURE:
        final[i] = found
        if found != verdict.UNSURE or hopeless[i]:
          stopped[i] = seeds
  return _outcome(study, final, stopped, coverage.relations(*coverage.judged(drawn, study, study.seeds)))


def chances(drawn: Drawn, study: Study, look: Look, judged: tuple[np.ndarray, np.ndarray, np.ndarray]) -> np.ndarray:
  """Return the probability of each study to be settled at its last look, by the difference from the best schedule."""
  values, _, best = judged
  rows, half, last = np.arange(len(values)), study.schedules, look._replace(seeds=look.max_seeds)
  variances = np.stack([sum(spread.variance for spread in coverage.side_spreads(drawn, study, look.seeds, i)) / 2
                        for i in range(half)], 1)[rows, best]
  noise = planning.Noise(drawn.between, drawn.of_images, np.maximum(variances - drawn.of_images, 0),
                         HeldOut.alike(study.images))
  now, then = ((intervals.degrees_of_arm(half, one.seeds),) * 2 for one in (look, last))
  return planning.chance(values[rows, best], noise, (look.seeds,) * 2, (last.seeds,) * 2, 1.0, now, then,
                         intervals.outside(0.95, half, last), MARGIN)


def exact(study: Study, count: int, seed: int) -> Outcome:
  """Return the outcome as `outcome` does, from scores of images and their bootstrap."""
  noise = np.random.default_rng(seed)
  final, stopped, fixed = [], [], []
  for number in range(count):
    if number % coverage.SHARED == 0:
      weights = coverage.draw_weights(study, noise)
    sides = coverage.scores(study, noise, weights)
    for seeds in range(sequential.FIRST, study.seeds + 1):
      so_far = [SideScores(side.values[:seeds], side.draws[:seeds]) for side in sides]
      found = _judge(so_far, study.images, Look(seeds, study.seeds))
      if found != verdict.UNSURE:  # without giving up
        break
    final.append(found)
    stopped.append(seeds)
    fixed.append(_judge(sides, study.images, None))
  return _outcome(study, final, stopped, fixed)


def _judge(sides: Sequence[SideScores], images: int, look: Look | None) -> str:
  half = len(sides) // 2
  best = max(range(half), key=lambda i: sides[half + i].values.mean())
  held_out = HeldOut.alike(images)
  spreads = [coverage.spreads(sides[:half], sides[half:], i, held_out) for i in range(half)]
  each = [intervals.difference(sides[half - 1], side, spread, held_out, 0.95, half, look)
          for side, spread in zip(sides[half:], spreads, strict=True)]
  return verdict.joint_relation(each, each[best], MARGIN)


def _outcome(study: Study, final: Sequence[str], stopped: Sequence[int], fixed: Sequence[str]) -> Outcome:
  wrong, settled, wrong_fixed, settled_fixed = (
    100 * float(np.mean([rule(one) for one in found])) for found in (final, fixed)
    for rule in (lambda one: is_wrong(one, study.gap), lambda one: one != verdict.UNSURE))
  return Outcome(wrong, settled, float(np.mean(stopped)), wrong_fixed, settled_fixed)


def is_wrong(relation: str, truth: float) -> bool:
  """Whether a relation is not that of the truth, scratch minus pre-trained."""
  return (relation == verdict.BETTER and truth <= 0 or relation == verdict.WORSE and truth >= 0
          or relation == verdict.EQUAL and abs(truth) > MARGIN or relation == verdict.NOT_WORSE and truth < -MARGIN)


def studies() -> Iterator[Study]:
  """Yield all combinations."""
  for gap in GAPS:
    for schedules in SCHEDULES:
      for most in MOST:
        for spread in SPREADS:
          for images in IMAGES:
            yield Study(most, images, spread, gap, schedules)


def table(lines: Sequence[tuple[Study, Outcome]]) -> str:
  """Return the lines of a Markdown table."""
  rows = ['| truth | schedules a side | most seeds | spread | images | wrong | (fixed) | settled | (fixed) | '
          'seeds run | runs saved |', '|' + '---|' * 11]
  for study, one in lines:
    rows.append(f'| {study.gap:+g} | {study.schedules} | {study.seeds} | {study.spread:g} | {study.images} | '
                f'{one.wrong:.1f} | {one.wrong_fixed:.1f} | {one.settled:.0f} | {one.settled_fixed:.0f} | '
                f'{one.seeds:.1f} | {100 * (1 - one.seeds / study.seeds):.0f} % |')
  return '\n'.join(rows)


def summary(lines: Sequence[tuple[Study, Outcome]]) -> str:
  """Return the means by truth, and the largest error rate."""
  rows = []
  for gap in sorted({study.gap for study, _ in lines}, reverse=True):
    of_gap = [(study, one) for study, one in lines if study.gap == gap]
    saved = np.mean([1 - one.seeds / study.seeds for study, one in of_gap])
    rows.append(f'- Truth {gap:+g}: wrong {np.mean([one.wrong for _, one in of_gap]):.1f} % on average, at most '
                f'{max(one.wrong for _, one in of_gap):.1f} % in a line; settled '
                f'{np.mean([one.settled for _, one in of_gap]):.0f} % (fixed size: '
                f'{np.mean([one.settled_fixed for _, one in of_gap]):.0f} %) with {100 * saved:.0f} % fewer runs.')
  return '\n'.join(rows)


def main(argv: Sequence[str]) -> None:
  del argv
  lines = []
  for number, study in enumerate(studies()):
    lines.append((study, outcome(study, FLAGS.count, number)))
  about = (f'Written by `python -m tools.early_stopping --count={FLAGS.count} --output=results/early_stopping.md`: '
           f'{FLAGS.count} simulated studies a line, those of [coverage.md](coverage.md), in percent. A study looks at '
           'its runs after 2, 3, … seeds a side and stops once scratch is better, worse, equal or not worse (margin '
           f'0.5) at the level of that look, or once the seeds left would settle it in less than {LEAST_CHANCE:.0%} of '
           'cases; (fixed): all seeds at once, judged at 5 %. *Wrong*: better or worse, and it is not so, or equal, '
           'and it is more than the margin apart. An error rate of 5 % has a standard error of '
           f'{100 * (0.05 * 0.95 / FLAGS.count) ** 0.5:.1f}.')
  text = (f'# Error rates and savings of studies that stop early\n\n{textwrap.fill(about, 120)}\n\n{summary(lines)}\n\n'
          f'{table(lines)}\n')
  if FLAGS.output:
    files.write_output(FLAGS.output, text.encode())
  print(text)


if __name__ == '__main__':
  flags.DEFINE_string('output', None, 'Markdown file', module_name=sys.argv[0])
  flags.DEFINE_integer('count', 4000, 'simulated studies a line', module_name=sys.argv[0])
  app.run(main)
