"""Batches for image classification: random scale and aspect crops to train, the standard centre crop to evaluate.

A source here has name, image_ids [N], classes int32 [N, T] padded with -1, categories, and load(i) -> uint8 RGB.
Randomness is keyed by run seed, purpose, epoch and image id, as in augment.py.
"""

import math
from collections.abc import Sequence
from typing import Any

import cv2
import gin
import numpy as np
import tensorflow as tf

from rethink_tf.data.batching import GREY, WHOLE, BatchedInput, Part, StepFacts, aligned_zeros, every_nth
from rethink_tf.data.keyed_random import keyed_bits
from rethink_tf.data.sampler import SamplingPlan
from rethink_tf.errors import UserError
from rethink_tf.structures import LabelledImages

_ATTEMPTS = 10  # to place a crop of the drawn area and aspect
_LONGEST = 8  # times the short side: what lies further out is never in a centre crop
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)
# Principal components of ImageNet's colours, RGB in 0..1 (Krizhevsky et al. 2012, section 4.1).
_COLOUR_DEVIATIONS = np.array([0.2175, 0.0188, 0.0045])
_COLOUR_AXES = np.array([[-0.5675, 0.7192, 0.4009], [-0.5808, -0.0045, -0.8140], [-0.5836, -0.6948, 0.4203]])


class _CropInput(BatchedInput):
  """What training and evaluation share: the batch's shape, and its rows."""

  def __init__(self, source: Any, batch_size: int, crop_size: int, max_unreadable: float, workers: int | None):
    if crop_size < 1:
      raise UserError(f'{type(self).__name__}: crop_size is {crop_size}; use 1 or more')
    self.crop_size = crop_size
    super().__init__(source, batch_size, max_unreadable, workers)

  def _signature(self) -> LabelledImages:
    b, s = self.batch_size, self.crop_size
    return LabelledImages(
        images=tf.TensorSpec([b, s, s, 3], tf.uint8), image_sizes=tf.TensorSpec([b, 2], tf.float32),
        image_ids=tf.TensorSpec([b], tf.int64), classes=tf.TensorSpec([b, self.source.classes.shape[1]], tf.int32))

  def _empty_batch(self, rows: int) -> LabelledImages:
    """Zeros; rows that stay so have image_id -1 and no label."""
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
    area: share of the picture's area that a crop covers, drawn uniformly.
    aspect: width / height of a crop, drawn uniformly in its logarithm.
    flip: mirror each image with probability 0.5, anew in each epoch.
    colour_jitter: brightness, contrast and saturation are multiplied by 1 - c .. 1 + c, in random order; 0 is off.
    lighting: deviation of AlexNet's noise along the principal colours; 0 is off, 0.1 is customary.
    max_unreadable: share of unreadable pictures that is put up with. One that cannot be read is replaced by the next
      one of the source, the same in every run.
    workers: threads that read pictures; None is one per core.

  Raises:
    UserError: no images, or an argument out of range.
  """

  def __init__(self, source: Any, batch_size: int = 256, seed: int = 0, crop_size: int = 224,
               area: Sequence[float] = (0.08, 1.0), aspect: Sequence[float] = (3 / 4, 4 / 3), flip: bool = True,
               colour_jitter: float = 0.0, lighting: float = 0.0, max_unreadable: float = 0.1,
               workers: int | None = None):
    super().__init__(source, batch_size, crop_size, max_unreadable, workers)
    if seed < 0:
      raise UserError(f'ClassificationTrainInput: seed is {seed}; use 0 or more')
    if not (0 < area[0] <= area[1] <= 1 and 0 < aspect[0] <= aspect[1]):
      raise UserError(f'ClassificationTrainInput: area is {tuple(area)} and aspect {tuple(aspect)}; use a least and a '
                      'largest value above 0, an area of at most 1')
    if not 0 <= colour_jitter < 1 or lighting < 0:
      raise UserError(f'ClassificationTrainInput: colour_jitter is {colour_jitter} and lighting {lighting}; use 0 '
                      '(off) or more, colour_jitter below 1')
    self.seed, self.flip = seed, flip
    self.area, self.aspect = tuple(area), tuple(aspect)
    self.colour_jitter, self.lighting = colour_jitter, lighting
    self.plan = SamplingPlan(np.zeros(len(source.image_ids), np.int8), batch_size, seed)

  def dataset(self, start_step: int = 0, context: tf.distribute.InputContext | None = None) -> tf.data.Dataset:
    """Batches of steps start_step, start_step + 1, ...: the same whether the run began there or before.

    With a context, of `strategy.distribute_datasets_from_function`, the parts of this host's replicas in turn.
    """
    return self._endless(start_step, context)

  def batch(self, step: int, part: Part = WHOLE) -> LabelledImages:
    """The batch of a training step, a pure function of seed and step, as long as the same pictures can be read."""
    planned = self.plan[step]
    rows = part.rows(self.batch_size)
    indices, epochs = planned.indices[rows], planned.epochs[rows]
    batch = self._empty_batch(len(indices))

    def fill(row: int, index: int) -> None:
      found, image = self._readable(index)
      self._label(batch, row, found)
      batch.images[row] = self.augmented(image, int(epochs[row]), int(batch.image_ids[row]))

    self._together(fill, indices)
    return batch

  def facts(self, step: int) -> StepFacts:
    """What the batch of a step holds, without reading it: an instance is an image."""
    pixels = self.batch_size * self.crop_size ** 2
    return StepFacts(epoch=self.plan.epoch(step), image_ids=self.source.image_ids[self.plan[step].indices],
                     instances=self.batch_size, pixels=pixels, padded_pixels=pixels)

  def augmented(self, image: np.ndarray, epoch: int, image_id: int) -> np.ndarray:
    """One picture, uint8 [h, w, 3], as it comes in an epoch -> uint8 [crop_size, crop_size, 3]."""
    def chance(purpose: str) -> np.random.Generator:
      key = int(keyed_bits(self.seed, purpose, np.array([epoch]), np.array([image_id]))[0])
      return np.random.Generator(np.random.Philox(key=[key, 0]))

    y, x, height, width = random_crop(image.shape[:2], self.area, self.aspect, chance('crop'))
    crop = resized(image[y:y + height, x:x + width], self.crop_size, self.crop_size)
    if self.flip and chance('flip').random() < 0.5:
      crop = crop[:, ::-1]
    if self.colour_jitter:
      crop = jittered(crop, self.colour_jitter, chance('colour'))
    if self.lighting:
      crop = lit(crop, chance('lighting').normal(0, self.lighting, 3))
    return crop

  def _readable(self, index: int) -> tuple[int, np.ndarray]:
    """The picture, or the next one of the source that can be read."""
    count = len(self.source.image_ids)
    for other in range(index, index + count):
      image = self._load(other % count, 'another image takes its place')
      if image is not None:
        return other % count, image
    raise UserError(f'{self.source.name}: none of its {count} images can be read')


@gin.register
class ClassificationEvalInput(_CropInput):
  """Every image once, its standard centre crop: short side to `short_side`, the middle `crop_size` square.

  The last batch is filled up with rows of image_id -1. A picture that cannot be read is a grey one, which counts.

  Args: short_side in pixels; others as in ClassificationTrainInput.

  Raises:
    UserError: no images, or a crop larger than the short side.
  """

  def __init__(self, source: Any, batch_size: int = 32, crop_size: int = 224, short_side: int = 256,
               max_unreadable: float = 0.1, workers: int | None = None):
    super().__init__(source, batch_size, crop_size, max_unreadable, workers)
    if crop_size > short_side:
      raise UserError(f'ClassificationEvalInput: crop_size is {crop_size} and short_side {short_side}; use a crop that '
                      'is not larger')
    self.short_side = short_side

  @property
  def num_batches(self) -> int:
    return -(-len(self.source.image_ids) // self.batch_size)

  def dataset(self, share: tuple[int, int] = (0, 1)) -> tf.data.Dataset:
    """All batches, in the order of the source; with a share (k, n) every n-th from k on, for worker k of n."""
    return self._dataset(every_nth(self.num_batches, share))

  def batch(self, step: int) -> LabelledImages:
    """Batch number `step` of num_batches."""
    first = step * self.batch_size
    batch = self._empty_batch(self.batch_size)

    def fill(row: int, index: int) -> None:
      self._label(batch, row, index)
      image = self._load(index, 'a grey one is scored in its place')
      batch.images[row] = GREY if image is None else centre_crop(image, self.short_side, self.crop_size)

    self._together(fill, np.arange(first, min(first + self.batch_size, len(self.source.image_ids))))
    return batch


def random_crop(size: Sequence[int], area: Sequence[float], aspect: Sequence[float],
                chance: np.random.Generator) -> tuple[int, int, int, int]:
  """A window of random area, aspect and place in a picture of (height, width) -> y, x, height, width.

  The first of ten draws that fits. Where none does (a panorama), the middle, at the nearest aspect in range.
  """
  height, width = size
  for share, turn, *place in chance.random((_ATTEMPTS, 4)):
    pixels = height * width * (area[0] + (area[1] - area[0]) * share)
    ratio = math.exp(math.log(aspect[0]) + math.log(aspect[1] / aspect[0]) * turn)
    w, h = round(math.sqrt(pixels * ratio)), round(math.sqrt(pixels / ratio))
    if 0 < w <= width and 0 < h <= height:
      return int(place[0] * (height - h + 1)), int(place[1] * (width - w + 1)), h, w
  w, h = min(width, max(1, round(height * aspect[1]))), min(height, max(1, round(width / aspect[0])))
  return (height - h) // 2, (width - w) // 2, h, w


def centre_crop(image: np.ndarray, short_side: int, crop_size: int) -> np.ndarray:
  """Short side to `short_side`, then the middle square: uint8 [h, w, 3] -> [crop_size, crop_size, 3]."""
  image = _middle(image, _LONGEST * min(image.shape[:2]))  # a line of 1 x 65,500 pixels would become gigabytes
  height, width = (max(short_side, int(side * short_side / min(image.shape[:2]))) for side in image.shape[:2])
  return _middle(resized(image, height, width), crop_size)


def _middle(image: np.ndarray, side: int) -> np.ndarray:
  height, width = (min(side, extent) for extent in image.shape[:2])
  y, x = (image.shape[0] - height) // 2, (image.shape[1] - width) // 2
  return image[y:y + height, x:x + width]


def resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
  """Mean of areas when a picture shrinks, so that nothing aliases, bilinear when it grows. uint8 to uint8."""
  shrinks = height * width < image.shape[0] * image.shape[1]
  return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def jittered(image: np.ndarray, strength: float, chance: np.random.Generator) -> np.ndarray:
  """Brightness, contrast and saturation times a factor of 1 - strength .. 1 + strength each, in random order."""
  x = image.astype(np.float32)
  for kind, factor in zip(chance.permutation(3), chance.uniform(1 - strength, 1 + strength, 3), strict=True):
    grey = 0.0 if kind == 0 else (x @ _LUMA)[..., None]
    x = x * factor + (1 - factor) * (grey.mean() if kind == 1 else grey)
    x = np.clip(x, 0, 255)
  return np.rint(x).astype(np.uint8)


def lit(image: np.ndarray, amounts: np.ndarray) -> np.ndarray:
  """Adds AlexNet's colour noise, `amounts` [3] in units of the principal deviations."""
  shift = 255 * _COLOUR_AXES @ (_COLOUR_DEVIATIONS * amounts)
  return np.clip(np.rint(image + shift), 0, 255).astype(np.uint8)
