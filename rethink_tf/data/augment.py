"""Resizing, horizontal flip and cropping of an image with its boxes, masks and keypoints.

The functions are deterministic: the inputs hand in random numbers that are keyed by run seed, purpose, epoch and image
id (keyed_random.py).
"""

import dataclasses
from typing import ClassVar

import cv2
import gin
import numpy as np

from rethink_tf.data.buckets import ASPECTS, bucket_shapes, resized_sizes
from rethink_tf.errors import UserError
from rethink_tf.structures import NO_MASK, Example

SLIVER = 1e-6  # of a mask cell: a smaller share of a cell counts as not visible


@gin.register
@dataclasses.dataclass(frozen=True)
class Resize:
  """Short side to `short_side`, long side at most `max_side` (section 4; Detectron).

  Args:
    short_side: one size, or several to sample from (scale jitter: the paper trains at 800 only).
    max_side: largest long side, in pixels.
    from_range: sample any size between the smallest and the largest short_side, not only the listed ones.
    scale: factor of all these sizes, as 0.5 for a pre-training at half the resolution of a configuration; None: 1.
    aspects: long side : short side of the padded shapes, beside that of max_side; None: buckets.ASPECTS. Fewer of them
      are fewer shapes that XLA compiles, and more padding.

  Raises:
    UserError: sizes or a scale that are not positive, a long side below the short one, or aspects below 1.
  """

  short_side: int | tuple[int, ...] = (800,)
  max_side: int = 1333
  from_range: bool = False
  scale: float | None = None
  aspects: tuple[float, ...] | None = None

  tighten: ClassVar[bool] = True  # boxes of objects that a mosaic or copy-paste crops; nothing else crops here

  def __post_init__(self) -> None:
    if self.scale is not None:  # the sizes are the scaled ones from here on, also in a copy
      if not 0 < self.scale < 100:
        raise UserError(f'Resize.scale = {self.scale}: use a factor of the sizes, as 0.5')
      for name, value in (('short_side', tuple(round(self.scale * side) for side in self.short_sides)),
                          ('max_side', round(self.scale * self.max_side)), ('scale', None)):
        object.__setattr__(self, name, value)
    if not self.short_sides or min(self.short_sides) < 1 or self.max_side < self.largest:
      raise UserError(f'Resize: short_side is {self.short_side} and max_side {self.max_side}; use sizes above 0 '
                      'and a max_side that is at least the largest short_side')
    if not all(aspect >= 1 for aspect in self.aspects or ()):
      raise UserError(f'Resize.aspects = {self.aspects}: give long side : short side, 1 or more, as (1.0, 1.5)')

  @property
  def short_sides(self) -> tuple[int, ...]:
    """The sizes to sample from."""
    return (self.short_side,) if isinstance(self.short_side, int) else tuple(self.short_side)

  @property
  def largest(self) -> int:
    """Largest short side that is sampled; the padded shapes are made for it."""
    return max(self.short_sides)

  @property
  def padded_shapes(self) -> np.ndarray:
    """int32 [C, 2] height, width, smallest first."""
    return bucket_shapes(self.largest, self.max_side, aspects=ASPECTS if self.aspects is None else self.aspects)

  def sizes(self, sizes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return sizes after resizing: int [N, 2] and one uniform number in [0, 1) for each -> int32 [N, 2]."""
    sides = np.array(self.short_sides)
    if self.from_range:
      sides = np.arange(sides.min(), sides.max() + 1)
    return resized_sizes(sizes, sides[(np.asarray(uniform) * len(sides)).astype(int)], self.max_side)

  def largest_sizes(self, sizes: np.ndarray) -> np.ndarray:
    """Return sizes at the largest short side, which the padded shapes must hold -> int32 [N, 2]."""
    return resized_sizes(sizes, self.largest, self.max_side)

  def offsets(self, sizes: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the origin of the padded shape in each resized image: zeros, it holds the whole image -> int32 [N, 2]."""
    del y, x
    return np.zeros_like(sizes)


@gin.register
@dataclasses.dataclass(frozen=True)
class LargeScaleJitter:
  """Large-scale jitter: a wide range of scales in one square padded shape (Detectron2's later baselines from scratch,
  configs/new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py).

  An image is resized to fit the square times a scale sampled from `scales` (Detectron2's ResizeScale). A larger image
  is cropped at a random position, a smaller one is padded at the bottom and right (FixedSizeCrop).

  Args:
    side: of the square in pixels.
    scales: smallest and largest scale.
    tighten: recompute the box of a cropped object from its remaining mask, instead of clipping the original box.

  Raises:
    UserError: a side or scales that are not positive, or scales in the wrong order.
  """

  # Departure: the padding around a smaller image is zero after the mean is subtracted and does not count as image, as
  # in every input of this package. Detectron2's FixedSizeCrop pads with 128 before normalisation and counts the padding
  # as image: proposals may lie there.
  # Departure: images are downsampled bilinearly from four pixels (OpenCV, as in Detectron). Detectron2 uses Pillow,
  # which averages over all source pixels of a target pixel: at a scale of 0.1 its images are smoother.
  side: int = 1024
  scales: tuple[float, float] = (0.1, 2.0)
  tighten: bool = True

  def __post_init__(self) -> None:
    if self.side < 1 or len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
      raise UserError(f'LargeScaleJitter: side is {self.side} and scales {self.scales}; use a side above 0 and two '
                      'scales above 0, the smaller one first')

  @property
  def largest(self) -> int:
    """Side of the padded shape."""
    return self.side

  @property
  def max_side(self) -> int:
    """Side of the padded shape."""
    return self.side

  @property
  def padded_shapes(self) -> np.ndarray:
    """int32 [1, 2]."""
    return bucket_shapes(self.side, self.side)

  def sizes(self, sizes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Return sizes after resizing, before cropping: int [N, 2], a uniform number in [0, 1) for each -> int32 [N, 2]."""
    low, high = self.scales
    fitted = self.side * (low + (high - low) * np.asarray(uniform)) / np.max(sizes, axis=1)
    return np.maximum(np.rint(sizes * fitted[:, None]), 1).astype(np.int32)

  def largest_sizes(self, sizes: np.ndarray) -> np.ndarray:
    """Return sizes at scale 1, for which padding is reported -> int32 [N, 2]."""
    return resized_sizes(sizes, self.side, self.side)

  def offsets(self, sizes: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Return the origin of the crop in each resized image, int [N, 2], for numbers in [0, 1) -> int32 [N, 2]."""
    # Departure: the two axes use independent random numbers. Detectron2's FixedSizeCrop uses one for both, so that its
    # crops lie on a diagonal of the image.
    positions = np.maximum(sizes - self.side, 0) + 1
    return (np.stack([y, x], axis=1) * positions).astype(np.int32)


def crop_instances(example: Example, low: np.ndarray, high: np.ndarray, tighten: bool, min_visible: float = 0.0
                   ) -> Example:
  """Crop the annotations to a window [low, high) (y, x in pixels, may be fractional), in coordinates of the window.

  The image is not cropped. Boxes are clipped, masks resampled to the clipped boxes, keypoints outside become
  unlabelled; objects of whose mask no more than a fraction `min_visible` remains are dropped. tighten: shrink clipped
  boxes to the remaining mask.
  """
  corners = np.concatenate([low, low])
  boxes, masks, kept = [], [], []
  for i, (box, mask) in enumerate(zip(example.boxes.astype(np.float64), example.masks, strict=True)):
    clipped = np.concatenate([np.maximum(box[:2], low), np.minimum(box[2:], high)])
    if np.any(clipped[2:] <= clipped[:2]):
      continue
    if np.any(clipped != box):
      cell = np.tile(box[2:] - box[:2], 2) / len(mask)
      # Departure: the remaining mask is known to 1/112 of its box; Detectron2 clips the polygon (recompute_boxes).
      window = visible_window(mask, (clipped - np.tile(box[:2], 2)) / cell, min_visible)  # in mask cells
      if window is None:
        continue
      if not tighten:
        window = (clipped - np.tile(box[:2], 2)) / cell
      clipped, mask = np.tile(box[:2], 2) + window * cell, crop_mask(mask, window)
    kept.append(i)
    boxes.append(clipped - corners)
    masks.append(mask)
  keypoints = example.keypoints[kept]
  inside = np.all((keypoints[..., :2] + 0.5 >= low) & (keypoints[..., :2] + 0.5 < high), axis=-1, keepdims=True)
  shifted = np.concatenate([keypoints[..., :2] - low.astype(np.float32), keypoints[..., 2:]], axis=-1)
  return example._replace(
      boxes=np.array(boxes, np.float32).reshape(-1, 4), classes=example.classes[kept],
      masks=np.stack(masks) if masks else example.masks[:0],
      keypoints=np.where(inside & (keypoints[..., 2:] > 0), shifted, 0).astype(np.float32))


def visible_window(mask: np.ndarray, window: np.ndarray, min_visible: float = 0.0) -> np.ndarray | None:
  """Shrink a window [4], in cells of a mask [C, C], to the extent of the object inside it.

  None if no more than a fraction `min_visible` of the object's cells are inside.
  """
  top, left = np.floor(window[:2] + SLIVER).astype(int)
  bottom, right = np.ceil(window[2:] - SLIVER).astype(int)
  inside = mask[top:bottom, left:right]
  x, y, width, height = cv2.boundingRect(inside) if inside.size else (0, 0, 0, 0)
  if not width or (min_visible and np.count_nonzero(inside) <= min_visible * np.count_nonzero(mask)):
    return None
  spanned = np.array([top + y, left + x, top + y + height, left + x + width], float)
  return np.concatenate([np.maximum(window[:2], spanned[:2]), np.minimum(window[2:], spanned[2:])])


def crop_mask(mask: np.ndarray, window: np.ndarray) -> np.ndarray:
  """Resample a window [4], in cells of a mask uint8 0/1 [C, C], to [C, C]: bilinear between cell centres."""
  if mask[0, 0] == NO_MASK:
    return mask
  side = len(mask)
  step = (window[2:] - window[:2]) / side
  start = window[:2] + 0.5 * step - 0.5
  # OpenCV expects x before y.
  matrix = np.array([[step[1], 0, start[1]], [0, step[0], start[0]]])
  values = cv2.warpAffine(mask * np.uint8(255), matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REPLICATE)
  return (values >= 128).astype(np.uint8)


def flip(example: Example, order: np.ndarray) -> Example:
  """Flip an example horizontally; order: flip_order of the keypoint names [P], or flip_orders of the classes [K, P].

  Its image and masks are views, of which `contiguous` copies what is needed.
  """
  width = example.image.shape[1]
  order = order if order.ndim == 1 else order[example.classes - 1]
  return Example(image=example.image[:, ::-1], boxes=flip_boxes(example.boxes, width), classes=example.classes,
                 masks=example.masks[:, :, ::-1], keypoints=flip_keypoints(example.keypoints, width, order))


def contiguous(image: np.ndarray) -> np.ndarray:
  """Return an image, or a part of one, in which a row's pixels follow each other in memory, also after `flip`.

  OpenCV accepts others, and takes ten times as long to copy them.
  """
  return image if image.strides[1] > 0 else cv2.flip(image[:, ::-1], 1)


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
  """Flip boxes float32 [n, 4]: x' = W - x, since box edges are continuous coordinates."""
  return np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], axis=1)


def flip_keypoints(keypoints: np.ndarray, width: int, order: np.ndarray) -> np.ndarray:
  """Flip keypoints float32 [n, P, 3]: x' = W - 1 - x, indices of pixel centres. Unlabelled ones stay zero.

  order: source index of each keypoint, int [P] or [n, P].
  """
  if not keypoints.size:
    return keypoints
  order = np.broadcast_to(order, keypoints.shape[:2])
  flipped = np.take_along_axis(keypoints, order[..., None], axis=1)  # a copy
  flipped[..., 1] = np.where(flipped[..., 2] > 0, width - 1 - flipped[..., 1], 0)
  return flipped


def resize_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Scale boxes float32 [n, 4] by scale [2] (y, x)."""
  return (boxes.reshape(-1, 2, 2) * scale.astype(np.float32)).reshape(-1, 4)  # faster than np.tile


def resize_keypoints(keypoints: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Scale keypoints float32 [n, P, 3]: (x + 0.5) * scale - 0.5, so that flip and resize commute."""
  if not keypoints.size:
    return keypoints
  resized = keypoints.copy()
  labelled = keypoints[..., 2:] > 0
  resized[..., :2] = np.where(labelled, (keypoints[..., :2] + 0.5) * scale.astype(np.float32) - 0.5, 0)
  return resized


def resize_image(image: np.ndarray, out: np.ndarray) -> None:
  """Resize a uint8 image bilinearly into `out`, which may be a window of a batch."""
  height, width = out.shape[:2]
  if image.shape == out.shape:
    out[:] = image
  else:
    cv2.resize(contiguous(image), (width, height), dst=out, interpolation=cv2.INTER_LINEAR)


def resize_window(image: np.ndarray, out: np.ndarray, size: np.ndarray, offset: np.ndarray) -> None:
  """Resize a uint8 image to `size` and write what is visible of it from `offset` (y, x) on into `out`."""
  if tuple(out.shape[:2]) == tuple(size.tolist()):
    resize_image(image, out)
    return
  top, left = offset.tolist()
  whole = np.empty([*size.tolist(), 3], np.uint8)
  resize_image(image, whole)
  out[:] = whole[top:top + out.shape[0], left:left + out.shape[1]]
