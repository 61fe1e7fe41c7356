"""Whatever a runtime raises is one line with a cure."""

import pytest

from rethink_tf.errors import UserError
from rethink_tf.export import refusals


@pytest.mark.parametrize('error', [RuntimeError('of\nkernels'), KeyError('x'), OSError(5, 'x'), ValueError('y' * 999)])
def test_one_line_with_a_cure(error):
  with pytest.raises(UserError, match=r'^the runtime cannot run it \(.*\): export a SavedModel$') as raised:
    with refusals.in_words('the runtime cannot run it'):
      raise error
  assert '\n' not in str(raised.value) and len(str(raised.value)) < 300 and raised.value.__cause__ is error


def test_nothing_is_raised_without_an_error():
  with refusals.in_words('the runtime cannot run it'):
    result = 'detections'
  assert result == 'detections'
