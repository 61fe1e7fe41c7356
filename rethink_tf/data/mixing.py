"""Augmentations that join several images: copy-paste and mosaic.

Both get the images resized, flipped and cropped as any other, and join them in the padded shape. What is random comes
from a generator that the input keys by run seed, epoch and image id (keyed_random.py).
"""

from __future__ import annotations

import dataclasses
import math
import threading
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import cv2
import gin
import numpy as np

from rethink_tf.data import augment
from rethink_tf.data.batching import GREY
from rethink_tf.errors import UserError, check_at_least, check_fractions
from rethink_tf.structures import NO_MASK, Example

_ASTRAY = 1 / 16  # of a pixel that a pasted object may be off
_CANDIDATES = 32  # edges that are tried


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


class Buffers(threading.local):
  """Memory of each thread for padded shapes up to [H, W]: to allocate it for each image would take long.

  Attributes:
    covered, drawn: uint8 [H + 2, W + 2], overwritten.
  """

  def __init__(self, shape: Sequence[int]):
    height, width = shape
    self.covered, self.drawn = (np.empty([height + 2, width + 2], np.uint8) for _ in range(2))


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
    check_fractions('CopyPaste', probability=self.probability, min_visible=self.min_visible)
    check_at_least('CopyPaste', 1, max_pasted=self.max_pasted)

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

  def join(self, out: np.ndarray, buffers: Buffers, examples: Sequence[Example], windows: Sequence[Window],
           tighten: bool, rng: np.random.Generator) -> Example:
    """Write the mixed image into `out`, uint8 [h, w, 3] of its size; return its instances in pixels of `out`.

    tighten: as for augment.crop_instances.
    """
    own, other = (place(*pair, tighten) for pair in zip(examples, windows, strict=True))
    height, width = windows[0].visible.tolist()
    out[height:] = out[:height, width:] = GREY
    augment.resize_window(examples[0].image, out[windows[0].slices], *windows[0][:2])
    chosen = self._choose(other.masks, rng)
    region = Region.around(other.boxes[chosen], buffers, windows[1].visible)
    covered = region.draw(other.masks[chosen], other.boxes[chosen])
    pasted = [i for i, has_pixels in zip(chosen, covered, strict=True) if has_pixels]
    if not pasted:
      return own
    rows, columns = region.slices
    part = _resize_part(examples[1].image, windows[1].size, region.corner + windows[1].offset, out[rows, columns].shape)
    cv2.copyTo(part, region.pixels[1:-1, 1:-1], out[rows, columns])
    return concatenate([occlude(own, region, self.min_visible), select(other, pasted)])

  def _choose(self, masks: np.ndarray, rng: np.random.Generator) -> list[int]:
    """Choose a random number of the instances with known masks [n, C, C] -> their indices, ascending."""
    known = np.flatnonzero(masks[:, 0, 0] != NO_MASK)
    count = min(int(rng.integers(0, len(known) + 1)), self.max_pasted)
    return sorted(rng.permutation(known)[:count].tolist()) if count else []


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
    check_fractions('Mosaic', probability=self.probability, min_visible=self.min_visible)
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

  def join(self, out: np.ndarray, buffers: Buffers, examples: Sequence[Example], windows: Sequence[Window],
           tighten: bool, rng: np.random.Generator) -> Example:
    """Write the mosaic into `out`, uint8 [H, W, 3]; return its instances in pixels of `out`."""
    del buffers, rng
    out[:] = GREY
    for example, window in zip(examples, windows, strict=True):
      augment.resize_window(example.image, out[window.slices], *window[:2])
    return concatenate([place(*pair, tighten, self.min_visible) for pair in zip(examples, windows, strict=True)])


def place(example: Example, window: Window, tighten: bool, min_visible: float = 0.0) -> Example:
  """Return the instances of an example in pixels of the padded shape; the image is not changed."""
  scale = window.size / example.image.shape[:2]
  if (window.visible < window.size).any():
    low, high = window.offset / scale, (window.offset + window.visible) / scale
    example = augment.crop_instances(example, low, high, tighten, min_visible)
  keypoints = augment.resize_keypoints(example.keypoints, scale)
  boxes = augment.resize_boxes(example.boxes, scale)
  if window.position.any():
    boxes = boxes + np.tile(window.position, 2).astype(np.float32)
    keypoints[..., :2] += np.where(keypoints[..., 2:] > 0, window.position, 0)
  return example._replace(boxes=boxes, keypoints=keypoints)


class Region(NamedTuple):
  """Pixels of an image that are covered, in the rectangle in which any are; with a border of one pixel that is not."""

  pixels: np.ndarray  # uint8 [h + 2, w + 2], 0 or 255
  corner: np.ndarray  # int [2] position of pixels[1, 1] in the image
  drawn: np.ndarray  # uint8, as pixels; overwritten

  @classmethod
  def around(cls, boxes: np.ndarray, buffers: Buffers, shape: Sequence[int]) -> Region:
    """Return a region that holds boxes [n, 4] in an image of a shape [2], nothing of it covered."""
    low, high = (np.zeros(2, int),) * 2
    if len(boxes):
      low = np.maximum(np.floor(boxes[:, :2].min(axis=0)).astype(int), 0)
      high = np.minimum(np.ceil(boxes[:, 2:].max(axis=0)).astype(int), shape)
    height, width = (high - low + 2).tolist()
    pixels = buffers.covered[:height, :width]
    pixels[:] = 0
    return cls(pixels, low, buffers.drawn[:height, :width])

  @property
  def slices(self) -> tuple[slice, slice]:
    """Rows and columns of the image, without the border."""
    return tuple(slice(low, low + side - 2) for low, side in zip(self.corner.tolist(), self.pixels.shape, strict=True))

  def draw(self, masks: np.ndarray, boxes: np.ndarray) -> list[bool]:
    """Cover the pixels of instances, uint8 [n, C, C] in their boxes [n, 4]; return of each whether there are any.

    A pixel belongs to an instance if its centre lies in the box and the mask, interpolated there, is at least a half.
    """
    edges = (boxes.reshape(-1, 2, 2).astype(np.float64) - self.corner).reshape(-1, 4)
    rectangles = np.ceil(edges - 0.5).astype(int).tolist()
    return [self._draw_one(*each) for each in zip(masks * np.uint8(255), edges.tolist(), rectangles, strict=True)]

  def _draw_one(self, grey: np.ndarray, edges: list[float], rectangle: list[int]) -> bool:
    top, left, bottom, right = rectangle
    if top >= bottom or left >= right:
      return False
    window, drawn = (each[top + 1:bottom + 1, left + 1:right + 1] for each in (self.pixels, self.drawn))
    if min(drawn.shape) > len(grey):
      # Six times as fast. The box is rounded to pixels, which are less than a cell of the mask here.
      cv2.resize(grey, drawn.shape[::-1], dst=drawn, interpolation=cv2.INTER_LINEAR)
    else:
      y0, x0, y1, x1 = edges
      step_x, step_y = (x1 - x0) / len(grey), (y1 - y0) / len(grey)
      matrix = np.array([[1 / step_x, 0, (left + 0.5 - x0) / step_x - 0.5],
                         [0, 1 / step_y, (top + 0.5 - y0) / step_y - 0.5]])
      cv2.warpAffine(grey, matrix, drawn.shape[::-1], dst=drawn, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                     borderMode=cv2.BORDER_REPLICATE)
    cv2.threshold(drawn, 127, 255, cv2.THRESH_BINARY, dst=drawn)
    cv2.bitwise_or(window, drawn, dst=window)
    return cv2.hasNonZero(drawn)

  def index(self, positions: np.ndarray, axis: int) -> np.ndarray:
    """Return the indices along an axis of `pixels` of positions in the image; those outside are in the border."""
    inside = positions.astype(int) - (int(self.corner[axis]) - 1)
    return np.minimum(np.maximum(inside, 0), self.pixels.shape[axis] - 1)  # np.clip takes three times as long

  def cells(self, boxes: np.ndarray, count: int) -> Iterator[np.ndarray | None]:
    """Yield the pixels at the centres of the cells, C x C, of each of the boxes float64 [n, 4]; None if none is
    covered."""
    overlaps = self.overlaps(boxes)
    boxes = boxes[overlaps]
    centres = (np.arange(count) + 0.5) / count
    rows, columns = (self.index(boxes[:, axis, None] + centres * (boxes[:, axis + 2] - boxes[:, axis])[:, None], axis)
                     for axis in (0, 1))
    found = (self.pixels[row][:, column] for row, column in zip(rows, columns, strict=True))
    for overlapping in overlaps:
      yield next(found) if overlapping else None

  def overlaps(self, boxes: np.ndarray) -> list[bool]:
    """Whether any pixel within each of the boxes [n, 4] is covered."""
    low = np.maximum(np.floor(boxes[:, :2]).astype(int) - self.corner + 1, 0).tolist()
    high = np.maximum(np.ceil(boxes[:, 2:]).astype(int) - self.corner + 1, 0).tolist()
    within = (self.pixels[top:bottom, left:right] for (top, left), (bottom, right) in zip(low, high, strict=True))
    return [bool(pixels.size) and cv2.hasNonZero(pixels) for pixels in within]


def occlude(example: Example, region: Region, min_visible: float) -> Example:
  """Remove what a region of the image covers from the instances, in the same pixels.

  Masks lose their covered cells, boxes the sides at which nothing of the mask is left. An instance is dropped if no
  more than `min_visible` of its mask remains. A covered keypoint counts as labelled, not visible.
  """
  kept, changed, boxes = [], [], example.boxes.astype(np.float64)
  for i, covered in enumerate(region.cells(boxes, example.masks.shape[1])):
    if covered is not None:
      seen = _uncover(example.masks[i], boxes[i].tolist(), covered, min_visible)
      if seen is None:
        continue
      changed.append((len(kept), *seen))
    kept.append(i)
  remaining = select(example, kept)  # a copy
  for row, box, mask in changed:
    remaining.boxes[row], remaining.masks[row] = box, mask
  keypoints = remaining.keypoints
  if keypoints.size:
    y, x = (region.index(np.rint(keypoints[..., axis]), axis) for axis in (0, 1))
    covered = region.pixels[y, x] > 0  # [n, P]
    keypoints[..., 2] = np.where(covered & (keypoints[..., 2] > 1), 1, keypoints[..., 2])
  return remaining


def _uncover(mask: np.ndarray, box: list[float], covered: np.ndarray, min_visible: float
             ) -> tuple[Sequence[float], np.ndarray] | None:
  """Return what is visible of an instance, its box [4] and mask uint8 [C, C]; None if it is too little.

  covered: uint8 [C, C], 255 where a cell of the mask is covered.
  """
  remaining = cv2.subtract(mask, covered)  # without a mask it is filled; saturates at 0
  before, after = cv2.countNonZero(mask), cv2.countNonZero(remaining)
  if after == before:
    return box, mask
  if after <= min_visible * before or not after:
    return None
  # A side at which the mask has lost nothing stays where it was annotated.
  whole = (0, 0, *mask.shape)
  window = tuple(edge if was == now else now for edge, was, now in
                 zip(whole, _extent(mask), _extent(remaining), strict=True))
  if window == whole:
    return box, mask if mask[0, 0] == NO_MASK else remaining
  top, left, bottom, right = window
  y, x, cells = box[0], box[1], len(mask)
  height, width = box[2] - y, box[3] - x
  seen = y + top * height / cells, x + left * width / cells, y + bottom * height / cells, x + right * width / cells
  if mask[0, 0] == NO_MASK:
    return seen, mask
  grey = cv2.resize(remaining[top:bottom, left:right] * np.uint8(255), mask.shape[::-1])  # whole cells: no need to crop
  return seen, cv2.threshold(grey, 127, 1, cv2.THRESH_BINARY)[1]


def _extent(mask: np.ndarray) -> tuple[int, int, int, int]:
  """Return the first row and column of a mask that hold any of the object, and those after the last."""
  x, y, width, height = cv2.boundingRect(mask)
  return y, x, y + height, x + width


def _resize_part(image: np.ndarray, size: np.ndarray, corner: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """Return a part of a uint8 image resized to `size`: the pixels of a shape [2] from a corner [2] on.

  Only what the part needs is resized, between pixels that lie on each other before and after, to _ASTRAY pixels.
  """
  (rows, (top, bottom)), (columns, (left, right)) = (
    _aligned(start, start + length, *sides) for start, length, *sides in
    zip(corner.tolist(), shape[:2], image.shape[:2], size.tolist(), strict=True))
  before = augment.contiguous(image[rows, columns])
  part = cv2.resize(before, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR)
  y, x = (corner - (top, left)).tolist()
  return part[y:y + shape[0], x:x + shape[1]]


def _aligned(start: int, end: int, before: int, after: int) -> tuple[slice, tuple[int, int]]:
  """Return what to resize along an axis for the pixels from start to end: pixels before, and their edges after it."""
  margin = math.ceil(after / before) + 1  # the pixels that the interpolation at the edges reaches

  def nearest(edges: range, whole: int) -> int:
    for edge in edges:
      rest = edge * before % after
      if not 0 < edge < after:
        break
      if min(rest, after - rest) <= _ASTRAY * before:
        return edge
    return whole

  edges = (nearest(range(start - margin, start - margin - _CANDIDATES, -1), 0),
           nearest(range(end + margin, end + margin + _CANDIDATES), after))
  return slice(*(round(edge * before / after) for edge in edges)), edges


def select(example: Example, rows: Sequence[int] | slice) -> Example:
  """Return an example with some of its instances."""
  return Example(example.image, *(field[rows] for field in example[1:]))


def concatenate(examples: Sequence[Example]) -> Example:
  """Return the instances of several examples as those of the first image."""
  return Example(examples[0].image, *(np.concatenate(fields) for fields in list(zip(*examples, strict=True))[1:]))
