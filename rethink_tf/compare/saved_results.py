"""Reads the ground truth and detections that an evaluation saved, and checks them: files may be damaged or edited."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from rethink_tf.data.detection.segmentation import to_rle
from rethink_tf.data.json_files import load_json
from rethink_tf.errors import UserError, excerpt, in_one_line
from rethink_tf.evaluation.coco_metrics import RESULT_FIELDS

_AGAIN = 'evaluate the run again'
_MOST_PIXELS = 1 << 30  # of a side: OpenCV draws in 32 bits
_Checks = Mapping[str, Callable[[Any], bool]]  # by field


def read_truth(path: str, iou_type: str = 'bbox') -> dict[str, Any]:
  """Read ground truth in COCO's format. Arguments and errors as for `check_truth`."""
  gt = _load(path, dict)
  check_truth(path, gt, iou_type)
  return gt


def check_truth(path: str, gt: Mapping[str, Any], iou_type: str) -> None:
  """Check ground truth in COCO's format.

  Args:
    path: of its file.
    gt: its content.
    iou_type: 'bbox', 'segm' or 'keypoints': what is scored.

  Raises:
    UserError: a field that scoring needs is missing or has a value of another kind.
  """
  for name in ('images', 'categories', 'annotations'):
    if not isinstance(gt.get(name), list):
      raise UserError(f'{path}: "{name}" should be a list: {_AGAIN}')
  _check(path, 'images', gt['images'], {'id': _is_id, 'height': _is_side, 'width': _is_side})
  _check(path, 'categories', gt['categories'], {'id': _is_id, 'name': lambda name: isinstance(name, str)})
  images, categories = ({one['id'] for one in gt[name]} for name in ('images', 'categories'))
  _check(path, 'annotations', gt['annotations'],
         {'image_id': images.__contains__, 'category_id': categories.__contains__, 'bbox': _is_box, 'area': _is_number})
  if iou_type == 'segm':
    masks = _masks(gt)
    _check(path, 'annotations', gt['annotations'], {'segmentation': lambda _: next(masks) is not None})
  elif iou_type == 'keypoints':  # other objects have none
    _check(path, 'annotations', ({'keypoints': a.get('keypoints') or []} for a in gt['annotations']),
           {'keypoints': _is_points})


def digest(gt: Mapping[str, Any], iou_type: str = 'bbox') -> str:
  """Return a hash of the images and objects of ground truth (see read_truth), as far as `iou_type` scores them.

  Equal for the same objects in another order or with other ids of the same classes. Boxes and keypoints count to a
  hundredth of a pixel: TFRecords round them. Masks count by their pixels, however they are written.
  """
  names = {category['id']: category['name'] for category in gt['categories']}
  images = sorted((image['id'], str(image.get('height')), str(image.get('width'))) for image in gt['images'])
  scored: Iterable[Any] = itertools.repeat(())
  if iou_type == 'segm':
    scored = ((b'' if a.get('without_mask') else mask,) for a, mask in zip(gt['annotations'], _masks(gt), strict=True))
  elif iou_type == 'keypoints':
    scored = (_hundredths(a.get('keypoints') or ()) for a in gt['annotations'])
  objects = sorted((a['image_id'], names[a['category_id']], bool(a.get('iscrowd')), bool(a.get('difficult')),
                    *_hundredths(a['bbox']), *own) for a, own in zip(gt['annotations'], scored, strict=False))
  return hashlib.sha256(repr((images, objects)).encode('utf-8', 'surrogatepass')).hexdigest()


def _hundredths(values: Iterable[float]) -> tuple[int, ...]:
  return tuple(round(100 * value) for value in values)


def _masks(gt: Mapping[str, Any]) -> Iterator[bytes | None]:
  """Yield the run lengths of each annotation's mask, None if it is malformed."""
  sizes = {image['id']: (image['height'], image['width']) for image in gt['images']}
  for annotation in gt['annotations']:
    try:
      yield to_rle(annotation.get('segmentation'), *sizes[annotation['image_id']])['counts']
    except ValueError:
      yield None


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
    RESULT_FIELDS[iou_type]: {'bbox': _is_box, 'segm': _is_rle, 'keypoints': _is_points}[iou_type]})


@contextlib.contextmanager
def reported(path: str) -> Iterator[None]:
  """Turn errors while detections are scored into a UserError: fields that are not checked may be damaged, too.

  path: of the detections.

  Raises:
    UserError: scoring has failed.
  """
  try:
    yield
  except (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RuntimeError) as error:
    raise UserError(f'{path}: cannot be scored against the ground_truth.json beside it ({in_one_line(error)}): '
                    f'{_AGAIN}') from error


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


def _is_side(value: Any) -> bool:
  return type(value) is int and 0 < value <= _MOST_PIXELS


def _is_box(value: Any) -> bool:
  return type(value) is list and len(value) == 4 and all(
    _is_number(each) and abs(each) <= _MOST_PIXELS for each in value)


def _is_points(value: Any) -> bool:
  return type(value) is list and len(value) % 3 == 0 and all(map(_is_number, value))


def _is_rle(value: Any) -> bool:
  return type(value['size']) is list and all(map(_is_id, value['size'])) and type(value['counts']) is str


def _load(path: str, kind: type) -> Any:
  try:
    content = load_json(path)
  except UserError as error:
    raise UserError(f'{error.line()}: {_AGAIN}') from error
  if not isinstance(content, kind):
    raise UserError(f'{path} does not hold a JSON {"object" if kind is dict else "list"}: {_AGAIN}')
  return content
