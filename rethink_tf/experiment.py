"""One experiment from its parts: the only place that knows all of them, and the root of every gin file."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import gin
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf import (  # noqa: F401  some so that gin files find them
  distribute,
  gin_files,
  noise,
  report,
  top_k,
  tta,
  voc_evaluator,
)
from rethink_tf.callbacks import ProgressAndMetrics, SaveCheckpoints, StopOnNonFinite
from rethink_tf.checkpoints import ON_DEMAND, RunCheckpoints
from rethink_tf.coordination import StopTogether
from rethink_tf.data import (  # noqa: F401  so that gin files find them
  classification,
  classification_input,
  classification_records,
  coco,
  records,
  stream,
  stream_records,
  synthetic_classes,
  voc,
)
from rethink_tf.data.categories import categories_to_json
from rethink_tf.data.pipeline import EvalInput, TrainInput
from rethink_tf.data.synthetic import SyntheticSource
from rethink_tf.ema import EvaluationOfBoth, OnAverages
from rethink_tf.errors import UserError
from rethink_tf.evaluator import CocoEvaluator
from rethink_tf.follow import FollowedFolder, follow, write_schedule
from rethink_tf.interruption import Interruption
from rethink_tf.losses import MaskRCNNLoss
from rethink_tf.models import cascade, cbnet, classifier, vgg  # noqa: F401  so that gin files find them
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.optimizers import SGD
from rethink_tf.precise_statistics import PreciseStatistics  # noqa: F401  so that gin files find it
from rethink_tf.run_folder import RunFolder
from rethink_tf.schedules import KTimesSchedule
from rethink_tf.trainer import Trainer
from rethink_tf.weights import plain_run, pretrained  # noqa: F401  so that gin files find it
from rethink_tf.workers import ALONE, Workers

PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')


class Devices(NamedTuple):
  """How a global batch is spread."""

  replicas: int
  micro_batches: int  # parts of a replica's batch whose gradients are accumulated
  images: int  # images of a micro-batch


class Parts(NamedTuple):
  """What `run` has built from a configuration, for a task of one's own (bench, export)."""

  trainer: Trainer  # all variables made; nothing restored yet
  training_input: Callable[[], Any]  # reads the annotations of the training images, hence only on demand
  scoring: Any  # the input of evaluation
  checkpoints: RunCheckpoints
  test_augmentation: Any = None  # what looks at several views of each photograph, if the configuration has it
  averages: Any = None  # of the weights, if the configuration has them; nothing restored yet either


class _Built(NamedTuple):
  """What training needs of a configuration, once it is built."""

  folder: RunFolder
  workers: Workers
  strategy: tf.distribute.Strategy
  devices: Devices
  trainer: Trainer
  feed: Any  # the input of training
  averages: Any
  trackables: dict[str, Any]
  checkpoints: RunCheckpoints
  score: Any  # the evaluator
  total_steps: int
  intervals: dict[str, int]
  own_evaluation: bool

  def batches(self, step: int):
    """What `fit` iterates over, from a step on."""
    if self.strategy.num_replicas_in_sync == 1:
      return self.feed.dataset(step)
    return self.strategy.distribute_datasets_from_function(lambda context: self.feed.dataset(step, context))

  def due(self, step: int) -> bool:
    """Whether this job evaluates after a step."""
    return self.own_evaluation and self.score.due(step)

  def evaluated(self, step: int) -> bool:
    """Whether some job does."""
    apart = not self.own_evaluation and step % self.intervals['checkpoint_every'] == 0
    return step == self.total_steps or self.due(step) or apart


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
  photographs, feed = held_out, scoring
  if task == 'train':
    photographs = train_source(training=True)
    feed = train_input(photographs, batch_size, seed)
    _check_same_classes(photographs, held_out)
    folder.write_text('categories.json', json.dumps(categories_to_json(photographs.categories)))
  rates = schedule(batch_size=batch_size, num_images=len(photographs.image_ids))
  with strategy.scope():
    trainer = Trainer(model(**_counts(photographs)), losses(), devices.micro_batches)
    trainer.compile(_scaled(optimizer(learning_rate=rates), precision, strategy),
                    steps_per_execution=steps_per_execution)
    trainer.make_variables(feed.dataset().element_spec)
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
  built = _Built(folder, workers, strategy, devices, trainer, feed, averages, trackables, checkpoints, score,
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
  noise.compile_once()
  tf_keras.mixed_precision.set_global_policy(precision)
  tf_keras.utils.set_random_seed(seed)
  if deterministic:
    tf.config.experimental.enable_op_determinism()


def spread(batch_size: int, images_per_device: int, replicas: int) -> Devices:
  """Cuts a global batch: evenly over the replicas, then into micro-batches of at most `images_per_device`."""
  if batch_size % replicas:
    raise UserError(f'BATCH_SIZE = {batch_size} is no multiple of the {replicas} devices that share it')
  share = batch_size // replicas
  images = max(n for n in range(1, min(share, images_per_device) + 1) if share % n == 0)
  return Devices(replicas, share // images, images)


def initialise(trainer: Trainer, initial_weights, folder: RunFolder):
  """The start of a run that has no checkpoint yet: pre-trained weights, if any, and what they were, for the record.

  Weights that continue another run's schedule bring the iteration along at which they stand.
  """
  loaded = initial_weights(trainer.detector) if initial_weights is not None else None
  refuse_frozen_random_layers(trainer.detector, loaded.variables if loaded is not None else frozenset())
  if loaded is not None:
    folder.write_text('initial_weights.json', json.dumps(loaded.record(), indent=2) + '\n')
    trainer.optimizer.iterations.assign(loaded.step)
  return loaded


def refuse_frozen_random_layers(detector: tf_keras.layers.Layer, loaded: frozenset[int] = frozenset()) -> None:
  """A layer that does not train must hold trained weights (projects/GN/README.md: it cost Detectron 3.3 AP).

  loaded: the id of each variable that comes from a weight file.
  """
  frozen = [layer for layer in detector.submodules if isinstance(layer, tf_keras.layers.Layer)
            and not layer.trainable and layer.weights and not list(_sublayers(layer))
            and not {id(variable) for variable in layer.weights} <= loaded]
  if frozen:
    raise UserError(f'{len(frozen)} layers would stay at random values (first: {frozen[0].weights[0].name}): layers '
                    'without pre-trained weights must train; set ResNet.freeze_at = 0 and a norm other than '
                    '@frozen_batch_norm')


def _train(built: _Built, initial_weights, correcting: list, steps_per_execution: int):
  """From where the run folder stands to the end of the schedule; correcting: callbacks that evaluation needs."""
  folder, trainer, averages, total_steps = built.folder, built.trainer, built.averages, built.total_steps
  if averages is not None:
    correcting = [averages, *correcting, *(OnAverages(averages, each, built.evaluated) for each in correcting)]
  state = _restored_or_initialised(built, initial_weights)
  start = int(trainer.optimizer.iterations.numpy())
  distribute.check_same_step(built.workers, start)
  _check_whole_executions(steps_per_execution, start, total_steps, built.intervals, built.due)
  folder.save_provenance(sys.argv, gin_files.operative_config())
  write_schedule(folder, total_steps)
  logging.info('%d replica(s) x %d micro-batch(es) x %d image(s); %d parameters train; run folder %s', *built.devices,
               sum(int(tf.size(v)) for v in trainer.trainable_variables), folder.path)
  progress = ProgressAndMetrics(folder, total_steps, built.feed.facts, every=built.intervals['log_every'],
                                start_state=state.get('progress'))
  interruption = Interruption(StopTogether(built.workers) if built.workers.count > 1 else None)
  saving = SaveCheckpoints(built.checkpoints, built.trackables, lambda: {'progress': progress.state()},
                           every=built.intervals['checkpoint_every'], also=built.due, interruption=interruption)
  if start < total_steps:
    logging.info('from step %d to %d; the first one takes longest: tracing and compiling, a minute or so', start,
                 total_steps)
    try:
      with _errors_of(built.feed), distribute.losses_told(built.workers), interruption:
        trainer.fit(built.batches(start), epochs=1, steps_per_epoch=total_steps - start, verbose=0,
                    callbacks=[StopOnNonFinite(built.feed.facts), progress, *correcting, saving,
                               *[built.score] * built.own_evaluation])
    finally:
      folder.flush()
    built.checkpoints.tidy()
  else:
    logging.info('the run is complete at step %d: nothing left to train', start)
    if built.own_evaluation:
      built.score.evaluate(start, {ON_DEMAND: True})
    folder.flush()
  if folder.attempt('curves.png', lambda: report.curves([folder], folder.join('curves.png'))):
    logging.info('curves: %s', folder.join('curves.png'))
  return built.score.last


def _restored_or_initialised(built: _Built, initial_weights) -> dict:
  """The weights of the newest checkpoint with what it says about progress, or those that a run begins with."""
  state = built.checkpoints.restore(built.trackables)
  if state is not None:
    return state
  with built.strategy.scope():
    loaded = initialise(built.trainer, initial_weights, built.folder)
    if built.averages is not None:
      built.averages.restart()
  return {'progress': loaded.progress} if loaded is not None and loaded.progress else {}


def _check_whole_executions(steps, start, total_steps, intervals, due):
  if steps < 1:
    raise UserError(f'run.steps_per_execution = {steps}: use 1 or more')
  counts = {f'run.{name}': value for name, value in intervals.items()} | {
    'the length of the schedule': total_steps, 'the step at which the run stands': start,
    'the interval of evaluation': next((step for step in range(1, total_steps) if due(step)), 0)}
  for name, value in counts.items():
    if value % steps:
      raise UserError(f'run.steps_per_execution = {steps} does not divide {name}, {value}: use a divisor of both, or 1')


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


def _sublayers(layer):
  return (part for part in layer.submodules if isinstance(part, tf_keras.layers.Layer))


@contextlib.contextmanager
def _errors_of(feed):
  """Brings back an error raised in the input pipeline's threads, which TensorFlow wraps beyond recognition."""
  try:
    yield
  except tf.errors.OpError as error:
    if feed.failure is not None:
      raise feed.failure from error
    raise
