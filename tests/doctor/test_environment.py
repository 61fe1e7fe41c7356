"""Folders that cannot be read or written, and devices with problems."""

import types

import cv2
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.distributed import devices
from rethink_tf.doctor import environment


def only(rows):
  row, = rows
  return row


def test_a_run_folder_is_written_where_it_would_be_and_left_as_it_was(tmp_path):
  row = only(environment.check_run_folder(f'{tmp_path}/a/b'))
  assert row.result in ('ok', 'warning') and f'{tmp_path}: 1 MiB' in row.note and not list(tmp_path.iterdir())


def test_a_run_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').write_text('')
  row = only(environment.check_run_folder(f'{tmp_path}/file'))
  assert row.result == 'FAILED' and 'choose another --model_dir' in row.note and '\n' not in row.note


def test_files_of_a_data_folder_that_cannot_be_read_are_counted(tmp_path, monkeypatch):
  monkeypatch.setattr(environment, '_READ_SECONDS', 0.3)
  assert only(environment.check_data(f'{tmp_path}/nowhere')).result == 'FAILED'
  assert only(environment.check_data(str(tmp_path))).result == 'warning'
  cv2.imwrite(f'{tmp_path}/a.png', np.zeros((9, 9, 3), np.uint8))
  row = only(environment.check_data(str(tmp_path)))
  assert row.result == 'ok' and row.note.startswith('1 images read and decoded')
  (tmp_path / 'b.jpg').write_bytes(b'no image')
  row = only(environment.check_data(str(tmp_path)))
  assert row.result == 'warning' and '1 cannot be read: ' in row.note


@pytest.mark.parametrize('name', ['a.webp', 'a.bmp', 'a.JPEG'])
def test_images_of_every_format_are_read(tmp_path, monkeypatch, name):
  monkeypatch.setattr(environment, '_READ_SECONDS', 0.3)
  (tmp_path / name).write_bytes(cv2.imencode(name[1:].lower(), np.zeros((9, 9, 3), np.uint8))[1].tobytes())
  assert only(environment.check_data(str(tmp_path))).note.startswith('1 images read and decoded')


@pytest.mark.parametrize('suffix', ['.tfrecord', ''])
def test_damaged_shards(tmp_path, monkeypatch, suffix):
  monkeypatch.setattr(environment, '_READ_SECONDS', 0.3)
  shards = [tmp_path / f'train-0000{i}-of-00002{suffix}' for i in range(2)]
  for shard in shards:
    with tf.io.TFRecordWriter(str(shard)) as writer:
      writer.write(b'a record')
  row = only(environment.check_data(str(tmp_path)))
  assert row.result == 'ok' and row.note.startswith('2 shards read')
  content = bytearray(shards[0].read_bytes())
  content[14] ^= 1
  shards[0].write_bytes(bytes(content))
  row = only(environment.check_data(str(tmp_path)))
  assert row.result == 'warning' and f'1 cannot be read: {shards[0]}: the record at byte 0 is damaged' in row.note
  shards[1].write_bytes(b'')
  row = only(environment.check_data(str(tmp_path)))
  assert row.result == 'FAILED' and '2 cannot be read' in row.note


@pytest.mark.parametrize('problem, result', [('too_new', 'FAILED'), ('too_old', 'warning')])
def test_problems_of_devices_are_rows(monkeypatch, problem, result):
  monkeypatch.setattr(devices, 'unused_driver', lambda: None)
  monkeypatch.setattr(devices, problem, lambda found: 'a line')
  assert [(row.result, row.note) for row in environment.check_devices()][1:] == [(result, 'a line')]


def test_facts_name_versions_and_memory(monkeypatch):
  monkeypatch.setattr(devices, 'driver', lambda: '550.54')
  monkeypatch.setattr(environment.shutil, 'which', lambda name: name)
  monkeypatch.setattr(environment.subprocess, 'run', lambda *_, **__: types.SimpleNamespace(
    returncode=0, stdout='81920 MiB\n81920 MiB\n'))
  facts = environment.facts()
  assert facts['NVIDIA driver'] == '550.54' and facts['tensorflow'].startswith('2.')
  assert facts['memory'].endswith('GPUs 81920 MiB, 81920 MiB')
