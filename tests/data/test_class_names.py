"""Classes are matched by name, whatever their ids and order."""

import dataclasses
import types

import numpy as np
import pytest

from rethink_tf.data import class_names
from rethink_tf.data.categories import Category
from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.errors import UserError
from tests import small_coco


def categories(*names, keypoints=()):
  return tuple(Category(k, name, keypoints) for k, name in enumerate(names, start=1))


def coco(folder, *names):
  """A source of one object of each class, in order, in one image."""
  entries = [{'id': k, 'name': name} for k, name in enumerate(names, start=1)]
  small_coco.write(folder, categories=entries, annotations=[
    small_coco.annotation(k, bbox=(3 * k, 5, 20, 30), category_id=k) for k in range(1, len(names) + 1)])
  return CocoSource(str(folder))


def test_permuted_ids(tmp_path):
  source = coco(tmp_path, 'dog', 'cat', 'bird')
  found = class_names.match(source, categories('cat', 'dog', 'bird'), 'the run')
  assert [(c.id, c.name) for c in found.categories] == [(2, 'cat'), (1, 'dog'), (3, 'bird')]
  assert source.load(0).classes.tolist() == [1, 2, 3] and found.load(0).classes.tolist() == [2, 1, 3]
  assert found.load(0).classes.dtype == np.int32
  assert found.num_classes == 3 and found.image_ids is source.image_ids and found.name == source.name


def test_the_same_order_is_the_source_itself(tmp_path):
  source = coco(tmp_path, 'cat', 'dog')
  assert class_names.match(source, categories('cat', 'dog'), 'the run') is source


@pytest.mark.parametrize('names, text', [
  (('bird', 'cat'), "'bird' is only there and 'dog' is only in the run"),
  (('cat', 'dog', 'bird'), "'bird' is only there:"), (('cat',), "'dog' is only in the run:"),
  (('Cat', 'dog'), "'Cat' is only there and 'cat' is only in the run"),
  (('cat', 'cat', 'dog'), "'cat' is only there:")])
def test_other_names_are_refused_with_the_first_difference(tmp_path, names, text):
  with pytest.raises(UserError, match='and the run have different categories') as error:
    class_names.match(coco(tmp_path, *names), categories('cat', 'dog'), 'the run')
  assert text in error.value.line()


def test_equal_names_keep_their_order():
  assert class_names.order(['a', 'b', 'a'], ['b', 'a', 'a'], '', '') == [1, 0, 2]


def test_composed_and_decomposed_letters_are_equal():
  assert class_names.order(['Ba\u0308r', 'x'], ['x', 'B\u00e4r'], '', '') == [1, 0]


def test_labels_of_a_classification_source():
  @dataclasses.dataclass
  class Labelled:
    classes: np.ndarray
    categories: tuple = categories('c', 'a', 'b')
    name: str = 'labelled'

    def load(self, i):
      return np.zeros([2, 2, 3], np.uint8)

  source = Labelled(np.array([[0, -1], [1, 2]], np.int32))
  found = class_names.match(source, categories('a', 'b', 'c'), 'the run')
  assert found.classes.tolist() == [[2, -1], [0, 1]] and found.load(0).shape == (2, 2, 3)


def test_keypoints_must_have_the_same_order(tmp_path):
  source = coco(tmp_path, 'cat')
  source.categories, source.num_keypoints = categories('cat', keypoints=('nose', 'tail')), 2
  class_names.match(source, categories('cat', keypoints=('nose', 'tail')), 'the run')
  with pytest.raises(UserError, match="keypoint 1 of 'cat' is 'nose', in the run 'tail'"):
    class_names.match(source, categories('cat', keypoints=('tail', 'nose')), 'the run')


def test_labels_that_are_read_as_a_stream_are_not_reordered():
  source = types.SimpleNamespace(name='hashtags', categories=categories('b', 'a'))
  assert class_names.match(source, categories('b', 'a'), 'the run') is source
  with pytest.raises(UserError, match='another order, which a source of this kind cannot change'):
    class_names.match(source, categories('a', 'b'), 'the run')


def test_labels_of_several_files_mean_one_class():
  assert class_names.merge_names([('a', {1: 'cat', 2: '2'}), ('b', {2: 'dog'}), ('c', {1: 'kitty', 3: 'dog'})]) == \
    {1: 'cat', 2: 'dog', 3: 'dog'}
  with pytest.raises(UserError, match="^b: 1 is the label of 'dog', in the others that of 'cat', and 2 that of 'dog'"):
    class_names.merge_names([('a', {1: 'cat', 2: 'dog'}), ('b', {1: 'dog'})])
