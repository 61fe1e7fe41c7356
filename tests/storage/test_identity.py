"""What a run is: recorded, compared, kept over its starts, and borne by its checkpoints."""

import json
import pathlib

import pytest

from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder

CATEGORIES = [{'id': 1, 'name': 'cat'}, {'id': 2, 'name': 'dog'}]
CONFIG = 'run.batch_size = 4\nrun.log_every = 10\nAnchors.offset = 0.5\n'


@pytest.fixture
def folder(tmp_path):
  return RunFolder(str(tmp_path / 'run'))


def begun(folder, config=CONFIG):
  found = identity.write(folder, None, identity.of(CATEGORIES, config, {'train': {'images': 60}}), 0)
  folder.write_text('config.gin', config)
  return found


def test_it_is_read_as_it_was_written(folder):
  assert identity.read(folder) is None
  written = begun(folder)
  assert identity.read(folder) == written and written.recorded
  assert written.settings['run.batch_size'] == 4 and written.data == {'train': {'images': 60}}
  assert json.loads(pathlib.Path(folder.join('categories.json')).read_text()) == CATEGORIES


def test_two_runs_have_different_names():
  assert identity.of([], '', {}).run != identity.of([], '', {}).run


def test_a_step_of_another_meaning_is_refused_in_one_line(folder):
  was = begun(folder)
  now = identity.of(CATEGORIES, CONFIG.replace('= 4', '= 8'), {})
  with pytest.raises(UserError, match='step 12 was trained with other settings: run.batch_size 4 -> 8: .*--allow_'):
    identity.check(was, now, folder, 12, False)
  (change,) = identity.check(was, now, folder, 12, True)
  assert (change.was, change.now) == (4, 8)


def test_what_does_not_change_a_step_goes_on(folder):
  was = begun(folder)
  assert len(identity.check(was, identity.of(CATEGORIES, CONFIG.replace('= 10', '= 1'), {}), folder, 12, False)) == 1


def test_another_network_is_not_evaluated(folder):
  was = begun(folder)
  identity.check_network(was, CONFIG.replace('= 4', '= 8'), folder, False)
  with pytest.raises(UserError, match='trained with another network: Anchors.offset 0.5 -> 0.0'):
    identity.check_network(was, CONFIG.replace('0.5', '0.0'), folder, False)
  identity.check_network(was, CONFIG.replace('0.5', '0.0'), folder, True)


def test_history_and_earlier_configurations_are_kept(folder):
  was = begun(folder)
  for number, value in enumerate((8, 8, 16)):
    config = CONFIG.replace('= 4', f'= {value}')
    now = identity.of([{'id': 1, 'name': 'bird'}], config, {})
    changes = identity.check(was, now, folder, number, True)
    was = identity.write(folder, was, now, number, changes, (), config)
    folder.write_text('config.gin', config)
  found = identity.read(folder)
  assert [entry['step'] for entry in found.history] == [0, 2]
  assert [entry['settings'][0]['was'] for entry in found.history] == [4, 8]
  kept = [pathlib.Path(folder.join(entry['earlier_config'])).read_text() for entry in found.history]
  assert kept == [CONFIG, CONFIG.replace('= 4', '= 8')]
  assert found.categories == CATEGORIES  # those of the network
  assert json.loads(pathlib.Path(folder.join('categories.json')).read_text()) == CATEGORIES


def test_a_run_of_an_earlier_version_gets_one(folder):
  folder.write_text('config.gin', CONFIG)
  folder.write_text('categories.json', json.dumps(CATEGORIES))
  was = identity.read(folder)
  assert not was.recorded and was.categories == CATEGORIES and was.settings['run.batch_size'] == 4
  now = identity.of(CATEGORIES, CONFIG.replace('= 4', '= 8'), {})
  changes = identity.check(was, now, folder, 6, False)  # logged, not refused
  written = identity.write(folder, was, now, 6, changes, (), '')
  assert identity.read(folder).run == written.run == now.run and len(written.history) == 1


@pytest.mark.parametrize('damage', [pathlib.Path.unlink, lambda path: path.write_text(''),
                                    lambda path: path.write_text('[{"id": 1, "na')])
def test_categories_that_were_removed_or_damaged_are_written_again(folder, damage):
  was = begun(folder)
  damage(pathlib.Path(folder.join('categories.json')))
  identity.write(folder, was, was, 3)
  assert json.loads(pathlib.Path(folder.join('categories.json')).read_text()) == CATEGORIES


def test_checkpoints_of_other_runs_are_known(folder):
  own = begun(folder)
  identity.check_owner(own, {'run': own.run}, 'step-1')
  identity.check_owner(own, {}, 'step-1')  # of an earlier version
  identity.check_owner(None, {'run': 'other'}, 'step-1')
  with pytest.raises(UserError, match='step-1: is a checkpoint of another run'):
    identity.check_owner(own, {'run': 'other'}, 'step-1')


def test_a_fork_owns_the_checkpoints_that_it_was_copied_with(folder):
  trunk = begun(folder)
  identity.fork(folder)
  fork = identity.read(folder)
  assert fork.run != trunk.run and fork.owns(trunk.run) and fork.owns(fork.run) and not trunk.owns(fork.run)


@pytest.mark.parametrize('text', [
  '', '{', '[]', 'null', '{"run": "x"}', '{"run": 1, "categories": [], "settings": {}}', '[' * 100_000,
  '{"run": "x", "categories": [{"name": 3}], "settings": {}}', '{"run": "x", "categories": [], "settings": []}',
  '{"run": "x", "categories": [], "settings": {}, "data": {"train": 3}}'])
def test_a_damaged_file_is_reported(folder, text):
  folder.write_text('identity.json', text)
  with pytest.raises(UserError, match='identity.json: is damaged'):
    identity.read(folder)


def test_credentials_are_not_recorded(folder):
  begun(folder, "coco.data_dir = 'https://me:secret@host/data'\n")
  assert 'secret' not in pathlib.Path(folder.join('identity.json')).read_text()
