"""Validation of annotations: which are kept, which are usable, and the counts of the others."""

import pytest
from pycocotools import mask as mask_api

from rethink_tf.data.categories import Category
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.errors import UserError
from tests.small_coco import annotation, crowd, image, warnings, write

pytestmark = pytest.mark.usefixtures('see_logs')


def test_validation(tmp_path, caplog):
  nan = float('nan')
  entries = [
    annotation(1),
    annotation(2, bbox=(5, 5, 0, 10)),
    annotation(3, bbox=(5, 5, 10, 10), area=0),
    annotation(4, bbox=(200, 200, 10, 10)),
    annotation(5, bbox=(-20, 50, 40, 40)),
    annotation(6, bbox=(nan, 0, 10, 10)),
    annotation(7, category_id=99),
    annotation(8, segmentation=[[1, 2, 3]]),
    annotation(9, image_id=1000),
    annotation(10, segmentation={'size': [60, 80], 'counts': [3]}),
    annotation(11, segmentation={'size': [80, 60], 'counts': [4800]}),
    annotation(12, segmentation=[[1, 1, nan, 1, 4, 4]]),
    annotation(13, bbox=(5, 5, -10, 10)),
    annotation(14, area=float('inf')),
    crowd(15),
  ]
  source = CocoSource(write(tmp_path, annotations=entries))
  example = source.load(0)
  assert example.boxes.tolist() == [[10, 10, 40, 30], [50, 0, 60, 20]]
  assert source.num_instances.tolist() == [2]
  # An evaluator receives all valid annotations unchanged.
  scored = {entry['id']: entry for entry in source.annotations()['annotations']}
  assert sorted(scored) == [1, 2, 3, 4, 5, 13, 15]
  assert scored[5]['bbox'] == [-20, 50, 40, 40] and scored[15]['iscrowd'] == 1
  assert source.skipped == {
    'of an image that is not listed': 1, 'of an unknown category': 1, 'with a number that is not finite': 2,
    'with a malformed segmentation': 4, 'without area (not trained on)': 3,
    'with a box outside the image (not trained on)': 1, 'clipped to the image': 1}
  lines = warnings(caplog)
  assert len(lines) == 1 and '4 with a malformed segmentation (e.g. annotation 8 of image 1)' in lines[0]


def test_images_with_only_crowds_or_nothing(tmp_path, caplog):
  folder = write(tmp_path, [image(1), image(2), image(3)], [annotation(1, image_id=2), crowd(2, image_id=1)])
  training = CocoSource(folder, training=True)
  assert training.image_ids.tolist() == [2]
  assert any('2 of 3 images have no box' in record.getMessage() for record in caplog.records)
  evaluation = CocoSource(folder)
  assert evaluation.num_instances.tolist() == [0, 1, 0]
  for i in (0, 2):
    example = evaluation.load(i)
    assert example.boxes.shape == (0, 4) and example.masks.shape == (0, 112, 112)
    assert example.classes.shape == (0,) and example.keypoints.shape == (0, 0, 3)
  assert len(evaluation.annotations()['annotations']) == 2


def test_no_image_to_train_on(tmp_path):
  with pytest.raises(UserError, match='none of its 1 images has a box to train on'):
    CocoSource(write(tmp_path, annotations=[crowd(1)]), training=True)


def test_no_annotations_at_all_can_be_evaluated(tmp_path):
  source = CocoSource(write(tmp_path))
  assert source.load(0).boxes.shape == (0, 4)
  assert source.annotations()['annotations'] == []


def test_category_ids_from_zero_with_gaps_and_a_repeated_name(tmp_path, caplog):
  categories = [{'id': 7, 'name': 'cat'}, {'id': 0, 'name': 'dog'}, {'id': 3, 'name': 'cat'}]
  entries = [annotation(i, category_id=category) for i, category in enumerate((7, 0, 3, 0), 1)]
  source = CocoSource(write(tmp_path, annotations=entries, categories=categories))
  assert source.categories == (Category(0, 'dog'), Category(3, 'cat'), Category(7, 'cat'))
  assert source.num_classes == 3
  assert source.load(0).classes.tolist() == [3, 1, 2, 1]
  assert [entry['category_id'] for entry in source.annotations()['annotations']] == [7, 0, 3, 0]
  assert any("both named 'cat'" in line for line in warnings(caplog))


def test_boxes_without_segmentation_area_or_id(tmp_path, caplog):
  bare = {'image_id': 1, 'category_id': 1, 'bbox': [10, 20, 30, 40]}
  source = CocoSource(write(tmp_path, annotations=[bare, bare | {'segmentation': []}]))
  example = source.load(0)
  assert example.boxes.tolist() == [[20, 10, 60, 40]] * 2 and example.masks.all()
  entries = source.annotations()['annotations']
  assert [(entry['id'], entry['area'], entry['iscrowd']) for entry in entries] == [(1, 1200, 0), (2, 1200, 0)]
  assert mask_api.decode(mask_api.merge(mask_api.frPyObjects(entries[0]['segmentation'], 60, 80))).sum() == 1200
  assert source.skipped['without a segmentation (its box is used)'] == 2
  assert len(warnings(caplog)) == 1


def test_result_does_not_depend_on_the_order_of_the_json(tmp_path):
  images, entries = [image(i) for i in range(1, 5)], [annotation(i, image_id=i) for i in range(1, 5)]
  forward = CocoSource(write(tmp_path / 'a', images, entries))
  backward = CocoSource(write(tmp_path / 'b', images[::-1], entries[::-1]))
  assert forward.annotations() == backward.annotations()
  assert all((forward.load(i).image == backward.load(i).image).all() for i in range(4))


def test_keypoints_in_the_annotation_file(tmp_path):
  fish = {'id': 1, 'name': 'fish', 'keypoints': ['head', 'tail'], 'skeleton': [[1, 2]]}
  categories = [fish, {'id': 2, 'name': 'net'}]
  entries = [annotation(1, keypoints=[11, 12, 2, 20.5, 30, 1]), annotation(2, keypoints=[1, 2]), annotation(3),
             annotation(4, category_id=2)]
  folder = write(tmp_path, annotations=entries, categories=categories)
  source = CocoSource(folder, keypoints=True)
  assert source.num_keypoints == 2
  assert source.load(0).keypoints.tolist() == [[[12, 11, 2], [30, 20.5, 1]]] + [[[0, 0, 0]] * 2] * 3
  assert [entry.get('num_keypoints') for entry in source.annotations()['annotations']] == [2, 0, 0, None]
  assert source.skipped == {'with malformed keypoints (treated as not labelled)': 1}
  without = CocoSource(folder)
  assert without.num_keypoints == 0 and without.load(0).keypoints.shape == (4, 0, 3)
  assert 'keypoints' not in without.annotations()['categories'][0]


def test_too_long_outlines_are_counted(tmp_path):
  zigzag = [[coordinate for i in range(200) for coordinate in (-60000 + 120000 * (i % 2), i)]]
  source = CocoSource(write(tmp_path, annotations=[annotation(1), annotation(2, segmentation=zigzag)]))
  assert source.skipped == {'with a malformed segmentation': 1} and source.num_instances.tolist() == [1]
  assert len(source.load(0).boxes) == 1


def test_coordinates_out_of_range_are_counted(tmp_path):
  fish = {'id': 1, 'name': 'fish', 'keypoints': ['head'], 'skeleton': []}
  entries = [annotation(1, keypoints=[1e300, 5, 2]), annotation(2, bbox=(1e300, 0, 5, 5)),
             annotation(3, bbox=(0, 0, 1e7, 5)), annotation(4, keypoints=[5, 5, 2]),
             annotation(5, keypoints=[float('nan'), 5, 2])]
  source = CocoSource(write(tmp_path, annotations=entries, categories=[fish]), keypoints=True)
  assert source.skipped['with a box out of range'] == 2
  assert source.skipped['with malformed keypoints (treated as not labelled)'] == 2
  assert source.load(0).keypoints.tolist() == [[[0, 0, 0]], [[5, 5, 2]], [[0, 0, 0]]]
