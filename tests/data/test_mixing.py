"""Copy-paste and mosaic against a plain reference: whole images and masks of all pixels, in NumPy."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as mask_api

from rethink_tf.data import augment, keyed_random, mixing
from rethink_tf.data.augment import LargeScaleJitter, Resize
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.input import TrainInput
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.data.keypoint_pairs import flip_order
from rethink_tf.data.mixing import CopyPaste, Mosaic
from rethink_tf.errors import UserError
from rethink_tf.structures import NO_MASK, Example
from tests import small_coco

ORDER = flip_order(('top', 'left', 'right', 'bottom'))
FILLED = np.ones((112, 112), np.uint8)


def pixels_of(mask, box, height, width):
  """The pixels of an instance: its mask [112, 112], interpolated at the centre of every pixel of its box."""
  out, side = np.zeros((height, width), bool), len(mask)
  low, high = np.maximum(np.floor(box[:2]).astype(int), 0), np.ceil(box[2:]).astype(int)
  y, x = np.mgrid[low[0]:min(high[0], height), low[1]:min(high[1], width)] + 0.5
  v = np.clip((y - box[0]) / (box[2] - box[0]) * side - 0.5, 0, side - 1)
  u = np.clip((x - box[1]) / (box[3] - box[1]) * side - 0.5, 0, side - 1)
  top, left = np.minimum(v.astype(int), side - 2), np.minimum(u.astype(int), side - 2)
  v, u, mask = v - top, u - left, mask.astype(float)
  value = ((1 - v) * ((1 - u) * mask[top, left] + u * mask[top, left + 1])
           + v * ((1 - u) * mask[top + 1, left] + u * mask[top + 1, left + 1]))
  inside = (value >= 0.5) & (y >= box[0]) & (y < box[2]) & (x >= box[1]) & (x < box[3])
  out[low[0]:low[0] + len(y), low[1]:low[1] + y.shape[1]] = inside
  return out


def whole(source, index, flipped, size, order=ORDER):
  """A resized image with the pixels of its instances, not cropped: image, classes, masks [n, h, w]."""
  example = source.load(int(index))
  example = augment.flip(example, order) if flipped else example
  height, width = size.tolist()
  boxes = example.boxes * np.tile(size / example.image.shape[:2], 2)
  masks = np.zeros((len(boxes), height, width), bool)
  for mask, crop, box in zip(masks, example.masks, boxes, strict=True):
    mask[:] = pixels_of(crop, box, height, width)
  return cv2.resize(example.image, (width, height)), example.classes, masks


def in_shape(values, offset, shape, position=(0, 0), fill=0):
  """What a padded shape shows of an array [..., h, w] from `offset` on, at `position`."""
  out = np.full([*values.shape[:-2], *shape], fill, values.dtype)
  shown = values[..., offset[0]:offset[0] + shape[0] - position[0], offset[1]:offset[1] + shape[1] - position[1]]
  out[..., position[0]:position[0] + shown.shape[-2], position[1]:position[1] + shown.shape[-1]] = shown
  return out


def extent(mask):
  rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
  return np.array([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])


def assert_instances(batch, row, expected, threshold):
  """Compare with (class, visible pixels, pixels before they were covered) in order; return how many were there."""
  shape, slot, matched = batch.images.shape[1:3], 0, 0
  for label, seen, before in expected:
    share = seen.sum() / max(before.sum(), 1)
    found = batch.gt_classes[row, slot] == label
    if found:
      mask = pixels_of(batch.gt_masks[row, slot], batch.gt_boxes[row, slot], *shape)
      found = (mask & seen).sum() > 0.5 * (mask | seen).sum()
    clear = abs(share - threshold) > 0.06 and before.sum() > 40  # else the reference's pixels are too coarse to decide
    if clear:
      assert found == (share > threshold), f'row {row}: class {label}, {share:.2f} of {before.sum()} pixels visible'
    if not found:
      continue
    slot += 1
    if clear:
      matched += 1
      outline = 2 * np.sum(extent(seen)[2:] - extent(seen)[:2])
      assert (mask ^ seen).sum() <= max(0.75 * outline, 0.04 * seen.sum())
      box = batch.gt_boxes[row, slot - 1]
      np.testing.assert_allclose(box, extent(seen), atol=max(1.6, 0.03 * np.max(box[2:] - box[:2])))
  assert not batch.gt_classes[row, slot:].any()  # and no others
  return matched


@pytest.mark.parametrize('resize', [Resize((96,), 128), LargeScaleJitter(96, (0.5, 1.6))])
def test_copy_paste_equals_the_reference(resize):
  source = SyntheticSource(12, image_size=(90, 128), max_objects=6, seed=3)
  mix = CopyPaste(probability=0.75, min_visible=0.3)
  inputs = TrainInput(source, 6, 5, resize, mix=mix)
  matched = pasted = mixed = 0
  for step in range(2):
    batch, (own, other) = inputs.batch(step), inputs._planned(step)
    draws = [inputs.sample(own.indices, own.epochs), inputs.sample(other.indices, other.epochs, 'mix 1 ')]
    shape = batch.images.shape[1:3]
    for row, joined in enumerate(inputs._mixed(own.indices, own.epochs)):
      layers = []
      for plan, drawn in zip((own, other), draws, strict=True):
        image, classes, masks = whole(source, plan.indices[row], drawn.flipped[row], drawn.sizes[row])
        offset = drawn.offsets[row]
        layers.append((in_shape(np.moveaxis(image, -1, 0), offset, shape), classes, in_shape(masks, offset, shape),
                       np.minimum(drawn.sizes[row], shape)))
      (image, classes, masks, visible), (image2, classes2, masks2, visible2) = layers
      present, present2 = masks.any((1, 2)), masks2.any((1, 2))
      region = np.zeros(shape, bool)
      chosen = []
      if joined:
        rng = keyed_random.keyed_generator(5, 'mix', int(own.epochs[row]), int(batch.image_ids[row]))
        candidates = np.flatnonzero(present2)
        count = rng.integers(0, len(candidates) + 1)
        chosen = sorted(candidates[rng.permutation(len(candidates))[:count]].tolist())
        region = masks2[chosen].any(0)
        rows, columns = np.maximum(visible, visible2)
        grey = np.zeros(shape, bool)
        grey[:rows, :columns] = True
        grey[:visible[0], :visible[1]] = False
        image = np.where(region, image2, np.where(grey, 127, image))
        visible, mixed = np.maximum(visible, visible2), mixed + 1
      np.testing.assert_array_equal(batch.image_sizes[row], visible)
      difference = np.abs(np.moveaxis(batch.images[row], -1, 0).astype(int) - image).max(axis=0)
      assert not difference[~cv2.dilate(region.astype(np.uint8), np.ones((3, 3))).astype(bool)].any()
      # An object may be a sixteenth of a pixel off; at its outline, the interpolated mask may be just a half.
      assert (difference > 10).sum() <= 0.02 * region.sum() and difference[region].sum() <= 2 * region.sum()
      expected = [(label, mask & ~region, mask) for label, mask in zip(classes[present], masks[present], strict=True)]
      expected += [(classes2[i], masks2[i], masks2[i]) for i in chosen]
      matched, pasted = matched + assert_instances(batch, row, expected, 0.3 * joined), pasted + len(chosen)
  assert mixed > 6 and pasted > 10 and matched > 30


def test_mosaic_equals_the_reference():
  source = SyntheticSource(12, image_size=(90, 128), max_objects=6, seed=3)
  inputs = TrainInput(source, 4, 5, Resize((96,), 128), mix=Mosaic(min_visible=0.3))
  matched = 0
  for step in range(2):
    batch, plans = inputs.batch(step), inputs._planned(step)
    shape = np.array(batch.images.shape[1:3])
    for row in range(4):
      assert [plan.indices[row] for plan in plans] == [plans[0].indices[(row + k) % 4] for k in range(4)]
      rng = keyed_random.keyed_generator(5, 'mix', int(plans[0].epochs[row]), int(batch.image_ids[row]))
      y, x = np.rint(rng.uniform(0.25, 0.75, 2) * shape).astype(int)
      canvas, expected = np.full([3, *shape], 127, np.uint8), []
      for k, factor in enumerate(rng.uniform(0.5, 1.5, 4)):
        drawn = inputs.sample(plans[k].indices, plans[k].epochs, f'mix {k} ' if k else '')
        size = np.rint(drawn.sizes[row] * factor).astype(int)
        image, classes, masks = whole(source, plans[k].indices[row], drawn.flipped[row], size)
        low, high = np.array([(0, y), (y, shape[0])][k // 2]), np.array([(0, x), (x, shape[1])][k % 2])
        # Position of the whole image: its inner corner at the point.
        top, left = (y if k // 2 else y - size[0]), (x if k % 2 else x - size[1])
        for r in range(max(low[0], top), min(low[1], top + size[0])):
          for_columns = slice(max(high[0], left), min(high[1], left + size[1]))
          canvas[:, r, for_columns] = image[r - top, for_columns.start - left:for_columns.stop - left].T
        for label, mask in zip(classes, masks, strict=True):
          padded = np.zeros(shape + 2 * size.max(), bool)  # the image in a frame wide enough for all of it
          m = size.max()
          padded[m + top:m + top + size[0], m + left:m + left + size[1]] = mask
          seen = padded[m:-m, m:-m].copy()
          quadrant = np.zeros(shape, bool)
          quadrant[low[0]:low[1], high[0]:high[1]] = True
          expected.append((label, seen & quadrant, mask))
      np.testing.assert_array_equal(batch.images[row], np.moveaxis(canvas, 0, -1))
      np.testing.assert_array_equal(batch.image_sizes[row], shape)
      matched += assert_instances(batch, row, expected, 0.3)
  assert matched > 30


def one(boxes, masks, keypoints=None, side=100):
  n = len(boxes)
  return Example(np.zeros((side, side, 3), np.uint8), np.float32(boxes), np.arange(1, n + 1, dtype=np.int32),
                 np.stack(masks), np.zeros((n, 0, 3), np.float32) if keypoints is None else np.float32(keypoints))


def buffers():
  used = mixing.Buffers((100, 100))
  used.covered[:] = used.drawn[:] = 7  # of another image
  return used


def test_what_is_covered_is_cut():
  region = mixing.Region.around(np.float32([(10, 10, 60, 40)]), buffers(), (100, 100))
  assert region.draw(FILLED[None], np.float32([(10, 10, 60, 40)])) == [True]
  assert region.pixels[1:-1, 1:-1].all()
  ring = FILLED.copy()
  ring[20:90, 20:90] = 0
  unknown = np.full_like(FILLED, NO_MASK)
  boxes = [(10, 10, 60, 70), (0, 20, 80, 36), (12, 12, 50, 38), (10, 10, 60, 41), (10, 30, 60, 90), (70, 70, 99, 99)]
  points = np.full((6, 3, 3), (20, 20, 2.0))
  points[:, 1] = 5, 5, 2
  points[:, 2, 2] = 0
  seen = mixing.occlude(one(boxes, [FILLED, FILLED, FILLED, ring, unknown, FILLED], points), region, 0.1)
  assert seen.classes.tolist() == [1, 2, 5, 6]  # wholly covered; a ring of which too little remains
  cell = 0.01 + 1 / 112
  np.testing.assert_allclose(seen.boxes[0], (10, 40, 60, 70), atol=60 * cell)  # the left half is covered
  assert seen.masks[0].all()
  np.testing.assert_array_equal(seen.boxes[1], (0, 20, 80, 36))  # covered in the middle
  assert seen.masks[1][:12].all() and not seen.masks[1][16:80].any() and seen.masks[1][86:].all()
  np.testing.assert_allclose(seen.boxes[2], (10, 40, 60, 90), atol=60 * cell)
  assert (seen.masks[2] == NO_MASK).all()  # its box shrinks, its mask stays unknown
  np.testing.assert_array_equal(seen.boxes[3], boxes[5])
  assert (seen.keypoints[:, 0, 2] == 1).all() and (seen.keypoints[:, 1, 2] == 2).all()  # labelled, not visible
  assert not seen.keypoints[:, 2, 2].any()


def test_a_side_that_loses_nothing_stays_as_annotated():
  """The box of an annotation may be larger than its mask."""
  small = np.zeros_like(FILLED)
  small[10:100, 10:100] = 1
  right = np.float32([0, 50, 100, 100])
  region = mixing.Region.around(right[None], buffers(), (100, 100))
  region.draw(FILLED[None], right[None])
  seen = mixing.occlude(one([(8, 8, 92, 92)], [small]), region, 0.1)
  np.testing.assert_array_equal(seen.boxes[0, :3], (8, 8, 92))
  assert abs(seen.boxes[0, 3] - 50) < 1
  untouched = mixing.occlude(one([(8, 8, 49, 49)], [small]), region, 0.1)
  np.testing.assert_array_equal(untouched.masks[0], small)


def test_objects_without_a_known_mask_are_never_pasted():
  unknown = np.full_like(FILLED, NO_MASK)
  masks = np.stack([FILLED, unknown, FILLED, unknown])
  chosen = [CopyPaste()._choose(masks, np.random.default_rng(seed)) for seed in range(60)]
  assert {tuple(each) for each in chosen} == {(), (0,), (2,), (0, 2)}
  assert max(len(CopyPaste(max_pasted=1)._choose(masks, np.random.default_rng(seed))) for seed in range(60)) == 1
  assert CopyPaste()._choose(masks[1:2], np.random.default_rng(0)) == []


def test_crowds_are_never_pasted(tmp_path):
  """A crowd fills image 2 and an object of 20 x 30 lies in it: no more than the object appears in image 1."""
  folder = small_coco.write(tmp_path, [small_coco.image(1), small_coco.image(90)],
                            [small_coco.annotation(1), small_coco.crowd(2, 90), small_coco.annotation(3, 90)])
  inputs = TrainInput(CocoSource(folder, training=True), 2, resize=Resize((60,), 80), mix=CopyPaste())
  pasted = []
  for step in range(12):
    batch = inputs.batch(step)
    row = batch.image_ids.tolist().index(1)
    pasted.append(int((batch.images[row, :60, :80, 0] > 45).sum()))
    assert (batch.gt_classes[row] > 0).sum() <= 2
  assert set(pasted) == {0, 600}


@pytest.mark.parametrize('make, message', [
  (lambda: CopyPaste(probability=1.5), r'CopyPaste.probability = 1.5: use a fraction, 0 to 1'),
  (lambda: CopyPaste(min_visible=-0.1), r'CopyPaste.min_visible = -0.1'),
  (lambda: CopyPaste(max_pasted=0), r'CopyPaste.max_pasted = 0: use 1 or more'),
  (lambda: Mosaic(probability=-1), r'Mosaic.probability = -1'),
  (lambda: Mosaic(centre=(0.6, 0.4)), r'Mosaic.centre = \(0.6, 0.4\): use two fractions'),
  (lambda: Mosaic(scales=(0, 1)), r'Mosaic.scales = \(0, 1\): use two scales'),
])
def test_settings_out_of_range(make, message):
  with pytest.raises(UserError, match=message) as caught:
    make()
  assert '\n' not in str(caught.value)


@pytest.mark.parametrize('data, split, images', [('coco_dev', 'train2017', 40), ('facade', 'train', 6)])
def test_real_images(real_images, data, split, images):
  """Only pixels of annotated objects change, never those of crowds; what is left of each object is where it was."""
  source = CocoSource(str(real_images / data), split, num_images=images, training=True)
  inputs = TrainInput(source, 2, 1, LargeScaleJitter(256, (0.4, 1.5)), mix=CopyPaste())
  crowds = [sum(entry['iscrowd'] for i in inputs._planned(step)[1].indices.tolist()
                for entry in source.image_annotations(i)) for step in range(images)]
  assert any(crowds) == (data == 'coco_dev')
  for step in (0, int(np.argmax(crowds))):
    batch, (own, other) = inputs.batch(step), inputs._planned(step)
    draws = [inputs.sample(own.indices, own.epochs), inputs.sample(other.indices, other.epochs, 'mix 1 ')]
    for row in range(2):
      drawn, drawn2 = ([field[row] for field in each] for each in draws)
      image, classes, masks = whole(source, own.indices[row], *drawn[:2], flip_order(()))
      before = in_shape(np.moveaxis(image, -1, 0), drawn[2], (256, 256), fill=127)
      changed = np.any(np.moveaxis(batch.images[row], -1, 0) != before, axis=0)
      changed[int(batch.image_sizes[row, 0]):], changed[:, int(batch.image_sizes[row, 1]):] = False, False
      allowed = in_shape(annotated(source, int(other.indices[row]), *drawn2[:2]), drawn2[2], (256, 256))
      assert not np.any(changed & ~allowed)
      used = int((batch.gt_classes[row] > 0).sum())
      boxes = batch.gt_boxes[row, :used]
      assert np.all(boxes[:, 2:] > boxes[:, :2]) and np.all(boxes[:, 2:] <= batch.image_sizes[row] + 1e-3)
      for label, box, mask in zip(batch.gt_classes[row], boxes, batch.gt_masks[row], strict=False):
        shown = pixels_of(mask, box, 256, 256)
        if shown.sum() < 30 or mask[0, 0] == NO_MASK:
          continue
        candidates = in_shape(masks[classes == label], drawn[2], (256, 256)) & ~changed
        own_share = max([(shown & each).sum() / shown.sum() for each in candidates], default=0)
        assert max(own_share, (shown & allowed).sum() / shown.sum()) > 0.9


def annotated(source, index, flipped, size):
  """The pixels of the objects of an image that are no crowds, from the annotation file, and those next to them."""
  height, width = source.sizes[index].tolist()
  union = np.zeros((height, width), np.uint8)
  for entry in source.image_annotations(index):
    if not entry['iscrowd']:
      rle = entry['segmentation']
      rle = mask_api.merge(mask_api.frPyObjects(rle, height, width)) if isinstance(rle, list) else rle
      union |= mask_api.decode(rle)
      # A mask is known to 1/112 of its box.
      union |= cv2.dilate(mask_api.decode(rle), np.ones([3 + int(2 * side / 112) for side in entry['bbox'][:1:-1]]))
  union = union[:, ::-1] if flipped else union
  grown = cv2.dilate(cv2.resize(union, tuple(size[::-1].tolist()), interpolation=cv2.INTER_NEAREST), np.ones((3, 3)))
  return grown > 0


@pytest.mark.parametrize('box, pixels', [([10.6, 5, 11.4, 9], 0), ([5, 10.6, 9, 11.4], 0), ([10.4, 5, 11.4, 9], 4),
                                         ([5, 10.4, 9, 11.4], 4), ([5, 6, 9, 11], 20)])
def test_an_object_covers_the_pixels_whose_centres_its_box_holds(box, pixels):
  boxes = np.array([box], np.float32)
  region = mixing.Region.around(boxes, mixing.Buffers([20, 30]), [20, 30])
  assert region.draw(FILLED[None], boxes) == [pixels > 0]
  assert np.count_nonzero(region.pixels) == pixels and region.overlaps(boxes) == [pixels > 0]
