"""Errors of keypoints by kind: constructed detections with one known error each, and laws on random ones."""

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics
from rethink_tf.inspect_run.keypoint_errors import KINDS, analyse

NAMES = ('nose', 'left_hand', 'right_hand', 'left_foot', 'right_foot')
SIGMAS = (0.1,) * 5
AREA = 10_000.0
BODY = np.array([[50, 10], [10, 50], [90, 50], [30, 100], [70, 100]], float)  # x, y
EVERY = [0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]


def radius(similarity):
  """Distance at which a keypoint of BODY has this similarity, in pixels: half of it at 23.5."""
  return float(np.sqrt(-2 * AREA * np.log(similarity)) * 2 * SIGMAS[0])


def truth(*people, images=1, **fields):
  """people: (image_id, [5, 2]); a third column is visibility, else 2."""
  annotations = []
  for number, (image_id, body) in enumerate(people, start=1):
    body = np.asarray(body, float)
    body = body if body.shape[1] == 3 else np.column_stack([body, np.full(5, 2)])
    low, size = body[:, :2].min(0), np.ptp(body[:, :2], axis=0)
    annotations.append({'id': number, 'image_id': image_id, 'category_id': 1, 'iscrowd': 0, 'area': AREA,
                        'bbox': [*low.tolist(), *size.tolist()], 'keypoints': body.reshape(-1).tolist(),
                        'num_keypoints': int((body[:, 2] > 0).sum())} | fields)
  return {'images': [{'id': i, 'height': 500, 'width': 500} for i in range(1, images + 1)],
          'annotations': annotations, 'categories': [{'id': 1, 'name': 'person', 'keypoints': list(NAMES)}]}


def found(*detections):
  """(image_id, [5, 2], score)"""
  return [{'image_id': image, 'category_id': 1, 'score': score,
           'keypoints': np.column_stack([body, np.ones(5)]).reshape(-1).tolist()} for image, body, score in detections]


def moved(changes, body=BODY):
  """body with keypoints elsewhere: {index: (x, y)}."""
  body = body.copy()
  for index, place in changes.items():
    body[index] = place
  return body


def errors(result):
  return {kind: number for kind, number in result.counts.items() if number}


def test_nothing_wrong():
  result = analyse(truth((1, BODY)), found((1, BODY, 0.9)), SIGMAS)
  assert result.ap == pytest.approx(1) and not errors(result) and result.well == 5
  assert result.correct == result.objects == 1 and result.keypoint_names == NAMES
  assert not any(result.gained.values()) and result.all_mended == result.false_positives == result.false_negatives == 0


OTHER = BODY + [300, 0]


# Kind, what the detection has elsewhere, its similarity after mending.
@pytest.mark.parametrize('kind, changes, mended', [
  ('jitter', {0: BODY[0] + [radius(0.6), 0]}, 0.85),
  ('miss', {0: [200, 200]}, 0.5),
  ('miss', {0: BODY[0] - [0, radius(0.4)]}, 0.5),
  ('inversion', {1: BODY[2]}, 1.0),
  ('inversion', {3: BODY[4] + [0, radius(0.7)]}, 0.7),
  ('swap', {1: OTHER[1]}, 1.0),
  ('swap', {1: OTHER[2] + [radius(0.9), 0]}, 0.9),
  ('swap', {0: OTHER[0]}, 1.0),
], ids=['jitter', 'miss', 'near-miss', 'inversion', 'near-inversion', 'swap', 'swap-of-sides', 'swap-of-the-middle'])
def test_one_error(kind, changes, mended):
  """What mending gains is known: OKS is the mean of five similarities, and AP the share of thresholds it reaches."""
  gt = truth((1, BODY), (1, OTHER))
  result = analyse(gt, found((1, moved(changes), 0.9), (1, OTHER, 0.8)), SIGMAS)
  assert errors(result) == {kind: 1} and result.well == 9
  index = next(iter(changes))
  assert result.by_keypoint[KINDS.index(kind), index] == 1

  # Two objects: below the threshold the surer detection is wrong and the other right, half of the recall at precision
  # one half.
  def ap(similarity):
    return float(np.mean([1.0 if (4 + similarity) / 5 + 1e-9 >= threshold else 51 / 101 / 2 for threshold in EVERY]))

  distance = np.square(moved(changes) - BODY).sum(1)[index]
  similarity = np.exp(-distance / (2 * SIGMAS[0])**2 / AREA / 2)
  assert result.ap == pytest.approx(ap(similarity))
  assert result.gained[kind] == pytest.approx(ap(mended) - ap(similarity))
  assert result.all_mended == pytest.approx(result.gained[kind])
  assert all(abs(gain) < 1e-9 for other, gain in result.gained.items() if other != kind)
  mistake, = result.worst[kind]
  assert (mistake.image_id, mistake.result, mistake.annotation, mistake.keypoints) == (1, 0, 0, (index,))
  assert mistake.oks == pytest.approx((4 + similarity) / 5, abs=1e-6)


def test_several_kinds_in_one_detection():
  detection = moved({0: BODY[0] + [radius(0.7), 0], 1: BODY[2], 2: [400, 400], 3: OTHER[3]})
  result = analyse(truth((1, BODY), (1, OTHER)), found((1, detection, 0.9), (1, OTHER, 0.8)), SIGMAS)
  assert errors(result) == {'jitter': 1, 'inversion': 1, 'miss': 1, 'swap': 1} and result.well == 6
  assert result.by_keypoint.sum(axis=0).tolist() == [2] * 5


def test_all_sides_confused():
  """OKS is 0 where the nose is not labelled: still the person stands there."""
  body = np.column_stack([BODY, [0, 2, 2, 2, 2]])
  result = analyse(truth((1, body)), found((1, BODY[[0, 2, 1, 4, 3]], 0.9)), SIGMAS)
  assert errors(result) == {'inversion': 4} and result.ap == 0
  assert result.gained['inversion'] == pytest.approx(1) and result.false_negatives == 0


def test_without_sides_there_is_no_inversion():
  gt = truth((1, BODY))
  gt['categories'][0]['keypoints'] = list('abcde')
  assert errors(analyse(gt, found((1, moved({1: BODY[2]}), 0.9)), SIGMAS)) == {'miss': 1}


def test_unlabelled_keypoints_and_ignored_objects():
  """Neither is asked for, nor can a keypoint be confused with one that is not labelled."""
  body = np.column_stack([BODY, [2, 2, 0, 1, 2]])
  nobody = np.column_stack([OTHER, np.zeros(5)])
  result = analyse(truth((1, body), (1, nobody)), found((1, moved({1: BODY[2], 2: [0, 0], 3: OTHER[3]}), 0.9)), SIGMAS)
  assert errors(result) == {'miss': 2} and result.well == 2 and result.objects == 1
  assert result.by_keypoint[:, 2].sum() == 0


def test_who_stands_for_whom():
  """A sure but poor detection does not take the object from a good one; what is elsewhere stands for nothing."""
  gt = truth((1, BODY), (2, BODY), images=2)
  poor = moved({0: [300, 300], 1: [300, 300], 2: [300, 300]})
  result = analyse(gt, found((1, poor, 0.9), (1, BODY, 0.8), (1, BODY + 250, 0.7)), SIGMAS)
  assert not errors(result) and result.correct == 1 and result.objects == 2
  assert result.ap == pytest.approx(51 / 101 / 2) and result.false_positives == pytest.approx(51 / 101 / 2)
  assert result.false_negatives == pytest.approx(1 / 2 - 51 / 101 / 2)
  assert errors(analyse(gt, found((1, poor, 0.9)), SIGMAS)) == {'miss': 3}, 'without the good one it does'


def test_empty_inputs():
  nothing = analyse(truth(), [], SIGMAS)
  assert nothing.ap == -1 and not errors(nothing) and not any(nothing.gained.values())
  missed = analyse(truth((1, BODY)), [], SIGMAS)
  assert missed.ap == 0 and missed.false_negatives == 1 and missed.objects == 1 and missed.correct == 0
  wrong = analyse(truth(), found((1, BODY, 0.9)), SIGMAS)
  assert wrong.ap == -1 and wrong.false_positives == 0


def test_what_does_not_fit():
  with pytest.raises(UserError, match='category_id 4'):
    analyse(truth((1, BODY)), [found((1, BODY, 0.9))[0] | {'category_id': 4}], SIGMAS)
  with pytest.raises(UserError, match='detections: 15 numbers .* 51'):
    analyse(truth(), found((1, BODY, 0.9)))


def random_case(seed, images=30):
  """Crowded people; detections with noise, confused sides, somebody else's keypoints, and made up ones."""
  rng = np.random.default_rng(seed)
  people, detections = [], []
  for image in range(1, images + 1):
    bodies = [BODY + rng.uniform(0, 150, 2) for _ in range(rng.integers(0, 4))]
    for body in bodies:
      people.append((image, np.column_stack([body, rng.integers(0, 3, 5)])))
      if rng.random() < 0.8:
        guess = body + rng.normal(0, rng.choice([1, 8, 25]), (5, 2))
        guess = guess[[0, 2, 1, 4, 3]] if rng.random() < 0.3 else guess
        strange = rng.random(5) < 0.2
        guess[strange] = bodies[0][strange]
        detections.append((image, guess, float(rng.integers(1, 10)) / 10))
    if rng.random() < 0.3:
      detections.append((image, rng.uniform(0, 400, (5, 2)), float(rng.random())))
  return truth(*people, images=images), found(*detections)


@pytest.mark.parametrize('seed', range(4))
def test_laws_on_random_cases(seed):
  gt, results = random_case(seed)
  result = analyse(gt, results, SIGMAS, backend='pycocotools')
  official = coco_metrics.evaluate(gt, results, 'keypoints', 'pycocotools', SIGMAS)
  assert result.ap == official.figures['AP'] and result.category_ap.tolist() == [official.categories[0].AP]
  assert sum(errors(result).values()) + result.well == result.by_keypoint.sum()
  assert result.correct <= min(result.objects, len(results)) and min(result.counts.values()) > 0
  np.testing.assert_allclose(result.category_gained[:, 0], list(result.gained.values()))
  assert result.all_mended > max(result.gained.values()) > 0
  other = analyse(gt, results, SIGMAS, backend='hotcoco')
  np.testing.assert_allclose(list(other.gained.values()), list(result.gained.values()), atol=1e-9)
