"""Saved ground truth and detections: damage is one line that names the file and the field."""

import json

import numpy as np
import pytest

from rethink_tf.compare import matching, saved_results
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.errors import UserError
from rethink_tf.storage.run_folder import RunFolder
from tests.compare.fake_runs import share, truth, write


@pytest.fixture(scope='module')
def run(tmp_path_factory):
  return read_runs([write(tmp_path_factory.mktemp('run') / 's', share(3, images=6))])[0]


def read(run, file, change):
  """The matches after a change to the content of a file."""
  path = run.folder.join('eval/step-00000100', file)
  with open(path) as stream:
    text = stream.read()
  content = json.loads(text)
  change(content)
  try:
    with open(path, 'w') as stream:
      json.dump(content, stream)
    return matching.read_matches(run.folder, 'box/AP', 100)
  finally:
    with open(path, 'w') as stream:
      stream.write(text)


@pytest.mark.parametrize('field, value', [
  ('category_id', '3'), ('category_id', -1), ('category_id', []), ('score', float('nan')), ('score', '0.5'),
  ('score', None), ('image_id', 99), ('bbox', [1, 2, 3]), ('bbox', [1, 2, 3, None]), ('bbox', 4)])
def test_values_of_detections(run, field, value):
  with pytest.raises(UserError, match=rf'bbox.json: \[2\].{field} is .*: evaluate the run again'):
    read(run, 'bbox.json', lambda results: results[2].__setitem__(field, value))


@pytest.mark.parametrize('field', ['category_id', 'score', 'image_id', 'bbox'])
def test_fields_of_detections(run, field):
  with pytest.raises(UserError, match=rf'bbox.json: \[1\].{field} is missing.*: evaluate the run again'):
    read(run, 'bbox.json', lambda results: results[1].pop(field))


@pytest.mark.parametrize('name, field, value', [
  ('images', 'id', 'x'), ('images', 'id', 1 << 70), ('categories', 'id', None), ('categories', 'name', 3),
  ('images', 'height', 'tall'), ('images', 'width', -1),
  ('annotations', 'category_id', -1), ('annotations', 'image_id', 'x'), ('annotations', 'bbox', [1, 2, 3]),
  ('annotations', 'bbox', [1e300, 1, 2, 3]), ('annotations', 'area', 'large'), ('annotations', 'area', 10 ** 400)])
def test_values_of_the_ground_truth(run, name, field, value):
  with pytest.raises(UserError, match=rf'ground_truth.json: {name}\[0\].{field} is .*: evaluate the run again'):
    read(run, 'ground_truth.json', lambda gt: gt[name][0].__setitem__(field, value))


def test_what_is_not_checked_field_by_field(run):
  with pytest.raises(UserError, match='ground_truth.json: "images" should be a list: evaluate the run again'):
    read(run, 'ground_truth.json', lambda gt: gt.pop('images'))
  with pytest.raises(UserError, match='bbox.json: cannot be scored against the ground_truth.json beside it'):
    read(run, 'ground_truth.json', lambda gt: gt['annotations'][0].update(iscrowd='no'))
  with pytest.raises(UserError, match='ground_truth.json: has no object that counts, .*: evaluate the run again'):
    read(run, 'ground_truth.json', lambda gt: [one.update(iscrowd=1) for one in gt['annotations']])
  assert np.array_equal(read(run, 'bbox.json', lambda results: None).matches.image_ids, np.arange(10, 16))


def test_files_of_the_development_kit(tmp_path):
  gt = truth(4)
  for image in gt['images']:
    image['file_name'] = f'{image["id"]}.jpg'
  folder = tmp_path / 'eval/step-00000100'
  folder.mkdir(parents=True)
  (folder / 'ground_truth.json').write_text(json.dumps(gt))
  (folder / 'comp4_det_test_a.txt').write_text('10 0.5 11 11 50 50\n')
  own = RunFolder(str(tmp_path), create=False)
  assert matching.read_matches(own, 'voc/mAP', 100).matches.categories[0].matched.all()
  (folder / 'comp4_det_test_a.txt').write_text('10 nan 11 11 50 50\n')
  with pytest.raises(UserError, match=r'step-00000100: \[0\].score is nan'):
    matching.read_matches(own, 'voc/mAP', 100)
  (folder / 'ground_truth.json').write_text(json.dumps(truth(4)))
  with pytest.raises(UserError, match='step-00000100: cannot be scored against'):
    matching.read_matches(own, 'voc/mAP', 100)


POLYGON = [[10, 10, 10, 50, 50, 50, 50, 10]]
POINTS = [20, 20, 2, 30, 30, 1]


def full_truth(images):
  """Ground truth of masks and keypoints."""
  gt = truth(images)
  for one in gt['annotations']:
    one.update(segmentation=POLYGON, keypoints=POINTS)
  return gt


@pytest.mark.parametrize('iou_type, field, values', [
  ('segm', 'segmentation', (None, 3, 'x', [], [[1, 2, 3]], [['a'] * 6], [[float('nan')] * 6], {},
                            {'size': [100, 100], 'counts': [1, 2]}, {'size': [9, 9], 'counts': 'Q3'})),
  ('keypoints', 'keypoints', (3, 'x', [1], [None] * 3, {'a': 1}, [10 ** 400] * 3))])
def test_masks_and_keypoints_where_they_are_scored(tmp_path, iou_type, field, values):
  path, gt = tmp_path / 'ground_truth.json', full_truth(2)
  for value in values:
    gt['annotations'][3][field] = value
    path.write_text(json.dumps(gt))
    assert saved_results.read_truth(str(path), 'bbox')
    with pytest.raises(UserError, match=rf'ground_truth.json: annotations\[3\].{field} is .*: evaluate the run again'):
      saved_results.read_truth(str(path), iou_type)
  del gt['annotations'][3][field]
  path.write_text(json.dumps(gt))
  if iou_type == 'segm':
    with pytest.raises(UserError, match=r'annotations\[3\].segmentation is missing'):
      saved_results.read_truth(str(path), iou_type)
  else:
    assert saved_results.read_truth(str(path), iou_type), 'of a class without keypoints'


@pytest.mark.parametrize('iou_type, good, bad', [
  ('segm', {'size': [100, 100], 'counts': 'Q3'}, (
    {'size': 'x', 'counts': 'Q3'}, {'size': [1, 'x'], 'counts': 'Q3'}, {'size': [9, 9], 'counts': [1, 2]}, [], None)),
  ('keypoints', [1, 2.5, 0] * 2, ([1, 2], 'x', [None] * 3)),
  ('bbox', [1, 2, 3, 4.5], ([1, 2, 3], {}, [1, 2, 3, 1e300]))])
def test_values_of_detections_of_each_kind(iou_type, good, bad):
  field = {'segm': 'segmentation'}.get(iou_type, iou_type)
  one = {'image_id': 10, 'category_id': 3, 'score': 0.5}
  saved_results.check_detections('x.json', [one | {field: good}], truth(2), iou_type)
  for value in bad:
    with pytest.raises(UserError, match=rf'x.json: \[1\].{field} is .*: evaluate the run again'):
      saved_results.check_detections('x.json', [one | {field: good}, one | {field: value}], truth(2), iou_type)


RLE = {'size': [100, 100], 'counts': [1010, *([40, 60] * 40)[:-1], 5050]}  # the pixels of POLYGON


@pytest.mark.parametrize('iou_type, same, change', [
  ('bbox', True, {'segmentation': [[10, 10, 10, 50, 50, 50]], 'keypoints': [1] * 6}),
  ('segm', True, {'segmentation': RLE, 'keypoints': [1] * 6}),
  ('segm', False, {'segmentation': [[10, 10, 10, 50, 50, 50]]}), ('segm', False, {'without_mask': 1}),
  ('keypoints', True, {'segmentation': [[10, 10, 10, 50, 50, 50]], 'keypoints': [20.0004, *POINTS[1:]]}),
  ('keypoints', False, {'keypoints': [21, *POINTS[1:]]}), ('keypoints', False, {'keypoints': []})])
def test_a_digest_is_of_what_is_scored(iou_type, same, change):
  changed = full_truth(6)
  changed['annotations'][4].update(change)
  assert (saved_results.digest(changed, iou_type) == saved_results.digest(full_truth(6), iou_type)) == same


def test_objects_of_a_class_without_keypoints_have_none():
  one, other = full_truth(2), full_truth(2)
  one['annotations'][1]['keypoints'] = []
  del other['annotations'][1]['keypoints']
  assert saved_results.digest(one, 'keypoints') == saved_results.digest(other, 'keypoints')


def test_masks_that_are_not_scored_do_not_count():
  one, other = full_truth(6), full_truth(6)
  one['annotations'][4] |= {'without_mask': 1, 'segmentation': [[10, 10, 10, 50, 50, 50, 60, 10]]}
  other['annotations'][4]['without_mask'] = 1
  for gt in (one, other):
    gt['annotations'].append({**gt['annotations'][4], 'without_mask': 0, 'segmentation': POLYGON})  # the same box
  assert saved_results.digest(one, 'segm') == saved_results.digest(other, 'segm')


@pytest.mark.parametrize('same, change', [
  (True, lambda gt: gt['annotations'].reverse()),
  (True, lambda gt: gt['annotations'][0].update(bbox=[10.0004, 10, 40, 40.0], id=7)),
  (True, lambda gt: gt['categories'].append({'id': 8, 'name': 'without objects'})),
  (True, lambda gt: ([one.update(id=10 - one['id']) for one in gt['categories']],
                     [a.update(category_id=10 - a['category_id']) for a in gt['annotations']])),
  (False, lambda gt: gt['annotations'][0].update(bbox=[10.1, 10, 40, 40])),
  (False, lambda gt: gt['annotations'][0].update(iscrowd=1)),
  (False, lambda gt: gt['annotations'][0].update(category_id=7)),
  (False, lambda gt: gt['categories'][0].update(name='c')),
  (False, lambda gt: gt['images'][0].update(height=99)),
  (False, lambda gt: gt['annotations'].pop())])
def test_a_digest_is_of_the_objects(same, change):
  changed = truth(6)
  change(changed)
  assert (saved_results.digest(changed) == saved_results.digest(truth(6))) == same
