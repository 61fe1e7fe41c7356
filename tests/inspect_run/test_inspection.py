"""The inspection as a function: breakdowns returned, files in another folder."""

import pytest

from rethink_tf.data.detection.coco import CocoSource
from rethink_tf.errors import UserError
from rethink_tf.inspect_run.inspection import inspect


def test_breakdowns_and_files(run, tmp_path, capsys):
  source = CocoSource(str(tmp_path / 'data'), 'val2017')
  breakdowns = inspect(str(run / 'eval/step-00000002'), source, str(tmp_path / 'out'), examples=2)
  assert set(breakdowns) == {'box', 'mask'}
  assert breakdowns['box'].counts['classification'] == breakdowns['mask'].counts['missed'] == 1
  assert {path.name for path in (tmp_path / 'out').iterdir()} == {
    'errors.txt', 'errors.json', 'errors_box.png', 'errors_mask.png', 'worst_box.png', 'worst_mask.png'}
  assert (tmp_path / 'out/errors.txt').read_text() in capsys.readouterr().out


def test_a_folder_without_results(run, tmp_path):
  with pytest.raises(UserError, match='holds neither bbox.json'):
    inspect(str(run / 'eval/step-00000004'), CocoSource(str(tmp_path / 'data'), 'val2017'))
