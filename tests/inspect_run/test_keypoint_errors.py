"""Errors of keypoints by kind: detections with one known error each, and laws on random ones."""

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
  """Return the distance in pixels at which a keypoint of BODY has this similarity: 23.5 for 0.5."""
  return float(np.sqrt(-2 * AREA * np.log(similarity)) * 2 * SIGMAS[0])


def truth(*people, images=1, **fields):
  """people: (image_id, [5, 2]) or, with visibility (default 2), [5, 3]."""
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


def detected(*detections):
  """(image_id, [5, 2], score)"""
  return [{'image_id': image, 'category_id': 1, 'score': score,
           'keypoints': np.column_stack([body, np.ones(5)]).reshape(-1).tolist()} for image, body, score in detections]


def moved(changes, body=BODY):
  """Move keypoints of a body: {index: (x, y)}."""
  body = body.copy()
  for index, place in changes.items():
    body[index] = place
  return body


def errors(result):
  return {kind: number for kind, number in result.counts.items() if number}


def test_without_errors():
  result = analyse(truth((1, BODY)), detected((1, BODY, 0.9)), SIGMAS)
  assert result.ap == pytest.approx(1) and not errors(result) and result.good == 5
  assert result.correct == result.objects == 1 and result.keypoint_names == NAMES
  assert not any(result.gained.values()) and result.all_fixed == result.false_positives == result.false_negatives == 0


OTHER = BODY + [300, 0]


# Kind, moved keypoint of the detection, its similarity when fixed.
@pytest.mark.parametrize('kind, changes, fixed', [
  ('jitter', {0: BODY[0] + [radius(0.6), 0]}, 0.85),
  ('miss', {0: [200, 200]}, 0.5),
  ('miss', {0: BODY[0] - [0, radius(0.4)]}, 0.5),
  ('inversion', {1: BODY[2]}, 1.0),
  ('inversion', {3: BODY[4] + [0, radius(0.7)]}, 0.7),
  ('swap', {1: OTHER[1]}, 1.0),
  ('swap', {1: OTHER[2] + [radius(0.9), 0]}, 0.9),
  ('swap', {0: OTHER[0]}, 1.0),
], ids=['jitter', 'miss', 'near-miss', 'inversion', 'near-inversion', 'swap', 'swap-of-sides', 'swap-of-the-middle'])
def test_the_gain_of_fixing_one_error_is_known(kind, changes, fixed):
  """The gain is known: OKS is the mean of five similarities, AP the fraction of thresholds that it reaches."""
  gt = truth((1, BODY), (1, OTHER))
  result = analyse(gt, detected((1, moved(changes), 0.9), (1, OTHER, 0.8)), SIGMAS)
  assert errors(result) == {kind: 1} and result.good == 9
  index = next(iter(changes))
  assert result.by_keypoint[KINDS.index(kind), index] == 1

  # Two objects: below the threshold only the less confident detection is correct, recall 1/2 at precision 1/2.
  def ap(similarity):
    return float(np.mean([1.0 if (4 + similarity) / 5 + 1e-9 >= threshold else 51 / 101 / 2 for threshold in EVERY]))

  distance = np.square(moved(changes) - BODY).sum(1)[index]
  similarity = np.exp(-distance / (2 * SIGMAS[0])**2 / AREA / 2)
  assert result.ap == pytest.approx(ap(similarity))
  assert result.gained[kind] == pytest.approx(ap(fixed) - ap(similarity))
  assert result.all_fixed == pytest.approx(result.gained[kind])
  assert all(abs(gain) < 1e-9 for other, gain in result.gained.items() if other != kind)
  example, = result.worst[kind]
  assert (example.image_id, example.result, example.annotation, example.keypoints) == (1, 0, 0, (index,))
  assert example.oks == pytest.approx((4 + similarity) / 5, abs=1e-6)


def test_several_kinds_in_one_detection():
  detection = moved({0: BODY[0] + [radius(0.7), 0], 1: BODY[2], 2: [400, 400], 3: OTHER[3]})
  result = analyse(truth((1, BODY), (1, OTHER)), detected((1, detection, 0.9), (1, OTHER, 0.8)), SIGMAS)
  assert errors(result) == {'jitter': 1, 'inversion': 1, 'miss': 1, 'swap': 1} and result.good == 6
  assert result.by_keypoint.sum(axis=0).tolist() == [2] * 5


def test_all_sides_inverted():
  """OKS is 0 without a labelled nose, but the detection is matched."""
  body = np.column_stack([BODY, [0, 2, 2, 2, 2]])
  result = analyse(truth((1, body)), detected((1, BODY[[0, 2, 1, 4, 3]], 0.9)), SIGMAS)
  assert errors(result) == {'inversion': 4} and result.ap == 0
  assert result.gained['inversion'] == pytest.approx(1) and result.false_negatives == 0


def test_without_sides_there_is_no_inversion():
  gt = truth((1, BODY))
  gt['categories'][0]['keypoints'] = list('abcde')
  assert errors(analyse(gt, detected((1, moved({1: BODY[2]}), 0.9)), SIGMAS)) == {'miss': 1}


def test_unlabelled_keypoints_and_ignored_objects():
  """Neither is evaluated, and a keypoint is not confused with an unlabelled one."""
  body = np.column_stack([BODY, [2, 2, 0, 1, 2]])
  nobody = np.column_stack([OTHER, np.zeros(5)])
  changes = {1: BODY[2], 2: [0, 0], 3: OTHER[3]}
  result = analyse(truth((1, body), (1, nobody)), detected((1, moved(changes), 0.9)), SIGMAS)
  assert errors(result) == {'miss': 2} and result.good == 2 and result.objects == 1
  assert result.by_keypoint[:, 2].sum() == 0


def test_good_detections_are_matched_first():
  """A good detection is matched before a more confident poor one; one elsewhere is unmatched."""
  gt = truth((1, BODY), (2, BODY), images=2)
  poor = moved({0: [300, 300], 1: [300, 300], 2: [300, 300]})
  result = analyse(gt, detected((1, poor, 0.9), (1, BODY, 0.8), (1, BODY + 250, 0.7)), SIGMAS)
  assert not errors(result) and result.correct == 1 and result.objects == 2
  assert result.ap == pytest.approx(51 / 101 / 2) and result.false_positives == pytest.approx(51 / 101 / 2)
  assert result.false_negatives == pytest.approx(1 / 2 - 51 / 101 / 2)
  assert errors(analyse(gt, detected((1, poor, 0.9)), SIGMAS)) == {'miss': 3}, 'matched without the good one'


def test_without_objects_or_detections_nothing_is_gained():
  nothing = analyse(truth(), [], SIGMAS)
  assert nothing.ap == -1 and not errors(nothing) and not any(nothing.gained.values())
  missed = analyse(truth((1, BODY)), [], SIGMAS)
  assert missed.ap == 0 and missed.false_negatives == 1 and missed.objects == 1 and missed.correct == 0
  wrong = analyse(truth(), detected((1, BODY, 0.9)), SIGMAS)
  assert wrong.ap == -1 and wrong.false_positives == 0


def test_unknown_categories_and_other_keypoints_are_rejected():
  with pytest.raises(UserError, match='category_id 4'):
    analyse(truth((1, BODY)), [detected((1, BODY, 0.9))[0] | {'category_id': 4}], SIGMAS)
  with pytest.raises(UserError, match='detections: 15 values .* 51'):
    analyse(truth(), detected((1, BODY, 0.9)))


def random_case(seed, images=30):
  """Crowded people; detections with noise, inverted sides, keypoints of others, and false positives."""
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
  return truth(*people, images=images), detected(*detections)


@pytest.mark.parametrize('seed', range(4))
def test_laws_on_random_cases(seed):
  gt, results = random_case(seed)
  result = analyse(gt, results, SIGMAS, backend='pycocotools')
  official = coco_metrics.evaluate(gt, results, 'keypoints', 'pycocotools', SIGMAS)
  assert result.ap == official.metrics['AP'] and result.category_ap.tolist() == [official.categories[0].AP]
  assert sum(errors(result).values()) + result.good == result.by_keypoint.sum()
  assert result.correct <= min(result.objects, len(results)) and min(result.counts.values()) > 0
  np.testing.assert_allclose(result.category_gained[:, 0], list(result.gained.values()))
  assert result.all_fixed > max(result.gained.values()) > 0
  other = analyse(gt, results, SIGMAS, backend='hotcoco')
  np.testing.assert_allclose(list(other.gained.values()), list(result.gained.values()), atol=1e-9)
