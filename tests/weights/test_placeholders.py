"""Placeholders in pickles: what is no weight stays opaque, by a short name, and nothing of it is called."""

import argparse
import collections
import datetime
import fractions
import pathlib
import pickle

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.weights import pickles, placeholders
from rethink_tf.weights.contents import check_arrays
from tests.weights.test_pickles import MEBIBYTE, PAIRS, Attack, write


class Settings(dict):
  """A configuration of another package, with a state and items."""


@pytest.mark.parametrize('beside', [
  argparse.Namespace(lr=0.1, milestones=[1, 2]), collections.Counter({30: 1, 60: 1}), {1, 2}, frozenset('ab'), 1 + 2j,
  np.random.default_rng(0), np.dtype('datetime64[s]'), np.array(['a', None]), np.array([1 + 2j]), np.array(['text']),
  pathlib.PurePosixPath('/data'), datetime.datetime(2020, 1, 1), fractions.Fraction(1, 3), Settings(a=Settings()),
  slice(1, 2), np.ma.masked_array([1.0]), Attack(np.lib.format.open_memmap, 'x.npy'), int,
], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_what_is_no_weight_is_opaque(tmp_path, monkeypatch, beside, protocol):
  """Beside the weights it is skipped without a call; among them it is named by check_arrays."""
  monkeypatch.chdir(tmp_path)
  content = {'model': {'w': np.float32(3)}, 'args': beside, 'nested': [{'x': beside}]}
  read = pickles.load(write(tmp_path, pickle.dumps(content, protocol=protocol)))
  assert read['model'] == {'w': 3} and read.keys() == content.keys()
  for value in (read['args'], read['nested'][0]['x']):
    assert isinstance(value, placeholders.Opaque) or type(value) is np.ndarray, value
    with pytest.raises(UserError, match=r"'w' \(.+\) is not an array of numbers"):
      check_arrays({'w': value if isinstance(value, placeholders.Opaque) else placeholders.Opaque('x')}, 'x.pkl')
  assert not (tmp_path / 'x.npy').exists()


@pytest.mark.parametrize('protocol', [0, 2, 5])
def test_dictionaries_of_the_library_are_read(tmp_path, protocol):
  content = collections.OrderedDict(a=np.float32(1), b=collections.defaultdict(dict, c=np.float32(2)))
  read = pickles.load(write(tmp_path, pickle.dumps(content, protocol=protocol)))
  assert read == {'a': 1, 'b': {'c': 2}}
  # Python 2 passes the items to the class.
  old = b'\x80\x02ccollections\nOrderedDict\n]](U\x01aK\x01ea\x85R.'
  assert pickles.load(write(tmp_path, old)) == {'a': 1}


@pytest.mark.parametrize('program, name', [
  (b'cnumpy\ndtype\n' + b'K\x01\x85' + PAIRS + b'\x85R', 'elements an object of type tuple'),
  (b'cnumpy\ndtype\n' + MEBIBYTE + b'\x85R', 'an array of elements ?'), (b'cx' + b'y' * 10_000 + b'\nz\n', 'xyy'),
], ids=['type', 'long type', 'long name'])
def test_names_of_opaque_values_are_short(tmp_path, program, name):
  read = pickles.load(write(tmp_path, b'\x80\x02' + program + b'.'))
  assert name in read.name and len(read.name) < 200 and read.name.isprintable()
