"""The report of an evaluation: rendered predictions with file names, and what they say where nothing passes."""

import io
import json
from types import SimpleNamespace

import numpy as np
from PIL import Image

from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.evaluation.postprocessing import ImageDetections
from rethink_tf.evaluation.scoring import CELLS, Scorer, nothing_shown, source_without_masks
from rethink_tf.storage import files
from rethink_tf.storage.run_folder import RunFolder


def test_where_nothing_passes_the_best_score_is_named():
  assert nothing_shown(0.5, 0.26) == 'nothing with score >= 0.5; best score 0.26'
  assert nothing_shown(0.5, 0.4999) == 'nothing with score >= 0.5; best score 0.49', 'not rounded up to it'
  assert nothing_shown(0.5, None) == nothing_shown(0.5, 0.0) == 'nothing with score >= 0.5'


def test_rendered_predictions_name_their_files_and_cells(tmp_path):
  source = SyntheticSource(2, split='val', image_size=(60, 90), object_size=(16, 40))
  ids = source.image_ids.tolist()
  detections = [ImageDetections(image_id, np.array([[5., 5, 40, 40]]), np.array([score]), np.array([1]), None)
                for image_id, score in zip(ids, (0.9, 0.26), strict=True)]
  written = {}
  scorer = Scorer(source, RunFolder(str(tmp_path)), lambda step, name, data: written.update({name: data}) or name, 2,
                  'auto', False)
  gt = source.annotations()
  scorer.save(3, scorer.score(detections, gt), detections, gt)
  with Image.open(io.BytesIO(written['predictions.png'])) as file:
    cells, grid = json.loads(file.text[CELLS]), np.asarray(file)
  assert [cell[:2] for cell in cells] == [[i, f'val_{i:06d}.png'] for i in ids]
  (_, _, _, first), (_, _, truth, second) = cells
  notes = [(grid[y1 - 12:y1 - 2, x0 + 2:x0 + 80].max(axis=2) < 60).mean() for _, x0, y1, _ in (first, second)]
  assert notes[1] > notes[0] + 0.2, 'the plate of the note at the lower edge of the second alone'
  assert max(truth[2] - truth[0], truth[3] - truth[1]) == 480


def test_results_are_saved_though_tensorboard_events_cannot_be_written(tmp_path, caplog):
  """Comparisons need the detections, and nothing but curves is lost with the events."""
  source = SyntheticSource(2, split='val', image_size=(60, 90), object_size=(16, 40))
  detections = [ImageDetections(i, np.array([[5., 5, 40, 40]]), np.array([0.9]), np.array([1]), None)
                for i in source.image_ids.tolist()]
  (tmp_path / 'tensorboard').write_text('in the way')
  folder = RunFolder(str(tmp_path))

  def write(step, name, data):
    files.write(folder.join('eval', f'step-{step:08d}', name), data)
    return name

  scorer, gt = Scorer(source, folder, write, 2, 'auto', True), source.annotations()
  scorer.save(3, scorer.score(detections, gt), detections, gt)
  written = {path.name for path in (tmp_path / 'eval/step-00000003').iterdir()}
  assert {'bbox.json', 'ground_truth.json', 'categories.csv', 'predictions.png'} <= written
  assert 'eval/step-00000003: its TensorBoard events could not be written' in caplog.text


def test_whether_a_source_has_masks_is_known_or_read_to_the_end():
  box = {'bbox': [1, 2, 3, 4], 'segmentation': [[1, 2, 1, 6, 4, 6, 4, 2]]}
  mask = {'bbox': [1, 2, 3, 4], 'segmentation': [[1, 2, 1, 6, 4, 6]]}

  def source(last, **known):
    return SimpleNamespace(image_ids=np.arange(30), num_instances=np.full(30, 500), **known,
                           image_annotations=lambda i: [box] * 500 + [last] * (i == 29))

  assert not source_without_masks(source(mask, has_masks=True)) and not source_without_masks(source(mask))
  assert source_without_masks(source(box, has_masks=True)), 'rectangles are no masks'
  known = SimpleNamespace(image_ids=np.arange(2), num_instances=np.array([0, 1]), has_masks=False)
  assert source_without_masks(known), 'without its annotations, which records would be read for'
  known.num_instances = np.zeros(2)
  assert not source_without_masks(known)
