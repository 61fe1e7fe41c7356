"""The synthetic source: exact annotations, reproducible images, errors in one line."""

import time

import gin
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rethink_tf.data.detection.synthetic import OUTLINES, SyntheticSource
from rethink_tf.errors import UserError


def _coco(source):
  coco = COCO()
  coco.dataset = source.annotations()
  coco.createIndex()
  return coco


def test_attributes_and_types():
  source = SyntheticSource(num_images=20)
  assert source.name == 'synthetic'
  assert source.num_classes == len(source.categories) == 6 and source.num_keypoints == 4
  assert [c.id for c in source.categories] == [1, 2, 3, 4, 5, 6]
  assert source.image_ids.dtype == np.int64 and source.image_ids.tolist() == list(range(1, 21))
  assert source.sizes.dtype == np.int32 and source.num_instances.dtype == np.int32
  for i in range(20):
    example = source.load(i)
    n = source.num_instances[i]
    assert example.image.dtype == np.uint8 and example.image.shape == (*source.sizes[i], 3)
    assert example.boxes.dtype == np.float32 and example.boxes.shape == (n, 4)
    assert example.classes.dtype == np.int32 and set(example.classes) <= set(range(1, 7))
    assert example.masks.dtype == np.uint8 and example.masks.shape == (n, 112, 112) and example.masks.max() == 1
    assert example.keypoints.dtype == np.float32 and example.keypoints.shape == (n, 4, 3)
    height, width = source.sizes[i]
    assert np.all(example.boxes[:, :2] >= 0) and np.all(example.boxes[:, 2:] <= (height, width))
    assert np.all(example.boxes[:, 2:] > example.boxes[:, :2])


def test_annotations_are_exact_and_equal_those_of_load():
  source = SyntheticSource(num_images=15, num_classes=len(OUTLINES), seed=3)
  coco = _coco(source)
  for i, image_id in enumerate(source.image_ids.tolist()):
    example = source.load(i)
    annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image_id]))
    assert len(annotations) == source.num_instances[i]
    covered = np.zeros(source.sizes[i], int)
    for annotation, box, label, keypoints in zip(
        annotations, example.boxes, example.classes, example.keypoints, strict=True):
      mask = coco.annToMask(annotation)
      covered += mask
      rows, columns = np.nonzero(mask)
      np.testing.assert_array_equal(box, [rows.min(), columns.min(), rows.max() + 1, columns.max() + 1])
      x, y, w, h = annotation['bbox']
      np.testing.assert_array_equal(box, [y, x, y + h, x + w])
      np.testing.assert_array_equal(coco_mask.toBbox(coco.annToRLE(annotation)), [x, y, w, h])
      assert annotation['area'] == mask.sum() and annotation['iscrowd'] == 0
      assert annotation['category_id'] == source.categories[label - 1].id
      np.testing.assert_array_equal(np.reshape(annotation['keypoints'], (-1, 3))[:, [1, 0, 2]], keypoints)
      assert annotation['num_keypoints'] == (keypoints[:, 2] > 0).sum()
      for y, x, visibility in keypoints.astype(int):
        assert (visibility == 2) <= bool(mask[y, x])  # a visible keypoint lies on the visible mask
        assert visibility > 0 or (y, x) == (0, 0)
    assert covered.max() == 1  # each pixel belongs to one shape, the topmost


def test_mask_crops_equal_the_masks():
  import cv2
  source = SyntheticSource(num_images=10)
  coco = _coco(source)
  for i, image_id in enumerate(source.image_ids.tolist()):
    example = source.load(i)
    for annotation, box, crop in zip(coco.loadAnns(coco.getAnnIds(imgIds=[image_id])), example.boxes.astype(int),
                                     example.masks, strict=True):
      mask = coco.annToMask(annotation)[box[0]:box[2], box[1]:box[3]]
      pasted = cv2.resize(crop.astype(np.float32), mask.shape[::-1], interpolation=cv2.INTER_AREA) >= 0.5
      assert (pasted & (mask > 0)).sum() / (pasted | (mask > 0)).sum() > 0.95


def test_min_visible():
  crowded = SyntheticSource(num_images=30, max_objects=12, min_visible=0.5)
  apart = SyntheticSource(num_images=30, max_objects=12, min_visible=1.0)
  overlapping = 0
  for i in range(30):
    scene, _ = crowded._scene(i)
    for index, shape in enumerate(scene.shapes):
      visible = (scene.owner == index + 1).sum() / shape.mask.sum()
      assert visible >= 0.5
      overlapping += visible < 1
    scene, _ = apart._scene(i)
    assert all((scene.owner == k + 1).sum() == shape.mask.sum() for k, shape in enumerate(scene.shapes))
  assert overlapping > 20


def test_images_are_pure_functions_of_their_key():
  long, short = SyntheticSource(num_images=40), SyntheticSource(num_images=5)
  for i in (4, 0, 2):
    for a, b in zip(short.load(i), long.load(i), strict=True):
      np.testing.assert_array_equal(a, b)
  assert not np.array_equal(SyntheticSource(5, seed=1).load(0).boxes, short.load(0).boxes)


def test_splits_and_seeds_have_no_common_image():
  first_boxes = {SyntheticSource(8, split=split, seed=seed).load(i).boxes.tobytes()
                 for split in ('train', 'val') for seed in (0, 1, 2) for i in range(8)}
  assert len(first_boxes) == 2 * 3 * 8


def test_fractions_are_nested():
  whole, half, tenth = (SyntheticSource(200, fraction=f) for f in (1.0, 0.5, 0.1))
  assert (len(whole.image_ids), len(half.image_ids), len(tenth.image_ids)) == (200, 100, 20)
  assert set(tenth.image_ids) < set(half.image_ids) < set(whole.image_ids)
  np.testing.assert_array_equal(half.load(3).image, whole.load(int(half.image_ids[3]) - 1).image)


def test_colour_is_independent_of_the_class():
  """A nearest-mean classifier on the mean colour of each shape is close to chance (1/6)."""
  colours, labels = [], []
  source = SyntheticSource(num_images=150)
  for i in range(150):
    scene, _ = source._scene(i)
    image = source.load(i).image
    for index, shape in enumerate(scene.shapes):
      colours.append(image[scene.owner == index + 1].mean(axis=0))
      labels.append(shape.label)
  colours, labels = np.array(colours), np.array(labels)
  train = np.arange(len(labels)) % 2 == 0
  means = np.stack([colours[train & (labels == k)].mean(axis=0) for k in range(1, 7)])
  guesses = 1 + np.linalg.norm(colours[~train, None] - means, axis=2).argmin(axis=1)
  assert (guesses == labels[~train]).mean() < 0.3
  assert np.bincount(labels, minlength=7)[1:].min() > len(labels) / 12  # no class is rare


def test_shapes_contrast_with_the_background():
  source = SyntheticSource(num_images=20, max_objects=1, contrast=100)
  for i in range(20):
    image, (scene, _) = source.load(i).image.astype(float), source._scene(i)
    inside, outside = image[scene.owner == 1].mean(axis=0), image[scene.owner == 0].mean(axis=0)
    assert np.linalg.norm(inside - outside) > 50


def test_rendering_is_fast():
  source = SyntheticSource(num_images=100)
  source.load(0)
  start = time.process_time()
  for i in range(100):
    source.load(i)
  assert time.process_time() - start < 2.0  # 2 ms each on an idle core; the limit is for busy machines


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(split='test'), "split is 'test'"), (dict(num_classes=0), 'num_classes'), (dict(num_classes=99), 'num_cl'),
    (dict(num_images=0), 'num_images'), (dict(fraction=0.0), 'fraction'), (dict(object_size=(20, 400)), 'object_s'),
    (dict(image_size=(160, 128)), 'image_size'), (dict(min_visible=0.0), 'min_visible'), (dict(max_objects=0), 'max'),
    (dict(seed=-1), 'seed is -1'),
])
def test_invalid_arguments(arguments, message):
  with pytest.raises(UserError, match=message) as error:
    SyntheticSource(**arguments)
  assert '\n' not in str(error.value)


def test_gin_name():
  gin.parse_config('synthetic.num_images = 7\nsynthetic.split = "val"')
  try:
    source = gin.get_configurable('synthetic')()
    assert len(source.image_ids) == 7 and source.split == 'val'
  finally:
    gin.clear_config()
