"""Damaged exports: whatever is cut, changed or removed, `prepare` ends with a folder or with an error of one line."""

import os
import random
import re
import shutil

import pytest

from rethink_tf.data.prepare.preparation import prepare
from rethink_tf.errors import UserError
from tests import exports, exports_json

KINDS = ('roboflow', 'cvat_coco', 'cvat_yolo', 'ultralytics', 'labelme', 'via', 'label_studio', 'voc', 'cvat', 'csv',
         'createml', 'vott', 'supervisely', 'sagemaker', 'datumaro', 'cvat_video', 'darwin',
         'imagefolder', 'labelbox', 'open_images', 'wheat',
         'bdd100k', 'cityscapes', 'numbered_masks')
TOKENS = (b'NaN', b'null', b'[]', b'{}', b'-1', b'1e999', b'"x"', b'true', b'99999999999999999999', b'../../etc/passwd',
          b'\0', b'\xff\xfe', b'"\\ud800"', b'[[[[[', b'<!DOCTYPE x>', b'&amp;')
VALUES = re.compile(rb'"[^"]{0,40}"|-?\d+\.?\d*|\[[^\[\]]*\]|\{[^{}]*\}')


def damage(path, chance):
  """Remove, cut or change a file."""
  data, how = bytearray(path.read_bytes()), chance.random()
  if how < 0.15:
    path.unlink()
    return
  values = list(VALUES.finditer(bytes(data)))
  if how < 0.3:
    data = data[:chance.randint(0, len(data))]
  elif how < 0.5 and data:
    for _ in range(chance.randint(1, 5)):
      data[chance.randrange(len(data))] = chance.randrange(256)
  elif values:
    found = chance.choice(values)
    data[found.start():found.end()] = chance.choice(TOKENS)
  path.write_bytes(bytes(data))


@pytest.mark.slow
@pytest.mark.parametrize('kind', KINDS)
def test_damaged_exports(tmp_path, kind):
  items, names = exports.draw(tmp_path / 'data')
  (getattr(exports, kind, None) or getattr(exports_json, kind))(items, names, tmp_path / 'export')
  outcomes = set()
  for seed in range(80):
    chance, work = random.Random(seed), tmp_path / 'work'
    shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(tmp_path / 'own', ignore_errors=True)
    shutil.copytree(tmp_path / 'export', work)
    for _ in range(chance.randint(1, 4)):
      files = sorted(path for path in work.rglob('*') if path.is_file())
      texts = [path for path in files if path.suffix.lower() not in ('.jpg', '.png')]
      damage(chance.choice(texts if texts and chance.random() < 0.8 else files), chance)
    try:
      prepare(str(work), str(tmp_path / 'own'))
      outcomes.add('prepared')
    except UserError as error:
      assert '\n' not in str(error) and not (tmp_path / 'own').exists()
      outcomes.add('error')
    assert set(os.listdir(tmp_path)) <= {'data', 'export', 'work', 'own'}
  assert 'prepared' in outcomes
