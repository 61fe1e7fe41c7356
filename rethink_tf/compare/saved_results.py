"""Ground truth and detections that an evaluation has saved, checked: they may be damaged or anybody's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError, excerpt
from rethink_tf.evaluation.coco_metrics import RESULT_FIELDS

_AGAIN = 'evaluate the run again'
_Checks = Mapping[str, Callable[[Any], bool]]  # by field


def read_truth(path: str) -> dict[str, Any]:
  """Read ground truth in COCO's format.

  Raises:
    UserError: it cannot be read, or a field that scoring needs is missing or has a value of another kind.
  """
  gt = _load(path, dict)
  for name in ('images', 'categories', 'annotations'):
    if not isinstance(gt.get(name), list):
      raise UserError(f'{path}: "{name}" should be a list: {_AGAIN}')
  _check(path, 'images', gt['images'], {'id': _is_id})
  _check(path, 'categories', gt['categories'], {'id': _is_id, 'name': lambda name: isinstance(name, str)})
  images, categories = ({one['id'] for one in gt[name]} for name in ('images', 'categories'))
  _check(path, 'annotations', gt['annotations'],
         {'image_id': images.__contains__, 'category_id': categories.__contains__, 'bbox': _is_box})
  return gt


def digest(gt: Mapping[str, Any]) -> str:
  """Return a hash of the images and objects of ground truth, as read_truth returns it.

  Equal for the same objects in another order or with other ids of the same classes. Boxes count to a hundredth of a
  pixel: TFRecords round them.
  """
  names = {category['id']: category['name'] for category in gt['categories']}
  images = sorted((image['id'], str(image.get('height')), str(image.get('width'))) for image in gt['images'])
  objects = sorted((a['image_id'], names[a['category_id']], bool(a.get('iscrowd')), bool(a.get('difficult')),
                    *(round(100 * side) for side in a['bbox'])) for a in gt['annotations'])
  return hashlib.sha256(repr((images, objects)).encode('utf-8', 'surrogatepass')).hexdigest()


def read_detections(path: str, gt: Mapping[str, Any], iou_type: str) -> list[dict[str, Any]]:
  """Read detections in COCO's submission format. Arguments and errors as for `check_detections`."""
  results = _load(path, list)
  check_detections(path, results, gt, iou_type)
  return results


def check_detections(path: str, results: Sequence[Any], gt: Mapping[str, Any], iou_type: str) -> None:
  """Check detections in COCO's submission format.

  Args:
    path: of their file.
    gt: ground truth that they were scored against, as read_truth returns it.
    iou_type: 'bbox', 'segm' or 'keypoints'.

  Raises:
    UserError: a field is missing, has a value of another kind, or is of an image or category without ground truth.
  """
  images, categories = ({one['id'] for one in gt[name]} for name in ('images', 'categories'))
  _check(path, '', results, {
    'image_id': images.__contains__, 'category_id': categories.__contains__, 'score': _is_number,
    RESULT_FIELDS[iou_type]: _is_box if iou_type == 'bbox' else bool})


def _check(path: str, name: str, entries: Iterable[Any], checks: _Checks) -> None:
  for number, entry in enumerate(entries):
    for field, is_valid in checks.items():
      try:
        valid = is_valid(entry[field])
      except (TypeError, LookupError):  # no object, no such field, or a list in place of an id
        valid = False
      if not valid:
        found = excerpt(entry[field]) if isinstance(entry, dict) and field in entry else 'missing'
        raise UserError(f'{path}: {name}[{number}].{field} is {found}, which cannot be scored: {_AGAIN}')


def _is_id(value: Any) -> bool:
  return type(value) is int and value.bit_length() < 64


def _is_number(value: Any) -> bool:
  return type(value) is float and math.isfinite(value) or type(value) is int and value.bit_length() < 64


def _is_box(value: Any) -> bool:
  return type(value) is list and len(value) == 4 and all(map(_is_number, value))


def _load(path: str, kind: type) -> Any:
  try:
    content = load_json(path)
  except UserError as error:
    raise UserError(f'{error.line()}: {_AGAIN}') from error
  if not isinstance(content, kind):
    raise UserError(f'{path} does not hold a JSON {"object" if kind is dict else "list"}: {_AGAIN}')
  return content
