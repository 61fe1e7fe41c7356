"""Aspect-ratio buckets: a few fixed padded shapes instead of one large square.

Detectron groups landscape and portrait images into separate batches; here the padded shapes are also fixed, so that one
compiled graph serves every batch of a bucket.
"""

import math

import numpy as np

# Long side : short side. 4:3 and 3:2 are the usual camera formats; the shape for max_side holds longer images.
ASPECTS = (1.0, 4 / 3, 3 / 2)


def resized_size(height: int, width: int, short_side: int, max_side: int) -> tuple[int, int]:
  """Apply Detectron's rule: the short side becomes `short_side`, unless the long side would exceed `max_side`."""
  rows = resized_sizes(np.array([[height, width]]), short_side, max_side)
  return int(rows[0, 0]), int(rows[0, 1])


def resized_sizes(sizes: np.ndarray, short_sides: int | np.ndarray, max_side: int) -> np.ndarray:
  """Apply `resized_size` to int [N, 2] sizes, with one short side or one for each -> int32 [N, 2]."""
  sizes = np.asarray(sizes, np.float64)
  short, long = sizes.min(axis=1), sizes.max(axis=1)
  scale = short_sides / short
  scale = np.where(np.rint(scale * long) > max_side, max_side / long, scale)
  return np.maximum(np.rint(sizes * scale[:, None]), 1).astype(np.int32)


def bucket_shapes(short_side: int, max_side: int, stride: int = 32, aspects: tuple[float, ...] = ASPECTS) -> np.ndarray:
  """Return padded shapes that hold every image resized to short_side / max_side -> int32 [C, 2], smallest first.

  One square, and one landscape and one portrait shape for each further aspect and for max_side, all multiples of
  `stride`: (800, 1333) gives 800x800, 800x1088, 800x1216, 800x1344 and the portrait shapes.
  """
  long_sides = [min(round(short_side * aspect), max_side) for aspect in aspects] + [max_side]
  shapes = set()
  for long_side in long_sides:
    short, long = (stride * math.ceil(side / stride) for side in (short_side, max(short_side, long_side)))
    shapes |= {(short, long), (long, short)}
  return np.array(sorted(shapes, key=lambda shape: (shape[0] * shape[1], shape)), np.int32)


def assign(sizes: np.ndarray, padded_shapes: np.ndarray) -> np.ndarray:
  """Return the index of the smallest padded shape that holds each resized image, int [N, 2] -> int32 [N].

  Raises:
    ValueError: an image is larger than every padded shape.
  """
  fits = np.all(np.asarray(sizes)[:, None] <= padded_shapes[None], axis=2)  # [N, C]
  if not fits.any(axis=1).all():
    too_large = np.asarray(sizes)[np.argmin(fits.any(axis=1))].tolist()
    raise ValueError(f'an image of size {too_large} fits none of the padded shapes {padded_shapes.tolist()}')
  return fits.argmax(axis=1).astype(np.int32)  # padded shapes are sorted by area


def padding_waste(sizes: np.ndarray, padded_shapes: np.ndarray, buckets: np.ndarray) -> float:
  """Return the fraction of batched pixels that is padding, for int [N, 2] image sizes and their buckets [N]."""
  pixels = np.prod(np.asarray(sizes, np.int64), axis=1).sum()
  return 1.0 - float(pixels) / float(np.prod(padded_shapes.astype(np.int64), axis=1)[buckets].sum())
