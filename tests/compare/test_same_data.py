"""Runs of other classes, or evaluated on other images, are named in a comparison."""

import pytest

from rethink_tf.compare import same_data
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from tests.compare.fake_runs import HALF, write


@pytest.fixture
def runs(tmp_path):
  """Make runs of these (classes, held-out summary)."""
  def make(*each):
    paths = []
    for name, (classes, held_out) in zip('abc', each, strict=False):
      paths.append(write(tmp_path / name, HALF))
      if classes is not None:
        categories = [{'id': k, 'name': one} for k, one in enumerate(classes)]
        identity.write(RunFolder(paths[-1]), None, identity.of(categories, '', {'held_out': held_out}), 0)
    return read_runs(paths)
  return make


def summary(images=36, annotations='x'):
  return {'name': 'pets/val', 'images': images, 'instances': 50, 'annotations': annotations, 'files': None}


def test_the_same_data_in_another_order_of_classes(runs):
  assert same_data.differences(runs((['cat', 'dog'], summary()), (['dog', 'cat'], summary()))) == []


def test_runs_of_earlier_versions_are_not_judged(runs):
  assert same_data.differences(runs((None, None), (['cat'], summary()))) == []


def test_classes_that_one_side_lacks(runs):
  found = same_data.differences(runs((['cat', 'dog'], summary()), (['cat'], summary()),
                                     (['cat', 'dog', 'cow'], summary())))
  assert found == [f'{name} has other classes than a ({words}): their AP is not of the same task.'
                   for name, words in (('b', "'dog' only in a"), ('c', "'cow' only there"))]


def test_differences_are_named(runs):
  found = same_data.differences(runs((['cat', 'dog'], summary()), (['cat', 'bird'], summary()),
                                     (['cat', 'dog'], summary(60))))
  assert found == ["b has other classes than a ('bird' only there, 'dog' only in a): their AP is not of the same task.",
                   'c was evaluated on other held-out data than a (36 -> 60 images): their AP is not of the '
                   'same images.']


def test_training_data_that_changed_under_the_same_settings(tmp_path):
  paths = []
  for name, rate, data in (('a', 0.02, summary(36)), ('b', 0.02, summary(60)), ('c', 0.01, summary(60)),
                           ('d', 0.02, None)):
    paths.append(write(tmp_path / name, HALF, rate=rate))
    splits = {} if data is None else {'train': data}
    identity.write(RunFolder(paths[-1]), None, identity.of([{'id': 0, 'name': 'cat'}], '', splits), 0)
  assert same_data.differences(read_runs(paths)) == [
    'b was trained on other data than a (36 -> 60 images), by the same settings: what differs between them may be due '
    'to it.']
  assert same_data.differences(read_runs(paths[:1])) == []
