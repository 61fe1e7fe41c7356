"""Weight initialisation by the paper's names (as in Detectron and Detectron2's layers.weight_init)."""

from __future__ import annotations

from collections.abc import Callable

import gin
import tf_keras

from rethink_tf.errors import check_at_least

MakeInitializer = Callable[[], tf_keras.initializers.Initializer]


@gin.register
def msra() -> tf_keras.initializers.Initializer:
  """MSRA: normal, not truncated, of variance 2 / fan-out (He et al. 2015, section 2.2, backward case)."""
  return tf_keras.initializers.VarianceScaling(2.0, 'fan_out', 'untruncated_normal')


@gin.register
def xavier() -> tf_keras.initializers.Initializer:
  """Caffe's XavierFill: uniform, of variance 1 / fan-in."""
  return tf_keras.initializers.VarianceScaling(1.0, 'fan_in', 'uniform')


@gin.register
def gaussian(stddev: float = 0.01) -> tf_keras.initializers.Initializer:
  """Normal of mean 0, for prediction layers."""
  check_at_least('gaussian', 0, stddev=stddev)
  return tf_keras.initializers.RandomNormal(0.0, stddev)
