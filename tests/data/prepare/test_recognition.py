"""Which layout is found; what is said where none, or several, are."""

import json
import re

import pytest

from rethink_tf.data.prepare import __main__ as command
from rethink_tf.data.prepare import recognition
from rethink_tf.data.prepare.source_folder import SourceFolder
from rethink_tf.errors import UserError
from tests import exports, exports_json
from tests.data.prepare.layouts import COCO, LABELME, VOC


def folder(root, files):
  for name, text in files.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text if isinstance(text, str) else json.dumps(text))
  return SourceFolder(str(root))


@pytest.mark.parametrize('kind, name', [
  ('roboflow', 'coco'), ('cvat_coco', 'coco'), ('cvat_yolo', 'yolo'), ('ultralytics', 'yolo'), ('labelme', 'labelme'),
  ('via', 'via'), ('label_studio', 'label_studio'), ('voc', 'voc'), ('cvat', 'cvat'), ('cvat_video', 'cvat'),
  ('csv', 'csv'), ('createml', 'createml'), ('vott', 'vott'), ('supervisely', 'supervisely'),
  ('sagemaker', 'sagemaker'), ('datumaro', 'datumaro'), ('darwin', 'darwin'),
  ('imagefolder', 'imagefolder'), ('labelbox', 'labelbox'),
  ('open_images', 'open_images'), ('wheat', 'csv'), ('bdd100k', 'bdd100k'), ('cityscapes', 'cityscapes'),
  ('numbered_masks', 'masks')])
def test_each_export_has_one_layout(tmp_path, kind, name):
  items, names = exports.draw(tmp_path / 'data')
  (getattr(exports, kind, None) or getattr(exports_json, kind))(items, names, tmp_path / 'export')
  found = recognition.find(SourceFolder(str(tmp_path / 'export')))
  assert [one.layout.NAME for one in found] == [name]


def test_several_layouts_are_named(tmp_path):
  source = folder(tmp_path, {'a.json': COCO, 'b.json': LABELME, 'images/a.jpg': ''})
  with pytest.raises(UserError, match=r'may be COCO json \(a.json\) or LabelMe.*--layout=coco or --layout=labelme'):
    recognition.choose(source)
  assert recognition.choose(source, 'labelme').layout.NAME == 'labelme'
  with pytest.raises(UserError, match="no VIA's JSON in it: it has COCO json"):
    recognition.choose(source, 'via')
  assert '--layout=coco' in recognition.describe(str(tmp_path))


def test_masks_and_tables_beside_annotations_are_not_the_annotations(tmp_path):
  table = 'filename,class,xmin,ymin,xmax,ymax\n'
  source = folder(tmp_path, {'a.json': COCO, 'images/a.jpg': '', 'masks/a.png': '', 'a.csv': f'{table}a.jpg,x,1,1,2,2'})
  assert recognition.choose(source).layout.NAME == 'coco'
  assert recognition.choose(source, 'csv').layout.NAME == 'csv'
  (tmp_path / 'a.json').unlink()
  with pytest.raises(UserError, match='--layout=csv or --layout=masks'):
    recognition.choose(SourceFolder(str(tmp_path)))


@pytest.mark.parametrize('files, message', [
  ({}, 'is empty'), ({'x/export.ZIP': ''}, 'the archive x/export.ZIP: unpack it'),
  ({'a.txt': 'x', 'a.jpg': ''}, 'no annotations of a known layout among its 2 files, of which 1'),
  ({'a.json': {'project': {}, 'metadata': {}, 'attribute': {}}}, 'VIA 3'),
  ({'a.json': [{'id': 1, 'image': 'a.jpg', 'label': []}]}, 'JSON-MIN'),
  ({'a.csv': 'filename,file_size\n', 'a.jpg': '', 'readme.txt': '1 2 3 4'}, 'a.csv is a table without.*JSON .VIA.'),
  ({'_classes.csv': 'Pixel Value, Class', 'a.jpg': '', 'a_mask.png': ''}, "a_mask.png .*semantic.*COCO"),
  ({'a.json': 'version https://git-lfs.github.com/spec/v1\noid sha256:4d', 'a.jpg': ''}, 'a.json .*of Git LFS: .*pull'),
  ({'results.csv': 'epoch,train/box_loss\n1,2', 'a.jpg': ''}, 'no annotations of a known layout among its 2 files'),
  ({'image/a.png': '', 'label/a.txt': 'Car 0.00 0 -1.57 10.01'}, "label/a.txt .*'Car 0.* is not a YOLO label"),
  ({'a.png': '', 'a.txt': 'gsd:1\n9,9,3,2,1,4', 'data.yaml': 'names: [a]'}, "'9,9,3,2,1,4' is not a YOLO label.*COCO"),
  ({'img1/1.jpg': '', 'gt/gt.txt': '1,1,912,484,97,109,0,7,1'}, "gt/gt.txt has numbers.*'1,1,912,4.*MOT.*to COCO json"),
  ({'x/1.jpg': '', 'faces.txt': 'x/1.jpg\n1\n449 330 122 149 0 0 0 0 0 0'}, "faces.txt has numbers, as '449 .*WIDER"),
  ({'images/a.jpg': '', 'masks/a.jpg': ''}, 'masks/a.jpg seems to be a mask: masks are read from PNG files alone'),
  ({'a.tif': '', 'a_masks/1.tif': ''}, 'a_masks/1.tif seems to be a mask'),
  ({'x.vott': {'name': 'x', 'sourceConnection': {}, 'tags': []}}, 'a project of VoTT without its regions'),
  ({'a.json': {'project_name': 'x', 'images': [], 'label_classes': []}}, 'Hasty: export as COCO'),
  ({'a_polygons.json': {'imgHeight': 1, 'imgWidth': 1, 'objects': []}}, 'Cityscapes, .*: convert .* to COCO'),
  ({'a.json': [{'ID': 'x', 'Labeled Data': 'a.jpg', 'Label': {}}]}, "JSON of Labelbox's first .*NDJSON"),
  ({'output.manifest': '{"source": "text"}', 'a.jpg': ''}, 'JSON Lines without the source-ref of SageMaker'),
  ({'annotation_train.odgt': '{"ID": "1", "gtboxes": []}'}, 'JSON Lines of CrowdHuman'),
  ({'train/metadata.jsonl': '{"file_name": "a.jpg"}', 'train/a.jpg': ''},
   "metadata.jsonl is JSON Lines without the objects of.* COCO json"),
  ({'labelmap.txt': '', 'SegmentationObject/a.png': ''}, "CVAT's segmentation masks.*COCO 1.0"),
  ({'a.tfrecord': ''}, 'holds TFRecords')])
def test_what_cannot_be_read_is_explained(tmp_path, files, message):
  with pytest.raises(UserError, match=message) as raised:
    recognition.choose(folder(tmp_path, files))
  assert '\n' not in str(raised.value)
  assert re.search(message, recognition.describe(str(tmp_path)))


def test_labels_in_utf_16(tmp_path):
  source = folder(tmp_path, {'a.jpg': '', 'a.txt': '', 'classes.txt': 'cat'})
  (tmp_path / 'a.txt').write_bytes('0 .5 .5 .2 .2'.encode('utf-16'))
  with pytest.raises(UserError, match='a.txt: not a text file in UTF-8, as which it should be saved'):
    recognition.choose(source)


def test_the_cure_is_a_command(tmp_path):
  folder(tmp_path / 'my images', {'train/a.xml': VOC, 'train/a.jpg': ''})
  assert recognition.describe(str(tmp_path / 'my images')).endswith(
    f"(train/a.xml): python -m rethink_tf.data.prepare '{tmp_path}/my images' --output_dir=data/my_images writes "
    'what --gin_file=gin_configs/data/own.gin reads, with --data_dir=data/my_images')
  assert recognition.describe(str(tmp_path / 'no')) is None


def test_the_command_knows_all_layouts():
  assert command.LAYOUTS == recognition.NAMES
