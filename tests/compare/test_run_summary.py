"""Settings, samples seen and pre-training of a run, from its folder."""

import json

import numpy as np
import pytest

from rethink_tf.compare.report import compare
from rethink_tf.compare.run_summary import SCRATCH, init_key, read_runs, twin_key
from rethink_tf.errors import UserError
from rethink_tf.storage.run_folder import RunFolder, write_schedule
from tests.compare.fake_runs import HALF, write


def test_settings_with_macros_and_continued_lines(tmp_path):
  path = write(tmp_path / 's', HALF, k=2.5)
  one, = read_runs([path])
  assert one.settings['KTimesSchedule.k'] == 2.5 and one.settings['run.model'] == '@MaskRCNN'
  assert one.schedule == '2.5x' and one.init == SCRATCH
  assert one.drops == [] and read_runs([write(tmp_path / 'long', HALF, k=1, images=4000)])[0].drops == [800]


def test_pre_training_by_this_package_is_counted(tmp_path):
  """With a run folder as initial weights, the samples seen are in its metrics."""
  (tmp_path / 'classifier').mkdir()
  (tmp_path / 'classifier/metrics.jsonl').write_text(json.dumps(
    {'kind': 'train', 'step': 10, 'images': 320, 'instances': 320, 'pixels': 1000}) + '\n')
  one, = read_runs([write(tmp_path / 'p', HALF, init=str(tmp_path / 'classifier'))])
  assert one.pretraining == (320, 320, 1000)


def test_the_cost_of_published_weights_is_that_of_their_entry(tmp_path):
  """As a run records it: name, numbers, and where they are from."""
  path = write(tmp_path / 'p', HALF, init='moco_v2')
  record = tmp_path / 'p/initial_weights.json'
  cost = {'images': 3, 'instances': 4, 'pixels': 5, 'source': '800 epochs'}
  record.write_text(json.dumps({'path': 'moco_v2', 'name': 'moco_v2', 'format': 'torchvision', 'cost': cost}))
  one, = read_runs([path])
  assert one.pretraining == (3, 4, 5) and one.pretraining_source == 'moco_v2: 800 epochs'
  assert one.weights_name == 'moco_v2'
  record.write_text(json.dumps({'path': 'moco_v2', 'cost': cost | {'pixels': 'many'}}))
  assert 'assumed' in read_runs([path])[0].pretraining_source


def test_a_parameter_that_is_none_does_not_set_runs_apart():
  """An earlier version may not have had it."""
  old = {'Resize.short_side': (800,), 'PretrainedWeights.path': 'a/R-50.pkl'}
  new = old | {'Resize.scale': None, 'PretrainedWeights.file_classes': None}
  assert twin_key(old) == twin_key(new) != twin_key(new | {'Resize.scale': 0.5})
  assert init_key(old) == init_key(new) != init_key(new | {'PretrainedWeights.file_classes': 'coco'})


def test_the_conventions_of_a_detector_belong_to_its_weights():
  """A run from a detector of Detectron2 is a counterpart of one from random weights."""
  scratch = {'Anchors.offset': 0.5, 'RoIPooler.aligned': False, 'RoIPooler.sampling_ratio': 2, 'Anchors.sizes': (8, 16)}
  tuned = scratch | {'Anchors.offset': 0.0, 'RoIPooler.aligned': True, 'RoIPooler.sampling_ratio': 0}
  assert twin_key(scratch) == twin_key(tuned) != twin_key(scratch | {'Anchors.sizes': (16, 32)})
  assert init_key(scratch) != init_key(tuned)


def test_a_run_that_continues_a_scratch_run_is_one(tmp_path):
  """A cascade that continues a plain run (weights.plain_run): its curve has the plain run's samples already."""
  path = write(tmp_path / 'p', HALF, init='runs/plain')
  record = tmp_path / 'p/initial_weights.json'
  record.write_text(json.dumps({'path': 'runs/plain', 'continues': None}))
  one, = read_runs([path])
  assert (one.init, one.pretraining) == ('scratch', None)
  record.write_text(json.dumps({'path': 'runs/plain', 'continues': {'path': 'R-50.pkl', 'format': 'Detectron .pkl'}}))
  one, = read_runs([path])
  assert one.init == 'pre-trained' and one.pretraining.images == pytest.approx(1.281e8, rel=1e-3)


def test_what_the_last_evaluation_did_not_score_is_noted(tmp_path):
  path = write(tmp_path / 's', HALF)
  assert read_runs([path])[0].notes == ()
  with open(tmp_path / 's/metrics.jsonl', 'a') as file:
    file.write(json.dumps({'kind': 'eval', 'step': 100, 'box/AP': 50.0, 'images_scored': 4, 'images_missing': 1,
                           'images_unreadable': 1, 'notes': ['a limit binds']}) + '\n')
  assert read_runs([path])[0].notes == ('its last evaluation scored 4 of 6 images', 'a limit binds')
  page = compare([path], str(tmp_path / 'report'))
  assert 's: its last evaluation scored 4 of 6 images.' in page.text


def test_samples_seen_are_those_of_the_metrics_between_whose_lines_they_are_interpolated(tmp_path):
  """Not the steps times the batch; the notes are those of the last evaluation."""
  path = write(tmp_path / 's', HALF)
  lines = [{'kind': 'train', 'step': 40, 'images': 200, 'instances': 80, 'pixels': 1e6, 'seconds': 10.0},
           {'kind': 'train', 'step': 100, 'images': 380, 'instances': 200, 'pixels': 4e6, 'seconds': 40.0},
           {'kind': 'eval', 'step': 20, 'box/AP': 3.0, 'images_scored': 4, 'images_missing': 1, 'images_unreadable': 0},
           {'kind': 'eval', 'step': 60, 'box/AP': 5.0, 'box/APs': -1, 'images_scored': 5, 'images_missing': 0,
            'images_unreadable': 0, 'time': 86_400 * 2}]
  (tmp_path / 's/metrics.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n')
  one, = read_runs([path])
  found = [getattr(one.curve, name).tolist() for name in ('steps', 'images', 'instances', 'pixels', 'seconds')]
  assert found == [[20, 60], [100, 260], [40, 120], [5e5, 2e6], [5, 20]] and one.seen == (260, 120, 2e6)
  assert set(one.curve.metrics) == {'box/AP', 'box/APs'} and one.curve.metrics['box/AP'].tolist() == [3, 5]
  assert np.isnan(one.final('box/APs')) and one.notes == () and one.date == '1970-01-03'
  (tmp_path / 's/metrics.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines[2:]))
  assert read_runs([path])[0].seen[0] == 60 * 4, 'without lines of training'
  (tmp_path / 's/metrics.jsonl').write_text(json.dumps(lines[0]) + '\n')
  with pytest.raises(UserError, match='no evaluation in metrics.jsonl yet: train or evaluate it first'):
    read_runs([path])


@pytest.mark.parametrize('bindings, schedule', [
  ('KTimesSchedule.total = 90_000\nKTimesSchedule.boundaries = (60_000,)', '90k'),
  ('EpochSchedule.epochs = 1', '1 epoch'),
  ('SteppedHalving.images = 3.6e9', '3,600,000,000 images'), ('', '100 steps')])
def test_the_name_of_a_schedule(tmp_path, bindings, schedule):
  path = write(tmp_path / 's', HALF)
  config = (tmp_path / 's/config.gin').read_text().replace('KTimesSchedule.k = %SCHEDULE', bindings)
  (tmp_path / 's/config.gin').write_text(config)
  assert read_runs([path])[0].schedule == schedule


def test_the_cost_of_pre_training_is_that_of_when_the_run_began(tmp_path):
  """Whatever became of the folder of pre-training."""
  (tmp_path / 'classifier').mkdir()
  (tmp_path / 'classifier/metrics.jsonl').write_text(json.dumps({'kind': 'train', 'step': 99, 'images': 9999}) + '\n')
  path = write(tmp_path / 'p', HALF, init=str(tmp_path / 'classifier'))
  record = tmp_path / 'p/initial_weights.json'
  record.write_text(json.dumps(json.loads(record.read_text()) | {'seen': {'images': 3, 'instances': 4, 'pixels': 5}}))
  assert read_runs([path])[0].pretraining == (3, 4, 5)
  record.write_text(json.dumps(json.loads(record.read_text()) | {'seen': {'images': 'many'}}))
  assert read_runs([path])[0].pretraining.images == 9999


def test_duplicate_folders_and_none_are_rejected(tmp_path):
  path = write(tmp_path / 's', HALF)
  with pytest.raises(UserError, match='named twice'):
    read_runs([path, path + '/'])
  with pytest.raises(UserError, match='no run given'):
    read_runs([])


def test_a_run_before_its_end_has_the_share_of_its_schedule(tmp_path):
  """Runs of earlier versions have not recorded their last step."""
  folder = RunFolder(write(tmp_path / 'a', HALF, k=2))
  one, = read_runs([folder.path])
  assert (one.schedule, one.planned, one.complete) == ('2x', None, True)
  for total, schedule in ((100, '2x'), (101, '99 % of 2x'), (400, '25 % of 2x'), (99, '101 % of 2x')):
    write_schedule(folder, total)
    one, = read_runs([folder.path])
    assert (one.schedule, one.complete) == (schedule, total == 100)


def test_a_run_that_stops_before_its_end_is_not_complete(tmp_path):
  """2,400 steps of 4 images are 2x; it ends at 100 as it should, with the rates of the whole schedule."""
  folder = RunFolder(write(tmp_path / 'a', HALF, k=2))
  write_schedule(folder, 100)
  config = (tmp_path / 'a/config.gin').read_text()
  (tmp_path / 'a/config.gin').write_text(config.replace('unit = 300', 'unit = 300\nKTimesSchedule.stop_k = 0.0834'))
  one, = read_runs([folder.path])
  assert (one.schedule, one.planned) == ('4 % of 2x', 2400)


def test_the_rule_of_a_metric_sets_runs_apart_and_the_place_of_its_evaluation_does_not():
  one = {'VocEvaluator.rule': 'area', 'VocEvaluator.every': 5000, 'group_norm.xla': True}
  assert twin_key(one) == twin_key(one | {'VocEvaluator.every': 0, 'group_norm.xla': False})
  assert twin_key(one) != twin_key(one | {'VocEvaluator.rule': '11points'})
