"""Published results of runs, only of an unmodified shipped file."""

import json

import pytest

from rethink_tf.compare.published import published_result, reproduces
from rethink_tf.errors import UserError
from rethink_tf.storage import identity
from rethink_tf.storage.run_folder import RunFolder


@pytest.mark.parametrize('words, result', [
  (['--gin_file=gin_configs/scratch_6x.gin'], '41.3 box AP'),
  (['--gin_file=gin_configs/scratch_6x.gin', '--data_dir=/data', '--weights=w.pkl'], '41.3 box AP'),
  (['--gin_file=gin_configs/scratch_6x.gin', '--gin_param=BATCH_SIZE = 8'], ''),
  (['--gin_file=gin_configs/scratch_6x.gin', '--gin_file=gin_configs/data/coco_10k.gin'], ''),
  (['--gin_file', 'gin_configs/scratch_6x.gin', '--data_dir', '/data'], '41.3 box AP'),
  (['--gin_file', 'gin_configs/scratch_6x.gin', '--gin_param', 'BATCH_SIZE = 8'], ''),
  (['--gin_file=gin_configs/demo.gin'], ''),
  (['--gin_file=/elsewhere/scratch_6x.gin'], ''),
  ([], ''),
])
def test_published_result_of_a_run(tmp_path, words, result):
  (tmp_path / 'command.json').write_text(json.dumps({'argv': ['train.py', *words]}))
  assert published_result(RunFolder(str(tmp_path), create=False)) == result


@pytest.mark.parametrize('images, result', [(5000, '41.3 box AP'), (167, '')])
def test_a_result_on_coco_is_not_beside_that_on_other_images(tmp_path, images, result):
  folder = RunFolder(str(tmp_path))
  folder.write_text('command.json', json.dumps({'argv': ['train.py', '--gin_file=gin_configs/scratch_6x.gin']}))
  identity.write(folder, None, identity.of([], '', {'held_out': {'images': images}}), 0)
  assert published_result(folder) == result


@pytest.mark.parametrize('text, expected', [
  ('Table 1, R50 random, 6x: 41.3 box AP (paper, val2017). Table 2: AP50 61.8', '41.3 box AP'),
  ('Fig. 4 (SyncBN behaves as GN does; the paper prints no number).', 'not published'),
  ('Fig. 6, random at 3x: its number is not in the text (2x: 65.6 keypoint AP).', 'not published'),
  ('Fig. 6 and its text, random at 2x: 65.6 keypoint AP (paper, val2017).', '65.6 keypoint AP'),
  ('section 5.2: 77.6 mAP on val2012 (paper; more training does not help).', '77.6 mAP'),
  ('nothing published; images of clothing gave top-1 37.0, top-5 79.8.', 'not published'),
  ('no row with this network. Nearest: 40.8 box AP', 'not published'),
  ("Detectron's R-50-GN.pkl: 24.0 % top-1 error, so top-1 76.0 (models).", 'top-1 76.0'),
  ('half of it: top-1 / top-5 82.2 / 96.4 (WSL-Images). More.', 'top-1 / top-5 82.2 / 96.4')])
def test_published_results_are_read_from_the_run_sheet(text, expected):
  words = text.split(' ')
  sheet = f'# Title.\n#\n# Reproduces  {" ".join(words[:4])}\n#             {" ".join(words[4:])}\n# Cost        much\n'
  sentence, published = reproduces(sheet)
  assert published == expected and text.startswith(sentence)
  assert sentence.startswith('Fig. ') == text.startswith('Fig. ')


def test_a_run_sheet_without_the_field():
  with pytest.raises(UserError, match='Reproduces'):
    reproduces('# Title.\n# Cost  much\n')
