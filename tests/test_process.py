"""Output that cannot be written, ignored signals, and a main thread within a call that never returns."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest

from rethink_tf import process
from rethink_tf.process import EXIT_CODES, Output, as_command
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
from rethink_tf import process
def main():
  for step in range(3):
    print('step', step, flush=True)
  with open('work', 'w') as file:
    file.write('complete')
process.start(main)
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
    process.start(lambda: print('result'), result_is_printed=True)
  assert caught.value.code == 1
  assert capsys.readouterr().err == 'error: standard output: cannot be written: No space left on device\n'


def test_an_ignored_signal_stays_ignored():
  """Of a command under nohup, or in the background of a script."""
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    as_command(lambda: os.kill(os.getpid(), signal.SIGHUP), ['command'], 'stopped')
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
  finally:
    signal.signal(signal.SIGHUP, before)


STUCK = '''
import hashlib, sys
from rethink_tf import process
process.PATIENCE_SECONDS = 0.3
def main():
  print('ready', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 300_000_000)  # one call into C that takes minutes
process.as_command(main, ['command'], 'stopped; run the same command again')
'''


@pytest.mark.parametrize('signals', [[signal.SIGTERM], [signal.SIGHUP], [signal.SIGINT, signal.SIGINT]])
def test_signals_end_a_command_within_a_call_that_does_not_return(signals):
  process_ = subprocess.Popen([sys.executable, '-c', STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                              cwd=ROOT)
  assert process_.stdout.readline() == 'ready\n'
  for signum in signals:
    process_.send_signal(signum)
  _, errors = process_.communicate(timeout=20)
  assert (process_.returncode, errors) == (EXIT_CODES[signals[0]], 'stopped; run the same command again\n')


def test_lost_output_names_what_matters(monkeypatch):
  monkeypatch.setattr(sys, 'stdout', Output(io.StringIO(), 'standard output'))
  assert process.lost_output() is None
  sys.stdout.failure = BrokenPipeError(errno.EPIPE, 'Broken pipe')
  assert process.lost_output() is None


HANGING = '''
import threading
from concurrent.futures import ThreadPoolExecutor
from rethink_tf import process
def main():
  with ThreadPoolExecutor() as pool:  # waits for its threads, whatever is raised
    pool.submit(threading.Event().wait)
    print('ready', flush=True)
    threading.Event().wait()
process.start(main, interrupted='stopped', cleanup_seconds=0.3)
'''


def test_a_signal_ends_a_command_whose_threads_read_forever():
  process_ = subprocess.Popen([sys.executable, '-c', HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, cwd=ROOT)
  assert process_.stdout.readline() == 'ready\n'
  process_.send_signal(signal.SIGTERM)
  _, errors = process_.communicate(timeout=20)
  assert (process_.returncode, errors) == (75, 'stopped\n')
