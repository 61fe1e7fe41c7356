"""Test-time augmentation: merging against NumPy, mirrors against mirrors, and one view against none at all."""

import gin
import numpy as np
import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files, tta
from rethink_tf.data.augment import Resize
from rethink_tf.data.pipeline import EvalInput
from rethink_tf.data.synthetic import SyntheticSource
from rethink_tf.errors import UserError
from rethink_tf.models.rois import DetectionGenerator
from rethink_tf.structures import Detections, Views
from rethink_tf.trainer import Trainer
from tests import tiny

# A mirror is only a mirror where windows fall on the same pixels: at widths that are multiples of the largest stride.
SIDE = 64


@pytest.fixture(autouse=True)
def no_configuration_is_left():
  yield
  gin.clear_config()


def trainer_of(detector, batch=None):
  """A trainer around a detector whose scores differ enough from each other to be worth sorting."""
  batch = tiny.batch(1) if batch is None else batch
  tf.keras = None  # tf_keras only
  detector(batch.images, batch.image_sizes)
  for i, variable in enumerate(detector.variables):
    name = variable.name
    if 'predictor' in name and 'kernel' in name:
      wide = 0.05 if 'deltas' in name else 0.5
      variable.assign(tf.random.stateless_normal(variable.shape, [i, 7], stddev=wide))
  return Trainer(detector, losses=None)
