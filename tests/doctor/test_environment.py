"""Folders that cannot be read or written, and devices with problems."""

import types

import cv2
import numpy as np
import pytest

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


def test_a_data_folder(tmp_path, monkeypatch):
  monkeypatch.setattr(environment, '_READ_SECONDS', 0.3)
  assert only(environment.check_data(f'{tmp_path}/nowhere')).result == 'FAILED'
  assert only(environment.check_data(str(tmp_path))).result == 'warning'
  cv2.imwrite(f'{tmp_path}/a.png', np.zeros((9, 9, 3), np.uint8))
  row = only(environment.check_data(str(tmp_path)))
  assert row.result == 'ok' and row.note.startswith('1 images read and decoded')
  (tmp_path / 'b.jpg').write_bytes(b'no image')
  row = only(environment.check_data(str(tmp_path)))
  assert row.result == 'warning' and '1 cannot be read: ' in row.note


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
