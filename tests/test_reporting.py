"""Results are written with their folders, and progress has an end in sight."""

import pytest

from rethink_tf import reporting
from rethink_tf.errors import UserError


def test_a_file_and_the_folders_above_it(tmp_path):
  reporting.write(f'{tmp_path}/a/b/c.txt', b'text')
  assert (tmp_path / 'a' / 'b' / 'c.txt').read_bytes() == b'text'
  with pytest.raises(UserError, match=r'c.txt/d.txt: cannot be written: .*--output') as error:
    reporting.write(f'{tmp_path}/a/b/c.txt/d.txt', b'text')
  assert '\n' not in str(error.value)


def test_progress(monkeypatch, capsys):
  """After a slow first one, two a second; a line at most every ten seconds."""
  clock = [1000.0]
  monkeypatch.setattr(reporting.time, 'monotonic', lambda: clock[0])
  progress = reporting.Progress('pictures', 100)
  for _ in range(41):
    progress.count()
    clock[0] += 0.5
  lines = capsys.readouterr().out.splitlines()
  assert lines == ['pictures: 21/100, 2/s, 0:40 left', 'pictures: 41/100, 2/s, 0:30 left']
