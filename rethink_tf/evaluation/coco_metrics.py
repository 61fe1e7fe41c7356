"""COCO average precision and recall of boxes, masks and keypoints, by hotcoco where installed or by pycocotools."""

import contextlib
import importlib.util
import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from pycocotools import coco, cocoeval
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from rethink_tf.errors import UserError

BACKENDS = ('auto', 'hotcoco', 'pycocotools')
RESULT_FIELDS = {'bbox': 'bbox', 'segm': 'segmentation', 'keypoints': 'keypoints'}

# name: (precision or recall, IoU threshold index or all, area index, index of the limit of detections per image)
FIGURES = {
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
KEYPOINT_FIGURES = {  # there are no small people with keypoints in COCO, so areas are all, medium, large
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
  """Figures of one category, in [0, 1]; -1 where the data has no such object."""

  id: int
  name: str
  AP: float
  AP50: float
  AP75: float
  AR: float


class CocoScores(NamedTuple):
  """COCO's figures over all categories, by name (`FIGURES`), and the table by category."""

  figures: dict[str, float]  # in [0, 1]; -1 where no category has such an object
  categories: tuple[CategoryScores, ...]


def evaluate(gt: dict, results: list[dict], iou_type: str, backend: str = 'auto',
             sigmas: Sequence[float] | None = None) -> CocoScores:
  """COCO's average precision and recall of detections over all images of the ground truth.

  Args:
    gt: ground truth as in COCO's json: images, annotations (with bbox, area and, by iou_type,
      segmentation or keypoints; crowds included), categories.
    results: detections in COCO's submission format: image_id, category_id, score and bbox [x, y, w, h],
      segmentation (compressed RLE) or keypoints. Neither argument is changed.
    iou_type: 'bbox', 'segm' or 'keypoints'.
    backend: 'hotcoco', 'pycocotools' (the arbiter; the figures are the same) or 'auto': the first one installed.
    sigmas: of keypoint similarity, one a keypoint; None: those of COCO's 17.

  Raises:
    ValueError: unknown iou_type or backend.
    UserError: a detection in an image that the ground truth does not list.
  """
  scorer = _scorer(gt, results, iou_type, backend, sigmas)
  with _without_printing():
    scorer.evaluate()
    scorer.accumulate()
  arrays, category_ids = scorer.eval, [int(i) for i in scorer.params.catIds]
  figures = KEYPOINT_FIGURES if iou_type == 'keypoints' else FIGURES
  names = {c['id']: c['name'] for c in gt['categories']}
  return CocoScores(
    {name: _mean(arrays, *figure) for name, figure in figures.items()},
    tuple(_category(arrays, k, category, names[category]) for k, category in enumerate(category_ids)),
  )


def matches(gt: dict, results: list[dict], iou_type: str, backend: str = 'auto',
            sigmas: Sequence[float] | None = None) -> tuple[list[int], list[int], list[dict]]:
  """Which detections COCO's metric matches, image by image: arguments and errors as for `evaluate`.

  Returns:
    Category ids and image ids in the metric's order, and its record of each image and category with objects or
    detections (image_id, category_id, dtScores, dtMatches [T, n], dtIgnore [T, n], gtIgnore), objects of any area.
  """
  scorer = _scorer(gt, results, iou_type, backend, sigmas)
  scorer.params.areaRng = scorer.params.areaRng[:1]
  scorer.params.areaRngLbl = scorer.params.areaRngLbl[:1]
  with _without_printing():
    scorer.evaluate()
  records = [record for record in scorer.evalImgs if record is not None]
  return [int(i) for i in scorer.params.catIds], [int(i) for i in scorer.params.imgIds], records


def _scorer(gt: dict, results: list[dict], iou_type: str, backend: str, sigmas: Sequence[float] | None):
  """The backend's COCOeval over checked arguments, nothing evaluated yet."""
  if iou_type not in RESULT_FIELDS:
    raise ValueError(f'iou_type {iou_type!r} is not one of {tuple(RESULT_FIELDS)}')
  if backend not in BACKENDS:
    raise ValueError(f'backend {backend!r} is not one of {BACKENDS}')
  strangers = {r['image_id'] for r in results} - {i['id'] for i in gt['images']}
  if strangers:
    raise UserError(
      f'detections: image_id {min(strangers)} is not in the ground truth: score against the data they were made from'
    )
  foreign = set(RESULT_FIELDS.values()) - {RESULT_FIELDS[iou_type]}
  if not all(foreign.isdisjoint(result) for result in results):
    # Else masks would count as small, medium or large by the area of a box that came along.
    results = [{key: result[key] for key in result.keys() - foreign} for result in results]
  # Numbered anew from 1, because to pycocotools a detection that is matched to annotation 0 is unmatched.
  annotations = [{'iscrowd': 0, **a, 'id': number} for number, a in enumerate(gt['annotations'], start=1)]
  gt = {**gt, 'annotations': annotations}
  if backend == 'auto':
    backend = 'hotcoco' if importlib.util.find_spec('hotcoco') else 'pycocotools'
  make = _hotcoco if backend == 'hotcoco' else _pycocotools
  scorer = make(gt, results, iou_type)
  if sigmas is not None:
    sigmas = [float(sigma) for sigma in sigmas]
    scorer.params.kpt_oks_sigmas = sigmas if backend == 'hotcoco' else np.asarray(sigmas)
  return scorer


def _hotcoco(gt: dict, results: list[dict], iou_type: str):
  import hotcoco

  truth = hotcoco.COCO(gt)
  return hotcoco.COCOeval(truth, truth.load_res(results), iou_type)


def _pycocotools(gt: dict, results: list[dict], iou_type: str):
  with _without_printing():
    truth = COCO()
    truth.dataset = gt
    truth.createIndex()
    if results:
      detections = truth.loadRes([dict(result) for result in results])  # it writes into them
    else:  # loadRes fails on an empty list
      detections = COCO()
      detections.dataset = {**gt, 'annotations': []}
      detections.createIndex()
    return COCOeval(truth, detections, iou_type)


_quiet = threading.local()


@contextlib.contextmanager
def _without_printing():
  """Nothing of what pycocotools prints as it goes, in this thread: others print their own lines meanwhile."""
  coco.print = cocoeval.print = _print_unless_quiet
  _quiet.on = True
  try:
    yield
  finally:
    _quiet.on = False


def _print_unless_quiet(*values, **options):
  if not getattr(_quiet, 'on', False):
    print(*values, **options)


def _mean(arrays: dict[str, Any], kind: str, threshold: int | None, area: int, limit: int) -> float:
  """Mean over thresholds, recall points and categories: precision [T, R, K, A, M] or recall [T, K, A, M]."""
  values = np.asarray(arrays[kind])[..., area, limit]
  if threshold is not None:
    values = values[threshold]
  values = values[values > -1]
  return float(values.mean()) if values.size else -1.0


def _category(arrays: dict[str, Any], k: int, category: int, name: str) -> CategoryScores:
  one = {
    'precision': np.asarray(arrays['precision'])[:, :, k : k + 1],
    'recall': np.asarray(arrays['recall'])[:, k : k + 1],
  }
  ap, ap50, ap75 = (_mean(one, *FIGURES[figure]) for figure in ('AP', 'AP50', 'AP75'))
  return CategoryScores(category, name, ap, ap50, ap75, _mean(one, 'recall', None, 0, -1))
