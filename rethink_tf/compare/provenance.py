"""What a run's settings do not show: earlier settings, software, hardware, initial weights, failed seeds."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.compare.groups import by_arm, groups, labels_by_key, sides
from rethink_tf.compare.run_summary import PRETRAINED, SCRATCH, Run, metric_name
from rethink_tf.console import counted
from rethink_tf.data import digest
from rethink_tf.errors import plain
from rethink_tf.storage import identity
from rethink_tf.storage.settings import LENGTH, MEANING, Change, kind_of, listed
from rethink_tf.structures import Devices
from rethink_tf.training import seen_images
from rethink_tf.weights import costs

_PACKAGES = ('rethink_tf', 'tensorflow', 'tf_keras')
_FAR = 5.0  # points of AP


class Differing(NamedTuple):
  """A kind of software or hardware that differs between runs."""

  cautions: list[str]  # what tells one side from the other
  notes: list[str]


def far_below(runs: Sequence[Run], metric: str) -> list[str]:
  """Return a warning for each run whose metric is far below that of all other seeds of its side.

  Such a run still counts: leaving out what failed would flatter a side.
  """
  lines = []
  for side in (side for group in groups(runs) for init in (SCRATCH, PRETRAINED) for side in sides(group, init)):
    scores = sorted((run.final(metric), run.name) for run in side.runs)
    if len(scores) > 1 and scores[0][0] < min(scores[1][0] / 2, scores[1][0] - _FAR):
      others = dict.fromkeys(f'{scores[i][0]:.1f}' for i in (1, -1))
      lines.append(f'{scores[0][1]}: {metric_name(metric)} {scores[0][0]:.1f}, where other seeds of {side.name} have '
                   f'{" to ".join(others)}: look at its losses; training may have diverged. It counts, and makes '
                   'intervals wide: train all seeds with a setting that does not fail, as a longer warm-up.')
  return lines


def changes(runs: Sequence[Run]) -> list[str]:
  """Return a warning for each time that a run was resumed with other settings or other data.

  A schedule that was made longer or shorter while the rate had not dropped yet is the one that the settings tell.

  Raises:
    UserError: a run's identity.json is damaged.
  """
  lines = []
  for run in runs:
    own = identity.read(run.folder)
    for entry in own.history if own is not None else ():
      if isinstance(entry, dict) and type(step := entry.get('step')) is int and step > 0:
        if settings := [change for change in _settings(entry) if _changes_the_run(change, run, step)]:
          lines.append(f'{run.name} was trained with other settings up to step {step} ({listed(settings)}): its '
                       'settings do not describe all of its training.')
        if data := [line for line in _list(entry, 'data') if isinstance(line, str)]:
          lines.append(f'{run.name} was trained on other data up to step {step} ({"; ".join(data)}).')
  return lines


def software(runs: Sequence[Run]) -> Differing:
  """Return the versions of the package, TensorFlow and Keras if they differ between runs."""
  recorded = [_versions(run) for run in runs]
  found, apart = [], []
  for package in _PACKAGES:
    versions = [one.get(package, set()) for one in recorded]
    if len(set().union(*versions)) > 1:
      found.append(f'{package} {_counted(versions, ", ")}')
      apart += [f'{package} {one} and {other}{where}' for one, other, where in _apart(runs, versions, ', ')]
  return Differing(
    [f'Scratch and pre-trained runs were trained with different software ({"; ".join(apart)}): part of their '
     'difference may be due to it.'] if apart else [],
    [f'Software: {"; ".join(found)}.'] if found else [])


def hardware(runs: Sequence[Run]) -> Differing:
  """Return the devices that runs were trained on if they differ; earlier versions did not record them.

  Other hardware rounds differently, so that the same seed gives another result.
  """
  recorded = [{found for record in _starts(run) if isinstance(found := record.get('hardware'), str)} for run in runs]
  if len(set().union(*recorded)) < 2:
    return Differing([], [])
  return Differing(
    [f'Scratch and pre-trained runs{where} were trained on different hardware ({one}; and {other}): part of their '
     'difference may be due to it.' for one, other, where in _apart(runs, recorded, '; ')],
    [f'Hardware: {_counted(recorded, "; ")}.'])


def _counted(recorded: Sequence[set[str]], separator: str) -> str:
  """Join all values, each with the number of runs that have it."""
  counts = collections.Counter(value for one in recorded for value in one)
  return separator.join(f'{value} ({counted(count, "run")})' for value, count in sorted(counts.items()))


def _apart(runs: Sequence[Run], recorded: Sequence[set[str]], separator: str) -> list[tuple[str, str, str]]:
  """Return the values of both sides of a verdict, sorted and joined, if they have none in common, and where that is so.

  Where: the settings and weights of such verdicts in brackets; '' if it is so of all.
  """
  of = {run.name: own for run, own in zip(runs, recorded, strict=True)}
  about, pairs, found = labels_by_key(runs), 0, {}
  for group in groups(runs):
    arms = (by_arm(sides(group, init)).values() for init in (SCRATCH, PRETRAINED))
    for pair in itertools.product(*arms):
      pairs += 1
      one, other = (set().union(*(of[run.name] for side in arm for run in side.runs)) for arm in pair)
      if one and other and not one & other:
        where = ', '.join(dict.fromkeys(filter(None, (*(arm[0].arm for arm in pair), about[group[0].twin_key]))))
        found.setdefault((separator.join(sorted(one)), separator.join(sorted(other))), []).append(where)
  return [(*values, '' if len(where) == pairs else f' ({"; ".join(where)})') for values, where in found.items()]


def weights(runs: Sequence[Run]) -> list[str]:
  """Return a warning for each run that started from another file than an earlier run, though of the same name."""
  lines, first = [], {}
  for run in (run for run in runs if run.init == PRETRAINED and not run.seeds_of_weights):
    found = (costs.read_record(run.folder.join(costs.RECORD)) or {}).get('sha256')
    if isinstance(found, str):
      name, expected = first.setdefault(run.init_key, (run.name, found))
      if found != expected:
        lines.append(f'{run.name} started from other weights than {name}, both named {run.weights_name} (SHA-256 '
                     f'{found[:8]} and {expected[:8]}): they count as one side.')
  return lines


def held_out(runs: Sequence[Run]) -> list[str]:
  """Return a warning for runs that were trained, or whose initial weights were trained, on held-out images.

  As far as it is recorded: of local sets of some thousand images (data/digest.py).

  Raises:
    UserError: a run's identity.json is damaged.
  """
  found: dict[str, list[str]] = {}
  for run in runs:
    data = own.data if (own := identity.read(run.folder)) is not None else {}
    if both := digest.same_images(data.get('train', {}), data.get('held_out', {})):
      words = f'{both} of its training images are held out too (the same files): AP is not that of unseen images'
      found.setdefault(words, []).append(run.name)
    if (seen := seen_images.read(costs.read_record(run.folder.join(costs.RECORD)))) is not None:
      found.setdefault(plain(str(seen)), []).append(run.name)
  return [f'{", ".join(names)}: {words}.' for words, names in found.items()]


def statistics(runs: Sequence[Run]) -> list[str]:
  """Return a warning for each run whose SyncBatchNorm took statistics over another number of images than the rest.

  They depend on the devices; runs of the same settings are compared. Earlier versions did not record them.
  """
  lines, first = [], {}
  for run in (run for run in runs if '@sync_batch_norm' in map(str, run.settings.values())):
    found = sorted({devices.statistics for record in _starts(run)
                    if (devices := Devices.of_start(record)) is not None})
    if found:
      name, expected = first.setdefault(run.twin_key, (run.name, found))
      if len(found) > 1 or found != expected:
        lines.append(f'SyncBatchNorm took its statistics over {_numbers(found)} images in {run.name}'
                     + (f', over {_numbers(expected)} in {name}' if name != run.name else '')
                     + ': part of the difference between runs may be due to it.')
  return lines


def _numbers(found: Sequence[int]) -> str:
  return ' and '.join(map(str, found))


def _settings(entry: Mapping[str, Any]) -> list[Change]:
  """Return the changed settings of a history entry, [] if it is malformed."""
  return [Change(one['name'], one.get('was'), one.get('now'), kind_of(one['name']))
          for one in _list(entry, 'settings') if isinstance(one, dict) and isinstance(one.get('name'), str)]


def _list(entry: Mapping[str, Any], name: str) -> list[Any]:
  found = entry.get(name)
  return found if isinstance(found, list) else []


def _changes_the_run(change: Change, run: Run, step: int) -> bool:
  if change.kind != LENGTH:
    return change.kind == MEANING
  dropped = any(logged <= step for logged in run.logged_drops) or any(drop < step for drop in run.drops)
  return dropped and not change.name.endswith('.stop_k')


def _starts(run: Run) -> list[Mapping[str, Any]]:
  """Return the records of all starts of a run, the latest first."""
  latest = run.folder.read_command()
  return [record for record in (latest, *latest.get('earlier_starts', ())) if isinstance(record, dict)]


def _versions(run: Run) -> dict[str, set[str]]:
  """Return the versions with which a run was trained, by package; a resumed run may have several."""
  found: dict[str, set[str]] = {}
  for record in _starts(run):
    versions = record.get('versions')
    for package in _PACKAGES if isinstance(versions, dict) else ():
      if isinstance(version := versions.get(package), str):
        commit = record.get('git_commit')
        own = package == 'rethink_tf' and isinstance(commit, str)
        found.setdefault(package, set()).add(f'{version} at {_short(commit)}' if own else version)
  return found


def _short(commit: str) -> str:
  revision, plus, changed = commit.partition('+')
  return f'{revision[:7]}{plus}{changed}'
