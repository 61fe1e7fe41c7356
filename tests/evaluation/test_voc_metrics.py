"""VOC's average precision against a direct implementation of its rules, by hand and on perturbed boxes of BCCD."""

import numpy as np
import pytest

from rethink_tf.evaluation.voc_metrics import RULES, THRESHOLDS, Detections, Objects, average_precisions


def reference(objects, detections, k, threshold, rule):
  """Compute the AP of class k, one detection after the other, in the kit's 1-based boxes with inclusive corners."""
  truth = {}
  for image, class_, (y0, x0, y1, x1), difficult in zip(*objects, strict=True):
    if class_ == k:
      truth.setdefault(int(image), []).append(
        {'box': (x0 + 1, y0 + 1, x1, y1), 'difficult': difficult, 'matched': False})
  positives = sum(not one['difficult'] for ones in truth.values() for one in ones)
  if not positives:
    return -1.0
  mine = [row for row in zip(*detections, strict=True) if row[1] == k]
  mine.sort(key=lambda row: -row[3])  # stable
  true, false, curve = 0, 0, []
  for image, _, (y0, x0, y1, x1), _ in mine:
    box, best, owner = (x0 + 1, y0 + 1, x1, y1), -np.inf, None
    for one in truth.get(int(image), []):
      a = one['box']
      w, h = min(a[2], box[2]) - max(a[0], box[0]) + 1, min(a[3], box[3]) - max(a[1], box[1]) + 1
      if w > 0 and h > 0:
        area, other = ((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, box))
        if w * h / (area + other - w * h) > best:
          best, owner = w * h / (area + other - w * h), one
    if best > threshold and owner['difficult']:
      pass
    elif best > threshold and not owner['matched']:
      owner['matched'], true = True, true + 1
    else:
      false += 1
    curve.append((true / positives, true / (true + false) if true + false else 0.0))
  if rule == '11-point':
    return sum(max([p for r, p in curve if r >= point], default=0.0) for point in np.arange(0, 1.1, 0.1)) / 11
  area, reached = 0.0, 0.0
  for i, (recall, _) in enumerate(curve):
    area += (recall - reached) * max(p for _, p in curve[i:])
    reached = recall
  return area


def objects_of(*rows):
  """(image, class, box, difficult) ..."""
  images, classes, boxes, difficult = zip(*rows, strict=True) if rows else ((),) * 4
  return Objects(np.array(images, np.int64), np.array(classes, np.int64), np.reshape(np.float64(boxes), [-1, 4]),
                 np.array(difficult, bool))


def detections_of(*rows):
  """(image, class, box, score) ..."""
  images, classes, boxes, scores = zip(*rows, strict=True) if rows else ((),) * 4
  return Detections(np.array(images, np.int64), np.array(classes, np.int64), np.reshape(np.float64(boxes), [-1, 4]),
               np.array(scores, np.float64))


A, B, C = [0, 0, 10, 10], [20, 20, 40, 40], [0, 30, 10, 50]


def shifted(box, by):
  return [box[0], box[1] + by, box[2], box[3] + by]


@pytest.mark.parametrize('objects, detections, expected', [
  ([(1, 1, A, 0)], [(1, 1, A, .9)], 1.0),
  ([(1, 1, A, 0)], [], 0.0),
  ([(1, 1, A, 1)], [(1, 1, A, .9)], -1.0),  # a difficult object only
  ([], [(1, 1, A, .9)], -1.0),
  ([(1, 1, A, 0)], [(2, 1, A, .9)], 0.0),  # same box, other image
  ([(1, 1, A, 0)], [(1, 2, A, .9)], 0.0),  # same box, other class
  ([(1, 1, A, 0), (1, 1, B, 1)], [(1, 1, B, .9), (1, 1, B, .8), (1, 1, A, .7)], 1.0),  # difficult: ignored
  ([(1, 1, A, 0), (1, 1, B, 0)], [(1, 1, A, .9), (1, 1, A, .8), (1, 1, B, .7)], .5 + .5 * 2 / 3),  # detected twice
  ([(1, 1, A, 0)], [(1, 1, shifted(A, 5), .9), (1, 1, A, .8)], .5),  # IoU 1/3 is false
  # IoU 1/2 does not exceed 1/2; its neighbour of 0.51 does.
  ([(1, 1, [0, 0, 10, 10], 0)], [(1, 1, [0, 0, 10, 20], .9)], 0.0),
  ([(1, 1, [0, 0, 10, 10], 0)], [(1, 1, [0, 0, 10, 19.5], .9)], 1.0),
  # The second is assigned to the object of the largest overlap, though it is matched and the other is close enough.
  ([(1, 1, [0, 0, 10, 10], 0), (1, 1, [0, 3, 10, 13], 0)],
   [(1, 1, [0, 0, 10, 10], .9), (1, 1, [0, 1, 10, 11], .8)], .5),
  # A detection is ignored if its largest overlap is with a difficult object, even if another one is close enough.
  ([(1, 1, [0, 0, 10, 10], 1), (1, 1, [0, 3, 10, 13], 0)], [(1, 1, [0, 1, 10, 11], .8)], 0.0),
  ([(1, 1, A, 0)], [(1, 1, B, .5), (1, 1, A, .5)], .5),  # equal scores: the earlier row counts first
  ([(1, 1, A, 0)], [(1, 1, A, .5), (1, 1, B, .5)], 1.0),
])
def test_cases_by_hand(objects, detections, expected):
  objects, detections = objects_of(*objects), detections_of(*detections)
  (ap,), = average_precisions(objects, detections, 1, thresholds=[.5])
  assert ap == pytest.approx(expected, abs=1e-12)
  for rule in RULES:
    (ap,), = average_precisions(objects, detections, 1, rule, [.5])
    assert ap == pytest.approx(reference(objects, detections, 1, .5, rule), abs=1e-12)


def test_eleven_points():
  """Two of four objects detected with precision 1: six of the eleven recalls, 0, .1, ... .5, are reached."""
  boxes = [shifted(A, 100 * i) for i in range(4)]
  objects = objects_of(*((1, 1, box, 0) for box in boxes))
  detections = detections_of(*((1, 1, box, .9) for box in boxes[:2]))
  (ap,), = average_precisions(objects, detections, 1, '11-point', [.5])
  assert ap == pytest.approx(6 / 11)


def random_scene(rng, images, classes, objects, detections, grid):
  """Boxes on a coarse grid, so that equal overlaps, duplicates and equal scores are frequent."""
  def boxes(n):
    corners = rng.integers(0, 6, [n, 2]) * grid
    return np.concatenate([corners, corners + rng.integers(1, 5, [n, 2]) * grid], axis=1).astype(np.float64)

  truth = Objects(rng.integers(0, images, objects) * 7, rng.integers(1, classes + 1, objects), boxes(objects),
                  rng.random(objects) < .3)
  return truth, Detections(rng.integers(0, images, detections) * 7, rng.integers(1, classes + 1, detections),
                           boxes(detections), rng.integers(0, 6, detections) / 6)


@pytest.mark.parametrize('seed', range(8))
def test_random_scenes_equal_the_reference(seed):
  rng = np.random.default_rng(seed)
  objects, detections = random_scene(rng, images=4, classes=3, objects=25, detections=120, grid=1 + seed % 3)
  for rule in RULES:
    aps = average_precisions(objects, detections, 4, rule)
    assert aps.shape == (len(THRESHOLDS), 4)
    for t, threshold in enumerate(THRESHOLDS):
      expected = [reference(objects, detections, k, threshold, rule) for k in (1, 2, 3, 4)]
      np.testing.assert_allclose(aps[t], expected, atol=1e-12)


@pytest.mark.slow
def test_blood_cells_equal_the_reference(real_images):
  """All 364 images of bccd_voc: boxes shifted, repeated and dropped, some of them marked as difficult."""
  from rethink_tf.data.detection.voc import VocSource

  source = VocSource(str(real_images / 'bccd_voc'), sets=('trainval', 'test'), classes=None)
  rng, rows, found = np.random.default_rng(0), [], []
  for annotation in source.annotations()['annotations']:
    x, y, w, h = annotation['bbox']
    box, image, k = np.array([y, x, y + h, x + w]), annotation['image_id'], annotation['category_id']
    rows.append((image, k, box, rng.random() < .1))
    for _ in range(rng.integers(0, 4)):
      moved = box + rng.normal(0, .12, 4) * np.array([h, w, h, w])
      found.append((image, int(rng.integers(1, 4)) if rng.random() < .1 else k, moved, round(rng.random(), 2)))
  objects, detections = objects_of(*rows), detections_of(*found)
  assert len(rows) == 4888 and len(found) > 6000
  for rule in RULES:
    aps = average_precisions(objects, detections, 3, rule, [.5, .75])
    for t, threshold in enumerate([.5, .75]):
      expected = [reference(objects, detections, k, threshold, rule) for k in (1, 2, 3)]
      np.testing.assert_allclose(aps[t], expected, atol=1e-9)
  assert .05 < aps.min() < aps.max() < .9


def test_an_unknown_rule_is_an_error():
  with pytest.raises(ValueError, match='rule'):
    average_precisions(objects_of(), detections_of(), 1, '12-point')
