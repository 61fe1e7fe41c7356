"""Retries: transient and permanent errors, number of attempts, pauses."""

import errno
import os
import random

import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.storage import retries


def status(kind):
  return getattr(tf.errors, kind)(None, None, 'unavailable')


def system(code):
  return OSError(code, os.strerror(code))


@pytest.fixture
def pauses(monkeypatch):
  """Record the pauses instead of sleeping."""
  made = []
  monkeypatch.setattr(retries.time, 'sleep', made.append)
  return made


@pytest.mark.parametrize('kind', ['UnavailableError', 'DeadlineExceededError', 'AbortedError', 'UnknownError'])
def test_transient_status(kind):
  assert retries.is_transient(status(kind))


@pytest.mark.parametrize('kind', ['NotFoundError', 'PermissionDeniedError', 'ResourceExhaustedError', 'DataLossError',
                                  'InvalidArgumentError', 'FailedPreconditionError', 'AlreadyExistsError',
                                  'OutOfRangeError', 'UnimplementedError', 'UnauthenticatedError', 'CancelledError'])
def test_permanent_status(kind):
  assert not retries.is_transient(status(kind))


@pytest.mark.parametrize('name', ['EIO', 'ESTALE', 'ETIMEDOUT', 'ECONNRESET', 'ECONNREFUSED', 'EPIPE', 'EAGAIN',
                                  'ENETUNREACH', 'EHOSTUNREACH'])
def test_transient_system_errors(name):
  assert retries.is_transient(system(getattr(errno, name)))


@pytest.mark.parametrize('name', ['ENOENT', 'EACCES', 'EPERM', 'EROFS', 'ENOSPC', 'EDQUOT', 'EFBIG', 'EISDIR',
                                  'ENOTDIR', 'EMFILE', 'ENAMETOOLONG'])
def test_permanent_system_errors(name):
  assert not retries.is_transient(system(getattr(errno, name)))


def test_other_errors_are_permanent_unless_caused_by_a_transient_one():
  assert not retries.is_transient(ValueError('no')) and not retries.is_transient(None)
  for cause, expected in ((system(errno.EIO), True), (system(errno.ENOENT), False)):
    try:
      raise UserError('an image cannot be read') from cause
    except UserError as error:
      assert retries.is_transient(error) == expected


def test_a_full_device_and_a_missing_folder_are_permanent(tmp_path):
  with pytest.raises(tf.errors.ResourceExhaustedError) as full, tf.io.gfile.GFile('/dev/full', 'w') as file:
    file.write('x' * 100_000)
  with pytest.raises(tf.errors.NotFoundError) as missing, tf.io.gfile.GFile(str(tmp_path / 'no' / 'file'), 'w') as file:
    file.write('x')
  assert not retries.is_transient(full.value) and not retries.is_transient(missing.value)


class Flaky:
  """A function that raises these errors in turn, then returns 'done'."""

  def __init__(self, *errors):
    self.errors, self.calls = list(errors), 0

  def __call__(self):
    self.calls += 1
    if self.errors:
      raise self.errors.pop(0)
    return 'done'


def test_retries_until_success_and_logs_each_retry(pauses, caplog):
  flaky = Flaky(status('UnavailableError'), system(errno.EIO), status('AbortedError'))
  assert retries.call(flaky, 'gs://bucket/file') == 'done'
  assert flaky.calls == 4
  lines = [record.getMessage() for record in caplog.records]
  assert [line.split(' in ')[0] for line in lines] == [
    'gs://bucket/file: unavailable; attempt 2 of 8', 'gs://bucket/file: Input/output error; attempt 3 of 8',
    'gs://bucket/file: unavailable; attempt 4 of 8']
  assert not any('\n' in line for line in lines)


def test_pauses_double_up_to_a_bound_with_jitter(pauses):
  for _ in range(20):
    with pytest.raises(tf.errors.UnavailableError):
      retries.call(Flaky(*(status('UnavailableError') for _ in range(9))), 'x', attempts=7, first=1.0, longest=8.0)
  assert len(pauses) == 120
  for attempt, longest in enumerate((1, 2, 4, 8, 8, 8)):
    of_attempt = pauses[attempt::6]
    assert all(longest / 2 <= pause <= longest for pause in of_attempt)
    assert len(set(of_attempt)) > 1


def test_the_last_error_is_raised(pauses):
  flaky = Flaky(*(system(code) for code in (errno.EIO, errno.ETIMEDOUT, errno.ESTALE)))
  with pytest.raises(OSError, match=os.strerror(errno.ESTALE)):
    retries.call(flaky, 'x', attempts=3)
  assert flaky.calls == 3 and len(pauses) == 2


@pytest.mark.parametrize('error', [system(errno.ENOSPC), system(errno.ENOENT), ValueError('no')], ids=repr)
def test_a_permanent_error_is_raised_at_once(pauses, error):
  flaky = Flaky(error)
  with pytest.raises(type(error)):
    retries.call(flaky, 'x')
  assert flaky.calls == 1 and not pauses


def test_default_pauses_add_up_to_a_minute_at_most(pauses):
  with pytest.raises(OSError, match='Input/output error'):
    retries.call(Flaky(*(system(errno.EIO) for _ in range(20))), 'x')
  assert len(pauses) == 7 and 30 <= sum(pauses) <= 62


def test_the_seeded_generator_is_unchanged(pauses):
  random.seed(3)
  expected = random.random()
  random.seed(3)
  retries.call(Flaky(status('UnavailableError')), 'x')
  assert random.random() == expected
