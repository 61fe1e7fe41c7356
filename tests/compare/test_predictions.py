"""The same images of several runs, from their rendered predictions."""

import json
import re

import cv2
import numpy as np

from rethink_tf.compare import predictions, report
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.evaluation.scoring import CELLS
from rethink_tf.visualization import drawing
from tests.compare.fake_runs import HALF, better, write

SHAPES = [(30, 40), (40, 30), (20, 20), (40, 40), (40, 40), (40, 40)]


def render(folder, ids, shade, data=''):
  """A predictions.png as an evaluation writes it: black ground truth and grey predictions."""
  images = [np.full((*SHAPES[i], 3), value, np.uint8) for i in ids for value in (0, shade)]
  grid, cells = drawing.image_grid_with_cells(images, 4, ['title'] * len(images))
  content = [[i, f'{data}{i}.jpg', *cells[2 * k:2 * k + 2]] for k, i in enumerate(ids)]
  path = next((folder / 'eval').iterdir()) / 'predictions.png'
  path.write_bytes(drawing.png(grid, {CELLS: json.dumps(content)}))
  return path


def test_images_that_both_have_drawn(tmp_path):
  runs = read_runs([write(tmp_path / 'a', HALF), write(tmp_path / 'b', HALF, init='w')])
  path = render(tmp_path / 'a', [3, 1, 0, 2, 4, 5], 100)
  render(tmp_path / 'b', [0, 1, 2, 3, 5], 200)
  sides = {'scratch 1x': runs[0], 'pre-trained 1x': runs[1]}
  found = predictions.on_same_images(sides)
  assert [one.name for one in found] == ['0.jpg', '1.jpg', '2.jpg', '3.jpg']
  for one, shape in zip(found, SHAPES, strict=False):
    decoded = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) for data in one.sides.values()]
    assert [round(image.mean()) for image in decoded] == [0, 100, 200]
    assert abs(decoded[0].shape[0] / decoded[0].shape[1] - shape[0] / shape[1]) < 0.01, 'the cell, not its title'
  assert list(found[0].sides) == ['ground truth', 'scratch 1x, score >= 0.5', 'pre-trained 1x, score >= 0.5']
  for damaged in (b'', path.read_bytes()[:300], path.read_bytes().replace(b'0.jpg', b'0.jp"'),
                  path.read_bytes().replace(b'[[3, "3.jpg", [', b'[[3, "3.jpg", 7, '),
                  drawing.png(np.zeros((9, 9, 3), np.uint8))):
    path.write_bytes(damaged)
    assert predictions.on_same_images(sides) == []


def test_images_of_the_same_id_in_another_data_set(tmp_path, monkeypatch):
  paths = [write(tmp_path / f'{init or "s"}{seed}', HALF, init=init, seed=seed) for init in (None, 'w')
           for seed in (1, 2)]
  drawn, sides = [], []
  monkeypatch.setattr(report, '_write', lambda _output, _runs, _metric, content, *_: drawn.append(
    [one.name for one in content.drawn]) or sides.extend(list(one.sides) for one in content.drawn[:1]) or '')
  for data in ('', 'other'):
    for name, of in (('s1', ''), ('w1', data)):
      render(tmp_path / name, [0, 1], 100, of)
    report.compare(paths, str(tmp_path / 'out'), draws=20)
  truth = next((tmp_path / 'w1/eval').iterdir()) / 'ground_truth.json'
  render(tmp_path / 'w1', [0, 1], 100)
  truth.write_text(truth.read_text().replace('[10, 10, 40, 40]', '[20, 30, 40, 40]', 1))
  report.compare(paths, str(tmp_path / 'out'), draws=20)
  assert drawn == [['0.jpg', '1.jpg'], [], []], 'other names, other objects under the same names'
  assert sides == [['ground truth', 'scratch 1x, score >= 0.5', 'pre-trained 1x, score >= 0.5']]
  report.compare([*paths[:3], write(tmp_path / 'v1', better(40), init='v')], str(tmp_path / 'out'), draws=20)
  assert drawn[-1] == [], 'v has drawn none'
  render(tmp_path / 'v1', [0, 1], 100)
  report.compare([*paths[:2], *(str(tmp_path / name) for name in ('v1', 'w2'))], str(tmp_path / 'out'), draws=20)
  assert re.fullmatch(r'pre-trained \([vw]\) 1x, score >= 0.5', sides[-1][2]), 'which of the pre-trainings'
