"""Keras' weight files: .weights.h5 with and without names, .keras, models inside models, and damaged files."""

import zipfile

import h5py
import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.models.norms import frozen_batch_norm
from rethink_tf.weights import formats
from tests.weights import files, reference
from tests.weights.test_keras_applications import with_biases

ARRAYS = reference.random_arrays('bn')
BIASES = with_biases(ARRAYS)
LAYERS = files.in_order(files.keras_layers(ARRAYS, BIASES))


def write(tmp_path, form):
  path = tmp_path / 'x'
  if form == 'keras 3':
    files.keras_weights(path, LAYERS)
  elif form == 'tf_keras':
    files.keras_weights(path, LAYERS, named=False)
  elif form == 'nested':
    files.keras_weights(path, LAYERS, named=False, container='layers/functional/layers')
  else:
    files.keras_archive(path, LAYERS, list(LAYERS))
  return str(path)


@pytest.mark.parametrize('form', ['keras 3', 'tf_keras', 'nested', '.keras'])
def test_every_array_is_that_of_the_h5_file(tmp_path, form):
  files.keras(tmp_path / 'x.h5', ARRAYS, BIASES)
  expected, found = formats.read(str(tmp_path / 'x.h5')), formats.read(write(tmp_path, form))
  assert found.arrays.keys() == expected.arrays.keys()
  for name, array in expected.arrays.items():
    np.testing.assert_array_equal(np.asarray(found.arrays[name]), np.asarray(array), err_msg=name)
  assert found.format.startswith('keras.applications') and found[4:11] == expected[4:11]
  assert any('numbered' in note for note in found.notes) == (form in ('tf_keras', 'nested'))


def test_features_are_those_of_the_source(tmp_path):
  image = reference.random_image()
  source = ARRAYS | {f'{name}.bias': bias for name, bias in BIASES.items()}
  expected = reference.features(source, image, norm='bn', epsilon=1.001e-5, stride_in_1x1=True, **reference.CAFFE)
  model = reference.detector(frozen_batch_norm, reference.CAFFE['mean'][::-1], stride_in_1x1=True)
  reference.check(write(tmp_path, 'tf_keras'), model, expected, image)


def refused(path, message):
  with pytest.raises(UserError, match=message) as error:
    formats.read(str(path))
  assert '\n' not in str(error.value) and str(path) in str(error.value)


def test_other_networks_are_refused(tmp_path):
  path = tmp_path / 'x'
  other = {name: weights for name, weights in LAYERS.items() if 'conv5' not in name}
  files.keras_weights(path, other, named=False)
  refused(path, 'numbered, and their shapes are not those of ResNet50')
  files.keras_archive(path, LAYERS, [f'my_{i}' for i in range(len(LAYERS))])
  refused(path, "no layer conv1_conv or block1_conv1.*'my_0'")
  files.keras_archive(path, LAYERS, list(LAYERS), zipfile.ZIP_DEFLATED)
  refused(path, 'compressed')
  with h5py.File(path, 'w') as file:
    file.create_dataset('x', data=[1.0])
  refused(path, 'without weights of Keras')


def test_damaged_files_and_links_are_refused(tmp_path):
  path = tmp_path / 'x'
  for form in ('tf_keras', '.keras'):
    whole = open(write(tmp_path, form), 'rb').read()
    for length in (100, len(whole) // 2, len(whole) - 40):
      path.write_bytes(whole[:length])
      with pytest.raises(UserError) as error:
        formats.read(str(path))
      assert '\n' not in str(error.value), (form, length)
  (tmp_path / 'secret').write_bytes(bytes(64))
  with h5py.File(path, 'w') as file:
    group = file.create_group('layers/conv2d/vars')
    group.create_dataset('0', (1, 1, 4, 4), 'f', external=[(str(tmp_path / 'secret'), 0, 64)])
  refused(path, 'not an array of numbers in this file')
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('config.json', '[' * 100_000)
    archive.writestr('model.weights.h5', b'x')
  refused(path, 'not a complete .keras file')


@pytest.mark.slow
@pytest.mark.parametrize('library', ['keras', 'tf_keras'])
def test_files_of_the_libraries(tmp_path, library):
  """ResNet50 as Keras 3 and tf_keras save it, alone and inside another model; the norms' values are all different."""
  keras = pytest.importorskip(library)
  model = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
  rng = np.random.default_rng(0)
  model.set_weights([rng.uniform(0.5, 1.5, w.shape).astype('f') for w in model.get_weights()])
  outer = keras.Sequential([model, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(2)])
  forms = ['x.h5', 'x.weights.h5', 'x.keras', 'outer.h5', 'outer.weights.h5', 'outer.keras']
  for form in forms:
    saved = outer if form.startswith('outer') else model
    (saved.save_weights if 'weights' in form else saved.save)(str(tmp_path / form))
  if library == 'tf_keras':
    model.save_weights(str(tmp_path / 'checkpoint/x'))
    model.save(str(tmp_path / 'saved'), save_format='tf')
    outer.save_weights(str(tmp_path / 'outer/x'))
    forms += ['checkpoint', 'checkpoint/x', 'saved', 'outer/x']
  expected = {weight.name if library == 'tf_keras' else weight.path: value
              for weight, value in zip(model.weights, model.get_weights(), strict=True)}
  kernel = next(value for name, value in expected.items() if 'conv4_block3_2_conv/kernel' in name)
  norm = next(value for name, value in expected.items() if 'conv3_block1_0_bn/gamma' in name)
  for form in forms:
    found = formats.read(str(tmp_path / form))
    assert str(found.architecture) == 'ResNet-50' and len(found.backbone()) == 265, form
    np.testing.assert_array_equal(np.asarray(found.arrays['res4.2.conv2.weight']).transpose(2, 3, 1, 0), kernel, form)
    np.testing.assert_array_equal(found.arrays['res3.0.shortcut.norm.weight'], norm, form)
