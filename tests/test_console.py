"""Results are written with their folders, and progress has an end in sight."""

import inspect
import io
import math
import os
import subprocess
import sys

import pytest

from rethink_tf import console
from rethink_tf.errors import UserError
from rethink_tf.storage import files


def test_a_file_and_the_folders_above_it(tmp_path):
  files.write_output(f'{tmp_path}/a/b/c.txt', b'text')
  assert (tmp_path / 'a' / 'b' / 'c.txt').read_bytes() == b'text'
  with pytest.raises(UserError, match=r'c.txt/d.txt: cannot be written: .*--output') as error:
    files.write_output(f'{tmp_path}/a/b/c.txt/d.txt', b'text')
  assert '\n' not in str(error.value)


def test_progress(monkeypatch, capsys):
  """After a slow first one, two a second; a line at most every ten seconds."""
  clock = [1000.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: clock[0])
  progress = console.Progress('images', 100)
  for _ in range(41):
    progress.count()
    clock[0] += 0.5
  lines = capsys.readouterr().out.splitlines()
  assert lines == ['images: 21/100, 2/s, ETA 40 s', 'images: 41/100, 2/s, ETA 30 s']


class Terminal(io.StringIO):
  def isatty(self):
    return True


@pytest.mark.parametrize('stream', [Terminal(), io.StringIO()], ids=['terminal', 'file'])
def test_a_terminal_has_one_line_that_is_rewritten(stream, monkeypatch):
  clock = [1000.0]
  monkeypatch.setattr(console.time, 'monotonic', lambda: clock[0])
  progress = console.Progress('images', 200, stream)
  for _ in range(200):
    clock[0] += 10.0
    progress.count()
  progress.close()
  lines = stream.getvalue().split('\r' if stream.isatty() else '\n')
  assert any('images: 102/200, 0.1/s, ETA 16 min 20 s' in line for line in lines)
  assert '200/200' in stream.getvalue() and stream.getvalue().endswith('\n')
  assert stream.getvalue().count('\n') == (1 if stream.isatty() else 199)


@pytest.mark.parametrize('seconds, text', [
  (0, '0 s'), (59.4, '59 s'), (61, '1 min 1 s'), (3 * 3600 + 12 * 60, '3 h 12 min'), (90_000, '1 d 1 h'),
  (math.inf, '?'), (math.nan, '?')])
def test_durations(seconds, text):
  assert console.duration(seconds) == text


@pytest.mark.parametrize('share, text', [(0.95, '95 %'), (0.999, '99.9 %'), (0.99999, '99.999 %'), (0.57, '57 %')])
def test_a_share_keeps_its_digits(share, text):
  assert console.percent(share) == text


@pytest.mark.parametrize('end, shown', [('os.abort()', True), ('os._exit(69)', True), ('pass', False)])
def test_what_is_printed_before_an_abort_is_not_lost(end, shown):
  """As TensorFlow does: a line to the standard error by C, then abort(); no handler of Python runs."""
  program = ('import contextlib, os, subprocess, sys\nfrom collections.abc import Iterator\n'
             f'READER = {console._READER!r}\n'
             'class signals: error_descriptor = 2\n'
             + inspect.getsource(console.held_stderr).replace('_READER', 'READER') +
             f'with held_stderr():\n  os.write(2, b"Fatal: no kernels for sm_120\\n")\n  {end}\n'
             'os.write(2, b"afterwards\\n")\n')
  ran = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False)
  assert ran.stderr == ('Fatal: no kernels for sm_120\n' if shown else 'afterwards\n')
  assert ran.returncode == {'os.abort()': -6, 'os._exit(69)': 69, 'pass': 0}[end]


@pytest.mark.slow
def test_the_reason_of_an_abort_of_tensorflow_is_printed():
  program = 'from rethink_tf import console\nconsole.compile_once()\nprint("compiled")'
  ran = [subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, check=False,
                        env={**os.environ, 'XLA_FLAGS': flags}) for flags in ('', '--no_such_flag=1')]
  assert (ran[0].returncode, ran[0].stdout, ran[0].stderr) == (0, 'compiled\n', '')
  assert ran[1].returncode < 0 and '--no_such_flag=1' in ran[1].stderr


def test_numbers_in_words():
  assert [console.points(value) for value in (1.0, 0.5, 2)] == ['1 point', '0.5 points', '2 points']
  assert [console.counted(n, 'class', 'classes') for n in (0, 1)] == ['0 classes', '1 class']
  assert [console.times(ratio) for ratio in (0.001, 0.5, 3.44, 99.7, 1234)] == [
    'less than 0.01 x', '0.5 x', '3.4 x', '100 x', '1,234 x']


def test_a_difference_has_the_same_digits_with_and_without_its_sign():
  values = (0.0, -0.001, 0.04, -0.97, 0.996, -1.04, 12.35)
  assert [console.signed(value) for value in values] == ['+0.00', '+0.00', '+0.04', '-0.97', '+1.0', '-1.0', '+12.3']
  assert [console.magnitude(value) for value in values] == ['0.00', '0.00', '0.04', '0.97', '1.0', '1.0', '12.3']


def test_values_that_differ_are_told_apart():
  assert console.told_apart(20.8, 50.0) == ('20.8', '50.0') and console.told_apart(49.52, 49.48) == ('49.52', '49.48')
  assert console.told_apart(1.0, 1.0) == ('1.0000', '1.0000')
