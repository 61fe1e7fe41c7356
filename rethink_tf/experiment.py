"""The root of every gin file: builds an Experiment from its parts; the only module that knows all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import gin
import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf import console, gin_files
from rethink_tf.data import class_names, digest, in_place, own_source, problems
from rethink_tf.data.categories import Category
from rethink_tf.data.detection import duplicates
from rethink_tf.data.detection.input import EvalInput, TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.distributed import cluster
from rethink_tf.distributed import devices as devices_found
from rethink_tf.distributed import strategy as distribution
from rethink_tf.distributed.workers import ALONE, Workers
from rethink_tf.errors import UserError, check_at_least
from rethink_tf.evaluation import object_limits
from rethink_tf.evaluation.coco_evaluator import CocoEvaluator, DetectionEvaluator
from rethink_tf.evaluation.follow import FollowedFolder
from rethink_tf.evaluation.scoring import source_without_masks
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.storage import identity, settings, writer_lock
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.identity import Identity
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import AVERAGES, Evaluator, Experiment, Input, Source
from rethink_tf.training.ema import EvaluatorWithAverages, ExponentialMovingAverage
from rethink_tf.training.loop import divide_batch
from rethink_tf.training.loss_scaling import LossScaleTrainer
from rethink_tf.training.losses import MaskRCNNLoss
from rethink_tf.training.optimizers import SGD
from rethink_tf.training.schedules import KTimesSchedule
from rethink_tf.training.sharing import SharedGraphs
from rethink_tf.training.trainer import Trainer

# isort: split
# Imported so that gin files find what they register.
from rethink_tf.data.classification import hashtag_shards, hashtag_stream, image_folder, input, synthetic  # noqa: F401
from rethink_tf.data.classification import records as classification_records  # noqa: F401
from rethink_tf.data.detection import coco, placeholder, records, voc  # noqa: F401
from rethink_tf.evaluation import test_time_augmentation, top_k_evaluator, voc_evaluator  # noqa: F401
from rethink_tf.models import cascade, cbnet, classifier, vgg  # noqa: F401
from rethink_tf.training import precise_bn  # noqa: F401
from rethink_tf.weights import plain_run, pretrained  # noqa: F401

TASKS = ('train', 'evaluate', 'follow')
# Bindings that put a trained detector on one device of this machine, whatever it was trained on.
ONE_DEVICE = ("strategy.kind = 'one_device'", 'strategy.num_devices = None', 'strategy.logical_cpus = None')
PRECISIONS = ('float32', 'mixed_bfloat16', 'mixed_float16')


def configure(files: Sequence[str], params: Sequence[str] = (), data_dir: str | None = None,
              weights: str | None = None, tpu: str | None = None, elsewhere: bool = False) -> None:
  """Read gin files, then bindings such as 'SCHEDULE = 2'; the last of a name wins. `run` builds what they describe.

  data_dir, weights: values of the macros DATA_DIR and WEIGHTS; weights may be the name of published ones
  (weights.catalog). tpu: 'local', or the name of a TPU to train on. elsewhere: for another machine, where the layout
  of the data is found.

  Raises:
    UserError: a file or a name does not exist, or weights are given to a configuration that starts from random ones.
  """
  cluster.adopt()
  console.hide_library_info()
  gin_files.find(files, required=True)
  params = list(params)
  if tpu is not None:
    params += ["strategy.kind = 'tpu'", f'strategy.tpu = {tpu!r}']
  if weights:
    params.append(f'WEIGHTS = {weights!r}')
  layout, remarks = in_place.parse(files, params, data_dir, elsewhere)
  if layout:
    logging.info('%s: read as %s', gin_files.bound('DATA_DIR/macro.value'), layout)
  if weights and gin_files.bound('run.initial_weights') is None:
    raise UserError('--weights is given, but the configuration starts from random weights: add '
                    '--gin_file=gin_configs/init/imagenet.gin or another file of gin_configs/init')
  for remark in remarks:
    logging.warning('%s', remark)


# Over 60 lines: half of them list and explain the parts, which is what the root of a gin file is for.
@gin.configurable(denylist=['allow_changes', 'graphs'])
def run(
  task: str,
  model_dir: str,
  model: Callable[..., tf_keras.layers.Layer] = MaskRCNN,
  train_source: Callable[..., Source] = SyntheticSource,
  eval_source: Callable[..., Source] = SyntheticSource,
  train_input: Callable[..., Input] = TrainInput,
  eval_input: Callable[..., Input] = EvalInput,
  losses: Callable[[], Callable[..., Mapping[str, tf.Tensor]]] = MaskRCNNLoss,
  optimizer: Callable[..., tf_keras.optimizers.Optimizer] = SGD,
  schedule: Callable[..., tf_keras.optimizers.schedules.LearningRateSchedule] = KTimesSchedule,
  evaluator: Callable[..., Evaluator] = CocoEvaluator,
  strategy: Callable[[], tf.distribute.Strategy] = distribution.strategy,
  precise_statistics: Callable[..., tf_keras.callbacks.Callback] | None = None,
  initial_weights: pretrained.PretrainedWeights | plain_run.PlainRun | None = None,
  test_augmentation: test_time_augmentation.TestTimeAugmentation | None = None,
  ema: Callable[[Trainer], ExponentialMovingAverage] | None = None,
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
  allow_changes: bool = False,
  graphs: SharedGraphs | None = None,
) -> Experiment:
  """Build an experiment from its parts; restore and write nothing but the run folder itself.

  task: 'train' (training.loop.train: starts or resumes the run), 'evaluate' (evaluation.on_demand.evaluate; also for
  predict, export and bench) or 'follow' (evaluation.follow.follow: every new checkpoint of a run that another job
  trains).
  model, *_source, *_input, losses, optimizer, schedule, evaluator, strategy: constructors, called here once devices,
  batch size and data are known; their arguments are bound by gin.
  precise_statistics: constructor of a callback that corrects the network before each evaluation (precise_bn.py).
  initial_weights: called with the detector of a run that begins (weights.pretrained); None: random weights.
  test_augmentation: makes every evaluation see several views of each image (test_time_augmentation.py); None: one.
  ema: ExponentialMovingAverage, evaluated beside the weights themselves as 'ema/box/AP', ...; None: no average.
  batch_size: global batch size, in images per step. images_per_device: the most images that a device processes at once
  (2 per GPU in the paper); a device whose share is larger accumulates gradients.
  keep_checkpoints: number of newest checkpoints to keep. keep_best: keep the best one, too, by the evaluator's main
  metric (True) or a named one ('mask/AP', 'ema/box/AP').
  checkpoint: the one to evaluate: 'latest', 'best' or a step.
  precision: Keras policy. deterministic: two runs give identical weights, at some cost in speed.
  own_evaluation: False leaves evaluation to a follower. follow_minutes: its time-out for a new checkpoint.
  steps_per_execution: as in Keras' `compile`: steps that run before the host reads the losses, so that a TPU need not
  wait for it; log_every, checkpoint_every and the evaluator's `every` are multiples of it.
  allow_changes: resume or evaluate a run with settings other than its own (storage/identity.py). Not for gin files,
  in which it would stay.

  Raises:
    UserError: any error in the configuration, the data or the run folder that the user can fix.
  """
  if task not in TASKS:
    raise UserError(f'task = {task!r}: use one of {", ".join(TASKS)}')
  if batch_size < 1:
    raise UserError(f'BATCH_SIZE = {batch_size}: use 1 or more')
  check_at_least('run', 1, images_per_device=images_per_device, eval_images_per_device=eval_images_per_device,
                 log_every=log_every, checkpoint_every=checkpoint_every, keep_checkpoints=keep_checkpoints)
  check_at_least('run', 0, follow_minutes=follow_minutes)
  gin_files.without_effect(run, _PASSED)
  devices_found.check()
  strategy = strategy()  # before any operation: it decides which devices TensorFlow starts with
  devices_found.report(strategy)
  folder, workers = _open_folder(task, model_dir, strategy, follow_minutes)
  with distribution.report_lost_workers(workers):  # layers are built together
    _set_up(precision, seed, deterministic)
    devices = divide_batch(batch_size, images_per_device, strategy.num_replicas_in_sync)
    checkpoints = RunCheckpoints(folder, keep=keep_checkpoints, writes=workers.chief)
    recorded = _recorded(folder, checkpoints, task)
    if recorded is not None:
      checkpoints.belong_to(recorded, any_run=allow_changes)
    classes = _classes_of(recorded)
    held_out = own_source.checked(eval_source(training=False), _scores_objects(evaluator))
    train = _matched(_training(train_source), classes, folder.path) if task == 'train' else None
    held_out = _matched(held_out, train.categories, train.name) if train else _matched(held_out, classes, folder.path)
    held_out_input = eval_input(held_out, eval_images_per_device * devices.replicas // workers.count)

    def make_train_input() -> Input:
      source = train or _matched(_training(train_source), held_out.categories, held_out.name)
      return train_input(source, batch_size, seed)

    training = make_train_input() if task == 'train' else None
    hosts = distribution.num_hosts(strategy)
    if training is not None:
      check_hosts(training, hosts)
    _report_problems(training.source if training is not None else None, held_out)
    inputs = training or held_out_input
    rates = schedule(batch_size=batch_size, num_images=len(inputs.source.image_ids))
    with strategy.scope():
      scaled = precision == 'mixed_float16'
      make_trainer = LossScaleTrainer if scaled else Trainer
      trainer = make_trainer(model(**_counts(inputs.source)), losses(), devices.micro_batches)
      _check_operations(trainer.detector, strategy)
      optimizer = optimizer(learning_rate=rates if graphs is None else graphs.rates(rates))
      optimizer = _loss_scaled(optimizer, strategy) if scaled else optimizer
      trainer.compile(optimizer, steps_per_execution=steps_per_execution)
      spec = inputs.dataset().element_spec
      trainer.make_variables(spec)
      if graphs is not None:
        trainer = graphs.share(trainer, (spec, devices, steps_per_execution))
      averages = ema(trainer) if ema is not None else None

    notes, trained = _notes(trainer.detector, training.source if training else None, held_out)

    def make_evaluator() -> Evaluator:
      views, predict = held_out_input, trainer.predict_batch
      differences = _differences_from_run(recorded, held_out) if recorded is not None and task != 'train' else []
      if test_augmentation is not None:
        views, predict = test_augmentation.views_of(held_out_input), test_augmentation.predictor(trainer, held_out)
      of_weights = evaluator(views, predict, held_out, folder)
      of_weights.workers, of_weights.notes = workers, [*notes, *differences]
      if averages is None:
        return of_weights
      of_averages = evaluator(views, predict, held_out, folder.subfolder(AVERAGES))
      of_averages.workers, of_averages.notes = workers, [*notes, *differences]
      return EvaluatorWithAverages(of_weights, of_averages, averages)

    if recorded is not None and task != 'train':
      identity.check_network(recorded, gin_files.operative_config(), folder, allow_changes)
    return Experiment(
      folder=folder, workers=workers, strategy=strategy, devices=devices, trainer=trainer, checkpoints=checkpoints,
      make_train_input=(lambda: training) if training is not None else make_train_input, eval_input=held_out_input,
      make_evaluator=make_evaluator, total_steps=rates.total_steps, initial_weights=initial_weights, averages=averages,
      precise_statistics=precise_statistics, test_augmentation=test_augmentation, log_every=log_every,
      checkpoint_every=checkpoint_every, steps_per_execution=steps_per_execution, keep_best=keep_best,
      checkpoint=checkpoint, own_evaluation=own_evaluation, follow_minutes=follow_minutes, notes=(*trained, *notes),
      recorded=recorded, allow_changes=allow_changes, hosts=hosts)


def main_metric() -> str:
  """Return the metric that chooses the best checkpoint; from gin, since an evaluator would read ground truth."""
  metric = gin_files.argument(run, 'keep_best')
  if isinstance(metric, str):
    return metric
  return getattr(gin_files.argument(run, 'evaluator'), 'main_metric', 'box/AP')


# What `run` passes to its parts, so that a binding of the part's own parameter has no effect; and what to bind instead.
_BATCH, _SEED, _DATA = 'bind BATCH_SIZE', 'bind run.seed', 'the data set decides it'
_PASSED = {
  'train_source': {'training': 'bind run.task'}, 'eval_source': {'training': 'bind run.task'},
  'train_input': {'batch_size': _BATCH, 'seed': _SEED, 'source': 'bind run.train_source'},
  'eval_input': {'batch_size': 'bind run.eval_images_per_device', 'source': 'bind run.eval_source'},
  'schedule': {'batch_size': _BATCH, 'num_images': _DATA}, 'model': {'num_classes': _DATA},
  'optimizer': {'learning_rate': 'bind KTimesSchedule.base_rate'},
}


def _open_folder(task: str, model_dir: str, strategy: tf.distribute.Strategy,
                 follow_minutes: float) -> tuple[RunFolder, Workers]:
  """Return the run folder and the workers that share this job."""
  if task == 'follow':
    return FollowedFolder(model_dir, follow_minutes), ALONE
  folder, workers = distribution.join_workers(strategy, model_dir, create=task == 'train', settings=gin.config_str())
  if task == 'evaluate' and folder.remote and workers is ALONE and writer_lock.read(folder) is not None:
    # Object stores cannot append: the job that trains this run would overwrite the metrics of the evaluation.
    return FollowedFolder(model_dir), workers
  return folder, workers


def _counts(source: Source) -> dict[str, int]:
  """Return the arguments of a model that the data set decides."""
  counts = {'num_classes': source.num_classes}
  return counts | ({'num_keypoints': source.num_keypoints} if getattr(source, 'num_keypoints', 0) else {})


def check_hosts(inputs: Input, hosts: int) -> None:
  """Raise UserError if the hosts of a TPU slice, of which one runs Python, cannot read the training data."""
  if hosts > 1 and not hasattr(inputs, 'check_graph'):
    raise UserError(f'{inputs.source.name}: {type(inputs).__name__} reads in Python, which runs on one of the {hosts} '
                    'hosts of this TPU only: use a TPU of one host (up to 8 cores)')
  if hosts > 1:
    inputs.check_graph()


def _check_operations(detector: tf_keras.layers.Layer, strategy: tf.distribute.Strategy) -> None:
  """Raise UserError for a detector on a TPU whose operations XLA cannot compile."""
  if isinstance(strategy, tf.distribute.TPUStrategy) and not getattr(detector, 'xla', True):
    raise UserError('MaskRCNN.xla = False: a TPU runs only what XLA compiles: add '
                    '--gin_file=gin_configs/runtime/tpu.gin, or MaskRCNN.xla = True')


def _report_problems(training: Source | None, held_out: Source) -> None:
  """Log what was repaired, left out or looks wrong in the annotations and images of the sources, in one table."""
  sources = {duplicates.TRAINING: training, duplicates.HELD_OUT: held_out}
  sources = {title: source for title, source in sources.items() if hasattr(source, 'problems')}
  found = duplicates.find(sources)
  for title, source in sources.items():
    found[title].update(source.problems)
  problems.log_table(list(found.items()))


def _set_up(precision: str, seed: int, deterministic: bool) -> None:
  """Set TensorFlow's global state: precision policy, seed of the initial weights, determinism."""
  if precision not in PRECISIONS:
    raise UserError(f'run.precision = {precision!r}: use one of {", ".join(PRECISIONS)}')
  if not 0 <= seed < 2**32:
    raise UserError(f'run.seed = {seed}: use 0 to {2**32 - 1}, which NumPy takes')
  console.compile_once()
  tf_keras.mixed_precision.set_global_policy(precision)
  tf_keras.utils.set_random_seed(seed)
  if deterministic:
    tf.config.experimental.enable_op_determinism()


def _recorded(folder: RunFolder, checkpoints: RunCheckpoints, task: str) -> Identity | None:
  """Return the recorded identity of the run in a folder; None for a new run, even if an earlier start failed."""
  return None if task == 'train' and checkpoints.latest() is None else identity.read(folder)


def _classes_of(recorded: Identity | None) -> Sequence[Category] | None:
  """Return the categories of a run in the order of its classes, None if they are not known."""
  if recorded is None or recorded.categories is None:
    return None
  return [Category(k, str(entry['name']), tuple(entry.get('keypoints', ()))) for k, entry in
          enumerate(recorded.categories)]


def _training(make_source: Callable[..., Source]) -> Source:
  return own_source.checked(make_source(training=True))


def _scores_objects(evaluator: Callable[..., Evaluator]) -> bool:
  return isinstance(evaluator, type) and issubclass(evaluator, DetectionEvaluator)


def _matched(source: Source, classes: Sequence[Category] | None, whose: str) -> Source:
  """Return a source whose classes are in the order of `classes`; None: in its own."""
  return source if classes is None else class_names.match(source, classes, whose)


def _notes(detector: tf_keras.layers.Layer, train: Source | None, held_out: Source) -> tuple[list[str], list[str]]:
  """Return notes on evaluation and notes on training: limits that bind, a mask head without masks to learn from."""
  if not hasattr(detector, 'score_boxes'):  # a classifier
    return [], []
  notes = object_limits.describe(held_out, object_limits.of_evaluation())
  trained = object_limits.describe(train, object_limits.of_training(), 'trained on') if train is not None else []
  if getattr(detector, 'mask_head', None) is not None:
    for source, lines, outcome in ((held_out, notes, 'mask AP is not computed'),
                                   (train, trained, 'the mask head learns boxes')):
      if source is not None and source_without_masks(source):
        lines.append(f'{source.name}: no object has a mask, so {outcome}: add '
                     '--gin_file=gin_configs/models/faster_rcnn.gin, which has no mask head')
  return notes, trained


def _differences_from_run(recorded: Identity, held_out: Source) -> list[str]:
  """Return how an evaluation differs from those during training, beside whose metrics its own are recorded."""
  names = [name for name in recorded.settings if settings.of_the_scores(name)]
  lines = []
  if found := settings.changes({name: recorded.settings[name] for name in names}, gin_files.effective(names)):
    lines.append(f'{settings.SCORED_OTHERWISE}: {settings.listed(found)}')
  was = recorded.data.get('held_out')
  if was and (found := digest.differences(was, digest.summarize(held_out))):
    lines.append(f'evaluated on other data than that of the run: {", ".join(found)}')
  return lines


def _loss_scaled(optimizer: tf_keras.optimizers.Optimizer,
                 strategy: tf.distribute.Strategy) -> tf_keras.mixed_precision.LossScaleOptimizer:
  if isinstance(strategy, tf.distribute.TPUStrategy):
    raise UserError("run.precision = 'mixed_float16' is not for TPUs: use 'mixed_bfloat16'")
  return tf_keras.mixed_precision.LossScaleOptimizer(optimizer)
