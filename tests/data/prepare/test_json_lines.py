"""JSON Lines: damaged lines, byte order marks, other encodings, long files."""

import pytest

from rethink_tf.data.prepare import json_lines, source_folder
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError


def written(root, data):
  (root / 'a.jsonl').write_bytes(data)
  return SourceFolder(str(root))


def test_lines_with_a_byte_order_mark_empty_and_damaged_ones(tmp_path):
  folder = written(tmp_path, b'\xef\xbb\xbf{"a": 1}\r\n\n[2]\n{"b\n{"c": "\xc3\xa4"}')
  assert list(json_lines.objects(folder, 'a.jsonl')) == [
    ('a.jsonl, line 1', {'a': 1}), ('a.jsonl, line 3', {}), ('a.jsonl, line 4', {}), ('a.jsonl, line 5', {'c': 'ä'})]
  assert json_lines.first(folder, 'a.jsonl') == {'a': 1}


@pytest.mark.parametrize('data, found', [
  (b'', {}), (b'{"a\n{"b": 2}\n' + b'{"c": 3}\n' * 9, {'b': 2}), (b'[' * 100_000 + b'\n{"b": 2}', {'b': 2}),
  (b'\xff\xfe{\0', {}), (b'{"a": "' + b'x' * (1 << 20) + b'"}', {}),
  (b'{"a": 1}\n{"b": "' + b'x' * (1 << 20) + b'"}', {'a': 1})])
def test_the_first_object_tells_what_a_file_holds(tmp_path, data, found):
  assert json_lines.first(written(tmp_path, data), 'a.jsonl') == found


def test_another_encoding_and_a_line_without_an_end_are_refused(tmp_path, monkeypatch):
  folder = written(tmp_path, '{"a": 1}\n'.encode('utf-16'))
  with pytest.raises(UserError, match='a.jsonl: line 1: not a text file in UTF-8, as which it should be saved'):
    list(json_lines.objects(folder, 'a.jsonl'))
  monkeypatch.setattr(source_folder, '_MAX_TEXT', 1 << 20)
  folder = written(tmp_path, b'{}\n' * (1 << 19))  # more than that together
  assert sum(1 for _ in json_lines.objects(folder, 'a.jsonl')) == 1 << 19
  folder = written(tmp_path, b'{}\n' + b' ' * (1 << 21))
  with pytest.raises(UserError, match='a.jsonl: line 2: more than 1 MB are too many for a line'):
    list(json_lines.objects(folder, 'a.jsonl'))
