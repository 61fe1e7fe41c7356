"""torchvision's VGG: features and fully connected layers of the source, and one line for every mismatch."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.models.fpn import SingleLevel
from rethink_tf.models.heads import BoxHead, RPNHead
from rethink_tf.models.norms import group_norm
from rethink_tf.models.rois import Anchors
from rethink_tf.models.vgg import CONVOLUTIONS, VGG
from rethink_tf.weights import formats
from rethink_tf.weights.options import command_line
from rethink_tf.weights.pretrained import PretrainedWeights
from tests import tiny
from tests.weights import files, reference

WIDTH, FC, DEPTH = 4, 8, 11


def arrays():
  """A state dict of torchvision's names: a convolution and its ReLU count two in `features`, a pooling one."""
  rng = np.random.default_rng(3)
  found, number, into = {}, 0, 3
  for convolutions, factor in zip(CONVOLUTIONS[DEPTH], (1, 2, 4, 8, 8), strict=True):
    for _ in range(convolutions):
      out = WIDTH * factor
      found[f'features.{number}.weight'] = rng.normal(0, np.sqrt(2 / (9 * into)), (out, into, 3, 3)).astype('f')
      found[f'features.{number}.bias'] = rng.normal(0, 0.1, out).astype('f')
      number, into = number + 2, out
    number += 1
  for number, shape in ((0, (FC, 49 * into)), (3, (FC, FC)), (6, (10, FC))):
    found[f'classifier.{number}.weight'] = rng.normal(0, 0.1, shape).astype('f')
    found[f'classifier.{number}.bias'] = rng.normal(0, 0.1, shape[0]).astype('f')
  return found


def write(tmp_path, content):
  path = tmp_path / 'vgg.pth'
  files.zipped(path, *files.plain(content, legacy=False))
  return str(path)


def detector(box_head=None, **vgg):
  model = tiny.detector(
    backbone=VGG(DEPTH, width=WIDTH, **vgg), fpn=SingleLevel(), rpn_head=RPNHead(16, 6), mask_head=None,
    anchors=Anchors((16, 32)), box_head=box_head or BoxHead(0, 2, fc_width=FC), pixel_mean=reference.RGB['mean'],
    pixel_std=reference.RGB['std'])
  model(tf.zeros([1, 64, 64, 3], tf.uint8), tf.constant([[64.0, 64.0]]))
  return model


def expected_features(content, image):
  x = (image.astype(np.float64) - np.array(reference.RGB['mean'])) / np.array(reference.RGB['std'])
  number, maps = 0, []
  for group, convolutions in enumerate(CONVOLUTIONS[DEPTH]):
    if group:
      number += 1
      x = np.max([x[i::2, j::2] for i in (0, 1) for j in (0, 1)], axis=0)
    for _ in range(convolutions):
      x = reference.convolve(x, content[f'features.{number}.weight'], 1, 1, 1) + content[f'features.{number}.bias']
      x, number = reference.relu(x), number + 2
    maps.append(x)
  return dict(zip(('C2', 'C3', 'C4'), maps[2:], strict=True))


def test_features_are_those_of_the_source(tmp_path):
  content, model, image = arrays(), detector(), reference.random_image()
  path = write(tmp_path, content)
  loaded = reference.check(path, model, expected_features(content, image), image)
  assert loaded.variables == {id(v) for v in [*model.backbone.variables, *model.box_head.variables]}
  assert len(loaded.names) == len(content) - 2  # without the classifier
  found = formats.read(path)
  assert (found.norm, found.channels, found.architecture) == ('none', 'rgb', None)
  assert '--gin_file=gin_configs/models/vgg16.gin' in command_line(found)


def test_fully_connected_layers_are_those_of_torch(tmp_path):
  content, model = arrays(), detector()
  PretrainedWeights(write(tmp_path, content))(model)
  pooled = np.random.default_rng(1).normal(size=(1, 2, 7, 7, 8 * WIDTH)).astype('f')
  x = pooled[0].transpose(0, 3, 1, 2).reshape(2, -1)  # torch flattens channels first
  for layer in ('classifier.0', 'classifier.3'):
    x = np.maximum(x @ content[f'{layer}.weight'].T + content[f'{layer}.bias'], 0)
  np.testing.assert_allclose(model.box_head(tf.constant(pooled))[0], x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('change, make, message', [
  ({}, lambda: reference.detector(mean=reference.RGB['mean'], std=reference.RGB['std']), r'@VGG\(\)'),
  ({}, lambda: detector(norm=functools.partial(group_norm, groups=4)), 'VGG.norm = @no_norm'),
  ({}, lambda: detector(BoxHead(0, 1, fc_width=FC)), 'fc6.bias'),
  ({'features.0.bias': None}, detector, 'conv1_1.bias'),
  ({'features.1.weight': np.ones(4, 'f')}, detector, 'BatchNorm'),
], ids=['resnet', 'norm', 'head', 'missing', 'batch norm'])
def test_mismatches_are_refused_before_a_variable_changes(tmp_path, change, make, message):
  content = {name: array for name, array in (arrays() | change).items() if array is not None}
  model = make()
  before = [v.numpy() for v in model.variables]
  with pytest.raises(UserError, match=message) as error:
    PretrainedWeights(write(tmp_path, content))(model)
  assert '\n' not in str(error.value)
  for a, b in zip(before, model.variables, strict=True):
    np.testing.assert_array_equal(a, b)
