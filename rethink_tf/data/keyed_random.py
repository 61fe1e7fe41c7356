"""Stateless random numbers: functions of a key (run seed, purpose, epoch, image id), never of the order of calls.

Results therefore do not depend on the order in which images are read, on the number of workers or on restarts, and each
purpose ('flip', 'scale', ...) has an independent sequence.
"""

import zlib
from typing import TypeVar

import numpy as np

_MAX = 0xFFFFFFFFFFFFFFFF
_Words = TypeVar('_Words', int, np.ndarray)


def keyed_bits(seed: int, purpose: str, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Hash the keys elementwise -> uint64, the broadcast shape of `epochs` and `image_ids`."""
  words = (np.atleast_1d(each).astype(np.int64).view(np.uint64) for each in (epochs, image_ids))
  return _hash(seed, purpose, *words).reshape(np.broadcast_shapes(np.shape(epochs), np.shape(image_ids)))


def _hash(seed: int, purpose: str, epoch: _Words, image_id: _Words) -> _Words:
  bits = splitmix64(seed & _MAX)
  for word in (zlib.crc32(purpose.encode()), epoch, image_id):
    bits = splitmix64(bits ^ word)
  return bits


def keyed_uniform(seed: int, purpose: str, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Return a uniform float64 in [0, 1) for each key."""
  return (keyed_bits(seed, purpose, epochs, image_ids) >> np.uint64(11)) * 2.0 ** -53


def keyed_generator(seed: int, purpose: str, epoch: int, image_id: int) -> np.random.Generator:
  """Return a generator for one key, for draws whose number depends on what is drawn."""
  # Not by keyed_bits: NumPy takes ten times as long for one number.
  key = _hash(seed, purpose, epoch & _MAX, image_id & _MAX)
  return np.random.Generator(np.random.Philox(key=[key, 0]))


def keyed_seeds(seed: int, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Return seeds for TensorFlow's stateless operations, one for each image and epoch -> int32 [N, 2]."""
  bits = np.atleast_1d(keyed_bits(seed, 'image', epochs, image_ids))
  return bits.view(np.int32).reshape(-1, 2)


def splitmix64(x: _Words) -> _Words:
  """Apply the output function of SplitMix64 (Steele, Lea and Flood) to an int or a uint64 array."""
  x = (x + 0x9E3779B97F4A7C15) & _MAX
  x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MAX
  x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MAX
  return x ^ (x >> 31)
