"""Which published figure stands beside a run: only that of a shipped file as it is."""

import json

import pytest

from rethink_tf.compare.published import row_of
from rethink_tf.storage.run_folder import RunFolder


@pytest.mark.parametrize('words, figure', [
  (['--gin_file=gin_configs/scratch_6x.gin'], '41.3 box AP'),
  (['--gin_file=gin_configs/scratch_6x.gin', '--data_dir=/data', '--weights=w.pkl'], '41.3 box AP'),
  (['--gin_file=gin_configs/scratch_6x.gin', '--gin_param=BATCH_SIZE = 8'], ''),
  (['--gin_file=gin_configs/scratch_6x.gin', '--gin_file=gin_configs/data/coco_10k.gin'], ''),
  (['--gin_file=gin_configs/demo.gin'], ''),
  (['--gin_file=/elsewhere/scratch_6x.gin'], ''),
  ([], ''),
])
def test_the_row_of_a_run(tmp_path, words, figure):
  (tmp_path / 'command.json').write_text(json.dumps({'argv': ['train.py', *words]}))
  assert row_of(RunFolder(str(tmp_path), create=False)) == figure
