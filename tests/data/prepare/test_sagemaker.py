"""Manifests of SageMaker Ground Truth: jobs, images that failed, lines that are damaged."""

import json

import pytest

from rethink_tf.data.prepare import sagemaker
from rethink_tf.data.prepare.layout import (
  AGAIN,
  MISSING,
  NO_AREA,
  NO_CLASS,
  NO_IMAGE,
  NOT_FINITE,
  NOT_NAMED,
  OF_AGAIN,
  Options,
)
from rethink_tf.errors import UserError
from tests.data.prepare.layouts import reading_of


def job(*boxes, name='boxes', **metadata):
  """Return the attributes of a job; boxes: (class_id, left, top, width, height)."""
  fields = ('class_id', 'left', 'top', 'width', 'height')
  return {name: {'image_size': [{'width': 30, 'height': 20, 'depth': 3}],
                 'annotations': [dict(zip(fields, one, strict=True)) if one != 7 else one for one in boxes]},
          f'{name}-metadata': {'class-map': {'0': 'cat', '7': ' a dog ', '8': None}, 'human-annotated': 'yes',
                               'type': 'groundtruth/object-detection'} | metadata}


def line(name, *attributes):
  entry = {'source-ref': f's3://bucket/x/{name}'}
  for one in attributes:
    entry |= one
  return json.dumps(entry)


def read(root, lines, images=('a.jpg',), options=None, **files):
  """Return the reading of manifests, and its images."""
  return reading_of(sagemaker, root, {'output.manifest': '\n'.join(lines), **files}, images, options)


BOX = (0, 1, 2, 3, 4)


def test_boxes_and_classes(tmp_path):
  reading, (image,) = read(tmp_path, [line('a.jpg', job(
    BOX, (7, 1.5, 2, 3, 4), (8, 1, 2, 3, 4), (3, 1, 2, 3, 4), 7, (0, None, 2, 3, 4), (0, float('nan'), 2, 3, 4),
    (0, '1', 2, 3, 4), (0, 1, 2, 0, 4)))])
  assert [(one['category'], one['bbox']) for one in image.instances] == [
    ('cat', [1, 2, 3, 4]), ('a dog', [1.5, 2, 3, 4])]
  assert image.size == (20, 30) and dict(reading.problems.counts) == {NO_CLASS: 3, NOT_FINITE: 3, NO_AREA: 1}


def test_images_without_objects_failed_missing_and_listed_twice(tmp_path):
  failed = {'boxes-metadata': {'failure-reason': 'ClientError'}}
  reading, images = read(tmp_path, [
    line('a.jpg', job(BOX)), line('b.jpg', job()), line('c.jpg', failed), line('d.jpg'), line('a.jpg', job(BOX, BOX)),
    line('../../etc/passwd.jpg', job(BOX)), '', '{"source-ref": 7}', '{"source', '[' * 100_000,
    line('e.jpg', {'boxes': 7, 'boxes-metadata': {'class-map': []}})],
    images=('a.jpg', 'b.jpg', 'c.jpg', 'd.jpg', 'e.jpg', 'f.jpg'))
  assert [(image.file, len(image.instances)) for image in images] == [('a.jpg', 1), ('b.jpg', 0)]
  assert dict(reading.problems.counts) == {sagemaker.NO_LABELS: 3, AGAIN: 1, OF_AGAIN: 2, NO_IMAGE: 1, MISSING: 1,
                                           sagemaker.NOT_JSON: 3, NOT_NAMED: 1}


def test_a_damaged_first_line_is_counted(tmp_path):
  reading, (image,) = read(tmp_path, ['{"source-ref', line('a.jpg', job(BOX))])
  assert image.file == 'a.jpg' and dict(reading.problems.counts) == {sagemaker.NOT_JSON: 1}


def test_of_several_jobs_one_is_read(tmp_path):
  other = job((7, 5, 5, 2, 2), name='others')
  lines = [line('a.jpg', job(BOX), other)]
  with pytest.raises(UserError, match='output.manifest: has boxes of the jobs boxes, others: name .*--class_key'):
    read(tmp_path, lines)
  _, (image,) = read(tmp_path, lines, options=Options(class_key='others'))
  assert [one['category'] for one in image.instances] == ['a dog']
  with pytest.raises(UserError, match="--class_key = 'x' is no job with boxes: boxes"):
    read(tmp_path, [line('a.jpg', job(BOX))], options=Options(class_key='x'))


def test_boxes_that_were_adjusted_replace_the_first_ones(tmp_path):
  adjusted = job((7, 5, 5, 2, 2), name='adjusted', **{'adjustment-status': 'adjusted'})
  reading, (image,) = read(tmp_path, [line('a.jpg', job(BOX), adjusted)])
  assert [one['bbox'] for one in image.instances] == [[5, 5, 2, 2]]
  assert reading.notes == [sagemaker.ADJUSTED.format(file='output.manifest', job='adjusted', others='boxes')]


def test_manifests_of_the_splits_may_have_jobs_of_their_own(tmp_path):
  reading, images = read(tmp_path, [line('a.jpg', job(BOX))], ('a.jpg', 'b.jpg'),
                         **{'validation.manifest': line('b.jpg', job(BOX, name='other'))})
  assert [(image.file, image.split) for image in images] == [('a.jpg', None), ('b.jpg', 'val')]
  assert not reading.problems.counts


@pytest.mark.parametrize('text, message', [
  (line('a.jpg'), 'no line has boxes of a labelling job'),
  (line('a.jpg', {'c': 1, 'c-metadata': {'type': 'groundtruth/image-classification'}}), 'give its output.manifest')])
def test_errors_of_one_line(tmp_path, text, message):
  with pytest.raises(UserError, match=message) as raised:
    read(tmp_path, [text])
  assert '\n' not in str(raised.value) and 'output.manifest' in str(raised.value)
