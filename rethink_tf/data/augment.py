"""Resizing, horizontal flip and cropping of a picture with its boxes, masks and keypoints.

All randomness is a hash of (run seed, purpose, epoch, image id): nothing depends on the order in which pictures are
read, on the number of workers or on restarts, and each purpose ('flip', 'scale', ...) has numbers of its own.
"""

import dataclasses

import cv2
import gin
import numpy as np

from rethink_tf.data.buckets import resized_sizes
from rethink_tf.errors import UserError
from rethink_tf.structures import Example

_SLIVER = 1e-6  # cells of a mask: less of one than this is not seen


@gin.register
@dataclasses.dataclass(frozen=True)
class Resize:
  """Short side to `short_side`, long side at most `max_side` (section 4; Detectron).

  Args:
    short_side: one size, or several to draw from (scale jitter: the paper trains at 800 only).
    max_side: largest long side, in pixels.
    from_range: draw any size between the least and the largest short_side, not only the listed ones.

  Raises:
    UserError: sizes that are not positive, or a long side below the short one.
  """

  short_side: int | tuple[int, ...] = (800,)
  max_side: int = 1333
  from_range: bool = False

  def __post_init__(self):
    if not self.short_sides or min(self.short_sides) < 1 or self.max_side < self.largest:
      raise UserError(f'Resize: short_side is {self.short_side} and max_side {self.max_side}; use sizes above 0, '
                      'the long side not below the short ones')

  @property
  def short_sides(self) -> tuple[int, ...]:
    return (self.short_side,) if isinstance(self.short_side, int) else tuple(self.short_side)

  @property
  def largest(self) -> int:
    """The largest short side that is drawn: the buckets are made for it."""
    return max(self.short_sides)

  def sizes(self, sizes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Sizes after resizing, int [N, 2] and one number in [0, 1) for each -> int32 [N, 2]."""
    sides = np.array(self.short_sides)
    if self.from_range:
      sides = np.arange(sides.min(), sides.max() + 1)
    return resized_sizes(sizes, sides[(np.asarray(uniform) * len(sides)).astype(int)], self.max_side)

  def largest_sizes(self, sizes: np.ndarray) -> np.ndarray:
    """Sizes at the largest short side: what the canvas of a picture must hold -> int32 [N, 2]."""
    return resized_sizes(sizes, self.largest, self.max_side)

  def offsets(self, sizes: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Where the canvas begins in resized pictures: their corners, for it holds them whole -> int32 [N, 2]."""
    del y, x
    return np.zeros_like(sizes)


@gin.register
@dataclasses.dataclass(frozen=True)
class LargeScaleJitter:
  """Large-scale jitter: scales of a wide range on one square canvas (Detectron2's later baselines from scratch, its
  configs/new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ.py).

  A picture is fitted to the canvas times a scale drawn from `scales` (there ResizeScale). What is larger than the
  canvas is cut at a random place, what is smaller lies in its corner (there FixedSizeCrop).

  Args:
    side: of the canvas in pixels.
    scales: smallest and largest one.
    tighten: whether the box of a cut object is that of the mask that is left, not merely the old box cut.

  Raises:
    UserError: a side or scales that are not positive, or in the wrong order.
  """

  # Departure: the canvas around a smaller picture is zero after the mean is subtracted and no part of the picture, as
  # for every input here. Detectron2's FixedSizeCrop fills it with 128 before, and what it fills counts as picture:
  # proposals may lie there.
  # Departure: pictures shrink bilinearly between four pixels (OpenCV, as in Detectron). Detectron2 shrinks with Pillow,
  # which averages over all pixels that fall into one: at a scale of 0.1 its pictures are smoother.
  side: int = 1024
  scales: tuple[float, float] = (0.1, 2.0)
  tighten: bool = True

  def __post_init__(self):
    if self.side < 1 or len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
      raise UserError(f'LargeScaleJitter: side is {self.side} and scales {self.scales}; use a side above 0 and two '
                      'scales above 0, the smaller one first')

  @property
  def largest(self) -> int:
    return self.side

  @property
  def max_side(self) -> int:
    return self.side

  def sizes(self, sizes: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Sizes after resizing, before the cut: int [N, 2] and one number in [0, 1) for each -> int32 [N, 2]."""
    low, high = self.scales
    fitted = self.side * (low + (high - low) * np.asarray(uniform)) / np.max(sizes, axis=1)
    return np.maximum(np.rint(sizes * fitted[:, None]), 1).astype(np.int32)

  def largest_sizes(self, sizes: np.ndarray) -> np.ndarray:
    """Sizes at scale 1, by which padding is reported -> int32 [N, 2]."""
    return resized_sizes(sizes, self.side, self.side)

  def offsets(self, sizes: np.ndarray, y: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Where the canvas begins in resized pictures int [N, 2], for numbers in [0, 1) -> int32 [N, 2]."""
    # Departure: each axis has a number of its own. Detectron2's FixedSizeCrop draws one for both, so that its windows
    # lie on a diagonal of the picture.
    places = np.maximum(sizes - self.side, 0) + 1
    return (np.stack([y, x], axis=1) * places).astype(np.int32)


def cut_instances(example: Example, low: np.ndarray, high: np.ndarray, tighten: bool) -> Example:
  """What a window [low, high) (y, x, in pixels, perhaps fractions) shows of the objects, in coordinates of the window.

  The image stays whole. Boxes are cut, masks are the crops of the cut boxes, keypoints outside become unlabelled;
  objects of which nothing is seen are left out. tighten: cut boxes shrink to what is left of the mask.
  """
  corners = np.concatenate([low, low])
  boxes, masks, kept = [], [], []
  for i, (box, mask) in enumerate(zip(example.boxes.astype(np.float64), example.masks, strict=True)):
    cut = np.concatenate([np.maximum(box[:2], low), np.minimum(box[2:], high)])
    if np.any(cut[2:] <= cut[:2]):
      continue
    if np.any(cut != box):
      size = np.tile(box[2:] - box[:2], 2) / len(mask)
      # Departure: what is left of a mask is known to a 112th of its box; Detectron2 cuts the polygon (recompute_boxes).
      cells = _seen(mask, (cut - np.tile(box[:2], 2)) / size)  # of the mask, as numbers of cells
      if cells is None:
        continue
      if not tighten:
        cells = (cut - np.tile(box[:2], 2)) / size
      cut, mask = np.tile(box[:2], 2) + cells * size, _crop_mask(mask, cells)
    kept.append(i)
    boxes.append(cut - corners)
    masks.append(mask)
  keypoints = example.keypoints[kept]
  inside = np.all((keypoints[..., :2] + 0.5 >= low) & (keypoints[..., :2] + 0.5 < high), axis=-1, keepdims=True)
  shifted = np.concatenate([keypoints[..., :2] - low.astype(np.float32), keypoints[..., 2:]], axis=-1)
  return example._replace(
      boxes=np.array(boxes, np.float32).reshape(-1, 4), classes=example.classes[kept],
      masks=np.stack(masks) if masks else example.masks[:0],
      keypoints=np.where(inside & (keypoints[..., 2:] > 0), shifted, 0).astype(np.float32))


def _seen(mask: np.ndarray, window: np.ndarray) -> np.ndarray | None:
  """The part of a window [4], in cells of a mask [C, C], that its object spans; None without any."""
  top, left = np.floor(window[:2] + _SLIVER).astype(int)
  bottom, right = np.ceil(window[2:] - _SLIVER).astype(int)
  rows, columns = (np.flatnonzero(mask[top:bottom, left:right].any(axis)) for axis in (1, 0))
  if not len(rows):
    return None
  spanned = np.array([top + rows[0], left + columns[0], top + rows[-1] + 1, left + columns[-1] + 1], float)
  return np.concatenate([np.maximum(window[:2], spanned[:2]), np.minimum(window[2:], spanned[2:])])


def _crop_mask(mask: np.ndarray, window: np.ndarray) -> np.ndarray:
  """A window [4], in cells of a mask uint8 0/1 [C, C], stretched to [C, C]: bilinear between centres."""
  side = len(mask)
  step = (window[2:] - window[:2]) / side
  start = window[:2] + 0.5 * step - 0.5
  # Column first: OpenCV's x, then its y.
  matrix = np.array([[step[1], 0, start[1]], [0, step[0], start[0]]])
  values = cv2.warpAffine(mask * np.uint8(255), matrix, (side, side), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                          borderMode=cv2.BORDER_REPLICATE)
  return (values >= 128).astype(np.uint8)


def flip_order(names: tuple[str, ...]) -> np.ndarray:
  """Where each keypoint comes from in the mirror: 'left_eye' <-> 'right_eye' -> int [P]."""
  swapped = [name.replace('left', '\0').replace('right', 'left').replace('\0', 'right') for name in names]
  return np.array([names.index(name) if name in names else i for i, name in enumerate(swapped)], int)


def flip(example: Example, order: np.ndarray) -> Example:
  """The mirror image, left for right; `order` [P] is flip_order of the keypoints' names."""
  width = example.image.shape[1]
  return Example(image=cv2.flip(example.image, 1), boxes=flip_boxes(example.boxes, width), classes=example.classes,
                 masks=example.masks[:, :, ::-1], keypoints=flip_keypoints(example.keypoints, width, order))


def flip_boxes(boxes: np.ndarray, width: int) -> np.ndarray:
  """x' = W - x: box sides are continuous coordinates. float32 [n, 4]."""
  return np.stack([boxes[:, 0], width - boxes[:, 3], boxes[:, 2], width - boxes[:, 1]], axis=1)


def flip_keypoints(keypoints: np.ndarray, width: int, order: np.ndarray) -> np.ndarray:
  """x' = W - 1 - x: keypoints are indices of pixel centres. Unlabelled ones stay zero. float32 [n, P, 3]."""
  flipped = keypoints[:, order]  # a copy
  flipped[..., 1] = np.where(flipped[..., 2] > 0, width - 1 - flipped[..., 1], 0)
  return flipped


def resize_boxes(boxes: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """float32 [n, 4] times scale [2] (y, x)."""
  return boxes * np.tile(scale, 2).astype(np.float32)


def resize_keypoints(keypoints: np.ndarray, scale: np.ndarray) -> np.ndarray:
  """Pixel indices under resizing, (x + 0.5) * scale - 0.5, so that flips and resizes commute. float32 [n, P, 3]."""
  resized = keypoints.copy()
  labelled = keypoints[..., 2:] > 0
  resized[..., :2] = np.where(labelled, (keypoints[..., :2] + 0.5) * scale.astype(np.float32) - 0.5, 0)
  return resized


def resize_image(image: np.ndarray, out: np.ndarray) -> None:
  """Bilinear, uint8 to uint8, written in place into `out`, which may be a window of a canvas."""
  height, width = out.shape[:2]
  if image.shape == out.shape:
    out[:] = image
  else:
    cv2.resize(image, (width, height), dst=out, interpolation=cv2.INTER_LINEAR)
