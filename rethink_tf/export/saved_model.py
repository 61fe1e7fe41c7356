"""A trained detector as a SavedModel: picture in, detections in the picture's own pixels out, without this package."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from absl import logging
from pycocotools import mask as coco_mask
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.saved_model import fingerprinting_utils  # there is no public way to renew a fingerprint

from rethink_tf.data.augment import Resize
from rethink_tf.data.buckets import bucket_shapes
from rethink_tf.data.categories import Category
from rethink_tf.errors import UserError
from rethink_tf.models.keypoints import HEATMAP_SIZE
from rethink_tf.ops.masks import paste
from rethink_tf.ops.paste import paste_pixels
from rethink_tf.ops.resize import resize_uint8
from rethink_tf.structures import Batch, Detections

# How far the file may be from `predict`: shares and differences of detections well above the threshold.
MIN_PARTNERS = 0.98  # of the same class, IoU and score within the following
MIN_IOU = 0.95
MAX_SCORE_DIFFERENCE = 0.01
MAX_MASK_DIFFERENCE = 0.01  # of the pixels of both masks together
MAX_KEYPOINT_DIFFERENCE = 0.02  # of the keypoints: elsewhere, that is by a cell of the heat map and a pixel, or surer


class Serving(tf.Module):
  """What a SavedModel of a detector holds.

  Signatures: `serving_default` takes `images`, a batch of JPEG or PNG files [B]; `image` one uint8 [h, w, 3] RGB;
  `categories` nothing. Beside them `detect(image, score_threshold)` and `detect_files(images, score_threshold)` are
  callable on the loaded object: `image` and `serving_default` at another threshold. Keypoints are [n, P, 3] y, x
  (indices of pixel centres) and score; `categories` tells their names.

  detector: a built MaskRCNN. resize: the evaluation's. categories: class k is the k-th. score_threshold: that of the
  signatures; detections below are left out.
  """

  def __init__(self, detector: Any, resize: Resize, categories: Sequence[Category], score_threshold: float):
    super().__init__(name='serving')
    self.weights = list(detector.variables)  # not the layers: a SavedModel would hold the graph of each one of them

    image = tf.TensorSpec([None, None, 3], tf.uint8, 'image')
    threshold = tf.TensorSpec([], tf.float32, 'score_threshold')

    def function(body, *signature):
      return tf.function(body, input_signature=signature, autograph=False)

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
    """Writes the SavedModel. Local paths and gs://.

    Group normalisation's small XLA clusters become plain graphs: XLA would compile them anew for every picture size
    and number of masks, and servers are often built without it.
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


def _find(detector, resize, image, threshold):
  """Boxes float64 [n, 4] in pixels of the picture, scores [n], classes [n]; masks over the boxes and keypoints float32
  [n, P, 3] where the detector has them.
  """
  size = tf.shape(image)[:2]
  height_width = tf.cast(size, tf.float64)
  # data/buckets.py in TensorFlow: the canvas matters, because norms see its padding.
  short, long = tf.reduce_min(height_width), tf.reduce_max(height_width)
  scale = resize.largest / short
  scale = tf.where(tf.round(scale * long) > resize.max_side, resize.max_side / long, scale)
  resized = tf.cast(tf.maximum(tf.round(height_width * scale), 1.0), tf.int32)
  padded_shapes = tf.constant(bucket_shapes(resize.largest, resize.max_side))
  smallest = tf.argmax(tf.reduce_all(resized <= padded_shapes, axis=1))  # of those that hold it
  padded_shape = tf.gather(padded_shapes, smallest)
  padding = tf.concat([tf.stack([[0, 0], padded_shape - resized], axis=1), [[0, 0]]], 0)
  pixels = tf.pad(resize_uint8(image, resized), padding)

  generator = detector.detection_generator
  configured, generator.score_threshold = generator.score_threshold, threshold
  found = detector(pixels[None], tf.cast(resized, tf.float32)[None], training=False).detections
  generator.score_threshold = configured
  found = Detections(*(None if field is None else field[0] for field in found))

  # evaluator.restore in TensorFlow.
  scales = tf.cast(tf.cast(tf.cast(resized, tf.float64) / height_width, tf.float32), tf.float64)
  boxes = tf.cast(found.boxes, tf.float64) / tf.tile(scales, [2])
  boxes = tf.clip_by_value(boxes, tf.constant(0.0, tf.float64), tf.tile(height_width, [2]))
  used = (found.scores > 0) & (found.classes > 0) & (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
  fields = {'boxes': boxes, 'scores': found.scores, 'classes': found.classes, 'masks': found.masks}
  if found.keypoints is not None:
    places = (tf.cast(found.keypoints[..., :2], tf.float64) + 0.5) / scales - 0.5  # indices of pixel centres
    fields['keypoints'] = tf.concat([tf.cast(places, tf.float32), found.keypoints[..., 2:]], axis=-1)
  return {name: tf.boolean_mask(field, used) for name, field in fields.items() if field is not None}


def _detect(find, image, threshold):
  """Detections of one picture, best first: boxes [n, 4], scores [n], classes [n], masks [n, h, w], keypoints."""
  found = find(image, threshold)
  if 'masks' in found:
    found['masks'] = paste_pixels(found['masks'], found['boxes'], tf.shape(image)[0], tf.shape(image)[1])
  return {**found, 'boxes': tf.cast(found['boxes'], tf.float32), 'num_detections': tf.shape(found['scores'])[0]}


def _detect_files(find, slots, files, threshold):
  """Detections of a batch of files: the same fields with `slots` rows a picture, of which num_detections are in use.

  Pictures go through the detector one by one, each on its own canvas. masks is uint8 [B, N, H, W] for the most
  detections N and the largest picture of the batch; image_sizes [B, 2] says how much of it is picture.
  """
  def one(file):
    image = decode(file)
    found = find(image, threshold)
    number = tf.shape(found['scores'])[0]
    rows = {name: tf.ensure_shape(tf.pad(field, [[0, slots - number], *[[0, 0]] * (len(field.shape) - 1)]),
                                  [slots, *field.shape[1:]]) for name, field in found.items()}
    return rows | {'num_detections': number, 'image_sizes': tf.shape(image)[:2]}

  fields = {'boxes': ([slots, 4], tf.float64), 'scores': ([slots], tf.float32), 'classes': ([slots], tf.int32),
            'num_detections': ([], tf.int32), 'image_sizes': ([2], tf.int32)}
  outputs = find.get_concrete_function().structured_outputs
  fields |= {name: ([slots, *outputs[name].shape[1:]], tf.float32) for name in ('masks', 'keypoints')
             if name in outputs}
  found = tf.map_fn(one, files, parallel_iterations=1,
                    fn_output_signature={name: tf.TensorSpec(*spec) for name, spec in fields.items()})
  if 'masks' in found:
    most, (height, width) = tf.reduce_max(found['num_detections']), tf.unstack(tf.reduce_max(found['image_sizes'], 0))
    found['masks'] = tf.map_fn(
      lambda row: paste_pixels(row[0][:most], row[1][:most], height, width), (found['masks'], found['boxes']),
      parallel_iterations=1, fn_output_signature=tf.TensorSpec([None, None, None], tf.uint8))
  return {**found, 'boxes': tf.cast(found['boxes'], tf.float32)}


def decode(file: tf.Tensor) -> tf.Tensor:
  """JPEG or PNG -> uint8 [h, w, 3] RGB, pixels as stored (EXIF is not obeyed, as in training)."""
  return tf.io.decode_jpeg(file, channels=3, dct_method='INTEGER_ACCURATE')


class Difference(NamedTuple):
  """How a SavedModel's detections of one picture differ from `predict`'s."""

  detections: int  # of both together, above the threshold and the last place
  partners: float  # share of them that has a partner: same class, MIN_IOU, MAX_SCORE_DIFFERENCE
  scores: float  # largest difference between partners
  masks: float  # share of the pixels of partners' masks that differ
  keypoints: float  # share of partners' keypoints that differ

  @property
  def small(self) -> bool:
    return (self.partners >= MIN_PARTNERS and self.masks <= MAX_MASK_DIFFERENCE
            and self.keypoints <= MAX_KEYPOINT_DIFFERENCE)


def verify(folder: str, predict_step: Any, detector: Any, scoring: Any, score_threshold: float,
           pictures: int = 2) -> list[Difference]:
  """Compares the SavedModel in `folder` with this package's own prediction and pasting.

  predict_step: Batch -> Detections. scoring: the evaluation's input, of whose pictures the first ones are used. A
  picture without any detection is compared at threshold 0, so that the comparison is never empty.

  Raises:
    UserError: they differ by more than the constants above, or a file is read differently from its pixels.
  """
  loaded = load(folder)
  generator = detector.detection_generator
  source, differences = scoring.source, []
  for step in range(min(pictures, scoring.num_batches)):
    batch = scoring.batch(step)
    image = source.load(int(np.flatnonzero(source.image_ids == batch.image_ids[0])[0])).image
    for threshold in (score_threshold, 0.0):
      configured, generator.score_threshold = generator.score_threshold, threshold
      expected = _in_pixels(batch, tf.function(predict_step, autograph=False)(batch))
      generator.score_threshold = configured
      found = {name: value.numpy() for name, value in loaded.detect(image, np.float32(threshold)).items()}
      if len(expected['scores']):
        break
    differences.append(compare(expected, found, threshold, generator.max_detections))
    if not differences[-1].small:
      raise UserError(f'the SavedModel differs from predict on picture {batch.image_ids[0]}: '
                      f'{differences[-1]._asdict()}; it was not kept')
  png = tf.io.encode_png(image)
  from_file = loaded.signatures['serving_default'](images=png[None])
  direct = loaded.signatures['image'](image=tf.constant(image))
  number = int(from_file['num_detections'][0])
  if not np.array_equal(from_file['boxes'][0, :number], direct['boxes']):
    raise UserError('the SavedModel finds other objects in a PNG file than in its pixels; it was not kept')
  return differences


def load(folder: str) -> Any:
  """tf.saved_model.load without its warning, for each function, that nobody can train the file."""
  verbosity = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    return tf.saved_model.load(folder)
  finally:
    logging.set_verbosity(verbosity)


def compare(expected: dict[str, np.ndarray], found: dict[str, np.ndarray], threshold: float,
            slots: int) -> Difference:
  """Pairs detections {'boxes': [n, 4], 'scores', 'classes', 'masks': [n, h, w], 'keypoints': [n, P, 3]} of one picture,
  best first.

  slots: the most that a list can hold.
  """
  # What is close to the threshold, or to the last place of a full list, may be in one list and not in the other.
  sure = max([threshold, *(one['scores'][-1] for one in (expected, found) if len(one['scores']) == slots)]) * 1.001
  overlaps = _iou(expected['boxes'], found['boxes'])
  near = np.abs(expected['scores'][:, None] - found['scores']) <= MAX_SCORE_DIFFERENCE
  fits = near & (expected['classes'][:, None] == found['classes']) & (overlaps >= MIN_IOU)
  wanted = [one['scores'] > sure for one in (expected, found)]
  total = int(sum(one.sum() for one in wanted))
  partners = int(fits.any(1)[wanted[0]].sum() + fits.any(0)[wanted[1]].sum())
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
  return Difference(total, partners / total if total else 1.0, float(scores), float(masks), float(keypoints))


def _in_pixels(batch: Batch, detections: Detections) -> dict[str, np.ndarray]:
  """The first picture's detections in its own pixels, as CocoEvaluator restores and pastes them."""
  detections = Detections(*(None if field is None else np.asarray(field[0]) for field in detections))
  boxes, scores, classes, masks, keypoints = detections
  height, width = batch.original_sizes[0].tolist()
  boxes = np.clip(boxes / batch.scales[0][[0, 1, 0, 1]].astype(np.float64), 0, [height, width] * 2)
  used = (scores > 0) & (classes > 0) & (boxes[:, 2:] > boxes[:, :2]).all(1)
  fields = {'boxes': boxes[used], 'scores': scores[used], 'classes': classes[used]}
  if masks is not None:
    pixels = [coco_mask.decode(rle) for rle in paste(masks[used], boxes[used], height, width)]
    fields['masks'] = np.stack(pixels) if pixels else np.zeros((0, height, width), np.uint8)
  if keypoints is not None:
    fields['keypoints'] = keypoints[used].astype(np.float64)
    fields['keypoints'][..., :2] = (fields['keypoints'][..., :2] + 0.5) / batch.scales[0] - 0.5
  return fields


def _iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """[n, 4], [m, 4] -> [n, m]."""
  low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
  common = np.maximum(high - low, 0).prod(2)
  areas = [(one[:, 2:] - one[:, :2]).prod(1) for one in (a, b)]
  return common / (areas[0][:, None] + areas[1] - common)


def export(out: str, detector: Any, predict_step: Any, scoring: Any, score_threshold: float | None = None) -> None:
  """Writes a SavedModel beside its place, verifies it and moves it there.

  detector: built, with its weights. scoring: an EvalInput: its resizing, its categories, and pictures to verify on.
  score_threshold: None keeps the detector's own.

  Raises:
    UserError: `out` exists already, cannot be written, or the file does not do what predict does.
  """
  threshold = detector.detection_generator.score_threshold if score_threshold is None else score_threshold
  if not 0.0 <= threshold < 1.0:
    raise UserError(f'--score_threshold = {threshold:g}: use 0 or more, and less than 1')
  if tf.io.gfile.exists(out):
    raise UserError(f'{out} exists already: remove it, or choose another place with --out')
  temporary = f'{out.rstrip("/")}.writing-{os.getpid()}'
  try:
    Serving(detector, scoring.resize, scoring.source.categories, threshold).save(temporary)
    for number, difference in enumerate(verify(temporary, predict_step, detector, scoring, threshold), 1):
      logging.info('picture %d: %d detections compared, %.1f %% agree; scores differ by %.1g at most, masks in %.2g %% '
                   'of their pixels, keypoints in %.2g %%', number, difference.detections, 100 * difference.partners,
                   difference.scores, 100 * difference.masks, 100 * difference.keypoints)
    tf.io.gfile.rename(temporary, out)
  except (OSError, tf.errors.OpError) as error:
    reason = ' '.join(str(getattr(error, 'message', None) or error).split())
    raise UserError(f'{out}: the SavedModel could not be written or run: {reason}') from error
  finally:
    if tf.io.gfile.isdir(temporary):
      tf.io.gfile.rmtree(temporary)
