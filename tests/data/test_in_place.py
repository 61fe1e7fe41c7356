"""Folders that training reads as they are, by --data_dir alone: COCO's own, TFRecords, Roboflow's and PASCAL VOC's."""

import json

import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.data import conversion
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.records import RecordSource
from rethink_tf.data.detection.voc import VOC_CLASSES, VocSource
from rethink_tf.data.prepare import preparation
from rethink_tf.errors import UserError
from tests import exports

FILES = ('gin_configs/demo.gin', 'gin_configs/data/own.gin')
KEYPOINTS = ('gin_configs/demo.gin', 'gin_configs/data/own_keypoints.gin')

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  return exports.draw(tmp_path_factory.mktemp('drawn'))


def sources(files, data_dir, *params):
  """Return the sources of a configuration."""
  experiment.configure(files, params, str(data_dir))
  return [gin_files.argument(experiment.run, f'{side}_source')(training=side == 'train') for side in ('train', 'eval')]


def write_own(items, names, folder):
  """Write what `prepare` writes."""
  exports.roboflow(items, names, folder.parent / f'{folder.name}_export')
  preparation.prepare(str(folder.parent / f'{folder.name}_export'), str(folder))


def write_voc(items, names, folder):
  """Write PASCAL VOC's layout: Annotations, JPEGImages, ImageSets/Main with train.txt and val.txt."""
  exports.voc(items, names, folder / 'x')
  for split, place in exports.ROBOFLOW_SPLITS.items():
    for path in sorted((folder / 'x' / place).glob('*')):
      target = folder / ('Annotations' if path.suffix == '.xml' else 'JPEGImages') / path.name
      target.parent.mkdir(parents=True, exist_ok=True)
      path.rename(target)
      if path.suffix == '.xml':
        listing = folder / f'ImageSets/Main/{split}.txt'
        listing.parent.mkdir(parents=True, exist_ok=True)
        with open(listing, 'a') as file:
          file.write(f'{path.stem}\n')


def test_roboflow(drawn, tmp_path):
  items, names = drawn
  exports.roboflow(items, names, tmp_path / 'export', project='tall')
  train, held_out = sources(FILES, tmp_path / 'export')
  assert isinstance(train, CocoSource) and [one.name for one in train.categories] == ['tall', 'wide one']
  assert len(train.image_ids) == 4 and len(held_out.image_ids) == 2 and held_out.load(0).boxes.shape == (2, 4)
  assert train.categories == held_out.categories
  preparation.prepare(str(tmp_path / 'export'), str(tmp_path / 'own'))
  assert len(CocoSource(str(tmp_path / 'own'), 'train', training=True).image_ids) == 4


def test_a_project_category_with_objects_stays(drawn, tmp_path):
  items, names = drawn
  exports.roboflow(items, names, tmp_path / 'export', project='x')
  path = tmp_path / 'export/train/_annotations.coco.json'
  path.write_text(path.read_text().replace('"category_id": 1', '"category_id": 0'))
  assert [one.id for one in CocoSource(str(tmp_path / 'export'), 'train').categories] == [0, 1, 2]


@pytest.mark.parametrize('files', [FILES, ('gin_configs/demo.gin', 'gin_configs/data/balloon.gin')])
def test_voc(drawn, tmp_path, files):
  write_voc(*drawn, tmp_path)
  train, held_out = sources(files, tmp_path, 'train/coco.num_images = 3')
  assert isinstance(train, VocSource) and [one.name for one in train.categories] == ['tall', 'wide one']
  assert len(train.image_ids) == 3 and len(held_out.image_ids) == 2


def write_coco(items, names, folder, year=2017):
  """Write COCO's own layout, without and with the keypoints of the first class."""
  exports.roboflow(items, names, folder / 'x')
  (folder / 'annotations').mkdir(parents=True)
  for split in ('train', 'val'):
    (folder / 'x' / exports.ROBOFLOW_SPLITS[split]).rename(folder / f'{split}{year}')
    (folder / f'{split}{year}/_annotations.coco.json').rename(folder / f'annotations/instances_{split}{year}.json')
    content = json.loads((folder / f'annotations/instances_{split}{year}.json').read_text())
    first = {**content['categories'][1], 'keypoints': ['nose'], 'skeleton': []}
    objects = [{**one, 'keypoints': [*one['bbox'][:2], 2], 'num_keypoints': 1} for one in content['annotations']
               if one['category_id'] == first['id']]
    exports.write_json(folder / f'annotations/person_keypoints_{split}{year}.json',
                       {**content, 'annotations': objects, 'categories': [first]})


@pytest.mark.parametrize('year', [2014, 2017])
def test_coco(drawn, tmp_path, year):
  write_coco(*drawn, tmp_path, year)
  train, held_out = sources(FILES, tmp_path, 'train/coco.num_images = 3')
  assert [source.name for source in (train, held_out)] == [f'{tmp_path.name}/{each}{year}' for each in ('train', 'val')]
  assert len(train.image_ids) == 3 and len(held_out.image_ids) == 2 and held_out.load(0).boxes.shape == (2, 4)
  people, _ = sources(KEYPOINTS, tmp_path)
  assert [one.name for one in people.categories] == ['tall'] and people.num_keypoints == 1
  assert people.num_visible.sum() > 0


def test_records(drawn, tmp_path):
  write_coco(*drawn, tmp_path / 'coco')
  for split in ('train2017', 'val2017'):
    conversion.convert(CocoSource(str(tmp_path / 'coco'), split), str(tmp_path / 'records'), split, num_shards=2)
  train, held_out = sources(FILES, tmp_path / 'records', 'train/coco.num_images = 3')
  assert isinstance(train, RecordSource) and isinstance(held_out, RecordSource)
  assert len(train.image_ids) == 3 and len(held_out.image_ids) == 2


@pytest.mark.parametrize(('lists', 'trained_on', 'held_out'), [
  (['VOC2007/trainval', 'VOC2007/test', 'VOC2012/train', 'VOC2012/val'], ['VOC2007/trainval', 'VOC2012/train'],
   ['VOC2012/val']),
  (['VOC2007/train', 'VOC2007/val', 'VOC2007/trainval', 'VOC2007/test'], ['VOC2007/trainval'], ['VOC2007/test']),
  (['VOC2007/train', 'VOC2007/val'], ['VOC2007/train'], ['VOC2007/val']),
])
def test_the_development_kit(tmp_path, lists, trained_on, held_out):
  for each in lists:
    year, name = each.split('/')
    (tmp_path / year / 'ImageSets/Main').mkdir(parents=True, exist_ok=True)
    (tmp_path / year / f'ImageSets/Main/{name}.txt').touch()
  experiment.configure(FILES, (), str(tmp_path))
  assert gin_files.effective(['train/voc.sets', 'eval/voc.sets']) == {'train/voc.sets': trained_on,
                                                                      'eval/voc.sets': held_out}
  assert gin_files.effective(['train/voc.classes']) == {'train/voc.classes': list(VOC_CLASSES)}


def test_what_prepare_has_written_comes_first(drawn, tmp_path):
  write_coco(*drawn, tmp_path)
  exports.write_json(tmp_path / 'annotations/instances_train.json', {})
  experiment.configure(FILES, (), str(tmp_path))
  assert gin_files.effective(['train/coco.split']) == {'train/coco.split': 'train'}


def test_other_configurations_stay(drawn, tmp_path):
  write_voc(*drawn, tmp_path)
  with pytest.raises(UserError, match='no such annotation file'):
    sources(('gin_configs/demo.gin', 'gin_configs/data/coco.gin'), tmp_path)
  with pytest.raises(UserError, match=r"holds PASCAL VOC's xml \(Annotations.*own.gin, with no bindings of your own"):
    sources(FILES, tmp_path, "train/coco.annotation_file = 'mine.json'")


def test_what_is_found_instead_is_named_with_the_cure(drawn, tmp_path):
  items, names = drawn
  exports.ultralytics(items, names, tmp_path / 'yolo')
  exports.cvat_coco(items, names, tmp_path / 'cvat')
  for folder, layout in (('yolo', 'YOLO text files'), ('cvat', 'COCO json')):
    for files in (FILES, ('gin_configs/voc_scratch.gin',)):
      with pytest.raises(UserError, match=f'holds {layout} .*python -m rethink_tf.data.prepare {tmp_path}/{folder} '):
        sources(files, tmp_path / folder)


@pytest.mark.parametrize('files', [
  ('gin_configs/demo.gin', 'gin_configs/data/coco.gin'), ('gin_configs/voc_scratch.gin',)])
@pytest.mark.parametrize('write', [write_own, exports.roboflow])
def test_of_a_folder_that_needs_no_conversion_the_cure_is_the_gin_file_that_reads_it(drawn, tmp_path, write, files):
  """Not to convert it, nor to download COCO."""
  folder = tmp_path / 'data'
  write(*drawn, folder)
  with pytest.raises(UserError, match=f'{folder} holds COCO json .*: --gin_file=gin_configs/data/own.gin') as error:
    sources(files, folder)
  assert 'data.prepare' not in str(error.value) and 'cocodataset' not in str(error.value)
  sources((*files, 'gin_configs/data/own.gin'), folder)


@pytest.mark.parametrize(('given', 'cure'), [
  ('coco/train2017', 'is a part of a data set: give the folder above it, .*/coco'),
  ('coco/annotations', 'is a part of a data set: give the folder above it, .*/coco'),
  ('coco/annotations/instances_train2017.json', 'is a file: give the folder'),
  ('data.zip', 'is an archive: unpack it'),
  ('empty', 'is empty'),
  ('classes', '2 images in 2 folders, without annotations: images in folders by class are for pre-training'),
])
def test_other_paths_are_named_with_the_cure(drawn, tmp_path, given, cure):
  write_coco(*drawn, tmp_path / 'coco')
  (tmp_path / 'data.zip').touch()
  (tmp_path / 'empty').mkdir()
  for name in ('cat', 'dog'):
    (tmp_path / 'classes' / name).mkdir(parents=True)
    (tmp_path / 'classes' / name / '1.jpg').touch()
  with pytest.raises(UserError, match=f'no such annotation file.*{given}:? {cure}'):
    sources(FILES, tmp_path / given)


@pytest.mark.parametrize('data', ['coco', 'voc'])
def test_the_cure_of_a_configuration_of_other_data_can_be_followed(drawn, tmp_path, data):
  """--data_dir=my_images without data/own.gin: preparing the same folder again would end in the same error."""
  exports.ultralytics(*drawn, tmp_path / 'export')
  other = ('gin_configs/demo.gin', f'gin_configs/data/{data}.gin')
  with pytest.raises(UserError, match='prepare .*export --output_dir=data/my_images writes what --gin_file='
                                      'gin_configs/data/own.gin reads, with --data_dir=data/my_images'):
    sources(other, tmp_path / 'export')
  preparation.prepare(str(tmp_path / 'export'), str(tmp_path / 'my_images'))
  with pytest.raises(UserError, match='my_images holds COCO json .*: --gin_file=gin_configs/data/own.gin'):
    sources(other, tmp_path / 'my_images')
  assert len(sources((*other, 'gin_configs/data/own.gin'), tmp_path / 'my_images')[0].image_ids) == 4


def test_several_annotation_files_of_a_split_are_refused(tmp_path):
  with pytest.raises(UserError, match='annotation_file should be a string or None.* be one path in quotes: join'):
    sources(FILES, tmp_path, "train/coco.annotation_file = ('a.json', 'b.json')")


def test_storage_that_does_not_answer_is_one_line(monkeypatch):
  def away(path):
    raise tf.errors.FailedPreconditionError(None, None, 'Could not resolve hostname\n when reading')

  monkeypatch.setattr(tf.io.gfile, 'exists', away)
  with pytest.raises(UserError, match=r'^gs://bucket/coco: cannot be read: .*resolve hostname') as caught:
    experiment.configure(FILES, (), 'gs://bucket/coco')
  assert '\n' not in str(caught.value)
