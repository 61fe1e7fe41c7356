"""The annotation file of one photograph in PASCAL VOC's xml, read without trusting it."""

from typing import NamedTuple
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from rethink_tf.data.categories import as_text, is_text, shorten

MAX_BYTES = 16 << 20  # a file of VOC has a few thousand; this one would list 50,000 objects
_CORNERS = ('ymin', 'xmin', 'ymax', 'xmax')


class XmlError(Exception):
  """A file that cannot be used; the message is one line that names it."""


class VocObject(NamedTuple):
  """One <object>. Pose, truncation, occlusion and parts are left aside."""

  name: str
  difficult: bool
  box: tuple[float, float, float, float]  # y0 x0 y1 x1, continuous: [xmin - 1, xmax] holds the pixels xmin..xmax


class VocAnnotation(NamedTuple):
  """What one file says."""

  size: tuple[int, int] | None  # height, width; None where it is not given (some tools write 0)
  objects: tuple[VocObject, ...]


def parse(data: bytes, name: str) -> VocAnnotation:
  """Reads one file.

  Corners are pixels counted from 1, both inside the box, so 1 is taken off xmin and ymin alone, as Detectron2 does;
  the largest box of a picture is then [0, 0, height, width].

  Args:
    data: the file.
    name: what to call it in the message.

  Raises:
    XmlError: not XML, too large, with a document type (its entities can expand without bound), or without what VOC's
      format has.
  """
  root = _parse_xml(data, name)
  if root.tag != 'annotation':
    raise XmlError(f'{name}: the outermost element should be <annotation>, is <{as_text(root.tag[:40])}>')
  objects = tuple(_parse_object(element, f'{name}: object {i}')
                  for i, element in enumerate(root.findall('object'), start=1))
  return VocAnnotation(_parse_size(root), objects)


def too_large(size: int, name: str) -> XmlError:
  return XmlError(f'{name}: {size:,} bytes are too many for the annotation of one photograph')


def _parse_xml(data: bytes, name: str) -> Element:
  if len(data) > MAX_BYTES:
    raise too_large(len(data), name)
  builder, parser = TreeBuilder(), expat.ParserCreate()
  parser.buffer_text = True
  parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
  parser.CharacterDataHandler = builder.data

  def refuse(*_):
    raise XmlError(f'{name}: has a document type (<!DOCTYPE), which annotations do not need and which is not read')

  parser.StartDoctypeDeclHandler = refuse
  try:
    parser.Parse(data, True)
  except (expat.ExpatError, ValueError, LookupError) as error:  # the last two: an unknown encoding
    raise XmlError(f'{name}: not valid XML: {" ".join(str(error).split())}') from error
  return builder.close()


def _parse_size(root: Element) -> tuple[int, int] | None:
  try:
    height, width = (int(float(root.findtext(f'size/{side}'))) for side in ('height', 'width'))
  except (TypeError, ValueError, OverflowError):
    return None
  return (height, width) if 0 < height < 2 ** 31 and 0 < width < 2 ** 31 else None


def _parse_object(element: Element, where: str) -> VocObject:
  name = (element.findtext('name') or '').strip()
  if not name or not is_text(name):
    raise XmlError(f'{where}: <name> is missing' if not name else
                   f'{where}: <name> should be one line without control characters, is {shorten(name)}')
  corners = []
  for corner in _CORNERS:
    text = element.findtext(f'bndbox/{corner}')
    try:
      corners.append(float(text))
    except (TypeError, ValueError):
      raise XmlError(f'{where}: <bndbox> should have a number as <{corner}>, is {shorten(text)}') from None
  y0, x0, y1, x1 = corners
  return VocObject(name, (element.findtext('difficult') or '').strip() == '1', (y0 - 1, x0 - 1, y1, x1))
