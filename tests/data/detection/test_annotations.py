"""Validation of annotations: which are kept, which are usable, and the counts of the others."""

import numpy as np
import pytest
from pycocotools import mask as mask_api

from rethink_tf.data.categories import Category
from rethink_tf.data.conversion import convert
from rethink_tf.data.detection.annotations import KEYPOINTS_ASTRAY
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.problems import log_table
from rethink_tf.errors import UserError
from rethink_tf.structures import NO_MASK
from tests.data.detection.test_segmentation import uncompressed
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
  sound = [10, 10, 40, 30]
  assert example.boxes.tolist() == [sound, [5, 5, 15, 15], [50, 0, 60, 20], *[sound] * 4, [5, 0, 15, 5], sound]
  assert [int(mask.max()) for mask in example.masks] == [1, 1, 1, *[NO_MASK] * 4, 1, 1]
  # An evaluator receives all others as they are.
  scored = {entry['id']: entry for entry in source.annotations()['annotations']}
  assert sorted(scored) == [1, 2, 3, 4, 5, 8, 10, 11, 12, 13, 14, 15]
  assert scored[5]['bbox'] == [-20, 50, 40, 40] and scored[15]['iscrowd'] == 1
  assert source.skipped == {
    'of an image that is not listed': 1, 'of an unknown category': 1, 'with a number that is missing or not finite': 1,
    'with a malformed segmentation (trained without a mask)': 4, 'without area (not trained on)': 1,
    'with a box outside the image (not trained on)': 1, 'clipped to the image': 2,
    'without a box (that of the mask is used)': 1, 'without a valid area (that of the mask or box is used)': 2}
  log_table([('training', source.problems), ('held out', CocoSource(write(tmp_path / 'sound')).problems)])
  lines = warnings(caplog)[-1].splitlines()
  assert len(lines) <= 15 and [line.split()[0] for line in lines[1:6]] == ['outcome'] + ['repaired'] * 4
  assert any(line.startswith('  repaired           4         -  with a malformed segmentation (trained without a mask)')
             and line.endswith('000001.jpg, annotation 8; 000001.jpg, annotation 10; ...') for line in lines)


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


def test_boxes_without_segmentation_area_or_id(tmp_path):
  bare = {'image_id': 1, 'category_id': 1, 'bbox': [10, 20, 30, 40]}
  source = CocoSource(write(tmp_path, annotations=[bare, bare | {'segmentation': []}]))
  example = source.load(0)
  assert example.boxes.tolist() == [[20, 10, 60, 40]] * 2 and example.masks.all()
  entries = source.annotations()['annotations']
  assert [(entry['id'], entry['area'], entry['iscrowd']) for entry in entries] == [(1, 1200, 0), (2, 1200, 0)]
  assert mask_api.decode(mask_api.merge(mask_api.frPyObjects(entries[0]['segmentation'], 60, 80))).sum() == 1200
  assert source.skipped['without a segmentation (its box is used)'] == 2


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


@pytest.mark.parametrize('x, y, astray', [(21, 25, 0), (19, 25, 1), (59, 25, 0), (61, 25, 1), (40, 11, 0), (40, 9, 1),
                                          (40, 39, 0), (40, 41, 1), (19, 41, 1)])
def test_keypoints_that_are_half_a_side_from_their_box_are_suspicious(tmp_path, x, y, astray):
  """Half of its longer side, 20 pixels; one labelled keypoint that is nearer is enough, an unlabelled one is not."""
  fish = {'id': 1, 'name': 'fish', 'keypoints': ['head', 'tail']}
  far, box = [79, 59], {'bbox': (30, 20, 20, 10)}
  entries = [annotation(1, keypoints=[x, y, 2, *far, 1], **box), annotation(2, keypoints=[35, 25, 0, *far, 1], **box)]
  source = CocoSource(write(tmp_path, annotations=entries, categories=[fish]), keypoints=True)
  assert source.problems.counts[KEYPOINTS_ASTRAY] == 1 + astray


def test_too_long_outlines_are_counted(tmp_path):
  zigzag = [[coordinate for i in range(200) for coordinate in (-60000 + 120000 * (i % 2), i)]]
  source = CocoSource(write(tmp_path, annotations=[annotation(1), annotation(2, segmentation=zigzag)]))
  assert source.skipped == {'with a malformed segmentation (trained without a mask)': 1}
  assert source.load(0).masks[:, 50, 50].tolist() == [1, NO_MASK]


def test_coordinates_out_of_range_are_counted(tmp_path):
  fish = {'id': 1, 'name': 'fish', 'keypoints': ['head'], 'skeleton': []}
  entries = [annotation(1, keypoints=[1e300, 5, 2]), annotation(2, bbox=(1e300, 0, 5, 5)),
             annotation(3, bbox=(0, 0, 1e7, 5)), annotation(4, keypoints=[5, 5, 2]),
             annotation(5, keypoints=[float('nan'), 5, 2])]
  source = CocoSource(write(tmp_path, annotations=entries, categories=[fish]), keypoints=True)
  assert source.skipped['with a box out of range'] == 2
  assert source.skipped['with malformed keypoints (treated as not labelled)'] == 2
  assert source.load(0).keypoints.tolist() == [[[0, 0, 0]], [[5, 5, 2]], [[0, 0, 0]]]


# What annotation tools write: read where it can be read in one way only, else the object keeps its box.

SQUARE = (10, 50, 20, 20)  # of an image of 80 x 80


def one(folder, **fields):
  """The source of one sound object and one with other fields; None stands for null."""
  entries = [annotation(1, bbox=(40, 10, 20, 20)), annotation(2, bbox=SQUARE) | fields]
  return CocoSource(write(folder, [image(1, 80, 80)], entries))


def row_major(height, width, y0, x0, y1, x1):
  """Run lengths of a rectangle in the wrong order."""
  mask = np.zeros([height, width], np.uint8)
  mask[y0:y1, x0:x1] = 1
  return {'size': [height, width], 'counts': uncompressed(mask.T)['counts']}


@pytest.mark.parametrize('segmentation', [
  row_major(80, 80, 50, 10, 70, 30), [[50, 10, 50, 30, 70, 30, 70, 10]], [[.125, .625, .375, .625, .375, .875]],
  [[20, 100, 60, 100, 60, 140, 20, 140]], [[0, 0, 20, 0, 20, 20, 0, 20]], {'size': [80, 80], 'counts': [6400]},
  [[10, 50, 30, 50, 10, 50]], [[10, 50, 30, 70, 10, 50]], [[10, 50]], [[10, 50, 30, 70]], [[10, 50, 30, 50, 30]], 'abc',
  {'size': [80], 'counts': []}, [[10, 50, 30, 50, 'x', 70]], [{'size': [80, 80], 'counts': [6400]}, [1, 2]]],
  ids=['row-major', 'y x', 'fractions', 'twice the size', 'relative', 'empty', 'flat', 'diagonal', 'point',
       'two points', 'odd', 'text', 'size', 'word', 'mixed list'])
def test_an_object_with_a_wrong_mask_keeps_its_box_and_trains_no_mask(tmp_path, segmentation):
  source = one(tmp_path / 'coco', segmentation=segmentation)
  example = source.load(0)
  assert example.boxes[1].tolist() == [50, 10, 70, 30]
  assert (example.masks[1] == NO_MASK).all() and (example.masks[0] == 1).all()
  assert sum(source.skipped.values()) == 1 and '(trained without a mask)' in next(iter(source.skipped))
  entry = source.annotations()['annotations'][1]
  assert entry['without_mask'] == 1 and entry['segmentation'] == [[10, 50, 10, 70, 30, 70, 30, 50]]
  assert_same_from_records(source, tmp_path)


def assert_same_from_records(source, tmp_path):
  """The converted data set trains the same and reports the same, and so it does when its index is lost."""
  convert(source, str(tmp_path / 'records'), 'train2017', 1)
  records = RecordSource(str(tmp_path / 'records'))
  assert records.problems.to_json() == source.problems.to_json() and records.skipped == source.skipped
  assert records.annotations() == source.annotations()
  (tmp_path / 'records/train2017-index.json').unlink()
  for source_ in (records, RecordSource(str(tmp_path / 'records'))):
    for ours, expected in zip(source_.load(0), source.load(0), strict=True):
      assert np.array_equal(ours, expected)


RECTANGLE = [10, 50, 30, 50, 30, 70, 10, 70]
POINTS = [[10, 50], [30, 50], [30, 70], [10, 70]]


@pytest.mark.parametrize('segmentation', [
  RECTANGLE, [RECTANGLE], [RECTANGLE, []], [RECTANGLE, [1, 2]], POINTS, [POINTS],
  [[{'x': x, 'y': y} for x, y in POINTS]], [{'x': x, 'y': y} for x, y in POINTS],
  [uncompressed(np.pad(np.ones([20, 20], np.uint8), [(50, 10), (10, 50)]))],
  [uncompressed(np.pad(np.ones([20, 10], np.uint8), [(50, 10), (10, 60)])),
   uncompressed(np.pad(np.ones([20, 10], np.uint8), [(50, 10), (20, 50)]))],
  [[10, 50, 30, 70, 30, 50, 10, 70, 10, 50, 30, 50, 30, 70, 10, 70]]],
  ids=['flat', 'COCO', 'empty polygon', 'one-point polygon', 'points', 'nested points', 'objects', 'flat objects',
       'list of run lengths', 'two run lengths', 'lobes'])
def test_other_forms_of_a_segmentation_are_read(tmp_path, segmentation):
  source = one(tmp_path, segmentation=segmentation)
  assert source.skipped == {} and source.load(0).masks[1].mean() > 0.4


@pytest.mark.parametrize('fields', [
  {'area': 0}, {'area': -3}, {'area': float('nan')}, {'bbox': [0, 0, 0, 0]}, {'bbox': None},
  {'bbox': [30, 70, -20, -20]},
  {'bbox': [0, 0, 0, 0], 'area': 0}, {'bbox': None, 'area': None}, {'bbox': [float('nan')] * 4}])
def test_box_and_area_of_the_mask_replace_missing_ones(tmp_path, fields):
  source = one(tmp_path / 'coco', segmentation=[RECTANGLE], **fields)
  assert source.load(0).boxes[1].tolist() == [50, 10, 70, 30] and source.load(0).masks[1].all()
  entry = source.annotations()['annotations'][1]
  assert entry['bbox'] == [10, 50, 20, 20] and entry['area'] == 400
  assert sum(source.skipped.values()) == 1 and 'is used)' in next(iter(source.skipped))
  assert_same_from_records(source, tmp_path)


def test_area_zero_of_a_box_without_a_mask(tmp_path):
  source = CocoSource(write(tmp_path, annotations=[annotation(1, area=0, segmentation=None)]))
  assert source.num_instances.tolist() == [1] and source.annotations()['annotations'][0]['area'] == 600


def test_a_bow_tie_whose_lobes_cancel_out_is_a_mask_beside_one_without_extent(tmp_path):
  """At the right of an image that is wider than high."""
  lobes, flat = [[62, 5, 78, 45, 78, 5, 62, 45]], [[10, 20, 30, 20, 10, 20]]
  example = CocoSource(write(tmp_path, annotations=[
    annotation(1, bbox=(62, 5, 16, 40), segmentation=lobes),
    annotation(2, bbox=(10, 10, 20, 20), segmentation=flat)])).load(0)
  assert 0.4 < (example.masks[0] == 1).mean() < 0.6 and (example.masks[1] == NO_MASK).all()


def test_a_data_set_of_boxes(tmp_path):
  boxes = CocoSource(write(tmp_path / 'coco', annotations=[annotation(1, segmentation=None)]))
  convert(boxes, str(tmp_path / 'records'), 'train2017', 1)
  for _ in range(2):
    records = RecordSource(str(tmp_path / 'records'))
    assert records.annotations() == boxes.annotations()
    assert records.skipped == boxes.skipped == {'without a segmentation (its box is used)': 1}
    (tmp_path / 'records/train2017-index.json').unlink()


def test_boxes_among_masks_train_no_mask(tmp_path):
  source = one(tmp_path / 'coco', segmentation=[[]])
  assert source.skipped == {'without a segmentation (trained without a mask)': 1}
  assert source.load(0).masks[:, 50, 50].tolist() == [1, NO_MASK]
  assert_same_from_records(source, tmp_path)


def test_null_is_as_left_out(tmp_path):
  fields = {'iscrowd': None, 'id': None, 'area': None, 'segmentation': None, 'keypoints': None, 'num_keypoints': None}
  null = annotation(1) | fields
  left_out = {field: value for field, value in null.items() if value is not None}
  pair = [CocoSource(write(tmp_path / name, annotations=[entry])) for name, entry in (('a', null), ('b', left_out))]
  assert pair[0].annotations() == pair[1].annotations() and pair[0].skipped == pair[1].skipped
  assert pair[0].num_instances.tolist() == [1]


@pytest.mark.parametrize('ignore', [1, True])
def test_ignored_objects_are_crowds(tmp_path, ignore):
  source = one(tmp_path / 'coco', ignore=ignore)
  assert source.num_instances.tolist() == [1]
  assert [entry['iscrowd'] for entry in source.annotations()['annotations']] == [0, 1]
  assert source.skipped == {'with "ignore" set (treated as crowds)': 1}
  assert one(tmp_path / 'no', ignore=0).num_instances.tolist() == [2]
  assert_same_from_records(source, tmp_path)


def test_rotated_rectangles_of_cvat(tmp_path):
  source = one(tmp_path / 'coco', bbox=(20, 25, 40, 10), area=400, segmentation=[], attributes={'rotation': 90.0})
  assert [entry['bbox'] for entry in source.annotations()['annotations']][1] == pytest.approx([35, 10, 10, 40])
  assert source.load(0).boxes[1] == pytest.approx([10, 35, 50, 45])
  assert source.skipped[ROTATED] == 1
  assert_same_from_records(source, tmp_path)


def test_boxes_that_are_fractions_of_the_image(tmp_path, caplog):
  entries = [annotation(i, bbox=(.1, .2, .3 + .01 * i, .4)) for i in range(1, 5)]
  with pytest.raises(UserError, match=r'instances_train2017.json: all 4 boxes lie in 0..1 \(e.g. 000001.jpg, annot'):
    CocoSource(write(tmp_path, annotations=entries))
  log_table([('training', CocoSource(write(tmp_path / 'b', annotations=[annotation(9), *entries])).problems)])
  assert 'suspicious         4  box in 0..1' in warnings(caplog)[0]


def test_keypoints_far_from_the_box(tmp_path):
  fish = [{'id': 1, 'name': 'fish', 'keypoints': ['head', 'tail']}]
  entries = [annotation(1, bbox=(60, 5, 10, 10), keypoints=[62, 8, 2, 66, 9, 2]),
             annotation(2, bbox=(60, 5, 10, 10), keypoints=[8, 62, 2, 9, 66, 2]),  # y before x
             annotation(3, bbox=(60, 5, 10, 10), keypoints=[0] * 6)]
  problems = CocoSource(write(tmp_path, annotations=entries, categories=fish), keypoints=True).problems
  assert problems.counts['all labelled keypoints far from the box'] == 1
  (case,) = problems.by_reason()['all labelled keypoints far from the box'].cases
  assert case.text == '000001.jpg, annotation 2' and case.label == 'fish'


def test_classes_without_an_object_are_named_in_training(tmp_path, caplog):
  categories = [{'id': i, 'name': name} for i, name in enumerate(('cells', 'red', 'white'))]  # 0: a supercategory
  entries = [annotation(1), annotation(2, image_id=2, category_id=2), crowd(3) | {'category_id': 0}]
  folder = write(tmp_path, [image(1), image(2)], entries, categories)
  CocoSource(folder)
  assert not warnings(caplog)
  CocoSource(folder, training=True)
  assert 'train2017: 1 of 3 classes have no object to train on: cells' in warnings(caplog)[-1]
