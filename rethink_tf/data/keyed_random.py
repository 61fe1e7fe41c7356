"""Stateless random numbers: functions of a key (run seed, purpose, epoch, image id), never of the order of calls.

Results therefore do not depend on the order in which images are read, on the number of workers or on restarts, and each
purpose ('flip', 'scale', ...) has an independent sequence.
"""

import zlib

import numpy as np


def keyed_bits(seed: int, purpose: str, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Hash the keys elementwise -> uint64, the broadcast shape of `epochs` and `image_ids`."""
  bits = splitmix64(np.array([seed & 0xFFFFFFFFFFFFFFFF], np.uint64))
  for word in (np.array([zlib.crc32(purpose.encode())]), np.asarray(epochs), np.asarray(image_ids)):
    bits = splitmix64(bits ^ word.astype(np.int64).view(np.uint64))
  return bits.reshape(np.broadcast_shapes(np.shape(epochs), np.shape(image_ids)))


def keyed_uniform(seed: int, purpose: str, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Return a uniform float64 in [0, 1) for each key."""
  return (keyed_bits(seed, purpose, epochs, image_ids) >> np.uint64(11)) * 2.0 ** -53


def keyed_generator(seed: int, purpose: str, epoch: int, image_id: int) -> np.random.Generator:
  """Return a generator for one key, for draws whose number depends on what is drawn."""
  key = int(keyed_bits(seed, purpose, np.array([epoch]), np.array([image_id]))[0])
  return np.random.Generator(np.random.Philox(key=[key, 0]))


def keyed_seeds(seed: int, epochs: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
  """Return seeds for TensorFlow's stateless operations, one for each image and epoch -> int32 [N, 2]."""
  bits = np.atleast_1d(keyed_bits(seed, 'image', epochs, image_ids))
  return bits.view(np.int32).reshape(-1, 2)


def splitmix64(x: np.ndarray) -> np.ndarray:
  """Apply the output function of SplitMix64 (Steele, Lea and Flood); uint64 arrays wrap around silently."""
  x = x + np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))
