"""Inputs for image classification: random scale and aspect crops for training, the standard centre crop for evaluation.

Sources have name, image_ids [N], classes int32 [N, T] padded with -1, categories, and load(i) -> uint8 RGB. Random
numbers are keyed by run seed, purpose, epoch and image id (keyed_random.py).
"""

import math
from collections.abc import Sequence

import cv2
import gin
import numpy as np
import tensorflow as tf

from rethink_tf.data.batching import (
  GREY,
  WHOLE_BATCH,
  BatchedInput,
  BatchShare,
  EachImageOnce,
  StepFacts,
  aligned_zeros,
)
from rethink_tf.data.keyed_random import keyed_generator
from rethink_tf.data.sampler import SamplingPlan
from rethink_tf.errors import UserError
from rethink_tf.structures import LabelledImages, Source

_ATTEMPTS = 10  # samples of area and aspect, until a crop fits
_MAX_ASPECT = 8  # long side : short side; pixels further out are never part of a centre crop
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Principal components of ImageNet's colours, RGB in 0..1 (Krizhevsky et al. 2012, section 4.1).
_COLOUR_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])
_COLOUR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class _CropInput(BatchedInput):
  """Base class for training and evaluation: the shape of a batch, and its rows."""

  def __init__(self, source: Source, batch_size: int, crop_size: int, max_unreadable: float, workers: int | None):
    if crop_size < 1:
      raise UserError(f'{type(self).__name__}: crop_size is {crop_size}; use 1 or more')
    if not hasattr(source, 'classes'):
      raise UserError(f'{type(self).__name__}: the configuration is that of a classifier, and {source.name} has no '
                      'class of each image: predict and export need the run of a detector, pre-training a source such '
                      'as image_folder (gin_configs/pretraining)')
    self.crop_size = crop_size
    super().__init__(source, batch_size, max_unreadable, workers)

  def _signature(self) -> LabelledImages:
    b, s = self.batch_size, self.crop_size
    return LabelledImages(
        images=tf.TensorSpec([b, s, s, 3], tf.uint8), image_sizes=tf.TensorSpec([b, 2], tf.float32),
        image_ids=tf.TensorSpec([b], tf.int64), classes=tf.TensorSpec([b, self.source.classes.shape[1]], tf.int32))

  def _empty_batch(self, rows: int) -> LabelledImages:
    """Return a batch of zeros with image_id -1 and without labels."""
    batch = LabelledImages(*(aligned_zeros([rows, *one.shape[1:]], one.dtype.as_numpy_dtype) for one in self._spec))
    batch.image_sizes[:] = self.crop_size
    batch.image_ids[:] = batch.classes[:] = -1
    return batch

  def _label(self, batch: LabelledImages, row: int, index: int) -> None:
    batch.image_ids[row] = self.source.image_ids[index]
    batch.classes[row] = self.source.classes[index]


@gin.register
class ClassificationTrainInput(_CropInput):
  """Endless training batches: scale and aspect crop, horizontal flip (Szegedy et al. 2015; Goyal et al., section 5.1).

  Args:
    source: constructed with training=True.
    batch_size: of the global batch.
    seed: of order and augmentation.
    crop_size: side of the crop after resizing.
    area: range of the fraction of the image area that a crop covers, sampled uniformly.
    aspect: range of width / height of a crop, sampled log-uniformly.
    flip: flip each image horizontally with probability 0.5, sampled again in each epoch.
    colour_jitter: brightness, contrast and saturation are multiplied by 1 - c .. 1 + c, in random order; 0 is off.
    lighting: standard deviation of AlexNet's colour noise along the principal components; 0 is off, 0.1 is usual.
    max_unreadable: tolerated fraction of missing and unreadable images; one always is, unless this is 0. An unreadable
      image is replaced by the next one of the source, the same in every run.
    workers: threads that read images; None is one per core.

  Raises:
    UserError: no images, or an argument out of range.
  """

  def __init__(self, source: Source, batch_size: int = 256, seed: int = 0, crop_size: int = 224,
               area: tuple[float, float] = (0.08, 1.0), aspect: tuple[float, float] = (3 / 4, 4 / 3), flip: bool = True,
               colour_jitter: float = 0.0, lighting: float = 0.0, max_unreadable: float = 0.1,
               workers: int | None = None):
    super().__init__(source, batch_size, crop_size, max_unreadable, workers)
    if seed < 0:
      raise UserError(f'ClassificationTrainInput: seed is {seed}; use 0 or more')
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
      raise UserError(f'ClassificationTrainInput: area is {tuple(area)} and aspect {tuple(aspect)}; use a '
                      'minimum and a maximum above 0, an area of at most 1')
    if not 0 <= colour_jitter < 1 or lighting < 0:
      raise UserError(f'ClassificationTrainInput: colour_jitter is {colour_jitter} and lighting {lighting}; use 0 '
                      '(off) or more, colour_jitter below 1')
    self.seed, self.flip = seed, flip
    self.area, self.aspect = tuple(area), tuple(aspect)
    self.colour_jitter, self.lighting = colour_jitter, lighting
    self.plan = SamplingPlan(np.zeros(len(source.image_ids), np.int8), batch_size, seed)

  def dataset(self, start_step: int = 0, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    """Return batches of steps start_step, start_step + 1, ...: the same in a resumed run as in an uninterrupted one.

    With a context of `strategy.distribute_datasets_from_function`, yields the shares of this host's replicas in turn.
    """
    return self._endless(start_step, context)

  def batch(self, step: int, share: BatchShare = WHOLE_BATCH) -> LabelledImages:
    """Return the batch of a training step: a pure function of seed and step, if the same images are readable."""
    planned = self.plan[step]
    rows = share.rows(self.batch_size)
    indices, epochs = planned.indices[rows], planned.epochs[rows]
    batch = self._empty_batch(len(indices))

    def fill(row: int, index: int) -> None:
      used, image = self._readable(index)
      self._label(batch, row, used)
      batch.images[row] = self.augment(image, int(epochs[row]), int(batch.image_ids[row]))

    self._fill_rows(fill, indices)
    return batch

  def facts(self, step: int) -> StepFacts:
    """Describe the batch of a step without reading its images; every image counts as one instance."""
    pixels = self.batch_size * self.crop_size ** 2
    return StepFacts(epoch=self.plan.epoch(step), image_ids=self.source.image_ids[self.plan[step].indices],
                     instances=self.batch_size, pixels=pixels, padded_shape=(self.crop_size,) * 2)

  def augment(self, image: np.ndarray, epoch: int, image_id: int) -> np.ndarray:
    """Crop, flip and colour-jitter an image uint8 [h, w, 3] for an epoch -> uint8 [crop_size, crop_size, 3]."""
    def generator(purpose: str) -> np.random.Generator:
      return keyed_generator(self.seed, purpose, epoch, image_id)

    y, x, height, width = random_crop(image.shape[:2], self.area, self.aspect, generator('crop'))
    crop = resize(image[y:y + height, x:x + width], self.crop_size, self.crop_size)
    if self.flip and generator('flip').random() < 0.5:
      crop = crop[:, ::-1]
    if self.colour_jitter:
      crop = jitter_colours(crop, self.colour_jitter, generator('colour'))
    if self.lighting:
      crop = add_lighting(crop, generator('lighting').normal(0, self.lighting, 3))
    return crop

  def _readable(self, index: int) -> tuple[int, np.ndarray]:
    """Return an image and its index, or the next readable one of the source."""
    count = len(self.source.image_ids)
    for other in range(index, index + count):
      image = self._load(other % count, 'it is replaced by another image')
      if image is not None:
        return other % count, image
    raise UserError(f'{self.source.name}: none of its {count} images can be read')


@gin.register
class ClassificationEvalInput(EachImageOnce, _CropInput):
  """Every image once, as the standard centre crop: short side to `short_side`, then the central `crop_size` square.

  The last batch is filled up with rows of image_id -1. An unreadable image is replaced by a grey one, which
  evaluators leave out.

  Args: short_side in pixels; others as in ClassificationTrainInput.

  Raises:
    UserError: no images, or a crop larger than the short side.
  """

  def __init__(self, source: Source, batch_size: int = 32, crop_size: int = 224, short_side: int = 256,
               max_unreadable: float = 0.1, workers: int | None = None):
    super().__init__(source, batch_size, crop_size, max_unreadable, workers)
    if crop_size > short_side:
      raise UserError(f'ClassificationEvalInput: crop_size is {crop_size} and short_side {short_side}; use a '
                      'crop_size of at most short_side')
    self.short_side = short_side
    self.num_batches = -(-len(self.source.image_ids) // self.batch_size)

  def batch(self, step: int) -> LabelledImages:
    """Return batch number `step` of num_batches."""
    first = step * self.batch_size
    batch = self._empty_batch(self.batch_size)

    def fill(row: int, index: int) -> None:
      self._label(batch, row, index)
      image = self._load(index, 'it is not scored')
      batch.images[row] = GREY if image is None else centre_crop(image, self.short_side, self.crop_size)

    self._fill_rows(fill, np.arange(first, min(first + self.batch_size, len(self.source.image_ids))))
    return batch


def random_crop(size: Sequence[int], area: Sequence[float], aspect: Sequence[float],
                rng: np.random.Generator) -> tuple[int, int, int, int]:
  """Sample a crop of random area, aspect and position in an image of (height, width) -> y, x, height, width.

  Returns the first of ten samples that fits. If none fits, the central crop at the nearest aspect in range.
  """
  height, width = size
  for u, v, *position in rng.random((_ATTEMPTS, 4)):
    pixels = height * width * (area[0] + (area[1] - area[0]) * u)
    ratio = math.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * v)
    w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if 0 < w <= width and 0 < h <= height:
      return int(position[0] * (height - h + 1)), int(position[1] * (width - w + 1)), h, w
  w, h = min(width, max(1, round(height * aspect[1]))), min(height, max(1, round(width / aspect[0])))
  return (height - h) // 2, (width - w) // 2, h, w


def centre_crop(image: np.ndarray, short_side: int, crop_size: int) -> np.ndarray:
  """Resize the short side to `short_side` and crop the central square: uint8 [h, w, 3] -> [crop_size, crop_size, 3]."""
  image = _crop_centre(image, _MAX_ASPECT * min(image.shape[:2]))  # 1 x 65,500 pixels would be resized to gigabytes
  height, width = (max(short_side, int(side * short_side / min(image.shape[:2]))) for side in image.shape[:2])
  return _crop_centre(resize(image, height, width), crop_size)


def _crop_centre(image: np.ndarray, side: int) -> np.ndarray:
  height, width = (min(side, extent) for extent in image.shape[:2])
  y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return image[y:y + height, x:x + width]


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Resize a uint8 image: by area averaging when it shrinks, against aliasing, bilinearly when it grows."""
  shrinks = height * width < image.shape[0] * image.shape[1]
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def jitter_colours(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
  """Multiply brightness, contrast and saturation by a factor of 1 - strength .. 1 + strength each, in random order."""
  x = image.astype(np.float32)
  for kind, factor in zip(rng.permutation(3), rng.uniform(1 - strength, 1 + strength, 3), strict=True):
    grey = 0.0 if kind == 0 else (x @ _LUMA)[..., None]
    x = x * factor + (1 - factor) * (grey.mean() if kind == 1 else grey)
    x = np.clip(x, 0, 255)
  return np.rint(x).astype(np.uint8)


def add_lighting(image: np.ndarray, amounts: np.ndarray) -> np.ndarray:
  """Add AlexNet's colour noise; `amounts` [3] are in standard deviations of the principal components."""
  shift = 255 * _COLOUR_AXES @ (_COLOUR_DEVIATIONS * amounts)
  return np.clip(np.rint(image + shift), 0, 255).astype(np.uint8)
