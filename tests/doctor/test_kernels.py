"""The doctor passes sound kernels and finds broken ones: each is broken in turn."""

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.doctor import kernels
from rethink_tf.models import norms
from rethink_tf.ops import group_norm, masks, matching, nms, paste, roi_align

DEVICE = '/CPU:0'


def failed(rows):
  return [row.check for row in rows if row.result != 'ok']


@pytest.mark.parametrize('name', ['roi_align', 'nms', 'matching', 'paste', 'batch_norm',
                                  pytest.param('group_norm', marks=pytest.mark.slow)])
def test_sound_kernels_pass(name):
  rows = list(kernels.KERNELS[name](DEVICE))
  assert rows and not failed(rows), rows


def test_sync_batch_norm_passes(two_replicas):
  rows = list(kernels.sync_batch_norm(two_replicas, '2 replicas'))
  assert len(rows) == 3 and not failed(rows), rows


def with_argument(function, position, change):
  """The function with one argument changed."""
  def broken(*arguments, **others):
    arguments = list(arguments)
    arguments[position] = change(arguments[position])
    return function(*arguments, **others)
  return broken


def shifted(pixels):
  return lambda boxes: boxes + np.float32(pixels)


def backwards(scores):
  return tf.where(scores > -1e8, -scores, scores)


def of_one_replica(tensors):
  context = tf.distribute.get_replica_context()
  return [tensor * float(context.num_replicas_in_sync) for tensor in tensors]


# What is replaced, by what, and the check that must fail.
BROKEN = {
  'RoIAlign shifted by half a pixel': (roi_align, 'roi_align', with_argument(roi_align.roi_align, 1, shifted(0.5)),
                                       'roi_align'),
  'RoIAlign samples once': (roi_align, '_taps', with_argument(roi_align._taps, 4, lambda ratio: 1), 'roi_align'),
  'RoIAlign takes the level above': (roi_align, 'assign_levels', lambda boxes, low, high: tf.minimum(
    ASSIGN(boxes, low, high) + 1, high), 'roi_align'),
  'gathered RoIAlign with a factor': (roi_align, '_gathered_product', with_argument(
    roi_align._gathered_product, 2, lambda weight: weight * 1.02), 'roi_align'),
  'NMS in the wrong order': (nms, '_combined', with_argument(nms._combined, 1, backwards), 'nms'),
  'NMS of GPUs in the wrong order': (nms, '_per_group', with_argument(nms._per_group, 1, backwards), 'nms'),
  'batched NMS in the wrong order': (nms, '_batched', with_argument(nms._batched, 1, backwards), 'nms'),
  'NMS with another threshold': (nms, '_combined', with_argument(nms._combined, 2, lambda iou: iou + 0.05), 'nms'),
  'matching without the best anchor': (matching, 'match_anchors', lambda overlaps, *others: MATCH(
    tf.where(overlaps < 0.7, overlaps * 0.0, overlaps), *others), 'matching'),
  'proposals at another IoU': (matching, 'match_proposals', lambda *inputs: PROPOSALS(*inputs, 0.6), 'matching'),
  'paste shifted by half a pixel': (paste, 'paste_pixels', with_argument(paste.paste_pixels, 1, shifted(0.5)),
                                    'paste'),
  'BatchNorm with another epsilon': (norms, 'batch_norm', with_argument(norms.batch_norm, 3, lambda _: 1e-3),
                                     'batch_norm'),
  'paste of the paper': (masks, 'paste', lambda *inputs: PASTE(*inputs, 'detectron'), 'paste'),
}
ASSIGN, MATCH, PROPOSALS, PASTE = (roi_align.assign_levels, matching.match_anchors, matching.match_proposals,
                                   masks.paste)
CHEAP = ('RoIAlign shifted by half a pixel', 'NMS in the wrong order', 'matching without the best anchor',
         'paste shifted by half a pixel')


@pytest.mark.parametrize('name', [name if name in CHEAP else pytest.param(name, marks=pytest.mark.slow)
                                  for name in BROKEN])
def test_a_broken_kernel_is_found(monkeypatch, name):
  module, attribute, broken, check = BROKEN[name]
  monkeypatch.setattr(module, attribute, broken)
  assert failed(kernels.KERNELS[check](DEVICE))


@pytest.mark.slow
@pytest.mark.parametrize('attribute, change', [
  ('_forward', lambda f: with_argument(f, 1, lambda epsilon: 1e-3)),  # Keras' epsilon
  ('_forward', lambda f: with_argument(f, 0, lambda groups: groups // 2)),
  ('_backward', lambda f: lambda *inputs: (f(*inputs)[0] * 1.01, *f(*inputs)[1:])),
  ('_backward', lambda f: lambda *inputs: (f(*inputs)[0], f(*inputs)[2], f(*inputs)[1])),
  ('_forward', lambda f: lambda *inputs: (f(*inputs)[0] * np.nan, *f(*inputs)[1:])),
], ids=['epsilon', 'groups', 'gradient', 'order', 'NaN'])
def test_a_broken_group_norm_is_found(monkeypatch, attribute, change):
  original = getattr(group_norm, attribute)
  monkeypatch.setattr(group_norm, attribute, change(original))
  group_norm._group_norm.cache_clear()
  found = failed(kernels.group_norm(DEVICE))
  monkeypatch.undo()
  group_norm._group_norm.cache_clear()
  assert found and all(name.startswith('GroupNorm') for name in found)


@pytest.mark.slow
@pytest.mark.parametrize('broken', [of_one_replica], ids=['own statistics'])
def test_a_broken_sync_batch_norm_is_found(monkeypatch, two_replicas, broken):
  monkeypatch.setattr(norms, '_sum_replicas', broken)
  assert 'SyncBN forward' in failed(kernels.sync_batch_norm(two_replicas, '2 replicas'))


def test_differences_are_relative_and_nan_is_one():
  assert kernels.difference([1.0, 10.0], [1.0, 10.1]) == pytest.approx(0.1 / 10.1)
  assert np.isnan(kernels.difference([np.nan], [1.0])) and kernels.difference([1.0], [[1.0]]) == np.inf
