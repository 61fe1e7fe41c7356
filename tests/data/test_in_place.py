"""Folders that training reads as they are: Roboflow's COCO export and PASCAL VOC's layout, by --data_dir alone."""

import pytest
import tensorflow as tf

from rethink_tf import experiment, gin_files
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.data.detection.voc import VocSource
from rethink_tf.data.prepare import preparation
from rethink_tf.errors import UserError
from tests import exports

FILES = ('gin_configs/demo.gin', 'gin_configs/data/own.gin')

pytestmark = pytest.mark.usefixtures('no_configuration_is_left')


@pytest.fixture(scope='module')
def drawn(tmp_path_factory):
  return exports.draw(tmp_path_factory.mktemp('drawn'))


def sources(files, data_dir, *params):
  """Return the sources of a configuration."""
  experiment.configure(files, params, str(data_dir))
  return [gin_files.argument(experiment.run, f'{side}_source')(training=side == 'train') for side in ('train', 'eval')]


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


def test_other_configurations_stay(drawn, tmp_path):
  write_voc(*drawn, tmp_path)
  with pytest.raises(UserError, match='no such annotation file'):
    sources(('gin_configs/demo.gin', 'gin_configs/data/coco.gin'), tmp_path)
  with pytest.raises(UserError, match=r"holds PASCAL VOC's xml \(Annotations.*python -m rethink_tf.data.prepare"):
    sources(FILES, tmp_path, "train/coco.annotation_file = 'mine.json'")


def test_what_is_found_instead_is_named_with_the_cure(drawn, tmp_path):
  items, names = drawn
  exports.ultralytics(items, names, tmp_path / 'yolo')
  exports.cvat_coco(items, names, tmp_path / 'cvat')
  for folder, layout in (('yolo', 'YOLO text files'), ('cvat', 'COCO json')):
    for files in (FILES, ('gin_configs/voc_scratch.gin',)):
      with pytest.raises(UserError, match=f'holds {layout} .*python -m rethink_tf.data.prepare {tmp_path}/{folder} '):
        sources(files, tmp_path / folder)


def test_storage_that_does_not_answer_is_one_line(monkeypatch):
  def away(path):
    raise tf.errors.FailedPreconditionError(None, None, 'Could not resolve hostname\n when reading')

  monkeypatch.setattr(tf.io.gfile, 'exists', away)
  with pytest.raises(UserError, match=r'^gs://bucket/coco: cannot be read: .*resolve hostname') as caught:
    experiment.configure(FILES, (), 'gs://bucket/coco')
  assert '\n' not in str(caught.value)
