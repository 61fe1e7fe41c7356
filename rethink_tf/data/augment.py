"""Resizing and horizontal flip of a picture with its boxes, masks and keypoints.

All randomness is a hash of (run seed, purpose, epoch, image id): nothing depends on the order in which pictures are
read, on the number of workers or on restarts, and each purpose ('flip', 'scale', ...) has numbers of its own.
"""

import dataclasses
import zlib

import cv2
import gin
import numpy as np

from rethink_tf.data.buckets import resized_sizes
from rethink_tf.data.subset import splitmix64
from rethink_tf.errors import UserError
from rethink_tf.structures import Example


def keyed_bits(seed: int, purpose: str, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Hash of the key, element by element -> uint64, the common shape of `epochs` and `image_ids`."""
  bits = splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
  for word in (np.array([zlib.crc32(purpose.encode())]), np.asarray(epochs), np.asarray(image_ids)):
    bits = splitmix64(bits ^ word.astype(np.int64).view(np.uint64))
  return bits.reshape(np.broadcast_shapes(np.shape(epochs), np.shape(image_ids)))


def keyed_uniform(seed: int, purpose: str, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Uniform float64 in [0, 1), one for each key."""
  return (keyed_bits(seed, purpose, epochs, image_ids) >> np.uint64(11)) * 2.0 ** -53


def keyed_seeds(seed: int, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Keys for TensorFlow's stateless operations, one for each image and epoch -> int32 [N, 2]."""
  bits = np.atleast_1d(keyed_bits(seed, 'image', epochs, image_ids))
  return bits.view(np.int32).reshape(-1, 2)


@gin.register
@dataclasses.dataclass(frozen=True)
class Resize:
  """Short side to `short_side`, long side at most `max_side` (Detectron; recipe, "Data").

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
