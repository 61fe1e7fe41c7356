"""Output that cannot be written, or that a terminal would obey."""

import errno
import io
import os
import subprocess
import sys

import pytest

from rethink_tf.process import entry
from rethink_tf.process.output import Output, lost_output
from tests.test_command_line import ROOT


class Full(io.StringIO):
  """A file on a full disk."""

  room = 0

  def write(self, text):
    if not self.room:
      raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return super().write(text)


def test_output_on_a_full_disk_costs_the_output_alone(capsys):
  stream = Full()
  output = Output(stream, 'standard output')
  print('lost', file=output)
  print('lost', file=output, flush=True)
  assert capsys.readouterr().err == (
    'warning: standard output cannot be written (No space left on device): the command continues\n')
  assert output.failure.errno == errno.ENOSPC and not output.isatty()
  stream.room = 1
  print('kept', file=output)  # space again
  assert stream.getvalue() == 'kept\n'


def test_characters_that_a_stream_lacks_are_escaped():
  raw = io.BytesIO()
  output = Output(io.TextIOWrapper(raw, 'ascii'), 'standard output')
  print('café', file=output, flush=True)
  assert raw.getvalue() == b'caf\\xe9\n'


def test_names_cannot_command_a_terminal():
  """Lines of progress are rewritten as before."""
  stream = io.StringIO()
  output = Output(stream, 'standard output')
  print('run \x1b]0;title\x07\x1b[2J\rhidden\ttab\nnext', file=output)
  print('\rimages: 3/5, 8.3/s\x1b[K', end='', file=output)
  assert stream.getvalue() == 'run \\x1b]0;title\\x07\\x1b[2J\\rhidden\ttab\nnext\n\rimages: 3/5, 8.3/s\x1b[K'


COMMAND = '''
from rethink_tf.process import entry
def main():
  for step in range(3):
    print('step', step, flush=True)
  with open('work', 'w') as file:
    file.write('complete')
entry.start(main)
'''


@pytest.mark.parametrize('target, words', [
  ('>/dev/full', 'No space left'), ('2>/dev/full >/dev/full', ''), ('>&-', ''), ('>&- 2>&- <&-', ''), ('| true', None)])
def test_a_command_survives_its_output(tmp_path, target, words):
  """Streams on a full disk, closed ones, and a pipe that nobody reads."""
  (tmp_path / 'command.py').write_text(COMMAND)
  ended = subprocess.run(['bash', '-o', 'pipefail', '-c', f'{sys.executable} command.py {target}'], cwd=tmp_path,
                         env={**os.environ, 'PYTHONPATH': str(ROOT)}, capture_output=True, text=True)
  assert (tmp_path / 'work').read_text() == 'complete'  # not mixed with output
  assert ended.returncode == 0 and 'Traceback' not in ended.stderr
  if words is not None:
    assert words in ended.stderr and len(ended.stderr.splitlines()) == bool(words)


def test_a_result_that_cannot_be_printed_is_an_error(monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['command'])
  monkeypatch.setattr(sys, 'stdout', Full())
  with pytest.raises(SystemExit) as caught:
    entry.start(lambda: print('result'), result_is_printed=True)
  assert caught.value.code == 1
  assert capsys.readouterr().err == 'error: standard output: cannot be written: No space left on device\n'


def test_lost_output_names_what_matters(monkeypatch):
  monkeypatch.setattr(sys, 'stdout', Output(io.StringIO(), 'standard output'))
  assert lost_output() is None
  sys.stdout.failure = BrokenPipeError(errno.EPIPE, 'Broken pipe')
  assert lost_output() is None
