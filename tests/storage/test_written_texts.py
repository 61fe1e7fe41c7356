"""Files that training has written at its beginning are written again if somebody deletes them meanwhile."""

import shutil

import tensorflow as tf

from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder


def test_a_run_folder_that_is_deleted_during_the_run(tmp_path, caplog):
  folder = RunFolder(str(tmp_path / 'run'))
  checkpoints, variables = RunCheckpoints(folder), {'model': tf.train.Checkpoint(v=tf.Variable(1.0))}
  folder.write_text('config.gin', 'a = 1')
  folder.write_text('config.gin', 'a = 2')
  folder.make_folder('earlier_configs')
  folder.write_text('earlier_configs/config-000.gin', 'a = 1')
  assert checkpoints.save(1, variables, {}) and 'was deleted' not in caplog.text
  shutil.rmtree(folder.path)
  assert checkpoints.save(2, variables, {})
  assert (tmp_path / 'run/config.gin').read_text() == 'a = 2'
  assert (tmp_path / 'run/earlier_configs/config-000.gin').read_text() == 'a = 1'
  assert 'run/config.gin was deleted during the run: it is written again' in caplog.text
  assert RunCheckpoints(RunFolder(folder.path)).latest() == 2


def test_files_that_cannot_be_written_again_do_not_end_training(tmp_path, caplog):
  folder = RunFolder(str(tmp_path / 'run'))
  folder.write_text('config.gin', 'a = 1')
  (tmp_path / 'run/config.gin').unlink()
  (tmp_path / 'run/config.gin').symlink_to(tmp_path / 'nowhere/config.gin')
  assert RunCheckpoints(folder).save(1, {'model': tf.train.Checkpoint(v=tf.Variable(1.0))}, {})
