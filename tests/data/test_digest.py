"""Summaries of a split: the same for the same data, and differences in words."""

import pathlib

from rethink_tf.data import digest
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


def test_sources_without_files():
  source = SyntheticClasses(8)
  found = digest.summarize(source)
  assert found['files'] is None and digest.differences(found, digest.summarize(source)) == []
