"""Errors of keypoints by kind, and the keypoint AP gained by fixing each kind.

After Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation", ICCV 2017 (section 4.1).
The similarity of two positions is the term of a keypoint in COCO's OKS, exp(-d^2 / 2 s^2 k^2). A labelled keypoint of
an object with a matched detection is good (similarity >= 0.85) or an error:

  jitter     0.5 <= similarity < 0.85
  inversion  < 0.5, but >= 0.5 with the mirrored keypoint of the object (left and right in the keypoints' names)
  swap       < 0.5, but >= 0.5 with the same keypoint, or the mirrored one, of another object
  miss       < 0.5 with all of these

If both inversion and swap hold, the larger similarity decides. A fix moves a keypoint towards its true position: jitter
to similarity 0.85, a miss to 0.5, an inversion or swap to the similarity that it had with the wrong keypoint. The fixed
detections are scored by COCO's evaluation. Gains do not add up, and with all four kinds fixed AP is below 100: missed
objects, false positives and the order of scores remain.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.cocoeval import Params

from rethink_tf.data.keypoint_pairs import flip_order
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics

KINDS = ('jitter', 'inversion', 'swap', 'miss')
GOOD, NEAR = 0.85, 0.5  # similarity thresholds
MIN_OKS = 0.1  # of a match between a detection and an object

_JITTER, _INVERSION, _SWAP, _MISS, _GOOD, _UNLABELLED = range(6)
_OVER = 1e-6  # by which fixed similarities exceed the thresholds, which COCO's evaluation uses too


class ErrorExample(NamedTuple):
  """The errors of one kind in one detection: indices into results and annotations."""

  kind: str
  image_id: int
  result: int
  annotation: int
  oks: float  # of result and annotation
  keypoints: tuple[int, ...]  # indices of the errors


class KeypointBreakdown(NamedTuple):
  """Keypoint AP (mean over OKS 0.5 to 0.95) and its loss by kind of error.

  Values in [0, 1]; AP is -1 for a class without objects.
  """

  ap: float
  gained: dict[str, float]  # kind -> AP gained by fixing all errors of this kind
  all_fixed: float  # gained by fixing all four kinds
  false_positives: float  # gained by removing unmatched detections
  false_negatives: float  # gained by ignoring unmatched objects
  counts: dict[str, int]  # kind -> number of keypoints
  good: int  # number of good keypoints
  correct: int  # number of objects with a matched detection
  objects: int
  category_names: tuple[str, ...]
  category_ap: np.ndarray  # float64 [K]
  category_gained: np.ndarray  # float64 [4, K]
  keypoint_names: tuple[str, ...]  # P; of the first category with keypoints
  by_keypoint: np.ndarray  # int64 [5, P] number of keypoints of the four kinds and good ones
  worst: dict[str, list[ErrorExample]]  # kind -> errors in the most confident detections


class _Pair(NamedTuple):
  """A detection and the object it is matched to."""

  result: int
  annotation: int
  oks: float
  kinds: np.ndarray  # int64 [P]
  fixed: np.ndarray  # float64 [P, 2] x, y with errors fixed


def analyse(gt: dict[str, Any], results: Sequence[dict[str, Any]], sigmas: Sequence[float] | None = None,
            examples: int = 8, backend: str = 'auto',
            max_detections: int = coco_metrics.MAX_DETECTIONS['keypoints']) -> KeypointBreakdown:
  """Break down the errors of keypoints over all images of the ground truth.

  Args:
    gt: ground truth in COCO's format, all annotations with the same number of keypoints P (scoring.keypoint_truth).
    results: detections with keypoints, in COCO's submission format.
    sigmas: P sigmas of keypoint similarity; None: those of COCO's 17 keypoints.
    examples: number of examples of each kind, at most two per image.
    backend, max_detections: as for coco_metrics.evaluate.

  Raises:
    UserError: the category of a detection is not in the ground truth, or its number of keypoints differs.
  """
  sigmas = np.asarray(Params('keypoints').kpt_oks_sigmas if sigmas is None else sigmas, np.float64)
  _check(gt, results, len(sigmas))
  pairs = list(_pairs(gt, results, sigmas, max_detections))
  objects = [i for i, annotation in enumerate(gt['annotations']) if _counts(annotation)]
  matched_objects = {pair.annotation for pair in pairs}
  missed = {i for i in objects if i not in matched_objects}
  matched_results = {pair.result for pair in pairs}

  def score(detections: list[dict], truth: dict = gt) -> tuple[float, np.ndarray]:
    scores = coco_metrics.evaluate(truth, detections, 'keypoints', backend, sigmas, max_detections)
    return scores.metrics['AP'], np.array([category.AP for category in scores.categories])

  ap, category_ap = score(list(results))
  fixed = [score(_fix(results, pairs, [kind])) for kind in range(len(KINDS))]
  scored = category_ap >= 0

  def gain(scores: tuple[float, np.ndarray]) -> float:
    return scores[0] - ap if scored.any() else 0.0

  kinds = np.array([pair.kinds for pair in pairs], np.int64).reshape(-1, len(sigmas))
  by_keypoint = np.stack([(kinds == kind).sum(axis=0) for kind in range(len(KINDS) + 1)])
  truth = {**gt, 'annotations': [one for i, one in enumerate(gt['annotations']) if i not in missed]}
  categories = sorted(gt['categories'], key=lambda category: category['id'])
  names = next((category['keypoints'] for category in categories if category.get('keypoints')), ())
  return KeypointBreakdown(
    ap=ap, gained={kind: gain(scores) for kind, scores in zip(KINDS, fixed, strict=True)},
    all_fixed=gain(score(_fix(results, pairs, range(len(KINDS))))),
    false_positives=gain(score([one for i, one in enumerate(results) if i in matched_results])),
    false_negatives=gain(score(list(results), truth)) if pairs else float(scored.any()),  # no objects left
    counts=dict(zip(KINDS, by_keypoint[:len(KINDS)].sum(axis=1).tolist(), strict=True)),
    good=int(by_keypoint[_GOOD].sum()), correct=len(pairs), objects=len(objects),
    category_names=tuple(category['name'] for category in categories), category_ap=category_ap,
    category_gained=np.where(scored, np.stack([scores[1] for scores in fixed]) - category_ap, 0.0),
    keypoint_names=tuple(names) or tuple(map(str, range(1, len(sigmas) + 1))), by_keypoint=by_keypoint,
    worst={kind: _worst(results, pairs, k, examples) for k, kind in enumerate(KINDS)})


def _check(gt: dict[str, Any], results: Sequence[dict[str, Any]], number: int) -> None:
  unknown = {r['category_id'] for r in results} - {category['id'] for category in gt['categories']}
  if unknown:
    raise UserError(f'detections: category_id {min(unknown)} is not in the ground truth: use the data set that was '
                    'evaluated')
  for name, entries in (('detections', results), ('ground truth', gt['annotations'])):
    lengths = {len(entry['keypoints']) for entry in entries} - {3 * number}
    if lengths:
      raise UserError(f'{name}: {min(lengths)} values for keypoints; {number} keypoints have {3 * number}')


def _counts(annotation: dict[str, Any]) -> bool:
  """Whether COCO's metric counts the object."""
  return not annotation.get('iscrowd') and not annotation.get('ignore') and any(annotation['keypoints'][2::3])


def _points(entry: dict[str, Any]) -> np.ndarray:
  """Return the keypoints of a result or annotation, [P, 3] x, y, visibility or score."""
  return np.array(entry['keypoints'], np.float64).reshape(-1, 3)


def _similarity(a: np.ndarray, b: np.ndarray, area: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
  """Return COCO's keypoint similarity: two [..., P, 2], areas [..., P] or broadcast -> [..., P]."""
  return np.exp(-np.square(a - b).sum(-1) / np.square(2 * sigmas) / (area + np.spacing(1)) / 2)


def _pairs(gt: dict[str, Any], results: Sequence[dict[str, Any]], sigmas: np.ndarray,
           max_detections: int) -> Iterator[_Pair]:
  """Match detections to objects, by image and category.

  Ronchi and Perona match detections in order of score to the object of highest OKS, at least 0.1. Here matches at
  OKS 0.5 come first, so that a confident but poor detection does not turn a good one of the same object into a false
  positive. For the others, a keypoint may also match its mirrored one: a person with all sides inverted is matched.
  """
  order = {category['id']: flip_order(tuple(category.get('keypoints') or ()), category.get('keypoint_pairs') or ())
           for category in gt['categories']}
  objects, detections = defaultdict(list), defaultdict(list)
  for i, annotation in enumerate(gt['annotations']):
    if _counts(annotation):
      objects[annotation['image_id'], annotation['category_id']].append(i)
  for i, result in enumerate(results):
    detections[result['image_id'], result['category_id']].append(i)
  for key in sorted(detections.keys() & objects.keys()):
    mirror = order[key[1]] if len(order[key[1]]) == len(sigmas) else np.arange(len(sigmas))
    best = sorted(detections[key], key=lambda i: -results[i]['score'])[:max_detections]
    people = np.stack([_points(gt['annotations'][i]) for i in objects[key]])  # [o, P, 3]
    areas = np.array([gt['annotations'][i]['area'] for i in objects[key]], np.float64)
    detected = np.stack([_points(results[i])[:, :2] for i in best])  # [d, P, 2]
    labelled = people[..., 2] > 0
    own = _similarity(detected[:, None], people[..., :2], areas[:, None], sigmas)  # [d, o, P]
    other = _similarity(detected[:, None], people[:, mirror, :2], areas[:, None], sigmas[mirror]) * labelled[:, mirror]
    oks, either = ((one * labelled).sum(2) / labelled.sum(1) for one in (own, np.maximum(own, other)))
    for d, o in _match(oks, either):
      kinds, fixed = _classify(detected[d], people, areas, o, mirror, sigmas)
      yield _Pair(best[d], objects[key][o], float(oks[d, o]), kinds, fixed)


def _match(oks: np.ndarray, either: np.ndarray) -> list[tuple[int, int]]:
  """Match detections, best score first, to objects: OKS [d, o], the same with mirrored keypoints -> pairs (d, o)."""
  pairs, free_detections, free_objects = [], np.ones(len(oks), bool), np.ones(oks.shape[1], bool)
  for similarity, least in ((oks, NEAR), (either, MIN_OKS)):
    for d in np.flatnonzero(free_detections).tolist():
      candidates = np.where(free_objects, similarity[d], -1.0)
      best = int(candidates.argmax())
      if candidates[best] >= least:
        free_detections[d] = free_objects[best] = False
        pairs.append((d, best))
  return pairs


def _classify(detected: np.ndarray, people: np.ndarray, areas: np.ndarray, own: int, mirror: np.ndarray,
              sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Return kind [P] and fixed position [P, 2] of the keypoints of a detection [P, 2] matched to people[own].

  people: [o, P, 3]. areas: [o].
  """
  columns = np.arange(len(sigmas))
  true, area = people[own, :, :2], areas[own]
  correct = _similarity(detected, true, area, sigmas)
  wrong = np.stack([people, people[:, mirror]], axis=1)  # [o, 2, P, 3]: the same keypoint, the mirrored one
  spread = np.stack([sigmas, sigmas[mirror]])  # [2, P]
  near = _similarity(detected, wrong[..., :2], areas[:, None, None], spread) * (wrong[..., 2] > 0)  # [o, 2, P]
  inversion = np.where(mirror != columns, near[own, 1], 0.0)
  near[own] = 0
  whose, side = np.unravel_index(near.reshape(-1, len(sigmas)).argmax(axis=0), near.shape[:2])
  swap = near[whose, side, columns]
  kinds = np.select(
    [people[own, :, 2] <= 0, correct >= GOOD, correct >= NEAR, (inversion >= NEAR) & (inversion >= swap), swap >= NEAR],
    [_UNLABELLED, _GOOD, _JITTER, _INVERSION, _SWAP], _MISS)

  whose, side = (np.where(kinds == _SWAP, *pair) for pair in ((whose, own), (side, 1)))
  offset = detected - wrong[whose, side, columns, :2]
  as_near = true + offset * (sigmas / spread[side, columns] * np.sqrt(area / areas[whose]))[:, None]
  offset = detected - true
  radius = np.sqrt(-2 * area * np.log(np.where(kinds == _JITTER, GOOD, NEAR) + _OVER)) * 2 * sigmas
  distance = np.maximum(np.linalg.norm(offset, axis=1), np.spacing(1))
  nearer = true + offset * (radius / distance)[:, None]
  confused = (kinds == _INVERSION) | (kinds == _SWAP)
  fixed = np.where(confused[:, None], as_near, nearer)
  return kinds, np.where((kinds < _GOOD)[:, None], fixed, detected)


def _fix(results: Sequence[dict[str, Any]], pairs: Sequence[_Pair], kinds: Iterable[int]) -> list[dict[str, Any]]:
  """Return the results with errors of some kinds fixed."""
  fixed = list(results)
  for pair in pairs:
    errors = np.isin(pair.kinds, list(kinds))
    if errors.any():
      points = _points(results[pair.result])
      points[errors, :2] = pair.fixed[errors]
      fixed[pair.result] = {**results[pair.result], 'keypoints': points.reshape(-1).tolist()}
  return fixed


def _worst(results: Sequence[dict[str, Any]], pairs: Sequence[_Pair], kind: int, number: int) -> list[ErrorExample]:
  chosen, of_image = [], defaultdict(int)
  for pair in sorted(pairs, key=lambda pair: -results[pair.result]['score']):
    errors = np.flatnonzero(pair.kinds == kind)
    image_id = int(results[pair.result]['image_id'])
    if len(errors) and of_image[image_id] < 2 and len(chosen) < number:
      of_image[image_id] += 1
      chosen.append(ErrorExample(KINDS[kind], image_id, pair.result, pair.annotation, pair.oks,
                                 tuple(errors.tolist())))
  return chosen
