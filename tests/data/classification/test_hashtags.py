"""Hashtags: parsing of lines, canonical forms, the vocabulary, and the resampling rules."""

import json
import unicodedata

import numpy as np
import pytest

from rethink_tf.data.classification import vocabulary as hashtags
from rethink_tf.data.classification.vocabulary import (
  Row,
  Vocabulary,
  build_vocabulary,
  canonical,
  image_replication,
  load_synonyms,
  read_rows,
  replication,
)
from rethink_tf.data.problems import Problems
from rethink_tf.errors import UserError
from tests.in_process import call
from tests.tag_files import write_json_lines


def rows_of(path):
  problems = Problems()
  return list(read_rows(str(path), problems)), problems.counts


def test_valid_lines_and_their_numbers(tmp_path):
  path = write_json_lines(tmp_path / 'a.jsonl', [('x.jpg', ['#A', 'b']), '', '   ', ('ü.jpg', ['c'])])
  rows, problems = rows_of(path)
  assert rows == [Row(0, 'x.jpg', ('#A', 'b')), Row(3, 'ü.jpg', ('c',))]
  assert not problems


@pytest.mark.parametrize('line, reason', [
  ('{"image": "a.jpg", "tags": ["x"]', 'not JSON'), ('[' * 5000, 'not JSON'), ('NaN x', 'not JSON'),
  ('["a.jpg"]', 'without "image"'), ('{"tags": ["x"]}', 'without "image"'), ('{"image": 3, "tags": []}', '"image"'),
  ('{"image": "a.jpg"}', 'not a list of strings'), ('{"image": "a.jpg", "tags": "x"}', 'not a list of strings'),
  ('{"image": "a.jpg", "tags": ["x", 3]}', 'not a list of strings'),
  ('{"image": "a.jpg", "tags": []}', 'without a tag'), ('null', 'without "image"')], ids=range(11))
def test_invalid_lines_are_counted_and_skipped(tmp_path, line, reason):
  rows, problems = rows_of(write_json_lines(tmp_path / 'a.jsonl', [line, ('b.jpg', ['x'])]))
  assert [row.image for row in rows] == ['b.jpg'] and rows[0].number == 1
  assert list(problems.values()) == [1] and reason in next(iter(problems))


def test_binary_and_too_long_lines(tmp_path, monkeypatch):
  monkeypatch.setattr(hashtags, '_MAX_LINE', 200)
  monkeypatch.setattr(hashtags, '_CHUNK', 64)
  path = tmp_path / 'a.jsonl'
  good = b'{"image": "a.jpg", "tags": ["x"]}'
  path.write_bytes(b'\xff\xfe\x00\n' + good + b'\n' + b'z' * 5000 + b'\n' + good + b'\r\n' + good)
  rows, problems = rows_of(path)
  assert [row.number for row in rows] == [1, 3, 4]
  assert sorted(problems.values()) == [1, 1] and 'lines longer than 200 bytes' in problems
  path.write_bytes(b'z' * 5000)
  rows, problems = rows_of(path)
  assert not rows and list(problems.values()) == [1]


def test_result_does_not_depend_on_the_chunk_size(tmp_path, monkeypatch):
  path = write_json_lines(tmp_path / 'a.jsonl', [(f'{i}.jpg', ['x' * (i % 17 + 1)]) for i in range(200)])
  whole, _ = rows_of(path)
  monkeypatch.setattr(hashtags, '_CHUNK', 7)
  assert rows_of(path)[0] == whole and len(whole) == 200


def test_missing_file(tmp_path):
  with pytest.raises(UserError, match='none.jsonl: cannot be read') as error:
    build_vocabulary(str(tmp_path / 'none.jsonl'))
  assert '\n' not in str(error.value)


@pytest.mark.parametrize('tag, form', [
  ('#Sneakers', 'sneakers'), ('ＳＮＥＡＫＥＲＳ', 'sneakers'), (' ##t shirt\n', 'tshirt'), ('CAFÉ', 'café'),
  ('cafe\u0301', 'café'), ('＃ﬁsh', 'fish'), ('#', ''), ('', ''), ('🐕', '🐕'), ('c#', 'c#')], ids=range(10))
def test_canonical_form(tag, form):
  assert canonical(tag) == form


def test_canonical_form_is_idempotent():
  characters = [chr(i) for i in range(0x30000) if not 0xD800 <= i < 0xE000 and unicodedata.category(chr(i)) != 'Cn']
  changed = [c for c in characters if canonical(canonical('a' + c)) != canonical('a' + c)]
  assert not changed, [hex(ord(c)) for c in changed[:10]]


def test_chains_of_synonyms_in_text_and_json(tmp_path):
  (tmp_path / 'a.tsv').write_text('# a comment\n\n#Sneakers\tshoe\nSHOE\tfootwear\r\ncap\that\nhat\that\n')
  (tmp_path / 'a.json').write_text(json.dumps({'Sneakers': 'shoe', 'shoe': 'Footwear', 'cap': 'hat', 'hat': 'hat'}))
  table = {'sneakers': 'footwear', 'shoe': 'footwear', 'cap': 'hat', 'hat': 'hat'}
  assert load_synonyms(str(tmp_path / 'a.tsv')) == load_synonyms(str(tmp_path / 'a.json')) == table


@pytest.mark.parametrize('text, message', [
  ('a b\n', r'a\.tsv:1: should be a tag, a tab'), ('a\tb\tc\n', r'a\.tsv:1: should'), ('a\t\n', r':1: .*be words'),
  ('a\tb\nA\tc\n', r":2: 'a' is mapped to 'b' in another line"), ('a\tb\nb\ta\n', 'in a cycle'),
  ('\udcff\tb\n', 'not UTF-8')], ids=range(6))
def test_invalid_table_of_synonyms(tmp_path, text, message):
  (tmp_path / 'a.tsv').write_text(text, errors='surrogateescape')
  with pytest.raises(UserError, match=message) as error:
    load_synonyms(str(tmp_path / 'a.tsv'))
  assert '\n' not in str(error.value)


def test_invalid_json_table_of_synonyms(tmp_path):
  (tmp_path / 'a.json').write_text('{"a": 1}')
  with pytest.raises(UserError, match='object of strings'):
    load_synonyms(str(tmp_path / 'a.json'))


def test_vocabulary_is_ordered_by_count_then_name_and_counts_images(tmp_path):
  rows = [('1', ['b', '#B', 'a']), ('2', ['c', 'A']), ('3', ['cap', 'Hat', 'c']), ('4', ['rare']), ('5', ['#'])]
  path = write_json_lines(tmp_path / 'a.jsonl', rows)
  vocabulary = build_vocabulary(path, {'cap': 'hat'})
  assert vocabulary.tags == ('a', 'c', 'b', 'hat', 'rare')
  assert vocabulary.counts.tolist() == [2, 2, 1, 1, 1] and vocabulary.num_images == 4
  assert vocabulary.classes(['RARE', '#hat', 'cap', 'unknown']) == [3, 4]
  common = build_vocabulary(path, min_count=2)
  assert common.tags == ('a', 'c') and common.num_images == 3
  closed = build_vocabulary(path, {'cap': 'hat'}, only_synonyms=True)
  assert closed.tags == ('hat',) and closed.counts.tolist() == [1]


def test_no_tag_above_the_minimum_count(tmp_path):
  path = write_json_lines(tmp_path / 'a.jsonl', [('1', ['a', 'b']), ('2', ['a'])])
  with pytest.raises(UserError, match="min_count = 3 images; the most frequent one, 'a', has 2") as error:
    build_vocabulary(path, min_count=3)
  assert '\n' not in str(error.value)
  with pytest.raises(UserError, match='there are no valid tags'):
    build_vocabulary(write_json_lines(tmp_path / 'b.jsonl', []))


def test_save_and_load(tmp_path):
  path = str(tmp_path / 'v.json')
  first = Vocabulary(['ä', 'b'], [3, 1], 4, {'x': 'b', 'gone': 'no class'})
  first.save(path)
  second = Vocabulary.load(path)
  assert second.tags == first.tags and second.counts.tolist() == [3, 1] and second.num_images == 4
  assert second.digest() == first.digest() and second.classes(['X', 'Ä']) == [0, 1]
  assert second.digest() != Vocabulary(['b', 'ä'], [3, 1], 4, {'x': 'b'}).digest()
  assert [c.name for c in second.categories()] == ['ä', 'b']


@pytest.mark.parametrize('content', [
  '[]', '{}', '{"num_images": 1, "tags": [], "counts": [], "synonyms": {}}',
  '{"num_images": 1, "tags": ["a", "a"], "counts": [1, 1], "synonyms": {}}',
  '{"num_images": 1, "tags": ["a"], "counts": [0], "synonyms": {}}',
  '{"num_images": 1, "tags": ["a"], "counts": [1], "synonyms": []}',
  '{"num_images": 1, "tags": [1], "counts": [1], "synonyms": {}}', '{"tags"'], ids=range(8))
def test_invalid_vocabulary(tmp_path, content):
  (tmp_path / 'v.json').write_text(content)
  with pytest.raises(UserError, match=r'v\.json') as error:
    Vocabulary.load(str(tmp_path / 'v.json'))
  assert '\n' not in str(error.value)


def test_lossy_counting_loses_rare_tags_only(tmp_path):
  rng = np.random.default_rng(0)
  rows = [(str(i), [f'unique{i}', f'often{rng.integers(5)}']) for i in range(3000)]
  path = write_json_lines(tmp_path / 'a.jsonl', rows)
  exact = build_vocabulary(path, min_count=100)
  bounded = build_vocabulary(path, min_count=100, max_candidates=500)
  assert set(bounded.tags) == set(exact.tags) and len(exact) == 5
  true = dict(zip(exact.tags, exact.counts.tolist(), strict=True))
  for tag, count in zip(bounded.tags, bounded.counts.tolist(), strict=True):
    assert true[tag] - 15 <= count <= true[tag]


@pytest.mark.parametrize('sampling, threshold, factors', [
  ('natural', None, [1, 1, 1]), ('square_root', None, [1, 2, 10]), ('uniform', None, [1, 4, 100]),
  ('square_root', 100, [1, 1, 5]), ('uniform', 100, [1, 1, 25])], ids=range(5))
def test_replication_factors(sampling, threshold, factors):
  np.testing.assert_allclose(replication(np.array([400, 100, 4]), sampling, threshold), factors)


def test_image_has_the_factor_of_its_rarest_tag():
  factors = replication(np.array([400, 100, 4]))
  tags, starts = np.array([0, 0, 1, 0, 1, 2, 2]), np.array([0, 1, 3, 6, 7])
  assert image_replication(factors, tags, starts).tolist() == [1, 2, 10, 10]
  assert image_replication(factors, tags[:0], starts[:1]).tolist() == []


@pytest.mark.parametrize('arguments', [{'sampling': 'sqrt'}, {'threshold': 0}, {'threshold': -1.}], ids=range(3))
def test_invalid_rules(arguments):
  with pytest.raises(UserError, match='sampling|threshold'):
    replication(np.array([1]), **arguments)


def test_command_line(tmp_path):
  write_json_lines(tmp_path / 'a.jsonl', ['broken', ('1', ['#Cap', 'x']), ('2', ['hat'])])
  (tmp_path / 's.tsv').write_text('cap\that\n')

  def run(*options):
    return call('data.classification.hashtags', '--json=a.jsonl', *options, cwd=tmp_path)

  done = run('--synonyms=s.tsv', '--vocabulary=v.json')
  assert done.returncode == 0 and '2 tags in v.json; most frequent: hat 2, x 1' in done.stdout, done.stderr
  assert '1 lines that are not JSON' in done.stderr
  assert Vocabulary.load(str(tmp_path / 'v.json')).tags == ('hat', 'x')
  failed = run('--min_count=9')
  assert failed.returncode == 1 and failed.stderr.splitlines()[-1].startswith('error: a.jsonl: no tag has min_count')


def test_long_chain_of_synonyms(tmp_path):
  """100,000 words, each a synonym of the next: with one pass per word, five billion steps."""
  (tmp_path / 'a.tsv').write_text(''.join(f't{i}\tt{i + 1}\n' for i in range(100_000)))
  table = load_synonyms(str(tmp_path / 'a.tsv'))
  assert len(table) == 100_000 and set(table.values()) == {'t100000'}


@pytest.mark.parametrize('tag', ['a' * 1001, 'a\x1b[2J', '\ud800', 'e' + '\u0301\u0316' * 400_000], ids=range(4))
def test_invalid_tags_are_counted(tmp_path, tag):
  """Unicode normalisation of alternating accents takes quadratic time."""
  path = write_json_lines(tmp_path / 'a.jsonl', [('1', ['a']), ('2', ['b', tag])])
  problems = Problems()
  assert [row.image for row in hashtags.read_rows(path, problems)] == ['1']
  assert sum(problems.counts.values()) == 1
  (tmp_path / 'a.json').write_text(json.dumps({'b': tag}))
  with pytest.raises(UserError, match="a.json: 'b': a tag is too long or has control characters"):
    load_synonyms(str(tmp_path / 'a.json'))


def test_white_space_around_tags_is_ignored(tmp_path):
  path = write_json_lines(tmp_path / 'a.jsonl', [('1', ['#Cat\n', '\tdog '])])
  assert build_vocabulary(path).tags == ('cat', 'dog')


@pytest.mark.parametrize('fields', [{'counts': [2 ** 70]}, {'tags': 'a'}, {'tags': ['\ud800']}, {'counts': [True]},
                                    {'num_images': -1}], ids=str)
def test_vocabulary_with_wrong_types(tmp_path, fields):
  path = tmp_path / 'v.json'
  path.write_text(json.dumps({'num_images': 1, 'tags': ['a'], 'counts': [1], 'synonyms': {}} | fields))
  with pytest.raises(UserError, match='is not a vocabulary of hashtags'):
    hashtags.Vocabulary.load(str(path))
