"""Synthetic classification data: labels and images equal those of the detection source with one shape."""

import numpy as np

from rethink_tf.data.classification.input import ClassificationEvalInput, ClassificationTrainInput
from rethink_tf.data.classification.synthetic import SyntheticClasses
from rethink_tf.data.detection.synthetic import SyntheticSource


def test_every_image_has_one_shape_and_its_class():
  source = SyntheticClasses(40, num_classes=4)
  detection = SyntheticSource(40, seed=1, num_classes=4, image_size=(96, 112), object_size=(32, 88), max_objects=1)
  assert source.classes.shape == (40, 1) and set(source.classes[:, 0]) == {0, 1, 2, 3}
  for i in range(6):
    example = detection.load(i)
    assert example.classes.tolist() == [source.classes[i, 0] + 1]
    np.testing.assert_array_equal(source.load(i), example.image)


def test_sets_are_nested_and_splits_differ():
  small, large = SyntheticClasses(10), SyntheticClasses(20)
  np.testing.assert_array_equal(small.load(7), large.load(7))
  other = SyntheticClasses(10, split='val')
  assert any(small.load(i).shape != other.load(i).shape or (small.load(i) != other.load(i)).any() for i in range(3))


def test_inputs():
  source = SyntheticClasses(8)
  batch = next(iter(ClassificationTrainInput(source, 4, 0, crop_size=64).dataset()))
  assert batch.images.shape == (4, 64, 64, 3) and batch.images.dtype == 'uint8'
  seen = [label for batch in ClassificationEvalInput(source, 4, crop_size=64, short_side=72).dataset()
          for label in np.asarray(batch.classes)[:, 0]]
  assert seen == source.classes[:, 0].tolist()
