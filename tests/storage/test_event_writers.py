"""TensorBoard events whose files are deleted during the run."""

import shutil

import tensorflow as tf
from tensorboard.backend.event_processing import plugin_event_accumulator

from rethink_tf.storage.event_writers import EventWriters


def write(writers, step):
  with writers.get().as_default(step=step):
    tf.summary.scalar('loss', 1.0)
  writers.get().flush()


def test_events_begin_anew_when_their_folder_is_deleted(tmp_path, caplog):
  writers = EventWriters(str(tmp_path / 'tensorboard'))
  write(writers, 1)
  assert writers.get() is writers.get() and not caplog.messages
  shutil.rmtree(tmp_path / 'tensorboard')
  write(writers, 2)
  assert len(caplog.messages) == 1 and 'deleted during the run' in caplog.messages[0]
  events = plugin_event_accumulator.EventAccumulator(str(tmp_path / 'tensorboard'))
  events.Reload()
  assert [event.step for event in events.Tensors('loss')] == [2]
