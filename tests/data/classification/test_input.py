"""Inputs for classification: crops, their distribution, reproducibility, unreadable images."""

import gin
import numpy as np
import pytest

from rethink_tf.data.categories import Category
from rethink_tf.data.classification.input import (
  ClassificationEvalInput,
  ClassificationTrainInput,
  add_lighting,
  centre_crop,
  jitter_colours,
  random_crop,
  resize,
)
from rethink_tf.data.images import ImageError
from rethink_tf.errors import UserError
from tests.small_classes import noisy_image


class Source:
  """Images in memory; those in `damaged` are unreadable."""

  name = 'test/images'

  def __init__(self, count=10, labels=1, damaged=(), size=(40, 60)):
    self.image_ids = np.arange(1, count + 1)
    self.classes = np.full((count, labels), -1, np.int32)  # image i has the classes i, i + 1, ..., 1 to T of them
    for i in range(count):
      self.classes[i, :1 + i % labels] = (i + np.arange(1 + i % labels)) % count
    self.categories = tuple(Category(k, str(k)) for k in range(count))
    self.num_classes, self.damaged, self.size = count, set(damaged), size

  def load(self, i):
    if i in self.damaged:
      raise ImageError(f'{i}.jpg: cannot be decoded')
    return noisy_image((20 * i, 100, 200 - 20 * i), i, *self.size)


def batches(inputs, count, start=0):
  return [batch._replace(**{name: value.numpy() for name, value in batch._asdict().items()})
          for batch in inputs.dataset(start).take(count)]


def same(a, b):
  return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize('size', [(1, 1), (1, 500), (300, 2), (40, 60), (224, 224), (5, 7)])
def test_crop_is_inside_the_image_and_has_a_valid_area_and_aspect(size):
  rng = np.random.default_rng(0)
  for _ in range(300):
    y, x, h, w = random_crop(size, (0.08, 1.0), (3 / 4, 4 / 3), rng)
    assert 0 <= y and 0 <= x and h >= 1 and w >= 1 and y + h <= size[0] and x + w <= size[1]
    if min(size) >= 40:  # sides are whole pixels
      assert 0.07 <= h * w / (size[0] * size[1]) <= 1 and 0.7 <= w / h <= 1.45


def test_area_log_aspect_and_position_are_uniform():
  rng = np.random.default_rng(1)
  crops = np.array([random_crop((1000, 1000), (0.08, 0.5), (3 / 4, 4 / 3), rng) for _ in range(20000)], float)
  y, x, h, w = crops.T
  for values, low, high in ((h * w / 1e6, 0.08, 0.5), (np.log(w / h), np.log(3 / 4), np.log(4 / 3)),
                            (y / (1000 - h), 0, 1), (x / (1000 - w), 0, 1)):
    ranks = np.sort((values - low) / (high - low))
    assert np.abs(ranks - (np.arange(20000) + 0.5) / 20000).max() < 0.012  # Kolmogorov-Smirnov, p < 1 % at 0.0115
  assert np.abs(np.corrcoef([h * w, w / h, y / (1000 - h), x / (1000 - w)]) - np.eye(4)).max() < 0.03  # and independent


def test_panorama_is_cropped_at_the_centre_with_the_nearest_aspect():
  assert random_crop((100, 1000), (0.9, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (0, 433, 100, 133)
  assert random_crop((1000, 90), (0.9, 1.0), (3 / 4, 4 / 3), np.random.default_rng(0)) == (440, 0, 120, 90)


def test_centre_crop_of_the_resized_image():
  image = np.zeros((256, 400, 3), np.uint8)
  image[:, :, 0] = np.arange(400) // 2
  np.testing.assert_array_equal(centre_crop(image, 256, 224), image[16:240, 88:312])
  for size in ((256, 400), (400, 256), (10, 10), (1, 3000), (37, 41)):
    assert centre_crop(noisy_image((9, 9, 9), 0, *size), 64, 56).shape == (56, 56, 3)
  half = centre_crop(np.repeat(np.repeat(image, 2, 0), 2, 1), 256, 224)  # the same for an image twice as large
  np.testing.assert_array_equal(half, image[16:240, 88:312])


def test_downsampling_does_not_alias():
  stripes = np.zeros((64, 64, 3), np.uint8)
  stripes[:, ::2] = 200
  assert np.ptp(resize(stripes, 16, 16)) == 0 and resize(stripes, 16, 16)[0, 0, 0] == 100


def test_batches_depend_on_seed_and_step_only():
  inputs = ClassificationTrainInput(Source(), 4, 3, crop_size=32, workers=3)
  expected = batches(inputs, 6)
  resumed = batches(ClassificationTrainInput(Source(), 4, 3, crop_size=32, workers=1), 3, start=3)
  assert all(same(a, b) for a, b in zip(expected[3:], resumed, strict=True))
  assert all(same(a, inputs.batch(step)) for step, a in enumerate(expected))
  other = ClassificationTrainInput(Source(), 4, 4, crop_size=32).batch(0)
  assert not same(other, expected[0])


def test_every_image_once_per_epoch_with_its_labels_and_a_new_crop():
  source = Source(8, labels=3)
  inputs = ClassificationTrainInput(source, 4, 0, crop_size=16)
  seen = batches(inputs, 4)
  for epoch in range(2):
    ids = np.concatenate([b.image_ids for b in seen[2 * epoch:2 * epoch + 2]])
    assert sorted(ids) == source.image_ids.tolist()
  for batch in seen:
    np.testing.assert_array_equal(batch.classes, source.classes[batch.image_ids - 1])
    assert batch.images.dtype == np.uint8 and batch.images.shape == (4, 16, 16, 3)
    assert (batch.image_sizes == 16).all()
  first, second = ({i: image for b in epoch for i, image in zip(b.image_ids.tolist(), b.images, strict=True)}
                   for epoch in (seen[:2], seen[2:]))
  assert not any(np.array_equal(first[i], second[i]) for i in first)


def test_facts_describe_the_batch():
  inputs = ClassificationTrainInput(Source(10), 4, 0, crop_size=16)
  for step in range(6):
    facts = inputs.facts(step)
    np.testing.assert_array_equal(facts.image_ids, inputs.batch(step).image_ids)
    assert (facts.instances, facts.pixels, facts.padded_pixels) == (4, 4 * 256, 4 * 256)
    assert facts.epoch == (4 * step + 3) // 10


def test_half_of_the_crops_are_flipped_and_augmentations_are_independent():
  image = np.zeros((32, 32, 3), np.uint8)
  image[:, :16] = 255
  inputs = ClassificationTrainInput(Source(), 4, 0, crop_size=32, area=(1, 1), aspect=(1, 1))
  left = [inputs.augment(image, epoch, 1)[0, 0, 0] == 255 for epoch in range(1000)]
  assert 440 < sum(left) < 560
  plain = ClassificationTrainInput(Source(), 4, 0, crop_size=32, flip=False)
  jitter = ClassificationTrainInput(Source(), 4, 0, crop_size=32, flip=False, colour_jitter=0.4, lighting=0.1)
  grey = np.random.default_rng(0).integers(90, 160, (48, 48, 3)).astype(np.uint8)
  for epoch in range(5):  # the colours change, the crop does not
    a, b = (each.augment(grey, epoch, 7).astype(float) for each in (plain, jitter))
    assert not np.array_equal(a, b) and np.corrcoef(a[..., 1].ravel(), b[..., 1].ravel())[0, 1] > 0.8


def test_range_of_colour_jitter_and_lighting():
  image = noisy_image((100, 120, 140), 0)
  np.testing.assert_array_equal(jitter_colours(image, 0.0, np.random.default_rng(0)), image)
  means = np.array([jitter_colours(image, 0.4, np.random.default_rng(k)).mean() for k in range(200)])
  assert 0.6 * 120 - 3 < means.min() < 0.75 * 120 and 1.25 * 120 < means.max() < 1.4 * 120 + 3
  np.testing.assert_array_equal(add_lighting(image, np.zeros(3)), image)
  moved = add_lighting(image, np.array([1.0, 0, 0])).astype(float).mean((0, 1)) - image.mean((0, 1))
  np.testing.assert_allclose(moved, 255 * 0.2175 * np.array([-0.5675, -0.5808, -0.5836]), atol=0.6)
  assert add_lighting(image, np.array([-9.0, 0, 0])).max() == 255  # no overflow


def test_damaged_image_is_replaced_by_the_next_and_counted(caplog):
  source = Source(12, damaged=(3, 4))
  inputs = ClassificationTrainInput(source, 12, 0, crop_size=16, max_unreadable=0.2)
  batch = inputs.batch(0)
  ids = sorted(batch.image_ids.tolist())
  assert ids == sorted([1, 2, 3, 6, 6, 6, 7, 8, 9, 10, 11, 12]) and inputs.unreadable == {3, 4}
  np.testing.assert_array_equal(batch.classes, source.classes[batch.image_ids - 1])  # with its own label
  assert '4.jpg' in caplog.text and 'replaced by another image' in caplog.text
  with pytest.raises(UserError, match='max_unreadable'):
    ClassificationTrainInput(Source(12, damaged=range(6)), 12, 0, crop_size=16).batch(0)
  with pytest.raises(UserError, match='none of its 3 images|max_unreadable'):
    ClassificationTrainInput(Source(3, damaged=range(3)), 2, 0, crop_size=16, max_unreadable=1).batch(0)


def test_failure_in_a_thread_is_recorded():
  inputs = ClassificationTrainInput(Source(12, damaged=range(12)), 4, 0, crop_size=16)
  with pytest.raises(Exception, match='max_unreadable'):
    next(iter(inputs.dataset()))
  assert isinstance(inputs.failure, UserError)


@pytest.mark.parametrize('images, batch_size', [(1, 4), (4, 4), (10, 4), (3, 1)])
def test_evaluation_sees_every_image_once(images, batch_size):
  source = Source(images)
  inputs = ClassificationEvalInput(source, batch_size, crop_size=28, short_side=32)
  seen = list(inputs.dataset())
  assert len(seen) == inputs.num_batches
  ids = np.concatenate([batch.image_ids for batch in seen])
  assert ids[ids >= 0].tolist() == source.image_ids.tolist() and len(ids) == batch_size * len(seen)
  fillers = np.concatenate([batch.classes for batch in seen])[ids < 0]
  assert (fillers == -1).all()
  np.testing.assert_array_equal(seen[0].images[0], centre_crop(source.load(0), 32, 28))


def test_unreadable_image_is_grey_in_evaluation():
  batch = ClassificationEvalInput(Source(4, damaged=[2]), 4, crop_size=16, short_side=16, max_unreadable=1).batch(0)
  assert (batch.images[2] == 127).all() and batch.image_ids.tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize('arguments, message', [
  ({'batch_size': 0}, 'batch_size is 0'), ({'crop_size': 0}, 'crop_size is 0'), ({'seed': -1}, 'seed is -1'),
  ({'area': (0.5, 0.1)}, 'area is'), ({'area': (0, 1)}, 'area is'), ({'aspect': (2, 1)}, 'aspect'),
  ({'colour_jitter': 1.0}, 'colour_jitter is 1.0'), ({'lighting': -1}, 'lighting -1'),
])
def test_invalid_arguments_are_one_line(arguments, message):
  with pytest.raises(UserError, match=message) as error:
    ClassificationTrainInput(Source(), **arguments)
  assert '\n' not in str(error.value)


def test_no_images_and_too_large_crop_are_one_line():
  with pytest.raises(UserError, match='no images'):
    ClassificationTrainInput(Source(0))
  with pytest.raises(UserError, match='short_side 128'):
    ClassificationEvalInput(Source(), short_side=128)


def test_gin_builds_an_input():
  gin.parse_config('ClassificationTrainInput.crop_size = 24\nClassificationTrainInput.colour_jitter = 0.4')
  try:
    inputs = gin.get_configurable('ClassificationTrainInput')(Source(), 2, 0)
    assert inputs.batch(0).images.shape == (2, 24, 24, 3) and inputs.colour_jitter == 0.4
  finally:
    gin.clear_config()
