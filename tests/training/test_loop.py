"""Division of a batch over devices, intervals that steps_per_execution must divide, errors of a step."""

import contextlib
import json
import logging
import shutil
import signal
import types

import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.distributed import coordination
from rethink_tf.distributed.workers import ALONE, Workers
from rethink_tf.errors import Interrupted, UserError
from rethink_tf.process.signals import PATIENCE_SECONDS
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.metrics_lines import ON_DEMAND
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training import loop
from tests.training.test_loss_scaling import toy, toy_batch, toy_fit, toy_loss


def test_batches_are_divided_evenly():
  assert loop.divide_batch(16, 2, 8) == (8, 1, 2)
  assert loop.divide_batch(16, 2, 1) == (1, 8, 2)
  assert loop.divide_batch(16, 3, 2) == (2, 4, 2)  # 8 images a device: micro-batches of 2, since 3 does not divide them
  assert loop.divide_batch(3, 2, 1) == (1, 3, 1)
  with pytest.raises(UserError, match='BATCH_SIZE = 15'):
    loop.divide_batch(15, 2, 2)


def test_steps_per_execution_divides_every_interval():
  def check(steps, start=0, total=100, every=20):
    loop.check_whole_executions(types.SimpleNamespace(
      steps_per_execution=steps, total_steps=total, log_every=20, checkpoint_every=50,
      due=lambda step: step % every == 0), start)

  check(1, start=7, total=99)
  check(10)
  for arguments, message in (({'steps': 0}, 'use 1 or more'), ({'steps': 4}, 'run.checkpoint_every, 50'),
                             ({'steps': 10, 'start': 7}, 'the step at which the run stands, 7'),
                             ({'steps': 10, 'total': 95}, 'the length of the schedule, 95'),
                             ({'steps': 10, 'every': 25}, 'the interval of evaluation, 25')):
    with pytest.raises(UserError, match=message):
      check(**arguments)


def of_four_steps(monkeypatch, start, folder, checkpoints, evaluator, trainer=None):
  """An experiment, as far as `train` uses it, that stands at a step."""
  monkeypatch.setattr(loop, '_start', lambda experiment: (start, None, []))
  monkeypatch.setattr(loop.compilation, 'ahead', lambda *_: contextlib.nullcontext())
  return types.SimpleNamespace(
    folder=folder, workers=ALONE, checkpoints=checkpoints, trainer=trainer, total_steps=4, trackables={}, log_every=1,
    checkpoint_every=2, due=lambda step: False, averages=None, own_evaluation=True, evaluator=evaluator,
    batches=lambda start: None, train_input=types.SimpleNamespace(facts=None))


def test_after_a_signal_the_evaluation_in_a_thread_is_waited_for(tmp_path, monkeypatch):
  waited = []

  def fit(*_, **__):
    raise Interrupted(signal.SIGTERM)

  folder, evaluator = RunFolder(str(tmp_path)), types.SimpleNamespace(settle=waited.append)
  with pytest.raises(Interrupted):
    loop.train(of_four_steps(monkeypatch, 2, folder, RunCheckpoints(folder), evaluator, types.SimpleNamespace(fit=fit)))
  assert waited == [PATIENCE_SECONDS]


@pytest.mark.parametrize('lost', [True, False])
def test_a_final_evaluation_that_was_lost_is_one_of_training(tmp_path, monkeypatch, lost):
  """The process was ended in the evaluation after the last step; the same command makes it up."""
  folder = RunFolder(str(tmp_path))
  checkpoints = RunCheckpoints(folder)
  checkpoints.keep_best('box/AP', lambda: 4)
  for step in (2, 4):
    checkpoints.save(step, {'model': tf.Module()}, {})
  folder.append_metrics({'kind': 'eval', 'step': 2, 'box/AP': 10.0})
  folder.append_metrics({'kind': 'eval', 'step': 4, 'box/AP': 20.0, ON_DEMAND: lost})

  def evaluate(step, extra):
    folder.append_metrics({'kind': 'eval', 'step': step, 'box/AP': 30.0, **extra})

  monkeypatch.setattr(loop, '_plot', lambda folder: None)
  loop.train(of_four_steps(monkeypatch, 4, folder, checkpoints, types.SimpleNamespace(evaluate=evaluate, last={})))
  line = folder.read_metrics()[-1]
  assert line.get(ON_DEMAND, False) is not lost
  assert json.loads((tmp_path / 'best.json').read_text())['value'] == (30.0 if lost else 20.0)


@pytest.mark.parametrize('case', ['lost', 'recorded', 'on demand', 'without its checkpoint', 'of another network',
                                  'that of averages', 'both recorded'])
def test_an_evaluation_that_a_kill_has_ended_is_repeated(tmp_path, monkeypatch, caplog, case):
  """Scoring of step 2 went on beside the steps to the checkpoint of step 3, from which training resumes."""
  folder, module = RunFolder(str(tmp_path)), tf.Module()
  checkpoints, module.value, seen = RunCheckpoints(folder), tf.Variable(0.0), []
  for step in (2, 3):
    module.value.assign(step)
    checkpoints.save(step, {'model': module}, {})
  if case in ('recorded', 'on demand'):
    folder.append_metrics({'kind': 'eval', 'step': 2, ON_DEMAND: case == 'on demand'})
  elif case in ('that of averages', 'both recorded'):
    for step, kind in ((1, 'eval/ema'), (2, 'eval'), (2, 'eval/ema'))[:2 + (case == 'both recorded')]:
      folder.append_metrics({'kind': kind, 'step': step})
  elif case == 'without its checkpoint':
    shutil.rmtree(tmp_path / 'checkpoints/step-00000002')
  elif case == 'of another network':
    checkpoints.save(2, {'model': tf.Module()}, {})
  checkpoints.restore({'model': module})
  evaluator = types.SimpleNamespace(
    last={}, evaluate=lambda step, extra: seen.append((step, float(module.value), extra)))
  experiment = of_four_steps(monkeypatch, 3, folder, checkpoints, evaluator, types.SimpleNamespace(
    fit=lambda *_, **__: seen.append(float(module.value))))
  experiment.trackables, experiment.due = {'model': module}, lambda step: step % 2 == 0
  experiment.averages = types.SimpleNamespace(restart=None) if case in ('that of averages', 'both recorded') else None
  monkeypatch.setattr(loop, '_plot', lambda folder: None)
  with caplog.at_level(logging.INFO):
    loop.train(experiment)
  repeated = case in ('lost', 'on demand', 'that of averages')
  assert seen == [(2, 2.0, {})] * repeated + [3.0]
  assert ('the evaluation of step 2 is not in metrics.jsonl' in caplog.text) == ('recorded' not in case)
  assert ('its checkpoint is gone' in caplog.text) == (case == 'without its checkpoint')
  assert ('cannot be repeated: wrong checkpoint' in caplog.text) == (case == 'of another network')


def _allocate_too_much(logits, image_ids):
  elements = tf.cast(image_ids[0] + 1, tf.int64) * 2**46  # 256 TiB, a size not known before the step
  return tf.reduce_sum(tf.fill([elements], logits[0, 0]))


def _report_too_much(logits, image_ids):
  def fail(_):
    raise MemoryError('OOM when allocating tensor with shape[2,2]')

  return tf.numpy_function(fail, [image_ids], tf.float32)


@pytest.mark.parametrize('allocate', [
  _report_too_much,
  pytest.param(_allocate_too_much, marks=pytest.mark.slow),  # the allocator tries again for ten seconds
])
def test_running_out_of_memory_is_one_line_with_the_settings_to_change(allocate):
  def hungry(outputs, batch):
    return {'class': toy_loss(outputs, batch)['class'] + allocate(outputs.logits, batch.image_ids)}

  trainer = toy(policy='float32')
  trainer.loss_function = hungry  # after the variables are made
  with pytest.raises(UserError, match='OOM when allocating') as error, loop.out_of_memory_errors():
    toy_fit(trainer, [0])
  line = error.value.line()
  assert 'run.images_per_device' in line and 'gin_configs/runtime/recompute.gin' in line and len(str(line)) < 600
  assert isinstance(error.value.__cause__, tf.errors.ResourceExhaustedError)


def test_a_full_disk_is_not_reported_as_lack_of_memory():
  def write(*_):
    raise tf.errors.ResourceExhaustedError(None, None, 'metrics.jsonl; No space left on device')

  with pytest.raises(tf.errors.ResourceExhaustedError, match='No space left'), loop.out_of_memory_errors():
    toy(policy='float32').fit(tf.data.Dataset.from_tensors(toy_batch(0)), verbose=0,
                              callbacks=[tf_keras.callbacks.LambdaCallback(on_train_batch_end=write)])


@pytest.mark.parametrize('own, error', [('a', None), ('b', 'w.npz: these initial weights are not those of the chief')])
def test_all_workers_start_from_the_same_weights(monkeypatch, own, error):
  """A path on the disk of each machine: the weights of each would stay its own."""
  answers = {}
  monkeypatch.setattr(loop, 'initialise', lambda *_: types.SimpleNamespace(path='w.npz', sha256=own, progress=None))
  monkeypatch.setattr(coordination, 'publish', answers.__setitem__)
  monkeypatch.setattr(coordination, 'published', lambda key, seconds: {'weights': 'a'}[key])
  source = types.SimpleNamespace(source=types.SimpleNamespace(categories=()))
  experiment = types.SimpleNamespace(
    workers=Workers(1, 2), strategy=types.SimpleNamespace(scope=contextlib.nullcontext), trainer=None, averages=None,
    checkpoints=types.SimpleNamespace(restore=lambda *_, **__: None), folder=None, initial_weights=None,
    trackables={}, train_input=source, eval_input=source)
  with pytest.raises(UserError, match=error) if error else contextlib.nullcontext():
    loop.restore_or_initialise(experiment)
  assert bool(answers['weights/1']) == bool(error)
