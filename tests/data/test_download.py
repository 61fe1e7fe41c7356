"""Published data sets from a local server, with small archives made like the real ones."""

import io
import json
import os
import pathlib
import tarfile
import zipfile

import cv2
import numpy as np
import pytest

from rethink_tf.data import download
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.voc import VocSource
from rethink_tf.data.published_sets import SETS
from rethink_tf.errors import UserError
from tests.downloads.server import serving

IMAGE = cv2.imencode('.jpg', np.full((40, 60, 3), 120, np.uint8))[1].tobytes()
XML = '''<annotation><filename>{0}.jpg</filename><size><width>60</width><height>40</height><depth>3</depth></size>
<object><name>dog</name><difficult>0</difficult><bndbox><xmin>5</xmin><ymin>6</ymin><xmax>30</xmax><ymax>31</ymax></bndbox>
</object></annotation>'''


def as_zip(files):
  data = io.BytesIO()
  with zipfile.ZipFile(data, 'w') as archive:
    for name, content in files.items():
      archive.writestr(name, content)
  return data.getvalue()


def as_tar(files):
  data = io.BytesIO()
  with tarfile.open(fileobj=data, mode='w') as archive:
    for name, content in files.items():
      entry = tarfile.TarInfo(name)
      entry.size = len(content)
      archive.addfile(entry, io.BytesIO(content))
  return data.getvalue()


def coco_json(names):
  images = [{'id': i, 'file_name': name, 'width': 60, 'height': 40} for i, name in enumerate(names)]
  objects = [{'id': i + 1, 'image_id': i, 'category_id': 1, 'bbox': [5, 5, 20, 20], 'area': 400, 'iscrowd': 0,
              'segmentation': [[5, 5, 25, 5, 25, 25, 5, 25]]} for i in range(len(names))]
  return json.dumps({'images': images, 'annotations': objects, 'categories': [{'id': 1, 'name': 'dog'}]}).encode()


def coco_archives():
  names = {'train2017': [f'{i:012}.jpg' for i in range(3)], 'val2017': ['000000000009.jpg']}
  found = {f'{split}.zip': as_zip({f'{split}/{name}': IMAGE for name in each}) for split, each in names.items()}
  found['annotations_trainval2017.zip'] = as_zip({
    f'annotations/{kind}_{split}.json': coco_json(each) for split, each in names.items()
    for kind in ('instances', 'captions', 'person_keypoints')})
  return found, {('train2017', '.jpg'): 3, ('val2017', '.jpg'): 1}


def voc_archive(lists):
  root = 'VOCdevkit/VOC2007'
  ids = sorted({each for names in lists.values() for each in names})
  return as_tar({f'{root}/JPEGImages/{each}.jpg': IMAGE for each in ids} |
                {f'{root}/Annotations/{each}.xml': XML.format(each).encode() for each in ids} |
                {f'{root}/ImageSets/Main/{name}.txt': '\n'.join(each).encode() + b'\n' for name, each in lists.items()})


def served(server, name, contents, counts=None, lists=None):
  """The published set `name`, with archives of a local server: their addresses, sizes and counts."""
  chosen = SETS[name]
  found = []
  for archive in chosen.archives:
    file = archive.remote.name
    server.contents[f'/some/folder/{file}'] = contents[file]
    found.append(archive._replace(
      remote=archive.remote._replace(url=server.url(file), size=len(contents[file]), sha256='', md5=''),
      counts={key: (counts or {}).get(key, count) for key, count in archive.counts.items()},
      lists={key: (lists or {}).get(key, count) for key, count in archive.lists.items()}))
  return chosen._replace(archives=tuple(found))


@pytest.fixture
def server(monkeypatch):
  for name in ('http_proxy', 'HTTP_PROXY', 'RETHINK_TF_OFFLINE'):
    monkeypatch.delenv(name, raising=False)
  with serving() as running:
    yield running


def test_coco(server, tmp_path):
  contents, counts = coco_archives()
  chosen, folder = served(server, 'coco2017', contents, counts), str(tmp_path / 'coco')
  text = download.download('coco2017', chosen, folder)
  assert '118,287' not in text and '3 .jpg in train2017' in text
  assert f'--gin_file=gin_configs/data/coco.gin --data_dir={folder}' in text
  assert os.listdir(tmp_path) == ['coco']
  assert sorted(os.listdir(folder)) == ['annotations', 'train2017', 'val2017']
  assert len(CocoSource(folder, 'train2017', training=True).image_ids) == 3
  requests = len(server.requests)
  assert download.download('coco2017', chosen, folder) == text and len(server.requests) == requests
  for name in ('annotations/panoptic_train2017.json', 'annotations/image_info_test-dev2017.json', 'val2017/mine.jpg'):
    pathlib.Path(folder, name).touch()  # files of the user's
  assert download.download('coco2017', chosen, folder).count('\n') == text.count('\n')
  assert len(server.requests) == requests
  os.remove(f'{folder}/val2017/mine.jpg')
  os.remove(f'{folder}/val2017/000000000009.jpg')  # only what is missing is downloaded again
  download.download('coco2017', chosen, folder, keep_archives=True)
  assert len(server.requests) == requests + 1 and os.path.exists(f'{folder}.download/val2017.zip')


def test_voc(server, tmp_path):
  lists = {'train': ['000001', '000003'], 'val': ['000005'], 'trainval': ['000001', '000003', '000005']}
  contents = {'VOCtrainval_06-Nov-2007.tar': voc_archive(lists),
              'VOCtest_06-Nov-2007.tar': voc_archive({'test': ['000002']})}
  counts = {f'VOC2007/ImageSets/Main/{name}.txt': len(names) for name, names in {**lists, 'test': ['x']}.items()}
  folder = str(tmp_path / 'VOCdevkit')
  text = download.download('voc2007', served(server, 'voc2007', contents, lists=counts), folder)
  assert '3 images in trainval.txt' in text and '1 images in test.txt' in text
  assert len(VocSource(folder, ('VOC2007/trainval',), training=True).image_ids) == 3
  assert len(VocSource(folder, ('VOC2007/test',)).image_ids) == 1


def test_balloon(server, tmp_path):
  def via(names):
    region = {'shape_attributes': {'name': 'polygon', 'all_points_x': [5, 25, 25, 5], 'all_points_y': [6, 6, 30, 30]},
              'region_attributes': {}}
    return json.dumps({f'{name}{len(IMAGE)}': {
      'filename': name, 'size': len(IMAGE), 'fileref': '', 'file_attributes': {}, 'base64_img_data': '',
      'regions': {'0': region}} for name in names}).encode()
  names = {'train': ['1_a.jpg', '2_b.jpg'], 'val': ['3_c.jpg']}
  content = {f'balloon/{split}/{name}': IMAGE for split, each in names.items() for name in each} | {
    f'balloon/{split}/via_region_data.json': via(each) for split, each in names.items()} | {
    '__MACOSX/balloon/._train': b'x'}
  chosen = served(server, 'balloon', {'balloon_dataset.zip': as_zip(content)},
                  {('train', '.jpg'): 2, ('val', '.jpg'): 1})
  folder = str(tmp_path / 'balloon')
  text = download.download('balloon', chosen, folder)
  assert 'gin_configs/data/balloon.gin' in text and len(server.requests) == 1
  source = CocoSource(folder, 'train', training=True)
  assert len(source.image_ids) == 2 and [category.name for category in source.categories] == ['balloon']
  assert download.download('balloon', chosen, folder) == text and len(server.requests) == 1


@pytest.mark.parametrize('counts, lists, message', [
  ({('train2017', '.jpg'): 4}, None, r'train2017/ has 3 files \*\.jpg instead of 4, though the archive is unpacked'),
])
def test_a_data_set_that_is_not_whole(server, tmp_path, counts, lists, message):
  contents, own = coco_archives()
  with pytest.raises(UserError, match=message):
    download.download('coco2017', served(server, 'coco2017', contents, own | counts, lists), str(tmp_path / 'coco'))


def test_lists_and_their_files_are_compared(server, tmp_path):
  content = voc_archive({'train': ['1'], 'val': ['2'], 'trainval': ['1', '2', '3'], 'test': ['4']})
  chosen = served(server, 'voc2007', dict.fromkeys(('VOCtrainval_06-Nov-2007.tar', 'VOCtest_06-Nov-2007.tar'), content))
  with pytest.raises(UserError, match=r'train\.txt has 1 names instead of 2,501'):
    download.download('voc2007', chosen, str(tmp_path / 'VOCdevkit'))
  archive = chosen.archives[1]._replace(lists={'VOC2007/ImageSets/Main/test.txt': 1})
  folder = str(tmp_path / 'VOCdevkit')
  assert archive.missing(folder) == ''
  os.remove(f'{folder}/VOC2007/JPEGImages/4.jpg')
  assert archive.missing(folder) == ('VOC2007/JPEGImages/4.jpg and 0 others of VOC2007/ImageSets/Main/test.txt are '
                                     'missing')


@pytest.mark.parametrize('name, message', [
  (None, r'no data set: give --name=coco2017\|voc2007\|balloon'), ('coco', 'did you mean coco2017'),
  ('imagenet', 'no such data set: use one of coco2017, voc2007, balloon')])
def test_unknown_names(name, message):
  with pytest.raises(UserError, match=message):
    download.find(name)
