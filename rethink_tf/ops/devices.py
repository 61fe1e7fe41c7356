"""The device that an operation will run on, where the choice of the operation depends on it."""

from __future__ import annotations

import tensorflow as tf
from tensorflow.python.eager import context  # the device around a tf.function has no public API


def device_of(tensor: tf.Tensor) -> str:
  """Return the name of the device of what is computed from a tensor, '' in a graph that is not bound to one."""
  return tensor.device or context.context().device_name or ''


def kind(device: str) -> str:
  """Return 'CPU', 'GPU' or 'TPU' for the name of a device; for '' a GPU if there is any."""
  return tf.DeviceSpec.from_string(device).device_type or (
    'GPU' if tf.config.list_logical_devices('GPU') else 'CPU')
