"""Run folders: whole detectors, their backbones and pre-trained classifiers, by the paths of their variables."""

import functools
import json
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.export import detectron2
from rethink_tf.models.classifier import Classifier
from rethink_tf.models.initializers import msra
from rethink_tf.models.layers import ConvNorm
from rethink_tf.models.norms import sync_batch_norm
from rethink_tf.models.resnet import ResNet
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights import __main__ as weights_command
from rethink_tf.weights import formats, options, own
from rethink_tf.weights.pretrained import PretrainedWeights, check_model, sha256
from tests import tiny
from tests.weights import reference

CONFIG = ('MaskRCNN.pixel_mean = (122.7717, 115.9465, 102.9801)\nMaskRCNN.pixel_std = \\\n    (1.0, 1.0, 1.0)\n'
          'ResNet.stride_in_1x1 = False\n')


def save(folder, model, steps=(3,), config=CONFIG):
  for step in steps:
    RunCheckpoints(RunFolder(folder)).save(step, {'detector': model}, {})
  (folder / 'config.gin').write_text(config)
  return str(folder)


def scatter(model, seed):
  rng = np.random.default_rng(seed)
  for variable in model.variables:
    variable.assign(rng.normal(size=variable.shape))


@functools.cache
def built(which):
  """Two detectors, which tests fill with values of their own."""
  return tiny.built()


@pytest.fixture
def source():
  scatter(built('source'), 1)
  return built('source')


@pytest.fixture
def model():
  scatter(built('model'), 9)
  return built('model')


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """The run folder of `source`."""
  scatter(built('source'), 1)
  return save(tmp_path_factory.mktemp('detector'), built('source'))


def test_a_whole_detector(source, path, model):
  loaded = PretrainedWeights(path, part='detector')(model)
  assert len(loaded.names) == len(model.variables)
  for a, b in zip(source.variables, model.variables, strict=True):
    np.testing.assert_array_equal(a, b)
  contents = formats.read(path)
  assert contents.own and contents.kind == 'detector' and contents.architecture == (14, 1, 32, 32, 32)
  assert (contents.norm, contents.pixel_std, contents.stride_in_1x1) == ('gn', (1.0, 1.0, 1.0), False)


@pytest.mark.parametrize('kind', ['run', 'detectron2'])
def test_a_detector_finds_the_same_with_its_classes_in_another_order(source, path, model, kind, tmp_path):
  """Classes are matched by name: boxes, scores and masks are those of the file, and the classes other numbers."""
  names, new, options = ['cat', 'dog', 'bird'], ['bird', 'cat', 'dog'], {}
  if kind == 'run':
    shutil.copytree(path, tmp_path / 'run')
    (tmp_path / 'run/categories.json').write_text(json.dumps([{'id': k, 'name': name} for k, name in enumerate(names)]))
    file = str(tmp_path / 'run')
  else:
    detectron2.save(source, file := str(tmp_path / 'detector.pkl'))
    options = {'file_classes': names}
  PretrainedWeights(file, part='detector', **options).for_classes(new)(model)
  one = tiny.batch(1)
  ours, theirs = (detector(one.images, one.image_sizes).predictions for detector in (model, source))
  assert int(tf.reduce_sum(tf.cast(theirs.scores > 0, tf.int32))) > 3
  np.testing.assert_array_equal(ours.boxes, theirs.boxes)
  np.testing.assert_array_equal(ours.scores, theirs.scores)
  np.testing.assert_array_equal(ours.masks, theirs.masks)
  number = {k + 1: new.index(name) + 1 for k, name in enumerate(names)} | {0: 0}
  np.testing.assert_array_equal(ours.classes, np.vectorize(number.get)(theirs.classes))


@pytest.mark.slow
def test_new_classes_keep_their_predictors(source, path, model):
  before = model.box_predictor.classes.kernel.numpy()
  PretrainedWeights(path, part='detector', new=['box_predictor/*'])(model)
  np.testing.assert_array_equal(model.box_predictor.classes.kernel, before)
  np.testing.assert_array_equal(model.mask_predictor.conv.kernel, source.mask_predictor.conv.kernel)


@pytest.mark.parametrize('name, value', [('dictionary', 'ema'), ('prefix', 'module.')])
def test_of_a_run_no_network_is_chosen(path, model, name, value):
  with pytest.raises(UserError, match=f"{path}: a run of this package holds one network.*{name} = '{value}'"):
    PretrainedWeights(path, part='detector', **{name: value})(model)


def test_the_backbone_of_a_detector(source, path, model):
  loaded = PretrainedWeights(path, part='detector_backbone')(model)
  assert loaded.variables == {id(v) for v in model.backbone.variables}
  for a, b in zip(source.backbone.variables, model.backbone.variables, strict=True):
    np.testing.assert_array_equal(a, b)


def test_the_backbone_of_a_classifier(tmp_path):
  def resnet(name='backbone'):
    return ResNet(14, norm=sync_batch_norm, stem_width=32, res2_width=32, width_per_group=32, name=name)
  source, other = Classifier(5, resnet()), Classifier(5, resnet())
  for classifier in (source, other):
    classifier(np.zeros([1, 64, 64, 3], np.uint8), tf.constant([[64.0, 64.0]]))
  scatter(source, 2)
  path = save(tmp_path, source, steps=(1, 2), config=CONFIG.replace('MaskRCNN', 'Classifier'))
  model = reference.detector(sync_batch_norm)
  loaded = PretrainedWeights(path)(model)
  assert loaded.variables == {id(v) for v in model.backbone.variables}
  for a, b in zip(source.backbone.variables, model.backbone.variables, strict=True):
    np.testing.assert_array_equal(a, b)
  PretrainedWeights(path, part='classifier')(other)
  np.testing.assert_array_equal(other.linear.kernel, source.linear.kernel)
  assert 'step-00000002' in formats.read(path).format


def test_strides_and_pixel_means_of_the_run_are_compared(source, model, tmp_path, monkeypatch):
  path = save(tmp_path, source, config=CONFIG.replace('122.7717', '100.0').replace('1x1 = False', '1x1 = True'))
  with pytest.raises(UserError, match='ResNet.stride_in_1x1 = True'):
    PretrainedWeights(path, part='detector')(model)
  monkeypatch.setattr(model.backbone, 'stride_in_1x1', True)
  with pytest.raises(UserError, match=r'MaskRCNN.pixel_mean = \(100.0, '):
    PretrainedWeights(path, part='detector')(model)


def test_groups_of_the_run_are_compared(source, model, tmp_path, monkeypatch):
  groups = model.backbone.stem.norm.groups
  path = save(tmp_path, source, config=CONFIG + 'ResNet.groups = 1\ngroup_norm.groups = 8\n')
  with pytest.raises(UserError, match=fr'GroupNorm of 8 groups: set group_norm.groups = 8 \(the model has {groups}\)'):
    PretrainedWeights(path, part='detector_backbone')(model)
  monkeypatch.setattr(model.backbone.stem.norm, 'groups', 8)
  PretrainedWeights(path, part='detector_backbone')(model)


def test_a_norm_of_the_users_own_is_no_group_norm(source, model, tmp_path):
  """Both have a scale and a shift for each channel."""
  path = save(tmp_path / 'own', source, config=CONFIG + 'NORM = @layer_norm\nResNet.norm = %NORM\n')
  with pytest.raises(UserError, match='trained with a norm that is not of this package: set NORM = @layer_norm'):
    PretrainedWeights(path, part='detector')(model)
  described = weights_command.describe(formats.read(path))
  assert '@layer_norm, not of this package' in described and 'GroupNorm' not in described
  theirs = tiny.built(norm=lambda name, zero_gamma=False: tf_keras.layers.LayerNormalization(name=name))
  check_model(formats.read(path), theirs)
  published = formats.read(save(tmp_path / 'gn', source))
  with pytest.raises(UserError, match='holds GroupNorm: set NORM = @group_norm'):
    check_model(published, theirs)


def test_the_options_of_a_run_import_its_parts(source, tmp_path):
  imports = 'import my_parts\nimport rethink_tf.models.vgg\nfrom mine import norms\nimport other as another\n'
  path = save(tmp_path / 'own', source, config=imports + CONFIG + 'ResNet.norm = @layer_norm\n')
  contents = formats.read(path)
  expected = ["--gin_param='import my_parts'", "--gin_param='import mine.norms'", "--gin_param='import other'"]
  assert options.command_line(contents)[:4] == [*expected, f'--gin_file={path}/config.gin']
  assert options.command_line(contents._replace(kind='backbone'))[:3] == expected
  of_the_package = contents._replace(kind='backbone', norm='gn', norm_part=None)  # the rest is that of the new run
  assert not any('import' in option for option in options.command_line(of_the_package))


class Stemmed(tf_keras.layers.Layer):
  """A backbone of the user's own that has a stem, as a ResNet has."""

  def __init__(self, name='backbone'):
    super().__init__(name=name)
    self.stem = ConvNorm(8, 3, sync_batch_norm, msra, stride=2, relu=True, name='stem')

  def call(self, images):
    x = self.stem(images)
    return {f'C{level}': x[:, ::2 ** (level - 1), ::2 ** (level - 1)] for level in (2, 3, 4, 5)}


def test_a_backbone_of_the_users_own_with_a_stem(tmp_path):
  theirs, others = (Classifier(5, Stemmed()) for _ in range(2))
  for seed, each in enumerate((theirs, others)):
    each(np.zeros([1, 64, 64, 3], np.uint8), tf.constant([[64.0, 64.0]]))
    scatter(each, seed)
  path = save(tmp_path / 'run', theirs, config='import mine\nClassifier.backbone = @mine.Stemmed()\n'
              "Stemmed.name = 'backbone'\nStemmed.width = 8\n")
  contents = formats.read(path)
  assert contents.architecture is None and contents.norm is None
  assert options.command_line(contents) == [
    "--gin_param='import mine'", '--gin_file=gin_configs/init/pretrained_run.gin', f'--weights={path}',
    "--gin_param='MaskRCNN.backbone = @mine.Stemmed()'", "--gin_param='Stemmed.width = 8'"]
  loaded = PretrainedWeights(path, part='backbone')(others)
  assert len(loaded.names) == len(others.backbone.variables)
  np.testing.assert_array_equal(others.backbone.stem.conv.kernel, theirs.backbone.stem.conv.kernel)


def test_the_newest_checkpoint_is_read(source, tmp_path):
  path = save(tmp_path, source, steps=(1, 2, 10))
  assert formats.read(path).checkpoint == f'{path}/checkpoints/step-00000010'
  folder = f'{path}/checkpoints/step-00000002'
  assert formats.read(folder).checkpoint == folder and formats.read(folder).kind == 'detector'


def truncate(data):
  return data[:-1]


def flip_a_byte(data):
  return data[:len(data) // 2] + bytes([data[len(data) // 2] ^ 255]) + data[len(data) // 2 + 1:]


@pytest.mark.parametrize('name, damage', [
  ('weights.data-00000-of-00001', flip_a_byte), *(
    pytest.param(name, damage, marks=pytest.mark.slow) for name, damage in (
      ('weights.data-00000-of-00001', truncate), ('weights.index', truncate), ('weights.index', flip_a_byte),
      ('manifest.json', truncate), ('manifest.json', flip_a_byte)))])
def test_a_damaged_newest_checkpoint_is_passed_over(source, model, tmp_path, name, damage):
  """Weights and recorded checksum are those of the checkpoint before."""
  path = save(tmp_path, source, steps=(1,))
  expected = [v.numpy() for v in source.variables]
  scatter(source, 3)
  save(tmp_path, source, steps=(2,))
  file = tmp_path / 'checkpoints/step-00000002' / name
  file.write_bytes(damage(file.read_bytes()))
  loaded = PretrainedWeights(path, part='detector')(model)
  for a, b in zip(expected, model.variables, strict=True):
    np.testing.assert_array_equal(a, b)
  assert 'step-00000001' in loaded.format and loaded.sha256 == sha256(f'{path}/checkpoints/step-00000001')


def test_a_folder_without_a_checkpoint(tmp_path):
  with pytest.raises(UserError, match='without a complete checkpoint') as error:
    formats.read(str(tmp_path))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('line, field', [
  ('ResNet.stride_in_1x1 = 7', 'stride_in_1x1'), ("ResNet.stride_in_1x1 = 'x'", 'stride_in_1x1'),
  ("MaskRCNN.pixel_mean = 'abc'", 'pixel_mean'), ('MaskRCNN.pixel_mean = (1, 2)', 'pixel_mean'),
  ('MaskRCNN.pixel_std = (1, 2, "x")', 'pixel_std'), ('MaskRCNN.pixel_std = ' + '-' * 100_000 + '1', 'pixel_std'),
  ('MaskRCNN.pixel_mean = ' + '(' * 150, 'pixel_mean'), ('sync_batch_norm.epsilon = None', 'epsilon'),
  ('sync_batch_norm.epsilon = -1', 'epsilon'), ("ResNet.padding = 'valid'", 'padding')], ids=range(10))
def test_bindings_of_invalid_values_are_ignored(line, field):
  assert own.bound_value(f'{line}\n', field) is None


def test_the_padding_of_a_run():
  assert own.bound_value("ResNet.padding = 'same'\n", 'padding') == 'same'
