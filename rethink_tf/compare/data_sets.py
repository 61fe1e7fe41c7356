"""Tells runs on different data sets apart, which differ in nothing but the folder of their data.

Usually the folder is not compared, since the same data may lie elsewhere on another machine. It counts as a setting
only where the data in it is known to differ. Changed data in the same folder is the concern of same_data.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rethink_tf.data import digest
from rethink_tf.storage import identity

if TYPE_CHECKING:
  from rethink_tf.compare.run_summary import Run

SETTING = 'data.folder'  # in the settings of runs on several data sets

Folders = tuple[str, ...]
Summaries = Mapping[str, Mapping[str, Any]]  # by split
# What runs record of the data in a folder, by their settings: some take a part of it.
Recorded = dict[tuple, Summaries]


def told_apart(runs: Sequence[Run]) -> list[Run]:
  """Return the runs, with the folder of their data as a setting if they were trained on several data sets.

  Raises:
    UserError: a run's identity.json is damaged.
  """
  folders = [folders_of(run.settings) for run in runs]
  if len(set(folders)) < 2:
    return list(runs)
  known: dict[Folders, Recorded] = {}
  for run, own in zip(runs, folders, strict=True):
    if (recorded := identity.read(run.folder)) is not None and recorded.data:
      known.setdefault(own, {}).setdefault(run.twin_key, recorded.data)
  first: list[Folders] = []  # of each data set
  of: dict[Folders, Folders] = {}
  for own, data in known.items():
    of[own] = next((one for one in first if _same(known[one], data)), own)
    if of[own] == own:
      first.append(own)
  if len(first) < 2:
    return list(runs)
  names = _names(first)
  return [run if own not in of else run._replace(settings={**run.settings, SETTING: names[of[own]]})
          for run, own in zip(runs, folders, strict=True)]


def folders_of(settings: Mapping[str, Any]) -> Folders:
  """Return the data folders that a configuration names."""
  return tuple(str(settings[name]).rstrip('/') for name in sorted(settings)
               if name.endswith('.data_dir') and settings[name] not in (None, 'None'))


def _same(one: Recorded, other: Recorded) -> bool:
  """Whether two folders hold the same data, as far as runs of the same settings tell; a fraction is no other data.

  Without such runs the held-out data tells.
  """
  pairs = [(one[key], other[key]) for key in one.keys() & other.keys()] or [
    tuple({split: data for split, data in next(iter(each.values())).items() if split == 'held_out'}
          for each in (one, other))]
  return not any(digest.differences(first[split], second[split])
                 for first, second in pairs for split in first.keys() & second.keys())


def _names(folders: Sequence[Folders]) -> dict[Folders, str]:
  """Return short names: the last components of the paths, or the whole paths where those are equal."""
  names = {each: ', '.join(dict.fromkeys(os.path.basename(path) for path in each)) for each in folders}
  return names if len(set(names.values())) == len(names) else {each: ', '.join(dict.fromkeys(each)) for each in folders}
