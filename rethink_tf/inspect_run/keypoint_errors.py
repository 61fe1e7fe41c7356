"""What keeps keypoint AP from 100: errors by kind, and what mending each kind would gain.

In the manner of Ronchi and Perona, "Benchmarking and Error Diagnosis in Multi-Instance Pose Estimation", ICCV 2017
(section 4.1). The similarity of two places is the term that each keypoint adds to COCO's OKS, exp(-d^2 / 2 s^2 k^2). A
labelled keypoint of an object that a detection stands for is found well (similarity >= 0.85), or is an error:

  jitter     0.5 <= similarity < 0.85
  inversion  < 0.5, but >= 0.5 with the object's other side, as left and right in the keypoints' names say
  swap       < 0.5, but >= 0.5 with the same keypoint, or its other side, of another object
  miss       < 0.5 with all of these

Where inversion and swap both hold it is the one of larger similarity. Mending moves a keypoint towards its true place:
jitter until the similarity is 0.85, a miss until it is 0.5, and the others to where they are as near to the right place
as they were to the wrong one. COCO's own evaluation then scores the mended detections. Gains do not add up, and mending
all four leaves AP below 100: what remains is not found, found where nothing is, or scored in the wrong order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools.cocoeval import Params

from rethink_tf.data.augment import flip_order
from rethink_tf.errors import UserError
from rethink_tf.evaluation import coco_metrics

KINDS = ('jitter', 'inversion', 'swap', 'miss')
WELL, NEAR = 0.85, 0.5  # similarities from which a keypoint is found well, is in the right place
STANDS_FOR = 0.1  # OKS from which a detection stands for an object
MAX_DETECTIONS = 20  # of an image and category, as in COCO's metric of keypoints

_JITTER, _INVERSION, _SWAP, _MISS, _WELL, _UNLABELLED = range(6)
_OVER = 1e-6  # by which mended similarities exceed their thresholds, which are COCO's too: rounding must not decide


class Mistake(NamedTuple):
  """The errors of one kind in one detection: indices into results and annotations."""

  kind: str
  image_id: int
  result: int
  annotation: int
  oks: float  # of the two
  keypoints: tuple[int, ...]


class Breakdown(NamedTuple):
  """Keypoint AP (mean over OKS 0.5 to 0.95) and what is lost. Figures in [0, 1]; -1 for a class without objects."""

  ap: float
  gained: dict[str, float]  # kind -> AP gained when all errors of this kind are mended
  all_mended: float  # gained when all four kinds are
  false_positives: float  # gained when detections that stand for no object are removed
  false_negatives: float  # gained when objects that no detection stands for are taken off the list
  counts: dict[str, int]  # kind -> number of keypoints
  well: int  # keypoints found well
  correct: int  # objects that a detection stands for
  objects: int
  category_names: tuple[str, ...]
  category_ap: np.ndarray  # float64 [K]
  category_gained: np.ndarray  # float64 [4, K]
  keypoint_names: tuple[str, ...]  # P; of the first category that has any
  by_keypoint: np.ndarray  # int64 [5, P], the four kinds and found well
  worst: dict[str, list[Mistake]]  # kind -> in the surest detections


class _Pair(NamedTuple):
  """A detection and the object that it stands for."""

  result: int
  annotation: int
  oks: float
  kinds: np.ndarray  # int64 [P]
  mended: np.ndarray  # float64 [P, 2] x, y of the errors after mending; elsewhere as detected


def analyse(gt: dict[str, Any], results: Sequence[dict[str, Any]], sigmas: Sequence[float] | None = None,
            examples: int = 8, backend: str = 'auto') -> Breakdown:
  """Breaks down the errors of keypoints over all images of the ground truth.

  Args:
    gt: ground truth as in COCO's json, all annotations with the same number of keypoints P (scoring.keypoint_truth).
    results: detections with keypoints, in COCO's submission format. Neither is changed.
    sigmas: of keypoint similarity, P of them; None: those of COCO's 17.
    examples: worst mistakes of each kind, at most two of one image.
    backend: as for coco_metrics.evaluate.

  Raises:
    UserError: a detection of a category that the ground truth does not list, or of another number of keypoints.
  """
  sigmas = np.asarray(Params('keypoints').kpt_oks_sigmas if sigmas is None else sigmas, np.float64)
  _check(gt, results, len(sigmas))
  pairs = list(_pairs(gt, results, sigmas))
  objects = [i for i, annotation in enumerate(gt['annotations']) if _counts(annotation)]
  found = {pair.annotation for pair in pairs}
  lost = {i for i in objects if i not in found}
  standing = {pair.result for pair in pairs}

  def score(detections, truth=gt):
    scores = coco_metrics.evaluate(truth, detections, 'keypoints', backend, sigmas)
    return scores.figures['AP'], np.array([category.AP for category in scores.categories])

  ap, category_ap = score(list(results))
  mended = [score(_mend(results, pairs, [kind])) for kind in range(len(KINDS))]
  scored = category_ap >= 0

  def gain(scores):
    return scores[0] - ap if scored.any() else 0.0

  kinds = np.array([pair.kinds for pair in pairs], np.int64).reshape(-1, len(sigmas))
  by_keypoint = np.stack([(kinds == kind).sum(axis=0) for kind in range(len(KINDS) + 1)])
  truth = {**gt, 'annotations': [one for i, one in enumerate(gt['annotations']) if i not in lost]}
  categories = sorted(gt['categories'], key=lambda category: category['id'])
  names = next((category['keypoints'] for category in categories if category.get('keypoints')), ())
  return Breakdown(
    ap=ap, gained={kind: gain(scores) for kind, scores in zip(KINDS, mended, strict=True)},
    all_mended=gain(score(_mend(results, pairs, range(len(KINDS))))),
    false_positives=gain(score([one for i, one in enumerate(results) if i in standing])),
    false_negatives=gain(score(list(results), truth)) if found else float(scored.any()),  # AP without objects is no AP
    counts=dict(zip(KINDS, by_keypoint[:len(KINDS)].sum(axis=1).tolist(), strict=True)),
    well=int(by_keypoint[_WELL].sum()), correct=len(pairs), objects=len(objects),
    category_names=tuple(category['name'] for category in categories), category_ap=category_ap,
    category_gained=np.where(scored, np.stack([scores[1] for scores in mended]) - category_ap, 0.0),
    keypoint_names=tuple(names) or tuple(map(str, range(1, len(sigmas) + 1))), by_keypoint=by_keypoint,
    worst={kind: _worst(results, pairs, k, examples) for k, kind in enumerate(KINDS)})


def _check(gt, results, number):
  strangers = {r['category_id'] for r in results} - {category['id'] for category in gt['categories']}
  if strangers:
    raise UserError(f'detections: category_id {min(strangers)} is not in the ground truth: analyse them against the '
                    'data they were made from')
  for what, entries in (('detections', results), ('ground truth', gt['annotations'])):
    lengths = {len(entry['keypoints']) for entry in entries} - {3 * number}
    if lengths:
      raise UserError(f'{what}: {min(lengths)} numbers of keypoints, where there should be {3 * number} for '
                      f'{number} keypoints')


def _counts(annotation) -> bool:
  """Whether COCO's metric asks for it."""
  return not annotation.get('iscrowd') and not annotation.get('ignore') and any(annotation['keypoints'][2::3])


def _points(entry) -> np.ndarray:
  """[P, 3] x, y, visibility or score."""
  return np.array(entry['keypoints'], np.float64).reshape(-1, 3)


def _similarity(a: np.ndarray, b: np.ndarray, area: np.ndarray, sigmas: np.ndarray) -> np.ndarray:
  """[..., P, 2] twice, [..., P] or broadcast -> [..., P], COCO's."""
  return np.exp(-np.square(a - b).sum(-1) / np.square(2 * sigmas) / (area + np.spacing(1)) / 2)


def _pairs(gt, results, sigmas) -> Iterator[_Pair]:
  """The detections that stand for objects, image by image and category by category.

  Ronchi and Perona let detections, by falling score, take the object that they fit best from OKS 0.1 on. Here those
  that COCO's metric calls right at OKS 0.5 come first: a sure but poor detection would make a good one of the same
  object look like a find of nothing. And for the others a keypoint may fit the other side: else a person with all
  sides confused would be a find of nothing, too.
  """
  order = {category['id']: flip_order(tuple(category.get('keypoints') or ())) for category in gt['categories']}
  objects, detections = defaultdict(list), defaultdict(list)
  for i, annotation in enumerate(gt['annotations']):
    if _counts(annotation):
      objects[annotation['image_id'], annotation['category_id']].append(i)
  for i, result in enumerate(results):
    detections[result['image_id'], result['category_id']].append(i)
  for key in sorted(detections.keys() & objects.keys()):
    mirror = order[key[1]] if len(order[key[1]]) == len(sigmas) else np.arange(len(sigmas))
    here = sorted(detections[key], key=lambda i: -results[i]['score'])[:MAX_DETECTIONS]
    people = np.stack([_points(gt['annotations'][i]) for i in objects[key]])  # [o, P, 3]
    areas = np.array([gt['annotations'][i]['area'] for i in objects[key]], np.float64)
    found = np.stack([_points(results[i])[:, :2] for i in here])  # [d, P, 2]
    labelled = people[..., 2] > 0
    own = _similarity(found[:, None], people[..., :2], areas[:, None], sigmas)  # [d, o, P]
    other = _similarity(found[:, None], people[:, mirror, :2], areas[:, None], sigmas[mirror]) * labelled[:, mirror]
    oks, either = ((one * labelled).sum(2) / labelled.sum(1) for one in (own, np.maximum(own, other)))
    for d, o in _match(oks, either):
      kinds, mended = _judge(found[d], people, areas, o, mirror, sigmas)
      yield _Pair(here[d], objects[key][o], float(oks[d, o]), kinds, mended)


def _match(oks: np.ndarray, either: np.ndarray) -> list[tuple[int, int]]:
  """[d, o], detections by falling score -> pairs of them."""
  pairs, free_detections, free_objects = [], np.ones(len(oks), bool), np.ones(oks.shape[1], bool)
  for similarity, least in ((oks, NEAR), (either, STANDS_FOR)):
    for d in np.flatnonzero(free_detections).tolist():
      candidates = np.where(free_objects, similarity[d], -1.0)
      best = int(candidates.argmax())
      if candidates[best] >= least:
        free_detections[d] = free_objects[best] = False
        pairs.append((d, best))
  return pairs


def _judge(found: np.ndarray, people: np.ndarray, areas: np.ndarray, own: int, mirror: np.ndarray,
           sigmas: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Kind [P] and mended place [P, 2] of each keypoint of a detection [P, 2] that stands for people[own], [o, P, 3]."""
  columns = np.arange(len(sigmas))
  true, area = people[own, :, :2], areas[own]
  right = _similarity(found, true, area, sigmas)
  wrong = np.stack([people, people[:, mirror]], axis=1)  # [o, 2, P, 3]: the same keypoint, its other side
  spread = np.stack([sigmas, sigmas[mirror]])  # [2, P]
  near = _similarity(found, wrong[..., :2], areas[:, None, None], spread) * (wrong[..., 2] > 0)  # [o, 2, P]
  inversion = np.where(mirror != columns, near[own, 1], 0.0)
  near[own] = 0
  whose, side = np.unravel_index(near.reshape(-1, len(sigmas)).argmax(axis=0), near.shape[:2])
  swap = near[whose, side, columns]
  kinds = np.select(
    [people[own, :, 2] <= 0, right >= WELL, right >= NEAR, (inversion >= NEAR) & (inversion >= swap), swap >= NEAR],
    [_UNLABELLED, _WELL, _JITTER, _INVERSION, _SWAP], _MISS)

  whose, side = (np.where(kinds == _SWAP, *pair) for pair in ((whose, own), (side, 1)))
  off = found - wrong[whose, side, columns, :2]
  as_near = true + off * (sigmas / spread[side, columns] * np.sqrt(area / areas[whose]))[:, None]
  off = found - true
  radius = np.sqrt(-2 * area * np.log(np.where(kinds == _JITTER, WELL, NEAR) + _OVER)) * 2 * sigmas
  distance = np.maximum(np.linalg.norm(off, axis=1), np.spacing(1))
  nearer = true + off * (radius / distance)[:, None]
  confused = (kinds == _INVERSION) | (kinds == _SWAP)
  mended = np.where(confused[:, None], as_near, nearer)
  return kinds, np.where((kinds < _WELL)[:, None], mended, found)


def _mend(results, pairs: Sequence[_Pair], kinds: Iterable[int]) -> list[dict]:
  mended = list(results)
  for pair in pairs:
    errors = np.isin(pair.kinds, list(kinds))
    if errors.any():
      points = _points(results[pair.result])
      points[errors, :2] = pair.mended[errors]
      mended[pair.result] = {**results[pair.result], 'keypoints': points.reshape(-1).tolist()}
  return mended


def _worst(results, pairs: Sequence[_Pair], kind: int, number: int) -> list[Mistake]:
  chosen, of_image = [], defaultdict(int)
  for pair in sorted(pairs, key=lambda pair: -results[pair.result]['score']):
    errors = np.flatnonzero(pair.kinds == kind)
    image_id = int(results[pair.result]['image_id'])
    if len(errors) and of_image[image_id] < 2 and len(chosen) < number:
      of_image[image_id] += 1
      chosen.append(Mistake(KINDS[kind], image_id, pair.result, pair.annotation, pair.oks, tuple(errors.tolist())))
  return chosen
