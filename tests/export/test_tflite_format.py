"""TensorFlow Lite files: both inputs, the description as an associated file, TensorFlow's own operations by name."""

import io
import zipfile

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.export import description, tflite_format


def function_of(body):
  return tf.function(body, [tf.TensorSpec([1, 2, 3], tf.uint8, 'image'),
                            tf.TensorSpec([], tf.float32, 'score_threshold')], autograph=False)


@pytest.mark.slow
def test_a_file_carries_its_description_and_selected_operations_are_refused(caplog, see_logs):
  def body(image, score_threshold):
    return {'scores': tf.math.sinh(tf.cast(image[0, :, 0], tf.float32)) + score_threshold}

  content = tflite_format.convert(function_of(body), 0.25, '{"names": []}')
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    assert archive.namelist() == [description.NAME] and archive.read(description.NAME) == b'{"names": []}'
  image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
  run = tflite_format.runner(content)
  assert 'SELECT_TF_OPS' in caplog.text and 'Sinh' in caplog.text
  with pytest.raises(UserError, match='TensorFlow Lite cannot run .*Select TensorFlow op.*: export a SavedModel'):
    run(image, np.float32(0.5))  # TensorFlow's own package has no delegate for them


@pytest.mark.slow
def test_what_the_interpreter_refuses_is_one_line():
  function = function_of(lambda image, score_threshold: {'s': tf.cast(image[0, :, 0], tf.float32) + score_threshold})
  content = tflite_format.convert(function, 0.25, '{}')
  run = tflite_format.runner(content)
  image = np.arange(6, dtype=np.uint8).reshape(1, 2, 3)
  np.testing.assert_allclose(run(image, np.float32(0.5))['s'], [0.5, 3.5])
  with pytest.raises(ValueError, match='expected 2 vs provided 1'):  # both inputs must be given
    tf.lite.Interpreter(model_content=content).get_signature_runner()(image=image)
  with pytest.raises(UserError, match='TensorFlow Lite cannot run the file of this detector .*: export a'):
    run(np.zeros([2, 2, 3], np.float64), np.float32(0.5))


@pytest.mark.parametrize('height, width', [(2, 2), (1, 1), (1, 4), (2, 1), (4, 6)])
def test_an_image_of_another_size_fails(height, width):
  """The runtime resizes the input: a graph of a fixed size took the upper left corner."""
  content = tflite_format.convert(function_of(lambda image, score_threshold: {
    's': tf.cast(image[:1, :2, 0], tf.float32) + score_threshold}), 0.25, '{}')
  with pytest.raises(UserError, match='TensorFlow Lite cannot run .*size_splits must sum to the dimension'):
    tflite_format.runner(content)(np.zeros([height, width, 3], np.uint8), np.float32(0.5))
  interpreter = tf.lite.Interpreter(model_content=content)
  interpreter.resize_tensor_input(interpreter.get_signature_runner().get_input_details()['image']['index'],
                                  [height, width, 3])
  with pytest.raises(RuntimeError, match='size_splits'):
    interpreter.allocate_tensors()
