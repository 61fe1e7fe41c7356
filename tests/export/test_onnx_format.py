"""ONNX files: the extra, metadata, the default of the threshold, operations that ONNX does not have."""

import importlib.util
import json

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.export import onnx_format

needs_extra = pytest.mark.skipif(
  any(importlib.util.find_spec(name) is None for name in onnx_format.PACKAGES), reason='needs the extra onnx')


def test_a_missing_extra_is_named(monkeypatch):
  found = importlib.util.find_spec
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None if name == 'onnxruntime' else found('json'))
  with pytest.raises(UserError, match=r"needs onnxruntime, .*: pip install 'rethink_tf\[onnx\]'"):
    onnx_format.require()
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: found('json'))
  onnx_format.require()


def function_of(body):
  return tf.function(body, [tf.TensorSpec([None, None, 3], tf.uint8, 'image'),
                            tf.TensorSpec([], tf.float32, 'score_threshold')], autograph=False)


@needs_extra
@pytest.mark.slow
def test_the_threshold_has_a_default_and_the_description_is_inside():
  import onnx
  import onnxruntime

  function = function_of(lambda image, score_threshold: {
    'scores': tf.cast(image[0, :, 0], tf.float32) + score_threshold})
  about = json.dumps({'names': ['Häuser']}, ensure_ascii=False)
  content = onnx_format.convert(function, 0.25, about)
  model = onnx.load_from_string(content)
  onnx.checker.check_model(model)
  assert model.opset_import[0].version >= 17
  image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
  np.testing.assert_allclose(onnx_format.runner(content)(image, np.float32(0.5))['scores'], [0.5, 3.5])
  session = onnxruntime.InferenceSession(content)
  np.testing.assert_allclose(session.run(None, {'image': image})[0], [0.25, 3.25])
  assert session.get_modelmeta().custom_metadata_map == {onnx_format.METADATA: about}


@needs_extra
@pytest.mark.slow
def test_an_operation_that_onnx_does_not_have():
  function = function_of(lambda image, score_threshold: {'scores': tf.math.bessel_i0(
    tf.cast(image[0, :, 0], tf.float32)) + score_threshold})
  with pytest.raises(UserError, match='BesselI0.*: export a SavedModel') as error:
    onnx_format.convert(function, 0.25, '{}')
  assert '\n' not in str(error.value)


@needs_extra
@pytest.mark.slow
def test_what_the_runtime_refuses_is_one_line():
  with pytest.raises(UserError, match='onnxruntime cannot run the file of this detector .*: export a') as error:
    onnx_format.runner(b'no file of ONNX')
  assert '\n' not in str(error.value)
  function = function_of(lambda image, score_threshold: {'s': tf.cast(image[0, :, 0], tf.float32) + score_threshold})
  run = onnx_format.runner(onnx_format.convert(function, 0.25, '{}'))
  with pytest.raises(UserError, match='onnxruntime cannot run .*: export a SavedModel'):
    run(np.zeros([2, 2], np.uint8), np.float32(0.5))
