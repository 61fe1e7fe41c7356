"""Augmentations that join several images: copy-paste and mosaic.

Both get the images resized, flipped and cropped as any other, and join them in the padded shape. What is random comes
from a generator that the input keys by run seed, epoch and image id (keyed_random.py).
"""

import dataclasses
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import cv2
import gin
import numpy as np

from rethink_tf.data import augment
from rethink_tf.data.batching import GREY
from rethink_tf.errors import UserError
from rethink_tf.structures import NO_MASK, Example


class Window(NamedTuple):
  """The visible window of a resized image, and where it lies in the padded shape; int [2], y and x."""

  size: np.ndarray  # of the whole resized image
  offset: np.ndarray  # of the window in it
  visible: np.ndarray  # size of the window
  position: np.ndarray  # of the window in the padded shape

  @property
  def slices(self) -> tuple[slice, slice]:
    """Rows and columns of the padded shape."""
    (top, left), (height, width) = self.position.tolist(), self.visible.tolist()
    return slice(top, top + height), slice(left, left + width)


@gin.register
@dataclasses.dataclass(frozen=True)
class CopyPaste:
  """Simple copy-paste (Ghiasi et al. 2021): objects of another image, with a scale and flip of their own, are pasted.

  A random number of the other image's objects, from none to all, is chosen. What they cover is cut from the masks of
  the objects below, whose boxes shrink to what is visible. Crowds, and objects whose mask is not known, are never
  pasted. A keypoint that is covered is marked as not visible.

  Args:
    probability: that anything is pasted into an image.
    max_pasted: largest number of pasted objects.
    min_visible: fraction of its mask of which an object must keep more when others are pasted over it; else it is left
      out, as an object of no more than 1 / 112 of its box is.

  Raises:
    UserError: a value out of range.
  """

  # Departure: Ghiasi et al. drop an object when less than 300 pixels remain and its box has moved by more than 10
  # (at 1024 x 1024), and keep the box of one that moved by less. A fraction holds for any image size.
  # Departure: the outline of a pasted object is known to 1/112 of its box, as every mask that the network is trained
  # on, and pixels are not blended at it (nor are they in the published code of Ghiasi et al.).
  # Departure: the other image is the next one of the batch, so that no image is read twice, instead of a random one of
  # the data set. Batches are shuffled in each epoch.
  probability: float = 1.0
  max_pasted: int = 100
  min_visible: float = 0.1

  others: ClassVar[int] = 1
  needs_masks: ClassVar[bool] = True

  def __post_init__(self) -> None:
    _check_fractions(self, 'probability', 'min_visible')
    if self.max_pasted < 1:
      raise UserError(f'CopyPaste.max_pasted = {self.max_pasted}: use 1 or more')

  def extents(self, visible: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return the sizes of mixed images, int [N, 2], whose images have visible windows [N, 2 images, 2].

    Objects may be pasted beside a small image, as in the square of large-scale jitter.
    """
    del shape
    return visible.max(axis=1)

  def windows(self, sizes: np.ndarray, offsets: np.ndarray, shape: np.ndarray, rng: np.random.Generator
              ) -> list[Window]:
    """Return the windows of both images: at the origin of the padded shape, cropped to it."""
    del rng
    return [Window(size, offset, np.minimum(size, shape), np.zeros(2, np.int32))
            for size, offset in zip(sizes, offsets, strict=True)]

  def join(self, out: np.ndarray, scratch: np.ndarray, examples: Sequence[Example], windows: Sequence[Window],
           tighten: bool, rng: np.random.Generator) -> Example:
    """Write the mixed image into `out`, uint8 [h, w, 3] of its size; return its instances in pixels of `out`.

    scratch: uint8 [H, W, 3] of the padded shape, overwritten. tighten: as for augment.crop_instances.
    """
    own, other = (place(*pair, tighten) for pair in zip(examples, windows, strict=True))
    height, width = windows[0].visible.tolist()
    out[height:] = out[:height, width:] = GREY
    augment.resize_window(examples[0].image, out[windows[0].slices], *windows[0][:2])
    region = np.zeros(out.shape[:2], np.uint8)
    pasted = [i for i in self._choose(other.masks, rng) if _draw_mask(region, other.masks[i], other.boxes[i])]
    if not pasted:
      return own
    augment.resize_window(examples[1].image, scratch[windows[1].slices], *windows[1][:2])
    rows, columns = _hull(other.boxes[pasted], region.shape)
    cv2.copyTo(scratch[rows, columns], region[rows, columns], out[rows, columns])
    return concatenate([occlude(own, region, self.min_visible), select(other, pasted)])

  def _choose(self, masks: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Choose a random number of the instances with known masks [n, C, C] -> their indices, ascending."""
    known = np.flatnonzero(masks[:, 0, 0] != NO_MASK)
    count = min(int(rng.integers(0, len(known) + 1)), self.max_pasted)
    return sorted(rng.permutation(known)[:count].tolist())


@gin.register
@dataclasses.dataclass(frozen=True)
class Mosaic:
  """Mosaic of four images that meet at a random point of the padded shape (Bochkovskiy et al. 2020; YOLOv5).

  Each image touches the point with one corner and is cropped to its quadrant. What no image covers is grey.

  Args:
    probability: that an image becomes a mosaic.
    centre: range of the point in fractions of the padded shape, for both axes.
    scales: range of a factor on the size that `resize` samples for each image.
    min_visible: fraction of its mask that an object must keep when it is cropped; else it is left out.

  Raises:
    UserError: a value out of range.
  """

  # Departure: YOLOv5 joins four images in a square of twice the side and crops, scales and shifts it; here the padded
  # shape itself is the mosaic, and each image has a scale of its own.
  probability: float = 1.0
  centre: tuple[float, float] = (0.25, 0.75)
  scales: tuple[float, float] = (0.5, 1.5)
  min_visible: float = 0.1

  others: ClassVar[int] = 3
  needs_masks: ClassVar[bool] = False

  def __post_init__(self) -> None:
    _check_fractions(self, 'probability', 'min_visible')
    if len(self.centre) != 2 or not 0 < self.centre[0] <= self.centre[1] < 1:
      raise UserError(f'Mosaic.centre = {self.centre}: use two fractions between 0 and 1, the smaller one first')
    if len(self.scales) != 2 or not 0 < self.scales[0] <= self.scales[1]:
      raise UserError(f'Mosaic.scales = {self.scales}: use two scales above 0, the smaller one first')

  def extents(self, visible: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Return the sizes of mosaics, int [N, 2]: the padded shape."""
    return np.broadcast_to(shape, [len(visible), 2])

  def windows(self, sizes: np.ndarray, offsets: np.ndarray, shape: np.ndarray, rng: np.random.Generator
              ) -> list[Window]:
    """Return the windows of the images top left, top right, bottom left and bottom right of a random point."""
    del offsets
    point = np.clip(np.rint(rng.uniform(*self.centre, 2) * shape), 1, shape - 1).astype(np.int32)
    factors = rng.uniform(*self.scales, 4)
    windows = []
    for k, size in enumerate(np.maximum(np.rint(sizes * factors[:, None]), 1).astype(np.int32)):
      after = np.array([k // 2, k % 2])  # 0 before the point, 1 after it
      visible = np.minimum(size, np.where(after, shape - point, point))
      windows.append(Window(size, np.where(after, 0, size - visible), visible, np.where(after, point, point - visible)))
    return windows

  def join(self, out: np.ndarray, scratch: np.ndarray, examples: Sequence[Example], windows: Sequence[Window],
           tighten: bool, rng: np.random.Generator) -> Example:
    """Write the mosaic into `out`, uint8 [H, W, 3]; return its instances in pixels of `out`."""
    del scratch, rng
    out[:] = GREY
    for example, window in zip(examples, windows, strict=True):
      augment.resize_window(example.image, out[window.slices], *window[:2])
    return concatenate([place(*pair, tighten, self.min_visible) for pair in zip(examples, windows, strict=True)])


def place(example: Example, window: Window, tighten: bool, min_visible: float = 0.0) -> Example:
  """Return the instances of an example in pixels of the padded shape; the image is not changed."""
  scale = window.size / example.image.shape[:2]
  if np.any(window.visible < window.size):
    low, high = window.offset / scale, (window.offset + window.visible) / scale
    example = augment.crop_instances(example, low, high, tighten, min_visible)
  keypoints = augment.resize_keypoints(example.keypoints, scale)
  keypoints[..., :2] += np.where(keypoints[..., 2:] > 0, window.position, 0)
  boxes = augment.resize_boxes(example.boxes, scale) + np.tile(window.position, 2).astype(np.float32)
  return example._replace(boxes=boxes, keypoints=keypoints)


def occlude(example: Example, region: np.ndarray, min_visible: float) -> Example:
  """Remove what a region of the image, uint8 [H, W], covers from the instances, in the same pixels.

  Masks lose their covered cells, boxes the sides at which nothing of the mask is left. An instance is dropped if no
  more than `min_visible` of its mask remains. A covered keypoint counts as labelled, not visible.
  """
  boxes, masks, kept = example.boxes.copy(), example.masks.copy(), []
  for i, box in enumerate(example.boxes):
    seen = _uncover(example.masks[i], box.astype(np.float64), region, min_visible)
    if seen is not None:
      boxes[i], masks[i] = seen
      kept.append(i)
  keypoints = example.keypoints.copy()
  last = np.array(region.shape) - 1
  y, x = np.moveaxis(np.clip(np.rint(keypoints[..., :2]), 0, last).astype(int), -1, 0)  # [n, P]
  keypoints[..., 2] = np.where((region[y, x] > 0) & (keypoints[..., 2] > 1), 1, keypoints[..., 2])
  return select(example._replace(boxes=boxes, masks=masks, keypoints=keypoints), kept)


def _uncover(mask: np.ndarray, box: np.ndarray, region: np.ndarray, min_visible: float
             ) -> tuple[np.ndarray, np.ndarray] | None:
  """Return what is visible of an instance, its box [4] and mask uint8 [C, C]; None if it is too little."""
  cells = len(mask)
  centres = (np.arange(cells) + 0.5) / cells
  rows, columns = (np.clip((box[axis] + centres * (box[axis + 2] - box[axis])).astype(int), 0, region.shape[axis] - 1)
                   for axis in (0, 1))
  covered = region[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1]
  if not covered.any():
    return box, mask
  remaining = np.where(region[np.ix_(rows, columns)], 0, mask)  # a box without a mask counts as filled
  before, after = np.count_nonzero(mask), np.count_nonzero(remaining)
  if after == before:
    return box, mask
  if after <= min_visible * before or not after:
    return None
  whole = np.array([0, 0, cells, cells], float)
  # A side at which the mask has lost nothing stays where it was annotated.
  spans = [augment.visible_window(each, whole) for each in (mask, remaining)]
  window = np.where(spans[0] == spans[1], whole, spans[1])
  seen = np.tile(box[:2], 2) + window * np.tile(box[2:] - box[:2], 2) / cells
  return seen, mask if mask[0, 0] == NO_MASK else augment.crop_mask(remaining, window)


def _draw_mask(region: np.ndarray, mask: np.ndarray, box: np.ndarray) -> bool:
  """Set the pixels of an instance in a region uint8 [H, W] to 255; return whether there are any.

  A pixel belongs to the instance if its centre lies in the box and the mask, interpolated there, is at least a half.
  """
  y0, x0, y1, x1 = box.astype(np.float64)
  # Pixels whose centres are in the box.
  top, left = (max(int(np.ceil(low - 0.5)), 0) for low in (y0, x0))
  bottom, right = (min(int(np.ceil(high - 0.5)), side) for high, side in zip((y1, x1), region.shape, strict=True))
  if top >= bottom or left >= right:
    return False
  step = np.array([x1 - x0, y1 - y0]) / len(mask)
  start = (np.array([left, top]) + 0.5 - (x0, y0)) / step - 0.5
  matrix = np.array([[1 / step[0], 0, start[0]], [0, 1 / step[1], start[1]]])
  drawn = cv2.warpAffine(mask * np.uint8(255), matrix, (right - left, bottom - top),
                         flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, borderMode=cv2.BORDER_REPLICATE) >= 128
  region[top:bottom, left:right][drawn] = 255
  return bool(drawn.any())


def _hull(boxes: np.ndarray, shape: Sequence[int]) -> tuple[slice, slice]:
  """Return the rows and columns of an image that boxes [n, 4] occupy."""
  low, high = np.floor(boxes[:, :2].min(axis=0)).astype(int), np.ceil(boxes[:, 2:].max(axis=0)).astype(int)
  return tuple(slice(max(int(a), 0), min(int(b), side)) for a, b, side in zip(low, high, shape, strict=True))


def select(example: Example, rows: Sequence[int]) -> Example:
  """Return an example with some of its instances."""
  return Example(example.image, *(field[rows] for field in example[1:]))


def concatenate(examples: Sequence[Example]) -> Example:
  """Return the instances of several examples as those of the first image."""
  return Example(examples[0].image, *(np.concatenate(fields) for fields in list(zip(*examples, strict=True))[1:]))


def _check_fractions(component: CopyPaste | Mosaic, *names: str) -> None:
  for name in names:
    if not 0 <= getattr(component, name) <= 1:
      raise UserError(f'{type(component).__name__}.{name} = {getattr(component, name)}: use a fraction, 0 to 1')
