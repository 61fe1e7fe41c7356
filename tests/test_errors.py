"""Exit lines and exit codes of commands."""

import errno
import os
import signal
import subprocess
import sys

import pytest
import tensorflow as tf

from rethink_tf.errors import Interrupted, UserError, excerpt, in_one_line, plain, shortened
from rethink_tf.process.entry import as_command
from rethink_tf.process.signals import EXIT_CODES


def end(main, capsys, argv=('command',)):
  """Return the exit code and the error output of a command."""
  with pytest.raises(SystemExit) as caught:
    as_command(main, argv, 'stopped; the same command continues')
  return caught.value.code, capsys.readouterr().err


def throw(error):
  raise error


def test_a_user_error_prints_its_first_line(capsys):
  assert end(lambda: throw(UserError('no such file: give another\n  in call to x')), capsys) == (
    1, 'error: no such file: give another\n')


def test_an_unexpected_argument_is_refused_before_the_command_runs(capsys):
  code, output = end(lambda: throw(AssertionError('was called')), capsys, ('command', 'gin_file=x'))
  assert code == 1 and "'gin_file=x'" in output and '--help' in output


@pytest.mark.parametrize('signum, code', [(signal.SIGINT, 130), (signal.SIGTERM, 75), (signal.SIGHUP, 75)])
def test_signals_have_their_exit_codes(signum, code, capsys):
  def wait():
    os.kill(os.getpid(), signum)
    signal.pause()

  assert EXIT_CODES[signum] == code
  before = signal.getsignal(signum)
  assert end(wait, capsys) == (code, 'stopped; the same command continues\n')
  assert signal.getsignal(signum) == before


def test_the_message_of_an_interruption_is_printed(capsys):
  assert end(lambda: throw(Interrupted(signal.SIGTERM, 'stopped; continues from step 7')), capsys) == (
    75, 'stopped; continues from step 7\n')


def test_a_programming_error_keeps_its_traceback():
  with pytest.raises(ZeroDivisionError):
    as_command(lambda: 1 / 0, ['command'], '')


@pytest.mark.parametrize('error, text', [
  (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), '/x'), 'No space left on device'),
  (tf.errors.UnavailableError(None, None, 'try\n  later'), 'try later'),
  (tf.errors.ResourceExhaustedError(None, None, '{{function_node __wrapped__SaveV2_device_/device:CPU:0}} /x; full'),
   '/x; full'),
  (ValueError('a\nb'), 'a b'), (ValueError(), 'ValueError')], ids=['system', 'status', 'operation', 'value', 'empty'])
def test_in_one_line(error, text):
  assert in_one_line(error) == text


def test_a_long_error_ends_with_a_whole_word():
  error = ValueError("No OpKernel was registered to support Op 'ConfigureDistributedTPU'")
  assert in_one_line(error, 60) == 'No OpKernel was registered to support Op…'
  assert in_one_line(error, 67) == str(error)
  assert shortened('/' + 60 * 'x' + ' gone', 20) == '/' + 18 * 'x' + '…'  # of one word, there is no other place


def test_control_characters_are_escaped():
  assert plain('a\x1b[2J\r\nb\tc\x9b\u202e\x7f ü') == 'a\\x1b[2J\\r\\nb\\tc\\x9b\\u202e\\x7f ü'
  assert plain('a\nb\tc\rd', keep='\n\t') == 'a\nb\tc\\rd'


def test_untrusted_values_in_messages():
  doubled = ()
  for _ in range(60):
    doubled = (doubled, doubled)  # whose repr has 2 ** 60 brackets
  assert excerpt(doubled) == 'an object of type tuple' and excerpt(10 ** 5000) == 'an object of type int'
  assert excerpt('\x1b' * 1000, 3) == "'\\x1b\\x1b\\x1b'…" and excerpt(b'a') == "b'a'" and excerpt(None) == 'None'


def test_tf_models_official_can_be_imported_after_a_configuration_was_parsed():
  code = ('import gin; from rethink_tf.errors import needs_models; gin.finalize()\n'
          'with needs_models("this"):\n  import official.vision.configs\n'
          'assert gin.config_is_locked()')
  done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
