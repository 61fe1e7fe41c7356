"""Inputs for detection: contents of batches, reproducibility, unreadable images, replicas and hosts."""

import errno
import os
import subprocess
import sys

import cv2
import gin
import numpy as np
import pytest
import tensorflow as tf
from absl import logging

from rethink_tf.data import augment, keypoint_pairs
from rethink_tf.data.augment import LargeScaleJitter, Resize
from rethink_tf.data.batching import BufferPool
from rethink_tf.data.colours import ColourJitter
from rethink_tf.data.detection.input import EvalInput, TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.images import ImageError
from rethink_tf.data.mixing import CopyPaste, Mosaic
from rethink_tf.errors import UserError
from rethink_tf.structures import Batch, Example

SMALL = Resize(short_side=128, max_side=160)
JITTER = LargeScaleJitter(96, (0.4, 1.6))
# Augmentations of every kind, to which the laws of the plain input extend.
AUGMENTED = [dict(resize=SMALL), dict(resize=JITTER, mix=CopyPaste(0.7), colours=ColourJitter()),
             dict(resize=SMALL, mix=Mosaic(0.7), colours=ColourJitter())]
augmented = pytest.mark.parametrize('augmentation', AUGMENTED, ids=['plain', 'paste', 'mosaic'])


class Changed:
  """A source with another method `load`."""

  def __init__(self, source, load):
    self._source, self._load = source, load

  def __getattr__(self, name):
    return getattr(self._source, name)

  def load(self, i):
    return self._load(self._source, i)


def unreadable(*bad):
  def load(source, i):
    if i in bad:
      raise ImageError(f'image_{i}.jpg: cannot be decoded')
    return source.load(i)
  return load


@pytest.fixture(scope='module')
def source():
  return SyntheticSource(num_images=40)


@pytest.fixture
def warnings(monkeypatch):
  """Messages that are logged as warnings."""
  lines = []
  logged = logging.log

  def log(level, message, *args, **kwargs):
    if level == logging.WARNING:
      lines.append(message % args)
    logged(level, message, *args, **kwargs)

  monkeypatch.setattr(logging, 'log', log)
  return lines


def assert_same(a: Batch, b: Batch):
  for name, x, y in zip(Batch._fields, a, b, strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=name)


def test_fields_of_a_batch(source):
  inputs = TrainInput(source, batch_size=4, resize=SMALL, max_instances=9)
  spec = inputs.dataset().element_spec
  for batch in inputs.dataset().take(3):
    assert isinstance(batch, Batch) and isinstance(spec, Batch)
    height, width = batch.images.shape[1:3]
    assert [height, width] in inputs.padded_shapes.tolist()
    for tensor, expected in zip(batch, spec, strict=True):
      assert tensor.dtype == expected.dtype and expected.shape.is_compatible_with(tensor.shape)
    expected = dict(images=((4, height, width, 3), tf.uint8), image_sizes=((4, 2), tf.float32),
                    scales=((4, 2), tf.float32), original_sizes=((4, 2), tf.int32), image_ids=((4,), tf.int64),
                    seeds=((4, 2), tf.int32), gt_boxes=((4, 9, 4), tf.float32), gt_classes=((4, 9), tf.int32),
                    gt_masks=((4, 9, 112, 112), tf.uint8), gt_keypoints=((4, 9, 4, 3), tf.float32))
    assert {name: (tuple(t.shape), t.dtype) for name, t in batch._asdict().items()} == expected
  assert spec.images.shape.as_list() == [4, None, None, 3]  # static batch size; the padded shape depends on the bucket


def test_padding_is_zero(source):
  batch = TrainInput(source, batch_size=8, resize=SMALL, max_instances=12).batch(0)
  for row in range(8):
    height, width = batch.image_sizes[row].astype(int)
    assert not batch.images[row, height:].any() and not batch.images[row, :, width:].any()
    assert batch.images[row, height - 1, :width].any() and batch.images[row, :height, width - 1].any()
    n = int((batch.gt_classes[row] > 0).sum())
    assert n == source.num_instances[batch.image_ids[row] - 1]
    assert np.all(batch.gt_classes[row, :n] > 0) and not batch.gt_classes[row, n:].any()
    for field in (batch.gt_boxes, batch.gt_masks, batch.gt_keypoints):
      assert not field[row, n:].any()
    assert np.all(batch.gt_boxes[row, :, 2:] <= batch.image_sizes[row] + 1e-3)


def test_rows_are_resized_and_possibly_flipped_images(source):
  inputs = TrainInput(source, batch_size=8, resize=Resize(160, 200), seed=4)
  order = keypoint_pairs.flip_order(source.categories[0].keypoints)
  flips = 0
  for step in range(6):
    batch = inputs.batch(step)
    for row, image_id in enumerate(batch.image_ids.tolist()):
      example = source.load(image_id - 1)
      size = batch.image_sizes[row].astype(int)
      window = batch.images[row, :size[0], :size[1]]
      np.testing.assert_allclose(batch.scales[row], size / example.image.shape[:2], rtol=1e-6)
      np.testing.assert_array_equal(batch.original_sizes[row], example.image.shape[:2])
      mirrored = augment.flip(example, order)
      choice = [np.array_equal(cv2.resize(e.image, tuple(size[::-1].tolist())), window) for e in (example, mirrored)]
      assert sum(choice) == 1
      flips += choice[1]
      example = (example, mirrored)[choice[1]]
      n = len(example.boxes)
      np.testing.assert_allclose(batch.gt_boxes[row, :n], example.boxes * np.tile(batch.scales[row], 2), rtol=1e-5)
      np.testing.assert_array_equal(batch.gt_classes[row, :n], example.classes)
      np.testing.assert_array_equal(batch.gt_masks[row, :n], example.masks)
      np.testing.assert_allclose(batch.gt_keypoints[row, :n],
                                 augment.resize_keypoints(example.keypoints, batch.scales[row]), rtol=1e-5)
  assert 12 <= flips <= 36  # of 48


def test_masks_match_the_pixels():
  """Pasted into its box, the mask of a flipped and resized image covers the pixels of the object's colour."""
  image = np.full((100, 140, 3), 20, np.uint8)
  cv2.fillPoly(image, [np.array([(20, 20), (70, 30), (30, 80)])], (200, 40, 90))
  mask = (image[..., 0] == 200).astype(np.uint8)
  rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
  box = np.array([[rows[0], columns[0], rows[-1] + 1, columns[-1] + 1]], np.float32)
  crop = cv2.resize(mask[rows[0]:rows[-1] + 1, columns[0]:columns[-1] + 1], (112, 112), interpolation=cv2.INTER_NEAREST)
  example = Example(image, box, np.ones(1, np.int32), crop[None], np.zeros((1, 4, 3), np.float32))
  source = Changed(SyntheticSource(6, image_size=(100, 140)), lambda *_: example)
  source.sizes = np.array([[100, 140]] * 6, np.int32)
  batch = TrainInput(source, batch_size=6, resize=Resize(150, 210)).batch(0)
  corners = set()
  for row in range(6):
    truth = batch.images[row, ..., 0] > 110
    y0, x0, y1, x1 = np.rint(batch.gt_boxes[row, 0]).astype(int)
    pasted = np.zeros_like(truth)
    pasted[y0:y1, x0:x1] = cv2.resize(batch.gt_masks[row, 0], (x1 - x0, y1 - y0)) > 0
    assert (pasted & truth).sum() / (pasted | truth).sum() > 0.93
    corners.add(int(x0))
  assert len(corners) == 2  # flipped and not flipped


@augmented
def test_batches_do_not_depend_on_the_first_step(source, augmentation):
  inputs = TrainInput(source, batch_size=4, seed=3, **augmentation)
  whole = list(inputs.dataset().take(14))
  tail = list(TrainInput(source, batch_size=4, seed=3, workers=1, **augmentation).dataset(start_step=9).take(5))
  for a, b in zip(whole[9:], tail, strict=True):
    assert_same(a, b)
  assert_same(whole[5], inputs.batch(5))
  other = TrainInput(source, 4, seed=4, **augmentation)
  assert not np.array_equal(whole[0].image_ids, other.batch(0).image_ids)


def test_an_epoch_is_a_partition_and_epochs_differ(source):
  inputs = TrainInput(source, batch_size=4, resize=SMALL)
  keys, counts = {}, np.zeros(41, int)
  for step in range(inputs.plan.batches_before(3)):
    batch = inputs.batch(step)
    for image_id, seed in zip(batch.image_ids.tolist(), batch.seeds.tolist(), strict=True):
      counts[image_id] += 1
      keys.setdefault(image_id, set()).add(tuple(seed))
  assert counts[0] == 0 and counts[1:].min() >= 2 and counts.max() <= 3
  assert all(len(keys[i]) == counts[i] for i in keys)  # a new key in each epoch
  assert len(set.union(*keys.values())) == counts.sum()  # and for each image


def test_without_flip_images_are_the_same_in_every_epoch(source):
  inputs = TrainInput(source, batch_size=4, resize=SMALL, flip=False)
  images = {}
  for step in range(20):
    batch = inputs.batch(step)
    for image_id, image in zip(batch.image_ids.tolist(), batch.images, strict=True):
      np.testing.assert_array_equal(images.setdefault(image_id, image), image)


def test_facts_describe_the_batch(source):
  inputs = TrainInput(source, batch_size=4, resize=Resize((96, 128), 160), max_instances=3)
  for step in range(12):
    facts, batch = inputs.facts(step), inputs.batch(step)
    np.testing.assert_array_equal(facts.image_ids, batch.image_ids)
    assert facts.instances == (batch.gt_classes > 0).sum()
    assert facts.pixels == batch.image_sizes.prod(axis=1).sum()
    assert facts.padded_pixels == np.prod(batch.images.shape[:3])
    assert facts.epoch == inputs.plan.epoch(step)


@pytest.mark.parametrize('mix', [CopyPaste(0.6), Mosaic(0.6)])
@pytest.mark.parametrize('batch_size', [1, 2, 5])
def test_facts_and_reads_of_mixed_batches(source, mix, batch_size):
  """Sizes are known without reading an image, and images that a batch holds twice are read once."""
  loads = []
  def load(inner, i):
    loads.append(i)
    return inner.load(i)

  inputs = TrainInput(Changed(source, load), batch_size, resize=JITTER, mix=mix)
  for step in range(3):
    facts = inputs.facts(step)
    assert not loads
    batch = inputs.batch(step)
    np.testing.assert_array_equal(facts.image_ids, batch.image_ids)
    assert facts.pixels == batch.image_sizes.prod(axis=1).sum()
    assert len(loads) == len(set(loads))
    assert batch_size <= mix.others or len(loads) == batch_size
    loads.clear()


def test_unreadable_image_that_would_be_pasted_is_replaced(source, warnings):
  """It is counted as any other unreadable image; batches are the same with any number of threads."""
  inputs, again = (TrainInput(Changed(source, unreadable(3, 17)), 4, resize=SMALL, mix=CopyPaste(), workers=workers)
                   for workers in (4, 1))
  for step in range(10):
    assert_same(inputs.batch(step), again.batch(step))
  assert inputs.unreadable == again.unreadable == {3, 17}
  assert len([line for line in warnings if 'image_3.jpg' in line]) == 2  # once for each input


def test_copy_paste_needs_masks(source):
  boxes_only = Changed(source, None)
  boxes_only.has_masks = False
  with pytest.raises(UserError, match=r'copy-paste needs masks, and no object has one: .*@CopyPaste\(\)') as caught:
    TrainInput(boxes_only, mix=CopyPaste())
  assert '\n' not in str(caught.value)
  TrainInput(boxes_only, mix=Mosaic())


@pytest.mark.parametrize(('images', 'batch_size'), [(40, 7), (3, 8), (1, 1)])
def test_evaluation_sees_every_image_once(images, batch_size):
  source = SyntheticSource(images, split='val')
  inputs = EvalInput(source, batch_size, SMALL)
  batches = list(inputs.dataset())
  assert len(batches) == inputs.num_batches
  ids = np.concatenate([batch.image_ids for batch in batches])
  assert sorted(ids[ids >= 0]) == source.image_ids.tolist()
  for batch in batches:
    empty = batch.image_ids.numpy() < 0
    assert np.all(np.diff(empty.astype(int)) >= 0) and not empty.all()  # empty rows are at the end
    assert not batch.images.numpy()[empty].any() and not batch.gt_classes.numpy()[empty].any()
    assert np.all(batch.image_sizes.numpy() > 0) and np.all(batch.original_sizes.numpy() > 0)
    for row in np.flatnonzero(~empty):
      size = batch.image_sizes.numpy()[row].astype(int)
      plain = cv2.resize(source.load(batch.image_ids.numpy()[row] - 1).image, tuple(size[::-1].tolist()))
      np.testing.assert_array_equal(batch.images.numpy()[row, :size[0], :size[1]], plain)  # never flipped


def test_unreadable_image_is_replaced_in_training(source, warnings):
  bad = Changed(source, unreadable(3, 17))
  inputs = TrainInput(bad, batch_size=4, resize=SMALL)
  good = TrainInput(source, batch_size=4, resize=SMALL)
  replaced = 0
  for step in range(20):
    batch, planned = inputs.batch(step), good.batch(step)
    assert not {4, 18} & set(batch.image_ids.tolist())
    for row in range(4):
      if planned.image_ids[row] in (4, 18):
        replaced += 1
        assert inputs.buckets[batch.image_ids[row] - 1] == inputs.buckets[planned.image_ids[row] - 1]
        assert (batch.gt_classes[row] > 0).sum() == source.num_instances[batch.image_ids[row] - 1]
      else:
        np.testing.assert_array_equal(batch.images[row], planned.images[row])
  assert replaced >= 2 and inputs.unreadable == {3, 17}
  assert len([line for line in warnings if 'image_3.jpg' in line]) == 1
  assert 'replaced by another image' in warnings[0]
  again = TrainInput(bad, batch_size=4, resize=SMALL, workers=1)
  assert_same(again.batch(7), inputs.batch(7))


def test_unreadable_image_is_grey_in_evaluation(source, warnings):
  inputs = EvalInput(Changed(source, unreadable(3)), 4, SMALL)
  (batch, row), = [(b, int(np.flatnonzero(b.image_ids == 4)[0])) for b in inputs.dataset() if 4 in b.image_ids]
  height, width = batch.image_sizes.numpy()[row].astype(int)
  assert np.all(batch.images.numpy()[row, :height, :width] == 127)
  np.testing.assert_array_equal(batch.original_sizes[row], source.sizes[3])
  assert not batch.gt_classes.numpy()[row].any()
  assert len(warnings) == 1 and 'image_3.jpg' in warnings[0] and 'not scored' in warnings[0]
  assert inputs.unreadable == {3}


@pytest.mark.parametrize('input_class', [TrainInput, EvalInput])
def test_too_many_unreadable_images_end_the_run(source, input_class):
  bad = Changed(source, unreadable(*range(0, 40, 2)))
  inputs = input_class(bad, batch_size=4, resize=SMALL, max_unreadable=0.2)
  with pytest.raises(tf.errors.OpError):
    for _ in inputs.dataset().take(10):
      pass
  assert isinstance(inputs.failure, UserError)
  assert 'cannot be read' in str(inputs.failure) and 'max_unreadable' in str(inputs.failure)
  assert '\n' not in str(inputs.failure)


def failing(times, error):
  """Return a `load` whose storage fails a number of times before an image is read."""
  calls = []

  def load(source, i):
    if i == 3:
      calls.append(i)
      if len(calls) <= times:
        raise error()
    return source.load(i)

  return load


def wrapped():
  """Return a storage error as it is raised by a source."""
  error = ImageError('image_3.jpg: cannot be read: restarting')
  error.__cause__ = tf.errors.UnavailableError(None, None, 'restarting')
  return error


def device_error():
  return OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize('error', [wrapped, device_error])
def test_transient_storage_errors_change_no_batch(source, warnings, monkeypatch, error):
  monkeypatch.setattr('rethink_tf.storage.retries.time.sleep', lambda seconds: None)
  inputs = EvalInput(Changed(source, failing(3, error)), 4, SMALL)
  plain = EvalInput(source, 4, SMALL)
  for step in range(plain.num_batches):
    assert_same(inputs.batch(step), plain.batch(step))
  assert not inputs.unreadable and len([line for line in warnings if 'attempt' in line]) == 3


@pytest.mark.parametrize('error', [wrapped, device_error])
def test_permanent_storage_error_is_one_line(source, monkeypatch, error):
  monkeypatch.setattr('rethink_tf.storage.retries.time.sleep', lambda seconds: None)
  inputs = EvalInput(Changed(source, failing(1000, error)), 4, SMALL)
  with pytest.raises(UserError, match=r'image 4 cannot be read: .*(restarting|Input/output error)') as caught:
    for step in range(inputs.num_batches):
      inputs.batch(step)
  assert '\n' not in str(caught.value) and not inputs.unreadable  # not replaced by a grey image


def test_bucket_without_readable_images(source):
  inputs = TrainInput(Changed(source, unreadable(*range(40))), batch_size=4, resize=SMALL, max_unreadable=1.0)
  with pytest.raises(UserError, match='none of the'):
    inputs.batch(0)


def test_only_the_first_unreadable_images_are_logged(warnings):
  source = SyntheticSource(120)
  inputs = EvalInput(Changed(source, unreadable(*range(0, 120))), 8, SMALL, max_unreadable=1.0)
  for _ in inputs.dataset():
    pass
  assert len(inputs.unreadable) == 120
  assert len([line for line in warnings if 'so far' not in line]) == 10
  assert [line for line in warnings if '100 such images so far' in line]


@pytest.mark.parametrize('input_class', [TrainInput, EvalInput])
def test_other_errors_name_the_image(source, input_class):
  def load(source, i):
    if i == 11:
      raise KeyError('segmentation')
    return source.load(i)

  inputs = input_class(Changed(source, load), batch_size=4, resize=SMALL)
  with pytest.raises(tf.errors.OpError, match='image 12 failed: KeyError'):
    for _ in inputs.dataset().take(12):
      pass
  assert isinstance(inputs.failure, RuntimeError) and isinstance(inputs.failure.__cause__, KeyError)


@pytest.mark.parametrize('input_class', [TrainInput, EvalInput])
def test_more_instances_than_slots(input_class, warnings):
  source = SyntheticSource(8, max_objects=30, object_size=(8, 30), seed=1)
  inputs = input_class(source, batch_size=2, resize=SMALL, max_instances=5)
  surplus = 0
  for batch in inputs.dataset().take(3):
    for row in range(2):
      if batch.image_ids[row] < 0:
        continue
      example = source.load(int(batch.image_ids[row]) - 1)
      areas = (example.boxes[:, 2:] - example.boxes[:, :2]).prod(axis=1)
      scale = batch.scales.numpy()[row].prod()
      kept = batch.gt_boxes.numpy()[row]
      kept = np.sort((kept[:, 2:] - kept[:, :2]).prod(axis=1))
      expected = np.zeros(5)
      expected[5 - min(5, len(areas)):] = np.sort(areas)[-5:] * scale
      np.testing.assert_allclose(kept, expected, rtol=1e-4)
      surplus += max(0, len(areas) - 5)
  assert 0 < surplus <= inputs.dropped_instances
  assert not warnings  # training names the limit when it starts; AP counts all objects


def test_images_without_instances():
  def load(source, i):
    return Example(source.load(i).image, np.zeros((0, 4), np.float32), np.zeros(0, np.int32),
                   np.zeros((0, 112, 112), np.uint8), np.zeros((0, 4, 3), np.float32))
  source = Changed(SyntheticSource(6), load)
  for inputs in (EvalInput(source, 4, SMALL), TrainInput(source, 4, resize=SMALL)):
    for batch in inputs.dataset().take(2):
      assert batch.images.numpy().any() and not batch.gt_classes.numpy().any() and not batch.gt_boxes.numpy().any()


def test_invalid_arguments(source):
  for arguments in (dict(batch_size=0), dict(max_instances=0)):
    with pytest.raises(UserError, match='use 1 or more'):
      TrainInput(source, **arguments)
  with pytest.raises(UserError, match='seed is -1'):
    TrainInput(source, seed=-1)
  empty = Changed(source, None)
  empty.sizes, empty.image_ids = np.zeros((0, 2), np.int32), np.zeros(0, np.int64)
  with pytest.raises(UserError, match='no images'):
    EvalInput(empty)


def test_gin_builds_an_input(source):
  gin.parse_config('''
      TrainInput.batch_size = 2
      TrainInput.resize = @Resize()
      Resize.short_side = 64
      Resize.max_side = 96
  ''')
  try:
    assert gin.get_configurable('TrainInput')(source).batch(0).images.shape[1] in (64, 96)
  finally:
    gin.clear_config()


def test_real_images(real_images):
  from rethink_tf.data.detection.coco import CocoSource
  source = CocoSource(str(real_images / 'coco_dev'), 'train2017', training=True)
  inputs = TrainInput(source, batch_size=4)
  for step, batch in zip(range(6), inputs.dataset(), strict=False):
    assert batch.gt_keypoints.shape == (4, 100, 0, 3)
    facts = inputs.facts(step)
    assert facts.pixels / facts.padded_pixels > 0.8
    assert facts.instances == (batch.gt_classes.numpy() > 0).sum() > 0
    sizes = batch.image_sizes.numpy()
    assert np.all((sizes.min(axis=1) == 800) | (sizes.max(axis=1) == 1333))
    assert not batch.gt_masks.numpy()[batch.gt_classes.numpy() == 0].any()
    assert (batch.gt_masks.numpy().max(axis=(2, 3)) == (batch.gt_classes.numpy() > 0)).mean() > 0.99


@pytest.mark.slow
def test_python_exits_while_batches_are_assembled():
  """Threads of tf.data that run Python code at exit would hang the process."""
  program = '''
from rethink_tf.data.augment import Resize
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
inputs = TrainInput(SyntheticSource(60), 8, resize=Resize(128, 160))
first, second = iter(inputs.dataset()), iter(inputs.dataset(3))
for _ in range(4):
  next(first), next(second)
'''
  environment = os.environ | {'PYTHONPATH': os.pathsep.join(sys.path)}
  subprocess.run([sys.executable, '-c', program], check=True, timeout=120, env=environment)


def test_large_scale_jitter(source):
  """At every scale: pixels, sizes and boxes are those of one window of the resized image, the same in every run."""
  inputs, again = (TrainInput(source, batch_size=8, resize=LargeScaleJitter(96), seed=3) for _ in range(2))
  assert inputs.padded_shapes.tolist() == [[96, 96]]
  order, cropped, padded = keypoint_pairs.flip_order(source.categories[0].keypoints), 0, 0
  for step in (4, 2, 0):
    batch = inputs.batch(step)
    assert_same(batch, again.batch(step))
    assert batch.images.shape == (8, 96, 96, 3)
    plan = inputs.plan[step]
    for row, drawn in enumerate(zip(*inputs.sample(plan.indices, plan.epochs), strict=True)):
      flipped, size, offset, _ = drawn
      example = source.load(int(plan.indices[row]))
      example = augment.flip(example, order) if flipped else example
      whole = cv2.resize(example.image, tuple(size[::-1].tolist()))
      window = whole[offset[0]:offset[0] + 96, offset[1]:offset[1] + 96]
      height, width = batch.image_sizes[row].astype(int)
      assert (height, width) == window.shape[:2]
      np.testing.assert_array_equal(batch.images[row, :height, :width], window)
      assert not batch.images[row, height:].any() and not batch.images[row, :, width:].any()
      n = int((batch.gt_classes[row] > 0).sum())
      boxes = batch.gt_boxes[row, :n]
      assert np.all(boxes[:, :2] >= -1e-3) and np.all(boxes[:, 2:] <= np.array([height, width]) + 1e-3)
      if not np.any(size > 96):
        np.testing.assert_allclose(boxes, example.boxes * np.tile(batch.scales[row], 2), rtol=1e-5)
        np.testing.assert_array_equal(batch.gt_masks[row, :n], example.masks)
      cropped, padded = cropped + np.any(size > 96), padded + np.any(size < 96)
    assert inputs.facts(step).pixels == batch.image_sizes.prod(1).sum()
  assert cropped > 3 and padded > 3


def context(host, hosts, replicas):
  return tf.distribute.InputContext(num_input_pipelines=hosts, input_pipeline_id=host, num_replicas_in_sync=replicas)


@pytest.mark.parametrize('hosts, replicas, augmentation', [
  *((hosts, replicas, AUGMENTED[0]) for hosts, replicas in ((1, 2), (2, 2), (2, 4), (4, 4))),
  (2, 4, AUGMENTED[1]), (2, 2, AUGMENTED[2])])
def test_replicas_of_all_hosts_share_every_batch(hosts, replicas, augmentation):
  """Step s has the same images in the same rows for any number of hosts and replicas."""
  source = SyntheticSource(num_images=24, image_size=(64, 96), object_size=(16, 40))
  loaded = [[] for _ in range(hosts)]
  def make_inputs(host):
    def load(inner, i):
      loaded[host].append(i)
      return inner.load(i)
    return TrainInput(Changed(source, load), batch_size=8, seed=3, max_instances=9, **augmentation)

  whole = TrainInput(source, batch_size=8, seed=3, max_instances=9, **augmentation)
  local, steps, first = replicas // hosts, 6, 2  # two epochs of three batches, from step 2 on
  by_host = [list(make_inputs(host).dataset(first, context(host, hosts, replicas)).take(steps * local))
             for host in range(hosts)]
  for k in range(steps):
    shares = [share for own in by_host for share in own[k * local:(k + 1) * local]]
    assert len({tuple(share.images.shape) for share in shares}) == 1  # the same padded shape for all
    assert all(share.image_ids.shape == [8 // replicas] for share in shares)
    assert_same(Batch(*(np.concatenate(column) for column in zip(*shares, strict=True))), whole.batch(first + k))
  rows = slice(8 // hosts)
  for host, own in enumerate(loaded):  # a host reads its own images, and what is joined with them; may read ahead
    own_rows = slice(host * rows.stop, (host + 1) * rows.stop)
    planned = {int(i) for k in range(first, first + steps + 8) for images in whole._planned(k)
               for i in images.indices[own_rows]}
    needed = {int(i) for k in range(first, first + steps) for i in whole._planned(k)[0].indices[own_rows]}
    assert needed <= set(own) <= planned
    # An image that a batch needs twice, as the last of an epoch and the first of the next one, is read once.
    assert len(own) >= sum(len(set(whole.plan[k].indices[own_rows].tolist())) for k in range(first, first + steps))


def test_an_epoch_over_two_hosts_with_two_replicas_has_each_image_once():
  source = SyntheticSource(num_images=24, image_size=(64, 64), object_size=(16, 40))
  inputs = TrainInput(source, batch_size=8, seed=5, resize=SMALL, max_instances=9)
  seen = [np.concatenate([share.image_ids for share in inputs.dataset(0, context(host, 2, 4)).take(3 * 2)])
          for host in range(2)]
  assert not set(seen[0]) & set(seen[1])
  assert sorted(np.concatenate(seen).tolist()) == sorted(source.image_ids.tolist())


def test_batch_that_is_not_divisible_by_the_replicas(source):
  inputs = TrainInput(source, batch_size=6, resize=SMALL)
  with pytest.raises(UserError, match='a batch of 6 images cannot be divided evenly among 4 replicas'):
    inputs.dataset(0, context(0, 2, 4))


def test_workers_share_an_evaluation():
  source = SyntheticSource(num_images=11, image_size=(64, 96), object_size=(16, 40))
  inputs = EvalInput(source, batch_size=2, resize=SMALL, max_instances=9)
  ids = [[int(i) for batch in inputs.dataset((worker, 3)) for i in batch.image_ids if i >= 0] for worker in range(3)]
  assert sorted(sum(ids, [])) == sorted(source.image_ids.tolist()) and all(ids)


@pytest.mark.parametrize('mix', [None, CopyPaste()])
def test_nothing_of_an_earlier_batch_is_left_in_memory_that_is_used_again(monkeypatch, mix):
  """In rows with and without objects, of an unreadable image, and behind the last image."""
  source = SyntheticSource(7, image_size=(60, 80), object_size=(10, 40), seed=2)

  def batches():
    train = TrainInput(source, 3, resize=Resize((60,), 80), max_instances=9, mix=mix)
    held_out = EvalInput(source, 5, Resize((60,), 80), max_instances=9)
    load = held_out._load
    monkeypatch.setattr(held_out, '_load', lambda index, what: None if index == 1 else load(index, what))
    return [train.batch(0), *(held_out.batch(step) for step in range(held_out.num_batches))]

  expected = batches()
  monkeypatch.setattr(BufferPool, 'take', lambda self, shape, dtype: np.full(shape, 77, dtype))
  for batch, clean in zip(batches(), expected, strict=True):
    for field, value in zip(batch, clean, strict=True):
      np.testing.assert_array_equal(field, value)
