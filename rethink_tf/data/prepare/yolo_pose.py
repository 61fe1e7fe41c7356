"""Keypoints of YOLO's pose labels: their description in data.yaml, and the values after the box of a label.

`kpt_shape: [P, 2 or 3]` is the number of keypoints and of the values of each: x, y and maybe the visibility;
`flip_idx` the keypoint that each becomes in a mirrored image; `kpt_names` their names, class by class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rethink_tf.data.categories import is_text, shorten
from rethink_tf.errors import UserError

NO_PAIRS = ('{file}: neither flip_idx nor kpt_names: a horizontal flip exchanges no keypoints; if some are a left and '
            'a right one, add flip_idx, or train with TrainInput.flip = False')
NO_SHAPE = ('no kpt_shape says so, and all labels look like boxes with {count} keypoints of x, y and visibility: they '
            'are read as such')
_MOST = 1000  # keypoints of an object


class Pose(NamedTuple):
  """The keypoints of a data set."""

  count: int  # P
  has_visibility: bool
  names: Mapping[int, tuple[str, ...]]  # of the classes that have names of their own
  mirrored: tuple[int, ...] | None  # index of each keypoint in a mirrored image

  @property
  def length(self) -> int:
    """The number of values after the box of an object."""
    return self.count * (2 + self.has_visibility)

  def of_category(self, key: int) -> dict[str, Any]:
    """Return COCO's fields of a category: names of keypoints, and pairs of them that a flip exchanges."""
    names = list(self.names.get(key, [f'keypoint {i + 1}' for i in range(self.count)]))
    pairs = [[names[i], names[j]] for i, j in enumerate(self.mirrored or ()) if i < j]
    return {'keypoints': names, **({'keypoint_pairs': pairs} if pairs else {})}

  def of_object(self, values: Sequence[float]) -> dict[str, Any]:
    """Return COCO's fields of an object from its `length` values, with coordinates as fractions of the image.

    A keypoint without visibility is labelled unless it is in the upper left corner, where tools put what they lack, or
    has a coordinate below 0. COCO has 0, 0, 0 for one that is not labelled.
    """
    keypoints = []
    for i in range(0, self.length, 2 + self.has_visibility):
      x, y = values[i:i + 2]
      visible = values[i + 2] if self.has_visibility else 2 * (min(x, y) >= 0 and max(x, y) > 0)
      keypoints += [x, y, min(max(round(visible), 1), 2)] if visible > 0 else [0, 0, 0]
    return {'keypoints': keypoints, 'num_keypoints': sum(one > 0 for one in keypoints[2::3])}


def read_pose(content: Mapping[str, Any], where: str) -> Pose | None:
  """Return the keypoints that data.yaml describes, None if it describes none.

  Args:
    content: of the file, all scalars as text.
    where: the file, for messages.

  Raises:
    UserError: a field contradicts itself or another one.
  """
  if 'kpt_shape' not in content:
    return None
  shape = _integers(content['kpt_shape'])
  if shape is None or len(shape) != 2 or not 0 < shape[0] <= _MOST or shape[1] not in (2, 3):
    raise UserError(f'{where}: kpt_shape should be the number of keypoints, and 2 for x, y or 3 for x, y, visibility, '
                    f'as [17, 3], is {shorten(content["kpt_shape"])}')
  count = shape[0]
  mirrored = None
  if content.get('flip_idx'):
    mirrored = _integers(content['flip_idx'])
    if mirrored is None or sorted(mirrored) != list(range(count)) or any(mirrored[j] != i
                                                                         for i, j in enumerate(mirrored)):
      raise UserError(f'{where}: flip_idx should list, for each of the {count} keypoints, the one that it is exchanged '
                      f'with in a mirrored image (itself without one), is {shorten(content["flip_idx"])}')
  return Pose(count, shape[1] == 3, _names(content.get('kpt_names'), count, where),
              None if mirrored is None else tuple(mirrored))


def infer_pose(labels: Sequence[Sequence[float]]) -> Pose | None:
  """Infer keypoints from labels if no description mentions them; None unless all longer labels look like poses.

  labels: the values after each class number.
  """
  longer = [values for values in labels if len(values) > 4]
  lengths = {len(values) for values in longer}
  if len(lengths) != 1 or not all(map(_is_pose, longer)):
    return None
  return Pose((lengths.pop() - 4) // 3, True, {}, None)


def _is_pose(values: Sequence[float]) -> bool:
  """Whether values may be a box and two or more keypoints of x, y and visibility.

  Few outlines have 0, 1 or 2 in each third place, and the points in front of a 1 or 2 within the box of their first
  four values: of 12,625 outlines of facades three at the edge of their image.
  """
  points = values[4:]
  if len(points) < 6 or len(points) % 3 or not {0, 1, 2}.issuperset(points[2::3]):
    return False
  x, y, w, h = values[:4]
  return all(abs(px - x) <= 0.6 * w and abs(py - y) <= 0.6 * h
             for px, py, visible in zip(points[::3], points[1::3], points[2::3], strict=True) if visible)


def _names(value: Any, count: int, where: str) -> dict[int, tuple[str, ...]]:
  """Return the names of keypoints by class."""
  if not value:
    return {}
  if not isinstance(value, dict) or not all(str(key).isdecimal() for key in value):
    raise UserError(f'{where}: kpt_names should have the names of the keypoints of each class number, as '
                    f'0: [nose, left_eye, ...], is {shorten(value)}')
  for key, names in value.items():
    if not isinstance(names, list) or len(names) != count or len(set(names)) < count or not all(map(is_text, names)):
      raise UserError(f'{where}: kpt_names of class {key} should be {count} different names, as kpt_shape says, is '
                      f'{shorten(names)}')
  return {int(key): tuple(names) for key, names in value.items()}


def _integers(value: Any) -> list[int] | None:
  """Parse a list of integers written as text; None if it is not one."""
  if not isinstance(value, list) or not all(isinstance(one, str) and one.strip().isdecimal() for one in value):
    return None
  return [int(one) for one in value]
