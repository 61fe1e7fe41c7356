"""Synthetic data set: rendered images of textured shapes on textured backgrounds, with exact masks, boxes, keypoints.

It needs no download. Every image is a pure function of (seed, split, image id), so that smaller sets are contained in
larger ones and pixels are the same on every machine. Classes differ in outline only; colours and textures are random.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import gin
import numpy as np
from pycocotools import mask as coco_mask

from rethink_tf.data.categories import Category, categories_to_json
from rethink_tf.data.subset import subset
from rethink_tf.errors import UserError
from rethink_tf.structures import MASK_CROP, Example

KEYPOINTS = ('top', 'left', 'right', 'bottom')  # extreme points of the full outline; a flip swaps left and right
SPLITS = ('train', 'val')

_SUPERSAMPLE = 4  # outlines are rasterised on a grid finer by this factor, then averaged (anti-aliasing)
_SUBPIXEL_BITS = 4  # fractional bits of cv2's fixed-point coordinates
_ATTEMPTS = 6  # placements tried for a shape before it is skipped
_TILE = 512  # side of the texture tiles


def _regular(points: int, radii: Sequence[float] = (1.0,)) -> np.ndarray:
  """Return a closed outline of `points` vertices (x, y) around the origin, with alternating radii."""
  angles = 2 * np.pi * np.arange(points) / points - np.pi / 2
  radius = np.resize(np.asarray(radii), points)
  return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _crescent() -> np.ndarray:
  outer = np.linspace(0.25, 1.75, 32) * np.pi
  inner = np.linspace(1.62, 0.38, 24) * np.pi
  return np.concatenate([
      np.stack([np.cos(outer), np.sin(outer)], axis=1),
      np.stack([0.42 + 0.78 * np.cos(inner), 0.78 * np.sin(inner)], axis=1)])


_CROSS = np.array([(-.33, -1), (.33, -1), (.33, -.33), (1, -.33), (1, .33), (.33, .33),
                   (.33, 1), (-.33, 1), (-.33, .33), (-1, .33), (-1, -.33), (-.33, -.33)])
_ARROW = np.array([(0, -1), (.85, 0), (.35, 0), (.35, 1), (-.35, 1), (-.35, 0), (-.85, 0)])

# Outlines in a circle of radius about 1; several polygons are filled by the even-odd rule (a hole).
OUTLINES = {
    'disc': (_regular(48),),
    'square': (_regular(4),),
    'triangle': (_regular(3),),
    'star': (_regular(10, (1.0, 0.42)),),
    'ring': (_regular(48), _regular(40) * 0.55),
    'cross': (_CROSS,),
    'crescent': (_crescent(),),
    'arrow': (_ARROW,),
}


class Shape(NamedTuple):
  """A placed shape; rows and columns refer to the image."""

  label: int  # 1..K
  top: int
  left: int
  coverage: np.ndarray  # uint8 [h, w] 0..255: fraction of each pixel that the full outline covers
  landmarks: np.ndarray  # float64 [P, 2] x, y of the extreme points, as indices of pixel centres

  @property
  def window(self) -> tuple[slice, slice]:
    """Rows and columns of the image that the shape occupies."""
    height, width = self.coverage.shape
    return slice(self.top, self.top + height), slice(self.left, self.left + width)

  @property
  def mask(self) -> np.ndarray:
    """bool [h, w]: pixels that are at least half covered."""
    return self.coverage >= 128


class Scene(NamedTuple):
  """Shapes of an image from back to front, and the topmost shape at each pixel."""

  shapes: list[Shape]
  owner: np.ndarray  # uint8 [H, W]: 0 background, i + 1 the i-th shape

  def visible(self, index: int) -> tuple[np.ndarray, int, int]:
    """Return the visible mask of a shape -> bool [h, w] cropped to its exact box, top, left."""
    shape = self.shapes[index]
    mask = self.owner[shape.window] == index + 1
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    top, left = int(rows[0]), int(columns[0])
    return mask[top:rows[-1] + 1, left:columns[-1] + 1], shape.top + top, shape.left + left

  def keypoints(self, index: int) -> np.ndarray:
    """Return the keypoints, float32 [P, 3] y, x, visibility: 2 visible, 1 occluded by a shape, 0 outside the image."""
    height, width = self.owner.shape
    keypoints = np.zeros((len(KEYPOINTS), 3), np.float32)
    for row, (x, y) in zip(keypoints, np.rint(self.shapes[index].landmarks).astype(int), strict=True):
      if 0 <= x < width and 0 <= y < height:
        row[:] = y, x, 2 if self.owner[y, x] == index + 1 else 1
    return keypoints


@gin.register('synthetic')
class SyntheticSource:
  """Synthetic instances of overlapping textured shapes, in place of COCO (no download).

  Args:
    num_images: images 0..num_images-1 of the split's infinite sequence; a smaller set is contained in a larger one.
    fraction: fraction of num_images to keep, in (0, 1]; seeded and nested as in every source (subset.py).
    subset_seed: of this selection.
    split: 'train' or 'val', which have no image in common.
    seed: of the whole sequence.
    num_classes: number of OUTLINES, in their order.
    image_size: range of both sides in pixels, sampled independently.
    object_size: range of the diameter of a shape in pixels, log-uniform.
    max_objects: 1 .. max_objects shapes are placed in an image, if they fit.
    min_visible: fraction of a shape that must stay visible; 1.0 gives images without overlap.
    contrast: minimum RGB distance between the colour of a shape and the background under it.
    training: has no effect; every image has at least one object.

  Raises:
    UserError: a value out of range.
  """

  name = 'synthetic'

  def __init__(self, num_images: int = 1000, fraction: float = 1.0, subset_seed: int = 0, split: str = 'train',
               seed: int = 0, num_classes: int = 6, image_size: tuple[int, int] = (128, 160),
               object_size: tuple[int, int] = (20, 80), max_objects: int = 7, min_visible: float = 0.35,
               contrast: float = 80.0, training: bool = False):
    _require(split in SPLITS, f"split is '{split}'; use one of {', '.join(SPLITS)}")
    _require(seed >= 0, f'seed is {seed}; use 0 or more')
    _require(1 <= num_classes <= len(OUTLINES), f'num_classes is {num_classes}; use 1 to {len(OUTLINES)}')
    _require(num_images >= 1, f'num_images is {num_images}; use 1 or more')
    _require(1 <= max_objects < 255, f'max_objects is {max_objects}; use 1 to 254')
    _require(16 <= image_size[0] <= image_size[1],
             f'image_size is {tuple(image_size)}; use (minimum, maximum) of 16 or more')
    _require(4 <= object_size[0] <= object_size[1] <= image_size[0],
             f'object_size is {tuple(object_size)}; use (minimum, maximum) from 4 to the smallest image side')
    _require(0 < min_visible <= 1, f'min_visible is {min_visible}; use a fraction above 0 and at most 1')
    _require(contrast >= 0, f'contrast is {contrast}; use 0 or more')
    del training
    self.split, self.seed = split, seed
    self.image_size, self.object_size = tuple(image_size), tuple(object_size)
    self.max_objects, self.min_visible, self.contrast = max_objects, min_visible, contrast
    self.categories = tuple(Category(k + 1, name, KEYPOINTS) for k, name in enumerate(list(OUTLINES)[:num_classes]))
    self.num_classes = num_classes
    self.num_keypoints = len(KEYPOINTS)
    self.image_ids = 1 + subset(np.arange(1, num_images + 1), fraction, None, subset_seed, 'synthetic').astype(np.int64)
    self.sizes = np.array([self._size(self._random(i)) for i in range(len(self.image_ids))], np.int32)

  @functools.cached_property
  def num_instances(self) -> np.ndarray:
    """int32 [N]; computed on first use (about 1 ms an image)."""
    return np.array([len(self._scene(i)[0].shapes) for i in range(len(self.image_ids))], np.int32)

  def labels(self, i: int) -> list[int]:
    """Return the classes 1..K of the shapes of image i from back to front, without rendering."""
    return [shape.label for shape in self._scene(i)[0].shapes]

  def load(self, i: int) -> Example:
    """Return image i with its annotations."""
    scene, rng = self._scene(i)
    count = len(scene.shapes)
    boxes = np.zeros((count, 4), np.float32)
    masks = np.zeros((count, MASK_CROP, MASK_CROP), np.uint8)
    for index in range(count):
      mask, top, left = scene.visible(index)
      boxes[index] = top, left, top + mask.shape[0], left + mask.shape[1]
      grey = mask.astype(np.uint8) * 255
      masks[index] = cv2.resize(grey, (MASK_CROP, MASK_CROP), interpolation=cv2.INTER_LINEAR) >= 128
    return Example(image=_render(scene, rng, self.contrast), boxes=boxes,
                   classes=np.array([shape.label for shape in scene.shapes], np.int32), masks=masks,
                   keypoints=np.stack([scene.keypoints(index) for index in range(count)]))

  def annotations(self) -> dict[str, Any]:
    """Return the COCO json of these images: compressed RLE masks, exact boxes, keypoints."""
    images, annotations = [], []
    for i, image_id in enumerate(self.image_ids.tolist()):
      height, width = self.sizes[i].tolist()
      images.append({'id': image_id, 'height': height, 'width': width, 'file_name': f'{self.split}_{image_id:06d}.png'})
      scene, _ = self._scene(i)
      for index in range(len(scene.shapes)):
        annotations.append({'id': len(annotations) + 1, 'image_id': image_id, **_annotation(scene, index)})
    return {'images': images, 'annotations': annotations, 'categories': categories_to_json(self.categories)}

  def _random(self, i: int) -> np.random.Generator:
    """Return the random generator of image i, keyed by seed, split and image id."""
    split = self.seed * len(SPLITS) + SPLITS.index(self.split)
    return np.random.Generator(np.random.Philox(key=[split, self.image_ids[i]]))

  def _size(self, rng: np.random.Generator) -> tuple[int, int]:
    least, most = self.image_size
    height, width = rng.integers(least, most + 1, size=2).tolist()
    return height, width

  def _scene(self, i: int) -> tuple[Scene, np.random.Generator]:
    """Return the geometry of image i, and its random generator in the state in which rendering continues."""
    rng = self._random(i)
    height, width = self._size(rng)
    owner = np.zeros((height, width), np.uint8)
    shapes, areas, visible = [], np.zeros(0, int), np.zeros(0, int)
    for _ in range(int(rng.integers(1, self.max_objects + 1))):
      for _ in range(_ATTEMPTS):
        shape = self._place(rng, height, width)
        under = owner[shape.window][shape.mask]
        remaining = visible - np.bincount(under, minlength=len(shapes) + 1)[1:]
        if np.all(remaining >= self.min_visible * areas):
          shapes.append(shape)
          owner[shape.window][shape.mask] = len(shapes)
          areas, visible = np.append(areas, under.size), np.append(remaining, under.size)
          break
    return Scene(shapes, owner), rng

  def _place(self, rng: np.random.Generator, height: int, width: int) -> Shape:
    """Sample a shape: class, size, aspect, rotation and position; up to a quarter of it may be outside the image."""
    label = int(rng.integers(self.num_classes))
    least, most = self.object_size
    size, stretch, angle, y, x = rng.random(5)
    size = least * (most / least) ** size
    stretch = 0.8 ** (2 * stretch - 1)
    cos, sin = np.cos(2 * np.pi * angle), np.sin(2 * np.pi * angle)
    centre = np.array([size / 4 + x * (width - size / 2), size / 4 + y * (height - size / 2)])
    transform = np.array([[cos, sin], [-sin, cos]]) * (size / 2 * np.array([[stretch], [1 / stretch]]))
    polygons = [outline @ transform + centre for outline in OUTLINES[self.categories[label].name]]
    top, left, coverage = _rasterise(polygons, height, width)
    return Shape(label + 1, top, left, coverage, _landmarks(polygons[0], centre))


def _require(condition: bool, message: str) -> None:
  if not condition:
    raise UserError(f'synthetic: {message}')


def _landmarks(outline: np.ndarray, centre: np.ndarray) -> np.ndarray:
  """Return extreme points in the order of KEYPOINTS, moved inwards so that they lie on the shape -> [P, 2] x, y."""
  extremes = outline[[outline[:, 1].argmin(), outline[:, 0].argmin(), outline[:, 0].argmax(), outline[:, 1].argmax()]]
  inward = centre - extremes
  inward /= np.maximum(np.linalg.norm(inward, axis=1, keepdims=True), 1e-6)
  return extremes + 1.5 * inward - 0.5  # continuous coordinates -> indices of pixel centres


def _rasterise(polygons: list[np.ndarray], height: int, width: int) -> tuple[int, int, np.ndarray]:
  """Rasterise polygons in image coordinates, clipped to the image -> top, left, coverage uint8 [h, w]."""
  points = np.concatenate(polygons)
  left, top = np.maximum(np.floor(points.min(axis=0)), 0).astype(int).tolist()
  right, bottom = np.minimum(np.ceil(points.max(axis=0)), (width, height)).astype(int).tolist()
  fine = np.zeros(((bottom - top) * _SUPERSAMPLE, (right - left) * _SUPERSAMPLE), np.uint8)
  # Integer coordinates are pixel centres in cv2, hence the half pixel.
  fixed = [np.rint(((polygon - (left, top)) * _SUPERSAMPLE - 0.5) * 2 ** _SUBPIXEL_BITS).astype(np.int32)
           for polygon in polygons]
  cv2.fillPoly(fine, fixed, 255, shift=_SUBPIXEL_BITS)
  return top, left, cv2.resize(fine, (right - left, bottom - top), interpolation=cv2.INTER_AREA)


def _annotation(scene: Scene, index: int) -> dict[str, Any]:
  """Return the COCO fields of an instance, except its ids."""
  mask, top, left = scene.visible(index)
  encoded = coco_mask.encode(np.asfortranarray(scene.owner == index + 1, dtype=np.uint8))
  keypoints = scene.keypoints(index)
  return {'category_id': scene.shapes[index].label, 'iscrowd': 0, 'area': int(mask.sum()),
          'bbox': [left, top, mask.shape[1], mask.shape[0]],
          'segmentation': {'size': encoded['size'], 'counts': encoded['counts'].decode('ascii')},
          'keypoints': keypoints[:, [1, 0, 2]].astype(int).ravel().tolist(),
          'num_keypoints': int((keypoints[:, 2] > 0).sum())}


@functools.cache
def _tiles() -> tuple[list[np.ndarray], np.ndarray]:
  """Return texture tiles uint8 [512, 512] (plain, gradient, stripes, checks, clouds) and a tile of noise."""
  rng = np.random.Generator(np.random.Philox(key=[0, 0]))
  row = np.arange(_TILE)
  ramp = np.broadcast_to(row * 255 // (_TILE - 1), (_TILE, _TILE))
  stripe = np.broadcast_to(127.5 + 127.5 * np.sin(2 * np.pi * row / 32), (_TILE, _TILE))
  checks = ((row[:, None] // 16 + row // 16) % 2) * 255.0
  clouds = sum(weight * cv2.resize(rng.random((cells, cells)), (_TILE, _TILE), interpolation=cv2.INTER_CUBIC)
               for weight, cells in ((0.55, 8), (0.3, 24), (0.15, 96)))
  clouds = 255 * np.clip((clouds - 0.2) / 0.6, 0, 1)
  tiles = [np.full((_TILE, _TILE), 128.0), ramp, stripe, cv2.GaussianBlur(checks, (3, 3), 0), clouds]
  noise = rng.integers(0, 256, (_TILE, _TILE, 3), dtype=np.uint8)
  return [np.ascontiguousarray(tile, dtype=np.uint8) for tile in tiles], noise


def _texture(rng: np.random.Generator, height: int, width: int, colour: np.ndarray, spread: float) -> np.ndarray:
  """Return a rotated, scaled, shifted and tinted tile around `colour` -> uint8 [height, width, 3]."""
  tiles, _ = _tiles()
  tile = tiles[int(rng.integers(len(tiles)))]
  angle, scale, x, y = rng.random(4)
  matrix = cv2.getRotationMatrix2D((_TILE * x, _TILE * y), 360 * angle, 0.3 * 4 ** scale)
  field = cv2.warpAffine(tile, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
  tint = rng.uniform(-spread, spread, 3)
  palette = np.clip(np.linspace(colour - tint, colour + tint, 256), 0, 255).astype(np.uint8)
  return cv2.LUT(cv2.merge([field, field, field]), palette[None])


def _render(scene: Scene, rng: np.random.Generator, contrast: float) -> np.ndarray:
  """Render the background, the shapes with anti-aliased edges, then noise -> uint8 [H, W, 3]."""
  height, width = scene.owner.shape
  image = _texture(rng, height, width, rng.uniform(30, 225, 3), spread=45)
  for shape in scene.shapes:
    window = image[shape.window]
    candidates = rng.uniform(20, 235, (16, 3))
    distance = np.linalg.norm(candidates - np.array(cv2.mean(window)[:3]), axis=1)
    colour = candidates[np.argmax(distance >= contrast) if distance.max() >= contrast else np.argmax(distance)]
    texture = _texture(rng, *shape.coverage.shape, colour, spread=45)
    alpha = shape.coverage.astype(np.float32) / 255
    window[:] = cv2.blendLinear(texture, np.ascontiguousarray(window), alpha, 1 - alpha)
  strength, y, x = rng.random(3)
  top, left = int(y * max(_TILE - height, 0)), int(x * max(_TILE - width, 0))
  noise = _tiles()[1][top:top + height, left:left + width]
  if noise.shape != image.shape:  # an image larger than the tile
    noise = cv2.resize(noise, (width, height), interpolation=cv2.INTER_NEAREST)
  return cv2.addWeighted(image, 1.0, noise, 0.12 * strength, -0.06 * 255 * strength)
