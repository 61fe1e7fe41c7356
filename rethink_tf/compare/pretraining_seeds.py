"""Treats pre-trainings that differ only in their seed as one kind of initial weights.

The spread between runs that start from them is then that of pre-training and of training together. If several runs of
a schedule start from the same pre-trained weights, they are not independent samples of that; then the weights of each
pre-training stay a kind of their own.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  from rethink_tf.compare.run_summary import Run


def joined(runs: Sequence[Run]) -> list[Run]:
  """Return the runs, with a common name for initial weights that differ only in the seed of their pre-training."""
  by_recipe: dict[str, list[Run]] = collections.defaultdict(list)
  for run in runs:
    if run.recipe:
      by_recipe[run.recipe].append(run)
  names = {recipe: _name(those) for recipe, those in by_recipe.items() if _are_one_arm(those)}
  return [run._replace(seeds_of_weights=names.get(run.recipe, '')) for run in runs]


def described(runs: Sequence[Run]) -> list[str]:
  """Return a sentence for each set of initial weights that are treated as one."""
  names = sorted({run.seeds_of_weights for run in runs if run.seeds_of_weights})
  return [f'{name}: weights whose pre-training differs only in its seed count as one arm; its spread between seeds '
          'includes that of pre-training.'
          for name in names]


def _are_one_arm(runs: Sequence[Run]) -> bool:
  different = {(run.twin_key, run.schedule, run.planned_drops, run.weights_seeds, run.seed) for run in runs}
  used = collections.Counter(key[:-1] for key in different)
  return len({run.weights_seeds for run in runs}) > 1 and max(used.values()) == 1


def _name(runs: Sequence[Run]) -> str:
  names = sorted({run.weights_name for run in runs})
  return ', '.join(names) if len(names) < 4 else f'{names[0]}, ... {names[-1]} ({len(names)} seeds)'
