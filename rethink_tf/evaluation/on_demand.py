"""Evaluation of one checkpoint of a run, outside of training."""

from __future__ import annotations

from rethink_tf.data import digest
from rethink_tf.distributed.coordination import check_same
from rethink_tf.distributed.strategy import report_lost_workers
from rethink_tf.errors import UserError
from rethink_tf.storage.checkpoints import iterations
from rethink_tf.storage.metrics_lines import ON_DEMAND
from rethink_tf.structures import Experiment


def evaluate(experiment: Experiment) -> dict[str, float]:
  """Restore `experiment.checkpoint` and score it; return metrics in percent.

  Raises:
    UserError: there is no such checkpoint, or a worker has other data.
    WorkerLost: another worker has ended or does not answer.
  """
  with report_lost_workers(experiment.workers):
    if experiment.workers.count > 1:
      own = {'held_out': digest.summarize(experiment.eval_input.source)}
      check_same(experiment.workers, 'data', digest.to_compare(own), lambda chief: digest.difference_to(chief, own))
    step = experiment.checkpoints.choose(experiment.checkpoint, experiment.metric)
    if experiment.checkpoints.restore(experiment.trackables, step) is None:
      raise UserError(f'no checkpoint in {experiment.folder.path}: train first, or check --model_dir')
    return experiment.evaluator.evaluate(iterations(experiment.trainer.optimizer), {ON_DEMAND: True})
