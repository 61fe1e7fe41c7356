"""Statistics and suspicious annotations of small data sets with known problems."""

import numpy as np
import pytest

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.detection.voc import VocSource
from rethink_tf.inspect_data import statistics
from tests import small_coco, small_voc
from tests.small_coco import annotation


def analyse(folder, annotations, images=None, categories=None):
  path = small_coco.write(folder, images, annotations, categories)
  source = CocoSource(path)
  table = statistics.collect(source)
  return source, table, statistics.find_suspicious(table, source.sizes)


def kinds(table, suspicious):
  return {(suspect.kind, int(table.ids[suspect.row])) for suspect in suspicious}


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


@pytest.mark.parametrize('entry, kind', [
  (annotation(9, bbox=(70, 10, 20, 30)), statistics.OUTSIDE),
  (annotation(9, bbox=(-5, 10, 20, 30)), statistics.OUTSIDE),
  (annotation(9, bbox=(10, 10, 0, 30), area=5), statistics.DEGENERATE),
  (annotation(9, area=0), statistics.DEGENERATE),
  (annotation(9, bbox=(10, 10, 3, 2)), statistics.TINY_BOX),
  (annotation(9, segmentation=[[10, 10, 20, 10, 20, 20]]), statistics.MASK_ELSEWHERE),
  (annotation(9, area=900), statistics.TOO_LARGE),
])
def test_kinds_of_suspicious_annotations(entry, kind, tmp_path):
  _, table, suspicious = analyse(tmp_path, [annotation(1, bbox=(40, 20, 30, 30)), entry])
  assert (kind, 9) in kinds(table, suspicious) and {id_ for _, id_ in kinds(table, suspicious)} == {9}


def test_one_pixel_outside_the_image_is_tolerated(tmp_path):
  assert analyse(tmp_path, [annotation(1, bbox=(60, 10, 20.9, 30))])[2] == []


def test_duplicate_boxes(tmp_path):
  categories = [{'id': 1, 'name': 'a'}, {'id': 5, 'name': 'b'}]
  entries = [annotation(1), annotation(2), annotation(3, category_id=5), annotation(4, bbox=(10, 10, 20, 20)),
             annotation(5, image_id=2), annotation(6, iscrowd=1)]
  _, table, suspicious = analyse(tmp_path, entries, [small_coco.image(1), small_coco.image(2)], categories)
  assert kinds(table, suspicious) == {(statistics.REPEATED, 2), (statistics.TWO_CLASSES, 3)}
  assert {int(table.ids[suspect.other]) for suspect in suspicious} == {1}


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
  assert len(table.ids) == source.num_instances.sum() and statistics.find_suspicious(table, source.sizes) == []
  files = statistics.fingerprints(source, decode=False)
  assert len(set(files.fingerprints)) == 6 and statistics.base_names(source) == [None] * 6
  first = source.load(0)
  np.testing.assert_allclose(table.boxes[table.images == 0], first.boxes, atol=1)


def test_voc(tmp_path):
  files = {'000001': small_voc.xml(small_voc.item(), small_voc.item(box=(11, 21, 30, 50))),
           '000002': small_voc.xml(small_voc.item(difficult=1))}
  source = VocSource(small_voc.write(tmp_path, {'train': files}), sets=('train',), classes=('dog',))
  table = statistics.collect(source)
  assert [suspect.kind for suspect in statistics.find_suspicious(table, source.sizes)] == [statistics.REPEATED]
  summary = statistics.summarise(table, source)
  assert (summary['instances'], summary['crowds'], summary['images_without_objects']) == (2, 1, 1)


def test_data_set_without_annotations(tmp_path):
  source, table, suspicious = analyse(tmp_path, [])
  summary = statistics.summarise(table, source)
  assert suspicious == [] and summary['box_side'] is None and summary['images_without_objects'] == 1
