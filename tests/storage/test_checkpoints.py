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

from rethink_tf.errors import UserError
from rethink_tf.storage.checkpoints import ON_DEMAND, RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.training.optimizers import SGD


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


@pytest.fixture(scope='module')
def two(tmp_path_factory):
  """A run with checkpoints of steps 1 and 2."""
  local = RunFolder(str(tmp_path_factory.mktemp('two') / 'run'))
  trained = parts()
  for number in (1, 2):
    step(trained)
    RunCheckpoints(local).save(number, trained, {'number': number, 'seen': {'images': 16 * number, 'seconds': 1.5}})
  return local


@pytest.mark.parametrize('name', ['weights.data-00000-of-00001', 'weights.index', 'manifest.json'])
def test_a_bit_flipped_anywhere_is_noticed(two, name, tmp_path):
  """At 60 places of each file, the first and the last byte among them."""
  path = os.path.join(two.join('checkpoints', 'step-00000002'), name)
  with open(path, 'rb') as file:
    sound = file.read()
  rng = np.random.default_rng(len(sound))
  fresh = parts()
  try:
    for place in (0, len(sound) - 1, *rng.choice(len(sound), 58, replace=False).tolist()):
      spoilt = bytearray(sound)
      spoilt[place] ^= 1 << int(rng.integers(8))
      with open(path, 'wb') as file:
        file.write(spoilt)
      assert RunCheckpoints(two).restore(fresh)['number'] == 1, place
  finally:
    with open(path, 'wb') as file:
      file.write(sound)
  assert RunCheckpoints(two).restore(fresh)['number'] == 2


@pytest.mark.parametrize('name', ['weights.data-00000-of-00001', 'weights.index', 'manifest.json'])
@pytest.mark.parametrize('share', [None, 0., .3, .99])
def test_a_file_cut_anywhere_is_noticed(two, name, share, tmp_path):
  copy = RunFolder(str(tmp_path))
  shutil.copytree(two.join('checkpoints'), copy.join('checkpoints'))
  path = os.path.join(copy.join('checkpoints', 'step-00000002'), name)
  if share is None:
    os.remove(path)
  else:
    os.truncate(path, int(share * os.path.getsize(path)))
  assert RunCheckpoints(copy).restore(parts())['number'] == 1


def test_a_checkpoint_from_before_there_were_checksums_is_read(two, tmp_path):
  copy = RunFolder(str(tmp_path))
  shutil.copytree(two.join('checkpoints'), copy.join('checkpoints'))
  path = os.path.join(copy.join('checkpoints', 'step-00000002'), 'manifest.json')
  with open(path) as file:
    manifest = json.load(file)
  with open(path, 'w') as file:
    json.dump({name: manifest[name] for name in ('step', 'files', 'state')}, file)
  assert RunCheckpoints(copy).restore(parts())['number'] == 2


def test_a_checkpoint_under_the_name_of_another_step_is_none(two, tmp_path):
  copy = RunFolder(str(tmp_path))
  shutil.copytree(two.join('checkpoints', 'step-00000002'), copy.join('checkpoints', 'step-00000009'))
  with pytest.raises(UserError, match=r'is damaged \(steps 9\)'):
    RunCheckpoints(copy).restore(parts())


@pytest.fixture
def hurried(monkeypatch):
  monkeypatch.setattr('rethink_tf.storage.retries.time.sleep', lambda seconds: None)


def refusing(function, times):
  """`function` while storage restarts: it fails so many times."""
  calls = []

  def flaky(*arguments, **settings):
    calls.append(arguments)
    if len(calls) <= times:
      raise tf.errors.UnavailableError(None, None, 'storage restarts')
    return function(*arguments, **settings)

  return flaky


def test_storage_that_fails_for_a_moment_costs_no_checkpoint(folder, monkeypatch, hurried):
  checkpoints, trained = RunCheckpoints(folder), parts()
  monkeypatch.setattr(tf.io.gfile, 'makedirs', refusing(tf.io.gfile.makedirs, 3))
  assert checkpoints.save(1, trained, {'number': 1}) and checkpoints.failures == 0
  monkeypatch.setattr(tf.io.gfile, 'stat', refusing(tf.io.gfile.stat, 3))
  assert checkpoints.restore(parts(seed=1)) == {'number': 1}


def test_storage_that_stays_away_is_no_damage(two, monkeypatch, hurried):
  """Falling back would train again what is only out of reach."""
  monkeypatch.setattr(tf.io.gfile, 'stat', refusing(tf.io.gfile.stat, 1000))
  with pytest.raises(UserError, match='step-00000002 cannot be read, though it may be sound: storage rest') as error:
    RunCheckpoints(two).restore(parts())
  assert '\n' not in str(error.value)


def evaluate(folder, step, **figures):
  folder.append_metrics({'kind': 'eval', 'step': step, 'time': 1., **figures})


def best_of(folder):
  with tf.io.gfile.GFile(folder.join('best.json')) as file:
    return json.load(file)


def test_the_best_is_kept_beside_the_newest(folder):
  checkpoints, trained = RunCheckpoints(folder, keep=2), parts()
  checkpoints.keep_best('box/AP', lambda: -1)
  for number, figure in ((1, 10.), (2, 30.), (3, 20.), (4, 25.), (5, -1.), (6, None)):
    checkpoints.save(number, trained, {'number': number})
    evaluate(folder, number, **{'box/AP': figure, 'mask/AP': 40. - number})
  checkpoints.tidy()
  assert checkpoints.steps() == [2, 5, 6]
  assert best_of(folder) == {'checkpoint': 'checkpoints/step-00000002', 'step': 2, 'metric': 'box/AP', 'value': 30.}
  assert checkpoints.best('box/AP') == (2, 'box/AP', 30.) and checkpoints.best('mask/AP').step == 2
  assert checkpoints.restore(parts(), checkpoints.choose('best', 'box/AP')) == {'number': 2}
  evaluate(folder, 6, **{'box/AP': 30.})  # as good, and later
  checkpoints.tidy()
  assert checkpoints.steps() == [5, 6] and best_of(folder)['step'] == 6


def test_what_is_being_evaluated_stays_until_its_figures_are_known(local):
  checkpoints, trained = RunCheckpoints(local, keep=1), parts()
  checkpoints.keep_best('box/AP', lambda: 2)
  evaluate(local, 1, **{'box/AP': 10.})
  for number in (1, 2, 3, 4):
    checkpoints.save(number, trained, {})
  assert checkpoints.steps() == [1, 2, 4]
  evaluate(local, 2, **{'box/AP': 5.})
  checkpoints.tidy()
  assert checkpoints.steps() == [1, 4]


def test_figures_of_lost_training_and_on_demand_make_no_best(local):
  checkpoints, trained = RunCheckpoints(local, keep=3), parts()
  checkpoints.keep_best('box/AP', lambda: -1)
  for number, figure in ((1, 10.), (2, 30.), (3, 50.)):
    checkpoints.save(number, trained, {})
    evaluate(local, number, **{'box/AP': figure})
  local.continue_at(2)  # the checkpoint of step 3 was damaged
  evaluate(local, 1, **{'box/AP': 99., ON_DEMAND: True})  # with test-time augmentation, say
  assert checkpoints.best('box/AP').step == 2
  checkpoints.tidy()
  assert best_of(local)['step'] == 2


def test_averages_may_decide(local):
  checkpoints, trained = RunCheckpoints(local), parts()
  for number, figure in ((1, 30.), (2, 20.)):
    checkpoints.save(number, trained, {})
    evaluate(local.part('ema'), number, **{'box/AP': figure})
  assert checkpoints.best('ema/box/AP') == (1, 'ema/box/AP', 30.) and checkpoints.best('box/AP') is None


def test_a_figure_that_no_evaluation_has_is_told(local, caplog):
  checkpoints = RunCheckpoints(local)
  checkpoints.keep_best('maks/AP', lambda: -1)
  evaluate(local, 1, **{'box/AP': 1., 'mask/AP': 1.})
  checkpoints.save(1, parts(), {})
  assert 'maks/AP' in caplog.text and 'box/AP, mask/AP' in caplog.text and 'run.keep_best' in caplog.text
  assert not tf.io.gfile.exists(local.join('best.json'))
  told = len(caplog.records)
  checkpoints.save(2, parts(), {})
  assert not [record for record in caplog.records[told:] if 'maks/AP' in record.getMessage()]  # once a run


@pytest.mark.parametrize('which, expected', [('latest', None), ('2', 2), (1, 1)])
def test_choosing(two, which, expected):
  assert RunCheckpoints(two).choose(which, 'box/AP') == expected


@pytest.mark.parametrize('which, told', [('best', r'by box/AP, so none is the best.*\[1, 2\]'),
                                         ('newest', 'latest, best or a step, such as 2'), ('-1', 'latest, best')])
def test_choosing_what_is_not_there(two, which, told):
  with pytest.raises(UserError, match=told):
    RunCheckpoints(two).choose(which, 'box/AP')


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
          'from test_checkpoints import parts; from rethink_tf.storage.checkpoints import RunCheckpoints\n'
          'from rethink_tf.storage.run_folder import RunFolder\n'
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
