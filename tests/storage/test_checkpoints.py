"""Checkpoints are complete or absent, read strictly, and skipped when damaged; the best one is kept."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.metrics_lines import ON_DEMAND
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training.optimizers import SGD


def model_and_optimizer(units=3, seed=0, layers=1):
  """Return a model and its optimizer with all variables, by name."""
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


def assert_same(expected, found):
  for a, b in zip(values(expected), values(found), strict=True):
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
  trained = model_and_optimizer()
  step(trained)
  checkpoints = RunCheckpoints(folder)
  assert checkpoints.restore(model_and_optimizer()) is None and checkpoints.latest() is None
  assert checkpoints.save(1, trained, {'seen': {'images': np.int64(16), 'seconds': 1.5}})
  fresh = model_and_optimizer(seed=1)
  assert RunCheckpoints(folder).restore(fresh) == {'seen': {'images': 16, 'seconds': 1.5}}
  assert_same(trained, fresh)
  assert fresh['optimizer'].iterations.numpy() == 1


def test_only_the_newest_checkpoints_are_kept(folder):
  checkpoints = RunCheckpoints(folder, keep=2)
  trained = model_and_optimizer()
  for number in (5, 10, 100, 20):
    checkpoints.save(number, trained, {'number': number})
  assert checkpoints.steps() == [20, 100] and checkpoints.latest() == 100
  assert checkpoints.restore(model_and_optimizer(), step=20) == {'number': 20}
  with pytest.raises(UserError, match=r'no checkpoint of step 5 in .*there are \[20, 100\]'):
    checkpoints.restore(model_and_optimizer(), step=5)
  assert [name.rstrip('/') for name in sorted(tf.io.gfile.listdir(folder.join('checkpoints')))] == [
    'step-00000020', 'step-00000100']


def test_a_subset_of_the_trackables_can_be_restored(folder):
  trained = model_and_optimizer()
  RunCheckpoints(folder).save(1, trained, {})
  fresh = model_and_optimizer(seed=1)
  RunCheckpoints(folder).restore({'model': fresh['model']})
  np.testing.assert_array_equal(fresh['model'].get_weights()[0], trained['model'].get_weights()[0])


@pytest.mark.parametrize('arguments, message', [
  ({'layers': 2}, r'only in the model: model/layer_with_weights-1/bias, model/layer_with_weights-1/kernel'),
  ({'units': 5}, r'model/layer_with_weights-0/kernel \(file \[4, 3\], model \[4, 5\]\)'),
])
def test_a_checkpoint_of_another_model_is_a_user_error(folder, arguments, message):
  RunCheckpoints(folder).save(1, model_and_optimizer(), {})
  other = model_and_optimizer(**arguments)
  before = values(other)
  with pytest.raises(UserError, match=message) as caught:
    RunCheckpoints(folder).restore(other)
  assert str(caught.value).startswith('wrong checkpoint ') and '\n' not in str(caught.value)
  for a, b in zip(before, values(other), strict=True):
    np.testing.assert_array_equal(a, b)  # nothing is restored


def test_variables_missing_in_the_model_are_a_user_error(folder):
  RunCheckpoints(folder).save(1, model_and_optimizer(layers=2), {})
  with pytest.raises(UserError, match=r'only in the file: model/layer_with_weights-1/bias'):
    RunCheckpoints(folder).restore(model_and_optimizer())


def flip_a_bit(path):
  with open(path, 'r+b') as file:
    file.seek(os.path.getsize(path) // 2)
    byte = file.read(1)
    file.seek(-1, os.SEEK_CUR)
    file.write(bytes([byte[0] ^ 1]))


@pytest.mark.parametrize('damage', [flip_a_bit, lambda path: shutil.rmtree(os.path.dirname(path)),
                                    lambda path: os.remove(os.path.join(os.path.dirname(path), 'manifest.json'))],
                         ids=['bit', 'no folder', 'no manifest'])
def test_a_damaged_newest_checkpoint_is_skipped_and_replaced(local, damage):
  checkpoints = RunCheckpoints(local)
  trained = model_and_optimizer()
  for number in (1, 2):
    step(trained)
    checkpoints.save(number, trained, {'number': number})
  damage(data_file(local, 2))
  fresh = model_and_optimizer(seed=1)
  assert checkpoints.restore(fresh) == {'number': 1}
  assert fresh['optimizer'].iterations.numpy() == 1
  step(fresh)
  assert checkpoints.save(2, fresh, {'number': 2})  # replaces the damaged one
  assert_same(trained, fresh)
  assert checkpoints.restore(model_and_optimizer()) == {'number': 2}


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A run with checkpoints of steps 1 and 2."""
  local = RunFolder(str(tmp_path_factory.mktemp('two') / 'run'))
  trained = model_and_optimizer()
  for number in (1, 2):
    step(trained)
    RunCheckpoints(local).save(number, trained, {'number': number, 'seen': {'images': 16 * number, 'seconds': 1.5}})
  return local


@pytest.mark.parametrize('name', ['weights.data-00000-of-00001', 'weights.index', 'manifest.json'])
def test_a_flipped_bit_is_detected(two, name):
  """At 60 offsets of each file, including the first and the last byte."""
  path = os.path.join(two.join('checkpoints', 'step-00000002'), name)
  with open(path, 'rb') as file:
    sound = file.read()
  rng = np.random.default_rng(len(sound))
  fresh = model_and_optimizer()
  try:
    for offset in (0, len(sound) - 1, *rng.choice(len(sound), 58, replace=False).tolist()):
      damaged = bytearray(sound)
      damaged[offset] ^= 1 << int(rng.integers(8))
      with open(path, 'wb') as file:
        file.write(damaged)
      assert RunCheckpoints(two).restore(fresh)['number'] == 1, offset
  finally:
    with open(path, 'wb') as file:
      file.write(sound)
  assert RunCheckpoints(two).restore(fresh)['number'] == 2


@pytest.mark.parametrize('name', ['weights.data-00000-of-00001', 'weights.index', 'manifest.json'])
@pytest.mark.parametrize('share', [None, 0., .3, .99])
def test_a_truncated_or_missing_file_is_detected(two, name, share, tmp_path):
  copy = RunFolder(str(tmp_path))
  shutil.copytree(two.join('checkpoints'), copy.join('checkpoints'))
  path = os.path.join(copy.join('checkpoints', 'step-00000002'), name)
  if share is None:
    os.remove(path)
  else:
    os.truncate(path, int(share * os.path.getsize(path)))
  assert RunCheckpoints(copy).restore(model_and_optimizer())['number'] == 1


def test_a_manifest_without_checksums_is_read(two, tmp_path):
  copy = RunFolder(str(tmp_path))
  shutil.copytree(two.join('checkpoints'), copy.join('checkpoints'))
  path = os.path.join(copy.join('checkpoints', 'step-00000002'), 'manifest.json')
  with open(path) as file:
    manifest = json.load(file)
  with open(path, 'w') as file:
    json.dump({name: manifest[name] for name in ('step', 'files', 'state')}, file)
  assert RunCheckpoints(copy).restore(model_and_optimizer())['number'] == 2


def test_a_checkpoint_in_the_folder_of_another_step_is_damaged(two, tmp_path):
  copy = RunFolder(str(tmp_path))
  shutil.copytree(two.join('checkpoints', 'step-00000002'), copy.join('checkpoints', 'step-00000009'))
  with pytest.raises(UserError, match=r'is damaged \(steps 9\)'):
    RunCheckpoints(copy).restore(model_and_optimizer())


@pytest.fixture
def no_pauses(monkeypatch):
  monkeypatch.setattr('rethink_tf.storage.retries.time.sleep', lambda seconds: None)


def failing(function, times):
  """Return `function` with a transient error in the first `times` calls."""
  calls = []

  def flaky(*arguments, **settings):
    calls.append(arguments)
    if len(calls) <= times:
      raise tf.errors.UnavailableError(None, None, 'storage restarts')
    return function(*arguments, **settings)

  return flaky


def test_transient_errors_are_retried(folder, monkeypatch, no_pauses):
  checkpoints, trained = RunCheckpoints(folder), model_and_optimizer()
  monkeypatch.setattr(tf.io.gfile, 'makedirs', failing(tf.io.gfile.makedirs, 3))
  assert checkpoints.save(1, trained, {'number': 1}) and checkpoints.failures == 0
  monkeypatch.setattr(tf.io.gfile, 'stat', failing(tf.io.gfile.stat, 3))
  assert checkpoints.restore(model_and_optimizer(seed=1)) == {'number': 1}


def test_unavailable_storage_is_not_damage(two, monkeypatch, no_pauses):
  """Falling back to an older checkpoint would repeat training."""
  monkeypatch.setattr(tf.io.gfile, 'stat', failing(tf.io.gfile.stat, 1000))
  with pytest.raises(UserError, match='step-00000002 cannot be read, though it may be sound: storage rest') as error:
    RunCheckpoints(two).restore(model_and_optimizer())
  assert '\n' not in str(error.value)


def evaluate(folder, step, **metrics):
  folder.append_metrics({'kind': 'eval', 'step': step, 'time': 1., **metrics})


def best_of(folder):
  with tf.io.gfile.GFile(folder.join('best.json')) as file:
    return json.load(file)


def test_the_best_checkpoint_is_kept_beside_the_newest(folder):
  checkpoints, trained = RunCheckpoints(folder, keep=2), model_and_optimizer()
  checkpoints.keep_best('box/AP', lambda: -1)
  for number, ap in ((1, 10.), (2, 30.), (3, 20.), (4, 25.), (5, -1.), (6, None)):
    checkpoints.save(number, trained, {'number': number})
    evaluate(folder, number, **{'box/AP': ap, 'mask/AP': 40. - number})
  checkpoints.tidy()
  assert checkpoints.steps() == [2, 5, 6]
  assert best_of(folder) == {'checkpoint': 'checkpoints/step-00000002', 'step': 2, 'metric': 'box/AP', 'value': 30.}
  assert checkpoints.best('box/AP') == (2, 'box/AP', 30.) and checkpoints.best('mask/AP').step == 2
  assert checkpoints.restore(model_and_optimizer(), checkpoints.choose('best', 'box/AP')) == {'number': 2}
  evaluate(folder, 6, **{'box/AP': 30.})  # equal and later
  checkpoints.tidy()
  assert checkpoints.steps() == [5, 6] and best_of(folder)['step'] == 6


def test_a_checkpoint_is_kept_until_its_evaluation_is_complete(local):
  checkpoints, trained = RunCheckpoints(local, keep=1), model_and_optimizer()
  checkpoints.keep_best('box/AP', lambda: 2)
  evaluate(local, 1, **{'box/AP': 10.})
  for number in (1, 2, 3, 4):
    checkpoints.save(number, trained, {})
  assert checkpoints.steps() == [1, 2, 4]
  evaluate(local, 2, **{'box/AP': 5.})
  checkpoints.tidy()
  assert checkpoints.steps() == [1, 4]


def test_cancelled_and_on_demand_evaluations_do_not_count_for_the_best(local):
  checkpoints, trained = RunCheckpoints(local, keep=3), model_and_optimizer()
  checkpoints.keep_best('box/AP', lambda: -1)
  for number, ap in ((1, 10.), (2, 30.), (3, 50.)):
    checkpoints.save(number, trained, {})
    evaluate(local, number, **{'box/AP': ap})
  local.continue_at(2)  # the checkpoint of step 3 was damaged
  evaluate(local, 1, **{'box/AP': 99., ON_DEMAND: True})  # such as with test-time augmentation
  assert checkpoints.best('box/AP').step == 2
  checkpoints.tidy()
  assert best_of(local)['step'] == 2


def test_metrics_of_averages_can_choose_the_best(local):
  checkpoints, trained = RunCheckpoints(local), model_and_optimizer()
  for number, ap in ((1, 30.), (2, 20.)):
    checkpoints.save(number, trained, {})
    evaluate(local.subfolder('ema'), number, **{'box/AP': ap})
  evaluate(local.subfolder('ema'), 2, **{'box/AP': 99., ON_DEMAND: True})  # such as on other data
  assert checkpoints.best('ema/box/AP') == (1, 'ema/box/AP', 30.) and checkpoints.best('box/AP') is None


def test_an_unknown_metric_is_logged_once(local, caplog):
  checkpoints = RunCheckpoints(local)
  checkpoints.keep_best('maks/AP', lambda: -1)
  evaluate(local, 1, **{'box/AP': 1., 'mask/AP': 1.})
  checkpoints.save(1, model_and_optimizer(), {})
  assert 'maks/AP' in caplog.text and 'box/AP, mask/AP' in caplog.text and 'run.keep_best' in caplog.text
  assert not tf.io.gfile.exists(local.join('best.json'))
  logged = len(caplog.records)
  checkpoints.save(2, model_and_optimizer(), {})
  assert not [record for record in caplog.records[logged:] if 'maks/AP' in record.getMessage()]


@pytest.mark.parametrize('damage', [lambda path: os.truncate(path, 9), flip_a_bit], ids=['cut', 'of the same size'])
def test_a_damaged_best_checkpoint_is_named(local, caplog, damage):
  caplog.set_level('WARNING')  # TensorFlow logs how long it takes to save
  checkpoints, trained = RunCheckpoints(local), model_and_optimizer()
  for number, ap in ((1, 10.), (2, 30.), (3, 20.)):
    checkpoints.save(number, trained, {})
    evaluate(local, number, **{'box/AP': ap})
  assert checkpoints.choose('best', 'box/AP') == 2 and not caplog.records
  damage(data_file(local, 2))
  assert checkpoints.choose('best', 'box/AP') == 3
  skipped, named = [record.getMessage() for record in caplog.records]
  assert skipped.startswith('Skipping the damaged checkpoint ') and 'step-00000002: ' in skipped
  assert named == 'the best checkpoint, step 2 (box/AP 30), is damaged; step 3 (20) is the best of the others'
  damage(data_file(local, 1))
  assert checkpoints.choose('best', 'box/AP') == 3
  damage(data_file(local, 3))
  with pytest.raises(UserError, match='no sound checkpoint in .* has been evaluated by box/AP'):
    checkpoints.choose('best', 'box/AP')
  assert 'step 2 (box/AP 30), is damaged; no other one has been evaluated' in caplog.records[-1].getMessage()


@pytest.mark.parametrize('which, expected', [('latest', None), ('2', 2), (1, 1)])
def test_choose(two, which, expected):
  assert RunCheckpoints(two).choose(which, 'box/AP') == expected


@pytest.mark.parametrize('which, message', [('best', r'by box/AP, so none is the best.*\[1, 2\]'),
                                         ('newest', 'latest, best or a step, such as 2'), ('-1', 'latest, best')])
def test_impossible_choices_are_user_errors(two, which, message):
  with pytest.raises(UserError, match=message):
    RunCheckpoints(two).choose(which, 'box/AP')


def test_without_a_sound_checkpoint_restoring_is_a_user_error(local):
  RunCheckpoints(local).save(7, model_and_optimizer(), {})
  flip_a_bit(data_file(local, 7))
  with pytest.raises(UserError, match=r'every checkpoint in .* is damaged \(steps 7\): move that folder away'):
    RunCheckpoints(local).restore(model_and_optimizer())


def test_a_checkpoint_may_be_removed_while_it_is_read(local, monkeypatch, caplog):
  """By the training of the run, which has written the next one: it is not damaged."""
  writer, reader, trained = RunCheckpoints(local, keep=1), RunCheckpoints(local), model_and_optimizer()
  writer.keep_best('box/AP', lambda: -1)
  read, races = reader._read, []

  def save(step):
    writer.save(step, trained, {'number': step})
    evaluate(local, step, **{'box/AP': float(step)})
    writer.tidy()

  def read_slowly(step):
    if races:
      save(races.pop())
    return read(step)

  monkeypatch.setattr(reader, '_read', read_slowly)
  save(1)
  races.append(2)
  with pytest.raises(UserError, match=r'no checkpoint of step 1 in .*: there are \[2\]'):
    reader.restore(trained, 1)
  races.append(3)
  assert reader.restore(trained) == {'number': 3}
  races.append(4)
  assert reader.best('box/AP').step == 4
  assert not races and 'damaged;' not in caplog.text  # the best one


def test_a_damaged_checkpoint_of_a_step_leaves_the_others(local):
  for number in (3, 5, 7):
    RunCheckpoints(local).save(number, model_and_optimizer(), {})
  flip_a_bit(data_file(local, 5))
  with pytest.raises(UserError, match=r'^the checkpoint of step 5 in .* is damaged: use --checkpoint=latest or one of '
                                      r'the steps \[3, 7\]$'):
    RunCheckpoints(local).restore(model_and_optimizer(), step=5)
  for number in (3, 7):
    shutil.rmtree(local.join('checkpoints', f'step-{number:08d}'))
  with pytest.raises(UserError, match='of step 5 in .* is damaged, and there is no other one: train again$'):
    RunCheckpoints(local).restore(model_and_optimizer(), step=5)


def test_weights_that_are_not_finite_are_never_written(folder):
  checkpoints = RunCheckpoints(folder)
  trained = model_and_optimizer()
  checkpoints.save(1, trained, {})
  trained['model'].layers[0].bias.assign([0., np.nan, 0.])
  with pytest.raises(UserError, match='training diverged: model/layer_with_weights-0/bias is not finite after step 2'):
    checkpoints.save(2, trained, {})
  assert checkpoints.steps() == [1]


def test_a_full_disk_keeps_older_checkpoints(local):
  checkpoints = RunCheckpoints(local, keep=1)
  trained = model_and_optimizer(units=4000)
  assert checkpoints.save(1, trained, {})
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # simulates a full disk
  try:
    assert not checkpoints.save(2, trained, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  assert checkpoints.failures == 1 and checkpoints.steps() == [1]
  assert os.listdir(local.join('checkpoints')) == ['step-00000001']
  assert checkpoints.save(3, trained, {}) and checkpoints.steps() == [3]


SAVE_ENDLESSLY = """
import sys
sys.path.insert(0, sys.argv[1])
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from test_checkpoints import model_and_optimizer
checkpoints = RunCheckpoints(RunFolder(sys.argv[2]), keep=2)
trained = model_and_optimizer(units=20000)
step = 0
while True:
  step += 1
  checkpoints.save(step, trained, {'step': step})
  print(step, flush=True)
"""


def test_kills_at_any_moment_leave_complete_checkpoints(local, tmp_path):
  """A process that saves endlessly is killed at different moments; every listed checkpoint can be restored.

  Before it is killed it is stopped twice, to copy what a kill would leave at that moment.
  """
  here = os.path.dirname(os.path.abspath(__file__))
  folders = []
  with subprocess.Popen([sys.executable, '-c', SAVE_ENDLESSLY, here, local.path], stdout=subprocess.PIPE) as process:
    for saves in (1, 4, 5):
      while int(process.stdout.readline()) < saves:
        pass
      time.sleep(0.01 * saves)
      process.send_signal(signal.SIGSTOP if saves < 5 else signal.SIGKILL)
      os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
      folders.append((saves, RunFolder(str(shutil.copytree(local.path, tmp_path / f'after_{saves}')))))
      process.send_signal(signal.SIGCONT)
  assert process.returncode == -signal.SIGKILL
  for saves, folder in folders:
    checkpoints = RunCheckpoints(folder)
    newest = checkpoints.latest()
    assert newest >= saves
    for step in checkpoints.steps():
      assert checkpoints.restore(model_and_optimizer(units=20000, seed=1), step=step) == {'step': step}
    checkpoints.save(newest + 1, model_and_optimizer(units=20000), {})
    assert not [name for name in os.listdir(folder.join('checkpoints')) if name.startswith('.')]


def test_mirrored_variables_are_saved_and_restored(local, two_replicas):
  with two_replicas.scope():
    trained = model_and_optimizer()
  RunCheckpoints(local).save(1, trained, {})
  single = model_and_optimizer(seed=1)
  assert RunCheckpoints(local).restore(single) == {}
  assert_same(trained, single)
  with two_replicas.scope():
    mirrored = model_and_optimizer(seed=2)
  assert RunCheckpoints(local).restore(mirrored) == {}
  for variable, expected in zip(mirrored['model'].variables, trained['model'].variables, strict=True):
    for value in two_replicas.experimental_local_results(variable):
      np.testing.assert_array_equal(value, expected.numpy())
