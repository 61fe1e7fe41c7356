"""Runs whose data differs, and nothing else, are neither copies nor seeds of each other."""

import pytest

from rethink_tf.compare import copies, groups, same_data
from rethink_tf.compare.run_summary import read_runs
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder
from tests.compare.fake_runs import HALF, worse, write


def run(path, place, data, detected=HALF, fraction=1.0, **settings):
  """Write a run of the data in a folder. data: what its summaries tell it by; None: they are not recorded."""
  folder = RunFolder(write(path, detected, **settings))
  with open(path / 'config.gin', 'a') as config:
    config.write(f"\nrun.train_source = @train/coco()\nrun.eval_source = @eval/coco()\ncoco.data_dir = '{place}'\n"
                 f'train/coco.fraction = {fraction}\n')
  if data is not None:
    summary = {'name': place, 'images': 20, 'annotations': data}
    trained = {**summary, 'images': round(20 * fraction), 'annotations': f'{data} {fraction}'}
    identity.write(folder, None, identity.of([{'name': 'a'}], (path / 'config.gin').read_text(),
                                             {'train': trained, 'held_out': summary}), 0)
  return folder.path


def labels(paths):
  """What sets each group apart, with the number of its independent runs."""
  runs = copies.independent(read_runs(paths))
  return [(label, len(group)) for label, group in zip(groups.labels(groups.groups(runs)), groups.groups(runs),
                                                     strict=True)]


def test_each_data_set_is_a_group(tmp_path):
  paths = [run(tmp_path / f'{name}{seed}{init}', f'data/{name}', name, worse(k), seed=seed, init=init)
           for name in 'ab' for seed in (0, 1) for k, init in enumerate((None, 'w'))]
  assert labels(paths) == [('folder = a', 4), ('folder = b', 4)]
  assert same_data.differences(read_runs(paths)) == [], 'each has a verdict of its own'


@pytest.mark.parametrize('data', ['x', None])
def test_the_same_data_elsewhere_is_the_same(tmp_path, data):
  """Also where nothing is recorded, as by earlier versions."""
  paths = [run(tmp_path / 'a', 'data/a', 'x'), run(tmp_path / 'b', '/mnt/b/', data, seed=1)]
  assert labels(paths) == [('', 2)]


def test_folders_of_the_same_name_are_named_in_full(tmp_path):
  paths = [run(tmp_path / 'a', 'x/data', 'x'), run(tmp_path / 'b', 'y/data', 'y')]
  assert labels(paths) == [('folder = x/data', 1), ('folder = y/data', 1)]


def test_a_folder_whose_data_has_changed_is_one(tmp_path):
  assert labels([run(tmp_path / 'a', 'd', 'x'), run(tmp_path / 'b', 'd', 'y', seed=1)]) == [('', 2)]


def test_fractions_of_the_same_data_elsewhere_are_the_same_data(tmp_path):
  """As of a study of fractions whose sides were trained on two machines."""
  paths = [run(tmp_path / f'{place}{fraction}', f'/{place}/coco', 'x', init=init, fraction=fraction)
           for place, init, fraction in (('m', None, 0.1), ('m', None, 1.0), ('n', 'w', 1.0), ('n', 'w', 0.1))]
  assert labels(paths) == [('fraction = 0.1', 2), ('fraction = 1.0', 2)]
  other = [run(tmp_path / f'other{fraction}', '/o/coco', 'y', fraction=fraction) for fraction in (0.5, 1.0)]
  assert labels([*paths, *other]) == [(f'folder = {folder}, fraction = {fraction}', number) for folder, fraction, number
                                      in (('/m/coco', 0.1, 2), ('/m/coco', 1.0, 2), ('/o/coco', 0.5, 1),
                                          ('/o/coco', 1.0, 1))]
