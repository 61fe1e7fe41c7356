"""Curves, table and names of runs from their folders."""

import cv2
import numpy as np
import pytest

from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.visualization.curves import curves, run_names, table


def make_run(path, ap):
  run = RunFolder(str(path))
  for step in (1, 10, 20):
    run.append_metrics({'kind': 'train', 'step': step, 'loss/total': 5.0 / step})
  run.append_metrics({'kind': 'train', 'step': 21, 'loss/total': float('nan')})
  run.append_metrics({'kind': 'eval', 'step': 10, 'box/AP': ap / 2, 'mask/AP': ap / 3})
  run.append_metrics({'kind': 'eval', 'step': 20, 'box/AP': ap, 'box/AP50': ap + 10, 'box/AP75': -1.0})
  return run


def test_table_has_the_latest_metrics(tmp_path):
  runs = [make_run(tmp_path / 'a' / 'scratch', 30.0), make_run(tmp_path / 'b' / 'scratch', 20.04),
          RunFolder(str(tmp_path / 'new'))]
  header, first, second, third = (line.split() for line in table(runs).splitlines())
  assert header[:3] == ['run', 'iterations', 'box/AP']
  assert first == ['a/scratch', '20', '30.0', '40.0', '-', '-', '-', '-']
  assert second[:3] == ['b/scratch', '20', '20.0']
  assert third[0].endswith('new') and set(third[1:]) == {'-'}
  assert len({len(line) for line in table(runs).splitlines()}) == 1


def test_columns_of_the_table_are_the_metrics_of_the_runs(tmp_path):
  def run(name, **metrics):
    folder = RunFolder(str(tmp_path / name))
    folder.append_metrics({'kind': 'eval', 'step': 5, 'eval_seconds': 1.0} | metrics)
    return folder

  voc = run('voc', **{'voc/mAP': 77.61, 'voc/AP75': 50.0, 'voc/AP': 48.0})
  people = run('people', **{'box/AP': 50.0, 'keypoint/AP': 65.55, 'keypoint/AP50': 86.0, 'keypoint/AP75': -1.0})
  classes = run('classes', **{'top-1': 76.0, 'top-5': 93.0})
  cells = [line.split() for line in table([voc, people]).splitlines()]
  assert cells[0][2:] == ['box/AP', 'box/AP50', 'box/AP75', 'keypoint/AP', 'keypoint/AP50', 'keypoint/AP75', 'voc/mAP',
                          'voc/AP75']
  assert cells[1] == ['voc', '5', *'------', '77.6', '50.0']
  assert cells[2] == ['people', '5', '50.0', '-', '-', '65.5', '86.0', '-', '-', '-']
  assert table([classes]).split() == ['run', 'iterations', 'top-1', 'top-5', 'classes', '5', '76.0', '93.0']
  assert table([RunFolder(str(tmp_path / 'new'))]).split()[2:4] == ['box/AP', 'box/AP50']


def test_run_names_are_as_short_as_they_differ(tmp_path):
  folders = [RunFolder(str(tmp_path / name)) for name in ('a/6x', 'b/6x', 'b/2x')]
  assert run_names(folders) == ['a/6x', 'b/6x', 'b/2x']
  assert run_names(folders[1:]) == ['6x', '2x'] and run_names([]) == []
  assert run_names([folders[0], folders[0]]) == ['6x', '6x']


def test_curves_of_runs_without_and_with_data(tmp_path):
  empty = RunFolder(str(tmp_path / 'empty'))
  path = str(tmp_path / 'curves.png')
  assert curves([empty], path) == path
  blank = cv2.imread(path)
  curves([make_run(tmp_path / 'a', 30.0), make_run(tmp_path / 'b', 40.0), empty], path)
  drawn = cv2.imread(path)
  assert drawn.shape == blank.shape and drawn.shape[1] > 1000
  coloured = (drawn.max(axis=2).astype(int) - drawn.min(axis=2) > 60).sum()
  assert coloured > 1000 > (blank.max(axis=2).astype(int) - blank.min(axis=2) > 60).sum()
  half = drawn.shape[1] // 2
  for side in (drawn[:, :half], drawn[:, half:]):
    assert (side.max(axis=2).astype(int) - side.min(axis=2) > 60).sum() > 300, 'both panels have curves'
  assert not list(tmp_path.glob('*.tmp'))


def levels(path):
  """Horizontal lines in the first run's colour in the right panel, from the top: the drawn fraction of each."""
  plot = cv2.imread(path)[..., ::-1].astype(int)
  panel = plot[:, plot.shape[1] // 2:]
  drawn = np.abs(panel - [0x1f, 0x6f, 0xb4]).max(-1) < 60
  long = drawn.sum(1) > 0.2 * panel.shape[1]  # text and legend are shorter
  tops = np.flatnonzero(long & ~np.roll(long, 1))
  spans = [drawn[top:top + 4].any(0) for top in tops]  # a line is some two pixels wide
  return [span.sum() / np.ptp(np.flatnonzero(span)) for span in spans]


@pytest.mark.parametrize('metric', ['box/AP', 'mask/AP', 'keypoint/AP', 'top-1'])
def test_averages_are_dashed_in_the_colour_of_their_run(tmp_path, metric):
  run, path = RunFolder(str(tmp_path / 'run')), str(tmp_path / 'curves.png')
  for step in (5, 200):
    run.append_metrics({'kind': 'eval', 'step': step, metric: 40.0})
  alone = levels(curves([run], path))
  for step in (5, 200):
    run.subfolder('ema').append_metrics({'kind': 'eval', 'step': step, metric: 80.0})
  averages, *raw = levels(curves([run], path))
  assert len(raw) == len(alone) == 1 and raw[0] == pytest.approx(alone[0], abs=0.05)
  assert 0.4 < averages < 0.9 and (metric not in ('box/AP', 'top-1') or raw[0] > 0.99)
