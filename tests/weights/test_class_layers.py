"""Layers with an output per class follow the names of the classes."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.weights import class_layers
from rethink_tf.weights.contents import Contents
from rethink_tf.weights.detectron2 import Entry, identity

NAMES = ('cat', 'dog', 'bird')


@pytest.fixture
def contents(tmp_path):
  (tmp_path / 'run/checkpoints/step-00000004').mkdir(parents=True)
  categories = [{'id': 3 * k, 'name': name} for k, name in enumerate(NAMES)]
  (tmp_path / 'run/categories.json').write_text(json.dumps(categories))
  return made(own=True, checkpoint=str(tmp_path / 'run/checkpoints/step-00000004'))


def made(**fields):
  return Contents(**{name: None for name in Contents._fields} | {'path': 'runs/pets', **fields})


def arrays():
  """Layers whose last axis tells the class and the output of each column: 100 * class + output, -1 the background."""
  return {
    'box_predictor/classes/kernel': np.array([[-1, 0, 100, 200]] * 5),
    'box_predictor/classes/bias': np.array([-1, 0, 100, 200]),
    'box_predictor/deltas/bias': np.array([100 * k + i for k in range(3) for i in range(4)]),
    'cascade/predictors/0/classes/bias': np.array([-1, 0, 100, 200]), 'cascade/predictors/0/deltas/bias': np.arange(4),
    'mask_predictor/conv/kernel': np.array([[[[0, 100, 200]]]]), 'box_head/fc1/bias': np.arange(3)}


def test_outputs_are_reordered_by_name(contents):
  found = class_layers.match(contents, arrays(), ['bird', 'cat', 'dog'], 'detector')
  assert found['box_predictor/classes/bias'].tolist() == [-1, 200, 0, 100]
  assert found['box_predictor/classes/kernel'].tolist() == [[-1, 200, 0, 100]] * 5
  assert found['cascade/predictors/0/classes/bias'].tolist() == [-1, 200, 0, 100]
  assert found['box_predictor/deltas/bias'].tolist() == [200, 201, 202, 203, 0, 1, 2, 3, 100, 101, 102, 103]
  assert found['cascade/predictors/0/deltas/bias'].tolist() == [0, 1, 2, 3]  # class-agnostic
  assert found['mask_predictor/conv/kernel'].tolist() == [[[[200, 0, 100]]]]
  assert found['box_head/fc1/bias'].tolist() == [0, 1, 2]


def test_the_same_order_changes_nothing(contents):
  found = class_layers.match(contents, arrays(), NAMES, 'detector')
  assert all(np.array_equal(found[name], array) for name, array in arrays().items())


@pytest.mark.parametrize('classes, text', [
  (('cat', 'dog', 'fish'), r"3 there, 3 here; 'fish' is only here\): set PretrainedWeights.new = \('box_predictor/\*', "
   r"'cascade/predictors/\*', 'mask_predictor/\*'\) .*match_classes = True"),
  (('cat', 'dog'), "3 there, 2 here; 'bird' is only there"), (('cat', 'dog', 'bird', 'bird'), 'one is repeated')])
def test_other_classes_are_refused(contents, classes, text):
  with pytest.raises(UserError, match=text) as caught:
    class_layers.match(contents, arrays(), classes, 'detector')
  assert '\n' not in caught.value.line()
  new = ('box_predictor/*', 'mask_predictor/*', 'cascade/predictors/*')
  class_layers.match(contents, arrays(), classes, 'detector', new)


def test_outputs_of_common_classes_are_kept_when_asked(contents):
  given = arrays()
  entries = {name: Entry(tf.Variable(np.full([*array.shape[:-1], width], 7)), identity) for (name, array), width in zip(
    given.items(), (3, 3, 8, 3, 4, 2, 3), strict=True)}
  found = class_layers.match(contents, given, ['fish', 'dog'], 'detector', entries=entries)
  assert found['box_predictor/classes/bias'].tolist() == [-1, 7, 100]
  assert found['box_predictor/deltas/bias'].tolist() == [7, 7, 7, 7, 100, 101, 102, 103]
  assert found['cascade/predictors/0/deltas/bias'].tolist() == [0, 1, 2, 3]
  assert found['mask_predictor/conv/kernel'].tolist() == [[[[7, 100]]]]
  with pytest.raises(UserError, match="'fish' is only here.*anew$"):  # no class in common
    class_layers.match(contents, given, ['fish'], 'detector', entries=entries)


@pytest.mark.parametrize('name, background, pattern', [
  ('roi_heads.box_predictor.cls_score.bias', 1, 'roi_heads.box_predictor.*'),
  ('box_predictor/classes/bias', 1, 'box_predictor/*'), ('linear.bias', 0, 'linear.*')])
def test_another_number_of_classes_names_the_patterns(name, background, pattern):
  entries = {name: Entry(tf.Variable(np.zeros(3 + background)), identity)}
  arrays = {name: np.zeros(80 + background)}
  message = f"80 classes, the model has 3: set PretrainedWeights.new = ('{pattern}',)"
  with pytest.raises(UserError, match=re.escape(message)):
    class_layers.check_shapes('x', entries, arrays, ())
  class_layers.check_shapes('x', entries, arrays, (pattern,))
  class_layers.check_shapes('x', entries, {name: np.zeros(3 + background)}, ())


def test_backbones_have_no_classes(contents):
  class_layers.match(contents, arrays(), ['fish'], 'detector_backbone')


def test_labels_of_a_classifier(contents):
  found = class_layers.match(contents, {'linear/bias': np.array([0, 1, 2])}, ['dog', 'bird', 'cat'], 'classifier')
  assert found['linear/bias'].tolist() == [1, 2, 0]


def test_files_that_do_not_name_their_classes(tmp_path, caplog):
  given = arrays()
  for contents in (made(own=False), made(own=True, checkpoint=str(tmp_path / 'x/checkpoints/step-00000001'))):
    assert class_layers.match(contents, given, ['fish'], 'detector').keys() == given.keys()
  assert caplog.text.count('does not name its classes') == 2
