"""TensorFlow Lite files (LiteRT), converted and run by TensorFlow itself."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.types.experimental import ConcreteFunction

from rethink_tf import console
from rethink_tf.export import description, refusals
from rethink_tf.export.comparison import Found, Run
from rethink_tf.export.graphs import Tensors

THREADS = 2


def convert(function: Callable[..., Tensors], threshold: float, about: str) -> bytes:
  """Return the TensorFlow Lite file of a traced tf.function of an image of one size and a score threshold.

  about: description of the detector. It becomes an associated file, in an archive behind the model, as in TensorFlow
    Lite's own metadata.

  Raises:
    UserError: TensorFlow Lite has no counterpart of an operation, not even among TensorFlow's own.
  """
  del threshold  # both inputs must be given
  traced, module = _of_one_size(function), tf.Module()
  module.weights = list(traced.variables)  # without them the converter silently writes no signature
  converter = tf.lite.TFLiteConverter.from_concrete_functions([traced], module)
  converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
  with refusals.in_words('TensorFlow Lite cannot convert this detector'), console.held_stderr():
    content = converter.convert()
  file = io.BytesIO(content)
  with zipfile.ZipFile(file, 'a') as archive:
    archive.writestr(description.NAME, about)
  return file.getvalue()


def _of_one_size(function: Callable[..., Tensors]) -> ConcreteFunction:
  """Return a traced function that fails for an image of another size than that of its signature.

  The runtime resizes the input to any image, and the graph would take the upper left corner of a larger one. Unlike
  other operations with a fixed size, a split survives conversion and is checked when memory is allocated.
  """
  image, threshold = function.input_signature

  def body(image: tf.Tensor, score_threshold: tf.Tensor) -> Tensors:
    for axis, size in enumerate(image.shape[:2]):
      image = tf.concat(tf.split(image, [size // 2, size - size // 2], axis), axis)
    return function(image, score_threshold)

  return tf.function(body, [image, threshold], autograph=False).get_concrete_function()


def runner(content: bytes) -> Run:
  """Return a function of an image and a score threshold that runs a TensorFlow Lite file on the CPU.

  Raises:
    UserError: from the function: the interpreter fails to run the file.
  """
  with warnings.catch_warnings(), console.held_stderr():
    warnings.simplefilter('ignore')  # it is LiteRT's in future
    interpreter = tf.lite.Interpreter(model_content=content, num_threads=THREADS)
    signature = interpreter.get_signature_runner()
    selected = selected_operations(interpreter)
  if selected:
    logging.info('TensorFlow operations (SELECT_TF_OPS) beside the built-in ones: %s', ', '.join(selected))

  def run(image: np.ndarray, threshold: np.float32) -> Found:
    with refusals.in_words('TensorFlow Lite cannot run the file of this detector'):
      return signature(image=image, score_threshold=threshold)

  return run


def selected_operations(interpreter: tf.lite.Interpreter) -> list[str]:
  """Return the names of TensorFlow's own operations in a model, which a runtime must be built with."""
  names = {one['op_name'] for one in interpreter._get_ops_details()}  # there is no public way to list them
  return sorted(name.removeprefix('Flex') for name in names if name.startswith('Flex'))
