"""Comparison of run folders: verdicts, tables, plots, an HTML page and a TensorBoard log."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging

from rethink_tf.compare import (
  copies,
  groups,
  looks,
  matching,
  page,
  plots,
  predictions,
  pretraining_seeds,
  provenance,
  published,
  same_data,
  tables,
  tensorboard_log,
  verdict,
)
from rethink_tf.compare.differences import Differences, log_next
from rethink_tf.compare.groups import Side
from rethink_tf.compare.matching import SavedMatches, Scored
from rethink_tf.compare.planning import Noise
from rethink_tf.compare.run_summary import NOT_FINITE, PRETRAINED, SCRATCH, Run, metric_name, read_runs
from rethink_tf.console import percent
from rethink_tf.errors import UserError, in_one_line, plain
from rethink_tf.storage import files, identity
from rethink_tf.storage.run_folder import RunFolder

TABLE_METRICS = (
  'box/AP', 'box/AP50', 'box/AP75', 'mask/AP', 'mask/AP50', 'mask/AP75', 'keypoint/AP', 'voc/mAP', 'top-1')
_OF_A_RUN = ('config.gin', *RunFolder.ALL_METRICS, identity.FILE, 'checkpoints')
LARGEST_MARGIN = 10.0  # points
_FEW_DRAWS = 200


class Comparison(NamedTuple):
  """Result of `compare`."""

  runs: tuple[Run, ...]
  metric: str
  verdicts: tuple[verdict.Verdict, ...]
  text: str  # verdicts and tables, for the terminal
  page: str  # path of the HTML file


def compare(run_folders: Sequence[str], output: str, metric: str | None = None, margin: float = 0.5, draws: int = 1000,
            confidence: float = 0.95, seed_spread: float | None = None, planned: str = '',
            cure: str = files.ELSEWHERE) -> Comparison:
  """Compare runs and write a report.

  With a run of a study that may stop early, intervals are those of its latest look (looks.py).

  Args:
    run_folders: paths of run folders, local or gs://; the first is the baseline of the table of differences.
    output: folder for index.html, runs.csv, curves.csv, plots (PNG and SVG) and tensorboard/.
    metric: metric to compare by, as 'box/AP'; None: the first run's main metric.
    margin: AP points within which two runs count as equal.
    draws: number of bootstrap draws.
    confidence: coverage of the intervals.
    seed_spread: known standard deviation of the metric between seeds, in points; None: taken from the runs, which takes
      two seeds of one side at least.
    planned: what the study was expected to be able to tell, for the footer of the page.
    cure: what to do if the output cannot be written, for the message.

  Raises:
    UserError: a folder is not a run folder, has no evaluation or lacks the metric; an argument is out of range; or the
      output is a run folder or cannot be written.
  """
  check_output(output)
  _check_draws(confidence, draws)
  check_options(margin, seed_spread)
  runs = read_runs(run_folders)
  metric = common_metric(runs, metric)
  counting = copies.independent(_complete(runs))  # for a verdict
  studies = looks.of_runs(run_folders)
  record = studies.strictest
  matches = matches_reader(runs, metric)
  differences = Differences(counting, metric, matches, draws, confidence, seed_spread,
                            None if record is None else record.look)
  verdicts = verdict.verdicts(counting, differences, margin)
  answers = _answers(counting, verdicts, margin) or [_without_verdict(runs, metric)]
  facts = _facts(counting or runs, differences)
  if record is not None:
    facts.append(('Stops early', looks.described(record)))
  differing = [provenance.software(runs), provenance.hardware(runs)]
  notes = [*_notes(runs, verdicts, confidence), *(line for one in differing for line in one.notes)]
  if planned:
    notes.append(f'Planned: {planned}.')
  objects = matching.object_sizes(runs[0].folder, metric, int(runs[0].curve.steps[-1]))
  content = page.Content(
    title=_title(runs, metric), answers=answers, facts=facts,
    cautions=[*_cautions(runs), *provenance.far_below(counting, metric), *same_data.scored(runs, matches, metric),
              *(line for one in differing for line in one.cautions), *looks.cautions(studies)],
    drawn=_drawn(answers, verdicts, matches), legend=_legend(runs),
    panels=plots.render(plots.panels(runs, metric, objects), 'svg'),
    tables={
      'Runs': _runs_table(runs),
      'Scratch against the pre-trained schedule that decides': tables.steps_table(counting, verdicts),
      'Scratch against pre-training at the same schedule': tables.twins_table(counting, differences, margin),
      'Differences from the first run, each by itself': tables.differences_table(runs, differences, margin),
      'Settings that differ': tables.settings_table(runs),
    },
    notes=notes)
  written = _write(output, runs, metric, content, objects, cure)
  return Comparison(tuple(runs), metric, tuple(verdicts), _as_text(content), written)


def _as_text(content: page.Content) -> str:
  """Return answers, facts, cautions and tables for the terminal."""
  words: list[str] = []
  for one in content.answers:
    headline = f'{one.about}: {one.headline}' if one.about else one.headline
    words += [line for line in (headline, one.words, one.cost) if line]
  words.append(' · '.join(f'{name.lower()}: {value}' for name, value in content.facts))
  words += content.cautions
  shown = [f'{name}\n{tables.as_text(rows)}' for name, rows in content.tables.items() if len(rows) > 1]
  return '\n\n'.join([*map(plain, words), *shown])


def check_output(output: str) -> None:
  """Check, before anything is computed, that a report in this folder would not overwrite something else.

  Raises:
    UserError: it has no name, is a run folder, or its tensorboard/ is not the log of a comparison.
  """
  folder = output.rstrip('/')
  if not folder:
    raise UserError(f'--output={output} names no folder for the report: choose one, as --output=runs/comparison')
  try:
    for name in _OF_A_RUN:
      if tf.io.gfile.exists(f'{folder}/{name}'):
        raise UserError(f'--output={output} is a run folder, since it holds {name}: a report there would replace the '
                        f'TensorBoard log of the run; choose another folder, as --output={folder}/comparison')
    tensorboard_log.check(f'{folder}/tensorboard')
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'--output={output} cannot be read: {in_one_line(error)}; choose another folder') from error


def check_options(margin: float, seed_spread: float | None) -> None:
  """Check arguments of `compare`.

  Raises:
    UserError: one is out of range.
  """
  if not 0 <= margin <= LARGEST_MARGIN:
    raise UserError(f'--margin={margin:g} must not be negative, nor above {LARGEST_MARGIN:g} points of AP: detectors '
                    'that far apart are not equal (0.5 is half a point)')
  if seed_spread is not None and not 0 <= seed_spread <= 100:
    raise UserError(f'--seed_spread={seed_spread} must lie between 0 and 100 points')


def _check_draws(confidence: float, draws: int) -> None:
  if not (0 < confidence < 1 and draws >= 10):
    raise UserError(f'--confidence={confidence} must lie between 0 and 1, and --draws={draws} be at least 10')
  if draws < _FEW_DRAWS:  # a variance has the relative standard error √(2 / (draws - 1))
    logging.warning('--draws=%d: other draws would make the intervals wider or narrower by about %.0f %%; use %d or '
                    'more', draws, 100 / math.sqrt(2 * (draws - 1)), _FEW_DRAWS)


def noise(run_folders: Sequence[str], metric: str | None = None, draws: int = 200) -> Noise | None:
  """Return the noise behind the first verdict on some runs, None if it cannot be measured.

  Raises:
    UserError: a folder is not a run folder or has no evaluation.
  """
  runs = copies.independent(_complete(read_runs(run_folders)))
  if not runs:
    return None
  metric = common_metric(runs, metric)
  differences = Differences(runs, metric, matches_reader(runs, metric), draws)
  for group in groups.groups(runs):
    scratch, pretrained = (groups.sides(group, init) for init in (SCRATCH, PRETRAINED))
    if scratch and pretrained and differences.between(scratch[-1], pretrained[-1]) is not None:
      spreads = differences.spreads(scratch[-1], pretrained[-1])
      if spreads is not None:
        return Noise.measured(*map(differences.scores, (scratch[-1], pretrained[-1])), spreads,
                              differences.held_out(scratch[-1]))
  return None


def _complete(runs: Sequence[Run]) -> list[Run]:
  """Return the runs that count for a verdict: those trained to the end of their schedule."""
  return [run for run in runs if run.complete]


def common_metric(runs: Sequence[Run], metric: str | None) -> str:
  """Return the metric to compare by, the first run's main one unless it is given.

  Raises:
    UserError: a run lacks it.
  """
  metric = metric or runs[0].main_metric
  lacking = [run for run in runs if not np.isfinite(run.final(metric))]
  if lacking:
    name = f'{lacking[0].name} has no {metric} in its last evaluation'
    if metric in lacking[0].curve.metrics:
      raise UserError(f'{name}, of step {lacking[0].curve.steps[-1]:,}, though in an earlier one: {NOT_FINITE}')
    common = sorted(one for one in runs[0].curve.metrics if all(np.isfinite(run.final(one)) for run in runs))
    available = [one for one in common if one.endswith(('AP', 'top-1'))
                 or not one.startswith(('box/', 'mask/', 'keypoint/', 'voc/', 'top-'))][:8]  # of the users' own
    if not available:
      raise UserError(f'{name}, and the runs have no metric in common: compare detectors with detectors, and '
                      'classifiers with classifiers; an evaluator of your own has other metrics')
    raise UserError(f'{name}: choose a metric that all runs have with --metric (available: {", ".join(available)})')
  return metric


def matches_reader(runs: Sequence[Run], metric: str) -> SavedMatches:
  """Return the matches of the runs' last evaluations, each read, and logged, when first needed."""
  by_name = {run.name: run for run in runs}
  started, done = time.monotonic(), 0

  def read(name: str) -> Scored | None:
    nonlocal done
    log_next('matching the detections', name, done, len(runs), time.monotonic() - started)
    run = by_name[name]
    found = matching.read_matches(run.folder, metric, int(run.curve.steps[-1]))
    done += 1
    return found

  return SavedMatches(read, metric)


def _runs_table(runs: Sequence[Run], exact: bool = False) -> tables.Table:
  """Return the table of runs with a last column of published results. exact: for a file."""
  shown = [name for name in TABLE_METRICS if any(np.isfinite(run.final(name)) for run in runs)]
  header, *rows = tables.runs_table(runs, shown, exact)
  return [[*header, 'published'],
          *([*row, published.published_result(run.folder) or '-'] for run, row in zip(runs, rows, strict=True))]


def _answers(runs: Sequence[Run], verdicts: Sequence[verdict.Verdict], margin: float) -> list[page.Answer]:
  """Return the verdicts for the page; with several groups, each names its settings."""
  kinds = {verdict.SCRATCH_SUFFICES: 'scratch', verdict.PRETRAIN: 'pretrain', verdict.OPEN: 'open'}
  about = groups.labels_by_key(runs)
  return [page.Answer(kinds[one.answer], one.headline, one.words, one.cost,
                      plots.render({'': plots.answer(one, margin)}, 'svg')[''], plots.describe(one, margin),
                      about[one.pretrained.runs[0].twin_key]) for one in verdicts]


def _without_verdict(runs: Sequence[Run], metric: str) -> page.Answer:
  """Explain why there is no verdict."""
  inits = {run.init for run in runs}
  chart = plots.render({'': plots.end_points(_complete(runs) or runs, metric)}, 'svg')['']
  caption = f'{metric_name(metric)} at the end of each run, in percent: ' + ', '.join(
    f'{run.name} {run.final(metric):.1f}' for run in runs)
  begun = sum(not run.complete for run in runs)
  if begun:
    return page.Answer('open', f'Cannot tell yet: {begun} of {len(runs)} runs are not complete',
                       'No verdict counts a run that is not at the end of its schedule: the command that began it, or '
                       'its study, continues it.', chart=chart, caption=caption)
  if len(inits) == 1:
    own = inits.pop()
    other = PRETRAINED if own == SCRATCH else SCRATCH
    return page.Answer('open', f'Cannot tell: no run is {other}', f'All runs are {own}: to learn whether pre-training '
                       f'pays, add a run that is {other} and otherwise the same.', chart=chart, caption=caption)
  return page.Answer('open', 'Cannot tell: the sides differ in more than pre-training',
                     'No verdict: the scratch and the pre-trained runs differ in more than initial weights, schedule '
                     'and seed; the settings that differ are listed below.', chart=chart, caption=caption)


def _facts(runs: Sequence[Run], differences: Differences) -> list[tuple[str, str]]:
  """Return the facts behind the answers: data, held-out images and objects, seeds, instances seen, date."""
  facts = [('Data', ', '.join(sorted({run.data for run in runs})))]
  alone = [Side(run.schedule, (run,)) for run in runs]
  for name, count in (('Held-out images', differences.num_images), ('Held-out objects', differences.num_objects)):
    counts = sorted({number for side in alone if (number := count(side)) is not None})
    if counts:
      facts.append((name, ' or '.join(f'{number:,}' for number in counts)))
  seeds = []
  for init in (SCRATCH, PRETRAINED):
    counts = [len(side.runs) for group in groups.groups(runs) for side in groups.sides(group, init)]
    if counts:
      seeds.append((str(min(counts)) if min(counts) == max(counts) else f'{min(counts)} to {max(counts)}') + f' {init}')
  facts.append(('Seeds a schedule', ', '.join(seeds)))
  if weights := sorted({run.weights_name for run in runs if run.init == PRETRAINED}):
    facts.append(('Pre-training', ', '.join(weights)))
  if (instances := max(run.seen.instances for run in runs)) > 0:
    facts.append(('Instances seen in training', f'up to {instances:,.0f}'))
  dates = [run.date for run in runs if run.date]
  return facts + ([('Evaluated', max(dates))] if dates else [])


def _cautions(runs: Sequence[Run]) -> list[str]:
  """Return what readers must know about the runs besides the answers."""
  begun = [f'{run.name}: its last evaluation is of step {run.curve.steps[-1]:,} {_of_planned(run)}: no verdict counts '
           'it.' for run in runs if not run.complete]
  names: dict[str, list[str]] = {}
  for run in runs:
    for note in run.notes:
      names.setdefault(note, []).append(run.name)
  noted = [f'{"All runs" if len(those) == len(runs) > 1 else ", ".join(those)}: {note}.'
           for note, those in names.items()]
  repeated = list(map(str, copies.found(_complete(runs))))
  return (begun + repeated + noted + same_data.differences(runs) + provenance.held_out(runs) + provenance.changes(runs)
          + provenance.weights(runs) + provenance.statistics(runs))


def _of_planned(run: Run) -> str:
  if run.curve.steps[-1] < run.planned:
    return f'of {run.planned:,}'
  return f'and its schedule ends at {run.planned:,}, since it was made shorter than what had been trained'


def _title(runs: Sequence[Run], metric: str) -> str:
  """Return the title of the page."""
  inits = {run.init for run in runs}
  what = 'Scratch or pre-training' if len(inits) > 1 else f'Runs that are all {min(inits)}'
  return f'{what}: {metric_name(metric)} on {", ".join(sorted({run.data for run in runs}))}'


def _drawn(answers: Sequence[page.Answer], verdicts: Sequence[verdict.Verdict],
           matches: SavedMatches) -> list[page.Drawn]:
  """Return predictions of both sides of the first verdict: its scratch schedule, and the best other side.

  [] if the sides were scored against different ground truth, of which only one could be shown.
  """
  sides = [side for one in verdicts[:1] for side in ((one.caught_up or one.steps[-1]).side, one.pretrained)]
  if len({truth for side in sides if (truth := matches.truth(side.runs[0]))}) > 1:
    return []
  found = predictions.on_same_images({groups.in_group(side.name, answers[0].about): side.runs[0] for side in sides})
  return [page.Drawn(*one) for one in found]


def _legend(runs: Sequence[Run]) -> list[page.Line]:
  colours, markers, styles = plots.colours(runs), plots.markers(runs), plots.styles(runs)
  return [page.Line(label, colours[side.runs[0].name], styles[side.runs[0].name].dashes, markers[side.runs[0].name])
          for label, side in groups.labelled_sides(runs)]


def _notes(runs: Sequence[Run], verdicts: Sequence[verdict.Verdict], confidence: float) -> list[str]:
  notes = ['Intervals: paired bootstrap over the held-out images and the spread between seeds of each side, pooled '
           'over the schedules of its initial weights (Student, Satterthwaite). Pixels are those of the resized images '
           'without padding; compute is proportional to them (Fig. 2 of the paper).']
  if len(verdicts) > 1:
    notes.append(f'Each of the {len(verdicts)} answers holds with {percent(confidence)} confidence by itself: that at '
                 'least one of them is wrong is more likely than that any single one is.')
  notes += pretraining_seeds.described(runs)
  return notes + sorted({f'Pre-training: {run.pretraining_source}.' for run in runs if run.pretraining_source})


def _write(output: str, runs: Sequence[Run], metric: str, content: page.Content,
           objects: Mapping[str, int] | None, cure: str) -> str:
  """Write all files of the report; return the path of the page. objects: held-out ones by size. cure: of an error."""
  output = output.rstrip('/')
  by_name = {f'{metric} against what was seen': plots.curves(runs, metric),
             f'{metric} by schedule': plots.end_points(_complete(runs) or runs, metric),
             'AP by size': plots.by_size(runs, metric, objects), 'losses': plots.losses(runs)}
  drawn = {name: fig for name, fig in by_name.items() if fig is not None}
  rendered = {kind: plots.render(drawn, kind) for kind in ('png', 'svg')}
  data = {f'{_file_name(name)}.{kind}': images.get(name)  # None: that of earlier runs is removed
          for kind, images in rendered.items() for name in by_name}
  data['index.html'] = page.page(content).encode()
  data['runs.csv'] = files.as_csv(_runs_table(runs, exact=True))
  data['curves.csv'] = files.as_csv(tables.curves_table(runs))
  try:
    with tensorboard_log.replacing(f'{output}/tensorboard') as log:
      tensorboard_log.write(runs, metric, log)
      files.write_outputs(output, data, cure)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{output}/tensorboard: cannot be written: {in_one_line(error)}; {cure}') from error
  return f'{output}/index.html'


def _file_name(name: str) -> str:
  return ''.join(c if c.isalnum() else '_' for c in name)
