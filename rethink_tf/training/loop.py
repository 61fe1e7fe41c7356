"""Training from where a run stands to the end of its schedule."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from absl import logging

from rethink_tf import gin_files
from rethink_tf.data import digest
from rethink_tf.data.batching import errors_of
from rethink_tf.distributed import devices
from rethink_tf.distributed.coordination import StopTogether, check_same
from rethink_tf.distributed.strategy import check_same_step, report_lost_workers
from rethink_tf.errors import Interrupted, UserError, check_at_least, in_one_line
from rethink_tf.process.signals import PATIENCE_SECONDS
from rethink_tf.storage import writer_lock
from rethink_tf.storage.checkpoints import iterations
from rethink_tf.storage.metrics_lines import ON_DEMAND, evaluated_steps
from rethink_tf.storage.run_folder import RunFolder, write_schedule
from rethink_tf.storage.writer_lock import WriterLock
from rethink_tf.structures import AVERAGES, Devices, Experiment, Source
from rethink_tf.training import compilation, continuation, seen_images
from rethink_tf.training.callbacks import ProgressAndMetrics, SaveCheckpoints, StopOnNonFinite
from rethink_tf.training.ema import OnAverages
from rethink_tf.training.preemption import Interruption
from rethink_tf.training.trainer import Trainer
from rethink_tf.visualization import curves
from rethink_tf.weights.pretrained import Loaded, PretrainedWeights

_AVERAGED = f'eval/{AVERAGES}'  # kind of the lines of evaluations of averages
# What devices report; 'no space left' on a disk and too long a message are ResourceExhaustedErrors as well.
_OUT_OF_MEMORY = re.compile(r'OOM when allocating|out of memory|failed to allocate memory', re.IGNORECASE)


def train(experiment: Experiment) -> dict[str, float]:
  """Train to the end of the schedule, resuming from the newest checkpoint; return the last metrics in percent.

  Raises:
    UserError: any error that the user can fix; WorkerLost: another worker has ended.
    Interrupted: after a signal; a checkpoint is saved.
  """
  folder, trainer, workers = experiment.folder, experiment.trainer, experiment.workers
  total_steps, inputs, evaluator = experiment.total_steps, experiment.train_input, experiment.evaluator
  with report_lost_workers(workers), writer_lock.held(folder, workers.chief) as lock:
    start, state, corrections = _start(experiment)
    if experiment.own_evaluation:
      _repeat_lost_evaluation(experiment, start)
    progress = ProgressAndMetrics(folder, total_steps, inputs.facts, every=experiment.log_every, start_state=state)
    interruption = Interruption(StopTogether(workers) if workers.count > 1 else None)
    saving = SaveCheckpoints(experiment.checkpoints, experiment.trackables, lambda: {'progress': progress.state()},
                             every=experiment.checkpoint_every, also=experiment.due, interruption=interruption,
                             data_ready=getattr(inputs, 'wait_for_step', lambda step, seconds: True))
    if start < total_steps:
      logging.info('from step %d to %d; the first step takes longest (tracing and compiling), up to a minute', start,
                   total_steps)
      callbacks = [*_stop_when_taken(lock), StopOnNonFinite(inputs.facts), progress, *corrections, saving]
      if experiment.own_evaluation:
        callbacks.append(evaluator)
      try:
        with out_of_memory_errors(), errors_of(inputs), interruption, compilation.ahead(experiment, start):
          trainer.fit(experiment.batches(start), epochs=1, steps_per_epoch=total_steps - start, verbose=0,
                      callbacks=callbacks)
      except Interrupted:  # the process ends without its threads, and an evaluation that is not due again with it
        workers.stop()
        evaluator.settle(PATIENCE_SECONDS)
        raise
      finally:
        folder.flush()
      experiment.checkpoints.tidy()
    else:
      logging.info('the run is complete at step %d: nothing left to train', start)
      if experiment.own_evaluation:
        evaluator.evaluate(start, {ON_DEMAND: True} if _is_evaluated(folder, start) else {})
      folder.flush()
      experiment.checkpoints.tidy()  # the last evaluation of training may have been lost
    _plot(folder)
  return evaluator.last


def _is_evaluated(folder: RunFolder, step: int) -> bool:
  """Whether the evaluation of a step by training itself is recorded: a signal or a kill may have ended it."""
  return step in evaluated_steps(folder.readable_metrics() or (), on_demand=False)


def _repeat_lost_evaluation(experiment: Experiment, start: int) -> None:
  """Repeat the last evaluation before `start` if the process was killed while a thread was still scoring it.

  Earlier ones cannot be lost: each evaluation waits for the one before. That of `start` itself follows in `fit`.
  """
  folder, checkpoints = experiment.folder, experiment.checkpoints
  step = next((step for step in range(start - 1, 0, -1) if experiment.due(step)), None)
  lines = folder.readable_metrics()
  if step is None or checkpoints.restored_step is None or lines is None:
    return
  kinds = ['eval']
  if experiment.averages is not None and any(line.get('kind') == _AVERAGED for line in lines):
    kinds.append(_AVERAGED)
  if all(step in evaluated_steps(lines, False, kind) for kind in kinds):
    return
  lost = (f'{folder.path}: the evaluation of step {step} is not in metrics.jsonl, as when the process ends while it is '
          'scored')
  if step not in checkpoints.steps() or not checkpoints.is_sound(step):
    logging.warning('%s, and its checkpoint is gone: the curves and the choice of the best checkpoint leave it out',
                    lost)
    return
  try:
    checkpoints.restore(experiment.trackables, step)
  except UserError as error:  # the network may have been changed since
    logging.warning('%s, and it cannot be repeated: %s', lost, error.line())
  else:
    logging.info('%s; repeating it from its checkpoint', lost)
    experiment.evaluator.evaluate(step, {})
  otherwise = {} if experiment.averages is None else {AVERAGES: experiment.averages.restart}
  checkpoints.restore(experiment.trackables, start, otherwise)


def _start(experiment: Experiment) -> tuple[int, dict[str, Any] | None, list[tf_keras.callbacks.Callback]]:
  """Restore or initialise the run and record its start; return the step, the state of the counters, and corrections.

  Nothing is written before it is known that the run may continue.
  """
  folder, trainer, workers = experiment.folder, experiment.trainer, experiment.workers
  evaluator = experiment.evaluator
  corrections = _corrections(experiment)
  now, changes = continuation.check(experiment)
  check_same(workers, 'data', digest.to_compare(now.data), lambda chief: digest.difference_to(chief, now.data))
  if experiment.keep_best:
    experiment.checkpoints.keep_best(experiment.metric, lambda: evaluator.evaluated_step)
  state = restore_or_initialise(experiment)
  start = iterations(trainer.optimizer)
  check_same_step(workers, start)
  check_whole_executions(experiment, start)
  continuation.record(experiment, now, changes, start)
  if start:
    continuation.warn_of_other_statistics(experiment)
  folder.save_provenance(sys.argv, gin_files.operative_config(), experiment.devices._asdict(),
                         devices.hardware(experiment.strategy))
  write_schedule(folder, experiment.total_steps)
  for note in experiment.notes:
    logging.warning('%s', note)
  logging.info('%d replica(s) x %d micro-batch(es) x %d image(s); %d trainable parameters; run folder %s',
               *experiment.devices, sum(int(tf.size(v)) for v in trainer.trainable_variables), folder.path)
  return start, state.get('progress'), corrections


def divide_batch(batch_size: int, images_per_device: int, replicas: int) -> Devices:
  """Divide a global batch evenly over the replicas, then into micro-batches of at most `images_per_device`.

  Raises:
    UserError: the batch is not a multiple of the replicas.
  """
  if batch_size % replicas:
    raise UserError(f'BATCH_SIZE = {batch_size} is not a multiple of the {replicas} devices that share it')
  share = batch_size // replicas
  images = max(n for n in range(1, min(share, images_per_device) + 1) if share % n == 0)
  return Devices(replicas, share // images, images)


def initialise(trainer: Trainer, initial_weights: PretrainedWeights | None, folder: RunFolder,
               classes: Sequence[str], held_out: Source | None = None) -> Loaded | None:
  """Load pre-trained weights, if any, into a run that has no checkpoint yet, and record which.

  Weights that continue another run's schedule also set the optimizer's iteration.

  classes: names of the classes in the order of the run, which may not be the order of the weights.
  held_out: the images of the evaluation; a warning is logged if the weights were trained on any of them.
  """
  if hasattr(initial_weights, 'for_classes'):
    initial_weights = initial_weights.for_classes(classes)
  loaded = initial_weights(trainer.detector) if initial_weights is not None else None
  refuse_frozen_random_layers(trainer.detector, loaded.variables if loaded is not None else frozenset())
  if loaded is not None:
    seen = seen_images.find(loaded.path, held_out) if held_out is not None else None
    if seen is not None:
      logging.warning('%s: %s', folder.path, seen)
    record = loaded.record() | ({seen_images.FIELD: seen._asdict()} if seen is not None else {})
    folder.write_text('initial_weights.json', json.dumps(record, indent=2) + '\n')
    trainer.optimizer.iterations.assign(loaded.step)
  return loaded


def refuse_frozen_random_layers(detector: tf_keras.layers.Layer, loaded: frozenset[int] = frozenset()) -> None:
  """Refuse a frozen layer with random weights (projects/GN/README.md: one cost Detectron 3.3 AP).

  loaded: the id of each variable that comes from a weight file.

  Raises:
    UserError: a layer that does not train holds random weights.
  """
  frozen = [layer for layer in _sublayers(detector) if not layer.trainable and layer.weights
            and not list(_sublayers(layer)) and not {id(variable) for variable in layer.weights} <= loaded]
  if frozen:
    raise UserError(f'{len(frozen)} layers would stay at random values (first: {frozen[0].weights[0].name}): layers '
                    'without pre-trained weights must train; set ResNet.freeze_at = 0 and a norm other than '
                    '@frozen_batch_norm')


def _plot(folder: RunFolder) -> None:
  """Write curves.png; an error is logged alone, since the run is complete without the plot."""
  try:
    if folder.readable_metrics() is not None and folder.attempt(
        'curves.png', lambda: curves.curves([folder], folder.join('curves.png'))):
      logging.info('curves: %s', folder.join('curves.png'))
  except Exception as error:  # of Matplotlib
    logging.warning('%s: not plotted: %s: %s', folder.join('curves.png'), type(error).__name__, in_one_line(error))


def restore_or_initialise(experiment: Experiment) -> dict[str, Any]:
  """Restore the newest checkpoint, or set the initial weights; return the state of the counters.

  Averages that run.ema adds to a run in progress start at the weights of the checkpoint.
  """
  def start_averages() -> None:
    logging.warning('%s: the averages of the weights start at those of step %d (run.ema is new here)',
                    experiment.folder.path, experiment.checkpoints.restored_step)
    with experiment.strategy.scope():
      experiment.averages.restart()

  state = experiment.checkpoints.restore(experiment.trackables, otherwise={AVERAGES: start_averages})
  if state is not None:
    return state
  with experiment.strategy.scope():
    names = [category.name for category in experiment.train_input.source.categories]
    loaded = initialise(experiment.trainer, experiment.initial_weights, experiment.folder, names,
                        experiment.eval_input.source)
    check_same(experiment.workers, 'weights', loaded.sha256 if loaded is not None else '', lambda chief: (
      '' if loaded is None or loaded.sha256 == chief else f'{loaded.path}: these initial weights are not those of the '
      'chief: give all workers the same file, on shared storage or as equal copies'))
    if experiment.averages is not None:
      experiment.averages.restart()
  return {'progress': loaded.progress} if loaded is not None and loaded.progress else {}


def _stop_when_taken(lock: WriterLock | None) -> list[tf_keras.callbacks.Callback]:
  """Return callbacks that end training once another process writes to the run folder."""
  return [] if lock is None else [tf_keras.callbacks.LambdaCallback(on_train_batch_end=lambda *_: lock.check())]


def _corrections(experiment: Experiment) -> list[tf_keras.callbacks.Callback]:
  """Return callbacks that must run before checkpoints and evaluations: averages of weights, precise statistics."""
  averages, make = experiment.averages, experiment.precise_statistics
  precise = [] if make is None else [make(experiment.trainer, experiment.batches, experiment.evaluated)]
  if averages is None:
    return precise
  return [averages, *precise, *(OnAverages(averages, each, experiment.evaluated) for each in precise)]


def check_whole_executions(experiment: Experiment, start: int) -> None:
  """Check that reports, checkpoints and evaluations are due only between executions of run.steps_per_execution steps.

  Raises:
    UserError: an interval, the schedule or `start` is not a multiple of them.
  """
  steps, total = experiment.steps_per_execution, experiment.total_steps
  check_at_least('run', 1, steps_per_execution=steps)
  counts = {
    'run.log_every': experiment.log_every, 'run.checkpoint_every': experiment.checkpoint_every,
    'the length of the schedule': total, 'the step at which the run stands': start,
    'the interval of evaluation': next((step for step in range(1, total) if experiment.due(step)), 0)}
  for name, value in counts.items():
    if value % steps:
      raise UserError(f'run.steps_per_execution = {steps} does not divide {name}, {value}: use a divisor of it and of '
                      'the other intervals, or 1')


def _sublayers(layer: tf_keras.layers.Layer) -> Iterator[tf_keras.layers.Layer]:
  return (module for module in layer.submodules if isinstance(module, tf_keras.layers.Layer))


@contextlib.contextmanager
def out_of_memory_errors() -> Iterator[None]:
  """Turn the error of a device that runs out of memory in a step into a UserError that names what needs less."""
  try:
    yield
  except tf.errors.ResourceExhaustedError as error:
    found = _OUT_OF_MEMORY.search(error.message)
    if found is None:
      raise
    raise UserError(
      f'a device ran out of memory in a training step ({error.message[found.start():].splitlines()[0]}): lower '
      'run.images_per_device (gradients are then accumulated and the result stays nearly the same), or add '
      '--gin_file=gin_configs/runtime/recompute.gin, which recomputes activations instead of keeping them'
    ) from error
