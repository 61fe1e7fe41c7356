"""Statistics of small data sets with known problems."""

import numpy as np

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.suspicious import REPEATED, find_suspicious
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.detection.voc import VocSource
from rethink_tf.inspect_data import statistics
from tests import small_coco, small_voc
from tests.small_coco import annotation


def analyse(folder, annotations, images=None, categories=None):
  path = small_coco.write(folder, images, annotations, categories)
  source = CocoSource(path)
  table = statistics.collect(source)
  return source, table, find_suspicious(table, source.sizes)


def test_valid_annotations_are_not_suspicious(tmp_path):
  annotations = [annotation(1), annotation(2, bbox=(40, 20, 30, 30)), small_coco.crowd(3)]
  source, table, suspicious = analyse(tmp_path, annotations)
  assert suspicious == []
  summary = statistics.summarise(table, source)
  assert (summary['images'], summary['instances'], summary['crowds']) == (1, 2, 1)
  assert summary['areas'] == {'small': 2, 'medium': 0, 'large': 0}
  assert summary['classes'] == [{'id': 1, 'name': 'thing', 'instances': 2, 'images': 1}]
  assert summary['aspect_ratio']['max'] == 1 and summary['instances_per_image']['median'] == 2
  assert summary['few'] == ['thing']


def test_a_summary_is_the_one_counted_by_hand(tmp_path):
  images = [small_coco.image(1), small_coco.image(2), small_coco.image(3, 200, 300)]
  boxes = {1: (1, (10, 10, 10, 40)), 2: (1, (20, 5, 32, 32)), 3: (3, (0, 0, 96, 96)), 4: (3, (0, 0, 200, 50))}
  annotations = [annotation(i, image_id, box, category_id=9 if i == 2 else 4)
                 for i, (image_id, box) in boxes.items()] + [small_coco.crowd(5, 2), annotation(6, 3, (5, 5, 0, 7))]
  categories = [{'id': 4, 'name': 'cat'}, {'id': 9, 'name': 'dog'}, {'id': 2, 'name': 'cow'}]
  annotations[4]['category_id'] = annotations[5]['category_id'] = 4
  del annotations[0]['iscrowd']  # as many tools write
  source, table, _ = analyse(tmp_path, annotations, images, categories)
  summary = statistics.summarise(table, source)
  assert {one['name']: (one['id'], one['instances'], one['images']) for one in summary.pop('classes')} == {
    'cow': (2, 0, 0), 'cat': (4, 4, 2), 'dog': (9, 1, 1)}
  assert sorted(summary.pop('few')) == ['cat', 'cow', 'dog']

  def five(*values):
    return dict(zip(('min', '10%', 'median', '90%', 'max'), values, strict=True))

  assert summary == {
    'images': 3, 'images_without_objects': 1, 'instances': 5, 'crowds': 1,
    'areas': {'small': 2, 'medium': 1, 'large': 2},  # 400 and 0; 1024; 9216 and 10,000
    'box_side': five(20, 23.6, 64, 98.8, 100), 'aspect_ratio': five(0.25, 0.475, 1, 3.1, 4),  # width : height
    'instances_per_image': five(0, 0.4, 2, 2.8, 3), 'height': five(60, 60, 60, 172, 200),
    'width': five(80, 80, 80, 256, 300), 'commonest_sizes': [[60, 80, 2], [200, 300, 1]], 'different_sizes': 2}
  np.testing.assert_array_equal(table.boxes[table.ids == 4], [[0, 0, 50, 200]])
  np.testing.assert_array_equal(table.mask_boxes[table.ids == 1], [[10, 10, 50, 20]])
  np.testing.assert_array_equal(table.mask_boxes[table.crowds], [[0, 0, 60, 80]])


def test_duplicate_and_unreadable_files(tmp_path):
  images = [small_coco.image(i) for i in (1, 2, 201, 4)]  # 201 has the pixels of 1
  path = small_coco.write(tmp_path, images, [annotation(1)])
  (tmp_path / 'train2017' / '000004.jpg').write_text('no image')
  source = CocoSource(path)
  read = statistics.fingerprints(source, decode=False)
  assert read.unreadable == {}
  assert [source.image_ids[group].tolist() for group in statistics.duplicates(read.fingerprints)] == [[1, 201]]
  decoded = statistics.fingerprints(source, decode=True)
  assert list(decoded.unreadable) == [2] and '000004.jpg' in decoded.unreadable[2] and decoded.fingerprints[2] is None
  others = [read.fingerprints[1], None, 'x', read.fingerprints[3]]
  assert statistics.matching_pairs(read.fingerprints, others) == [(1, 0), (0, 3)]
  assert statistics.base_names(source) == ['000001.jpg', '000002.jpg', '000004.jpg', '000201.jpg']


def test_synthetic_data_is_not_suspicious():
  source = SyntheticSource(6)
  table = statistics.collect(source)
  assert len(table.ids) == source.num_instances.sum() and find_suspicious(table, source.sizes) == []
  files = statistics.fingerprints(source, decode=False)
  assert len(set(files.fingerprints)) == 6 and statistics.base_names(source) == [None] * 6
  first = source.load(0)
  np.testing.assert_allclose(table.boxes[table.images == 0], first.boxes, atol=1)


def test_difficult_objects_of_voc_are_counted_as_crowds(tmp_path):
  files = {'000001': small_voc.xml(small_voc.item(), small_voc.item(box=(11, 21, 30, 50))),
           '000002': small_voc.xml(small_voc.item(difficult=1))}
  source = VocSource(small_voc.write(tmp_path, {'train': files}), sets=('train',), classes=('dog',))
  table = statistics.collect(source)
  assert [suspect.kind for suspect in find_suspicious(table, source.sizes)] == [REPEATED]
  summary = statistics.summarise(table, source)
  assert (summary['instances'], summary['crowds'], summary['images_without_objects']) == (2, 1, 1)


def test_data_set_without_annotations(tmp_path):
  source, table, suspicious = analyse(tmp_path, [])
  summary = statistics.summarise(table, source)
  assert suspicious == [] and summary['box_side'] is None and summary['images_without_objects'] == 1
