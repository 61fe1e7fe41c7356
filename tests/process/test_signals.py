"""Ignored signals, and a main thread within a call that never returns."""

import os
import signal
import subprocess
import sys

import pytest

from rethink_tf.process.entry import as_command
from rethink_tf.process.signals import EXIT_CODES
from tests.test_command_line import ROOT


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
from rethink_tf.process import entry, signals
signals.PATIENCE_SECONDS = 0.3
def main():
  print('ready', flush=True)
  hashlib.pbkdf2_hmac('sha256', b'', b'', 300_000_000)  # one call into C that takes minutes
entry.as_command(main, ['command'], 'stopped; run the same command again')
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


HANGING = '''
import threading
from concurrent.futures import ThreadPoolExecutor
from rethink_tf.process import entry
def main():
  with ThreadPoolExecutor() as pool:  # waits for its threads, whatever is raised
    pool.submit(threading.Event().wait)
    print('ready', flush=True)
    threading.Event().wait()
entry.start(main, interrupted='stopped', cleanup_seconds=0.3)
'''


def test_a_signal_ends_a_command_whose_threads_read_forever():
  process_ = subprocess.Popen([sys.executable, '-c', HANGING], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True, cwd=ROOT)
  assert process_.stdout.readline() == 'ready\n'
  process_.send_signal(signal.SIGTERM)
  _, errors = process_.communicate(timeout=20)
  assert (process_.returncode, errors) == (75, 'stopped\n')
