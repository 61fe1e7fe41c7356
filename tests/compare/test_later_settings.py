"""Runs of an earlier version, which lacks parameters that were added since, are compared with later ones."""

from rethink_tf.compare import later_settings
from rethink_tf.compare.groups import groups
from rethink_tf.compare.run_summary import read_runs
from tests.compare.fake_runs import HALF, write

OLD = {'Resize.short_side': (800,), 'train/coco.split': 'train'}


def test_what_is_lacking_has_its_default():
  new = OLD | {'Resize.max_side': 1333, 'train/coco.fraction': 0.1, 'CopyPaste.probability': 1.0}
  old, same = later_settings.added([OLD, new])
  assert old == OLD | {'Resize.max_side': 1333, 'train/coco.fraction': 1.0} and same == new  # uses no CopyPaste


def test_what_this_version_does_not_know_stays_apart():
  assert later_settings.added([OLD, OLD | {'Resize.removed': 3, 'Removed.part': 1}])[0] == OLD


def test_such_runs_are_of_one_group(tmp_path):
  paths = [write(tmp_path / name, HALF, seed=k) for k, name in enumerate(('old', 'new', 'other'))]
  for name, value in (('new', False), ('other', True)):
    path = tmp_path / name / 'config.gin'
    path.write_text(path.read_text() + f'SGD.weight_decay = 0.0001\nSGD.nesterov = {value}\n')
  path = tmp_path / 'old/config.gin'
  path.write_text(path.read_text() + 'SGD.weight_decay = 0.0001\n')
  assert [[run.name for run in group] for group in groups(read_runs(paths))] == [['old', 'new'], ['other']]
