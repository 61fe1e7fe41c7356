"""tf-models-official: a ResNet built and saved by it gives the same features where its padding is symmetric."""

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

from rethink_tf.errors import UserError
from rethink_tf.models.norms import frozen_batch_norm
from rethink_tf.weights import formats, tf_models
from tests.weights import reference

SIDE = 65  # all maps down to C5 have odd sides, so that padding 'same' is symmetric


@pytest.fixture(scope='module')
def official(tmp_path_factory):
  """(model with random statistics, prefix of its checkpoint)."""
  from official.vision.modeling import classification_model
  from official.vision.modeling.backbones import resnet
  resnet.RESNET_SPECS[14] = [('bottleneck', 64, 1), ('bottleneck', 128, 1), ('bottleneck', 256, 1),
                             ('bottleneck', 512, 1)]
  tf_keras.utils.set_random_seed(0)
  model = resnet.ResNet(14, tf_keras.layers.InputSpec(shape=[None, SIDE, SIDE, 3]), depth_multiplier=0.5)
  rng = np.random.default_rng(0)
  for variable in model.variables:
    if 'kernel' not in variable.name:
      low, high = (0.002, 2.0) if 'variance' in variable.name else (-0.3, 0.3)
      offset = 1.0 if 'gamma' in variable.name else 0.0
      variable.assign(offset + rng.uniform(low, high, variable.shape))
  folder = tmp_path_factory.mktemp('official')
  classifier = classification_model.ClassificationModel(
    model, num_classes=5, input_specs=tf_keras.layers.InputSpec(shape=[None, SIDE, SIDE, 3]))
  tf.train.Checkpoint(backbone=model).write(str(folder / 'backbone'))
  tf.train.Checkpoint(model=classifier, optimizer=tf_keras.optimizers.SGD()).write(str(folder / 'classifier'))
  return model, folder


@pytest.mark.parametrize('name', ['backbone', 'classifier', 'classifier.index', 'classifier.data-00000-of-00001'])
def test_features_are_those_of_the_source(official, name):
  model, folder = official
  image = reference.random_image(SIDE)
  pixels = (image[None] - np.float32(reference.RGB['mean'])) / np.float32(reference.RGB['std'])
  expected = {f'C{level}': x[0].numpy() for level, x in model(pixels, training=False).items()}
  ours = reference.detector(frozen_batch_norm, reference.RGB['mean'], reference.RGB['std'], res2_width=128)
  reference.check(folder / name, ours, expected, image)
  contents = formats.read(str(folder / name))
  assert contents.format.startswith('tf-models') and contents.architecture == (14, 1, 32, 32, 128)
  assert any('same' in note for note in contents.notes)


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
  model = reference.detector(frozen_batch_norm, reference.RGB['mean'], reference.RGB['std'], res2_width=128)
  with pytest.raises(UserError, match='cannot be read|not a complete') as error:
    reference.PretrainedWeights(str(tmp_path / 'cut'))(model)
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('number, variable, name', [
  (0, 'kernel', 'stem.conv1.weight'), (1, 'gamma', 'stem.conv1.norm.weight'),
  (5, '_norm0/moving_variance', 'res3.1.shortcut.norm.running_var'), (5, '_conv3/kernel', 'res3.1.conv3.weight'),
  (5, '_squeeze_excitation/_se_expand/kernel', None), (1, 'kernel', None)])
def test_names(number, variable, name):
  assert tf_models._canonical(number, variable, 3, 1)[0] == name
