"""Safetensors: the features of the source; forged headers are refused with one line."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from rethink_tf.errors import UserError
from rethink_tf.models.norms import frozen_batch_norm
from rethink_tf.weights import formats, safetensors_files
from tests.weights import files, reference


def test_features_are_those_of_the_source(tmp_path):
  arrays = reference.random_arrays('bn')
  path = tmp_path / 'model.safetensors'
  safetensors.numpy.save_file(files.torchvision_names(arrays), path, {'format': 'pt'})
  image = reference.random_image()
  expected = reference.features(arrays, image, norm='bn', **reference.RGB)
  model = reference.detector(frozen_batch_norm, reference.RGB['mean'], reference.RGB['std'])
  reference.check(path, model, expected, image)
  assert formats.read(str(path)).format == 'torchvision names in .safetensors'


def test_half_precisions(tmp_path):
  values = np.array([1.0, -2.5, 3.0], 'f')
  header = json.dumps({'a': {'dtype': 'BF16', 'shape': [3], 'data_offsets': [0, 6]},
                       'b': {'dtype': 'F16', 'shape': [3], 'data_offsets': [6, 12]}}).encode()
  raw = (values.view('<u4') >> 16).astype('<u2').tobytes() + values.astype('<f2').tobytes()
  path = tmp_path / 'x'
  path.write_bytes(struct.pack('<Q', len(header)) + header + raw)
  for array in safetensors_files.load(str(path)).values():
    np.testing.assert_array_equal(np.asarray(array, np.float32), values)


@pytest.mark.parametrize('entries, length', [
  ({'a': ('F32', [2], [0, 8]), 'b': ('F32', [2], [4, 12])}, None),  # overlap
  ({'a': ('F32', [4], [0, 16])}, None),  # longer than the file
  ({'a': ('F32', [3], [0, 8])}, None),  # shape and bytes differ
  ({'a': ('F32', [1 << 40, 1 << 40], [0, 8])}, None),
  ({'a': ('F32', [2], [0, 8])}, 1 << 20),  # the header is shorter than recorded
  ({'a': ('F8_E4M3', [8], [0, 8])}, None),
])
def test_forged_headers(tmp_path, entries, length):
  header = json.dumps({name: {'dtype': dtype, 'shape': shape, 'data_offsets': offsets}
                       for name, (dtype, shape, offsets) in entries.items()}).encode()
  path = tmp_path / 'x.safetensors'
  path.write_bytes(struct.pack('<Q', length or len(header)) + header + bytes(8))
  with pytest.raises(UserError, match='safetensors|of type') as error:
    formats.read(str(path))
  assert '\n' not in str(error.value)


def test_too_many_arrays(tmp_path):
  path = tmp_path / 'x.safetensors'
  header = json.dumps({f'a{i}': {'dtype': 'F32', 'shape': [0], 'data_offsets': [0, 0]} for i in range(21_000)}).encode()
  path.write_bytes(struct.pack('<Q', len(header)) + header)
  with pytest.raises(UserError, match='21,000 arrays are too many'):
    safetensors_files.load(str(path))
  path.write_bytes(struct.pack('<Q', 60 << 20) + b'{' + bytes(100))
  with pytest.raises(UserError, match='its list of arrays has 62,914,560 bytes'):
    safetensors_files.load(str(path))
