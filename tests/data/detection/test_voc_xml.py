"""Annotation files of VOC: coordinates, optional elements, and hostile input."""

import numpy as np
import pytest

from rethink_tf.data.detection.segmentation import ROTATED
from rethink_tf.data.detection.voc_xml import MAX_BYTES, VocObject, XmlError, parse
from tests.small_voc import item, xml


def test_corners_become_continuous():
  """The pixel in the upper left corner is (1, 1) in VOC and [0, 0, 1, 1] here."""
  found = parse(xml(item(box=(1, 1, 1, 1)), item('cat', (1, 1, 80, 60), difficult=1)).encode(), 'a.xml')
  assert found.size == (60, 80)
  assert found.objects == (VocObject('dog', False, (0, 0, 1, 1)), VocObject('cat', True, (0, 0, 60, 80)))


def test_part_and_unknown_elements_are_ignored():
  head = '<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>'
  (one,) = parse(xml(item(more=head + '<actions><jumping>0</jumping></actions>')).encode(), 'a.xml').objects
  assert one == VocObject('dog', False, (20, 10, 50, 30))


@pytest.mark.parametrize('text, size', [
  (xml(size=(0, 0)), None), ('<annotation/>', None), (xml(size=('x', 5)), None), (xml(size=('1e400', 5)), None),
  (xml(size=('60.0', '80')), (60, 80))])
def test_size_is_optional(text, size):
  assert parse(text.encode(), 'a.xml')[:2] == (size, ())


def test_fractions_white_space_encodings_and_no_difficult():
  text = xml(item(' dog\n', ('11.5', ' 21 ', 30, 50))).replace('<difficult>0</difficult>', '')
  for data in (text.encode('utf-8-sig'), ('<?xml version="1.0" encoding="UTF-16"?>' + text).encode('utf-16'),
               ('<?xml version="1.0" encoding="latin-1"?>' + text).encode('latin-1')):
    assert parse(data, 'a.xml').objects == (VocObject('dog', False, (20, 10.5, 50, 30)),)
    assert parse(data, 'a.xml', own=True).objects == (VocObject('dog', False, (21, 11.5, 50, 30)),)


@pytest.mark.parametrize('value, box', [('90.0', (5, 45, 85, 55)), ('0', (40, 10, 50, 90)), ('nan', (40, 10, 50, 90)),
                                        ('left', (40, 10, 50, 90)), ('', (40, 10, 50, 90))])
def test_rotated_rectangles_of_cvat(value, box):
  attributes = (f'<attributes><attribute><name>rotation</name><value>{value}</value></attribute></attributes>')
  (one,) = parse(xml(item(box=(11, 41, 90, 50), more=attributes)).encode(), 'a.xml').objects
  np.testing.assert_allclose(one.box, box, atol=1e-9)
  assert one.repairs == ((ROTATED,) if value == '90.0' else ())


LAUGHS = ('<?xml version="1.0"?><!DOCTYPE lolz [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>'
          '<annotation>&b;</annotation>')
SECRET = '<!DOCTYPE x [<!ENTITY s SYSTEM "file:///etc/passwd">]><annotation><object><name>&s;</name></object></annotation>'


@pytest.mark.parametrize('data, message', [
  (b'', 'not valid XML'),
  (b'<annotation><object>', 'not valid XML'),
  (b'\x00\xff\xfe garbage', 'not valid XML'),
  (b'\xff\xd8\xff\xe0 an image', 'not valid XML'),
  (b'<?xml version="1.0" encoding="martian"?><annotation/>', 'not valid XML'),
  (b'<?xml version="1.0" encoding="GBK"?><annotation/>', 'not valid XML: multi-byte .*: save it as UTF-8'),
  (b'<annotation>&undefined;</annotation>', 'not valid XML'),
  (b'<html/>', 'outermost element should be <annotation>'),
  (LAUGHS.encode(), 'document type'),
  (LAUGHS.encode('utf-16'), 'document type'),
  (SECRET.encode(), 'document type'),
  (b' ' * (MAX_BYTES + 1), 'too many'),
  (xml(item('')).encode(), 'object 1: <name> is missing'),
  (xml(item(), item(box=('a', 1, 2, 3))).encode(), "object 2: .* number as <xmin>, is 'a'"),
  (xml('<object><name>dog</name><bndbox/></object>').encode(), 'number as <ymin>, is missing'),
])
def test_hostile_files_are_one_line(data, message):
  with pytest.raises(XmlError, match=message) as error:
    parse(data, 'a.xml')
  assert 'a.xml' in str(error.value) and '\n' not in str(error.value)


def test_deep_nesting():
  depth = 200_000
  data = b'<annotation>' + b'<a>' * depth + b'</a>' * depth + b'</annotation>'
  assert parse(data, 'a.xml')[:2] == (None, ())


@pytest.mark.parametrize('text, message', [
  ('<!DOCTYPE a [<!ENTITY a "ha"><!ENTITY b "&a;&a;">]><annotation>&b;</annotation>', 'document type'),
  ('<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>', 'document type'),
  ('<!DOCTYPE a SYSTEM "http://localhost/a.dtd"><annotation/>', 'document type'),
  ('<annotation>&x;</annotation>', 'not valid XML'),
  ('<annotation><object><name>a\nb</name></object></annotation>', 'without control characters'),
  ('<annotation><object><name>a&#x9b;b</name></object></annotation>', 'without control characters'),
])
def test_entities_and_invalid_names(text, message):
  with pytest.raises(XmlError, match=f'^a.xml: .*{message}') as error:
    parse(text.encode(), 'a.xml')
  assert str(error.value).isprintable()
