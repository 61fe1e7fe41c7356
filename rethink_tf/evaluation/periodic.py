"""When to evaluate: every n steps, at the end of training, and after a restart if an evaluation was lost."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import tf_keras

from rethink_tf.distributed.workers import ALONE, Workers
from rethink_tf.errors import UserError
from rethink_tf.storage import files
from rethink_tf.storage.checkpoints import iterations
from rethink_tf.storage.metrics_lines import evaluated_steps
from rethink_tf.storage.run_folder import RunFolder, RunSubfolder
from rethink_tf.structures import LeftOut, Source


class Coverage(NamedTuple):
  """How many of the held-out images an evaluation has scored."""

  name: str  # of the source
  scored: int
  missing: int
  unreadable: int

  @classmethod
  def of(cls, source: Source, unreadable: int) -> Coverage:
    missing = getattr(source, 'left_out', LeftOut()).total
    return cls(source.name, len(source.image_ids) - unreadable, missing, unreadable)

  def fields(self) -> dict[str, int]:
    """Return the fields of the line in metrics.jsonl."""
    return {'images_scored': self.scored, 'images_missing': self.missing, 'images_unreadable': self.unreadable}

  def __str__(self) -> str:
    if not self.missing + self.unreadable:
      return f'{self.scored} images of {self.name}'
    counts = {'missing': self.missing, 'unreadable': self.unreadable}
    lacking = ', '.join(f'{count} {what}' for what, count in counts.items() if count)
    return f'{self.scored} of {self.scored + self.missing + self.unreadable} images of {self.name} ({lacking})'


class PeriodicEvaluation(tf_keras.callbacks.Callback, abc.ABC):
  """Calls `evaluate(step)` during `fit`.

  Args:
    run_folder: for the results.
    every: iterations between evaluations during training; 0 = only at the end.
    at_end: also evaluate when training ends.

  Attributes:
    last: metrics of the latest evaluation in percent, {} before the first.
    workers: the workers that share the images; only the chief scores and reports. Set it before the first evaluation.
    notes: what readers of the metrics must know, a line each; reported with every evaluation. Set it likewise.
    main_metric: the metric that chooses the best checkpoint.
    evaluated_step: step of the evaluation that began last, -1 before the first.

  Raises:
    UserError: `every` is negative.
  """

  main_metric = ''
  workers: Workers = ALONE
  notes: Sequence[str] = ()

  def __init__(self, run_folder: RunFolder, every: int, at_end: bool):
    super().__init__()
    if every < 0:
      raise UserError(f'{type(self).__name__}.every = {every}: use a number of steps, or 0 to evaluate at the end only')
    self._run_folder, self._every, self._at_end = run_folder, every, at_end
    self._evaluated_step = -1
    self.last: dict[str, float] = {}

  @abc.abstractmethod
  def evaluate(self, step: int, extra: Mapping[str, Any] | None = None) -> dict[str, float]:
    """Score the weights of a step, call `_keep`, and return the metrics."""

  def start(self, step: int) -> None:
    """Begin an evaluation; returns before its end if it is scored in a thread."""
    self.evaluate(step)

  def _keep(self, step: int, metrics: dict[str, float]) -> None:
    self._evaluated_step, self.last = step, metrics

  def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
    """Repeat an evaluation that was interrupted after its checkpoint had been written."""
    step = self._step()
    lines = self._run_folder.readable_metrics() or ()
    if step and self.due(step) and step not in evaluated_steps(lines, on_demand=False):
      self.start(step)

  def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
    step = self._step()
    if self.due(step) and step != self._evaluated_step:
      self.start(step)

  def on_train_end(self, logs: Mapping[str, Any] | None = None) -> None:
    step = self._step()
    if self._at_end and step != self._evaluated_step:
      self.start(step)

  def settle(self, seconds: float) -> None:  # noqa: B027  nothing to wait for here
    """Wait at most `seconds` for what an evaluation still does in threads: the process is about to end."""

  @property
  def evaluated_step(self) -> int:
    return self._evaluated_step

  def _title(self, step: int) -> str:
    """Return the heading of an evaluation, which tells two evaluations of one step apart."""
    averages = isinstance(self._run_folder, RunSubfolder)
    return f'evaluation at step {step}{" of the averages of the weights" if averages else ""}'

  def _step(self) -> int:
    return iterations(self.model.optimizer)

  def due(self, step: int) -> bool:
    """Whether an evaluation is due after `step`; the one at the end of training is not counted."""
    return bool(self._every) and step % self._every == 0

  def _write(self, step: int, name: str, data: bytes) -> str:
    """Write a file of eval/step-…/ atomically; return its path."""
    path = self._run_folder.join('eval', f'step-{step:08d}', name)
    files.write(path, data)
    return path
