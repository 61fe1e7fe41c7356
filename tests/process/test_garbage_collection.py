"""The collector is as it was after a pause, also after an error and within another pause."""

import gc

import pytest

from rethink_tf.process import garbage_collection


def test_the_collector_is_paused_and_on_again_also_after_an_error():
  with pytest.raises(KeyError), garbage_collection.paused():
    assert not gc.isenabled()
    raise KeyError
  assert gc.isenabled()


def test_a_pause_within_a_pause_does_not_end_it():
  with garbage_collection.paused():
    with garbage_collection.paused():
      pass
    assert not gc.isenabled()
  assert gc.isenabled()
