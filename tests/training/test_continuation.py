"""Starts in a run folder that is not empty: what may change, and that a refused one has written nothing."""

import hashlib
import json
import pathlib
import shutil
import types

import gin
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.gin_files import parse
from rethink_tf.models.resnet import ResNet
from rethink_tf.storage import identity
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.structures import Devices
from rethink_tf.training import continuation
from rethink_tf.training.schedules import KTimesSchedule
from tests import small_coco
from tests.in_process import call

OLD = pathlib.Path(__file__).parents[1] / 'old_run'
ONE_DEVICE = "--gin_param=strategy.kind = 'one_device'"

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


def contents(folder):
  """Digests of all files, by name."""
  return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
          for path in pathlib.Path(folder).rglob('*') if path.is_file()}


class Start:
  """A start with a schedule and data, as far as continuation sees it."""

  def __init__(self, folder, step, *bindings, allow_changes=False, train=8):
    parse([], ['KTimesSchedule.warmup_steps = 1', *bindings])
    gin.get_configurable(KTimesSchedule)()
    source = lambda n: types.SimpleNamespace(source=SyntheticSource(n, image_size=(90, 90)))  # noqa: E731
    self.folder, self.train_input, self.eval_input = folder, source(train), source(2)
    self.recorded, self.allow_changes, self.total_steps = identity.read(folder), allow_changes, 100
    self.checkpoints = types.SimpleNamespace(latest=lambda: step or None, belong_to=lambda *_: None, runs=list)
    self.step = step

  def go(self):
    continuation.record(self, *continuation.check(self), self.step)
    return identity.read(self.folder)


@pytest.fixture
def folder(tmp_path):
  return RunFolder(str(tmp_path / 'run'))


def test_the_meaning_of_a_step_changes_only_when_asked_for(folder):
  first = Start(folder, 0, 'KTimesSchedule.unit = 10').go()
  before = contents(folder.path)
  with pytest.raises(UserError, match='step 5 .*KTimesSchedule.unit 10 -> 20'):
    Start(folder, 5, 'KTimesSchedule.unit = 20').go()
  assert contents(folder.path) == before
  found = Start(folder, 5, 'KTimesSchedule.unit = 20', allow_changes=True).go()
  assert found.run == first.run and found.history[0]['step'] == 5
  Start(folder, 6, 'KTimesSchedule.unit = 20').go()


def test_a_longer_schedule_goes_on(folder, caplog):
  Start(folder, 0).go()
  assert len(Start(folder, 5, 'KTimesSchedule.k = 3').go().history) == 1
  assert 'KTimesSchedule.k  1    3' in caplog.text


def test_checkpoints_stay_those_of_a_run_whose_identity_was_removed(folder):
  """As the message on a damaged identity.json says."""
  checkpoints, variables = RunCheckpoints(folder), {'model': tf.train.Checkpoint(v=tf.Variable(1.0))}
  first = Start(folder, 0).go()
  for i in range(2):  # the second one of a fork, whose checkpoints bear two names
    checkpoints.belong_to(identity.read(folder))
    checkpoints.save(i + 1, variables, {})
    identity.fork(folder)
  pathlib.Path(folder.join('identity.json')).unlink()
  folder.write_text('config.gin', '')
  start = Start(folder, 2)
  start.checkpoints = checkpoints
  assert start.go().owns(first.run)
  assert checkpoints.restore(variables) and checkpoints.restore(variables, 1)


def test_checkpoints_without_the_files_that_tell_whose_they_are(folder):
  """As after a copy of checkpoints/ alone: the settings and classes with which they were trained are not known."""
  with pytest.raises(UserError, match='has checkpoints, up to step 5, but neither identity.json nor config.gin'):
    Start(folder, 5).go()
  assert not contents(folder.path)
  start = Start(folder, 5, allow_changes=True)
  start.checkpoints.runs = lambda: ['theirs', 'older']
  found = start.go()
  assert found.run == 'theirs' and found.owns('older')  # so that the next start restores them, too


def test_other_data_is_reported(folder, caplog):
  Start(folder, 0).go()
  found = Start(folder, 5, train=6).go()
  assert 'train: 8 -> 6 images' in caplog.text and 'train: 8 -> 6 images' in found.history[0]['data'][0]
  assert 'held_out' not in caplog.text


@pytest.mark.parametrize('norm, replicas, warned', [('sync_batch_norm', 1, True), ('sync_batch_norm', 4, False),
                                                    ('group_norm', 1, False)])
def test_statistics_over_other_numbers_of_images_are_reported(folder, caplog, norm, replicas, warned):
  """Eight images of a step on four devices, then on one, or on four that hold as many."""
  folder.save_provenance(['train'], '', Devices(4, 1, 2)._asdict())
  start = Start(folder, 5, f'ResNet.norm = @{norm}', 'ResNet.depth = 14')
  gin.get_configurable(ResNet)()
  start.devices = Devices(replicas, 4 // replicas, 2)
  continuation.warn_of_other_statistics(start)
  assert ('SyncBatchNorm took its statistics over 8 images, from now on over 2' in caplog.text) == warned


def test_a_step_beyond_the_schedule_is_reported(folder, caplog):
  Start(folder, 0).go()
  Start(folder, 101).go()
  assert 'at step 101, beyond the end of the schedule (100)' in caplog.text


def coco_of(folder, boxes, names, order):
  """The held-out images of the old run as COCO data; category ids are positions in `order`."""
  source = SyntheticSource(3, split='val', image_size=(64, 64), object_size=(16, 40))
  images = [small_coco.image(int(id_), 64, 64) | {'file_name': f'{id_}.png'} for id_ in source.image_ids]
  ids = {name: k for k, name in enumerate(order, start=1)}
  annotations = [small_coco.annotation(k, box['image_id'], box['bbox'], category_id=ids[names[box['category_id']]])
                 for k, box in enumerate(boxes, start=1)]
  small_coco.write(folder, images, annotations, [{'id': ids[name], 'name': name} for name in order], 'val2017')
  shutil.copytree(folder / 'val2017', folder / 'train2017')
  (folder / 'annotations/instances_train2017.json').write_text(
    (folder / 'annotations/instances_val2017.json').read_text())
  for i, image in enumerate(images):
    for split in ('train2017', 'val2017'):
      Image.fromarray(source.load(i).image).save(folder / split / image['file_name'])


@pytest.fixture
def run(tmp_path):
  """The old run, and COCO data whose objects are its own detections, so that it scores well."""
  folder = pathlib.Path(shutil.copytree(OLD, tmp_path / 'run'))
  boxes = json.loads((folder / 'eval/step-00000006/bbox.json').read_text())
  names = {entry['id']: entry['name'] for entry in json.loads((folder / 'categories.json').read_text())}
  boxes = [box for box in boxes if box['score'] >= np.median([b['score'] for b in boxes])]
  order = list(names.values())
  coco_of(tmp_path / 'same', boxes, names, order)
  coco_of(tmp_path / 'permuted', boxes, names, order[::-1])
  coco_of(tmp_path / 'other', boxes, names | {1: 'bird'}, ['bird', *order[1:]])
  coco_of(tmp_path / 'one_more', boxes, names, [*order, 'bird'])
  return folder


def command(name, run, data, *arguments):
  files = [f'--gin_file={run}/config.gin', '--gin_file=gin_configs/data/coco.gin']
  return call(name, *files, f'--model_dir={run}', f'--data_dir={run.parent / data}', ONE_DEVICE, *arguments)


def box_ap(run):
  return [line['box/AP'] for line in RunFolder(str(run), create=False).read_metrics() if line['kind'] == 'eval'][-1]


@pytest.mark.slow
def test_permuted_categories_are_evaluated_by_name(run):
  found = {}
  for data in ('same', 'permuted'):
    result = command('evaluate', run, data)
    assert result.returncode == 0, result.stderr
    found[data] = box_ap(run)
  assert found['permuted'] == pytest.approx(found['same'], abs=1e-9) and found['same'] > 50


@pytest.mark.parametrize('name, data, text', [
  ('evaluate', 'other', "'bird' is only there and 'disc' is only in"),
  ('train', 'one_more', "'bird' is only there"),  # a complete run, as any other
])
def test_other_categories_are_refused_before_anything_is_written(run, name, data, text):
  before = contents(run)
  result = command(name, run, data)
  assert result.returncode == 1 and text in result.stderr.splitlines()[-1], result.stderr
  assert contents(run) == before


@pytest.mark.slow
def test_a_run_is_continued_with_permuted_categories(run):
  settings = ('--gin_param=KTimesSchedule.unit = 1.75', '--gin_param=CocoEvaluator.at_end = False')
  result = command('train', run, 'permuted', *settings)
  assert result.returncode == 0, result.stderr
  assert json.loads((run / 'categories.json').read_text()) == json.loads((OLD / 'categories.json').read_text())
  assert (run / 'earlier_configs/config-000.gin').read_text() == (OLD / 'config.gin').read_text()
  # From now on it has an identity.
  before = contents(run)
  result = command('train', run, 'permuted', *settings, '--gin_param=BATCH_SIZE = 2')
  assert result.returncode == 1 and 'run.batch_size 4 -> 2' in result.stderr.splitlines()[-1], result.stderr
  result = command('evaluate', run, 'permuted', '--gin_param=Anchors.offset = 0.0')
  assert result.returncode == 1 and 'Anchors.offset 0.5 -> 0.0' in result.stderr.splitlines()[-1], result.stderr
  # A checkpoint of another run.
  manifest = run / 'checkpoints/step-00000007/manifest.json'
  own = identity.read(RunFolder(str(run)))
  assert json.loads(manifest.read_text())['state']['run'] == own.run
  (run / 'identity.json').write_text(json.dumps(own._replace(run='another')._asdict()))
  result = command('evaluate', run, 'permuted')
  assert result.returncode == 1 and 'is a checkpoint of another run' in result.stderr.splitlines()[-1], result.stderr
  (run / 'identity.json').write_text(json.dumps(own._asdict(), indent=1) + '\n')
  assert contents(run) == before
