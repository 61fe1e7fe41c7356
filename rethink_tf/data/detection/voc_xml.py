"""Safe parsing of untrusted annotation files in PASCAL VOC's XML format."""

import contextlib
import math
import re
from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from rethink_tf.data.categories import as_text, is_text, shorten
from rethink_tf.data.detection.segmentation import ROTATED, turned_box
from rethink_tf.errors import in_one_line

MAX_BYTES = 16 << 20  # of a file; VOC's have a few thousand bytes, this limit corresponds to 50,000 objects
SEVERAL_BOXES = 'with more than one <bndbox> (the first is used)'
EXCHANGED = 'with exchanged corners (put in order)'
FROM_0 = 'with a corner at 0, though VOC counts pixels from 1 (clipped)'
BOX_OF_POLYGON = 'without a <bndbox> (the box around its <polygon> is used)'
UNKNOWN_MARK = 'with a <difficult> that is neither 0 nor 1 (taken for 0)'
_CORNERS = ('ymin', 'xmin', 'ymax', 'xmax')


class XmlError(Exception):
  """An unusable annotation file; the message is one line that names it."""


class VocObject(NamedTuple):
  """One <object>. <pose>, <truncated>, <occluded> and <part> are ignored."""

  name: str
  difficult: bool
  # y0 x0 y1 x1, continuous: [xmin - 1, xmax] holds the pixels xmin..xmax; nan without <bndbox> and <polygon>
  box: tuple[float, float, float, float]
  repairs: tuple[str, ...] = ()  # what was changed


class VocAnnotation(NamedTuple):
  """Contents of an annotation file."""

  size: tuple[int, int] | None  # height, width; None if it is not given (some tools write 0)
  objects: tuple[VocObject, ...]
  file_name: str = ''  # of the image, without folders; '' if it is not given


def parse(data: bytes, name: str, own: bool = False) -> VocAnnotation:
  """Parse an annotation file.

  Corners are 1-based and inclusive, so that 1 is subtracted from xmin and ymin only, as in Detectron2; the largest box
  of an image is then [0, 0, height, width].

  Args:
    data: contents of the file.
    name: of the file, for messages.
    own: not of PASCAL VOC itself: in a file with fractions (CVAT, VoTT) corners are continuous coordinates, of which
      nothing is subtracted.

  Raises:
    XmlError: not XML, too large, with a document type (its entities can expand without limit), or not in VOC's format.
  """
  root = parse_xml(data, name)
  if root.tag != 'annotation':
    raise XmlError(f'{name}: the outermost element should be <annotation>, is <{as_text(root.tag[:40])}>')
  first = 0 if own and any(map(_is_fraction, root.iter())) else 1
  objects = tuple(_parse_object(element, f'{name}: object {i}', first)
                  for i, element in enumerate(root.findall('object'), start=1))
  named = (root.findtext('filename') or '').strip() or (root.findtext('path') or '').strip()
  file_name = named.replace('\\', '/').rpartition('/')[2]
  return VocAnnotation(_parse_size(root), objects, file_name)


def _is_fraction(element: Element) -> bool:
  """Whether an element is a corner of a box that is not a whole pixel."""
  if element.tag not in _CORNERS:
    return False
  try:
    value = float(element.text or '')
  except ValueError:
    return False
  return math.isfinite(value) and not value.is_integer()


def too_large(size: int, name: str) -> XmlError:
  """Return the error for a file of more than MAX_BYTES."""
  return XmlError(f'{name}: {size:,} bytes are too many for the annotation of one image')


def parse_xml(data: bytes, name: str, most: int = MAX_BYTES) -> Element:
  """Return the outermost element of a file; raises XmlError if it has more than `most` bytes, or as `parse`."""
  if len(data) > most:
    raise too_large(len(data), name)
  builder, parser = TreeBuilder(), expat.ParserCreate()
  parser.buffer_text = True
  parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
  parser.CharacterDataHandler = builder.data

  def reject(*_: object) -> None:
    raise XmlError(f'{name}: has a document type (<!DOCTYPE), which is not supported')

  parser.StartDoctypeDeclHandler = reject
  try:
    parser.Parse(data, True)
  except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: an unknown encoding
    cure = '' if isinstance(error, expat.ExpatError) else ': save it as UTF-8'
    raise XmlError(f'{name}: not valid XML: {in_one_line(error)}{cure}') from error
  return builder.close()


def _parse_size(root: Element) -> tuple[int, int] | None:
  try:
    height, width = (int(float(root.findtext(f'size/{side}'))) for side in ('height', 'width'))
  except (TypeError, ValueError, OverflowError):
    return None
  return (height, width) if 0 < height < 2 ** 31 and 0 < width < 2 ** 31 else None


def _parse_object(element: Element, where: str, first: int) -> VocObject:
  name = (element.findtext('name') or '').strip()
  if not name or not is_text(name):
    raise XmlError(f'{where}: <name> is missing' if not name else
                   f'{where}: <name> should be one line without control characters, is {shorten(name)}')
  (y0, x0, y1, x1), repairs = _parse_corners(element, where)
  if y0 > y1 or x0 > x1:
    (y0, y1), (x0, x1), repairs = sorted((y0, y1)), sorted((x0, x1)), (*repairs, EXCHANGED)
  if first and 0 in (y0, x0):
    repairs = (*repairs, FROM_0)
  difficult, known = _parse_mark(element.findtext('difficult'))
  if not known:
    repairs = (*repairs, UNKNOWN_MARK)
  box = y0 - first, x0 - first, y1, x1
  if (degrees := _rotation(element)) % 360:
    (y0, x0, y1, x1), repairs = box, (*repairs, ROTATED)
    x, y, width, height = turned_box(x0, y0, x1 - x0, y1 - y0, degrees)
    box = y, x, y + height, x + width
  return VocObject(name, difficult, box, repairs)


def _parse_corners(element: Element, where: str) -> tuple[list[float], tuple[str, ...]]:
  """Return ymin, xmin, ymax and xmax of an object, and what was changed; nan where no element tells its place."""
  boxes = element.findall('bndbox')
  if not boxes:
    points = {axis: [one.text for outline in element.findall('polygon') for one in outline.iter()
                     if re.fullmatch(rf'{axis}\d*', str(one.tag))] for axis in 'yx'}  # <x1>, <y1>, ... or <pt><x>, <y>
    with contextlib.suppress(TypeError, ValueError):
      ys, xs = (list(map(float, points[axis])) for axis in 'yx')
      return [min(ys), min(xs), max(ys), max(xs)], (BOX_OF_POLYGON,)
    return [math.nan] * 4, ()
  corners = []
  for corner in _CORNERS:
    text = boxes[0].findtext(corner)
    try:
      corners.append(float(text))
    except (TypeError, ValueError):
      raise XmlError(f'{where}: <bndbox> should have a number as <{corner}>, is {shorten(text)}') from None
  return corners, (SEVERAL_BOXES,) if len(boxes) > 1 else ()


def _rotation(element: Element) -> float:
  """Return the angle in degrees by which CVAT turned the rectangle about the centre of the box that it writes."""
  for attribute in element.findall('attributes/attribute'):
    if attribute.findtext('name') == 'rotation':
      try:
        degrees = float(attribute.findtext('value') or 0)
      except ValueError:
        return 0.0  # an attribute of the user's
      return degrees if math.isfinite(degrees) else 0.0
  return 0.0


def _parse_mark(text: str | None) -> tuple[bool, bool]:
  """Return the value of <difficult> (0 or 1 in VOC, words or other numbers in other tools), and whether it is known."""
  word = (text or '0').strip().casefold()
  if word in ('true', 'yes', 'y', 't'):
    return True, True
  try:
    return float(word) != 0, True
  except ValueError:
    return False, word in ('false', 'no', 'n', 'f', '', 'unspecified')
