"""A checkpoint is whole or absent, read strictly, and passed over when damaged."""

import json
import os
import resource
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.checkpoints import RunCheckpoints
from rethink_tf.errors import UserError
from rethink_tf.optimizers import SGD
from rethink_tf.run_folder import RunFolder


def parts(units=3, seed=0, layers=1):
  """A model and its optimizer, with all variables made."""
  tf_keras.utils.set_random_seed(seed)
  model = tf_keras.Sequential([tf_keras.layers.Dense(units, name=f'dense_{i}') for i in range(layers)])
  model.build((None, 4))
  optimizer = SGD(.1)
  optimizer.build(model.trainable_variables)
  return {'model': model, 'optimizer': optimizer}


def step(trackables):
  variables = trackables['model'].trainable_variables
  trackables['optimizer'].apply_gradients([(tf.ones_like(variable), variable) for variable in variables])


def values(trackables):
  return [v.numpy() for v in [*trackables['model'].variables, *trackables['optimizer'].variables]]


def assert_same(one, other):
  for a, b in zip(values(one), values(other), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.fixture(params=['local', 'ram://'])
def folder(request, tmp_path):
  return RunFolder(str(tmp_path / 'run') if request.param == 'local' else f'ram://{tmp_path.name}/run')


@pytest.fixture
def local(tmp_path):
  return RunFolder(str(tmp_path / 'run'))


def data_file(folder, number):
  (path,) = tf.io.gfile.glob(folder.join('checkpoints', f'step-{number:08d}', 'weights.data*'))
  return path


def test_restores_variables_velocities_and_state(folder):
  trained = parts()
  step(trained)
  checkpoints = RunCheckpoints(folder)
  assert checkpoints.restore(parts()) is None and checkpoints.latest() is None
  assert checkpoints.save(1, trained, {'seen': {'images': np.int64(16), 'seconds': 1.5}})
  fresh = parts(seed=1)
  assert RunCheckpoints(folder).restore(fresh) == {'seen': {'images': 16, 'seconds': 1.5}}
  assert_same(trained, fresh)
  assert fresh['optimizer'].iterations.numpy() == 1


def test_only_the_newest_are_kept(folder):
  checkpoints = RunCheckpoints(folder, keep=2)
  trained = parts()
  for number in (5, 10, 100, 20):
    checkpoints.save(number, trained, {'number': number})
  assert checkpoints.steps() == [20, 100] and checkpoints.latest() == 100
  assert checkpoints.restore(parts(), step=20) == {'number': 20}
  with pytest.raises(UserError, match=r'no checkpoint of step 5 in .*there are \[20, 100\]'):
    checkpoints.restore(parts(), step=5)
  assert [name.rstrip('/') for name in sorted(tf.io.gfile.listdir(folder.join('checkpoints')))] == [
    'step-00000020', 'step-00000100']


def test_some_of_the_trackables_can_be_read(folder):
  trained = parts()
  RunCheckpoints(folder).save(1, trained, {})
  fresh = parts(seed=1)
  RunCheckpoints(folder).restore({'model': fresh['model']})
  np.testing.assert_array_equal(fresh['model'].get_weights()[0], trained['model'].get_weights()[0])


@pytest.mark.parametrize('arguments, message', [
  ({'layers': 2}, r'only in the model: model/layer_with_weights-1/bias, model/layer_with_weights-1/kernel'),
  ({'units': 5}, r'model/layer_with_weights-0/kernel \(file \[4, 3\], model \[4, 5\]\)'),
])
def test_the_checkpoint_of_another_model(folder, arguments, message):
  RunCheckpoints(folder).save(1, parts(), {})
  other = parts(**arguments)
  before = values(other)
  with pytest.raises(UserError, match=message) as caught:
    RunCheckpoints(folder).restore(other)
  assert str(caught.value).startswith('wrong checkpoint ') and '\n' not in str(caught.value)
  for a, b in zip(before, values(other), strict=True):
    np.testing.assert_array_equal(a, b)  # nothing has been touched


def test_variables_that_only_the_file_has(folder):
  RunCheckpoints(folder).save(1, parts(layers=2), {})
  with pytest.raises(UserError, match=r'only in the file: model/layer_with_weights-1/bias'):
    RunCheckpoints(folder).restore(parts())


def truncate(path):
  with open(path, 'r+b') as file:
    file.truncate(os.path.getsize(path) // 2)


def flip_a_bit(path):
  with open(path, 'r+b') as file:
    file.seek(os.path.getsize(path) // 2)
    byte = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize('damage', [truncate, flip_a_bit, os.remove,
                                    lambda path: os.remove(os.path.join(os.path.dirname(path), 'manifest.json')),
                                    lambda path: truncate(os.path.join(os.path.dirname(path), 'manifest.json')),
                                    lambda path: shutil.rmtree(os.path.dirname(path))],
                         ids=['cut', 'bit', 'no data', 'no manifest', 'cut manifest', 'no folder'])
def test_damaged_newest_checkpoint_is_passed_over(local, damage):
  checkpoints = RunCheckpoints(local)
  trained = parts()
  for number in (1, 2):
    step(trained)
    checkpoints.save(number, trained, {'number': number})
  damage(data_file(local, 2))
  fresh = parts(seed=1)
  assert checkpoints.restore(fresh) == {'number': 1}
  assert fresh['optimizer'].iterations.numpy() == 1
  step(fresh)
  assert checkpoints.save(2, fresh, {'number': 2})  # takes the damaged one's place
  assert_same(trained, fresh)
  assert checkpoints.restore(parts()) == {'number': 2}


def test_nothing_sound_left_is_no_silent_start_from_zero(local):
  RunCheckpoints(local).save(7, parts(), {})
  truncate(data_file(local, 7))
  with pytest.raises(UserError, match=r'every checkpoint in .* is damaged \(steps 7\): move that folder away'):
    RunCheckpoints(local).restore(parts())


def test_weights_that_are_not_finite_are_never_written(folder):
  checkpoints = RunCheckpoints(folder)
  trained = parts()
  checkpoints.save(1, trained, {})
  trained['model'].layers[0].bias.assign([0., np.nan, 0.])
  with pytest.raises(UserError, match='training diverged: model/layer_with_weights-0/bias is not finite after step 2'):
    checkpoints.save(2, trained, {})
  assert checkpoints.steps() == [1]


def test_full_disk_keeps_the_old_ones_and_goes_on(local):
  checkpoints = RunCheckpoints(local, keep=1)
  trained = parts(units=4000)
  assert checkpoints.save(1, trained, {})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # what a full disk looks like to the writer
  try:
    assert not checkpoints.save(2, trained, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert checkpoints.failures == 1 and checkpoints.steps() == [1]
  assert os.listdir(local.join('checkpoints')) == ['step-00000001']
  assert checkpoints.save(3, trained, {}) and checkpoints.steps() == [3]


def test_state_must_be_json(local):
  with pytest.raises(TypeError, match='must be JSON, not set'):
    RunCheckpoints(local).save(1, parts(), {'bad': {1}})


def test_kills_at_any_moment_leave_whole_checkpoints(local):
  """A child saves without end and is killed at different moments; what is listed can always be restored."""
  code = ('import sys; sys.path[:0] = sys.argv[2:]\n'
          'from test_checkpoints import parts; from rethink_tf.checkpoints import RunCheckpoints\n'
          'from rethink_tf.run_folder import RunFolder\n'
          'checkpoints = RunCheckpoints(RunFolder(sys.argv[1]), keep=2)\ntrained = parts(units=20000)\n'
          'step = checkpoints.latest() or 0\nprint("ready", flush=True)\n'
          'while True:\n  step += 1\n  checkpoints.save(step, trained, {"step": step})\n  print(step, flush=True)\n')
  here = os.path.dirname(os.path.abspath(__file__))
  newest = 0
  for saves in (1, 3):
    with subprocess.Popen([sys.executable, '-c', code, local.path, here, os.path.dirname(here)],
                          stdout=subprocess.PIPE) as process:
      for _ in range(saves + 1):
        assert process.stdout.readline()
      process.kill()
    checkpoints = RunCheckpoints(local)
    assert checkpoints.latest() >= newest + saves
    newest = checkpoints.latest()
    assert checkpoints.restore(parts(units=20000, seed=1)) == {'step': newest}
  checkpoints.save(newest + 1, parts(units=20000), {})
  assert not [name for name in os.listdir(local.join('checkpoints')) if name.startswith('.')]


def test_mirrored_variables(local, two_replicas):
  with two_replicas.scope():
    trained = parts()
  RunCheckpoints(local).save(1, trained, {})
  single = parts(seed=1)
  assert RunCheckpoints(local).restore(single) == {}
  assert_same(trained, single)
  with two_replicas.scope():
    mirrored = parts(seed=2)
  assert RunCheckpoints(local).restore(mirrored) == {}
  for variable, expected in zip(mirrored['model'].variables, trained['model'].variables, strict=True):
    for value in two_replicas.experimental_local_results(variable):
      np.testing.assert_array_equal(value, expected.numpy())


def test_manifest_is_readable(local):
  RunCheckpoints(local).save(12, parts(), {'epoch': 3})
  with open(local.join('checkpoints', 'step-00000012', 'manifest.json')) as file:
    manifest = json.load(file)
  assert manifest['step'] == 12 and manifest['state'] == {'epoch': 3} and 'weights.index' in manifest['files']
