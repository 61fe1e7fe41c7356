"""COCO average precision and recall of boxes, masks and keypoints, by hotcoco if installed, else by pycocotools."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import coco, cocoeval
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf.errors import UserError
from rethink_tf.process import garbage_collection

IOUS = tuple((50 + 5 * i) / 100 for i in range(10))  # thresholds
BACKENDS = ('auto', 'hotcoco', 'pycocotools')
MAX_DETECTIONS = {'bbox': 100, 'segm': 100, 'keypoints': 20}  # COCO's, scored per image and category
RESULT_FIELDS = {'bbox': 'bbox', 'segm': 'segmentation', 'keypoints': 'keypoints'}

# 'AR100' is 'AR<n>' where more or fewer detections are scored.
# name: (precision or recall, IoU threshold index or all, area index, index of the limit of detections per image)
METRICS = {
  'AP': ('precision', None, 0, -1),
  'AP50': ('precision', 0, 0, -1),
  'AP75': ('precision', 5, 0, -1),
  'APs': ('precision', None, 1, -1),
  'APm': ('precision', None, 2, -1),
  'APl': ('precision', None, 3, -1),
  'AR1': ('recall', None, 0, 0),
  'AR10': ('recall', None, 0, 1),
  'AR100': ('recall', None, 0, 2),
  'ARs': ('recall', None, 1, -1),
  'ARm': ('recall', None, 2, -1),
  'ARl': ('recall', None, 3, -1),
}
KEYPOINT_METRICS = {  # areas are all, medium, large: COCO has no small people with keypoints
  'AP': ('precision', None, 0, -1),
  'AP50': ('precision', 0, 0, -1),
  'AP75': ('precision', 5, 0, -1),
  'APm': ('precision', None, 1, -1),
  'APl': ('precision', None, 2, -1),
  'AR': ('recall', None, 0, -1),
  'AR50': ('recall', 0, 0, -1),
  'AR75': ('recall', 5, 0, -1),
  'ARm': ('recall', None, 1, -1),
  'ARl': ('recall', None, 2, -1),
}


class CategoryScores(NamedTuple):
  """Metrics of one category, in [0, 1]; -1 where the data has no such object."""

  id: int
  name: str
  AP: float
  AP50: float
  AP75: float
  AR: float


class CocoScores(NamedTuple):
  """COCO's metrics over all categories, by name (METRICS or KEYPOINT_METRICS), and by category."""

  metrics: dict[str, float]  # in [0, 1]; -1 where no category has such an object
  categories: tuple[CategoryScores, ...]


class MatchedDetections(NamedTuple):
  """Detections of one category, n rows image by image, matched to its objects of any area at COCO's T thresholds."""

  category_id: int
  images: np.ndarray  # int64 [n] index of the image
  scores: np.ndarray  # float64 [n]
  results: np.ndarray  # int64 [n] index into the results
  targets: np.ndarray  # int64 [T, n] index of the annotation, -1: none
  ignored: np.ndarray  # bool [T, n]: neither true nor false (matched to a crowd, or outside the evaluated areas)
  objects: np.ndarray  # int64 [num images] number of objects, without ignored ones


def evaluate(gt: dict, results: list[dict], iou_type: str, backend: str = 'auto',
             sigmas: Sequence[float] | None = None, max_detections: int | None = None) -> CocoScores:
  """Compute COCO's average precision and recall over all images of the ground truth.

  Args:
    gt: ground truth as in COCO's json: images, annotations (with bbox, area and, by iou_type, segmentation or
      keypoints; crowds included; objects marked 'without_mask' are ignored for 'segm'), categories. Not modified.
    results: detections in COCO's submission format: image_id, category_id, score and bbox [x, y, w, h], segmentation
      (compressed RLE) or keypoints. Not modified.
    iou_type: 'bbox', 'segm' or 'keypoints'.
    backend: 'hotcoco', 'pycocotools' (the reference, with equal results) or 'auto': the first one installed.
    sigmas: of keypoint similarity, one per keypoint; None: those of COCO's 17.
    max_detections: best detections that are scored per image and category; None: COCO's MAX_DETECTIONS.

  Raises:
    ValueError: unknown iou_type or backend.
    UserError: a detection is in an image that the ground truth does not list.
  """
  scorer = _scorer(gt, results, iou_type, backend, sigmas, max_detections)
  with _without_printing():
    scorer.evaluate()
    scorer.accumulate()
  arrays, category_ids = scorer.eval, [int(i) for i in scorer.params.catIds]
  metrics = KEYPOINT_METRICS if iou_type == 'keypoints' else METRICS
  names = {c['id']: c['name'] for c in gt['categories']}
  renamed = {'AR100': f'AR{max_detections or MAX_DETECTIONS[iou_type]}'}
  return CocoScores(
    {renamed.get(name, name): _mean(arrays, *selection) for name, selection in metrics.items()},
    tuple(_category(arrays, k, category, names[category]) for k, category in enumerate(category_ids)),
  )


def matches(gt: dict, results: list[dict], iou_type: str, backend: str = 'auto', sigmas: Sequence[float] | None = None,
            max_detections: int | None = None) -> tuple[list[int], Iterator[MatchedDetections]]:
  """Match detections to objects as COCO's metric does. Arguments and errors as for `evaluate`.

  Returns:
    Image ids, ascending, and the matches of each category by ascending id, made one after another.
  """
  scorer = _scorer(gt, results, iou_type, backend, sigmas, max_detections)
  scorer.params.areaRng = scorer.params.areaRng[:1]
  scorer.params.areaRngLbl = scorer.params.areaRngLbl[:1]
  image_ids, category_ids = (sorted({int(one['id']) for one in gt[name]}) for name in ('images', 'categories'))
  row = {image: i for i, image in enumerate(image_ids)}
  return image_ids, _by_category(scorer, category_ids, row)


def _by_category(scorer: Any, category_ids: Sequence[int], row: Mapping[int, int]) -> Iterator[MatchedDetections]:
  # One category at a time: pycocotools' record of an image and category has some fifty lists, and those of all of COCO
  # do not fit the caches. pycocotools itself would index all annotations anew for each.
  at_once = [category_ids] if isinstance(scorer, COCOeval) else [[category] for category in category_ids]
  for categories in at_once:
    with _without_printing(), garbage_collection.paused():
      found = _evaluated(scorer, categories, row)
    yield from found


def _evaluated(scorer: Any, categories: Sequence[int], row: Mapping[int, int]) -> list[MatchedDetections]:
  """Return the matches of some categories; the records they are made from are freed with this function."""
  scorer.params.catIds = list(categories)
  scorer.evaluate()
  records = {category: [] for category in categories}
  for record in scorer.evalImgs:
    if record is not None:
      records[int(record['category_id'])].append(record)
  return [_matched(category, own, row) for category, own in records.items()]


def _matched(category: int, records: Sequence[dict], row: Mapping[int, int]) -> MatchedDetections:
  """Return pycocotools' records of a category in columns. row: index of each image."""
  objects = np.zeros(len(row), np.int64)
  for record in records:
    objects[row[int(record['image_id'])]] = sum(not ignored for ignored in record['gtIgnore'])
  found = sorted((one for one in records if len(one['dtScores'])), key=lambda one: row[int(one['image_id'])])

  def column(key: str, dtype: type) -> np.ndarray:
    return np.fromiter(itertools.chain.from_iterable(one[key] for one in found), dtype)

  def columns(key: str, dtype: type) -> np.ndarray:
    return np.stack([np.fromiter(itertools.chain.from_iterable(one[key][threshold] for one in found), dtype)
                     for threshold in range(len(IOUS))])

  images = np.repeat(np.array([row[int(one['image_id'])] for one in found], np.int64),
                     [len(one['dtScores']) for one in found])
  return MatchedDetections(category, images, column('dtScores', np.float64), column('dtIds', np.int64) - 1,
                           columns('dtMatches', np.int64) - 1, columns('dtIgnore', bool), objects)


def mask_truth(gt: dict) -> dict:
  """Return ground truth in which objects without a mask ('without_mask') are ignored, as crowds are."""
  if not any(a.get('without_mask') for a in gt['annotations']):
    return gt
  return {**gt, 'annotations': [{**a, 'iscrowd': 1} if a.get('without_mask') else a for a in gt['annotations']]}


def _scorer(gt: dict, results: list[dict], iou_type: str, backend: str, sigmas: Sequence[float] | None,
            max_detections: int | None) -> Any:
  """Check the arguments and return the backend's COCOeval, not evaluated yet."""
  if iou_type not in RESULT_FIELDS:
    raise ValueError(f'iou_type {iou_type!r} is not one of {tuple(RESULT_FIELDS)}')
  if backend not in BACKENDS:
    raise ValueError(f'backend {backend!r} is not one of {BACKENDS}')
  unknown = {r['image_id'] for r in results} - {i['id'] for i in gt['images']}
  if unknown:
    raise UserError(
      f'detections: image_id {min(unknown)} is not in the ground truth: score against the data they were made from'
    )
  others = set(RESULT_FIELDS.values()) - {RESULT_FIELDS[iou_type]}
  if not all(others.isdisjoint(result) for result in results):
    # With a box in the result, pycocotools takes the area of a mask (small, medium, large) from the box.
    results = [{key: result[key] for key in result.keys() - others} for result in results]
  if iou_type == 'segm':
    gt = mask_truth(gt)
  # Numbered from 1: pycocotools takes a detection that is matched to annotation 0 for unmatched.
  annotations = [{'iscrowd': 0, **a, 'id': number} for number, a in enumerate(gt['annotations'], start=1)]
  gt = {**gt, 'annotations': annotations}
  if backend == 'auto':
    backend = 'hotcoco' if importlib.util.find_spec('hotcoco') else 'pycocotools'
  make = _hotcoco if backend == 'hotcoco' else _pycocotools
  scorer = make(gt, results, iou_type)
  if sigmas is not None:
    sigmas = [float(sigma) for sigma in sigmas]
    scorer.params.kpt_oks_sigmas = sigmas if backend == 'hotcoco' else np.asarray(sigmas)
  if max_detections is not None:
    scorer.params.maxDets = [*(min(fewer, max_detections) for fewer in scorer.params.maxDets[:-1]), max_detections]
  return scorer


def _hotcoco(gt: dict, results: list[dict], iou_type: str) -> Any:
  import hotcoco

  truth = hotcoco.COCO(gt)
  return hotcoco.COCOeval(truth, truth.load_res(results), iou_type)


def _pycocotools(gt: dict, results: list[dict], iou_type: str) -> COCOeval:
  with _without_printing():
    truth = COCO()
    truth.dataset = gt
    truth.createIndex()
    if results:
      detections = truth.loadRes([dict(result) for result in results])  # loadRes modifies them
    else:  # loadRes fails on an empty list
      detections = COCO()
      detections.dataset = {**gt, 'annotations': []}
      detections.createIndex()
    return COCOeval(truth, detections, iou_type)


_quiet = threading.local()


@contextlib.contextmanager
def _without_printing() -> Iterator[None]:
  """Suppress the output of pycocotools in this thread; other threads print meanwhile."""
  coco.print = cocoeval.print = _print_unless_quiet
  _quiet.on = True
  try:
    yield
  finally:
    _quiet.on = False


def _print_unless_quiet(*values: Any, **options: Any) -> None:
  if not getattr(_quiet, 'on', False):
    print(*values, **options)


def _mean(arrays: dict[str, Any], kind: str, threshold: int | None, area: int, limit: int) -> float:
  """Average precision [T, R, K, A, M] or recall [T, K, A, M] over thresholds, recall points and categories."""
  values = np.asarray(arrays[kind])[..., area, limit]
  if threshold is not None:
    values = values[threshold]
  values = values[values > -1]
  return float(values.mean()) if values.size else -1.0


def _category(arrays: dict[str, Any], k: int, category_id: int, name: str) -> CategoryScores:
  one = {
    'precision': np.asarray(arrays['precision'])[:, :, k : k + 1],
    'recall': np.asarray(arrays['recall'])[:, k : k + 1],
  }
  ap, ap50, ap75 = (_mean(one, *METRICS[metric]) for metric in ('AP', 'AP50', 'AP75'))
  return CategoryScores(category_id, name, ap, ap50, ap75, _mean(one, 'recall', None, 0, -1))
