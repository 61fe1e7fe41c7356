"""A trained detector as one file for other runtimes, ONNX or TensorFlow Lite: an image in, its detections out.

The graph has the inputs `image`, uint8 [h, w, 3] RGB, and `score_threshold`, and the outputs of the signature `image`
of a SavedModel. It is built of portable operations (ops/portable.py), converted, compared with `predict` on images, and
only then moved into place.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol

import tensorflow as tf

from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.export import comparison, description
from rethink_tf.export.graphs import Tensors, detect, find
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.ops import portable
from rethink_tf.storage import files
from rethink_tf.structures import Batch, Detections


class Format(Protocol):
  """A file format: onnx_format.py, tflite_format.py."""

  def convert(self, function: Callable[..., Tensors], threshold: float, about: str) -> bytes:
    """Return the file of a traced function of an image and a score threshold."""

  def runner(self, content: bytes) -> comparison.Run:
    """Return a function that runs a file in the format's own runtime."""


def export(out: str, form: Format, detector: MaskRCNN, predict_step: Callable[[Batch], Detections], inputs: EvalInput,
           score_threshold: float | None = None, image_size: tuple[int, int] | None = None, *, step: int | None = None,
           averages: bool = False, upright: bool | None = None) -> None:
  """Write a file under a temporary name, verify it and rename it.

  Args:
    out: path, local or gs://.
    detector, predict_step, inputs, score_threshold, step, averages, upright: as in saved_model.export.
    image_size: height and width of all images, for a graph of static shapes; None: images of any size.

  Raises:
    UserError: `out` exists already or cannot be written, the detector has a part without a portable form, or the
      detections differ from those of predict.
  """
  threshold = comparison.threshold_of(detector, score_threshold)
  comparison.require_new(out)
  if image_size is not None:
    inputs = comparison.of_one_size(inputs, image_size)
  about = description.of_detector(detector, inputs.resize, inputs.source.categories, threshold, step=step,
                                  averages=averages, image_size=image_size, upright=upright)
  try:
    tf.io.gfile.makedirs(os.path.dirname(out) or '.')  # before the conversion, which takes minutes
    content = form.convert(function_of(detector, inputs.resize, image_size), threshold, description.to_text(about))
    with files.replacing(out) as temporary:
      with tf.io.gfile.GFile(temporary, 'wb') as file:
        file.write(content)
      with files.open_regular(temporary) as file:
        run = form.runner(file.read())
      comparison.verify(os.path.basename(out), run, predict_step, detector, inputs, threshold)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{out}: cannot be written or run ({in_one_line(error, 200)}): choose another place with --out'
                    ) from error


def usual_size(resize: Resize) -> tuple[int, int]:
  """Return height and width of a 4:3 image that evaluation does not resize, or of the widest image below that."""
  return resize.largest, min(round(resize.largest * 4 / 3), resize.max_side)


def function_of(detector: MaskRCNN, resize: Resize,
                image_size: tuple[int, int] | None = None) -> Callable[..., Tensors]:
  """Return the tf.function of an image and a score threshold, traced with portable operations."""
  image = tf.TensorSpec([*(image_size or (None, None)), 3], tf.uint8, 'image')

  @tf.autograph.experimental.do_not_convert  # as in Trainer
  def body(image: tf.Tensor, score_threshold: tf.Tensor) -> Tensors:
    return detect(lambda *inputs: find(detector, resize, *inputs), image, score_threshold)

  function = tf.function(body, [image, tf.TensorSpec([], tf.float32, 'score_threshold')], autograph=False)
  with portable.operations():
    function.get_concrete_function()  # the only trace of a function with a signature
  return function
