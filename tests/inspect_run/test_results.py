"""Saved detections: the newest evaluation, and files of another format."""

import json

import pytest

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.errors import UserError
from rethink_tf.inspect_run import results
from tests.small_coco import annotation, image, write


def test_the_newest_evaluation_with_results(run):
  assert results.newest_results(str(run)) == f'{run}/eval/step-00000002'
  with pytest.raises(UserError, match='no evaluation'):
    results.newest_results(str(run / 'eval'))


def test_the_run_of_a_classifier(tmp_path):
  (tmp_path / 'config.gin').write_text('run.evaluator = @TopKEvaluator\n')
  with pytest.raises(UserError, match='is the run of a classifier, and inspect_run needs a detector'):
    results.newest_results(str(tmp_path))


@pytest.mark.parametrize('file', ['bbox.json', 'comp3_det_test_dog.txt'])
def test_a_folder_whose_name_is_a_pattern(tmp_path, file):
  folder = tmp_path / 'lr=[0.1]/eval/step-00000002'
  folder.mkdir(parents=True)
  (folder / file).write_text('')
  assert results.newest_results(str(tmp_path / 'lr=[0.1]')) == str(folder)


def test_json_of_another_format_is_rejected(run):
  folder = run / 'eval' / 'step-00000002'
  gt = {'images': [image(1)], 'annotations': [], 'categories': CATEGORIES}
  assert [kind for kind, *_ in results.read_results(str(folder), gt, 'data')] == ['box', 'mask']
  (folder / 'keypoints.json').write_text((folder / 'bbox.json').read_text())
  with pytest.raises(UserError, match="keypoints.json: is not a list in COCO's results format"):
    list(results.read_results(str(folder), gt, 'data'))


@pytest.mark.parametrize('file, change, message', [
  ('bbox.json', {'image_id': [1]}, r'\[0\].image_id is an object of type list'),
  ('bbox.json', {'category_id': 7}, r'\[0\].category_id is 7'), ('bbox.json', {'score': 'high'}, r'\[0\].score'),
  ('bbox.json', {'bbox': [1, 2, None, 4]}, r'\[0\].bbox'), ('segm.json', {'segmentation': [[1, 2]]}, 'segmentation'),
  ('bbox.json', {'image_id': 9}, 'image 9 is not in data: give the --data_dir that was evaluated')])
def test_damaged_detections(run, tmp_path, file, change, message):
  path = run / 'eval/step-00000002' / file
  path.write_text(json.dumps([one | change for one in json.loads(path.read_text())]))
  gt = CocoSource(str(tmp_path / 'data'), 'val2017').annotations()
  with pytest.raises(UserError, match=f'{file}: .*{message}'):
    list(results.read_results(str(path.parent), gt, 'data'))


CATEGORIES = [{'id': 1, 'name': 'thing'}, {'id': 4, 'name': 'other'}]


def corrected(tmp_path, **fields):
  """Return a source like that of the run, with another object in its second image."""
  annotations = [annotation(1), annotation(2, image_id=2) | fields]
  return CocoSource(write(tmp_path / 'corrected', [image(1), image(2)], annotations, CATEGORIES, 'val2017'), 'val2017')


def test_objects_are_those_that_were_scored(run, tmp_path):
  folder, source = run / 'eval' / 'step-00000002', CocoSource(str(tmp_path / 'data'), 'val2017')
  gt = source.annotations()
  assert results.scored_truth(str(folder), source) == gt, 'nothing was saved'
  (folder / 'ground_truth.json').write_text(json.dumps(gt | {'max_detections': {'bbox': 300, 'segm': 'no number'}}))
  assert results.scored_truth(str(folder), source) == gt | {'max_detections': {'bbox': 300}}
  for fields in ({'bbox': [11, 10, 20, 30]}, {'category_id': 4}, {'iscrowd': 1}, {'image_id': 1}):
    with pytest.raises(UserError, match='ground_truth.json: corrected/val2017 has other images or objects than were '
                                        'scored: give the --data_dir that was evaluated, or evaluate the run again'):
      results.scored_truth(str(folder), corrected(tmp_path, **fields))
  outline = corrected(tmp_path, segmentation=[[10, 10, 25, 10, 25, 40, 10, 40]])
  assert outline.annotations()['annotations'] != gt['annotations']
  assert results.scored_truth(str(folder), outline)['annotations'] == gt['annotations'], 'masks are those scored'


def test_other_images_and_classes_than_were_scored(run, tmp_path):
  folder, source = run / 'eval' / 'step-00000002', CocoSource(str(tmp_path / 'data'), 'val2017')
  gt = source.annotations()
  first = gt | {'images': gt['images'][:1], 'annotations': gt['annotations'][:1]}  # the second could not be read
  (folder / 'ground_truth.json').write_text(json.dumps(first))
  assert results.scored_truth(str(folder), source)['images'] == gt['images'][:1]
  more = gt | {'images': [*gt['images'], image(3)]}
  renamed = gt | {'categories': [CATEGORIES[0], {'id': 4, 'name': 'renamed'}]}
  for other in (more, renamed):
    (folder / 'ground_truth.json').write_text(json.dumps(other))
    with pytest.raises(UserError, match='other images or objects than were scored'):
      results.scored_truth(str(folder), source)
  (folder / 'ground_truth.json').write_text('{"images": []}')
  with pytest.raises(UserError, match='ground_truth.json: "categories" should be a list: evaluate the run again'):
    results.scored_truth(str(folder), source)
