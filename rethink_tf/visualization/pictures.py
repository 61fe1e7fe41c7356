"""Photographs with their boxes, masks and keypoints drawn on, and sheets of them."""

import colorsys
from collections.abc import Sequence

import cv2
import numpy as np

FONT = cv2.FONT_HERSHEY_SIMPLEX
READABLE_SIDE = 640  # labels are designed at this size of the longer side; smaller pictures are enlarged to it
MASK_OPACITY = 0.42
LABEL_SIZE = 0.42  # of OpenCV's font
FOUND_COLOUR, TRUE_COLOUR, WRONG_COLOUR = (232, 88, 36), (36, 160, 84), (200, 20, 60)


def draw(
  image: np.ndarray,
  boxes: np.ndarray,
  classes: np.ndarray,
  names: Sequence[str],
  scores: np.ndarray | None = None,
  masks: Sequence[np.ndarray] | None = None,
  keypoints: np.ndarray | None = None,
  skeleton: Sequence[tuple[int, int]] = (),
) -> np.ndarray:
  """A photograph with its objects: a colour per class (of a single class: per object, so that neighbours are told
  apart), translucent outlined masks, labels inside the picture.

  Args:
    image: uint8 [h, w, 3] RGB; it is not changed.
    boxes: [n, 4] y0 x0 y1 x1 in pixels of the image.
    classes: [n] 1..K.
    names: K names, of class 1 first.
    scores: [n] written behind the names.
    masks: n times [h, w], true inside.
    keypoints: [n, P, 3] y, x, visibility; points of visibility 0 are left out.
    skeleton: pairs of keypoints, counted from 1, that are joined by a line.

  Returns:
    uint8 [h', w', 3] RGB, enlarged when the longer side is below READABLE_SIDE pixels.
  """
  enlarge = max(1.0, READABLE_SIDE / max(image.shape[:2]))
  canvas = image.copy()
  if enlarge > 1:
    canvas = cv2.resize(image, None, fx=enlarge, fy=enlarge, interpolation=cv2.INTER_CUBIC)
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * enlarge
  colours = [class_colour(c) for c in (classes if len(names) > 1 else range(1, len(classes) + 1))]
  line = max(1, round(_scale(canvas)))
  areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  for i in np.argsort(-areas, kind='stable'):  # small ones on top
    if masks is not None:
      _draw_mask(canvas, np.asarray(masks[i]), colours[i], line + 1)
    y0, x0, y1, x1 = np.round(boxes[i]).astype(int).tolist()
    cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), colours[i], line)
    if keypoints is not None:
      _draw_keypoints(canvas, np.asarray(keypoints[i], np.float64) * [enlarge, enlarge, 1], skeleton, colours[i], line)
  taken: list[tuple[int, int, int, int]] = []
  for i, box in enumerate(boxes):
    text = names[int(classes[i]) - 1] + ('' if scores is None else f' {scores[i]:.2f}')
    taken.append(_draw_label(canvas, text, box, colours[i], taken))
  return canvas


def sheet(
  pictures: Sequence[np.ndarray], columns: int, titles: Sequence[str] | None = None, width: int = 480
) -> np.ndarray:
  """Pictures in rows on white, each under its title and fitted into a square of `width`: uint8 [h, w, 3] RGB."""
  gap, strip = 12, 26 if titles else 0
  rows = []
  for start in range(0, len(pictures), columns):
    cells = [_fit(picture, width) for picture in pictures[start : start + columns]]
    row = np.full((max(len(cell) for cell in cells) + strip + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for k, cell in enumerate(cells):
      x = gap + k * (width + gap)
      row[strip : strip + len(cell), x : x + cell.shape[1]] = cell
      if titles:
        cv2.putText(row, _shorten(titles[start + k], 0.45, width), (x, strip - 9), FONT, 0.45, (50, 50, 50), 1,
                    cv2.LINE_AA)
    rows.append(row)
  if not rows:
    return np.full((gap, gap, 3), 255, np.uint8)
  return np.concatenate([np.full((gap, rows[0].shape[1], 3), 255, np.uint8), *rows])


def draw_mistake(
  image: np.ndarray,
  found: np.ndarray | None,
  found_text: str,
  true: np.ndarray | None,
  true_text: str,
  found_mask: np.ndarray | None = None,
  true_mask: np.ndarray | None = None,
  found_keypoints: np.ndarray | None = None,
  true_keypoints: np.ndarray | None = None,
  skeleton: Sequence[tuple[int, int]] = (),
  wrong: Sequence[int] = (),
) -> np.ndarray:
  """The part of a photograph around a detection and the object it is measured by, in two colours of their own.

  Args:
    image: uint8 [h, w, 3] RGB.
    found, true: [4] y0 x0 y1 x1; None: there is none.
    found_text, true_text: their labels.
    found_mask, true_mask: [h, w], true inside.
    found_keypoints, true_keypoints: [P, 3] y, x, visibility; points of visibility 0 are left out.
    skeleton: pairs of keypoints, counted from 1, that are joined by a line.
    wrong: keypoints, counted from 0, that are led by an arrow from where they were found to where they are.

  Returns:
    uint8 [h', w', 3] RGB, the longer side READABLE_SIDE pixels.
  """
  pairs = [(box, text, mask, colour) for box, text, mask, colour in (
    (true, true_text, true_mask, TRUE_COLOUR), (found, found_text, found_mask, FOUND_COLOUR)) if box is not None]
  boxes = np.array([box for box, *_ in pairs], np.float64)
  low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
  side = max(1.7 * (high - low).max(), 64.0)  # so much that one sees where it is
  top, left = np.clip(np.floor((low + high - side) / 2), 0, np.array(image.shape[:2]) - 1).astype(int)
  bottom, right = np.minimum(np.ceil((low + high + side) / 2), image.shape[:2]).astype(int)
  window = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
  scale = READABLE_SIDE / max(image[window].shape[:2])
  size = [max(1, round(side * scale)) for side in image[window].shape[1::-1]]
  canvas = cv2.resize(np.ascontiguousarray(image[window]), size,
                      interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA)
  boxes = (boxes - np.tile([top, left], 2)) * scale
  for box, (_, _, mask, colour) in zip(boxes, pairs, strict=True):
    if mask is not None:
      _draw_mask(canvas, np.ascontiguousarray(np.asarray(mask)[window]), colour, 2)
    y0, x0, y1, x1 = np.round(box).astype(int).tolist()
    for shade, line in (((255, 255, 255), 5), (colour, 3)):  # seen on any ground
      cv2.rectangle(canvas, (x0, y0), (x1 - 1, y1 - 1), shade, line)
  points = [None if one is None else (np.asarray(one, np.float64) - [top, left, 0]) * [scale, scale, 1]
            for one in (found_keypoints, true_keypoints)]
  for one, colour in zip(points[::-1], (TRUE_COLOUR, FOUND_COLOUR), strict=True):
    if one is not None:
      _draw_keypoints(canvas, one, skeleton, colour, 4)
  for k in wrong:
    (y0, x0, _), (y1, x1, _) = (np.round(one[k]).astype(int).tolist() for one in points)
    cv2.arrowedLine(canvas, (x0, y0), (x1, y1), (255, 255, 255), 4, cv2.LINE_AA, tipLength=0.12)
    cv2.arrowedLine(canvas, (x0, y0), (x1, y1), WRONG_COLOUR, 2, cv2.LINE_AA, tipLength=0.12)
  taken: list[tuple[int, int, int, int]] = []
  for box, (_, text, _, colour) in zip(boxes, pairs, strict=True):
    taken.append(_draw_label(canvas, text, box, colour, taken, 0.8))
  return canvas


def hatch(canvas: np.ndarray, height: int, width: int) -> np.ndarray:
  """A canvas uint8 [H, W, 3] whose padding, outside height x width, is hatched, so that it looks like no photograph."""
  rows, columns = np.indices(canvas.shape[:2])
  stripes = np.where((rows + columns) // 12 % 2, 232, 206).astype(np.uint8)
  picture = np.repeat(stripes[..., None], 3, axis=2)
  picture[:height, :width] = canvas[:height, :width]
  return picture


def uncrop(crops: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[np.ndarray]:
  """Masks that travel as crops of their boxes, 0/1 [n, c, c] with boxes [n, 4], on a canvas: n times bool [h, w]."""
  masks = []
  for crop, box in zip(crops, np.asarray(boxes, np.float64), strict=True):
    y0, x0, y1, x1 = np.clip(np.round(box), 0, [height, width] * 2).astype(int).tolist()
    mask = np.zeros((height, width), bool)
    if y1 > y0 and x1 > x0:
      grey = np.ascontiguousarray(crop, np.uint8) * np.uint8(255)
      mask[y0:y1, x0:x1] = cv2.resize(grey, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) >= 128
    masks.append(mask)
  return masks


def under_heading(text: str, picture: np.ndarray) -> np.ndarray:
  """A picture below a line of large text on white: uint8 [h + 44, w, 3] RGB."""
  strip = np.full((44, picture.shape[1], 3), 255, np.uint8)
  cv2.putText(strip, _shorten(text, 0.7, picture.shape[1] - 24), (12, 31), FONT, 0.7, (20, 20, 20), 2, cv2.LINE_AA)
  return np.concatenate([strip, picture])


def stack(parts: Sequence[np.ndarray]) -> np.ndarray:
  """Pictures one below the other on white, at the left: uint8 [h, w, 3] RGB."""
  width = max(part.shape[1] for part in parts)
  return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1]), (0, 0)), constant_values=255)
                         for part in parts])


def png(picture: np.ndarray) -> bytes:
  """A picture, uint8 [h, w, 3] RGB, as a PNG file."""
  return cv2.imencode('.png', np.ascontiguousarray(picture[..., ::-1]))[1].tobytes()


def class_colour(number: int) -> tuple[int, int, int]:
  """Colour of class 1, 2, ...: hues a golden section apart, so that any first few are far from each other."""
  number = int(number) - 1
  hue = (0.02 + number * 0.618034) % 1.0
  red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.95)[number // 7 % 3], (0.95, 1.0, 0.8)[number // 3 % 3])
  return round(255 * red), round(255 * green), round(255 * blue)


def _scale(canvas: np.ndarray) -> float:
  """Of lines and labels: by the longer side, but in a narrow strip labels must leave something to see."""
  short, long = sorted(canvas.shape[:2])
  return max(1.0, min(long, 3 * short) / READABLE_SIDE)


def _draw_mask(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
  height, width = canvas.shape[:2]
  mask = mask.astype(np.uint8) * 255
  if mask.shape != (height, width):
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
  x, y, w, h = cv2.boundingRect(mask)
  if not w:
    return
  inside = mask[y : y + h, x : x + w] > 127
  patch = canvas[y : y + h, x : x + w]
  patch[inside] = (patch[inside] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY).astype(np.uint8)
  outlines = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
  cv2.drawContours(canvas, outlines, -1, colour, line, cv2.LINE_AA)


def _draw_keypoints(
  canvas: np.ndarray,
  keypoints: np.ndarray,
  skeleton: Sequence[tuple[int, int]],
  colour: tuple[int, int, int],
  line: int,
) -> None:
  points = [(round(x), round(y)) if visible > 0 else None for y, x, visible in keypoints.tolist()]
  for a, b in skeleton:
    if points[a - 1] and points[b - 1]:
      cv2.line(canvas, points[a - 1], points[b - 1], colour, line + 1, cv2.LINE_AA)
  for point in filter(None, points):
    cv2.circle(canvas, point, 2 * line + 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(canvas, point, 2 * line, colour, -1, cv2.LINE_AA)


def _draw_label(
  canvas: np.ndarray,
  text: str,
  box: np.ndarray,
  colour: tuple[int, int, int],
  taken: Sequence[tuple[int, int, int, int]],
  font_size: float = LABEL_SIZE,
) -> tuple[int, int, int, int]:
  """Writes a label on a plate in the class's colour, where no other label is if there is such a place at the box.

  Returns:
    y0, x0, y1, x1 of the plate, inside the picture.
  """
  height, width = canvas.shape[:2]
  size = font_size * _scale(canvas)
  pad = max(2, round(5 * size))
  text = _shorten(text, size, width - 2 * pad)
  (text_width, text_height), drop = cv2.getTextSize(text, FONT, size, 1)
  plate_height, plate_width = text_height + drop + pad, text_width + 2 * pad
  y0, x0, y1, x1 = np.round(box).astype(int).tolist()
  places = [(y0 - plate_height, x0), (y1, x0), (y0 - plate_height, x1 - plate_width), (y1, x1 - plate_width)]
  if y1 - y0 > 2 * plate_height:  # a small object would be hidden
    places[1:1] = [(y0, x0), (y1 - plate_height, x0)]
  places = [(min(max(y, 0), height - plate_height), min(max(x, 0), width - plate_width)) for y, x in places]
  plates = [(y, x, y + plate_height, x + plate_width) for y, x in places]
  plate = next((p for p in plates if not any(_overlap(p, other) for other in taken)), plates[0])
  cv2.rectangle(canvas, (plate[1], plate[0]), (plate[3] - 1, plate[2] - 1), colour, -1)
  light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
  baseline = plate[0] + pad // 2 + text_height
  cv2.putText(canvas, text, (plate[1] + pad, baseline), FONT, size, (0, 0, 0) if light else (255, 255, 255),
              max(1, round(size)), cv2.LINE_AA)
  return plate


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shorten(text: str, size: float, width: int) -> str:
  """As much of a text as fits into `width` pixels."""
  if cv2.getTextSize(text, FONT, size, 1)[0][0] <= width:
    return text
  while text and cv2.getTextSize(text + '..', FONT, size, 1)[0][0] > width:
    text = text[:-1]
  return text + '..'


def _fit(picture: np.ndarray, side: int) -> np.ndarray:
  scale = side / max(picture.shape[:2])
  size = max(1, round(picture.shape[1] * scale)), max(1, round(picture.shape[0] * scale))
  return cv2.resize(picture, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
