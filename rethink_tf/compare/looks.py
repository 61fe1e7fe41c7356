"""Records the looks taken at a study that may stop early, so that a restart does not get a look for free.

The record is in the folder of the study and in each run that was looked at, since runs may be moved or copied.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from rethink_tf.compare import sequential
from rethink_tf.compare.sequential import Look
from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError
from rethink_tf.storage import files

FILE = 'looks.json'
AGAIN = 'mend that and run the same command again: runs that are complete are not trained again'


class Taken(NamedTuple):
  """A look that was taken."""

  seeds: int
  scores: Mapping[str, float]  # name of a run folder -> metric in percent
  more: tuple[str, ...] | None  # run folders of which further seeds are needed; None: not concluded yet

  def as_json(self) -> dict[str, Any]:
    return {'seeds': self.seeds, 'scores': dict(self.scores), 'more': None if self.more is None else list(self.more)}


class Record(NamedTuple):
  """Content of looks.json."""

  max_seeds: int
  taken: tuple[Taken, ...] = ()
  before: int = 0  # seeds with which the runs were compared before the first look, 0: they were not
  metric: str | None = None  # that was asked for; None: the main one of the runs

  @property
  def look(self) -> Look | None:
    """The latest look."""
    return Look(self.taken[-1].seeds, self.max_seeds) if self.taken else None

  def is_of(self, other: Record) -> bool:
    """Whether two records are of the same study, judged by the plan and the scores at the first look."""
    return (self.max_seeds, self.metric, self.taken[0].scores) == (other.max_seeds, other.metric, other.taken[0].scores)

  def at(self, seeds: int) -> Taken | None:
    """Return the look that was taken with a number of seeds, None if there was none."""
    return next((one for one in self.taken if one.seeds == seeds), None)

  def with_look(self, taken: Taken) -> Record:
    """Return the record with another look, which replaces the latest one if that has the same number of seeds."""
    return self._replace(taken=(*(one for one in self.taken if one.seeds != taken.seeds), taken))


def read(folder: str) -> Record | None:
  """Read the record in the folder of a study, None if there is none.

  Raises:
    UserError: it is damaged.
  """
  return _parsed(folder)[0]


def _parsed(folder: str) -> tuple[Record | None, str]:
  """Return the record in the folder of a study or of a run, and the study folder that a run's record names."""
  path = os.path.join(folder, FILE)
  if not tf.io.gfile.exists(path):
    return None, ''
  try:
    content = load_json(path)
    looks = [Taken(int(one['seeds']), {str(name): float(score) for name, score in one['scores'].items()},
                   None if one['more'] is None else tuple(map(str, one['more']))) for one in content['looks']]
    metric = content.get('metric')  # records of earlier versions have none
    record = Record(int(content['max_seeds']), tuple(looks), int(content['compared_before']),
                    None if metric is None else str(metric))
  except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
    raise UserError(f'{path}: not a record of looks: restore it, or choose another --output') from error
  counts = [one.seeds for one in looks]
  ends = [sequential.FIRST, *counts, record.max_seeds, sequential.MOST]
  if ends != sorted(ends) or len(set(counts)) < len(counts):
    raise UserError(f'{path}: "seeds" must ascend from {sequential.FIRST} to max_seeds, which is at most '
                    f'{sequential.MOST}: restore it, or choose another --output')
  return record, str(content.get('study', ''))


def write(folder: str, record: Record, run_folders: Sequence[str] = ()) -> None:
  """Write the record of a study, atomically, also to the runs that are looked at."""
  content = {'max_seeds': record.max_seeds, 'compared_before': record.before, 'metric': record.metric,
             'looks': [one.as_json() for one in record.taken]}
  files.write_output(os.path.join(folder, FILE), json.dumps(content, indent=2).encode(), AGAIN)
  content['study'] = folder if '://' in folder else os.path.realpath(folder)
  for run_folder in run_folders:
    earlier = read(run_folder)
    if earlier is not None and earlier.taken and not earlier.is_of(record):
      continue  # of another study, from which it was moved: its looks are not undone
    files.write_output(os.path.join(run_folder, FILE), json.dumps(content, indent=2).encode(), AGAIN)


class Studies(NamedTuple):
  """The studies, by folder, that some runs belong to and at which looks were taken."""

  records: Mapping[str, Record]
  runs: int  # number of runs that are of one of them
  others: int  # number of the other runs

  @property
  def strictest(self) -> Record | None:
    """The record whose latest look has the widest intervals, None without any study."""
    return min(self.records.values(), key=lambda record: record.look.tail(0.95), default=None)


def of_runs(run_folders: Sequence[str]) -> Studies:
  """Return the studies that run folders belong to, also by a link, or by what a run has recorded that was moved.

  A run from elsewhere does not undo their looks.

  Raises:
    UserError: a record is damaged.
  """
  found: dict[str, Record | None] = {}
  recorded: list[tuple[str, Record]] = []
  runs = 0
  for path in run_folders:
    parents = _parents(path)
    found |= {folder: read(folder) for folder in parents if folder not in found}
    own, study = _parsed(os.path.expanduser(path))
    if own is not None and own.taken:
      recorded.append((study or path, own))
    runs += own is not None and bool(own.taken) or any(
      found[folder] is not None and found[folder].taken for folder in parents)
  records = {folder: record for folder, record in found.items() if record is not None and record.taken}
  # Of runs of one study the one that was looked at last; the study may have been moved with them.
  for study, own in sorted(recorded, key=lambda one: -len(one[1].taken)):
    if not any(record.is_of(own) for record in records.values()):
      records[study if study not in records else f'{study}, another one'] = own
  return Studies(records, runs, len(run_folders) - runs)


def _parents(run_folder: str) -> set[str]:
  """Return the parent of a run folder and, if the run folder is a link, the parent of its target."""
  if '://' in run_folder:
    return {os.path.dirname(run_folder.rstrip('/'))}
  path = os.path.abspath(os.path.expanduser(run_folder))
  return {os.path.realpath(os.path.dirname(path)), os.path.dirname(os.path.realpath(path))}


def described(record: Record) -> str:
  """Describe the latest look for the list of facts on the page."""
  look = record.look
  return f'look {look.number} of at most {look.planned}, after {look.seeds} of at most {look.max_seeds} seeds'


def cautions(studies: Studies) -> list[str]:
  """Return notes on looks that were not planned, one line each."""
  lines = [f'The runs were compared with {record.before} seeds before this study began to look at them: the error rate '
           'of that comparison, 5 %, comes on top of the 5 % of all looks together.'
           for record in studies.records.values() if record.before]
  if studies.records and (studies.others or len(studies.records) > 1):
    which = ', '.join(sorted(studies.records))
    lines.append(f'{studies.runs} of {studies.runs + studies.others} runs are of studies that stop early ({which}): '
                 'all intervals are widened as at the strictest of their latest looks.')
  return lines


def check_scores(folder: str, record: Record, scores: Mapping[str, float]) -> None:
  """Check that the runs of earlier looks are still what they were.

  Raises:
    UserError: a run has another score: it was trained or evaluated again, and a look at it would be one more.
  """
  for taken in record.taken:
    for name, was in taken.scores.items():
      if name in scores and not abs(scores[name] - was) < 1e-6:
        raise UserError(f'{os.path.join(folder, FILE)}: {name} had {was:.4f} at an earlier look and has '
                        f'{scores[name]:.4f} now: a run that was trained or evaluated again is a new study: choose '
                        'another --output')
