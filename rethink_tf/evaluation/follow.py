"""An evaluator of its own: a job that scores every new checkpoint of a run which another job trains."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError
from rethink_tf.storage.run_folder import RunFolder, total_steps

METRICS = 'metrics-evaluator.jsonl'


class FollowedFolder(RunFolder):
  """A run folder in which another job trains: what is added does not get into the way of what that one writes.

  Lines go to metrics-evaluator.jsonl, which RunFolder.read_metrics reads along (object stores cannot append: two who
  write the same file would undo each other's lines); TensorBoard's events, with the same tags, to the run `evaluator`.
  """

  METRICS = METRICS

  def __init__(self, path: str, wait_minutes: float = 0.0):
    """Waits for a training job that has yet to begin."""
    wait_for(path, wait_minutes)
    super().__init__(path, create=False)

  def writer(self, name: str = '') -> tf.summary.SummaryWriter:
    return super().writer(name or 'evaluator')


def wait_for(path: str, minutes: float) -> None:
  """Until a file or folder is there, or the time is over."""
  until = time.monotonic() + 60 * minutes
  while not tf.io.gfile.exists(path) and time.monotonic() < until:
    time.sleep(1)


def follow(checkpoints: Any, evaluate: Callable[[int], Any], folder: RunFolder, timeout_minutes: float,
           look_seconds: float = 15.0) -> None:
  """Evaluates every checkpoint that has no figures yet, oldest first, until that of the run's last step has them.

  checkpoints: with steps(). evaluate: restores and scores that of a step; raises UserError when it is gone or damaged,
  which is logged: training keeps no more than the newest ones.

  Raises:
    UserError: no new checkpoint within timeout_minutes.
  """
  passed_over: set[int] = set()
  news = time.monotonic()
  while True:
    scored = {line['step'] for line in folder.read_metrics() if line['kind'] == 'eval'}
    waiting = [step for step in checkpoints.steps() if step not in scored | passed_over]
    last = total_steps(folder)
    if waiting:
      try:
        evaluate(waiting[0])
      except UserError as error:
        if waiting[0] in checkpoints.steps():
          raise
        passed_over.add(waiting[0])
        logging.warning('the checkpoint of step %d went before it was scored (%s)', waiting[0], error.line())
      news = time.monotonic()
    elif last is not None and last in scored:
      logging.info('the last step, %d, is scored', last)
      return
    elif time.monotonic() - news > 60 * timeout_minutes:
      raise UserError(f'no new checkpoint in {folder.path} for {timeout_minutes:g} minutes (--follow_minutes); the '
                      f'newest one scored is of step {max(scored, default="none")}, the last step is '
                      f'{last if last is not None else "not known"}: look whether training goes on')
    else:
      time.sleep(look_seconds)
