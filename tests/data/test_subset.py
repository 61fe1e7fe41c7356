"""Seeded subsets: nested, independent of order, and the images that training drops."""

import numpy as np
import pytest

from rethink_tf.data.subset import select, subset
from rethink_tf.errors import UserError

GOLDEN = [233, 250, 286, 453, 509, 728, 781, 844]  # also computed with Python's unbounded integers
IDS = np.sort(np.random.default_rng(0).choice(600_000, 5000, replace=False))


def chosen(ids, **limits):
  return set(ids[subset(ids, **limits)].tolist())


def test_subsets_are_nested():
  sizes = [1, 10, 350, 1000, 3500, 5000]
  sets = [chosen(IDS, num_images=size) for size in sizes]
  assert [len(s) for s in sets] == sizes
  assert all(small < large for small, large in zip(sets, sets[1:], strict=False))
  assert chosen(IDS, fraction=0.1) < chosen(IDS, num_images=501)  # fractions and counts nest in each other too


@pytest.mark.parametrize('fraction, count', [(1.0, 5000), (0.5, 2500), (0.1, 500), (0.00031, 2), (1e-9, 1)])
def test_fraction_counts_exactly(fraction, count):
  assert len(subset(IDS, fraction)) == count


def test_order_of_the_images_does_not_matter():
  shuffled = np.random.default_rng(1).permutation(IDS)
  assert chosen(IDS, num_images=700, seed=3) == chosen(shuffled, num_images=700, seed=3)


def test_other_images_do_not_change_a_rank():
  fewer = IDS[::2]
  kept = chosen(IDS, num_images=1000)
  assert kept & set(fewer.tolist()) <= chosen(fewer, num_images=1000)


def test_seeds_give_different_subsets():
  overlap = len(chosen(IDS, num_images=500) & chosen(IDS, num_images=500, seed=1))
  assert 20 < overlap < 90  # independent draws share 10 %
  assert chosen(IDS, num_images=500, seed=-1) != chosen(IDS, num_images=500, seed=1)


def test_subset_is_spread_over_the_ids():
  picked = np.sort(IDS[subset(IDS, num_images=1000)])
  assert abs(picked.mean() / IDS.mean() - 1) < 0.05


def test_golden_selection():
  # Published runs identify their subset by (number, seed): it may not change with NumPy or the machine.
  assert subset(np.arange(1000), num_images=8).tolist() == GOLDEN
  assert subset(np.arange(1000, dtype=np.int32), num_images=8).tolist() == GOLDEN


@pytest.mark.parametrize('limits', [{'fraction': 0.0}, {'fraction': 1.5}, {'fraction': float('nan')},
                                    {'num_images': 0}, {'num_images': 5001}, {'num_images': 3, 'fraction': 0.5}])
def test_limits_out_of_range(limits):
  with pytest.raises(UserError, match=next(iter(limits))):
    subset(IDS, **limits)


def test_select_drops_images_without_boxes_only_in_training():
  ids, boxes = np.arange(10), np.array([0, 1] * 5)
  assert select('d', ids, boxes, True, 1.0, None, 0).tolist() == [1, 3, 5, 7, 9]
  assert select('d', ids, boxes, False, 1.0, None, 0).tolist() == list(range(10))
  assert len(select('d', ids, boxes, True, 1.0, 5, 0)) == 5  # counts images that are trained on


def test_select_for_keypoints_drops_images_without_visible_ones(see_logs, caplog):
  ids, boxes, visible = np.arange(6), np.array([0, 1, 2, 1, 3, 0]), np.array([0, 0, 5, 1, 0, 0])
  assert select('d', ids, boxes, True, 1.0, None, 0, visible).tolist() == [2, 3]
  assert 'd: 2 of 6 images have no box' in caplog.text
  assert 'd: 2 of 6 images have boxes but no visible keypoint' in caplog.text
  assert select('d', ids, boxes, False, 1.0, None, 0, visible).tolist() == list(range(6))
  with pytest.raises(UserError, match='d: none of its 6 images has a visible keypoint'):
    select('d', ids, boxes, True, 1.0, None, 0, np.zeros(6, int))


def test_select_without_remaining_images():
  with pytest.raises(UserError, match='d: lists no images'):
    select('d', np.zeros(0, int), np.zeros(0, int), False, 1.0, None, 0)
  with pytest.raises(UserError, match='none of its 2 images has a box'):
    select('d', np.arange(2), np.zeros(2, int), True, 1.0, None, 0)


def test_a_subset_without_boxes_is_refused():
  ids, boxes = np.arange(10), np.zeros(10, int)
  chosen = subset(ids, num_images=3)
  boxes[np.setdiff1d(ids, chosen)[0]] = 1  # an image of the data set, not of the subset
  with pytest.raises(UserError, match='none of the 3 images of the subset has a box .*: raise num_images'):
    select('d', ids, boxes, True, 1.0, 3, 0, filter_empty=False)
  assert len(select('d', ids, boxes, True, 1.0, None, 0, filter_empty=False)) == 10


@pytest.mark.parametrize('limits, cure', [
  ({'fraction': 0.5, 'num_images': 2}, 'leave one at its default, fraction = 1.0 or num_images = None'),
  ({'num_images': 11}, 'None is all of them'), ({'fraction': 0.0}, '1, which is all images')])
def test_refusals_say_how_to_take_all_images(limits, cure):
  with pytest.raises(UserError, match=cure):
    subset(np.arange(10), **limits)
