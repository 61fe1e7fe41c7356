"""Callbacks of `fit`: progress and metrics, samples seen (Fig. 2), the stop at a non-finite loss, checkpoints.

Order in `fit(callbacks=...)`: StopOnNonFinite before the rest, ProgressAndMetrics before SaveCheckpoints. All count the
optimizer's iterations, so that a resumed run continues them. `logs` holds means since the last reset_metrics:
loss/total, loss/rpn/objectness, ... `facts(step)` describes the batch of iteration `step` (from 0).
"""

from __future__ import annotations

import collections
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np
import tf_keras
from absl import logging

from rethink_tf.console import duration
from rethink_tf.data.batching import StepFacts
from rethink_tf.errors import UserError
from rethink_tf.process.signals import PATIENCE_SECONDS
from rethink_tf.storage.checkpoints import iterations
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training.preemption import Interruption

Logs = Mapping[str, float]


class Checkpoints(Protocol):
  """The target of SaveCheckpoints: `storage.checkpoints.RunCheckpoints`."""

  def save(self, step: int, trackables: Mapping[str, Any], state: Mapping[str, Any]) -> bool: ...


class SamplesSeen(NamedTuple):
  """Samples that a run has seen so far (Fig. 2), across restarts."""

  images: int = 0
  instances: int = 0
  pixels: int = 0
  padded_pixels: int = 0
  seconds: float = 0.  # in training steps with their wait for data, without evaluation and checkpoints

  @classmethod
  def restored(cls, state: Any) -> SamplesSeen:
    """Return the counters of a checkpoint; those that it lacks (of another version) start at 0, with a warning."""
    state = dict(state) if isinstance(state, Mapping) else {}
    known = {name: value for name, value in state.items() if name in cls._fields and isinstance(value, int | float)
             and math.isfinite(value) and value >= 0}
    if state and known.keys() != set(cls._fields):
      logging.warning('the checkpoint is of another version: its counters %s are ignored, %s begin at 0',
                      ', '.join(sorted(state.keys() - known.keys())) or '(none)',
                      ', '.join(name for name in cls._fields if name not in known) or '(none)')
    return cls(**known)


class StopOnNonFinite(tf_keras.callbacks.Callback):
  """Stops training at the first loss that is NaN or infinite.

  Raises:
    UserError: with the loss, the step and the images of its batch.
  """

  def __init__(self, facts: Callable[[int], StepFacts]):
    super().__init__()
    self._facts = facts

  def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
    bad = [name for name, value in (logs or {}).items() if not np.isfinite(value).all()]
    if bad and not getattr(self.model, 'overflowed', False):  # skipped (loss_scaling.py)
      step = iterations(self.model.optimizer)
      images = ', '.join(str(int(image)) for image in self._facts(step - 1).image_ids)
      raise UserError(f'{", ".join(bad)} not finite at step {step}, image ids {images}: inspect them, lower the '
                      'learning rate or lengthen the warm-up; earlier checkpoints are intact')


class ProgressAndMetrics(tf_keras.callbacks.Callback):
  """Prints a progress line and writes its values to metrics.jsonl and TensorBoard.

  It reports at the first step, then every `seconds` or every `every` steps, at the end of each epoch of `fit`, and at
  the end of training. Every report resets the model's metrics, so that losses are means over the steps since the last.

  Args:
    facts: images and pixels of each step (module docstring).
    start_state: `state()` of the run that is resumed; None starts from zero.
  """

  def __init__(
    self,
    run_folder: RunFolder,
    total_steps: int,
    facts: Callable[[int], StepFacts],
    every: int | None = None,
    seconds: float = 10.,
    start_state: Mapping[str, float] | None = None,
  ):
    super().__init__()
    self._run_folder, self._total_steps, self._facts = run_folder, total_steps, facts
    self._every, self._seconds = every, seconds
    self._seen = SamplesSeen.restored(start_state)
    self._epoch = 0
    self._step = self._reported_step = 0
    self._logs: dict[str, float] = {}
    self._batch_began = self._reported_at = time.monotonic()
    self._recent = collections.deque(maxlen=20)  # (steps, images, seconds) of the latest reports

  def state(self) -> dict[str, float]:
    """Return the counters, for the checkpoint."""
    return self._seen._asdict()

  def on_train_begin(self, logs: Logs | None = None) -> None:
    self._step = self._reported_step = iterations(self.model.optimizer)
    self._run_folder.continue_at(self._step)
    self._interval = SamplesSeen()
    self._first = True

  def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
    self._batch_began = time.monotonic()

  def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
    now = time.monotonic()
    step = iterations(self.model.optimizer)
    self._interval = self._count(range(self._step, step), now - self._batch_began)
    self._step, self._logs = step, dict(logs or {})
    due = now - self._reported_at >= self._seconds if self._every is None else step % self._every == 0
    if due or self._first or step >= self._total_steps:
      self._report()

  def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
    self._report()  # fit resets the metrics at the next epoch

  def on_train_end(self, logs: Logs | None = None) -> None:
    self._report()
    self._run_folder.flush()

  def _count(self, steps: range, seconds: float) -> SamplesSeen:
    interval = self._interval._replace(seconds=self._interval.seconds + seconds)
    for step in steps:
      facts = self._facts(step)
      self._epoch = int(facts.epoch)
      one = SamplesSeen(len(facts.image_ids), int(facts.instances), int(facts.pixels), int(facts.padded_pixels), 0.)
      interval = SamplesSeen(*map(sum, zip(interval, one, strict=True)))
      self._seen = SamplesSeen(*map(sum, zip(self._seen, one, strict=True)))
    self._seen = self._seen._replace(seconds=self._seen.seconds + seconds)
    return interval

  def _report(self) -> None:
    steps = self._step - self._reported_step
    if not steps:
      return
    if not self._first:
      self._recent.append((steps, self._interval.images, self._interval.seconds))
    speed = _Speed.of(self._recent or [(steps, self._interval.images, self._interval.seconds)])
    losses = {name: float(value) for name, value in self._logs.items()}
    rate = float(self.model.optimizer.learning_rate.numpy())
    print(self._line(losses, rate, speed) + '\n', end='', file=sys.stdout, flush=True)  # one write: threads print too
    self._run_folder.append_metrics({
      'kind': 'train', 'step': self._step, 'epoch': self._epoch, **self._seen._asdict(), 'time': round(time.time(), 3),
      'learning_rate': rate, 'images_per_second': speed.images_per_second, **losses})
    scalars = {**losses, 'learning_rate': rate, 'images_per_second': speed.images_per_second,
               'images': self._seen.images, 'instances': self._seen.instances, 'pixels': self._seen.pixels}
    self._run_folder.add_scalars(self._step, {f'train/{name}': value for name, value in scalars.items()})
    self.model.reset_metrics()
    self._interval, self._reported_step, self._reported_at = SamplesSeen(), self._step, time.monotonic()
    self._first = False

  def _line(self, losses: Mapping[str, float], rate: float, speed: _Speed) -> str:
    fields = [f'step {self._step}/{self._total_steps} ({100 * self._step / self._total_steps:.3g} %)']
    if 'loss/total' in losses:
      fields.append(f'loss {losses["loss/total"]:.4g}')
    groups = collections.defaultdict(float)  # loss/rpn/objectness and loss/rpn/box count as rpn
    for name, value in losses.items():
      if name.startswith('loss/') and name != 'loss/total':
        groups[name.split('/')[1]] += value
    if groups:
      fields.append(' '.join(f'{name} {value:.3g}' for name, value in groups.items()))
    remaining = max(self._total_steps - self._step, 0) * speed.seconds_per_step
    fields.append(f'lr {rate:.3g}')
    if not self._first:  # the first step is mostly tracing
      fields += [f'{speed.images_per_second:.3g} img/s', f'ETA {duration(remaining)}']
    return '  '.join(fields)


class SaveCheckpoints(tf_keras.callbacks.Callback):
  """Writes a checkpoint every `every` steps, after a signal, and at the end of training.

  Args:
    trackables: the objects that are saved, by name: the model, the optimizer.
    state: returns further state as JSON, such as ProgressAndMetrics.state.
    also: step -> whether to save a checkpoint there, too: at steps that are evaluated.
    interruption: the signal handlers, entered around `fit`.
    data_ready: (step, seconds) -> whether the batch of a step has been read, after waiting for at most that long
      (BatchedInput.wait_for_step).

  Raises:
    UserError: the last checkpoint could not be written; if an earlier one cannot be, training continues.
    Interrupted: after a signal, at the end of the current step, once its checkpoint is written.
  """

  def __init__(
    self,
    checkpoints: Checkpoints,
    trackables: Mapping[str, Any],
    state: Callable[[], Mapping[str, Any]],
    every: int,
    also: Callable[[int], bool] = lambda step: False,
    interruption: Interruption | None = None,
    data_ready: Callable[[int, float], bool] = lambda step, seconds: True,
  ):
    super().__init__()
    self._checkpoints, self._trackables, self._state, self._every = checkpoints, trackables, state, every
    self._also, self._interruption, self._data_ready = also, interruption or Interruption(), data_ready
    self._saved_step: int | None = None
    self._before = 0
    self._traced = False

  def on_train_begin(self, logs: Logs | None = None) -> None:
    # Step 0 has nothing to save; any other one has been restored from a checkpoint.
    self._before = self._saved_step = iterations(self.model.optimizer)
    self._between_steps(self._before, self._interruption.received is not None)

  def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
    self._interruption.deferred = self._traced  # tracing the first step may take minutes, with nothing to save
    if self._traced:
      self._wait_for_data()

  def _wait_for_data(self) -> None:
    """Wait for the batch in Python: a signal ends training with a checkpoint even if the read never ends."""
    begin = time.monotonic()
    while not self._data_ready(self._before, 0.5):
      # Other workers must end at the same step, unless this one never gets there.
      patience = PATIENCE_SECONDS if self._interruption.shared else 0
      if self._interruption.received is not None and time.monotonic() - begin >= patience:
        if self._before != self._saved_step:
          self._save(self._before)
        self._between_steps(self._before, ends=True)

  def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
    step = iterations(self.model.optimizer)
    due = step // self._every > self._before // self._every or self._also(step)
    following = 2 * step - self._before  # the step after the next execution
    ends = self._interruption.ends(step, following)
    if due or ends:
      self._save(step)
      ends = ends or self._interruption.ends(step, following)  # a signal while it was written
    self._before, self._traced = step, True
    self._between_steps(step, ends)

  def on_train_end(self, logs: Logs | None = None) -> None:
    step = iterations(self.model.optimizer)
    if step != self._saved_step and not self._save(step):
      raise UserError(f'the last checkpoint (step {step}) could not be written (the reason is logged above): free '
                      'space and run the same command again; it resumes from the newest checkpoint')
    self._between_steps(step, not self._interruption.shared and self._interruption.received is not None)

  def _save(self, step: int) -> bool:
    saved = self._checkpoints.save(step, self._trackables, self._state())
    if saved:
      self._saved_step = step
    return saved

  def _between_steps(self, step: int, ends: bool) -> None:
    """Let signals end training at once if everything is saved; raise Interrupted if `ends`."""
    interruption = self._interruption
    interruption.deferred = step != self._saved_step or interruption.shared  # other workers must end at the same step
    interruption.message = f'stopped; the same command resumes from step {self._saved_step}'
    if ends:
      raise interruption.error()


class _Speed(NamedTuple):
  seconds_per_step: float
  images_per_second: float

  @classmethod
  def of(cls, recent: Iterable[tuple[int, int, float]]) -> _Speed:
    """Return the speed over reports of (steps, images, seconds)."""
    steps, images, seconds = map(sum, zip(*recent, strict=True))
    return cls(seconds / steps, images / max(seconds, 1e-9))
