"""A separate evaluation job, which scores every new checkpoint of a run that another job trains."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.storage import identity, manifests, metrics_lines, writer_lock
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.metrics_lines import evaluated_steps
from rethink_tf.storage.run_folder import RunFolder, total_steps
from rethink_tf.structures import Experiment

METRICS = 'metrics-evaluator.jsonl'


class FollowedFolder(RunFolder):
  """The run folder of another job, in which this job writes files of its own.

  Lines go to metrics-evaluator.jsonl, which RunFolder.read_metrics reads, too; TensorBoard events, with the same tags,
  to the run `evaluator`. Object stores cannot append: two writers of one file would overwrite each other's lines.
  """

  METRICS = METRICS

  def __init__(self, path: str, wait_minutes: float = 0.0):
    """Wait up to `wait_minutes` for the training job to create the folder."""
    wait_for(path, wait_minutes)
    super().__init__(path, create=False)
    self._starts: dict[str, int] = {}

  def begin(self) -> None:
    """Count the starts of training before a checkpoint is restored: the clocks of two machines may differ.

    Training may resume from an earlier step while this one is evaluated: then its line is one of those cancelled.
    """
    self._starts = {}
    with contextlib.suppress(OSError, tf.errors.OpError):  # without it the times decide
      lines = metrics_lines.parse(self._read_file(RunFolder.METRICS), self.join(RunFolder.METRICS))
      self._starts = {metrics_lines.STARTS: sum(line.get('kind') == 'resume' for _, line in lines)}

  def append_metrics(self, metrics: Mapping[str, Any]) -> None:
    """Append one line, with the number of starts of training when its evaluation began."""
    super().append_metrics({**metrics, **self._starts})

  def writer(self, name: str = '') -> tf.summary.SummaryWriter:
    return super().writer(name or 'evaluator')


def wait_for(path: str, minutes: float) -> None:
  """Wait until a file or folder exists, at most `minutes`."""
  until = time.monotonic() + 60 * minutes
  while not tf.io.gfile.exists(path) and time.monotonic() < until:
    time.sleep(1)


def follow(experiment: Experiment) -> dict[str, float]:
  """Evaluate every new checkpoint of a run that another job trains, until its last step; return the last metrics."""

  def evaluate(step: int) -> None:
    _check_classes(experiment)
    experiment.checkpoints.restore(experiment.trackables, step)
    experiment.evaluator.evaluate(step)
    if experiment.keep_best:  # training may have ended before its last checkpoints are evaluated
      experiment.checkpoints.record_best(experiment.metric)

  with writer_lock.held(experiment.folder, file=writer_lock.FOLLOWER):
    follow_checkpoints(experiment.checkpoints, evaluate, experiment.folder, experiment.follow_minutes)
  return experiment.evaluator.last


def _check_classes(experiment: Experiment) -> None:
  """Check that the classes are those of the run, which may have been started after this job."""
  if experiment.recorded is not None:
    return  # compared when the experiment was built
  experiment.recorded = identity.read(experiment.folder)
  if experiment.recorded is not None and experiment.recorded.categories:
    source = experiment.eval_input.source
    names = [entry['name'] for entry in experiment.recorded.categories]
    if names != [category.name for category in source.categories]:
      raise UserError(f'{source.name}: its categories, or their order, differ from those of the run that has begun in '
                      f'{experiment.folder.path}: start this command again')


def follow_checkpoints(checkpoints: RunCheckpoints, evaluate: Callable[[int], None], folder: FollowedFolder,
                       timeout_minutes: float, poll_seconds: float = 15.0) -> None:
  """Evaluate every checkpoint that has no metrics yet, oldest first, until that of the run's last step has them.

  The schedule may have been shortened to a step that has no checkpoint: a later one is then the last.

  evaluate: restores and scores the checkpoint of a step; raises UserError when it is gone or damaged, which is logged:
  training keeps the newest checkpoints only, and skips damaged ones too.

  Raises:
    UserError: no new checkpoint within timeout_minutes; that of the last step is damaged; other errors of `evaluate`.
  """
  skipped: dict[int, int] = {}  # damaged steps, with the time at which they were written: training may write them again
  last_news = time.monotonic()
  while True:
    scored = evaluated_steps(folder.read_metrics(), on_demand=False)
    pending = [step for step in checkpoints.steps()
               if step not in scored and not (step in skipped and skipped[step] == _written(folder, step))]
    last = total_steps(folder)
    if pending:
      written = _written(folder, pending[0])
      folder.begin()
      try:
        evaluate(pending[0])
      except UserError as error:
        present = pending[0] in checkpoints.steps()
        if present and (pending[0] == last or checkpoints.is_sound(pending[0])):
          raise
        if present:
          skipped[pending[0]] = written
        logging.warning('the checkpoint of step %d was %s before it was evaluated (%s)', pending[0],
                        'damaged' if present else 'removed', error.line())
      last_news = time.monotonic()
    elif last is not None and last <= max(scored, default=-1):
      logging.info('the last step, %d, is evaluated', max(scored))
      return
    elif time.monotonic() - last_news > 60 * timeout_minutes:
      raise UserError(f'no new checkpoint in {folder.path} for {timeout_minutes:g} minutes (--follow_minutes); the '
                      f'newest one evaluated is of step {max(scored, default="none")}, the last step is '
                      f'{last if last is not None else "not known"}: check whether training is still running')
    else:
      time.sleep(poll_seconds)


def _written(folder: RunFolder, step: int) -> int:
  """Return when a checkpoint was written, in nanoseconds of the storage's clock; 0 if there is none."""
  try:
    return tf.io.gfile.stat(manifests.path(manifests.step_folder(folder.join('checkpoints'), step))).mtime_nsec
  except tf.errors.OpError:
    return 0
