"""More objects in an image than the limits: which limits are named, and AP 100 once they are raised together."""

import gin
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import gin_files
from rethink_tf.compare import bootstrap, matching
from rethink_tf.data.categories import Category
from rethink_tf.data.json_files import load_json
from rethink_tf.evaluation import object_limits
from rethink_tf.evaluation.object_limits import Limit
from rethink_tf.inspect_run import inspection
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Batch, Example

OBJECTS, SIDE = 300, 20


class ManyObjects:
  """Two images with 300 squares each, of one class, or alternately of three."""

  name, num_keypoints = 'many', 0
  image_ids = np.array([1, 2], np.int64)
  sizes = np.array([[500, 800]] * 2, np.int32)
  num_instances = np.array([OBJECTS] * 2, np.int32)

  def __init__(self, classes=1):
    self.categories = tuple(Category(k, f'class {k}', (), ()) for k in range(1, classes + 1))
    rows, columns = np.divmod(np.arange(OBJECTS), 25)
    corners = np.stack([30 * rows, 30 * columns], axis=1)
    self.boxes, self.labels = np.concatenate([corners, corners + SIDE], axis=1), 1 + np.arange(OBJECTS) % classes

  def load(self, i):
    return Example(np.full([500, 800, 3], 120, np.uint8), np.float32(self.boxes), np.int32(self.labels), None, None)

  def annotations(self):
    found = [{'id': OBJECTS * (i - 1) + k, 'image_id': i, 'category_id': int(label), 'area': SIDE**2, 'iscrowd': 0,
              'bbox': [int(x0), int(y0), SIDE, SIDE], 'segmentation': [[int(x0), int(y0), int(x1), int(y1), 0, 0]]}
             for i in (1, 2) for k, ((y0, x0, y1, x1), label) in enumerate(zip(self.boxes, self.labels, strict=True))]
    return {'images': [{'id': i, 'height': 500, 'width': 800} for i in (1, 2)], 'annotations': found,
            'categories': [category._asdict() for category in self.categories]}

  def dataset(self, share=(0, 1)):
    fields = dict.fromkeys(Batch._fields)
    yield Batch(**fields | {'image_ids': tf.constant(self.image_ids), 'scales': tf.ones([2, 2]),
                            'original_sizes': tf.constant(self.sizes)})


@pytest.fixture
def configured():
  """A function that reads a configuration with further files."""
  import rethink_tf.experiment  # noqa: F401  registers what gin files name

  yield lambda *files, params=(): gin_files.parse(['gin_configs/scratch_1x.gin', *files], params)
  gin.clear_config()


def evaluate(source, folder):
  """Score a perfect detector with the parts of the configuration: proposals on all objects, then their suppression."""
  def predict(batch):
    boxes = tf.constant(np.tile(source.boxes, [2, 1, 1])[:, :, None], tf.float32)
    scores = tf.one_hot(np.tile(source.labels - 1, [2, 1]), len(source.categories)) * 0.9
    return gin.get_configurable('DetectionGenerator')().select(boxes, scores, tf.ones([2, OBJECTS], tf.bool))

  evaluator = gin.get_configurable('CocoEvaluator')(source, predict, source, RunFolder(str(folder)), num_pictures=0)
  evaluator.notes = object_limits.describe(source, object_limits.of_evaluation())
  return evaluator.evaluate(1)


def test_a_perfect_detector_of_300_objects_scores_100(configured, tmp_path, capsys):
  source = ManyObjects()
  configured()
  limited = evaluate(source, tmp_path / 'a')
  assert limited['box/AP'] == pytest.approx(100 * 34 / 101)  # recalls 0, 0.01, ..., 0.33 are reached
  line = ('many: 2 of 2 images have more objects than DetectionGenerator.max_detections = 100, 2 of a category than '
          'CocoEvaluator.max_detections = 100: at most 33.3 % of the objects can be found and scored; '
          'raise the limits together with --gin_file=gin_configs/models/many_objects.gin')
  assert line in capsys.readouterr().out
  assert RunFolder(str(tmp_path / 'a')).read_metrics()[-1]['notes'] == [line]
  inspection.inspect(str(tmp_path / 'a/eval/step-00000001'), source)
  assert line in capsys.readouterr().out

  configured(object_limits.FILE)
  raised = evaluate(source, tmp_path / 'b')
  assert raised['box/AP'] == pytest.approx(100.0) and raised['box/AR300'] == pytest.approx(100.0)
  printed = capsys.readouterr().out
  assert 'AP 100.0' in printed and 'have more objects' not in printed
  assert 'notes' not in RunFolder(str(tmp_path / 'b')).read_metrics()[-1]
  # What reads the saved detections again uses the same limits.
  folder = tmp_path / 'b/eval/step-00000001'
  assert inspection.inspect(str(folder), source)['box'].ap == pytest.approx(1.0)
  matches = matching.match_detections(load_json(str(folder / 'ground_truth.json')),
                                      load_json(str(folder / 'bbox.json')), 'bbox')
  assert bootstrap.average_precision(matches, np.ones([1, 2])) == pytest.approx([100.0])


def test_only_limits_that_bind_are_named(configured):
  configured(params=['DetectionGenerator.max_detections = 300'])
  assert object_limits.describe(ManyObjects(classes=3), object_limits.of_evaluation()) == []  # 100 of each category
  (line,) = object_limits.describe(ManyObjects(classes=2), object_limits.of_evaluation())
  assert 'CocoEvaluator.max_detections = 100: at most 66.7 %' in line and 'DetectionGenerator' not in line
  configured(params=['ProposalGenerator.post_nms_train = 50'])
  (line,) = object_limits.describe(ManyObjects(), object_limits.of_training(), 'trained on')
  assert ('2 of 2 images have more objects than TrainInput.max_instances = 100, 2 than '
          'ProposalGenerator.post_nms_train = 50: at most 16.7 % of the objects can be trained on') in line


def test_people_with_labelled_keypoints_have_a_limit_of_their_own(configured):
  """Crowds, and people without a labelled keypoint, are not scored by keypoints."""
  class People(ManyObjects):
    num_keypoints = 1

    def annotations(self):
      content = super().annotations()
      for k, one in enumerate(content['annotations']):
        number = k % OBJECTS if one['image_id'] == 1 else 40
        one |= {'keypoints': [5, 5, 2 * (number < 25)], 'iscrowd': int(number == 0)}
      return content

  configured()
  limit = Limit('CocoEvaluator.max_keypoint_detections', 20, 'keypoints')
  assert limit in object_limits.of_evaluation()
  (line,) = object_limits.describe(People(), [limit])
  assert line.startswith('many: 1 of 2 images have more objects than CocoEvaluator.max_keypoint_detections = 20: '
                         'at most 83.3 % of the objects')  # 20 of 24
  assert object_limits.describe(People(), [limit._replace(value=24)]) == []
  assert object_limits.describe(ManyObjects(), [limit]) == []


def test_limits_that_the_configuration_does_not_use(configured):
  configured('gin_configs/data/voc.gin', 'gin_configs/augment/tta_detectron.gin')
  assert object_limits.of_evaluation() == [Limit('DetectionGenerator.max_detections', 100)]
