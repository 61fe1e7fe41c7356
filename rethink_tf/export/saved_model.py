"""A trained detector as a SavedModel: from an image to detections in its pixels, without this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils  # fingerprints have no public API

from rethink_tf.data.augment import Resize
from rethink_tf.data.categories import Category
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.export import comparison, description, operations
from rethink_tf.export.graphs import Tensors, detect, find
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.ops.paste import paste_pixels
from rethink_tf.structures import Batch, Detections


class Serving(tf.Module):
  """Contents of the SavedModel of a detector.

  Signatures: `serving_default` takes `images`, a batch of JPEG or PNG files [B]; `image` one uint8 [h, w, 3] RGB;
  `categories` nothing. The loaded object also has the methods `detect(image, score_threshold)` and
  `detect_files(images, score_threshold)`: `image` and `serving_default` at another threshold. Keypoints are [n, P, 3]
  y, x (indices of pixel centres) and score; `categories` returns their names, and the skeleton as pairs of numbers of
  keypoints, from 1.

  Args:
    detector: with all variables.
    resize: that of evaluation.
    categories: of classes 1..K.
    score_threshold: minimum score of a detection in the signatures.
  """

  def __init__(self, detector: MaskRCNN, resize: Resize, categories: Sequence[Category], score_threshold: float):
    super().__init__(name='serving')
    self.weights = list(detector.variables)  # not the layers: a SavedModel would contain the graph of each

    image = tf.TensorSpec([None, None, 3], tf.uint8, 'image')
    threshold = tf.TensorSpec([], tf.float32, 'score_threshold')

    def function(body: Callable[..., Any], *signature: tf.TensorSpec) -> Callable[..., Any]:
      plain = tf.autograph.experimental.do_not_convert(body)  # as in Trainer
      return tf.function(plain, input_signature=signature, autograph=False)

    slots = detector.detection_generator.max_detections
    one = function(lambda image, threshold: find(detector, resize, image, threshold), image, threshold)
    self.detect = function(lambda image, score_threshold: detect(one, image, score_threshold), image, threshold)
    self.image = function(lambda image: detect(one, image, score_threshold), image)
    files = tf.TensorSpec([None], tf.string, 'images')
    self.detect_files = function(lambda images, score_threshold: detect_in_files(one, slots, images, score_threshold),
                                 files, threshold)
    self.encoded = function(lambda images: self.detect_files(images, score_threshold), files)
    ids, names = [category.id for category in categories], [category.name for category in categories]
    person = next((category for category in categories if category.keypoints), None)

    def listed() -> Tensors:
      lists = {'ids': tf.constant(ids, tf.int64), 'names': tf.constant(names)}
      if detector.keypoint_head is None or person is None:
        return lists
      return lists | {'keypoint_names': tf.constant(person.keypoints, tf.string),
                      'skeleton': tf.constant(np.reshape(person.skeleton, [-1, 2]), tf.int32)}

    self.categories = function(listed)

  def save(self, folder: str) -> None:
    """Write the SavedModel to a folder, local or gs://.

    The small XLA clusters of group normalisation become plain graphs: XLA would compile them for every image size and
    number of masks, and servers are often built without it.
    """
    signatures = {'serving_default': self.encoded, 'image': self.image, 'categories': self.categories}
    tf.saved_model.save(self, folder, {name: f.get_concrete_function() for name, f in signatures.items()},
                        tf.saved_model.SaveOptions(experimental_custom_gradients=False))
    path = os.path.join(folder, 'saved_model.pb')
    with tf.io.gfile.GFile(path, 'rb') as file:
      model = saved_model_pb2.SavedModel.FromString(file.read())
    for graph in (meta.graph_def for meta in model.meta_graphs):
      for function in graph.library.function:
        function.attr.pop('_XlaMustCompile', None)
      for node in [*graph.node, *(node for function in graph.library.function for node in function.node_def)]:
        node.attr.pop('_XlaMustCompile', None)
    with tf.io.gfile.GFile(path, 'wb') as file:
      file.write(model.SerializeToString())
    fingerprinting_utils.write_fingerprint(folder)


def detect_in_files(find: Callable[..., Tensors], slots: int, files: tf.Tensor,
                    threshold: tf.Tensor | float) -> Tensors:
  """Return the detections in a batch of files: the same fields with `slots` rows an image, num_detections of them used.

  The detector processes the images one by one, each at its own padded shape. masks is uint8 [B, N, H, W] for the
  largest number of detections N and the largest image of the batch; image_sizes [B, 2] is the size of each image.
  A batch with files that are not readable fails with their rows; of an empty one all fields have no rows.
  """
  files = readable(files)

  def one(file: tf.Tensor) -> Tensors:
    image = decode(file)
    fields = find(image, threshold)
    number = tf.shape(fields['scores'])[0]
    rows = {name: tf.ensure_shape(tf.pad(field, [[0, slots - number], *[[0, 0]] * (len(field.shape) - 1)]),
                                  [slots, *field.shape[1:]]) for name, field in fields.items()}
    return rows | {'num_detections': number, 'image_sizes': tf.shape(image)[:2]}

  specs = {'boxes': ([slots, 4], tf.float64), 'scores': ([slots], tf.float32), 'classes': ([slots], tf.int32),
           'num_detections': ([], tf.int32), 'image_sizes': ([2], tf.int32)}
  outputs = find.get_concrete_function().structured_outputs
  specs |= {name: ([slots, *outputs[name].shape[1:]], tf.float32) for name in ('masks', 'keypoints')
            if name in outputs}
  fields = tf.map_fn(one, files, parallel_iterations=1,
                     fn_output_signature={name: tf.TensorSpec(*spec) for name, spec in specs.items()})
  if 'masks' in fields:
    most, (height, width) = tf.reduce_max(fields['num_detections']), tf.unstack(tf.reduce_max(fields['image_sizes'], 0))
    fields['masks'] = tf.cond(
      tf.size(files) > 0,
      lambda: tf.map_fn(
        lambda row: paste_pixels(row[0][:most], row[1][:most], height, width), (fields['masks'], fields['boxes']),
        parallel_iterations=1, fn_output_signature=tf.TensorSpec([None, None, None], tf.uint8)),
      lambda: tf.zeros([0, 0, 0, 0], tf.uint8))
  return {**fields, 'boxes': tf.cast(fields['boxes'], tf.float32)}


_PNG = b'\x89PNG'
_HEADS = (b'\xff\xd8\xff', _PNG, b'GIF8')  # WebP and BMP files decode to other ranks, or not at all


def readable(files: tf.Tensor) -> tf.Tensor:
  """Return a batch of files [B]; it fails with the rows of those that are not readable."""
  rows = tf.range(tf.size(files))
  known = tf.reduce_any([tf.equal(tf.strings.substr(files, 0, len(head)), head) for head in _HEADS], axis=0)
  sound = tf.data.Dataset.from_tensor_slices((rows, files)).map(
    lambda row, file: tf.one_hot(tf.where(tf.size(decode(file)) > 0, row, -1), tf.size(files), on_value=True,
                                 off_value=False, dtype=tf.bool)).ignore_errors()
  known &= sound.reduce(tf.zeros([tf.size(files)], tf.bool), tf.logical_or)
  wrong = tf.boolean_mask(rows, ~known)
  message = 'images: not readable as JPEG or PNG files are the rows (from 0)'
  with tf.control_dependencies([tf.debugging.Assert(tf.equal(tf.size(wrong), 0), [message, wrong], summarize=100)]):
    return tf.identity(files)


def decode(file: tf.Tensor) -> tf.Tensor:
  """Decode JPEG or PNG to uint8 [h, w, 3] RGB, pixels as stored (EXIF orientation is ignored).

  PNG files of 16 bits are scaled as by data/bit_depth.py.
  """
  def sixteen_bits() -> tf.Tensor:
    values = tf.cast(tf.io.decode_png(file, channels=3, dtype=tf.uint16), tf.int32)
    highest = tf.reduce_max(values)
    shift = tf.where(highest <= 255, 0, tf.where(highest <= 4095, 4, 8))
    return tf.cast(tf.bitwise.right_shift(values, shift), tf.uint8)

  depth = tf.strings.substr(tf.strings.join([file, '\0' * 25]), 24, 1)  # of the first chunk of a PNG file
  deep = tf.equal(tf.strings.substr(file, 0, 4), _PNG) & tf.equal(depth, b'\x10')
  image = tf.cond(deep, sixteen_bits, lambda: tf.io.decode_jpeg(file, channels=3, dct_method='INTEGER_ACCURATE'))
  return tf.ensure_shape(image, [None, None, 3])


def load(folder: str) -> Any:  # TensorFlow has no public type for it
  """Load a SavedModel without TensorFlow's warnings that its functions cannot be trained."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return tf.saved_model.load(folder)
  finally:
    logging.set_verbosity(verbosity)


def export(out: str, detector: MaskRCNN, predict_step: Callable[[Batch], Detections], inputs: EvalInput,
           score_threshold: float | None = None, *, step: int | None = None, averages: bool = False,
           upright: bool | None = None) -> None:
  """Write a SavedModel under a temporary name, verify it and rename it.

  Args:
    out: folder, local or gs://.
    detector: with all variables.
    predict_step: as in Trainer.
    inputs: of evaluation, with its resizing, its categories, and images to verify on.
    score_threshold: None is the detector's own.
    step, averages: of the checkpoint, for the description; upright: of its training, see description.of_detector.

  Raises:
    UserError: `out` exists already or cannot be written, or the detections differ from those of predict.
  """
  threshold = comparison.threshold_of(detector, score_threshold)
  comparison.require_new(out)
  temporary = f'{out.rstrip("/")}.writing-{os.getpid()}'
  try:
    categories = inputs.source.categories
    Serving(detector, inputs.resize, categories, threshold).save(temporary)
    description.write(os.path.join(temporary, description.IN_FOLDER), description.of_detector(
      detector, inputs.resize, categories, threshold, step=step, averages=averages, upright=upright))
    try:
      operations.check(temporary)
    except UserError as error:  # of a user's own part: the model itself is sound
      logging.warning('predict --saved_model will refuse the SavedModel: %s', error)
    loaded = load(temporary)
    comparison.verify('the SavedModel', lambda image, at: _numpy(loaded.detect(image, at)), predict_step, detector,
                      inputs, threshold)
    _verify_signatures(loaded, inputs.source.load(0).image)
    tf.io.gfile.rename(temporary, out)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{out}: the SavedModel could not be written or run: {in_one_line(error)}; choose another '
                    'place with --out, or free space') from error
  finally:
    if tf.io.gfile.isdir(temporary):
      tf.io.gfile.rmtree(temporary)


def _numpy(fields: Tensors) -> comparison.Found:
  return {name: value.numpy() for name, value in fields.items()}


def _verify_signatures(loaded: Any, image: np.ndarray) -> None:
  """Raise a UserError if the detections in a PNG file differ from those in its pixels."""
  from_file = loaded.signatures['serving_default'](images=tf.io.encode_png(image)[None])
  direct = loaded.signatures['image'](image=tf.constant(image))
  number = int(from_file['num_detections'][0])
  if not np.array_equal(from_file['boxes'][0, :number], direct['boxes']):
    raise UserError('the detections of the SavedModel in a PNG file differ from those in its pixels; it was not kept')
