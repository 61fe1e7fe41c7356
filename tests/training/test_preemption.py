"""Signals during training: the first waits for unsaved work, the second does not."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from rethink_tf.errors import Interrupted
from rethink_tf.process.signals import EXIT_CODES, URGENT
from rethink_tf.training.preemption import Interruption


@pytest.mark.parametrize('signum', EXIT_CODES)
def test_a_signal_is_deferred_while_work_is_unsaved(signum):
  with Interruption() as interruption:
    interruption.deferred, interruption.message = True, 'resumes from step 7'
    os.kill(os.getpid(), signum)
    assert interruption.received == signum
    error = interruption.error()
  assert isinstance(error, Interrupted) and error.signum == signum and error.message == 'resumes from step 7'


@pytest.mark.parametrize('signum', EXIT_CODES)
def test_a_signal_ends_training_at_once_when_all_is_saved(signum):
  with pytest.raises(Interrupted) as caught, Interruption():
    os.kill(os.getpid(), signum)
    signal.pause()
  assert caught.value.signum == signum
  assert isinstance(caught.value, KeyboardInterrupt)  # not caught by `except Exception`


def test_handlers_are_restored():
  before = [signal.getsignal(signum) for signum in EXIT_CODES], signal.set_wakeup_fd(-1)
  with Interruption():
    assert [signal.getsignal(signum) for signum in EXIT_CODES] != before[0]
  assert ([signal.getsignal(signum) for signum in EXIT_CODES], signal.set_wakeup_fd(-1)) == before


def test_outside_the_main_thread_nothing_is_handled():
  before, found = signal.getsignal(signal.SIGTERM), []

  def work():
    with Interruption() as interruption:
      found.append((signal.getsignal(signal.SIGTERM), interruption.received))

  thread = threading.Thread(target=work)
  thread.start()
  thread.join()
  assert found == [(before, None)]


@pytest.mark.parametrize('deferred, said', [
  (True, 'SIGTERM: training ends after this step, once its checkpoint is saved, with exit code 75; a second signal'),
  (False, 'SIGTERM: training ends now, with exit code 75: nothing is left to save'),
])
def test_a_signal_says_whether_a_checkpoint_is_to_come(caplog, deferred, said):
  """There is none in the first step, which traces for up to a minute, and in an evaluation."""
  with contextlib.suppress(Interrupted), Interruption() as interruption:
    interruption.deferred = deferred
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.5)
  assert wait_for(lambda: any(record.getMessage().startswith(said) for record in caplog.records)), caplog.text


def wait_for(condition, seconds=5):
  until = time.monotonic() + seconds
  while not condition() and time.monotonic() < until:
    time.sleep(0.01)
  return condition()


# A fork for each signal: TensorFlow takes seconds to import.
LONG = '''
import hashlib, os, sys
from rethink_tf.training.preemption import Interruption
for _ in range(int(sys.argv[1])):
  child = os.fork()
  if not child:
    with Interruption() as interruption:
      interruption.deferred = True
      print('ready', os.getpid(), flush=True)
      hashlib.pbkdf2_hmac('sha256', b'', b'', 300_000_000)  # one call into C that takes minutes
    print('complete', flush=True)
    os._exit(0)
  print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
'''


def test_the_second_signal_ends_the_process_within_a_long_call():
  quiet = ['-W', 'ignore::DeprecationWarning', '-W', 'ignore::FutureWarning']
  process = subprocess.Popen([sys.executable, *quiet, '-c', LONG, str(len(URGENT))], stdout=subprocess.PIPE,
                             stderr=subprocess.PIPE, text=True, start_new_session=True)
  try:
    for signum in URGENT:
      word, child = process.stdout.readline().split()
      assert word == 'ready'
      os.kill(int(child), signum)
      line = process.stderr.readline()  # logged while the call runs
      assert signal.Signals(signum).name in line and f'code {EXIT_CODES[signum]}' in line and 'a second' in line
      os.kill(int(child), signum)
      assert process.stdout.readline() == f'{EXIT_CODES[signum]}\n'
    out, rest = process.communicate()
  finally:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(process.pid, signal.SIGKILL)
  assert process.returncode == 0 and out == '' and rest == ''
