"""Saved detections: the newest evaluation, and files of another format."""

import pytest

from rethink_tf.errors import UserError
from rethink_tf.inspect_run import results
from tests.small_coco import image


def test_the_newest_evaluation_with_results(run):
  assert results.newest_results(str(run)) == f'{run}/eval/step-00000002'
  with pytest.raises(UserError, match='no evaluation'):
    results.newest_results(str(run / 'eval'))


def test_json_of_another_format_is_rejected(run):
  folder = run / 'eval' / 'step-00000002'
  gt = {'images': [image(1)], 'annotations': [], 'categories': []}
  assert [kind for kind, *_ in results.read_results(str(folder), gt, 'data')] == ['box', 'mask']
  (folder / 'keypoints.json').write_text((folder / 'bbox.json').read_text())
  with pytest.raises(UserError, match="keypoints.json: is not a list in COCO's results format"):
    list(results.read_results(str(folder), gt, 'data'))
