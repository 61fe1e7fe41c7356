"""Learning-rate schedules: the paper's k× rule (section 4).

A k× schedule has k·90k iterations of 16 images. For every k >= 2 the rate falls tenfold 60k and 20k iterations before
the end: the two low-rate phases have the same length in all schedules, and only the first, high-rate one grows. 1× is
the exception: 60k / 80k of 90k. A batch of B images scales the rate by B/16 and all iterations by 16/B; the
warm-up keeps its length.
"""

from collections.abc import Sequence
from typing import NamedTuple

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError

PAPER_BATCH = 16


class SchedulePoints(NamedTuple):
  """Iterations at which the rate falls, and the number of iterations."""

  first_drop: int
  second_drop: int
  end: int


def schedule_points(k: float, batch_size: int = PAPER_BATCH, unit: float = 90_000) -> SchedulePoints:
  """Drops and end of the k× schedule (section 4), in iterations of `batch_size` images.

  `unit` is the length of 1× at batch 16. The low-rate phases end-first_drop and end-second_drop are 2/3 and 2/9 of it
  (the paper's 60k and 20k of 90k) for k >= 2, and k/3 and k/9 below, which is the paper's 1× at k = 1 and
  meets the rule at k = 2.

  Raises:
    UserError: k, batch_size or unit is not positive, or less than one iteration is left.
  """
  if not (k > 0 and batch_size > 0 and unit > 0):
    raise UserError(f'schedule: k = {k}, batch_size = {batch_size} and unit = {unit} must be positive')
  iterations = unit * PAPER_BATCH / batch_size  # of 1×, at this batch
  end, tail = k * iterations, min(k, 2) * iterations
  points = SchedulePoints(round(end - tail / 3), round(end - tail / 9), round(end))
  if points.end < 1:
    raise UserError(f'schedule: k = {k} with unit = {unit} is less than one iteration of {batch_size} images')
  return points


@gin.register
class KTimesSchedule(tf_keras.optimizers.schedules.LearningRateSchedule):
  """The k× learning rate (section 4): linear warm-up, then divided by 10 at each drop.

  The rate of iteration s (from 0) is base_rate·B/16 · decay_factor^(drops at or before s); during the first
  `warmup_steps` it also rises linearly from `warmup_factor` of that. `boundaries` with `total` replace
  the k× points by any others (k and unit are then unused); both count iterations at `batch_size` as it is.

  Raises:
    UserError: the warm-up does not end before the first drop, or the points are not increasing within `total`.
  """

  def __init__(
    self,
    k: float = 1,
    batch_size: int = PAPER_BATCH,
    base_rate: float = 0.02,
    unit: float = 90_000,
    decay_factor: float = 0.1,
    warmup_steps: int = 500,
    warmup_factor: float = 1 / 3,
    boundaries: Sequence[int] | None = None,
    total: int | None = None,
  ):
    super().__init__()
    if (boundaries is None) != (total is None):
      raise UserError('KTimesSchedule: boundaries and total go together: give both or neither')
    self._config = {
      'k': k, 'batch_size': batch_size, 'base_rate': base_rate, 'unit': unit, 'decay_factor': decay_factor,
      'warmup_steps': warmup_steps, 'warmup_factor': warmup_factor,
      'boundaries': None if boundaries is None else list(boundaries), 'total': total,
    }
    if boundaries is None:
      self.points = schedule_points(k, batch_size, unit)
    else:
      self.points = (*(int(boundary) for boundary in boundaries), int(total))
      if not all(0 < a < b for a, b in zip(self.points, self.points[1:], strict=False)) or self.points[-1] < 1:
        raise UserError(f'KTimesSchedule: boundaries {list(boundaries)} must increase and stay below total = {total}')
    self.total_steps = self.points[-1]
    if warmup_steps > self.points[0]:
      raise UserError(f'KTimesSchedule.warmup_steps = {warmup_steps} is longer than the first phase of the schedule, '
                      f'{self.points[0]} iterations: shorten the warm-up or lengthen the schedule')
    self._warmup_steps, self._warmup_factor = warmup_steps, warmup_factor
    self._drops = self.points[:-1]
    base_rate = base_rate * batch_size / PAPER_BATCH
    self._rates = [base_rate * decay_factor ** drops for drops in range(len(self._drops) + 1)]

  def __call__(self, step) -> tf.Tensor:
    """The rate at iteration `step` (from 0), float32 scalar."""
    step = tf.cast(step, tf.int64)  # float32 cannot count past 16.7 M
    drops = tf.reduce_sum(tf.cast(step >= tf.constant(self._drops, tf.int64), tf.int32))
    rate = tf.gather(tf.constant(self._rates, tf.float32), drops)
    if not self._warmup_steps:
      return rate
    progress = tf.minimum(tf.cast(step, tf.float32) / self._warmup_steps, 1.)
    return rate * (self._warmup_factor + (1 - self._warmup_factor) * progress)

  def get_config(self):
    return dict(self._config)
