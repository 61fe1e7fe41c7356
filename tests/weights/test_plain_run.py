"""The switch to cascade: weights, iteration and counters of a run without cascade for a detector with more stages."""

import json
import shutil

import numpy as np
import pytest
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.storage import manifests
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training.optimizers import SGD
from rethink_tf.weights.plain_run import PlainRun
from tests import tiny

PROGRESS = {'images': 48, 'instances': 100, 'pixels': 5000}


def make(seed, **components):
  """A detector with its variables, and an optimizer."""
  tf_keras.utils.set_random_seed(seed)
  detector, optimizer = tiny.built(**components), SGD(0.01)
  optimizer.build(detector.trainable_variables)
  return {'detector': detector, 'optimizer': optimizer}


@pytest.fixture(scope='module')
def plain(tmp_path_factory):
  """A plain detector, saved at iteration 3, and the folder."""
  folder = str(tmp_path_factory.mktemp('plain'))
  trained = make(1)
  RunCheckpoints(RunFolder(folder)).save(3, trained, {'progress': PROGRESS})
  return trained['detector'], folder


@pytest.fixture
def cascaded():
  return make(2, cascade=tiny.cascade())['detector']


def test_every_stage_starts_with_the_weights_of_the_first(plain, cascaded):
  detector, folder = plain
  loaded = PlainRun(folder)(cascaded)
  assert loaded.step == 3 and loaded.progress == PROGRESS
  assert loaded.variables == {id(v) for v in cascaded.variables}
  for head in (cascaded.box_head, *cascaded.cascade.heads):
    for ours, theirs in zip(head.variables, detector.box_head.variables, strict=True):
      np.testing.assert_array_equal(ours, theirs)
  deltas = detector.box_predictor.deltas.kernel.numpy().reshape(32, tiny.CLASSES, 4).mean(1)
  for predictor in (cascaded.box_predictor, *cascaded.cascade.predictors):
    np.testing.assert_array_equal(predictor.classes.kernel, detector.box_predictor.classes.kernel)
    np.testing.assert_allclose(predictor.deltas.kernel, deltas, atol=1e-7)
  for name in ('backbone', 'fpn', 'rpn_head', 'mask_head', 'mask_predictor'):
    for ours, theirs in zip(getattr(cascaded, name).variables, getattr(detector, name).variables, strict=True):
      np.testing.assert_array_equal(ours, theirs)


@pytest.mark.slow
def test_further_stages_can_keep_random_weights(plain, cascaded):
  detector, folder = plain
  later = [*cascaded.cascade.heads, *cascaded.cascade.predictors]
  before = [v.numpy() for layer in later for v in layer.variables]
  loaded = PlainRun(folder, heads='random')(cascaded)
  after = [v for layer in later for v in layer.variables]
  assert not {id(v) for v in after} & loaded.variables
  for a, b in zip(before, after, strict=True):
    np.testing.assert_array_equal(a, b)
  np.testing.assert_array_equal(cascaded.box_predictor.classes.kernel, detector.box_predictor.classes.kernel)


@pytest.mark.slow
def test_one_checkpoint_of_the_run_is_loaded(plain, cascaded):
  assert PlainRun(f'{plain[1]}/checkpoints/step-00000003')(cascaded).step == 3


@pytest.mark.slow
def test_what_no_cascade_can_start_from_is_refused(plain, cascaded, tmp_path):
  with pytest.raises(UserError, match='loads weights into a cascade'):
    PlainRun(plain[1])(make(3)['detector'])
  with pytest.raises(UserError, match="heads = 'mean'"):
    PlainRun(plain[1], heads='mean')
  RunCheckpoints(RunFolder(str(tmp_path))).save(1, {'detector': make(4, cascade=tiny.cascade())['detector']}, {})
  with pytest.raises(UserError, match='has a cascade already'):
    PlainRun(str(tmp_path))(cascaded)


@pytest.mark.slow
@pytest.mark.parametrize('fields', [
  {'step': 'x'}, *(pytest.param(fields, marks=pytest.mark.slow) for fields in (
    {'step': -1}, {'step': None}, {'state': {'progress': 7}}))], ids=str)
def test_a_manifest_without_an_iteration(plain, cascaded, tmp_path, fields):
  folder = tmp_path / 'checkpoint'
  shutil.copytree(f'{plain[1]}/checkpoints/step-00000003', folder)
  manifest = json.loads((folder / 'manifest.json').read_text()) | fields
  del manifest['checksum']
  manifest['checksum'] = manifests.checksum(manifest)
  (folder / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(UserError, match='does not record an iteration'):
    PlainRun(str(folder))(cascaded)
