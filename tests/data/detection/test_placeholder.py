"""Placeholder images with the categories of a run."""

import json

import pytest

from rethink_tf.data.detection.input import EvalInput
from rethink_tf.data.detection.placeholder import PlaceholderSource
from rethink_tf.data.detection.synthetic import SyntheticSource
from rethink_tf.errors import UserError


def test_inputs_do_not_log_it(tmp_path, caplog, see_logs):
  path = tmp_path / 'categories.json'
  path.write_text(json.dumps([{'id': 7, 'name': 'kite'}]))
  EvalInput(PlaceholderSource(str(path)), 1)
  assert not caplog.records
  EvalInput(SyntheticSource(2), 1)
  assert '2 images' in caplog.text


def test_categories_of_the_file(tmp_path):
  path = tmp_path / 'categories.json'
  path.write_text(json.dumps([{'id': 7, 'name': 'kite'}, {'id': 3, 'name': 'boat'}]))
  source = PlaceholderSource(str(path), training=False)
  assert [category.id for category in source.categories] == [3, 7] and source.num_classes == 2
  image = source.load(1).image
  assert image.shape == (*source.sizes[1], 3) and min(image.shape[:2]) >= 360
  assert len(source.image_ids) == 2


@pytest.mark.parametrize('text', [None, '', '{', '[]', '[{"id": 1}]', '[' * 100_000])
def test_invalid_files_are_rejected(tmp_path, text):
  path = tmp_path / 'categories.json'
  if text is not None:
    path.write_text(text)
  with pytest.raises(UserError, match='categories.json'):
    PlaceholderSource(str(path))
