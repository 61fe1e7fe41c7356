"""Summaries of a split: the same for the same data, and differences in words."""

import pathlib

import numpy as np
import pytest
from PIL import Image

from rethink_tf.data import class_names, digest
from rethink_tf.data.categories import Category
from rethink_tf.data.classification.synthetic import SyntheticClasses
from rethink_tf.data.detection.coco import CocoSource
from tests import small_coco


def summary(folder, boxes=((10, 10, 20, 30),), images=(1, 2, 3)):
  small_coco.write(folder, [small_coco.image(i) for i in images],
                   [small_coco.annotation(k, 1, box) for k, box in enumerate(boxes, start=1)])
  return digest.summarize(CocoSource(str(folder)))


def test_the_same_data_has_no_differences(tmp_path):
  found = summary(tmp_path / 'a')
  assert (found['images'], found['instances']) == (3, 1)
  assert digest.differences(found, {**summary(tmp_path / 'b'), 'name': found['name']}) == []


def test_differences_are_named(tmp_path):
  found = summary(tmp_path / 'a')
  assert digest.differences(found, summary(tmp_path / 'b', images=(1, 2))) == ['3 -> 2 images']
  assert digest.differences(found, summary(tmp_path / 'c', ((1, 1, 5, 5),) * 2)) == ['1 -> 2 instances']
  assert 'other annotations' in digest.differences(found, summary(tmp_path / 'd', ((10, 10, 20, 31),)))[0]


def test_other_files_under_the_same_names(tmp_path):
  found = summary(tmp_path)
  image = pathlib.Path(tmp_path, 'train2017/000002.jpg')
  image.write_bytes(image.read_bytes() + b'\0')
  assert 'other contents' in digest.differences(found, digest.summarize(CocoSource(str(tmp_path))))[0]
  image.unlink()  # counted elsewhere; here it is one more difference
  assert digest.differences(found, digest.summarize(CocoSource(str(tmp_path))))


@pytest.mark.parametrize('sizes, expected', [
  ([(60, 80)] * 3, None), ([(60, 80), (80, 60), (60, 80)], True), ([(60, 80), (60, 80), (60, 80)], False),
  ([(80, 60), (60, 80), (80, 60)], None)])
def test_whether_photographs_are_read_upright(tmp_path, sizes, expected):
  """By the annotated size of those that their camera has marked as turned: the second, and where mixed the first."""
  images = [small_coco.image(i, *size) for i, size in enumerate(sizes, start=1)]
  small_coco.write(tmp_path, images, [small_coco.annotation(1)])
  exif = Image.Exif()
  exif[0x0112] = 6
  mixed = sizes[0] == sizes[2] == (80, 60)
  for i in ([] if expected is None and not mixed else [1, 2] if mixed else [2]):
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(tmp_path / f'train2017/{i:06d}.jpg', exif=exif)
  assert digest.reads_upright(digest.summarize(CocoSource(str(tmp_path)))) is expected


@pytest.mark.parametrize('turned', [None, 3, {'upright': '2', 'stored': 0}, {'upright': 0, 'stored': 0}, {}])
def test_what_a_file_does_not_tell_is_not_known(turned):
  assert digest.reads_upright({'turned': turned}) is None


def test_classes_count_by_their_names(tmp_path):
  """Of a run with the classes a and b: the same file with ids in another order, and one whose names changed places."""
  def of(folder, names, id_):
    categories = [{'id': i, 'name': name} for i, name in enumerate(names, 1)]
    small_coco.write(tmp_path / folder, None, [small_coco.annotation(1, category_id=id_)], categories)
    run = [Category(1, 'a'), Category(2, 'b')]
    return digest.summarize(class_names.match(CocoSource(str(tmp_path / folder)), run, 'the run'))

  was = of('was', 'ab', 1)
  assert digest.differences(was, of('ids', 'ba', 2)) == []
  assert 'other annotations' in digest.differences(was, of('names', 'ba', 1))[0]


def test_workers_compare_their_data(tmp_path):
  """Copies of a data set on the disks of two machines, of which one is older."""
  train, held_out = summary(tmp_path / 'a'), summary(tmp_path / 'b', images=(1, 2))
  chief = digest.to_compare({'train': train, 'held_out': held_out})
  assert digest.difference_to(chief, {'train': {**train, 'name': 'copy'}, 'held_out': held_out}) == ''
  found = digest.difference_to(chief, {'train': summary(tmp_path / 'c', images=(1, 2)), 'held_out': held_out})
  assert 'other data than the chief (chief -> this worker, train: 3 -> 2 images): give all' in found
  assert len(chief) < 1000  # a message to every worker


def test_sources_without_files():
  source = SyntheticClasses(8)
  found = digest.summarize(source)
  assert found['files'] is None and digest.differences(found, digest.summarize(source)) == []
