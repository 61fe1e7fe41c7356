"""The restricted unpickler: arrays are read, other objects stay opaque, anything that could run code is refused."""

import os
import pickle
import resource
import struct

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.weights import pickles, placeholders


def write(tmp_path, content):
  path = tmp_path / 'weights.pkl'
  path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=4))
  return str(path)


@pytest.mark.parametrize('protocol', range(6))
def test_arrays_are_read(tmp_path, protocol):
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
  """Byte strings, and NumPy's modules by their names of that time."""
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
  (Attack(getattr, '', 'join'), 'builtins.getattr'), (Attack(pickle.loads, b'N.'), 'loads'),
])
@pytest.mark.parametrize('protocol', [0, 2, 4])
def test_code_is_refused_by_name(tmp_path, monkeypatch, attack, name, protocol):
  monkeypatch.chdir(tmp_path)
  path = write(tmp_path, pickle.dumps({'model': {'w': attack}}, protocol=protocol))
  with pytest.raises(UserError, match=r'refers to .*could run code') as error:
    pickles.load(path)
  assert path in str(error.value) and '\n' not in str(error.value)
  if protocol == 4:
    assert name.split('.')[-1] in str(error.value)
  assert not (tmp_path / 'attacked').exists()


def test_dotted_names_are_not_looked_up(tmp_path):
  """Protocol 4 can refer to an attribute of an attribute."""
  read = pickles.load(write(tmp_path, b'\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.'))
  assert isinstance(read, placeholders.Opaque) and read.name == 'numpy.ndarray.tofile'


@pytest.mark.parametrize('content', [
  b'', b'not a pickle', b'\x80\x04', pickle.dumps(np.zeros(100))[:-50], b'\x80\x04\x8c\x01aQ.'])
def test_damaged_files_give_one_line(tmp_path, content):
  with pytest.raises(UserError, match='not a complete pickle') as error:
    pickles.load(write(tmp_path, content))
  assert '\n' not in str(error.value)


def test_missing_files_give_one_line(tmp_path):
  with pytest.raises(UserError, match='cannot be read') as error:
    pickles.load(str(tmp_path / 'none.pkl'))
  assert 'none.pkl' in str(error.value)


# Programs of a few bytes that would use all memory, run forever, or bypass the placeholders.

EMPTY_ARRAY = b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR'
TWICE = b''.join(b'(h' + bytes([i]) + b'h' + bytes([i]) + b'lq' + bytes([i + 1]) for i in range(60))


def state(shape=b'(K\x02t', dtype=b'cnumpy\ndtype\n(U\x02f4K\x00K\x01tR', raw=b'U\x08' + bytes(8)):
  return EMPTY_ARRAY + b'(K\x01' + shape + dtype + b'\x89' + raw + b'tb'


def test_a_handwritten_array_is_read(tmp_path):
  np.testing.assert_array_equal(pickles.load(write(tmp_path, b'\x80\x02' + state() + b'.')), np.zeros(2, 'f'))


@pytest.mark.parametrize('program, message', [
  (b'}r\xff\xff\xff\x7f', None),  # an index of the memo for which the C unpickler allocates 32 GB
  (b'\x8e' + struct.pack('<Q', 1 << 40), 'ends too early'), (b'T\xff\xff\xff\x7f', 'ends too early'),
  (b'\x96' + struct.pack('<Q', 1 << 62), 'MemoryError|ends too early'),
  (state(shape=b'(\x8a\x06\x00\x00\x00\x00\x00\x01t'), 'shape and bytes disagree'),
  (state(shape=b'(J\xff\xff\xff\xffJ\xfe\xff\xff\xfft'), 'shape and bytes disagree'),
  (state(dtype=b'N'), 'without an element type'), (EMPTY_ARRAY, 'without content'),
  (b'(K\x01K\x02lq\x00' + TWICE, None),  # a list of 2 ** 60 numbers, by references
  (b']q\x00h\x00a', 'over 100 deep'),  # a list that contains itself
  (b'(l' * 200 + b'a' * 199, 'over 100 deep'),
], ids=['memo', 'length', 'py2 length', 'bytearray', 'shape', 'negative', 'no dtype', 'no state', 'references',
        'itself', 'deep'])
def test_bombs_are_harmless(tmp_path, program, message):
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  path = write(tmp_path, b'\x80\x02' + program + b'.')
  if message is None:
    assert pickles.load(path) is not None
  else:
    with pytest.raises(UserError, match=f'not a complete pickle.*({message})'):
      pickles.load(path)
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize('program, message', [
  (b'\x82\x01', 'extensions'), (b'cnumpy\nndarray\n)\x81', 'objects of classes'),
  (b'(cnumpy\ndtype\n(U\x02f4o', 'objects of classes'), (b'(U\x02f4inumpy\ndtype\n', 'objects of classes'),
  (b'cnumpy.core.multiarray\n_reconstruct\n(}}U\x0c__defaults__)stb', "the state of 'function'"),
  (b'cnumpy\ndtype\n(}}U\x07__doc__)stb', "the state of 'type'"),
  (b'c_codecs\nencode\n(U\x01aU\x03hextR', "the codec 'hex'"),
  (b'cos\n' + b'\x1b[2J' * 100 + b'\n', r'os\.'), (b'(cos\nsystem\no', r'os\.system'),
  (b'(ios\nsystem\n', r'os\.system'),
], ids=['extension', 'new object', 'object', 'instance', 'state of a function', 'state of a class', 'codec',
        'long name', 'object of os', 'instance of os'])
def test_operations_that_plain_data_does_not_need_are_refused(tmp_path, program, message):
  with pytest.raises(UserError, match=f'refers to .*{message}.*could run code') as error:
    pickles.load(write(tmp_path, b'\x80\x02' + program + b'.'))
  assert len(str(error.value)) < 400 and str(error.value).isprintable()


TUPLES = b'(K\x01K\x01tq\x00' + TWICE.replace(b'l', b't')  # a tuple that would be hashed forever


@pytest.mark.parametrize('program', [
  TUPLES + b'}h\x3cNs', TUPLES + b'\x8f(h\x3c\x90', TUPLES + b'(h\x3c\x91',
  state(dtype=b'cnumpy\ndtype\n(U\x02O8K\x00K\x01tR'), state(dtype=b'cnumpy\ndtype\n(U\x02V8K\x00K\x01tR'),
], ids=['key', 'set', 'frozen set', 'objects', 'records'])
def test_unhashed_and_unread_values_are_opaque(tmp_path, program):
  read = pickles.load(write(tmp_path, b'\x80\x02' + program + b'.'))
  assert isinstance(read, placeholders.Opaque) or read == {}


MEBIBYTE = b'T' + struct.pack('<I', 1 << 20) + bytes(1 << 20) + b'q\x00'
PAIRS = b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(24))


@pytest.mark.parametrize('program, message', [
  (b'\x96' + struct.pack('<Q', 1 << 31), 'ends too early'), (b'(' * 2_000_000, 'open marks'),
  (b'N0' * 400_000, 'operations'), (b'\x8b' + struct.pack('<i', 4000) + bytes(4000), 'an integer of 4000 bytes'),
  (b'I0x' + b'f' * 4000 + b'\n', 'an integer of 4,003 digits'), (b'L' + b'1' * 4000 + b'L\n', 'an integer of 4,0'),
  (MEBIBYTE + b'c_codecs\nencode\nq\x01' + b'h\x01h\x00\x85R' * 200, 'larger than the file'),
  (MEBIBYTE + (EMPTY_ARRAY + b'(K\x01(J\x00\x00\x04\x00tcnumpy\ndtype\n(U\x02f4K\x00K\x01tR\x89h\x00tb') * 9,
   'larger than the file'),
  (state(shape=b'(' + b'\x8a\x40' + b'\x7f' * 64 + b't'), 'shape and bytes disagree'),
  (b'ccollections\nOrderedDict\n]R', None), (b'cnumpy\ndtype\n]R', 'arguments that are not a tuple'),
  (b'h\x07', 'UnpicklingError'), (b'}K\x01\x93', 'STACK_GLOBAL'),
], ids=['bytearray', 'marks', 'operations', 'LONG4', 'INT', 'LONG', 'codec', 'arrays', 'sides', 'arguments',
        'arguments of a known name', 'memo', 'name'])
def test_pickles_that_would_take_minutes_or_gigabytes_are_refused(tmp_path, monkeypatch, program, message):
  """A few bytes that would take minutes or gigabytes."""
  monkeypatch.setattr(pickles, '_MAX_OPERATIONS', 100_000)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  with pytest.raises(UserError, match=message) as error:
    pickles.load(write(tmp_path, b'\x80\x05' + program + b'.'))
  assert len(str(error.value)) < 400 and str(error.value).isprintable()
  assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 << 10


@pytest.mark.parametrize('program, message', [
  (b'c_codecs\nencode\nU\x01aK\x01' + PAIRS + b'\x86R', 'the codec an object of type tuple'),
  (b'cnumpy\nndarray\nK\x01' + PAIRS + b'\x85R', 'TypeError'),
], ids=['codec', 'arguments'])
def test_messages_never_show_an_object_of_the_file(tmp_path, program, message):
  """The repr of a tuple of 2 ** 24 references to a number takes minutes and gigabytes."""
  with pytest.raises(UserError, match=message) as error:
    pickles.load(write(tmp_path, b'\x80\x02' + program + b'.'))
  assert len(str(error.value)) < 400 and str(error.value).isprintable()
