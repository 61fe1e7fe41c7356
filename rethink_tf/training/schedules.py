"""Learning-rate schedules: the paper's k× rule (section 4), and epochs for pre-training (Goyal et al. 2017).

A k× schedule has k·90k iterations of 16 images. For every k >= 2 the rate drops by a factor of 10 at 60k and 20k
iterations before the end: the two low-rate phases have the same length in all schedules, and only the first one grows.
1× is the exception: 60k / 80k of 90k. A batch of B images scales the rate by B/16 and all iterations by 16/B; the
warm-up keeps its length.
"""

from __future__ import annotations

import abc
from collections.abc import Sequence
from typing import Any, NamedTuple

import gin
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError, check_at_least, check_fractions, check_positive

PAPER_BATCH = 16
PAPER_UNIT = 90_000  # iterations of 1×


class SchedulePoints(NamedTuple):
  """Iterations at which the rate drops, and the total number of iterations."""

  first_drop: int
  second_drop: int
  end: int


def schedule_points(k: float, batch_size: int = PAPER_BATCH, unit: float = PAPER_UNIT) -> SchedulePoints:
  """Return drops and end of the k× schedule (section 4), in iterations of `batch_size` images.

  unit: length of 1× at batch 16. For k >= 2 the drops are 2/3 and 2/9 of it before the end (the paper's 60k and 20k of
  90k), below k/3 and k/9, which is the paper's 1× at k = 1 and equals the rule at k = 2.

  Raises:
    UserError: k, batch_size or unit is not positive, or the schedule is shorter than one iteration.
  """
  if not (k > 0 and batch_size > 0 and unit > 0):
    raise UserError(f'schedule: k = {k}, batch_size = {batch_size} and unit = {unit} must be positive')
  iterations = unit * PAPER_BATCH / batch_size  # of 1×, at this batch
  end, tail = k * iterations, min(k, 2) * iterations
  points = SchedulePoints(round(end - tail / 3), round(end - tail / 9), round(end))
  if points.end < 1:
    raise UserError(f'schedule: k = {k} with unit = {unit} is less than one iteration of {batch_size} images')
  return points


class _Stepwise(tf_keras.optimizers.schedules.LearningRateSchedule, abc.ABC):
  """Base class of the schedules: rates that are constant between drops, after a linear warm-up."""

  _config: dict[str, Any]
  _drops: Sequence[int]
  _rates: Sequence[float]  # before, between and after the drops
  _warmup_steps: int

  def __call__(self, step: int | tf.Tensor) -> tf.Tensor:
    """Return the rate at iteration `step` (from 0), float32 scalar."""
    step = tf.cast(step, tf.int64)  # float32 cannot count past 16.7 M
    drops = tf.reduce_sum(tf.cast(step >= tf.constant(self._drops, tf.int64), tf.int32))
    rate = tf.gather(tf.constant(self._rates, tf.float32), drops)
    if not self._warmup_steps:
      return rate
    progress = tf.minimum(tf.cast(step, tf.float32) / self._warmup_steps, 1.)
    return self._warmed_up(rate, progress)

  @abc.abstractmethod
  def _warmed_up(self, rate: tf.Tensor, progress: tf.Tensor) -> tf.Tensor:
    """Return the rate at `progress`, the completed fraction of the warm-up; at 1, `rate` itself."""

  @property
  def changes(self) -> list[int]:
    """The steps at which the rate changes: each one of the warm-up, then the drops."""
    return sorted({*range(self._warmup_steps + 1), *self._drops})

  def get_config(self) -> dict[str, Any]:
    return dict(self._config)


@gin.register
class KTimesSchedule(_Stepwise):
  """The k× learning rate (section 4): linear warm-up, then divided by 10 at each drop.

  The rate of iteration s (from 0) is base_rate·B/16 · decay_factor^(drops at or before s); during the first
  `warmup_steps` it rises linearly from `warmup_factor` of that.
  boundaries, total: drops and end that replace the k× points (k is then unused). They count iterations of `batch_size`,
  or, with `points_batch`, iterations of that many images, scaled by points_batch/B and unit/90k as the k× points are.
  num_images: size of the training set, which every schedule receives; unused: the schedule counts iterations whatever
  fraction of the data is trained on (section 5.2).
  warmup_limit: longest warm-up, as a fraction of the first phase, for schedules of any length (laptop.gin).
  stop_k: end of the run in units of 1×, with the rates of the whole schedule; another run can continue from it.

  Raises:
    UserError: a rate or factor is out of range, the warm-up does not end before the first drop, or the points are not
      increasing within `total`.
  """

  def __init__(
    self,
    k: float = 1,
    batch_size: int = PAPER_BATCH,
    base_rate: float = 0.02,
    unit: float = PAPER_UNIT,
    decay_factor: float = 0.1,
    warmup_steps: int = 500,
    warmup_factor: float = 1 / 3,
    boundaries: Sequence[int] | None = None,
    total: int | None = None,
    points_batch: int | None = None,
    num_images: int | None = None,
    stop_k: float | None = None,
    warmup_limit: float | None = None,
  ):
    super().__init__()
    del num_images
    if (boundaries is None) != (total is None):
      raise UserError('KTimesSchedule: boundaries and total go together: give both or neither')
    check_positive('KTimesSchedule', base_rate=base_rate)
    check_at_least('KTimesSchedule', 0, warmup_steps=warmup_steps)
    check_fractions('KTimesSchedule', decay_factor=decay_factor, warmup_factor=warmup_factor)
    self._config = {
      'k': k, 'batch_size': batch_size, 'base_rate': base_rate, 'unit': unit, 'decay_factor': decay_factor,
      'warmup_steps': warmup_steps, 'warmup_factor': warmup_factor,
      'boundaries': None if boundaries is None else list(boundaries), 'total': total, 'points_batch': points_batch,
      'stop_k': stop_k, 'warmup_limit': warmup_limit,
    }
    if boundaries is None:
      self.points = schedule_points(k, batch_size, unit)
    else:
      scale = 1 if points_batch is None else points_batch / batch_size * unit / PAPER_UNIT
      self.points = tuple(round(point * scale) for point in (*boundaries, total))
      if not all(0 < a < b for a, b in zip(self.points, self.points[1:], strict=False)) or self.points[-1] < 1:
        raise UserError(f'KTimesSchedule: boundaries {list(boundaries)} must increase and stay below total = {total} '
                        f'(as scaled: {self.points})')
    self.total_steps = self.points[-1]
    if stop_k is not None:
      self.total_steps = round(stop_k * unit * PAPER_BATCH / batch_size)
      if not 1 <= self.total_steps <= self.points[-1]:
        raise UserError(f'KTimesSchedule.stop_k = {stop_k} is outside the schedule, which ends at iteration '
                        f'{self.points[-1]}')
    if warmup_limit is not None:
      if not 0 <= warmup_limit <= 1:
        raise UserError(f'KTimesSchedule.warmup_limit = {warmup_limit} is a fraction of the first phase: use 0 to 1')
      warmup_steps = min(warmup_steps, int(warmup_limit * self.points[0]))
    if warmup_steps > self.points[0]:
      raise UserError(f'KTimesSchedule.warmup_steps = {warmup_steps} is longer than the first phase of the schedule, '
                      f'{self.points[0]} iterations: shorten the warm-up or lengthen the schedule')
    self._warmup_steps, self._warmup_factor = warmup_steps, warmup_factor
    self._drops = self.points[:-1]
    base_rate = base_rate * batch_size / PAPER_BATCH
    self._rates = [base_rate * decay_factor ** drops for drops in range(len(self._drops) + 1)]

  def _warmed_up(self, rate: tf.Tensor, progress: tf.Tensor) -> tf.Tensor:
    return rate * (self._warmup_factor + (1 - self._warmup_factor) * progress)


class _PretrainingSchedule(_Stepwise):
  """Base class of the pre-training schedules: constant rates between drops, a linear warm-up from `_warmup_rate`."""

  def _warmed_up(self, rate: tf.Tensor, progress: tf.Tensor) -> tf.Tensor:
    return rate + (1 - progress) * (self._warmup_rate - rate)


@gin.register
class EpochSchedule(_PretrainingSchedule):
  """Epochs with linear scaling, gradual warm-up and step decay (Goyal et al. 2017, sections 2.1, 2.2 and 5.1).

  With n images and batches of B, an epoch is n/B iterations. The rate is base_rate·B/base_batch, times decay_factor at
  each of `drops`. In the first `warmup_epochs` it rises linearly from `warmup_rate`; None: from base_rate, the rate of
  the unscaled batch, or from the scaled rate if that is lower (no warm-up then).
  ImageNet, ResNet-50: 90 epochs, drops at 30, 60, 80; Detectron's GN models: 100 epochs, drops at 30, 60, 90. Other
  numbers of epochs need their own drops.

  Raises:
    UserError: a value is not positive, drops do not increase within `epochs`, or the warm-up ends after the first drop.
  """

  def __init__(
    self,
    num_images: int,
    batch_size: int = 256,
    epochs: float = 90,
    drops: Sequence[float] = (30, 60, 80),
    decay_factor: float = 0.1,
    base_rate: float = 0.1,
    base_batch: int = 256,
    warmup_epochs: float = 5,
    warmup_rate: float | None = None,
  ):
    super().__init__()
    if not (num_images > 0 and batch_size > 0 and base_batch > 0 and base_rate > 0 and epochs > 0):
      raise UserError(f'EpochSchedule: {num_images} images, batch_size = {batch_size}, base_batch = {base_batch}, '
                      f'base_rate = {base_rate} and epochs = {epochs} must be positive')
    check_fractions('EpochSchedule', decay_factor=decay_factor)
    drops = tuple(drops)
    if not all(a < b for a, b in zip((0, *drops), (*drops, epochs), strict=True)):
      raise UserError(f'EpochSchedule.drops = {drops} must increase and stay below epochs = {epochs}')
    if not 0 <= warmup_epochs <= (*drops, epochs)[0]:
      raise UserError(f'EpochSchedule.warmup_epochs = {warmup_epochs} is negative or longer than the first phase of '
                      f'the schedule, {(*drops, epochs)[0]} epochs')
    self._config = {
      'num_images': num_images, 'batch_size': batch_size, 'epochs': epochs, 'drops': list(drops),
      'decay_factor': decay_factor, 'base_rate': base_rate, 'base_batch': base_batch, 'warmup_epochs': warmup_epochs,
      'warmup_rate': warmup_rate}
    iterations = num_images / batch_size  # of an epoch, not an integer
    self.total_steps = max(1, round(epochs * iterations))
    self._drops = [round(drop * iterations) for drop in drops]
    rate = base_rate * batch_size / base_batch
    self._rates = [rate * decay_factor ** drops for drops in range(len(self._drops) + 1)]
    self._warmup_steps = round(warmup_epochs * iterations)
    self._warmup_rate = min(base_rate, rate) if warmup_rate is None else warmup_rate


@gin.register
class SteppedHalving(_PretrainingSchedule):
  """A length in images, with the rate halved at equal intervals (weakly supervised pre-training, Mahajan et al. 2018).

  `images` are divided into halvings + 1 equal phases, each with half the rate of the one before. The first rate is
  base_rate·B/base_batch (3.15 at their batch of 8,064); over `warmup_images` it rises linearly from base_rate, or from
  the scaled rate if that is lower. Neither the length (between 100 epochs of 1.28M images and 2 of 3.5G) nor the number
  of halvings (10 to 20) nor the warm-up (here Goyal et al.'s five epochs of ImageNet) is published.
  num_images: size of the training set, which every schedule receives; unused.

  Raises:
    UserError: a value is not positive, there are more phases than iterations, or the warm-up is longer than a phase.
  """

  def __init__(
    self,
    images: float = 3.6e9,
    halvings: int = 20,
    batch_size: int = 8064,
    base_rate: float = 0.1,
    base_batch: int = 256,
    warmup_images: float = 5 * 1_281_167,
    num_images: int | None = None,
  ):
    super().__init__()
    del num_images
    positive = all(value > 0 for value in (images, batch_size, base_rate, base_batch))
    if not (positive and halvings >= 0 and warmup_images >= 0):
      raise UserError(f'SteppedHalving: images = {images}, batch_size = {batch_size}, base_rate = {base_rate} and '
                      f'base_batch = {base_batch} must be positive, halvings = {halvings} and warmup_images = '
                      f'{warmup_images} not negative')
    self._config = {'images': images, 'halvings': halvings, 'batch_size': batch_size, 'base_rate': base_rate,
                    'base_batch': base_batch, 'warmup_images': warmup_images}
    self.total_steps = max(1, round(images / batch_size))
    if halvings >= self.total_steps:
      raise UserError(f'SteppedHalving.halvings = {halvings} needs {halvings + 1} phases, but {images:g} images are '
                      f'{self.total_steps} iterations of {batch_size}: lengthen the schedule')
    if warmup_images > images / (halvings + 1):
      raise UserError(f'SteppedHalving.warmup_images = {warmup_images:g} is longer than the first phase of the '
                      f'schedule, {images / (halvings + 1):g} images: shorten the warm-up or lengthen the schedule')
    rate = base_rate * batch_size / base_batch
    self._drops = [round(images / batch_size * phase / (halvings + 1)) for phase in range(1, halvings + 1)]
    self._rates = [rate * 0.5 ** phase for phase in range(halvings + 1)]
    self._warmup_steps = round(warmup_images / batch_size)
    self._warmup_rate = min(base_rate, rate)
