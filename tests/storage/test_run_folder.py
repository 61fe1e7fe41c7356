"""Metrics across kills and full disks, TensorBoard events, provenance."""

import contextlib
import errno
import json
import math
import os
import resource
import shutil
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorboard.backend.event_processing import plugin_event_accumulator

import rethink_tf
from rethink_tf.errors import UserError
from rethink_tf.storage import files, manifests, run_folder
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Devices


@pytest.fixture(params=['local', 'ram://'])
def folder(request, tmp_path):
  if request.param == 'local':
    return RunFolder(str(tmp_path / 'runs' / 'demo'))
  return RunFolder(f'ram://{tmp_path.name}/demo')


def test_metrics_are_read_back_in_order(folder):
  folder.append_metrics({'kind': 'train', 'step': np.int64(1), 'loss/total': np.float32(.5)})
  folder.append_metrics({'kind': 'train', 'step': 2, 'loss/total': tf.constant(float('nan'))})
  folder.append_metrics({'kind': 'eval', 'step': 2, 'box/AP': 40., 'per_class': {'cat': math.inf, 'dog': [1, 2.5]}})
  assert folder.read_metrics() == [
    {'kind': 'train', 'step': 1, 'loss/total': .5}, {'kind': 'train', 'step': 2, 'loss/total': None},
    {'kind': 'eval', 'step': 2, 'box/AP': 40., 'per_class': {'cat': None, 'dog': [1, 2.5]}}]
  with tf.io.gfile.GFile(folder.join('metrics.jsonl')) as file:
    assert all(json.loads(line) for line in file)  # valid JSON, one object a line
  again = RunFolder(folder.path)
  again.append_metrics({'kind': 'eval', 'step': 3})
  assert [line['step'] for line in again.read_metrics()] == [1, 2, 2, 3]


def test_lines_of_several_threads_are_complete(folder):
  """Scoring writes in parallel to training."""
  def write(kind):
    for step in range(30):
      folder.append_metrics({'kind': kind, 'step': step, 'text': 'x' * 500})

  threads = [threading.Thread(target=write, args=[kind]) for kind in ('eval', 'train', 'eval')]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  folder.flush()
  lines = RunFolder(folder.path).read_metrics()
  assert len(lines) == 90
  assert [line['step'] for line in lines if line['kind'] == 'train'] == list(range(30))


def test_remote_training_lines_are_uploaded_by_flush(tmp_path):
  folder = RunFolder(f'ram://{tmp_path.name}/waits')
  for step in range(3):
    folder.append_metrics({'kind': 'train', 'step': step})
  reader = RunFolder(folder.path, create=False)
  assert len(folder.read_metrics()) == 3 and len(reader.read_metrics()) == 1  # the first is uploaded at once
  folder.flush()
  assert len(reader.read_metrics()) == 3


def test_an_incomplete_last_line_is_skipped_and_not_continued(tmp_path):
  folder = RunFolder(str(tmp_path))
  folder.append_metrics({'step': 1})
  with open(folder.join('metrics.jsonl'), 'a') as file:
    file.write('{"step": 2, "loss/to')
  assert folder.read_metrics() == [{'step': 1}]
  folder.append_metrics({'step': 3})
  assert folder.read_metrics() == [{'step': 1}, {'step': 3}]


def test_lines_of_repeated_steps_are_replaced(folder):
  for line in ({'kind': 'train', 'step': 10}, {'kind': 'eval', 'step': 10}, {'kind': 'train', 'step': 20},
               {'kind': 'resume', 'step': 10}, {'kind': 'train', 'step': 15}):
    folder.append_metrics(line)
  kept = [(line['kind'], line['step']) for line in folder.read_metrics()]
  assert kept == [('train', 10), ('eval', 10), ('train', 15)]


def test_lines_of_a_killed_writer_are_complete(tmp_path):
  code = ('import sys; from rethink_tf.storage.run_folder import RunFolder\nfolder = RunFolder(sys.argv[1])\n'
          'print("ready", flush=True)\nstep = 0\nwhile True:\n'
          '  step += 1\n  folder.append_metrics({"step": step, "text": "x" * 5000})\n')
  with subprocess.Popen([sys.executable, '-c', code, str(tmp_path)], stdout=subprocess.PIPE) as process:
    process.stdout.readline()
    folder = RunFolder(str(tmp_path), create=False)
    while len(folder.read_metrics()) < 5:
      assert process.poll() is None
    process.kill()
  assert [line['step'] for line in folder.read_metrics()] == list(range(1, len(folder.read_metrics()) + 1))


@contextlib.contextmanager
def file_size_limit(size):
  """Simulate a full disk."""
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
  try:
    yield
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize('room', [0, 5])
def test_lines_are_kept_while_the_disk_is_full(tmp_path, caplog, room):
  folder = RunFolder(str(tmp_path))
  folder.append_metrics({'step': 1})
  size = os.path.getsize(folder.join('metrics.jsonl'))
  with file_size_limit(size + room):
    for step in (2, 3, 4):
      folder.append_metrics({'step': step})
    assert os.path.getsize(folder.join('metrics.jsonl')) == size  # no incomplete line either
    assert [line['step'] for line in folder.read_metrics()] == [1, 2, 3, 4]
  assert folder.failures == {'metrics.jsonl': 3}
  assert len([record for record in caplog.records if 'metrics.jsonl could not be written' in record.message]) == 1
  folder.append_metrics({'step': 5})
  assert [line['step'] for line in RunFolder(str(tmp_path)).read_metrics()] == [1, 2, 3, 4, 5]
  assert not folder.failures


def test_flush_writes_pending_lines(tmp_path):
  folder = RunFolder(str(tmp_path))
  with file_size_limit(0):
    folder.append_metrics({'step': 1})
  folder.flush()
  assert RunFolder(str(tmp_path)).read_metrics() == [{'step': 1}]


def test_a_deleted_folder_does_not_end_the_run(tmp_path, caplog):
  folder = RunFolder(str(tmp_path / 'run'))
  folder.append_metrics({'step': 1})
  folder.add_scalars(1, {'loss': 1.})
  folder.flush()
  shutil.rmtree(folder.path)
  for step in (2, 3):
    folder.append_metrics({'step': step})
    folder.add_scalars(step, {'loss': 1.})
    folder.flush()
  assert folder.failures['metrics.jsonl'] >= 2
  messages = [record.getMessage() for record in caplog.records]
  assert len([message for message in messages if 'metrics.jsonl could not be written' in message]) == 1
  with pytest.raises(UserError, match='cannot write to the run folder .*config.gin'):
    folder.write_text('config.gin', '')
  os.mkdir(folder.path)
  folder.flush()
  assert [line['step'] for line in folder.read_metrics()] == [2, 3]


def test_transient_errors_are_retried(tmp_path, monkeypatch):
  folder = RunFolder(str(tmp_path))
  rename, calls = tf.io.gfile.rename, []

  def flaky(*arguments, **settings):
    calls.append(arguments)
    if len(calls) < 3:
      raise tf.errors.UnavailableError(None, None, 'restarting')
    return rename(*arguments, **settings)

  monkeypatch.setattr(tf.io.gfile, 'rename', flaky)
  monkeypatch.setattr('rethink_tf.storage.retries.time.sleep', lambda seconds: None)
  folder.write_text('note.txt', 'kept')
  with tf.io.gfile.GFile(folder.join('note.txt')) as file:
    assert file.read() == 'kept'
  assert len(calls) == 3


def test_write_failures_are_logged_once_and_counted(tmp_path, caplog):
  folder = RunFolder(str(tmp_path))

  def full():
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  assert not any(folder.attempt('curves.png', full) for _ in range(5))
  assert folder.failures == {'curves.png': 5}
  (message,) = [record.getMessage() for record in caplog.records]
  assert 'curves.png could not be written: No space left on device; the run continues' in message
  assert folder.attempt('curves.png', lambda: None) and not folder.failures


def scalars(folder, name='.'):
  """Return the curves as TensorBoard reads them: (step, value)."""
  accumulator = plugin_event_accumulator.EventAccumulator(folder.join('tensorboard', name))
  accumulator.Reload()
  return {tag: [(event.step, float(tf.make_ndarray(event.tensor_proto))) for event in accumulator.Tensors(tag)]
          for tag in accumulator.Tags()[plugin_event_accumulator.TENSORS]}


def test_curves_of_a_resumed_run(tmp_path):
  """Of repeated steps, TensorBoard and metrics.jsonl show the later values."""
  for start, end, value in ((0, 6, 1.), (3, 5, 2.)):
    folder = RunFolder(str(tmp_path))
    folder.continue_at(start)
    for step in range(start + 1, end + 1):
      folder.append_metrics({'kind': 'train', 'step': step, 'loss': value})
      folder.add_scalars(step, {'train/loss': value})
    folder.flush()
    time.sleep(1.1)  # names of event files contain the second
  expected = [(1, 1.), (2, 1.), (3, 1.), (4, 2.), (5, 2.)]
  assert [(line['step'], line['loss']) for line in folder.read_metrics()] == expected
  assert scalars(folder)['train/loss'] == expected


def test_evaluations_of_cancelled_steps_are_set_aside(tmp_path):
  """The checkpoints from which they were are gone: inspect_run and compare would take them for this training's."""
  folder = RunFolder(str(tmp_path))
  averages = folder.subfolder('ema')
  for content in ('first', 'second'):
    for step in (2, 4):
      for one in (folder, averages):
        tf.io.gfile.makedirs(one.join('eval', f'step-{step:08d}'))
        files.write(one.join('eval', f'step-{step:08d}', 'bbox.json'), content)
    folder.continue_at(2)
  for one in (folder, averages):
    assert sorted(manifests.names_in(one.join('eval'))) == ['cancelled-step-00000004', 'step-00000002']
    with tf.io.gfile.GFile(one.join('eval', 'cancelled-step-00000004', 'bbox.json')) as file:
      assert file.read() == 'second'


def test_events_of_averages_are_cancelled_too(tmp_path):
  for start, value in ((0, 1.), (3, 2.)):
    folder = RunFolder(str(tmp_path))
    averages = folder.subfolder('ema')
    folder.continue_at(start)
    with averages.writer().as_default(step=4):
      tf.summary.scalar('eval/box/AP', value)
    folder.flush()
    time.sleep(1.1)  # names of event files contain the second
  assert scalars(folder, 'ema')['eval/box/AP'] == [(4, 2.)]
  new = RunFolder(str(tmp_path / 'new'))
  new.subfolder('ema')
  new.continue_at(0)  # no curve of averages before there is one
  assert not (tmp_path / 'new' / 'tensorboard' / 'ema').exists()


def test_a_damaged_schedule_is_none(tmp_path):
  folder = RunFolder(str(tmp_path))
  for damage in (lambda path: path.write_text('{"total'), lambda path: (path.unlink(), path.mkdir())):
    damage(tmp_path / run_folder.SCHEDULE)
    assert run_folder.total_steps(folder) is None


def test_metrics_of_a_subfolder_are_prefixed_in_metrics_jsonl(folder):
  subfolder = folder.subfolder('ema')
  folder.append_metrics({'kind': 'eval', 'step': 2, 'time': 1., 'box/AP': 40.})
  subfolder.append_metrics({'kind': 'eval', 'step': 2, 'time': 2., 'box/AP': 41., 'eval_seconds': 3.})
  assert folder.read_metrics() == [
    {'kind': 'eval', 'step': 2, 'time': 1., 'box/AP': 40.},
    {'kind': 'eval/ema', 'step': 2, 'time': 2., 'ema/box/AP': 41., 'ema/eval_seconds': 3.}]
  assert subfolder.read_metrics() == [{'kind': 'eval', 'step': 2, 'time': 2., 'box/AP': 41., 'eval_seconds': 3.}]
  assert subfolder.join('eval', 'x') == folder.join('ema', 'eval', 'x')
  assert subfolder.writer() is folder.writer('ema')


def test_tensorboard_events(folder):
  with folder.writer().as_default(step=3):
    tf.summary.scalar('eval/box/AP', 41.3)
  assert folder.writer() is folder.writer()
  folder.flush()
  (events,) = tf.io.gfile.glob(folder.join('tensorboard', '*'))
  found = [(event.step, value.tag, float(tf.make_ndarray(value.tensor)))
           for event in tf.compat.v1.train.summary_iterator(events) for value in event.summary.value]
  assert found == [(3, 'eval/box/AP', pytest.approx(41.3))]


def test_provenance(folder):
  folder.save_provenance(['train.py', '--gin_file=a.gin'], 'run.batch_size = 16\n')
  with tf.io.gfile.GFile(folder.join('config.gin')) as file:
    assert file.read() == 'run.batch_size = 16\n'
  command = folder.read_command()
  assert command['argv'] == ['train.py', '--gin_file=a.gin'] and command['earlier_starts'] == []
  assert command['versions']['tensorflow'] == tf.__version__
  assert command['versions']['rethink_tf'] == rethink_tf.__version__
  assert {'tf_keras', 'official', 'numpy', 'python'} <= set(command['versions'])
  assert os.uname().nodename not in json.dumps(command) or len(os.uname().nodename) < 4
  assert command['devices'] is None
  folder.save_provenance(['again'], '', {'replicas': 8, 'micro_batches': 1, 'images': 2}, 'CPU, 2 cores')
  assert Devices.of_start(folder.read_command()).statistics == 16
  assert folder.read_command()['hardware'] == 'CPU, 2 cores'
  folder.save_provenance(['and again'], '')
  command = folder.read_command()
  assert [start['argv'] for start in command['earlier_starts']] == [['train.py', '--gin_file=a.gin'], ['again']]
  assert all('earlier_starts' not in start for start in command['earlier_starts'])


def test_a_damaged_command_json_is_ignored(tmp_path):
  folder = RunFolder(str(tmp_path))
  (tmp_path / 'command.json').write_text('{"argv": [')
  folder.save_provenance(['train'], '')
  assert folder.read_command()['argv'] == ['train']


def test_unusable_paths(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(UserError, match='cannot write to the run folder .*file/run: .*; choose another'):
    RunFolder(str(tmp_path / 'file' / 'run'))
  with pytest.raises(UserError, match='cannot write to the run folder /proc/run') as caught:
    RunFolder('/proc/run')
  assert '\n' not in str(caught.value)
  (tmp_path / 'run').mkdir()
  (tmp_path / 'run/checkpoints').write_text('')
  with pytest.raises(UserError, match='cannot write to the run folder .*run: .*run/checkpoints/'):
    RunFolder(str(tmp_path / 'run'))
  with pytest.raises(UserError, match='no run folder at .*nowhere'):
    RunFolder(str(tmp_path / 'nowhere'), create=False)
  with pytest.raises(UserError, match='no run folder given'):
    RunFolder('')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may write everywhere')
def test_write_protected_folder(tmp_path):
  tmp_path.chmod(0o500)
  with pytest.raises(UserError, match='Permission denied; choose another with --model_dir'):
    RunFolder(str(tmp_path / 'run'))
  assert RunFolder(str(tmp_path), create=False).read_metrics() == []


def test_a_new_folder_is_empty(tmp_path):
  RunFolder(str(tmp_path / 'run'))
  assert os.listdir(tmp_path / 'run') == []


def test_unreadable_metrics_do_not_end_training(tmp_path, caplog):
  (tmp_path / 'metrics.jsonl').mkdir()
  folder = RunFolder(str(tmp_path))
  with pytest.raises(UserError, match='metrics.jsonl: cannot be read.*repair or move it'):
    folder.read_metrics()
  assert folder.readable_metrics() is None and folder.subfolder('ema').readable_metrics() is None
  folder.append_metrics({'kind': 'train', 'step': 1})
  assert sum('continues without its earlier lines' in message for message in caplog.messages) == 1
  (tmp_path / 'metrics.jsonl').rmdir()
  folder.append_metrics({'kind': 'train', 'step': 2})
  assert [line['step'] for line in folder.read_metrics()] == [1, 2]


def test_deleted_metrics_are_reported(tmp_path, caplog):
  folder = RunFolder(str(tmp_path))
  folder.append_metrics({'step': 1})
  (tmp_path / 'metrics.jsonl').unlink()
  folder.append_metrics({'step': 2})
  assert 'was deleted or truncated during the run' in caplog.messages[0]
  assert [line['step'] for line in folder.read_metrics()] == [2]


def test_remote_metrics_that_cannot_be_read_are_not_overwritten(tmp_path, monkeypatch):
  path = f'ram://{tmp_path.name}/unreadable'
  RunFolder(path).append_metrics({'kind': 'eval', 'step': 1})
  folder = RunFolder(path)

  def refuse(name):
    raise tf.errors.PermissionDeniedError(None, None, 'no access')

  with monkeypatch.context() as patched:
    patched.setattr(folder, '_read_file', refuse)
    folder.append_metrics({'kind': 'eval', 'step': 2})
  folder.append_metrics({'kind': 'eval', 'step': 3})
  assert [line['step'] for line in RunFolder(path, create=False).read_metrics()] == [1, 2, 3]
