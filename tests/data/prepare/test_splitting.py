"""Laws of the division: balanced classes, groups on one side, independence of the order."""

import cv2
import numpy as np
import pytest

from rethink_tf.data.prepare.splitting import (
  Look,
  hold_out,
  keep_videos,
  near_copies,
  near_duplicates,
  near_pairs,
  thumbnail,
)


def many(count=2000, seed=0):
  """Return the classes of images: frequent to rare, several an image, some without an object."""
  random = np.random.default_rng(seed)
  shares = {'a': 0.7, 'b': 0.3, 'c': 0.05, 'd': 0.01}
  return [tuple(name for name, share in shares.items() if random.random() < share) for _ in range(count)]


@pytest.mark.parametrize('fraction', [0.1, 0.2, 0.5])
def test_every_class_has_the_fraction(fraction):
  classes = many()
  names = [f'{i}.jpg' for i in range(len(classes))]
  held = hold_out(classes, np.arange(len(classes)), names, fraction, 0)
  assert abs(held.sum() - fraction * len(classes)) <= 4
  for one in ('a', 'b', 'c', 'd', None):
    having = np.array([one in found if one else not found for found in classes])
    assert abs((held & having).sum() - fraction * having.sum()) <= 1.5, one


def test_the_order_of_the_images_does_not_matter_and_the_seed_does():
  classes, names = many(300), [f'{i}.jpg' for i in range(300)]
  held = hold_out(classes, np.arange(300), names, 0.2, 0)
  order = np.random.default_rng(1).permutation(300)
  again = hold_out([classes[i] for i in order], np.arange(300), [names[i] for i in order], 0.2, 0)
  assert {names[i] for i in np.flatnonzero(held)} == {names[order[i]] for i in np.flatnonzero(again)}
  assert (held != hold_out(classes, np.arange(300), names, 0.2, 1)).any()


def test_groups_stay_together():
  classes = many(400)
  groups = np.random.default_rng(2).integers(0, 90, 400)
  held = hold_out(classes, groups, [str(i) for i in range(400)], 0.25, 0)
  assert all(len(set(held[groups == group])) == 1 for group in np.unique(groups))
  assert 80 <= held.sum() <= 120


def test_large_groups_and_classes_of_one_image_leave_the_fraction_as_it_is():
  groups = np.array([0] * 10 + list(range(1, 31)))
  for seed in range(5):
    assert hold_out([('a',)] * 40, groups, [str(i) for i in range(40)], 0.25, seed).sum() == 10
    assert hold_out([(i,) for i in range(40)], np.arange(40), [str(i) for i in range(40)], 0.5, seed).sum() == 20


@pytest.mark.parametrize('count', [2, 3])
@pytest.mark.parametrize('fraction', [0.01, 0.99])
def test_neither_side_is_empty(count, fraction):
  held = hold_out([('a',)] * count, np.arange(count), [str(i) for i in range(count)], fraction, 0)
  assert 0 < held.sum() < count


def scene(seed):
  """Return a smooth random image, as those of cameras."""
  random = np.random.default_rng(seed)
  return cv2.resize(random.integers(0, 255, [12, 16, 3]).astype(np.uint8), (160, 120), interpolation=cv2.INTER_CUBIC)


def groups_of(images, names=None):
  found = [thumbnail(image) for image in images]
  return near_duplicates(names or [f'{i}.jpg' for i in range(len(images))],
                         np.array([bits for bits, _ in found], np.uint64), np.stack([small for _, small in found]))


def test_near_duplicates():
  scenes = [scene(seed) for seed in range(40)]
  again = cv2.imdecode(cv2.imencode('.jpg', scenes[3], [cv2.IMWRITE_JPEG_QUALITY, 40])[1], cv2.IMREAD_COLOR)
  smaller, brighter = cv2.resize(scenes[5], (80, 60)), np.clip(scenes[7].astype(int) + 2, 0, 255).astype(np.uint8)
  groups = groups_of([*scenes, again, smaller, brighter, scenes[9]])
  assert groups[40:].tolist() == [3, 5, 7, 9] and len(np.unique(groups)) == 40


def test_near_duplicates_are_those_that_a_comparison_of_all_pairs_finds():
  """Copies of copies with up to five bits changed and up to five grey levels added, among images unlike each other."""
  random = np.random.default_rng(0)
  hashes = random.integers(0, 2 ** 64, 200, np.uint64).tolist()
  thumbnails = list(random.integers(0, 200, (200, 16, 16)))
  for _ in range(200):
    of, more = int(random.integers(len(hashes))), int(random.integers(3, 6))
    flipped = random.choice(64, random.integers(0, 6), replace=False)
    hashes.append(hashes[of] ^ sum(1 << int(bit) for bit in flipped))
    thumbnails.append(thumbnails[of] + more)
  order = random.permutation(len(hashes))
  hashes, thumbnails = [hashes[i] for i in order], np.uint8([thumbnails[i] for i in order])
  expected = np.arange(len(hashes))
  for i, (one, small) in enumerate(zip(hashes, thumbnails.astype(float), strict=True)):
    for j in range(i):
      if (one ^ hashes[j]).bit_count() <= 3 and np.abs(small - thumbnails[j]).mean() <= 4:
        pair = sorted((expected[i], expected[j]))
        expected[expected == pair[1]] = pair[0]
  found = near_duplicates([''] * len(hashes), np.array(hashes, np.uint64), thumbnails)
  np.testing.assert_array_equal(found, expected)
  assert 200 < len(np.unique(found)) < 330


def test_a_hash_tells_which_of_two_neighbours_is_brighter():
  means = np.random.default_rng(0).integers(0, 256, (8, 9))
  bits, small = thumbnail(np.uint8(np.repeat(means, 16, 0).repeat(16, 1))[..., None].repeat(3, 2))
  brighter = [right > left for row in means for left, right in zip(row[:-1], row[1:], strict=True)]
  assert f'{bits:064b}' == ''.join(str(int(one)) for one in brighter)
  assert small.shape == (16, 16) and small.mean() == pytest.approx(means.mean(), abs=1)


def test_images_with_a_near_copy_are_counted():
  looks = [Look('unreadable'), *(Look('', *thumbnail(scene(seed))) for seed in (0, 1, 0, 2, 1, 0, 3))]
  assert near_copies(looks) == 5 and near_copies(looks[:3]) == 0


def test_augmented_copies_of_roboflow():
  names = ['a_jpg.rf.0f3b.jpg', 'b_jpg.rf.77aa.jpg', 'a_jpg.rf.99cd.jpg', 'a_jpg.jpg']
  assert groups_of([scene(seed) for seed in range(4)], names).tolist() == [0, 1, 0, 3]


def test_near_duplicates_of_two_splits():
  def looks(*images):
    return [Look('unreadable'), *(Look(f'frame_jpg.rf.{i}.jpg', *thumbnail(image)) for i, image in enumerate(images))]

  plain = np.full([120, 160, 3], 9, np.uint8)
  first, second = looks(scene(0), scene(1), plain), looks(plain, scene(2), cv2.resize(scene(1), (80, 60)), scene(0))
  assert near_pairs(first, second) == [(2, 3), (1, 4)] and near_pairs([], second) == []
  assert near_pairs(first[1:], second[::-1]) == [(0, 0), (1, 1)] and near_pairs(first[:2], first[1:]) == [(1, 0)]


def test_plain_images_of_other_brightness_are_no_duplicates():
  assert len(np.unique(groups_of([np.full([50, 60, 3], value, np.uint8) for value in (10, 30, 50)]))) == 3


def test_videos_are_whole_if_there_are_enough_and_otherwise_blocks():
  groups, whole = keep_videos(np.arange(12), [None, None, *'aabbccddee'], 0.2)
  assert whole and groups.tolist() == [0, 1, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10]
  groups, whole = keep_videos(np.zeros(12, np.int64), ['a'] * 10 + [None] * 2, 0.2)
  assert not whole and groups.tolist() == [0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 0, 0]
