"""The inspection as a function: breakdowns returned, files in another folder."""

import json

import pytest

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.errors import UserError
from rethink_tf.inspect_run import plots, threshold_plots
from rethink_tf.inspect_run.inspection import inspect
from tests import small_coco
from tests.small_coco import annotation, image


@pytest.fixture
def without_plots(monkeypatch):
  """Plots are tested elsewhere (test___main__.py, test_threshold_plots.py)."""
  for name in ('plot_curves', 'plot_confusion'):
    monkeypatch.setattr(threshold_plots, name, lambda *_: b'png')
  monkeypatch.setattr(plots, 'plot_detections', lambda *_: b'png')


def test_breakdowns_and_files(run, tmp_path, capsys, without_plots):
  source = CocoSource(str(tmp_path / 'data'), 'val2017')
  breakdowns = inspect(str(run / 'eval/step-00000002'), source, str(tmp_path / 'out'), examples=2)
  assert set(breakdowns) == {'box', 'mask'}
  assert breakdowns['box'].counts['classification'] == breakdowns['mask'].counts['missed'] == 1
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {
    'errors.txt', 'errors.json', *(f'{name}_{kind}.{end}' for kind in ('box', 'mask') for name, end in (
      ('errors', 'png'), ('worst', 'png'), ('precision_recall', 'png'), ('confusion', 'png'), ('confusion', 'csv')))}
  assert (tmp_path / 'out/errors.txt').read_text() in capsys.readouterr().out


def test_thresholds_of_the_arguments(run, tmp_path, capsys, without_plots):
  source = CocoSource(str(tmp_path / 'data'), 'val2017')
  inspect(str(run / 'eval/step-00000002'), source, str(tmp_path / 'out'), examples=1, iou=0.75, score=0.95)
  assert '2 missed; 0 detections of nothing' in capsys.readouterr().out, 'the only score is 0.9'
  record = json.loads((tmp_path / 'out/errors.json').read_text())['mask']
  assert (record['confusion']['iou'], record['confusion']['score_threshold']) == (0.75, 0.95)
  assert record['precision_recall']['all']['best'] is None, 'nothing true at any threshold'


@pytest.mark.parametrize('score', [float('nan'), -0.1, 30.0])
def test_a_score_that_no_detection_has_is_refused(run, tmp_path, score):
  source = CocoSource(str(tmp_path / 'data'), 'val2017')
  with pytest.raises(UserError, match='--score=.*: use 0 to 1'):
    inspect(str(run / 'eval/step-00000002'), source, str(tmp_path / 'out'), score=score)
  assert not (tmp_path / 'out').exists()


def test_a_folder_without_results(run, tmp_path):
  with pytest.raises(UserError, match='holds neither bbox.json'):
    inspect(str(run / 'eval/step-00000004'), CocoSource(str(tmp_path / 'data'), 'val2017'))


@pytest.mark.parametrize('field, value, message', [
  ('area', 'large', r'annotations\[0\].area'), ('segmentation', [[1, 2, 3]], r'annotations\[0\].segmentation'),
  ('segmentation', {'size': [60, 80], 'counts': 'x'}, r'annotations\[0\].segmentation')])
def test_damaged_ground_truth_is_one_line(run, tmp_path, without_plots, field, value, message):
  folder, source = run / 'eval/step-00000002', CocoSource(str(tmp_path / 'data'), 'val2017')
  gt = source.annotations()
  gt['annotations'][0][field] = value
  (folder / 'ground_truth.json').write_text(json.dumps(gt))
  with pytest.raises(UserError, match=f'step-00000002/.*{message}.*: evaluate the run again'):
    inspect(str(folder), source, str(tmp_path / 'out'))


def test_damaged_run_lengths_of_detections_are_one_line(run, tmp_path, without_plots):
  path = run / 'eval/step-00000002/segm.json'
  path.write_text(json.dumps([one | {'segmentation': {'size': [60, 80], 'counts': 'x'}}
                              for one in json.loads(path.read_text())]))
  with pytest.raises(UserError, match='segm.json: cannot be scored against the ground_truth.json beside it'):
    inspect(str(path.parent), CocoSource(str(tmp_path / 'data'), 'val2017'), str(tmp_path / 'out'))


def test_the_files_of_an_earlier_call_are_replaced_together(run, tmp_path, without_plots):
  results, out = run / 'eval/step-00000002', tmp_path / 'out'
  source = CocoSource(str(tmp_path / 'data'), 'val2017')
  inspect(str(results), source, str(out), examples=1)
  before = {path.name: path.read_bytes() for path in out.iterdir()}
  (results / 'bbox.json').write_text('[]')
  (results / 'segm.json').write_text('{}')
  with pytest.raises(UserError, match='segm.json: is not a list'):
    inspect(str(results), source, str(out), examples=1)
  assert {path.name: path.read_bytes() for path in out.iterdir()} == before
  (results / 'segm.json').unlink()
  inspect(str(results), source, str(out), examples=1)
  assert not list(out.glob('*_mask.*')) and (out / 'confusion_box.csv').read_bytes() != before['confusion_box.csv']


def test_sigmas_of_the_evaluation(tmp_path, monkeypatch):
  """As of an evaluation with --gin_param='CocoEvaluator.keypoint_sigmas = ...', which config.gin does not have."""
  monkeypatch.setattr(plots, 'plot_keypoints', lambda *_: b'png')
  people = [annotation(k, image_id=k, keypoints=[20, 20, 2, 12, 15, 2], num_keypoints=2) for k in (1, 2)]
  categories = [{'id': 1, 'name': 'thing', 'keypoints': ['nose', 'tail']}]
  small_coco.write(tmp_path, [image(1), image(2)], people, categories, 'val2017')
  source = CocoSource(str(tmp_path), 'val2017', keypoints=True)
  (tmp_path / 'keypoints.json').write_text(json.dumps([
    {'category_id': 1, 'image_id': k, 'score': 0.9, 'keypoints': [24, 20, 1, 12, 19, 1]} for k in (1, 2)]))
  aps = []
  for sigmas in ((0.5, 0.5), (0.05, 0.05), 'x'):
    (tmp_path / 'ground_truth.json').write_text(json.dumps(source.annotations() | {'keypoint_sigmas': sigmas}))
    if sigmas == 'x':
      with pytest.raises(UserError, match='keypoints.json: cannot be scored'):
        inspect(str(tmp_path), source)
    else:
      aps.append(inspect(str(tmp_path), source)['keypoint'].ap)
  assert aps[0] == pytest.approx(1) and aps[1] < 0.5
