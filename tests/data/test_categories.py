"""Names go to terminals, tables, pictures and file names: what they cannot bear is refused or replaced."""

import pytest

from rethink_tf.data.categories import as_text, is_text, parse_categories, shorten
from rethink_tf.errors import UserError
from tests.small_coco import warnings


@pytest.mark.parametrize('name', ['cat', 'a b', 'a\u3000b', 'naïve café', '../../x', '<b>', '=1+1', 'a\u200cb', ''])
def test_names_in_any_language_are_text(name):
  assert is_text(name) and as_text(name) == name


@pytest.mark.parametrize('name', ['a\nb', 'a\tb', '\x1b[2J', 'a\0b', '\x7f', '\x9b2J', '\ud800', 'x\udfff'])
def test_control_characters_and_half_characters_are_none(name):
  assert not is_text(name) and is_text(as_text(name)) and len(as_text(name)) == len(name)
  with pytest.raises(UserError, match=r'categories\[0\]\.name should be a string without control characters') as error:
    parse_categories([{'id': 1, 'name': name}], 'a.json')
  assert is_text(str(error.value))


@pytest.mark.parametrize('value', [None, 7, b'a', ['a']])
def test_only_strings_are_text(value):
  assert not is_text(value)


@pytest.mark.parametrize('fields, field', [
  ({'id': 2 ** 63}, 'id'), ({'id': True}, 'id'), ({'id': -1}, 'id'), ({'keypoints': ['a\n']}, 'keypoints'),
  ({'keypoints': ['k'] * 1001}, 'keypoints'), ({'skeleton': [[1, 2, 3]]}, 'skeleton')])
def test_fields_out_of_range(fields, field):
  with pytest.raises(UserError, match=rf'a.json: categories\[0\]\.{field} should'):
    parse_categories([{'id': 1, 'name': 'a'} | fields], 'a.json')


def test_lines_to_keypoints_that_are_not_there_are_left_out(caplog):
  entry = {'id': 1, 'name': 'a', 'keypoints': ['x', 'y'], 'skeleton': [[1, 2], [0, 1], [2, 3], [-1, 10 ** 30]]}
  assert parse_categories([entry], 'a.json')[0].skeleton == ((1, 2),)
  assert '3 of 4 lines join keypoints that are not there' in warnings(caplog)[0]


def test_what_is_quoted_is_short_and_harmless():
  assert shorten('\x1b[2J') == "'\\x1b[2J'" and len(shorten('x' * 1000)) == 60 and shorten(None) == 'missing'
  deep = []
  for _ in range(100_000):
    deep = [deep]
  assert shorten(deep) == 'a list' and shorten(10 ** 5000) == 'a int'
