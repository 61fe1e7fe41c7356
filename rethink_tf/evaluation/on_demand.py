"""Evaluation of one checkpoint of a run, outside of training."""

from __future__ import annotations

from rethink_tf.errors import UserError
from rethink_tf.storage.checkpoints import iterations
from rethink_tf.storage.metrics_lines import ON_DEMAND
from rethink_tf.structures import Experiment


def evaluate(experiment: Experiment) -> dict[str, float]:
  """Restore `experiment.checkpoint` and score it; return metrics in percent.

  Raises:
    UserError: there is no such checkpoint.
  """
  step = experiment.checkpoints.choose(experiment.checkpoint, experiment.metric)
  if experiment.checkpoints.restore(experiment.trackables, step) is None:
    raise UserError(f'no checkpoint in {experiment.folder.path}: train first, or check --model_dir')
  return experiment.evaluator.evaluate(iterations(experiment.trainer.optimizer), {ON_DEMAND: True})
