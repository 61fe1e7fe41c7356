"""Laws: what is prepared from an export is the data set that was exported, image by image and object by object."""

import json
import os
import pathlib
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.image_notes import FEWER_BITS
from rethink_tf.data.prepare.layout import Options
from rethink_tf.data.prepare.preparation import TURNED, Division, prepare, report
from rethink_tf.errors import UserError
from tests import exports, exports_json

SPLIT = {'roboflow': exports.roboflow, 'cvat_yolo': exports.cvat_yolo, 'ultralytics': exports.ultralytics,
         'labelme': exports.labelme, 'via': exports.via, 'voc': exports.voc, 'cvat': exports.cvat,
         'csv': exports.csv, 'createml': exports_json.createml, 'supervisely': exports_json.supervisely,
         'sagemaker': exports_json.sagemaker, 'datumaro': exports_json.datumaro,
         'cvat_video': exports.cvat_video, 'darwin': exports_json.darwin,
         'imagefolder': exports_json.imagefolder, 'labelbox': exports_json.labelbox,
         'bdd100k': exports_json.bdd100k}
UNSPLIT = {'cvat_coco': exports.cvat_coco, 'label_studio': exports.label_studio, 'vott': exports_json.vott,
           'masks': exports.numbered_masks}
BOXES_ONLY = ('cvat_yolo', 'voc', 'csv', 'createml', 'sagemaker', 'imagefolder')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  """A small data set: its folder, images and names of categories."""
  folder = tmp_path_factory.mktemp('drawn')
  return folder, *exports.draw(folder)


def contents(folder):
  """Return the bytes of every file below a folder."""
  return {path.relative_to(folder).as_posix(): path.read_bytes()
          for path in pathlib.Path(folder).rglob('*') if path.is_file()}


@pytest.mark.parametrize('kind', [*SPLIT, *UNSPLIT])
def test_what_is_prepared_is_what_was_exported(drawn, kind, tmp_path):
  _, items, names = drawn
  (SPLIT | UNSPLIT)[kind](items, names, tmp_path / 'export')
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'), division=Division(0.4))
  # A mask of pixels has the box of its pixels.
  assert not exports.differences(items, tmp_path / 'own', by_split=kind in SPLIT, masks=kind not in BOXES_ONLY,
                                 tolerance=1.01 if kind == 'masks' else 0.01)
  assert not prepared.problems[0][1].counts
  assert set(prepared.splits) == {'train', 'val'} and min(images for images, _ in prepared.splits.values()) > 0
  loaded = CocoSource(str(tmp_path / 'own'), 'train').load(0)
  assert len(loaded.boxes) == len(loaded.classes)


@pytest.mark.parametrize('variant', [
  lambda items, names, folder: exports.ultralytics(items, names, folder, roboflow_paths=True),
  lambda items, names, folder: exports.labelme(items, names, folder, embed=True),
  lambda items, names, folder: exports.via(items, names, folder, version=1)])
def test_variants_of_layouts(drawn, variant, tmp_path):
  _, items, names = drawn
  (tmp_path / 'export').mkdir()
  variant(items, names, tmp_path / 'export')
  prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert not exports.differences(items, tmp_path / 'own')


@pytest.mark.slow
@pytest.mark.parametrize('data', ['facade', 'fire_smoke'])
@pytest.mark.parametrize('kind', [
  'roboflow', 'cvat_yolo', 'ultralytics', 'labelme', 'via', 'label_studio', 'vott', 'supervisely', 'datumaro',
  'cvat_video', 'darwin', 'imagefolder', 'labelbox', 'bdd100k'])
def test_real_data_there_and_back(real_images, data, kind, tmp_path):
  items, names = exports.load(real_images / data)
  (SPLIT | UNSPLIT)[kind](items, names, tmp_path / 'export')
  prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  # Boxes of outlines are the extent of these: those of facade are up to a pixel wider.
  assert not exports.differences(items, tmp_path / 'own', by_split=kind in SPLIT, masks=kind not in BOXES_ONLY,
                                 tolerance=1.0, bitmaps=kind == 'supervisely')


@pytest.mark.slow
def test_real_voc_there_and_back(real_images, tmp_path):
  prepare(str(real_images / 'bccd_voc'), str(tmp_path / 'first'))
  items, names = exports.load(tmp_path / 'first', ('train', 'val', 'test'))
  assert [len([item for item in items if item.split == split]) for split in ('train', 'val', 'test')] == [205, 87, 72]
  assert sum(len(item.objects) for item in items) == 4888
  for kind in ('voc', 'labelme', 'roboflow', 'createml', 'supervisely', 'sagemaker', 'imagefolder', 'cvat_video'):
    SPLIT[kind](items, names, tmp_path / kind)
    prepare(str(tmp_path / kind), str(tmp_path / f'{kind}_own'))
    assert not exports.differences(items, tmp_path / f'{kind}_own')


def test_the_category_of_a_roboflow_project_is_left_out(drawn, tmp_path):
  _, items, names = drawn
  exports.roboflow(items, names, tmp_path / 'export', project='tall')  # facade: a class has the name of the project
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  source = CocoSource(str(tmp_path / 'own'), 'val')
  assert [(one.id, one.name) for one in source.categories] == [(1, 'tall'), (2, 'wide one')]
  assert any('Roboflow adds' in note for note in prepared.notes)


@pytest.mark.parametrize('copy', [False, True])
def test_the_same_command_writes_the_same_bytes(drawn, tmp_path, copy):
  _, items, names = drawn
  exports.cvat_coco(items, names, tmp_path / 'export')
  own = tmp_path / 'own'
  prepare(str(tmp_path / 'export'), str(own), copy=copy)
  first, inode = contents(own), (own / 'annotations').stat().st_ino
  prepare(str(tmp_path / 'export'), str(own), copy=copy)
  assert contents(own) == first and (own / 'annotations').stat().st_ino != inode
  assert os.listdir(tmp_path).count('own') == 1 and len(os.listdir(tmp_path)) == 2  # nothing is left beside it
  image = next(path for path in own.rglob('*.png'))
  assert (image.stat().st_nlink == 1) == copy


def test_seed_and_fraction_change_the_split(drawn, tmp_path):
  _, items, names = drawn
  exports.label_studio(items, names, tmp_path / 'export')
  held = set()
  for seed in range(6):
    prepare(str(tmp_path / 'export'), str(tmp_path / f'own{seed}'), division=Division(0.3, seed))
    held.add(tuple(item.name for item in exports.load(tmp_path / f'own{seed}', ['val'])[0]))
  assert len(held) > 1


def test_nothing_foreign_is_replaced(drawn, tmp_path):
  _, items, names = drawn
  exports.cvat_coco(items, names, tmp_path / 'export')
  export, own = str(tmp_path / 'export'), tmp_path / 'own'
  own.mkdir()
  (own / 'thesis.txt').write_text('mine')
  with pytest.raises(UserError, match='exists and was not written by this command'):
    prepare(export, str(own))
  assert (own / 'thesis.txt').read_text() == 'mine'
  (own / 'thesis.txt').unlink()
  prepare(export, str(own))  # an empty folder
  with pytest.raises(UserError, match='from another source or with other arguments'):
    prepare(export, str(own), division=Division(0.5))
  (own / 'thesis.txt').write_text('mine')
  with pytest.raises(UserError, match='have been added or removed'):
    prepare(export, str(own))
  assert (own / 'thesis.txt').exists()
  for place in (export, f'{export}/own', str(tmp_path)):
    with pytest.raises(UserError, match='should be neither in'):
      prepare(export, place)


def test_an_error_leaves_nothing(drawn, tmp_path, monkeypatch):
  _, items, names = drawn
  exports.cvat_coco(items, names, tmp_path / 'export')
  monkeypatch.setattr('rethink_tf.data.prepare.preparation.CocoSource', lambda *_: 1 / 0)
  with pytest.raises(ZeroDivisionError):
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert os.listdir(tmp_path) == ['export']


def test_test_images_are_held_out_without_validation_images(drawn, tmp_path):
  _, items, names = drawn
  exports.roboflow([item._replace(split='test' if item.split == 'val' else 'train') for item in items], names,
                   tmp_path / 'export')
  prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert not exports.differences(items, tmp_path / 'own')
  again = prepare(str(tmp_path / 'export'), str(tmp_path / 'again'), division=Division(0.5, again=True))
  assert again.splits['val'][0] >= 3


def test_damaged_images_of_a_source_with_splits_are_left_out(drawn, tmp_path):
  _, items, names = drawn
  exports.roboflow(items, names, tmp_path / 'export')
  damaged = next(item for item in items if item.split == 'val')
  path, = (tmp_path / 'export').rglob(f'{pathlib.Path(damaged.name).stem}.*')
  data = path.read_bytes()
  path.unlink()  # it may be a link
  path.write_bytes(data[:len(data) // 2])
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert prepared.problems[0][1].counts['image that cannot be read'] == 1
  assert prepared.splits['val'][0] == sum(item.split == 'val' for item in items) - 1


def test_what_splits_and_depths_mean_for_the_numbers_is_said(tmp_path):
  rng, write = np.random.default_rng(0), exports.write_json
  images = {name: cv2.resize(rng.integers(0, 65535, [4, 6], np.uint16), (30, 20))
            for name in ('train/a', 'train/b', 'val/c')}
  for name, pixels in (images | {'val/d': images['train/b'] // 16}).items():
    path = tmp_path / f'export/{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), pixels)
    shapes = [{'label': 'cat', 'points': [[1, 1], [9, 9]], 'shape_type': 'rectangle'}]
    write(path.with_suffix('.json'), {'shapes': shapes, 'imagePath': path.name, 'imageHeight': 20, 'imageWidth': 30})
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert prepared.notes == ['1 of 2 held-out images are near-duplicates of training images, e.g. val/d.png of '
                            'train/b.png: AP on them is not that on new images (--resplit keeps them on one side)']
  assert prepared.problems[0][1].counts[f'images {FEWER_BITS}'] == 1
  assert not prepare(str(tmp_path / 'export'), str(tmp_path / 'apart'), division=Division(group=False)).notes


def test_splits_of_some_images_only_are_not_kept(tmp_path):
  rng = np.random.default_rng(0)
  for name in ('train/a', 'train/b', 'val/c', 'd'):
    path = tmp_path / f'export/{name}.png'
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 255, [20, 30, 3], np.uint8)).save(path)
    shapes = [{'label': 'cat', 'points': [[1, 1], [9, 9]], 'shape_type': 'rectangle'}]
    exports.write_json(path.with_suffix('.json'), {'shapes': shapes, 'imagePath': path.name, 'imageHeight': 20,
                                                   'imageWidth': 30})
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'), division=Division(0.5))
  assert '1 of 4 images, e.g. d.png, are of no split: those of the source are not kept' in prepared.notes
  assert prepared.splits['val'][0] == 2


def test_warnings_name_the_output_folder(drawn, tmp_path, caplog):
  _, items, names = drawn
  exports.cvat_yolo(items, names, tmp_path / 'export')
  (tmp_path / 'export/obj.names').write_text('\n'.join(['a b', 'a_b', *'defghijk'][:len(names)]))
  prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert f'{tmp_path}/own/annotations/instances_val.json: names that differ only' in caplog.text
  assert '.partial' not in caplog.text


def test_losses_are_counted_in_one_table(drawn, tmp_path):
  _, items, names = drawn
  export = tmp_path / 'export'
  exports.cvat_yolo(items, names, export)
  label = export / 'obj_train_data/a b.txt'
  label.write_text(label.read_text() + '\n0 nan 0.5 0.1 0.1\n9 0.5 0.5 0.1 0.1\n0 0.5 0.5 0 0.1\n1 2\n'
                   '0 0.1 0.1 0.2 0.2 7\n0 0.95 0.5 0.2 0.2\n')
  (export / 'obj_train_data/C.JPG').write_bytes(b'no image')
  (export / 'obj_train_data/größe.jpg').unlink()
  prepared = prepare(str(export), str(tmp_path / 'own'))
  counts = prepared.problems[0][1].counts
  assert {reason.split(',')[0]: count for reason, count in counts.items()} == {
    'with a number that is missing or not finite': 1, 'of a class number without a name': 1,
    'with a box without area': 1, 'a line that is neither a box nor an outline': 1, 'with a further number': 1,
    'image that cannot be read': 1, 'of an image that is left out': 2, 'image whose file is missing': 1,
    'label file without its image': 1}
  assert dict(prepared.problems)['train'].counts['clipped to the image'] == 1
  text = report(prepared, 'own')
  assert 'a b.txt, line 3' in text and 'C.JPG' in text and text.count('\n') < 30


@pytest.mark.parametrize('kind, reads_upright', [('labelme', True), ('cvat_yolo', True), ('cvat_coco', False)])
@pytest.mark.parametrize('turn', [3, 6])
def test_exif_orientation(tmp_path, kind, reads_upright, turn):
  """Annotations of tools that show images upright fit the image that is trained on; COCO's fit the size they name."""
  upright = np.zeros([40, 64, 3], np.uint8)
  upright[8:20, 5:25] = 250  # the object
  stored = np.rot90(upright, {3: 2, 6: 1}[turn])  # so that turning it as EXIF says gives the upright image
  image, exif = Image.fromarray(np.ascontiguousarray(stored)), Image.Exif()
  exif[0x0112] = turn
  data = tmp_path / 'data'
  data.mkdir()
  image.save(data / 'a.png', exif=exif)
  Image.fromarray(upright).save(data / 'b.png')
  truth = upright if reads_upright else stored
  ys, xs = np.nonzero(truth[..., 0])
  box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
  items = [exports.Item('train', data / 'a.png', 'a.png', truth.shape[:2], [('thing', box, [])]),
           exports.Item('val', data / 'b.png', 'b.png', (40, 64), [('thing', [5, 8, 20, 12], [])])]
  (exports.cvat_coco if kind == 'cvat_coco' else SPLIT[kind])(items, {1: 'thing'}, tmp_path / 'export')
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert prepared.problems[0][1].counts[TURNED] == (reads_upright and turn == 3)
  for split in ('train', 'val'):
    for example in map(CocoSource(str(tmp_path / 'own'), split).load, range(1)):
      y0, x0, y1, x1 = example.boxes[0].astype(int)
      inside = np.zeros(example.image.shape[:2], bool)
      inside[y0:y1, x0:x1] = True
      assert ((example.image[..., 0] > 100) == inside).all()


def test_names_that_collide(tmp_path):
  pixels = cv2.imencode('.png', np.zeros([8, 9, 3], np.uint8))[1].tobytes()
  entries = ['x/a.png', 'y/a.png', 'x/A.png', 'c\x1bd.png']
  for name in entries:
    (tmp_path / 'export/images' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'export/images' / name).write_bytes(pixels)
  content = {'images': [{'id': i, 'file_name': name, 'height': 8, 'width': 9} for i, name in enumerate(entries)],
             'annotations': [{'id': i, 'image_id': i, 'category_id': 1, 'bbox': [1, 1, 3, 3]} for i in range(4)],
             'categories': [{'id': 1, 'name': 'thing'}]}
  exports.write_json(tmp_path / 'export/a.json', content)
  prepared = prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  items = exports.load(tmp_path / 'own')[0]
  assert len({(item.split, item.name.casefold()) for item in items}) == 4 and all(item.path.is_file() for item in items)
  assert any('near-duplicates of each other' in note for note in prepared.notes)


@pytest.mark.parametrize('arguments, message', [
  ({'division': Division(0.0)}, '--held_out = 0'), ({'division': Division(1.5)}, '--held_out = 1.5'),
  ({'options': Options(annotation_file='no.json')}, 'no such file'), ({'layout': 'voc'}, "no PASCAL VOC's xml in it")])
def test_arguments_are_checked(drawn, tmp_path, arguments, message):
  _, items, names = drawn
  exports.cvat_coco(items, names, tmp_path / 'export')
  with pytest.raises(UserError, match=message):
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'), **arguments)


def test_objects_of_no_use_are_an_error(tmp_path, drawn):
  _, items, names = drawn
  exports.cvat_coco(items, names, tmp_path / 'export')
  path = tmp_path / 'export/annotations/instances_default.json'
  content = json.loads(path.read_text())
  path.write_text(json.dumps(content | {'annotations': []}))
  with pytest.raises(UserError, match='without a usable object in 7 images: no image has an annotation'):
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  path.write_text(json.dumps(content | {'annotations': [
    one | {'image_id': str(one['image_id'])} for one in content['annotations']]}))
  with pytest.raises(UserError, match="usable object in 7 images: .*json, image_id '.*' .of an image that is not list"):
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  shutil.rmtree(tmp_path / 'export/images')
  with pytest.raises(UserError, match='without a usable image: no image is among its files: export with images'):
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))


def test_annotations_of_no_image_are_an_error(tmp_path):
  (tmp_path / 'export').mkdir()
  (tmp_path / 'export/via.json').write_text('{"_via_settings": {}, "_via_img_metadata": {}}')
  (tmp_path / 'export/a.jpg').write_bytes(b'')
  with pytest.raises(UserError, match="VIA's JSON without a usable image: its annotations name none$"):
    prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
