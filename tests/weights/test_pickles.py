"""The restricted unpickler: arrays come through, anything that could run does not."""

import collections
import os
import pickle

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.weights import pickles


def write(tmp_path, content):
  path = tmp_path / 'weights.pkl'
  path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
  return str(path)


@pytest.mark.parametrize('protocol', [0, 1, 2, 3, 4])
def test_arrays_come_through(tmp_path, protocol):
  content = {
    'model': {'a': np.arange(6, dtype=np.float16).reshape(2, 3), 'b': np.float32(3)},
    'order': np.asfortranarray(np.arange(6.0).reshape(2, 3)), 'list': [1, 2.5, 'x', None, True, (1, b'y')]}
  read = pickles.load(write(tmp_path, pickle.dumps(content, protocol=protocol)))
  assert read.keys() == content.keys() and read['list'] == content['list']
  for name, value in content['model'].items():
    np.testing.assert_array_equal(read['model'][name], value)
    assert read['model'][name].dtype == value.dtype
  np.testing.assert_array_equal(read['order'], content['order'])


def test_python_2_files_with_numpy_1_names(tmp_path):
  """What Python 2 wrote: byte strings, and the module as it was called then."""
  content = (b'\x80\x02}U\x03b\xe9ccnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nU\x02f4K\x00K\x01\x87R'
             b'(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tbU\x04\x00\x00\x80?\x86Rs.')
  read = pickles.load(write(tmp_path, content))
  assert list(read) == ['b\xe9c'] and read['b\xe9c'] == 1 and read['b\xe9c'].dtype == np.float32


class Attack:
  """Calls a function when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('attack, name', [
  (Attack(os.system, 'touch attacked'), f'{os.name}.system'), (Attack(eval, '1 + 1'), 'builtins.eval'),
  (Attack(getattr, '', 'join'), 'builtins.getattr'), (Attack(np.load, 'x.npy'), 'numpy'),
  (collections.OrderedDict(a=1), 'collections.OrderedDict'), (np.random.default_rng(0), 'numpy'),
])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_whatever_could_run_is_refused_by_name(tmp_path, monkeypatch, attack, name, protocol):
  monkeypatch.chdir(tmp_path)
  path = write(tmp_path, pickle.dumps({'model': {'w': attack}}, protocol=protocol))
  with pytest.raises(UserError, match=r'refers to .*could run code') as error:
    pickles.load(path)
  assert path in str(error.value) and '\n' not in str(error.value)
  if protocol == 4:
    assert name.split('.')[-1] in str(error.value)
  assert not (tmp_path / 'attacked').exists()


def test_names_reached_through_dots_are_refused(tmp_path):
  """Protocol 4 may ask for an attribute of an attribute."""
  with pytest.raises(UserError, match=r'refers to numpy\.ndarray\.tofile'):
    pickles.load(write(tmp_path, b'\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.'))


@pytest.mark.parametrize('content', [
  b'', b'not a pickle', b'\x80\x04', pickle.dumps(np.zeros(100))[:-50], b'\x80\x04\x8c\x01aQ.', b'\x80\x02\x82\x01.'])
def test_damaged_files_give_one_line(tmp_path, content):
  with pytest.raises(UserError, match='not a complete pickle') as error:
    pickles.load(write(tmp_path, content))
  assert '\n' not in str(error.value)


def test_missing_files_give_one_line(tmp_path):
  with pytest.raises(UserError, match='cannot be read') as error:
    pickles.load(str(tmp_path / 'none.pkl'))
  assert 'none.pkl' in str(error.value)
