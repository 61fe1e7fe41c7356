"""Runs whose initial weights come from pre-trainings that differ in nothing but their seed: one arm, not several.

The seeds of such an arm are those of pre-training and of training together, and so is the spread between its runs.
Several runs of one schedule from the same weights would not be independent samples of it: then each weights are an arm.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from rethink_tf.compare.run_summary import Run


def joined(runs: Sequence[Run]) -> list[Run]:
  """Return runs with the name of the arm that several of their initial weights are."""
  by_recipe: dict[str, list[Run]] = collections.defaultdict(list)
  for run in runs:
    if run.recipe:
      by_recipe[run.recipe].append(run)
  names = {recipe: _name(those) for recipe, those in by_recipe.items() if _are_one_arm(those)}
  return [run._replace(seeds_of_weights=names.get(run.recipe, '')) for run in runs]


def described(runs: Sequence[Run]) -> list[str]:
  """Return a sentence for each arm of several initial weights."""
  names = sorted({run.seeds_of_weights for run in runs if run.seeds_of_weights})
  return [f'{name}: pre-trainings that differ in their seed alone are one arm; its spread between seeds is of both.'
          for name in names]


def _are_one_arm(runs: Sequence[Run]) -> bool:
  different = {(run.twin_key, run.schedule, run.planned_drops, run.weights_seeds, run.seed) for run in runs}
  used = collections.Counter(key[:-1] for key in different)
  return len({run.weights_seeds for run in runs}) > 1 and max(used.values()) == 1


def _name(runs: Sequence[Run]) -> str:
  names = sorted({run.weights_name for run in runs})
  return ', '.join(names) if len(names) < 4 else f'{names[0]}, ... {names[-1]} ({len(names)} seeds)'
