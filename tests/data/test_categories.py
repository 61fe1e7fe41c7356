"""Validation of categories: names are safe in terminals, tables, plots and file names."""

import pytest

from rethink_tf.data.categories import as_text, is_text, parse_categories, shorten
from rethink_tf.errors import UserError
from tests.small_coco import warnings


@pytest.mark.parametrize('name', ['cat', 'a b', 'a\u3000b', 'naïve café', '../../x', '<b>', '=1+1', 'a\u200cb', ''])
def test_names_in_any_language_are_valid(name):
  assert is_text(name) and as_text(name) == name


@pytest.mark.parametrize('name', ['a\nb', 'a\tb', '\x1b[2J', 'a\0b', '\x7f', '\x9b2J', '\ud800', 'x\udfff'])
def test_control_characters_and_surrogates_are_rejected(name):
  assert not is_text(name) and is_text(as_text(name)) and len(as_text(name)) == len(name)
  with pytest.raises(UserError, match=r'categories\[0\]\.name should be a string without control characters') as error:
    parse_categories([{'id': 1, 'name': name}], 'a.json')
  assert is_text(str(error.value))


@pytest.mark.parametrize('value', [None, 7, b'a', ['a']])
def test_other_types_are_not_text(value):
  assert not is_text(value)


@pytest.mark.parametrize('fields, field', [
  ({'id': 2 ** 63}, 'id'), ({'id': True}, 'id'), ({'id': -1}, 'id'), ({'keypoints': ['a\n']}, 'keypoints'),
  ({'keypoints': ['k'] * 1001}, 'keypoints'), ({'skeleton': [[1, 2, 3]]}, 'skeleton')])
def test_fields_out_of_range(fields, field):
  with pytest.raises(UserError, match=rf'a.json: categories\[0\]\.{field} should'):
    parse_categories([{'id': 1, 'name': 'a'} | fields], 'a.json')


def test_skeleton_edges_to_missing_keypoints_are_dropped(caplog):
  entry = {'id': 1, 'name': 'a', 'keypoints': ['x', 'y'], 'skeleton': [[1, 2], [0, 1], [2, 3], [-1, 10 ** 30]]}
  assert parse_categories([entry], 'a.json')[0].skeleton == ((1, 2),)
  assert '3 of 4 edges refer to keypoints that do not exist' in warnings(caplog)[0]


def test_quoted_values_are_short_and_printable():
  assert shorten('\x1b[2J') == "'\\x1b[2J'" and len(shorten('x' * 1000)) == 60 and shorten(None) == 'missing'
  deep = []
  for _ in range(100_000):
    deep = [deep]
  assert shorten(deep) == '[[[[[[[...]]]]]]]' and shorten(10 ** 5000) == 'a int'
