"""One experiment from its parts: the only place that knows all of them, and the root of every gin file."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import gin
import tensorflow as tf
import tf_keras

from rethink_tf import console, gin_files  # noqa: F401  some so that gin files find them
from rethink_tf.data.categories import categories_to_json
from rethink_tf.data.classification import (  # noqa: F401  so that gin files find them
  hashtag_shards,
  hashtag_stream,
  image_folder,
  input,
  synthetic,
)
from rethink_tf.data.classification import records as classification_records  # noqa: F401  so that gin files find them
from rethink_tf.data.detection import coco, records, voc  # noqa: F401  so that gin files find them
from rethink_tf.data.detection.input import EvalInput, TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.distributed import strategy as distribute  # noqa: F401  some so that gin files find them
from rethink_tf.distributed.workers import ALONE
from rethink_tf.errors import UserError
from rethink_tf.evaluation import test_time_augmentation, top_k_evaluator, voc_evaluator  # noqa: F401  some so that gin files find them
from rethink_tf.evaluation.coco_evaluator import CocoEvaluator
from rethink_tf.evaluation.follow import FollowedFolder, follow
from rethink_tf.models import cascade, cbnet, classifier, vgg  # noqa: F401  so that gin files find them
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.storage.checkpoints import ON_DEMAND, RunCheckpoints
from rethink_tf.training.ema import EvaluationOfBoth
from rethink_tf.training.loop import _Built, _train, spread
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.precise_bn import PreciseStatistics  # noqa: F401  so that gin files find it
from rethink_tf.training.schedules import KTimesSchedule
from rethink_tf.training.trainer import Trainer
from rethink_tf.visualization import curves  # noqa: F401  some so that gin files find them
from rethink_tf.weights import plain_run, pretrained  # noqa: F401  so that gin files find it

PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')


class Parts(NamedTuple):
  """What `run` has built from a configuration, for a task of one's own (bench, export)."""

  trainer: Trainer  # all variables made; nothing restored yet
  training_input: Callable[[], Any]  # reads the annotations of the training images, hence only on demand
  scoring: Any  # the input of evaluation
  checkpoints: RunCheckpoints
  test_augmentation: Any = None  # what looks at several views of each photograph, if the configuration has it
  averages: Any = None  # of the weights, if the configuration has them; nothing restored yet either


# Over 60 lines: half of them list and explain the parts, which is what the root of a gin file is for.
@gin.configurable
def run(
  task: str | Callable[[Parts], Any],
  model_dir: str,
  model=MaskRCNN,
  train_source=SyntheticSource,
  eval_source=SyntheticSource,
  train_input=TrainInput,
  eval_input=EvalInput,
  losses=MaskRCNNLoss,
  optimizer=SGD,
  schedule=KTimesSchedule,
  evaluator=CocoEvaluator,
  strategy=distribute.strategy,
  precise_statistics=None,
  initial_weights=None,
  test_augmentation=None,
  ema=None,
  batch_size: int = 16,
  images_per_device: int = 2,
  eval_images_per_device: int = 1,
  precision: str = 'float32',
  seed: int = 0,
  deterministic: bool = False,
  log_every: int = 20,
  checkpoint_every: int = 2500,
  keep_checkpoints: int = 3,
  keep_best: bool | str = True,
  checkpoint: str | int = 'latest',
  own_evaluation: bool = True,
  follow_minutes: float = 120.0,
  steps_per_execution: int = 1,
) -> Any:
  """Trains a detector from a gin file, or evaluates a run; returns the last evaluation's figures in percent.

  task: 'train' (continues where the run folder stands), 'evaluate' (its newest checkpoint), 'follow' (every new one of
  a run that another job trains, follow.py), or a function of the Parts, whose result is returned.
  model, *_source, *_input, losses, optimizer, schedule, evaluator, strategy: constructors, called here once devices,
  batch size and data are known; what gin binds on them is theirs.
  precise_statistics: constructor of a callback that corrects the network before each evaluation and checkpoint.
  initial_weights: what a run that begins calls with its detector (weights.pretrained); None: random ones.
  test_augmentation: what makes every evaluation look at several views of each photograph (tta.py); None: at one.
  ema: ExponentialMovingAverage, evaluated beside the weights themselves as 'ema/box/AP', …; None: no average.
  batch_size: images of a step over all devices. images_per_device: at most so many at a time (the paper's 2 an 8-GPU
  machine's card); a device that has to do more accumulates gradients.
  keep_checkpoints: so many of the newest stay, and the one with the highest figure: the evaluator's main one, or the
  one that keep_best names ('mask/AP', 'ema/box/AP'); False: none. checkpoint: what 'evaluate' takes: 'latest', 'best'
  or a step.
  precision: Keras policy. deterministic: two runs give identical weights, at some cost in speed.
  own_evaluation: False leaves evaluation to a follower. follow_minutes: how long that one waits for a new checkpoint.
  steps_per_execution: so many steps between two looks at the losses (Keras' argument; a TPU then need not wait for the
  host); log_every, checkpoint_every and the evaluator's `every` are multiples of it.
  Errors: UserError for everything that a user can mend.
  """
  if not callable(task) and task not in ('train', 'evaluate', 'follow'):
    raise UserError(f"task = {task!r}: use 'train', 'evaluate' or 'follow'")
  strategy = strategy()  # first of all: it decides which devices TensorFlow starts with
  if task == 'follow':
    folder, workers = FollowedFolder(model_dir, follow_minutes), ALONE
  else:
    folder, workers = distribute.meet(strategy, model_dir, create=task == 'train', settings=gin.config_str())
  _set_up(precision, seed, deterministic)
  devices = spread(batch_size, images_per_device, strategy.num_replicas_in_sync)
  held_out = eval_source(training=False)
  scoring = eval_input(held_out, eval_images_per_device * devices.replicas // workers.count)
  photographs, inputs = held_out, scoring
  if task == 'train':
    photographs = train_source(training=True)
    inputs = train_input(photographs, batch_size, seed)
    _check_same_classes(photographs, held_out)
    folder.write_text('categories.json', json.dumps(categories_to_json(photographs.categories)))
  rates = schedule(batch_size=batch_size, num_images=len(photographs.image_ids))
  with strategy.scope():
    trainer = Trainer(model(**_counts(photographs)), losses(), devices.micro_batches)
    trainer.compile(_scaled(optimizer(learning_rate=rates), precision, strategy),
                    steps_per_execution=steps_per_execution)
    trainer.make_variables(inputs.dataset().element_spec)
    averages = ema(trainer) if ema is not None else None
  trackables = {'detector': trainer.detector, 'optimizer': trainer.optimizer}
  if averages is not None:
    trackables['ema'] = averages.state
  checkpoints = RunCheckpoints(folder, keep=keep_checkpoints, writes=workers.chief)
  if callable(task):
    training_input = lambda: train_input(train_source(training=True), batch_size, seed)  # noqa: E731
    return task(Parts(trainer, training_input, scoring, checkpoints, test_augmentation, averages))
  shown, predict = scoring, trainer.predict_batch
  if test_augmentation is not None:
    shown, predict = test_augmentation.views_of(scoring), test_augmentation.predictor(trainer, held_out)
  score = evaluator(shown, predict, held_out, folder)
  score.workers = workers
  if averages is not None:
    of_averages = evaluator(shown, predict, held_out, folder.part(EvaluationOfBoth.NAME))
    of_averages.workers = workers
    score = EvaluationOfBoth(score, of_averages, averages)
  metric = keep_best if isinstance(keep_best, str) else score.main_metric
  if task == 'follow':
    return _follow(checkpoints, trackables, score, folder, follow_minutes)
  if task == 'evaluate':
    return _evaluate(checkpoints, trackables, checkpoints.choose(checkpoint, metric), score, folder)
  if keep_best:
    checkpoints.keep_best(metric, lambda: score.evaluated_step)
  built = _Built(folder, workers, strategy, devices, trainer, inputs, averages, trackables, checkpoints, score,
                 rates.total_steps, {'log_every': log_every, 'checkpoint_every': checkpoint_every}, own_evaluation)
  correcting = [precise_statistics(trainer, built.batches, built.evaluated)] if precise_statistics is not None else []
  return _train(built, initial_weights, correcting, steps_per_execution)


def _counts(source):
  """What the data decides about a model."""
  counts = {'num_classes': source.num_classes}
  return counts | ({'num_keypoints': source.num_keypoints} if getattr(source, 'num_keypoints', 0) else {})


def _set_up(precision, seed, deterministic):
  """What is global in TensorFlow: the precision policy, the seed of initial weights, determinism."""
  if precision not in PRECISIONS:
    raise UserError(f'run.precision = {precision!r}: use one of {", ".join(PRECISIONS)}')
  console.compile_once()
  tf_keras.mixed_precision.set_global_policy(precision)
  tf_keras.utils.set_random_seed(seed)
  if deterministic:
    tf.config.experimental.enable_op_determinism()


def _follow(checkpoints, trackables, score, folder, minutes):
  def evaluate(step):
    checkpoints.restore(trackables, step)
    score.evaluate(step)

  follow(checkpoints, evaluate, folder, minutes)
  return score.last


def _evaluate(checkpoints, trackables, step, score, folder):
  if checkpoints.restore(trackables, step) is None:
    raise UserError(f'no checkpoint in {folder.path}: train first, or check --model_dir')
  return score.evaluate(int(trackables['optimizer'].iterations.numpy()), {ON_DEMAND: True})


def _check_same_classes(train, held_out):
  if [c.name for c in train.categories] != [c.name for c in held_out.categories]:
    raise UserError(f'{train.name} and {held_out.name} have different categories '
                    f'({len(train.categories)} and {len(held_out.categories)}): use annotation files of one data set')


def _scaled(optimizer, precision, strategy):
  if precision == 'mixed_float16' and isinstance(strategy, tf.distribute.TPUStrategy):
    raise UserError("run.precision = 'mixed_float16' is not for TPUs: use 'mixed_bfloat16'")
  return tf_keras.mixed_precision.LossScaleOptimizer(optimizer) if precision == 'mixed_float16' else optimizer


