"""Trained detectors for prediction, from a run or a SavedModel, with the same interface."""

from __future__ import annotations

import collections
import functools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask

from rethink_tf import experiment as experiments
from rethink_tf import gin_files
from rethink_tf.data import digest
from rethink_tf.data.batching import errors_of
from rethink_tf.data.categories import Category, parse_categories
from rethink_tf.distributed import devices
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.evaluation.postprocessing import ImageDetections, restore
from rethink_tf.export import description, operations, saved_model
from rethink_tf.predict.image_files import UnannotatedImages
from rethink_tf.structures import Experiment
from rethink_tf.training import ema
from rethink_tf.visualization import drawing

THREADS = 2  # that paste masks, and render and encode images, while the detector continues
WAITING = 4  # batches at most that wait for them

T = TypeVar('T')


class TrainedDetector(Protocol):
  """A detector with its weights."""

  categories: Sequence[Category]  # of classes 1..K
  batch: int  # images that it processes at a time
  upright: bool | None  # whether it was trained on images with their EXIF orientation applied; None: not known

  def detect(self, source: UnannotatedImages, threshold: float) -> Iterator[tuple[int, Callable[[], ImageDetections]]]:
    """Yield the index of each image of a source, in any order, and a function that makes its detections.

    The function pastes the masks, so it may run on another thread. Detections have a score of at least `threshold`.
    """


class RunDetector:
  """The detector of a run, which predicts as its evaluation does: same sizes, padded shapes and test-time augmentation.

  Weights are restored once, and the network is traced once for each padded shape. Detections below the detector's own
  DetectionGenerator.score_threshold do not exist, whatever the threshold.

  experiment: built with `run_files` and `run_bindings`, which gin still holds.
  checkpoint: 'latest', 'best' or a step. averages: use the moving averages of the weights.

  Attributes: those of TrainedDetector, and
    step: of the checkpoint.

  Raises:
    UserError: the run is that of a classifier, or has no such checkpoint or averages.
  """

  def __init__(self, experiment: Experiment, checkpoint: str | int = 'latest', averages: bool = False):
    trainer, self._inputs = experiment.trainer, experiment.eval_input
    if not hasattr(trainer.detector, 'score_boxes'):
      raise UserError(f'{experiment.folder.path} is the run of a classifier: predict needs a detector')
    ema.restore(experiment, averages, experiment.checkpoints.choose(checkpoint, experiments.main_metric()))
    self.step = experiment.checkpoints.restored_step
    self.categories, self.batch = self._inputs.source.categories, self._inputs.batch_size
    recorded = experiment.recorded
    self.upright = None if recorded is None else digest.reads_upright(recorded.data.get('train', {}))
    self._mask_paste = gin_files.bound('CocoEvaluator.mask_paste') or 'accurate'
    self._augmentation = experiment.test_augmentation
    self._predict = trainer.predict_batch
    if self._augmentation is not None:
      self._predict = self._augmentation.predictor(trainer, self._inputs.source)

  def detect(self, source: UnannotatedImages, threshold: float) -> Iterator[tuple[int, Callable[[], ImageDetections]]]:
    """Yield indices and functions, one padded shape after another (see TrainedDetector)."""
    ours = self._inputs
    inputs = type(ours)(source, ours.batch_size, ours.resize, max_instances=1, max_unreadable=1.0, workers=ours.workers)
    if self._augmentation is not None:
      inputs = self._augmentation.views_of(inputs)
    index_of = {int(id_): i for i, id_ in enumerate(source.image_ids)}
    with errors_of(inputs):
      for batch in inputs.dataset():
        detections = self._predict(batch)
        fields = [None if field is None else np.asarray(field)
                  for field in (batch.image_ids, batch.scales, batch.original_sizes, *detections)]
        for row, image_id in enumerate(fields[0].tolist()):
          if image_id in index_of:  # not the rows that fill up the last batch
            one = [None if field is None else field[row:row + 1] for field in fields]
            yield index_of[image_id], functools.partial(self._restore, one, threshold)

  def _restore(self, fields: Sequence[np.ndarray | None], threshold: float) -> ImageDetections:
    return above(restore(self._mask_paste, *fields)[0], threshold)


class SavedModelDetector:
  """The detector in a SavedModel that rethink_tf.export has written.

  folder: local or gs://. batch: images of a call; several are passed as encoded files.

  Raises:
    UserError: there is no such SavedModel, or it is from a version that takes one image at a time; a GPU is newer than
      the kernels.
  """

  def __init__(self, folder: str, batch: int = 1):
    devices.check()
    operations.check(folder)
    try:
      model = saved_model.load(folder)
    except Exception as error:  # a damaged SavedModel raises almost any exception in TensorFlow
      raise UserError(f'{folder}: the SavedModel cannot be loaded ({in_one_line(error, 200)}): export it again'
                      ) from error
    if not hasattr(model, 'detect') or 'categories' not in getattr(model, 'signatures', {}):
      raise UserError(f'{folder}: is not a SavedModel of this package: write one with python -m rethink_tf.export')
    if batch > 1 and not hasattr(model, 'detect_files'):
      raise UserError(f'{folder}: takes one image at a time, as older versions exported: leave out --batch, or export '
                      'it again')
    self.categories = _categories(model, folder)
    self._model, self.batch = model, batch
    self.upright = description.reads_upright(folder)

  def detect(self, source: UnannotatedImages, threshold: float) -> Iterator[tuple[int, Callable[[], ImageDetections]]]:
    """Yield indices and functions in order (see TrainedDetector)."""
    ids = source.image_ids.tolist()
    for start in range(0, len(ids), self.batch):
      indices = range(start, min(start + self.batch, len(ids)))
      images = [source.load(i).image for i in indices]
      for i, fields in zip(indices, self._call(images, np.float32(threshold)), strict=True):
        yield i, functools.partial(_from_fields, ids[i], fields, threshold)

  def _call(self, images: Sequence[np.ndarray], threshold: np.float32) -> Iterator[dict[str, np.ndarray]]:
    """Yield the fields of each image."""
    if self.batch == 1:
      yield {name: value.numpy() for name, value in self._model.detect(images[0], threshold).items()}
      return
    files = tf.constant([drawing.png(image) for image in images])  # pixels, as they may be rotated or a video's frames
    rows = {name: value.numpy() for name, value in self._model.detect_files(files, threshold).items()}
    for row, (count, (height, width)) in enumerate(zip(rows['num_detections'], rows['image_sizes'], strict=True)):
      fields = {name: rows[name][row, :count] for name in ('boxes', 'scores', 'classes', 'masks', 'keypoints')
                if name in rows}
      yield fields | ({'masks': fields['masks'][:, :height, :width]} if 'masks' in fields else {})


def _categories(model: Any, folder: str) -> tuple[Category, ...]:
  """Return the categories of a SavedModel, validated like those of an annotation file."""
  try:
    lists = {name: value.numpy().tolist() for name, value in model.signatures['categories']().items()}
    keypoints = [name.decode() for name in lists.get('keypoint_names', [])]
    skeleton = lists.get('skeleton', [])  # older ones have none
    entries = [{'id': id_, 'name': name.decode(), 'keypoints': keypoints, 'skeleton': skeleton}
               for id_, name in zip(lists['ids'], lists['names'], strict=True)]
  except (KeyError, TypeError, ValueError, AttributeError, tf.errors.OpError) as error:
    raise UserError(f'{folder}: is not a SavedModel of this package: write one with python -m '
                    'rethink_tf.export') from error
  return parse_categories(entries, folder)


def run_files(model_dir: str, files: Sequence[str] = ()) -> list[str]:
  """Return the gin file that a run has saved, then those that override it.

  Raises:
    UserError: there is no run in model_dir.
  """
  saved = gin_files.saved_config(model_dir)
  return [saved, *(file for file in files if file != saved)]


def run_bindings(model_dir: str, batch: int = 1) -> list[str]:
  """Return gin bindings that put a run's detector on one device, without its data set.

  Raises:
    UserError: the run has not saved its categories.
  """
  categories = f'{model_dir.rstrip("/")}/categories.json'
  if not tf.io.gfile.exists(categories):
    raise UserError(f'no categories.json in {model_dir}: check --model_dir')
  return [*experiments.ONE_DEVICE, f'run.eval_images_per_device = {batch}', 'run.eval_source = @placeholder',
          f'placeholder.categories_file = {categories!r}']


def applies_exif(detector: TrainedDetector, upright: bool | None) -> bool:
  """Whether to apply the EXIF orientation of image files: `upright`, or if that is None, as in training."""
  return bool(detector.upright if upright is None else upright)


def detect_all(detector: TrainedDetector, source: UnannotatedImages, threshold: float,
               process: Callable[[np.ndarray, ImageDetections], T]) -> Iterator[tuple[int, T | None]]:
  """Yield the index of each image and process(pixels, detections), which runs on threads beside the detector.

  In the order of the detector; None for an image that could not be read.
  """
  waiting: collections.deque[tuple[int, Any]] = collections.deque()

  def finish(index: int, make: Callable[[], ImageDetections]) -> T | None:
    pixels = source.take(index)
    return None if pixels is None else process(pixels, make())

  with ThreadPoolExecutor(THREADS, thread_name_prefix='detections') as pool:
    for index, make in detector.detect(source, threshold):
      waiting.append((index, pool.submit(finish, index, make)))
      while len(waiting) > WAITING * detector.batch:
        index, job = waiting.popleft()
        yield index, job.result()
    for index, job in waiting:
      yield index, job.result()


def above(detections: ImageDetections, threshold: float) -> ImageDetections:
  """Keep the detections, sorted by score, with at least this score."""
  count = int((detections.scores >= threshold).sum())
  if count == len(detections.scores):
    return detections
  columns = ('boxes', 'scores', 'classes', 'masks', 'keypoints')
  return detections._replace(best_score=float(detections.scores[0]), **{
    name: getattr(detections, name)[:count] for name in columns if getattr(detections, name) is not None})


def _from_fields(image_id: int, fields: dict[str, np.ndarray], threshold: float) -> ImageDetections:
  masks = None
  if 'masks' in fields:
    rles = (coco_mask.encode(np.asfortranarray(mask)) for mask in fields['masks'])
    masks = [{'size': rle['size'], 'counts': rle['counts'].decode('ascii')} for rle in rles]
  keypoints = fields['keypoints'].astype(np.float64) if 'keypoints' in fields else None
  return above(ImageDetections(image_id, fields['boxes'].astype(np.float64), fields['scores'].astype(np.float64),
                               fields['classes'].astype(np.int64), masks, keypoints), threshold)
