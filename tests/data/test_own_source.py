"""A source of the user's own: what is wrong in it is one line before the first step, not a wrong AP after the last."""

import types

import numpy as np
import pytest

from rethink_tf import experiment
from rethink_tf.data import own_source
from rethink_tf.data.categories import Category
from rethink_tf.data.classification.image_folder import ImageFolder
from rethink_tf.data.classification.records import ImageRecords
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.placeholder import PlaceholderSource
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.detection.voc import VocSource
from rethink_tf.errors import UserError
from rethink_tf.inspect_data import report
from rethink_tf.structures import Example, LabelledImages


class Squares:
  """Two images of 60 x 100 with an object of each of two classes."""

  def __init__(self, training: bool = False):
    self.name, self.num_classes, self.num_keypoints = 'squares', 2, 0
    self.categories = (Category(1, 'white'), Category(7, 'grey'))
    self.image_ids, self.sizes = np.array([3, 5]), np.array([[60, 100], [60, 100]])
    self.num_instances = np.array([2, 2])

  def load(self, i):
    boxes = np.float32([[5, 50, 25, 90 + i], [10, 20, 40, 40]])
    return Example(np.zeros([60, 100, 3], np.uint8), boxes, np.int32([1, 2]), np.ones([2, 112, 112], np.uint8),
                   np.zeros([2, 0, 3], np.float32))

  def annotations(self):
    entries = [{'id': 2 * i + k, 'image_id': id_, 'category_id': (1, 7)[k], 'bbox': [x0, y0, x1 - x0, y1 - y0],
                'area': 1.0, 'iscrowd': 0, 'segmentation': [[x0, y0, x1, y0, x1, y1]]}
               for i, id_ in enumerate((3, 5)) for k, (y0, x0, y1, x1) in enumerate(self.load(i).boxes.tolist())]
    return {'images': [{'id': 3, 'height': 60, 'width': 100}, {'id': 5, 'height': 60, 'width': 100}],
            'annotations': entries, 'categories': [{'id': 1, 'name': 'white'}, {'id': 7, 'name': 'grey'}]}


def changed(**fields):
  """Squares with other fields; those of the example and of all annotations by their names."""
  source = Squares()
  example = {name: fields.pop(name) for name in Example._fields if name in fields}
  entry = {name: fields.pop(name) for name in ('bbox', 'category_id') if name in fields}
  for name, value in fields.items():
    setattr(source, name, value)
  load, annotations = source.load, source.annotations
  source.load = lambda i: load(i)._replace(**example)
  source.annotations = lambda: {**annotations(), 'annotations': [{**one, **entry}
                                                                 for one in annotations()['annotations']]}
  return source


def test_one_that_is_as_the_protocol_says():
  source = Squares()
  assert own_source.checked(source, scored=True) is source


@pytest.mark.parametrize('kind', [SyntheticSource, CocoSource, VocSource, RecordSource, ImageFolder, ImageRecords,
                                  PlaceholderSource])
def test_those_of_this_package_are_not_looked_at(kind):
  source = kind.__new__(kind)  # without anything to look at
  assert own_source.checked(source, scored=True) is source


@pytest.mark.parametrize('fields, what', [
  ({'sizes': np.array([[100, 60], [100, 60]])}, r'load\(0\).image should be uint8 \[100, 60, 3\] by sizes'),
  ({'boxes': np.float32([[50, 5, 90, 25], [20, 10, 40, 40]])}, r'load\(0\).boxes should be y0, x0, y1, x1 in pixels'),
  ({'boxes': np.float32([[5, 50, 20, 40], [10, 20, 30, 20]])}, 'boxes should be y0, x0, y1, x1'),  # with extents
  ({'classes': np.int32([0, 1])}, r'classes should be 1 to 2, since 0 is the background, are \[0, 1\]'),
  ({'classes': np.int32([1, 7])}, 'classes should be 1 to 2'),  # ids of categories
  ({'masks': np.full([2, 112, 112], 255, np.uint8)}, 'masks should be 0 and 1, or 2 where none is known'),
  ({'image': np.zeros([60, 100, 3], np.float32)}, 'image should be uint8'),
  ({'num_instances': np.array([1, 1])}, r'boxes should be float32 \[1, 4\] by .* is float32 \[2, 4\]'),
  ({'image_ids': [3, 5]}, r'image_ids should be an array of integers \[2\], is a list'),
  ({'image_ids': np.array([3, 3])}, 'different integers of 0 or more'),
  ({'categories': ('white', 'grey')}, 'categories should be a sequence of'),
  ({'num_classes': 3}, 'num_classes = 3, but categories has 2'),
  ({'bbox': [5, 50, 25, 90]}, r'the bbox of image 3 should be x, y, width, height'),
  ({'category_id': 0}, 'category_id 0 is not an id of categories'),
])
def test_what_would_be_a_wrong_number(fields, what):
  with pytest.raises(UserError, match=what):
    own_source.checked(changed(**fields), scored=True)


def test_what_would_be_missing_at_the_first_evaluation():
  class Bare(Squares):
    annotations = property()

  with pytest.raises(UserError, match='a source has no annotations'):
    own_source.checked(Bare(), scored=True)
  assert own_source.checked(Bare())  # of training images it is not asked for
  source = Squares()
  found = source.annotations()
  del found['annotations'][0]['segmentation']
  source.annotations = lambda: found
  with pytest.raises(UserError, match='an annotation has no segmentation; without a mask'):
    own_source.checked(source, scored=True)


def test_images_with_classes():
  source = types.SimpleNamespace(
    name='own', categories=(Category(0, 'a'),), num_classes=1, image_ids=np.arange(2), sizes=np.ones([2, 2], int),
    classes=np.zeros([2, 1], np.int32), load=LabelledImages)
  assert own_source.checked(source) is source


def test_training_and_inspection_look_at_it(tmp_path, no_configuration_is_left):
  experiment.configure(['gin_configs/demo.gin'])

  class Swapped(Squares):
    def __init__(self, training: bool):
      super().__init__()
      self.sizes = self.sizes[:, ::-1]

  for sources in ({'train_source': Swapped, 'eval_source': Squares}, {'train_source': Squares, 'eval_source': Swapped}):
    with pytest.raises(UserError, match=r'test_own_source.*Swapped: load\(0\).image should be'):
      experiment.run('train', str(tmp_path), **sources)
  with pytest.raises(UserError, match=r'load\(0\).image should be'):
    report.analyse('held out', Swapped, 'none')
