"""Hugging Face's imagefolder: columns of objects, the names of class numbers, lines that are wrong."""

import json

import pytest

from rethink_tf.data.prepare import imagefolder
from rethink_tf.data.prepare.class_numbers import UNKNOWN_CLASS
from rethink_tf.data.prepare.layout import (
  AGAIN,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  OF_AGAIN,
)
from rethink_tf.data.prepare.preparation import Division, prepare
from rethink_tf.errors import UserError
from tests import exports, exports_json
from tests.data.prepare.layouts import reading_of

BOX = [1, 2, 3, 4]
CARD = """---
license: mit
dataset_info:
  features:
  - name: label
    dtype:
      class_label:
        names: {'0': wrong}
  - name: objects
    sequence:
    - name: bbox
      sequence: float32
    - name: category
      dtype:
        class_label:
          names:
            '0': cat
            '1': a dog
---
# A card
"""


def line(name, boxes=(BOX,), labels=('cat',), column='categories', **fields):
  return json.dumps({'file_name': name, 'objects': {'bbox': list(boxes), column: list(labels)}, **fields})


def read(root, lines, images=('a.jpg',), file='metadata.jsonl', **files):
  """Return the reading of a metadata file, and its images."""
  return reading_of(imagefolder, root, {file: '\n'.join(lines), **files}, images)


@pytest.mark.parametrize('column', imagefolder._CLASSES)
def test_boxes_and_classes(tmp_path, column):
  reading, (image,) = read(tmp_path, [line('a.jpg', (BOX, [1.5, 2, 3, 4]), ('cat', ' a dog '), column,
                                           width=30, height=20)])
  assert [(one['category'], one['bbox']) for one in image.instances] == [('cat', BOX), ('a dog', [1.5, 2, 3, 4])]
  assert image.size == (20, 30) and not reading.problems.counts and not reading.notes and reading.categories is None


def test_an_object_each(tmp_path):
  entry = {'file_name': 'a.jpg', 'objects': [{'bbox': BOX, 'category': 'cat', 'segmentation': [[1, 2, 3, 4, 5, 6]]}, 7]}
  reading, (image,) = read(tmp_path, [json.dumps(entry)])
  assert [(one['category'], one['bbox']) for one in image.instances] == [('cat', BOX)]
  assert dict(reading.problems.counts) == {NO_CLASS: 1} and reading.notes == [imagefolder.NO_OUTLINES]


def test_wrong_objects_are_counted(tmp_path):
  bad = [(BOX, None), (BOX, ' '), (BOX, True), (BOX, {}), (BOX, 3), ([1, 2, 3], 'cat'), (7, 'cat'),
         ([1, 2, float('nan'), 4], 'cat'), ([1, 2, '3', 4], 'cat'), ([1, 2, 0, 4], 'cat'), ([1, 2, 3, -4], 'cat')]
  reading, (image,) = read(tmp_path, [line('a.jpg', *zip(*bad, (BOX, 'cat'), strict=True))])
  assert len(image.instances) == 1
  assert dict(reading.problems.counts) == {NO_CLASS: 4, imagefolder.NUMBER_AMONG_NAMES: 1, NOT_FINITE: 4, NO_AREA: 2}


def test_images_without_objects_missing_named_twice_and_not_named(tmp_path):
  reading, images = read(tmp_path, [
    line('a.jpg'), line('b.jpg', (), ()), line('a.jpg', (BOX, BOX), ('cat', 'cat')), line('../../etc/passwd.jpg'),
    '{"file_name', '7', '{"file_name": 7}', line('c.jpg', (BOX, BOX)), '{"file_name": "d.jpg", "objects": null}',
    '{"file_name": "e.jpg", "objects": {"bbox": []}}'], images=[f'{name}.jpg' for name in 'abcdef'])
  assert [(image.file, len(image.instances)) for image in images] == [('a.jpg', 1), ('b.jpg', 0), ('e.jpg', 0)]
  assert dict(reading.problems.counts) == {
    AGAIN: 1, OF_AGAIN: 2, NO_IMAGE: 1, MISSING: 1, imagefolder.NOT_JSON: 3, imagefolder.NO_OBJECTS: 2, NOT_NAMED: 1}


@pytest.mark.parametrize('file, names', [
  ('validation/metadata.jsonl', ('validation/a.jpg',)), ('metadata.jsonl', ('data/valid/a.jpg',))])
def test_splits_are_those_of_the_folders(tmp_path, file, names):
  _, (image,) = read(tmp_path, [line(names[0] if '/' not in file else 'a.jpg')], names, file)
  assert image.split == 'val'


@pytest.mark.parametrize('labels', [(0, 1), (0.0, 1.0), ('0', '1')])
@pytest.mark.parametrize('files', [{'classes.txt': 'cat\na dog\n'}, {'README.md': CARD}])
def test_numbers_get_the_names_beside_them(tmp_path, labels, files):
  reading, (image,) = read(tmp_path, [line('a.jpg', (BOX, BOX), labels)], **files)
  assert [reading.categories[one['category']]['name'] for one in image.instances] == ['cat', 'a dog']
  assert reading.notes == [imagefolder.NAMED_BY.format(file=next(iter(files)))] and not reading.problems.counts


def test_numbers_without_names_are_the_names(tmp_path):
  reading, _ = read(tmp_path, [line('a.jpg', (BOX, BOX, BOX), (10, 2, 10))])
  assert [one['name'] for one in reading.categories.values()] == ['2', '10']
  assert reading.notes == [imagefolder.NO_NAMES.format(file=tmp_path / 'classes.txt')]
  reading, (image,) = read(tmp_path, [line('a.jpg', (BOX, BOX, BOX), (0, 1, 7))], **{'classes.txt': 'cat\na dog'})
  assert len(image.instances) == 2 and dict(reading.problems.counts) == {UNKNOWN_CLASS: 1}


@pytest.mark.parametrize('files, message', [
  ({'classes.txt': 'cat\na dog'}, 'class numbers 1 to 2, classes.txt has names for 0 to 1: number both from 0'),
  ({'x/classes.txt': 'cat', 'classes.txt': 'dog'}, 'classes.txt, x/classes.txt have different class names'),
  ({'classes.txt': 'cat\n\ndog'}, 'classes.txt: class 1 should have a name')])
def test_names_that_do_not_fit(tmp_path, files, message):
  with pytest.raises(UserError, match=message) as raised:
    read(tmp_path, [line('a.jpg', (BOX, BOX), (1, 2))], **files)
  assert '\n' not in str(raised.value)


@pytest.mark.parametrize('text', [
  '# no head', '---\n[\n---', '---\ndataset_info: [{features: [{name: objects}, 7]}, x]\n---',
  '---\ndataset_info:\n  features:\n  - &a {name: objects, x: [*a, *a]}\n---',
  CARD.replace("'0': cat", 'x: cat'), CARD.replace("{'0': wrong}", '{}').replace('name: objects', 'name: others')])
def test_cards_without_the_names(tmp_path, text):
  reading, _ = read(tmp_path, [line('a.jpg', labels=[0])], **{'README.md': text})
  assert reading.notes == [imagefolder.NO_NAMES.format(file=tmp_path / 'classes.txt')]


@pytest.mark.parametrize('encoding, number', [('latin-1', 2), ('utf-16', 1)])
def test_a_file_in_another_encoding(tmp_path, encoding, number):
  exports.write_json(tmp_path / 'export/a.jpg', {})
  (tmp_path / 'export/metadata.jsonl').write_bytes(f'{line("a.jpg")}\n{{"file_name": "ä.jpg"}}'.encode(encoding))
  with pytest.raises(UserError, match=f'metadata.jsonl: line {number}: not a text file in UTF-8'):
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))


def test_numbers_there_and_back(tmp_path):
  items, names = exports.draw(tmp_path / 'data')
  exports_json.imagefolder(items, names, tmp_path / 'export', named=False, column='category')
  (tmp_path / 'export/classes.txt').write_text('\n'.join(sorted(set(names.values()))))
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'), division=Division(0.4))
  assert not exports.differences(items, tmp_path / 'own', masks=False)
  assert not prepared.problems[0][1].counts and prepared.splits['val'][0] == 2
