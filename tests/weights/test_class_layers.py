"""Layers with an output per class follow the names of the classes."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.weights import class_layers
from rethink_tf.weights.contents import Contents
from rethink_tf.weights.detectron2 import Entry, background_first, identity, kernel, swap_deltas

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


def detectron2_arrays():
  """The same layers of a file of Detectron2: outputs come first, x before y, and the background is the last class."""
  deltas = np.array([100 * k + i for k in range(3) for i in (1, 0, 3, 2)])
  return {
    'roi_heads.box_predictor.cls_score.weight': np.array([[0, 100, 200, -1]] * 5).T,
    'roi_heads.box_predictor.cls_score.bias': np.array([0, 100, 200, -1]),
    'roi_heads.box_predictor.bbox_pred.bias': deltas,
    'roi_heads.mask_head.predictor.weight': np.array([0, 100, 200]).reshape(3, 1, 1, 1),
    'roi_heads.box_head.fc1.bias': np.arange(3)}


CONVERT = {'cls_score.weight': lambda w: background_first(w).T, 'cls_score.bias': background_first,
           'bbox_pred.bias': swap_deltas, 'predictor.weight': kernel}


def entries_of(arrays, classes):
  """Entries of a model with so many classes, whose initial values are all 7."""
  entries = {}
  for name, array in arrays.items():
    convert = next((each for end, each in CONVERT.items() if name.endswith(end)), identity)
    shape, per_class = convert(array).shape, {3: classes, 4: classes + 1, 12: 4 * classes}
    fixed = 'box_head' in name or 'cascade/predictors/0/deltas' in name
    width = shape[-1] if fixed else per_class[shape[-1]]
    entries[name] = Entry(tf.Variable(np.full([*shape[:-1], width], 7)), convert)
  return entries


def matched(contents, arrays, classes, part='detector', new=(), merge=False):
  """The values that a model of these classes gets."""
  entries = entries_of(arrays, len(classes))
  found = class_layers.match(contents, entries, arrays, classes, part, new, merge)
  return {name: found[name].convert(array) for name, array in arrays.items()}


def test_outputs_are_reordered_by_name(contents):
  found = matched(contents, arrays(), ['bird', 'cat', 'dog'])
  assert found['box_predictor/classes/bias'].tolist() == [-1, 200, 0, 100]
  assert found['box_predictor/classes/kernel'].tolist() == [[-1, 200, 0, 100]] * 5
  assert found['cascade/predictors/0/classes/bias'].tolist() == [-1, 200, 0, 100]
  assert found['box_predictor/deltas/bias'].tolist() == [200, 201, 202, 203, 0, 1, 2, 3, 100, 101, 102, 103]
  assert found['cascade/predictors/0/deltas/bias'].tolist() == [0, 1, 2, 3]  # class-agnostic
  assert found['mask_predictor/conv/kernel'].tolist() == [[[[200, 0, 100]]]]
  assert found['box_head/fc1/bias'].tolist() == [0, 1, 2]


def test_the_same_order_changes_nothing(contents):
  found = matched(contents, arrays(), NAMES)
  assert all(np.array_equal(found[name], array) for name, array in arrays().items())


@pytest.mark.parametrize('classes, text', [
  (('cat', 'dog', 'fish'), r"3 there, 3 here; 'fish' is only here\): set PretrainedWeights.new = \('box_predictor/\*', "
   r"'cascade/predictors/\*', 'mask_predictor/\*'\) .*match_classes = True"),
  (('cat', 'dog'), "3 there, 2 here; 'bird' is only there"), (('cat', 'dog', 'bird', 'bird'), 'one is repeated')])
def test_other_classes_are_refused(contents, classes, text):
  with pytest.raises(UserError, match=text) as caught:
    matched(contents, arrays(), classes)
  assert '\n' not in caught.value.line()
  matched(contents, arrays(), classes, new=('box_predictor/*', 'mask_predictor/*', 'cascade/predictors/*'))


def test_outputs_of_common_classes_are_kept_when_asked(contents):
  found = matched(contents, arrays(), ['fish', 'dog'], merge=True)
  assert found['box_predictor/classes/bias'].tolist() == [-1, 7, 100]
  assert found['box_predictor/deltas/bias'].tolist() == [7, 7, 7, 7, 100, 101, 102, 103]
  assert found['cascade/predictors/0/deltas/bias'].tolist() == [0, 1, 2, 3]
  assert found['mask_predictor/conv/kernel'].tolist() == [[[[7, 100]]]]
  found = matched(contents, arrays(), ['dog'], merge=True)  # a class of the file's, alone
  assert found['box_predictor/classes/bias'].tolist() == [-1, 100]
  found = matched(contents, arrays(), ['cat', 'bird', 'cat'], merge=True)  # the second of a name is reinitialized
  assert found['box_predictor/classes/bias'].tolist() == [-1, 0, 200, 7]


@pytest.mark.parametrize('which', [arrays, detectron2_arrays])
def test_nothing_in_common_is_refused_with_the_layers_to_reinitialize(contents, which):
  given = which()
  if which is detectron2_arrays:
    contents = made(own=False, classes=NAMES)
  with pytest.raises(UserError, match=r"none of which has the name of one here .*'fish' is only here.*per class, or "
                     "PretrainedWeights.match_classes = 'allow_none'$") as caught:
    matched(contents, given, ['fish'], merge=True)
  assert str(class_layers.patterns(given)) in caught.value.line()
  matched(contents, given, ['fish'], merge=True, new=class_layers.patterns(given))
  found = matched(contents, given, ['fish'], merge=class_layers.ALLOW_NONE)
  scores = next(array for name, array in found.items() if name.endswith(('classes/bias', 'cls_score.bias')))
  assert scores.tolist() == [-1, 7]  # the background is the file's


@pytest.mark.parametrize('classes, merge, scores, boxes, masks', [
  (['bird', 'cat', 'dog'], False, [-1, 200, 0, 100], [200, 0, 100], [200, 0, 100]),
  (['fish', 'dog'], True, [-1, 7, 100], [None, 100], [7, 100])])
def test_files_of_detectron2_by_name(classes, merge, scores, boxes, masks):
  found = matched(made(own=False, classes=NAMES), detectron2_arrays(), classes, merge=merge)
  assert found['roi_heads.box_predictor.cls_score.bias'].tolist() == scores
  assert found['roi_heads.box_predictor.cls_score.weight'].tolist() == [scores] * 5
  assert found['roi_heads.box_predictor.bbox_pred.bias'].tolist() == [
    7 if box is None else box + i for box in boxes for i in range(4)]
  assert found['roi_heads.mask_head.predictor.weight'].ravel().tolist() == masks
  assert found['roi_heads.box_head.fc1.bias'].tolist() == [0, 1, 2]


def test_another_spelling_is_named(contents, caplog):
  caplog.set_level('INFO')
  with pytest.raises(UserError, match=r"of one here \('Cat' is 'cat' there: rename it to keep its outputs\)"):
    matched(contents, arrays(), ['Cat', 'fish'], merge=True)
  matched(contents, arrays(), ['bird', 'DOG'], merge=True)
  assert '1 of 2 classes take their outputs from it (bird)' in caplog.text
  assert "the others are reinitialized ('DOG' is 'dog' there" in caplog.text


def test_the_number_of_names_is_that_of_the_outputs():
  with pytest.raises(UserError, match='outputs for 3 classes, and 2 names of classes: give .*file_classes'):
    matched(made(own=False, classes=('cat', 'dog')), detectron2_arrays(), ['cat', 'dog', 'bird'])


@pytest.mark.parametrize('given', ['lvis', '', (), (1, 2)])
def test_names_of_a_file(given):
  assert class_layers.named(None) is None and class_layers.named(['a']) == ('a',)
  assert len(class_layers.named('coco')) == 80
  with pytest.raises(UserError, match="file_classes = .*: use 'coco'"):
    class_layers.named(given)


def test_heads_that_one_side_lacks(contents, caplog):
  caplog.set_level('INFO')
  entries, given = class_layers.match_heads(
    contents, {'keypoint_head/a': 1, 'box_head/a': 2, 'mask_head/b': 3}, {'mask_head/b': 4, 'mask_predictor/c': 5})
  assert entries == {'box_head/a': 2, 'mask_head/b': 3} and given == {'mask_head/b': 4}
  assert 'keypoint_head is not in it and is reinitialized' in caplog.text
  assert 'mask_predictor is not loaded: the model has none' in caplog.text


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
  found = matched(contents, arrays(), ['fish'] * 3, 'detector_backbone')
  assert all(np.array_equal(found[name], array) for name, array in arrays().items())


def test_labels_of_a_classifier(contents):
  found = matched(contents, {'linear/bias': np.array([0, 1, 2])}, ['dog', 'bird', 'cat'], 'classifier')
  assert found['linear/bias'].tolist() == [1, 2, 0]


def test_files_that_do_not_name_their_classes(tmp_path, caplog):
  for contents in (made(own=False), made(own=True, checkpoint=str(tmp_path / 'x/checkpoints/step-00000001'))):
    found = matched(contents, arrays(), ['fish'] * 3)
    assert all(np.array_equal(found[name], array) for name, array in arrays().items())
    with pytest.raises(UserError, match="does not name its classes: set PretrainedWeights.file_classes"):
      matched(contents, arrays(), ['fish'] * 3, merge=True)
  assert caplog.text.count('does not name its classes') == 2
