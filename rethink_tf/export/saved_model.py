"""A trained detector as a SavedModel: from an image to detections in its pixels, without this package."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from pycocotools import mask as coco_mask
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils  # fingerprints have no public API

from rethink_tf.data.augment import Resize
from rethink_tf.data.buckets import bucket_shapes
from rethink_tf.data.categories import Category
from rethink_tf.data.detection.input import EvalInput
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.evaluation.postprocessing import restore
from rethink_tf.export import operations
from rethink_tf.models.keypoints import HEATMAP_SIZE
from rethink_tf.models.mask_rcnn import MaskRCNN
from rethink_tf.ops.paste import paste_pixels
from rethink_tf.ops.resize import resize_uint8
from rethink_tf.structures import Batch, Detections

# Tolerances between a SavedModel and `predict`, for detections clearly above the threshold.
MIN_MATCHED = 0.98  # share of detections with a match: the same class, and IoU and score within the following
MIN_IOU = 0.95
MAX_SCORE_DIFFERENCE = 0.01
MAX_MASK_DIFFERENCE = 0.01  # of the pixels of both masks together
MAX_KEYPOINT_DIFFERENCE = 0.02  # share of keypoints that are off by over a heat map cell and a pixel, or in score

Tensors = dict[str, tf.Tensor]


class Serving(tf.Module):
  """Contents of the SavedModel of a detector.

  Signatures: `serving_default` takes `images`, a batch of JPEG or PNG files [B]; `image` one uint8 [h, w, 3] RGB;
  `categories` nothing. The loaded object also has the methods `detect(image, score_threshold)` and
  `detect_files(images, score_threshold)`: `image` and `serving_default` at another threshold. Keypoints are [n, P, 3]
  y, x (indices of pixel centres) and score; `categories` returns their names.

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
    find = function(lambda image, threshold: _find(detector, resize, image, threshold), image, threshold)
    self.detect = function(lambda image, score_threshold: _detect(find, image, score_threshold), image, threshold)
    self.image = function(lambda image: _detect(find, image, score_threshold), image)
    files = tf.TensorSpec([None], tf.string, 'images')
    self.detect_files = function(lambda images, score_threshold: _detect_files(find, slots, images, score_threshold),
                                 files, threshold)
    self.encoded = function(lambda images: self.detect_files(images, score_threshold), files)
    ids, names = [category.id for category in categories], [category.name for category in categories]
    points = next((category.keypoints for category in categories if category.keypoints), ())
    named = {'keypoint_names': list(points)} if detector.keypoint_head is not None else {}
    self.categories = function(lambda: {'ids': tf.constant(ids, tf.int64), 'names': tf.constant(names),
                                        **{name: tf.constant(value, tf.string) for name, value in named.items()}})

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


def _find(detector: MaskRCNN, resize: Resize, image: tf.Tensor, threshold: tf.Tensor) -> Tensors:
  """Return the detections in an image, uint8 [h, w, 3], before masks are pasted.

  boxes float64 [n, 4] in its pixels, scores [n], classes [n]; where the detector has them, masks over the boxes and
  keypoints float32 [n, P, 3].
  """
  size = tf.shape(image)[:2]
  height_width = tf.cast(size, tf.float64)
  # As data/buckets.py in TensorFlow: the padded shape matters, since norms see the padding.
  short, long = tf.reduce_min(height_width), tf.reduce_max(height_width)
  scale = resize.largest / short
  scale = tf.where(tf.round(scale * long) > resize.max_side, resize.max_side / long, scale)
  resized = tf.cast(tf.maximum(tf.round(height_width * scale), 1.0), tf.int32)
  padded_shapes = tf.constant(bucket_shapes(resize.largest, resize.max_side))
  smallest = tf.argmax(tf.reduce_all(resized <= padded_shapes, axis=1))  # the first that the image fits in
  padded_shape = tf.gather(padded_shapes, smallest)
  padding = tf.concat([tf.stack([[0, 0], padded_shape - resized], axis=1), [[0, 0]]], 0)
  pixels = tf.pad(resize_uint8(image, resized), padding)

  generator = detector.detection_generator
  configured, generator.score_threshold = generator.score_threshold, threshold
  detections = detector(pixels[None], tf.cast(resized, tf.float32)[None], training=False).detections
  generator.score_threshold = configured
  detections = Detections(*(None if field is None else field[0] for field in detections))

  # As evaluation.postprocessing.restore in TensorFlow.
  scales = tf.cast(tf.cast(tf.cast(resized, tf.float64) / height_width, tf.float32), tf.float64)
  boxes = tf.cast(detections.boxes, tf.float64) / tf.tile(scales, [2])
  boxes = tf.clip_by_value(boxes, tf.constant(0.0, tf.float64), tf.tile(height_width, [2]))
  used = ((detections.scores > 0) & (detections.classes > 0) & (boxes[:, 2] > boxes[:, 0])
          & (boxes[:, 3] > boxes[:, 1]))
  fields = {'boxes': boxes, 'scores': detections.scores, 'classes': detections.classes, 'masks': detections.masks}
  if detections.keypoints is not None:
    positions = (tf.cast(detections.keypoints[..., :2], tf.float64) + 0.5) / scales - 0.5  # indices of pixel centres
    fields['keypoints'] = tf.concat([tf.cast(positions, tf.float32), detections.keypoints[..., 2:]], axis=-1)
  return {name: tf.boolean_mask(field, used) for name, field in fields.items() if field is not None}


def _detect(find: Callable[..., Tensors], image: tf.Tensor, threshold: tf.Tensor | float) -> Tensors:
  """Return the detections in one image, highest score first: boxes [n, 4], scores, classes, masks [n, h, w], ..."""
  fields = find(image, threshold)
  if 'masks' in fields:
    fields['masks'] = paste_pixels(fields['masks'], fields['boxes'], tf.shape(image)[0], tf.shape(image)[1])
  return {**fields, 'boxes': tf.cast(fields['boxes'], tf.float32), 'num_detections': tf.shape(fields['scores'])[0]}


def _detect_files(find: Callable[..., Tensors], slots: int, files: tf.Tensor, threshold: tf.Tensor | float) -> Tensors:
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


_HEADS = (b'\xff\xd8\xff', b'\x89PNG', b'GIF8')  # WebP and BMP files decode to other ranks, or not at all


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
  """Decode JPEG or PNG to uint8 [h, w, 3] RGB, pixels as stored (EXIF orientation is ignored, as in training)."""
  return tf.io.decode_jpeg(file, channels=3, dct_method='INTEGER_ACCURATE')


class Difference(NamedTuple):
  """Difference between the detections of a SavedModel and of `predict` in one image."""

  detections: int  # of both together that are compared
  matched: float  # share of them with a match: same class, MIN_IOU, MAX_SCORE_DIFFERENCE
  scores: float  # largest difference between matched detections
  masks: float  # share of differing pixels in matched masks
  keypoints: float  # share of differing keypoints in matched detections

  @property
  def small(self) -> bool:
    return (self.matched >= MIN_MATCHED and self.masks <= MAX_MASK_DIFFERENCE
            and self.keypoints <= MAX_KEYPOINT_DIFFERENCE)


def verify(folder: str, predict_step: Callable[[Batch], Detections], detector: MaskRCNN, inputs: EvalInput,
           score_threshold: float, images: int = 2) -> list[Difference]:
  """Compare the detections of the SavedModel in `folder` with those of this package.

  Args:
    predict_step: as in Trainer.
    inputs: of evaluation; its first `images` images are used. One without detections is compared at threshold 0, so
      that the comparison is never empty.

  Raises:
    UserError: they differ by more than the tolerances above, or detections in a PNG file differ from those in its
      pixels.
  """
  loaded = load(folder)
  generator = detector.detection_generator
  source, differences = inputs.source, []
  for step in range(min(images, inputs.num_batches)):
    batch = inputs.batch(step)
    image = source.load(int(np.flatnonzero(source.image_ids == batch.image_ids[0])[0])).image
    for threshold in (score_threshold, 0.0):
      configured, generator.score_threshold = generator.score_threshold, threshold
      expected = _in_pixels(batch, tf.function(predict_step, autograph=False)(batch))
      generator.score_threshold = configured
      served = {name: value.numpy() for name, value in loaded.detect(image, np.float32(threshold)).items()}
      if len(expected['scores']):
        break
    differences.append(compare(expected, served, threshold, generator.max_detections))
    if not differences[-1].small:
      raise UserError(f'the SavedModel differs from predict on image {batch.image_ids[0]}: '
                      f'{differences[-1]._asdict()}; it was not kept')
  png = tf.io.encode_png(image)
  from_file = loaded.signatures['serving_default'](images=png[None])
  direct = loaded.signatures['image'](image=tf.constant(image))
  number = int(from_file['num_detections'][0])
  if not np.array_equal(from_file['boxes'][0, :number], direct['boxes']):
    raise UserError('the detections of the SavedModel in a PNG file differ from those in its pixels; it was not kept')
  return differences


def load(folder: str) -> Any:  # TensorFlow has no public type for it
  """Load a SavedModel without TensorFlow's warnings that its functions cannot be trained."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return tf.saved_model.load(folder)
  finally:
    logging.set_verbosity(verbosity)


def compare(expected: dict[str, np.ndarray], found: dict[str, np.ndarray], threshold: float,
            slots: int) -> Difference:
  """Match two lists of detections of one image, highest score first.

  Each is {'boxes': [n, 4], 'scores', 'classes', 'masks': [n, h, w], 'keypoints': [n, P, 3]}, with at most `slots`
  detections.
  """
  # A detection close to the threshold, or to the last score of a full list, may be in one list only.
  limit = max([threshold, *(one['scores'][-1] for one in (expected, found) if len(one['scores']) == slots)]) * 1.001
  overlaps = _iou(expected['boxes'], found['boxes'])
  near = np.abs(expected['scores'][:, None] - found['scores']) <= MAX_SCORE_DIFFERENCE
  fits = near & (expected['classes'][:, None] == found['classes']) & (overlaps >= MIN_IOU)
  wanted = [one['scores'] > limit for one in (expected, found)]
  total = int(sum(one.sum() for one in wanted))
  matched = int(fits.any(1)[wanted[0]].sum() + fits.any(0)[wanted[1]].sum())
  rows = np.flatnonzero(fits.any(1))
  columns = np.where(fits, overlaps, -1.0)[rows].argmax(1) if len(rows) else rows
  scores = np.abs(expected['scores'][rows] - found['scores'][columns]).max(initial=0.0)
  masks = 0.0
  if 'masks' in expected and len(rows):
    either = (expected['masks'][rows] | found['masks'][columns]).sum()
    masks = (expected['masks'][rows] != found['masks'][columns]).sum() / max(either, 1)
  keypoints = 0.0
  if 'keypoints' in expected and len(rows):
    apart = np.abs(expected['keypoints'][rows] - found['keypoints'][columns])  # [r, P, 3]
    cells = (expected['boxes'][rows, 2:] - expected['boxes'][rows, :2]) / HEATMAP_SIZE  # [r, 2]
    elsewhere = (apart[..., :2] > np.maximum(cells, 1.0)[:, None]).any(-1)
    keypoints = (elsewhere | (apart[..., 2] > MAX_SCORE_DIFFERENCE)).mean()
  return Difference(total, matched / total if total else 1.0, float(scores), float(masks), float(keypoints))


def _in_pixels(batch: Batch, detections: Detections) -> dict[str, np.ndarray]:
  """Return the detections in the first image of a batch, restored and pasted as in evaluation."""
  fields = (batch.image_ids, batch.scales, batch.original_sizes, *detections)
  restored = restore('accurate', *(None if field is None else np.asarray(field[:1]) for field in fields))[0]
  result = {'boxes': restored.boxes, 'scores': restored.scores, 'classes': restored.classes}
  if restored.masks is not None:
    pixels = [coco_mask.decode(rle) for rle in restored.masks]
    result['masks'] = np.stack(pixels) if pixels else np.zeros((0, *batch.original_sizes[0]), np.uint8)
  if restored.keypoints is not None:
    result['keypoints'] = restored.keypoints
  return result


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Return the IoU of boxes [n, 4] and [m, 4], [n, m]."""
  low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
  common = np.maximum(high - low, 0).prod(2)
  areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (a, b)]
  return common / (areas[0][:, None] + areas[1] - common)


def export(out: str, detector: MaskRCNN, predict_step: Callable[[Batch], Detections], inputs: EvalInput,
           score_threshold: float | None = None) -> None:
  """Write a SavedModel under a temporary name, verify it and rename it.

  Args:
    out: folder, local or gs://.
    detector: with all variables.
    predict_step: as in Trainer.
    inputs: of evaluation, with its resizing, its categories, and images to verify on.
    score_threshold: None is the detector's own.

  Raises:
    UserError: `out` exists already or cannot be written, or the detections differ from those of predict.
  """
  threshold = detector.detection_generator.score_threshold if score_threshold is None else score_threshold
  if not 0.0 <= threshold < 1.0:
    raise UserError(f'--score_threshold = {threshold:g}: use 0 or more, and less than 1')
  if tf.io.gfile.exists(out):
    raise UserError(f'{out} exists already: remove it, or choose another place with --out')
  temporary = f'{out.rstrip("/")}.writing-{os.getpid()}'
  try:
    Serving(detector, inputs.resize, inputs.source.categories, threshold).save(temporary)
    try:
      operations.check(temporary)
    except UserError as error:  # of a user's own part: the model itself is sound
      logging.warning('predict --saved_model will refuse the SavedModel: %s', error)
    for number, difference in enumerate(verify(temporary, predict_step, detector, inputs, threshold), 1):
      logging.info('image %d: %d detections compared, %.1f %% agree; scores differ by %.1g at most, masks in %.2g %% '
                   'of their pixels, keypoints in %.2g %%', number, difference.detections, 100 * difference.matched,
                   difference.scores, 100 * difference.masks, 100 * difference.keypoints)
    tf.io.gfile.rename(temporary, out)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{out}: the SavedModel could not be written or run: {in_one_line(error)}') from error
  finally:
    if tf.io.gfile.isdir(temporary):
      tf.io.gfile.rmtree(temporary)
