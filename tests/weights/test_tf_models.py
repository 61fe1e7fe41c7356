"""tf-models-official: a ResNet built and saved by it gives the same features, by its epsilon and its padding."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.norms import frozen_batch_norm
from rethink_tf.weights import formats, options, tf_models
from tests.weights import reference

SIZE = (66, 101)  # with even and odd maps: the padding is asymmetric in some
EPSILON = 1e-4


@pytest.fixture(scope='module')
def official(tmp_path_factory):
  """(model with random statistics, prefix of its checkpoint)."""
  from official.vision.modeling import classification_model
  from official.vision.modeling.backbones import resnet
  resnet.RESNET_SPECS[14] = [('bottleneck', 64, 1), ('bottleneck', 128, 1), ('bottleneck', 256, 1),
                             ('bottleneck', 512, 1)]
  tf_keras.utils.set_random_seed(0)
  model = resnet.ResNet(14, tf_keras.layers.InputSpec(shape=[None, None, None, 3]), depth_multiplier=0.5,
                        norm_epsilon=EPSILON)
  rng = np.random.default_rng(0)
  for variable in model.variables:
    if 'kernel' not in variable.name:
      low, high = (0.002, 2.0) if 'variance' in variable.name else (-0.3, 0.3)
      offset = 1.0 if 'gamma' in variable.name else 0.0
      variable.assign(offset + rng.uniform(low, high, variable.shape))
  folder = tmp_path_factory.mktemp('official')
  classifier = classification_model.ClassificationModel(
    model, num_classes=5, input_specs=tf_keras.layers.InputSpec(shape=[None, None, None, 3]))
  tf.train.Checkpoint(backbone=model).write(str(folder / 'backbone'))
  tf.train.Checkpoint(model=classifier, optimizer=tf_keras.optimizers.SGD()).write(str(folder / 'classifier'))
  return model, folder


@pytest.mark.parametrize('name', ['backbone', 'classifier', 'classifier.index', 'classifier.data-00000-of-00001'])
def test_features_are_those_of_the_source(official, name):
  model, folder = official
  image = np.random.default_rng(7).integers(0, 256, (*SIZE, 3)).astype(np.uint8)
  pixels = (image[None] - np.float32(reference.RGB['mean'])) / np.float32(reference.RGB['std'])
  expected = {f'C{level}': x[0].numpy() for level, x in model(pixels, training=False).items()}
  reference.check(folder / name, detector(), expected, image, epsilon=EPSILON)
  contents = formats.read(str(folder / name))
  assert contents.format.startswith('tf-models') and contents.architecture == (14, 1, 32, 32, 128)


def detector(padding='same'):
  return reference.detector(frozen_batch_norm, reference.RGB['mean'], reference.RGB['std'], res2_width=128,
                            padding=padding)


def test_epsilon_and_padding_are_asked_for(official, tmp_path):
  path = str(official[1] / 'classifier')
  with pytest.raises(UserError, match=r'PretrainedWeights.epsilon = 1e-5 \(experiment resnet_imagenet\), 1e-4 \(mask'):
    reference.PretrainedWeights(path)(None)  # before the model is looked at
  with pytest.raises(UserError, match=r"padding 'same' .*: set ResNet.padding = 'same'"):
    reference.PretrainedWeights(path, epsilon=1e-5)(detector('symmetric'))
  with pytest.raises(UserError, match='PretrainedWeights.epsilon = 3'):
    reference.PretrainedWeights(path, epsilon=3)
  for suffix in ('index', 'data-00000-of-00001'):
    (tmp_path / f'classifier.{suffix}').symlink_to(f'{path}.{suffix}')
  assert "PretrainedWeights.epsilon = 1e-05'" in ' '.join(options.command_line(formats.read(path)))
  (tmp_path / 'params.yaml').write_text('task: {model: {norm_activation: {norm_epsilon: 0.0001}}}')
  contents = formats.read(str(tmp_path / 'classifier'))
  assert contents.epsilon == 1e-4 and any('0.0001 in ' in note for note in contents.notes)
  assert '--gin_file=gin_configs/init/imagenet_tf_models.gin' in options.command_line(contents)
  assert not any('Weights.epsilon' in option for option in options.command_line(contents))


@pytest.mark.parametrize('names, epsilon', [
  (['model/rpn_head/conv/kernel'], 1e-4), (['model/decoder/kernel', 'model/head/x'], 1e-3), (['save_counter'], 1e-5)])
def test_epsilon_by_the_heads(names, epsilon):
  assert tf_models.likely_epsilon(names) == epsilon


def test_damaged_and_other_checkpoints(official, tmp_path):
  _, folder = official
  for suffix in ('index', 'data-00000-of-00001'):
    content = (folder / f'backbone.{suffix}').read_bytes()
    (tmp_path / f'cut.{suffix}').write_bytes(content[:200] if suffix == 'index' else content)
  with pytest.raises(UserError, match='not a complete TensorFlow checkpoint') as error:
    formats.read(str(tmp_path / 'cut'))
  assert '\n' not in str(error.value)
  tf.train.Checkpoint(v=tf.Variable(1.0)).write(str(tmp_path / 'other'))
  with pytest.raises(UserError, match='not a ResNet of tf-models-official'):
    formats.read(str(tmp_path / 'other'))


def test_truncated_data(official, tmp_path):
  _, folder = official
  (tmp_path / 'cut.index').write_bytes((folder / 'backbone.index').read_bytes())
  (tmp_path / 'cut.data-00000-of-00001').write_bytes((folder / 'backbone.data-00000-of-00001').read_bytes()[:1000])
  with pytest.raises(UserError, match='cannot be read|not a complete') as error:
    reference.PretrainedWeights(str(tmp_path / 'cut'), epsilon=EPSILON)(detector())
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('number, variable, name', [
  (0, 'kernel', 'stem.conv1.weight'), (1, 'gamma', 'stem.conv1.norm.weight'),
  (5, '_norm0/moving_variance', 'res3.1.shortcut.norm.running_var'), (5, '_conv3/kernel', 'res3.1.conv3.weight'),
  (5, '_squeeze_excitation/_se_expand/kernel', None), (1, 'kernel', None)])
def test_variables_become_canonical_names(number, variable, name):
  assert tf_models.canonical(number, variable, 3, 1)[0] == name
