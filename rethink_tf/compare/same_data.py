"""Whether the runs of a comparison were trained on the same classes and data and evaluated on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rethink_tf.compare import data_sets
from rethink_tf.compare.matching import SavedMatches
from rethink_tf.compare.run_summary import Run, metric_name
from rethink_tf.console import told_apart
from rethink_tf.data import digest
from rethink_tf.storage import identity
from rethink_tf.storage.identity import Identity
from rethink_tf.storage.settings import SCORED_OTHERWISE


def differences(runs: Sequence[Run]) -> list[str]:
  """Return a warning for each run whose classes, training data or held-out data differ from the first run's.

  Of runs on several data sets, which have a verdict for each, the first one of the same data set. Training data is
  compared with that of the first run of the same settings: a folder may have changed in between.

  Raises:
    UserError: a run's identity.json is damaged.
  """
  recorded = [(run, identity.read(run.folder)) for run in runs]
  first: dict[Any, tuple[Run, Identity]] = {}  # of each data set
  found = []
  for run, own in recorded:
    if own is not None:
      of_data_set = first.setdefault(run.settings.get(data_sets.SETTING), (run, own))
      found += _other_classes(run, own, *of_data_set) + _other_held_out(run, own, *of_data_set)
  return found + _other_training(recorded)


def _other_classes(run: Run, own: Identity, first: Run, firsts: Identity) -> list[str]:
  names, expected = ({entry['name'] for entry in one.categories or ()} for one in (own, firsts))
  if not names or not expected or names == expected:
    return []
  only = [f'{sorted(more)[0]!r} only {where}' for more, where in
          ((names - expected, 'there'), (expected - names, f'in {first.name}')) if more]
  return [f'{run.name} has other classes than {first.name} ({", ".join(only)}): their AP is not of the same task.']


def _other_held_out(run: Run, own: Identity, first: Run, firsts: Identity) -> list[str]:
  was, now = (one.data.get('held_out') for one in (firsts, own))
  if not was or not now or not (other := digest.differences(was, now)):
    return []
  return [f'{run.name} was evaluated on other held-out data than {first.name} ({", ".join(other)}): their AP is not of '
          'the same images.']


def _other_training(recorded: Sequence[tuple[Run, Identity | None]]) -> list[str]:
  found = []
  trained: dict[tuple[tuple[str, str], ...], tuple[str, Mapping[str, Any]]] = {}
  for run, own in recorded:
    if own is not None and (now := own.data.get('train')):
      name, was = trained.setdefault(run.twin_key, (run.name, now))
      if other := digest.differences(was, now):
        found.append(f'{run.name} was trained on other data than {name} ({", ".join(other)}), by the same settings: '
                     'what differs between them may be due to it.')
  return found


def scored(runs: Sequence[Run], matches: SavedMatches, metric: str) -> list[str]:
  """Return warnings about saved detections and ground truth that cannot be compared."""
  return _truths(runs, matches) + _other_detections(runs, matches, metric)


def _truths(runs: Sequence[Run], matches: SavedMatches) -> list[str]:
  """Return a warning for runs whose images have the same ids, but different ground truth.

  Data sets that number their images from 1 have ids in common, and annotations change under the same images.
  """
  by_ids: dict[bytes, dict[str, list[str]]] = {}
  for run in runs:
    if (own := matches(run)) is not None:
      by_ids.setdefault(own.image_ids.tobytes(), {}).setdefault(matches.truth(run), []).append(run.name)
  return [f'{"; ".join(", ".join(names) for names in one.values())}: scored {_how(one)}.'
          for one in by_ids.values() if len(one) > 1]


def _how(by_truth: Mapping[str, Sequence[str]]) -> str:
  alone = 'no interval and no verdict compares them; evaluate them'
  if len({truth.partition(f'; {SCORED_OTHERWISE}')[0] for truth in by_truth}) == 1:
    return f'with different settings of the evaluation: {alone} with the same'
  return ('against different ground truth under the same image ids (other boxes, masks, keypoints, crowds, classes or '
          f'sizes of images; or by other limits, sigmas or rules of VOC): {alone} on the same data')


def _other_detections(runs: Sequence[Run], matches: SavedMatches, metric: str) -> list[str]:
  """Return a warning for each run whose saved detections are not those of its last evaluation.

  Files that could not be written, or an evaluation that saves none, leave those of an earlier one of the same step.
  """
  lines = []
  for run in runs:
    if (found := matches.of_another(run)) is not None:
      saved, last = told_apart(found, run.final(metric))
      lines.append(f'{run.name}: its saved detections have {metric_name(metric)} {saved} and its last evaluation '
                   f'{last}: they are of another one, so that no interval and no verdict counts it; evaluate it again.')
  return lines
