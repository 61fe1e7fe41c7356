"""Drawing of boxes, masks and keypoints on images, and grids of images."""

import colorsys
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import cv2
import numpy as np

from rethink_tf.errors import plain

FONT = cv2.FONT_HERSHEY_SIMPLEX
READABLE_SIDE = 640  # longer side for which labels are designed; smaller images are enlarged to it
MASK_OPACITY = 0.42
LABEL_SIZE, NOTE_SIZE = 0.42, 0.6  # font scales of OpenCV
LABELLED = 0.2  # share of an image that labels may cover
TITLE_LENGTH = 30  # of a file name in a title
Plate = tuple[int, int, int, int]  # y0, x0, y1, x1 of a label
NOTE_COLOUR = (40, 40, 40)
DETECTION_COLOUR, TRUTH_COLOUR, ARROW_COLOUR = (232, 88, 36), (36, 160, 84), (200, 20, 60)


def draw(
  image: np.ndarray,
  boxes: np.ndarray,
  classes: np.ndarray,
  names: Sequence[str],
  scores: np.ndarray | None = None,
  masks: Sequence[np.ndarray] | None = None,
  keypoints: np.ndarray | None = None,
  skeleton: Sequence[tuple[int, int]] = (),
  note: str = '',
) -> np.ndarray:
  """Draw objects on an image: boxes, translucent outlined masks, keypoints, and labels inside the image.

  Each class has a colour; with a single class each object has one. Labels that would cover another one, or together
  more than LABELLED of the image, are left out, those of later objects first; the image says how many.

  Args:
    image: uint8 [h, w, 3] RGB; it is not modified.
    boxes: [n, 4] y0 x0 y1 x1 in pixels of the image.
    classes: [n] 1..K.
    names: names of the K classes, class 1 first.
    scores: [n], appended to the names.
    masks: n arrays [h, w], true inside.
    keypoints: [n, P, 3] y, x, visibility; points of visibility 0 are not drawn.
    skeleton: pairs of keypoints, counted from 1, to join by lines.
    note: text at the lower edge, as on an image without detections.

  Returns:
    uint8 [h', w', 3] RGB, enlarged if the longer side is below READABLE_SIDE.
  """
  scale = max(1.0, READABLE_SIDE / max(image.shape[:2]))
  rendered = image.copy()
  if scale > 1:
    rendered = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
  boxes = np.asarray(boxes, np.float64).reshape(-1, 4) * scale
  colours = [class_colour(c) for c in (classes if len(names) > 1 else range(1, len(classes) + 1))]
  line = max(1, round(_scale(rendered)))
  areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
  for i in np.argsort(-areas, kind='stable'):  # small objects on top
    if masks is not None:
      _draw_mask(rendered, np.asarray(masks[i]), colours[i], line + 1)
    y0, x0, y1, x1 = np.round(boxes[i]).astype(int).tolist()
    cv2.rectangle(rendered, (x0, y0), (x1 - 1, y1 - 1), colours[i], line)
    if keypoints is not None:
      _draw_keypoints(rendered, np.asarray(keypoints[i], np.float64) * [scale, scale, 1], skeleton, colours[i], line)
  texts = [names[int(classes[i]) - 1] + ('' if scores is None else f' {scores[i]:.2f}') for i in range(len(boxes))]
  hidden = len(boxes) - _draw_labels(rendered, texts, boxes, colours)
  note = '; '.join(part for part in (note, f'{hidden} of {len(boxes)} labels not drawn' if hidden else '') if part)
  if note:
    plate, _ = _place_label(rendered, note, np.array([rendered.shape[0], 0, rendered.shape[0], 0]), (), NOTE_SIZE)
    _draw_label(rendered, note, plate, NOTE_COLOUR, NOTE_SIZE)
  return rendered


def image_grid(
  images: Sequence[np.ndarray], columns: int, titles: Sequence[str] | None = None, width: int = 480
) -> np.ndarray:
  """Arrange images in rows on white, each below its title and resized to fit `width` x `width`: uint8 [h, w, 3] RGB."""
  return image_grid_with_cells(images, columns, titles, width)[0]


def image_grid_with_cells(
  images: Sequence[np.ndarray], columns: int, titles: Sequence[str] | None = None, width: int = 480
) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
  """Return an image grid as above, and y0, x0, y1, x1 of each image in it."""
  gap, strip = 12, 26 if titles else 0
  rows, places, top = [], [], gap
  for start in range(0, len(images), columns):
    cells = [_fit(image, width) for image in images[start : start + columns]]
    row = np.full((max(len(cell) for cell in cells) + strip + gap, columns * (width + gap) + gap, 3), 255, np.uint8)
    for k, cell in enumerate(cells):
      x = gap + k * (width + gap)
      row[strip : strip + len(cell), x : x + cell.shape[1]] = cell
      places.append((top + strip, x, top + strip + len(cell), x + cell.shape[1]))
      if titles:
        cv2.putText(row, _shorten(titles[start + k], 0.45, width), (x, strip - 9), FONT, 0.45, (50, 50, 50), 1,
                    cv2.LINE_AA)
    rows.append(row)
    top += len(row)
  if not rows:
    return np.full((gap, gap, 3), 255, np.uint8), []
  return np.concatenate([np.full((gap, rows[0].shape[1], 3), 255, np.uint8), *rows]), places


class DrawnObject(NamedTuple):
  """A detection or a ground-truth object, in pixels of its image."""

  box: np.ndarray  # [4] y0 x0 y1 x1
  text: str = ''  # its label
  mask: np.ndarray | None = None  # [h, w], true inside
  keypoints: np.ndarray | None = None  # [P, 3] y, x, visibility; points of visibility 0 are not drawn


def draw_error(
  image: np.ndarray,
  detected: DrawnObject | None,
  true: DrawnObject | None,
  skeleton: Sequence[tuple[int, int]] = (),
  wrong: Sequence[int] = (),
) -> np.ndarray:
  """Draw a detection and the ground truth it is compared with, on a crop of the image around both.

  Args:
    image: uint8 [h, w, 3] RGB.
    detected, true: at least one of them is not None.
    skeleton: pairs of keypoints, counted from 1, to join by lines.
    wrong: keypoints, counted from 0, to mark with an arrow from the detected to the true position.

  Returns:
    uint8 [h', w', 3] RGB, the longer side READABLE_SIDE pixels.
  """
  objects, colours = zip(*((one, colour) for one, colour in ((true, TRUTH_COLOUR), (detected, DETECTION_COLOUR))
                           if one is not None), strict=True)
  boxes = np.array([one.box for one in objects], np.float64)
  rendered, window, scale = _enlarged(image, boxes)
  top, left = window[0].start, window[1].start
  boxes = (boxes - np.tile([top, left], 2)) * scale
  for one, box, colour in zip(objects, boxes, colours, strict=True):
    if one.mask is not None:
      _draw_mask(rendered, np.ascontiguousarray(np.asarray(one.mask)[window]), colour, 2)
    y0, x0, y1, x1 = np.round(box).astype(int).tolist()
    for shade, line in (((255, 255, 255), 5), (colour, 3)):  # visible on any background
      cv2.rectangle(rendered, (x0, y0), (x1 - 1, y1 - 1), shade, line)
  points = [None if one.keypoints is None else
            (np.asarray(one.keypoints, np.float64) - [top, left, 0]) * [scale, scale, 1] for one in objects]
  for one, colour in zip(points, colours, strict=True):
    if one is not None:
      _draw_keypoints(rendered, one, skeleton, colour, 4)
  for k in wrong:
    (y1, x1, _), (y0, x0, _) = (np.round(one[k]).astype(int).tolist() for one in points)
    cv2.arrowedLine(rendered, (x0, y0), (x1, y1), (255, 255, 255), 4, cv2.LINE_AA, tipLength=0.12)
    cv2.arrowedLine(rendered, (x0, y0), (x1, y1), ARROW_COLOUR, 2, cv2.LINE_AA, tipLength=0.12)
  taken: list[Plate] = []
  for one, box, colour in zip(objects, boxes, colours, strict=True):
    taken.append(_place_label(rendered, one.text, box, taken, 0.8)[0])
    _draw_label(rendered, one.text, taken[-1], colour, 0.8)
  return rendered


def _enlarged(image: np.ndarray, boxes: np.ndarray) -> tuple[np.ndarray, tuple[slice, slice], float]:
  """Return the part of an image around all boxes, resized to READABLE_SIDE; where it lies in the image; the scale."""
  low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
  side = max(1.7 * (high - low).max(), 64.0)  # with context around it
  top, left = np.clip(np.floor((low + high - side) / 2), 0, np.array(image.shape[:2]) - 1).astype(int)
  bottom, right = np.minimum(np.ceil((low + high + side) / 2), image.shape[:2]).astype(int)
  window = slice(top, max(bottom, top + 1)), slice(left, max(right, left + 1))
  scale = READABLE_SIDE / max(image[window].shape[:2])
  size = [max(1, round(side * scale)) for side in image[window].shape[1::-1]]
  return cv2.resize(np.ascontiguousarray(image[window]), size,
                    interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA), window, scale


def hatch(padded: np.ndarray, height: int, width: int) -> np.ndarray:
  """Hatch the padding of an image uint8 [H, W, 3], outside height x width, to distinguish it from image content."""
  rows, columns = np.indices(padded.shape[:2])
  stripes = np.where((rows + columns) // 12 % 2, 232, 206).astype(np.uint8)
  rendered = np.repeat(stripes[..., None], 3, axis=2)
  rendered[:height, :width] = padded[:height, :width]
  return rendered


def paste_masks(crops: np.ndarray, boxes: np.ndarray, height: int, width: int) -> list[np.ndarray]:
  """Paste box-relative mask crops, 0/1 [n, c, c] with boxes [n, 4], into masks of the image: n arrays bool [h, w]."""
  masks = []
  for crop, box in zip(crops, np.asarray(boxes, np.float64), strict=True):
    y0, x0, y1, x1 = np.clip(np.round(box), 0, [height, width] * 2).astype(int).tolist()
    mask = np.zeros((height, width), bool)
    if y1 > y0 and x1 > x0:
      grey = np.ascontiguousarray(crop, np.uint8) * np.uint8(255)
      mask[y0:y1, x0:x1] = cv2.resize(grey, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR) >= 128
    masks.append(mask)
  return masks


def under_heading(text: str, image: np.ndarray) -> np.ndarray:
  """Put a line of large text on white above an image: uint8 [h + 44, w, 3] RGB."""
  strip = np.full((44, image.shape[1], 3), 255, np.uint8)
  cv2.putText(strip, _shorten(text, 0.7, image.shape[1] - 24), (12, 31), FONT, 0.7, (20, 20, 20), 2, cv2.LINE_AA)
  return np.concatenate([strip, image])


def short_name(file_name: str) -> str:
  """Return a file name without folders for the title of an image in a grid, its end alone if it is long."""
  name = plain(str(file_name).replace('\\', '/').rpartition('/')[2])
  return name if len(name) <= TITLE_LENGTH else f'..{name[2 - TITLE_LENGTH:]}'


def stack(images: Sequence[np.ndarray]) -> np.ndarray:
  """Stack images vertically on white, aligned at the left: uint8 [h, w, 3] RGB."""
  width = max(image.shape[1] for image in images)
  return np.concatenate([np.pad(image, ((0, 0), (0, width - image.shape[1]), (0, 0)), constant_values=255)
                         for image in images])


def png(image: np.ndarray, text: Mapping[str, str] | None = None) -> bytes:
  """Encode an image, uint8 [h, w, 3] RGB, as PNG. text: values of text chunks by keyword."""
  data = cv2.imencode('.png', np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
  chunks = b''.join(_text_chunk(f'{key}\0{value}'.encode('latin-1')) for key, value in (text or {}).items())
  return data[:33] + chunks + data[33:]  # after the signature and the header


def _text_chunk(content: bytes) -> bytes:
  return struct.pack('>I', len(content)) + b'tEXt' + content + struct.pack('>I', zlib.crc32(b'tEXt' + content))


def class_colour(number: int) -> tuple[int, int, int]:
  """Return the colour of class 1, 2, ...: hues a golden section apart, so that the first few differ most."""
  number = int(number) - 1
  hue = (0.02 + number * 0.618034) % 1.0
  red, green, blue = colorsys.hsv_to_rgb(hue, (0.85, 0.6, 0.95)[number // 7 % 3], (0.95, 1.0, 0.8)[number // 3 % 3])
  return round(255 * red), round(255 * green), round(255 * blue)


def _scale(rendered: np.ndarray) -> float:
  """Return the scale of lines and labels, by the longer side; limited in narrow images, which labels would cover."""
  short, long = sorted(rendered.shape[:2])
  return max(1.0, min(long, 3 * short) / READABLE_SIDE)


def _draw_mask(rendered: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int], line: int) -> None:
  height, width = rendered.shape[:2]
  mask = mask.astype(np.uint8) * 255
  if mask.shape != (height, width):
    mask = cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR)
  x, y, w, h = cv2.boundingRect(mask)
  if not w:
    return
  inside = mask[y : y + h, x : x + w] > 127
  patch = rendered[y : y + h, x : x + w]
  patch[inside] = (patch[inside] * (1 - MASK_OPACITY) + np.array(colour) * MASK_OPACITY).astype(np.uint8)
  outlines = cv2.findContours((mask > 127).astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
  cv2.drawContours(rendered, outlines, -1, colour, line, cv2.LINE_AA)


def _draw_keypoints(
  rendered: np.ndarray,
  keypoints: np.ndarray,
  skeleton: Sequence[tuple[int, int]],
  colour: tuple[int, int, int],
  line: int,
) -> None:
  points = [(round(x), round(y)) if visible > 0 else None for y, x, visible in keypoints.tolist()]
  for a, b in skeleton:
    if points[a - 1] and points[b - 1]:
      cv2.line(rendered, points[a - 1], points[b - 1], colour, line + 1, cv2.LINE_AA)
  for point in filter(None, points):
    cv2.circle(rendered, point, 2 * line + 1, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(rendered, point, 2 * line, colour, -1, cv2.LINE_AA)


def _draw_labels(rendered: np.ndarray, texts: Sequence[str], boxes: np.ndarray,
                 colours: Sequence[tuple[int, int, int]]) -> int:
  """Write the labels of boxes where there is room; return how many were written."""
  taken: list[Plate] = []
  left = LABELLED * rendered.shape[0] * rendered.shape[1]
  for text, box, colour in zip(texts, boxes, colours, strict=True):
    plate, free = _place_label(rendered, text, box, taken)
    area = (plate[2] - plate[0]) * (plate[3] - plate[1])
    if free and (area <= left or not taken):
      _draw_label(rendered, text, plate, colour)
      taken.append(plate)
      left -= area
  return len(taken)


def _place_label(
  rendered: np.ndarray, text: str, box: np.ndarray, taken: Sequence[Plate], font_size: float = LABEL_SIZE
) -> tuple[Plate, bool]:
  """Return the place of a label at a corner of its box, inside the image, and whether it is clear of other labels."""
  height, width = rendered.shape[:2]
  plate_height, plate_width = _label_size(rendered, text, font_size)
  y0, x0, y1, x1 = np.round(box).astype(int).tolist()
  places = [(y0 - plate_height, x0), (y1, x0), (y0 - plate_height, x1 - plate_width), (y1, x1 - plate_width)]
  if y1 - y0 > 2 * plate_height:  # a small object would be hidden
    places[1:1] = [(y0, x0), (y1 - plate_height, x0)]
  places = [(min(max(y, 0), height - plate_height), min(max(x, 0), width - plate_width)) for y, x in places]
  plates = [(y, x, y + plate_height, x + plate_width) for y, x in places]
  free = [plate for plate in plates if not any(_overlap(plate, other) for other in taken)]
  return (free or plates)[0], bool(free)


def _label_size(rendered: np.ndarray, text: str, font_size: float) -> tuple[int, int]:
  """Return the height and width of a label's plate."""
  size, pad = _font(rendered, font_size)
  text = _shorten(text, size, rendered.shape[1] - 2 * pad)
  (text_width, text_height), drop = cv2.getTextSize(text, FONT, size, 1)
  return text_height + drop + pad, text_width + 2 * pad


def _font(rendered: np.ndarray, font_size: float) -> tuple[float, int]:
  """Return font scale and padding of labels, by the size of the image."""
  size = font_size * _scale(rendered)
  return size, max(2, round(5 * size))


def _draw_label(rendered: np.ndarray, text: str, plate: Plate, colour: tuple[int, int, int],
                font_size: float = LABEL_SIZE) -> None:
  """Write a label on a plate of the given colour."""
  size, pad = _font(rendered, font_size)
  text = _shorten(text, size, rendered.shape[1] - 2 * pad)
  (_, text_height), _ = cv2.getTextSize(text, FONT, size, 1)
  cv2.rectangle(rendered, (plate[1], plate[0]), (plate[3] - 1, plate[2] - 1), colour, -1)
  light = np.dot(colour, (0.299, 0.587, 0.114)) > 140
  baseline = plate[0] + pad // 2 + text_height
  cv2.putText(rendered, text, (plate[1] + pad, baseline), FONT, size, (0, 0, 0) if light else (255, 255, 255),
              max(1, round(size)), cv2.LINE_AA)


def _overlap(a: Plate, b: Plate) -> bool:
  return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _shorten(text: str, size: float, width: int) -> str:
  """Truncate a text to `width` pixels."""
  if cv2.getTextSize(text, FONT, size, 1)[0][0] <= width:
    return text
  while text and cv2.getTextSize(text + '..', FONT, size, 1)[0][0] > width:
    text = text[:-1]
  return text + '..'


def _fit(image: np.ndarray, side: int) -> np.ndarray:
  """Resize an image to a longer side of `side` pixels."""
  scale = side / max(image.shape[:2])
  size = max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale))
  return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
