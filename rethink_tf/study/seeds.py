"""Seeds of a study: its axis of seeds, and studies that add seeds until their question is settled."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import gin

from rethink_tf.compare import sequential
from rethink_tf.errors import UserError

_SEED = re.compile(r'run\.seed\s*=\s*(\d+)')
Axes = Mapping[str, Mapping[str, Sequence[str]]]
NAME = 'seed'  # of the axis, where a study has none


@gin.register
class UntilSettled:
  """A study that trains one seed after the other and stops once its question is settled.

  All runs of the first seed are trained, then all of the second. From then on the runs are compared after each seed, at
  levels that hold the error rate of all these looks together at 5 % (compare/sequential.py).
  """

  def __init__(self, max_seeds: int = 5, every_schedule: bool = False, least_chance: float = 0.05) -> None:
    """Check the arguments.

    Args:
      max_seeds: seeds of each run at most; fixed once the runs have been looked at.
      least_chance: give a verdict up if the seeds that are left settle it with a lower probability (planning.chance);
        0: never. It does not change the error rate.
      every_schedule: also settle *from which* schedule on scratch suffices, not only whether it does.

    Raises:
      UserError: max_seeds or least_chance is out of range.
    """
    if not (isinstance(max_seeds, int) and sequential.FIRST <= max_seeds <= sequential.MOST):
      raise UserError(f'UntilSettled.max_seeds = {max_seeds!r}: use {sequential.FIRST} to {sequential.MOST}')
    if not 0 <= least_chance < 1:
      raise UserError(f'UntilSettled.least_chance = {least_chance!r}: use a probability below 1')
    self.max_seeds, self.every_schedule, self.least_chance = max_seeds, every_schedule, least_chance


def axis_of(axes: Axes) -> str | None:
  """Return the axis whose values bind run.seed and nothing else, None if there is none."""
  return next((axis for axis, values in axes.items() if all(
    len(bindings) == 1 and _SEED.fullmatch(bindings[0].strip()) for bindings in values.values())), None)


def with_seeds(axes: Axes, number: int) -> tuple[Axes, str]:
  """Return the axes with `number` seeds, those of the study first, and the name of the axis of seeds.

  Raises:
    UserError: the study names more seeds.
  """
  axis = axis_of(axes) or NAME
  if axis in axes and axis_of(axes) is None:
    raise UserError(f'Study.axes: {axis} binds more than run.seed: rename it for a study with Study.until_settled')
  values = dict(axes.get(axis, {}))
  if len(values) > number:
    raise UserError(f'Study.axes: {axis} has {len(values)} values and UntilSettled.max_seeds is {number}: raise it')
  used = {int(_SEED.fullmatch(bindings[0].strip()).group(1)) for bindings in values.values()}
  free = (seed for seed in range(2 * sequential.MOST) if seed not in used and f'seed{seed}' not in values)
  while len(values) < number:
    seed = next(free)
    values[f'seed{seed}'] = (f'run.seed = {seed}',)
  return {**axes, axis: values}, axis
