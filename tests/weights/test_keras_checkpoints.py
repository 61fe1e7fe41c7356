"""TensorFlow checkpoints of Keras models, folders of them, and SavedModels."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.weights import formats
from rethink_tf.weights.pretrained import sha256
from tests.weights.test_keras_files import ARRAYS, BIASES, LAYERS


def node(tree):
  return tf.train.Checkpoint(**{name: tf.Variable(value) if isinstance(value, np.ndarray) else node(value)
                                for name, value in tree.items()})


def tree(layers=LAYERS):
  return {f'layer_with_weights-{i}': weights for i, weights in enumerate(layers.values())}


@pytest.mark.parametrize('outer', [False, True])
def test_arrays_are_those_of_the_source(tmp_path, outer):
  node({'layer_with_weights-0': tree(), 'layer_with_weights-1': {'kernel': np.zeros([2, 2], 'f')}} if outer else
       tree()).write(str(tmp_path / 'x'))
  for path in (tmp_path / 'x', tmp_path / 'x.index', tmp_path):
    found = formats.read(str(path))
    assert found.backbone().keys() == {name for name in ARRAYS if 'linear' not in name}
    for name in ('res2.0.shortcut.weight', 'res5.0.conv3.norm.bias'):
      np.testing.assert_array_equal(np.asarray(found.arrays[name]), ARRAYS[name])
    np.testing.assert_allclose(np.asarray(found.arrays['stem.conv1.norm.running_mean']),
                               ARRAYS['stem.conv1.norm.running_mean'] - BIASES['stem.conv1'], rtol=1e-5, atol=1e-5)
    assert sha256(found.checkpoint) == sha256(str(tmp_path / 'x'))


def refused(path, message):
  with pytest.raises(UserError, match=message) as error:
    formats.read(str(path))
  assert '\n' not in str(error.value) and str(path) in str(error.value)


def test_folders(tmp_path):
  refused(tmp_path, 'without a complete checkpoint')
  for name in ('a', 'b'):
    node(tree()).write(str(tmp_path / name))
  refused(tmp_path, 'a folder of 2 checkpoints: give the path of one')
  (tmp_path / 'saved_model.pb').write_bytes(b'x')
  refused(tmp_path, 'a SavedModel, whose layers have no names')
  node(tree()).write(str(tmp_path / 'variables/variables'))
  assert formats.read(str(tmp_path)).architecture.depth == 14


def test_the_folder_of_a_hugging_face_model(tmp_path):
  import safetensors.numpy

  from tests.weights.test_state_dicts import names
  safetensors.numpy.save_file(names(), tmp_path / 'model.safetensors')
  (tmp_path / 'config.json').write_text('{"architecture": "resnetaa14"}')
  with pytest.raises(UserError, match='resnetaa14'):
    formats.read(str(tmp_path))
  (tmp_path / 'config.json').write_text('{"architecture": "resnet14"}')
  assert formats.read(str(tmp_path)).path.endswith('model.safetensors')
