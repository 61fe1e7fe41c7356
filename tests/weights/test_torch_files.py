"""Files of torch.save without torch: views of storages, element types, and damaged or forged files."""

import struct
import zipfile

import numpy as np
import pytest

from rethink_tf.errors import UserError
from rethink_tf.weights import placeholders, torch_files
from tests.weights import files

WRITERS = {'legacy': files.legacy, 'zip': files.zipped}
both = pytest.mark.parametrize('kind', ['legacy', 'zip'])


def one(kind, storage='FloatStorage', count=6, offset=0, size=(2, 3), stride=(3, 1), view=b'N'):
  return files.state_dict([('w', files.tensor(storage, '0', count, offset, size, stride, kind == 'legacy', view))])


def write(tmp_path, kind, pickled, storages, **options):
  path = tmp_path / 'weights.pth'
  WRITERS[kind](path, pickled, storages, **options)
  return str(path)


def refused(path, message):
  with pytest.raises(UserError, match=message) as error:
    torch_files.load(path)
  assert '\n' not in str(error.value) and path in str(error.value)


@both
@pytest.mark.parametrize('dtype', ['f4', 'f2', 'f8', 'i8', 'u1'])
def test_arrays_are_read(tmp_path, kind, dtype):
  rng = np.random.default_rng(0)
  arrays = {'a.weight': rng.integers(0, 100, (4, 3, 2)).astype(dtype), 'scalar': np.array(3, dtype),
            'empty': np.zeros([0, 4], dtype)}
  read = torch_files.load(write(tmp_path, kind, *files.plain(arrays, kind == 'legacy')))
  assert list(read) == list(arrays)
  for name, array in arrays.items():
    assert read[name].shape == array.shape
    np.testing.assert_array_equal(np.asarray(read[name]), array)
    assert np.asarray(read[name]).dtype == dtype or not array.size


@both
def test_shared_storages_and_transposed_tensors(tmp_path, kind):
  values = np.arange(24, dtype='f')
  legacy = kind == 'legacy'
  items = [('all', files.tensor('FloatStorage', '0', 24, 0, (24,), (1,), legacy)),
           ('rows', files.tensor('FloatStorage', '0', 24, 6, (3, 4), (4, 1), legacy)),
           ('columns', files.tensor('FloatStorage', '0', 24, 0, (6, 4), (1, 6), legacy))]
  read = torch_files.load(write(tmp_path, kind, files.state_dict(items), {'0': (24, values.tobytes())}))
  np.testing.assert_array_equal(read['all'], values)
  np.testing.assert_array_equal(read['rows'], values[6:18].reshape(3, 4))
  np.testing.assert_array_equal(read['columns'], values.reshape(4, 6).T)


@both
def test_bfloat16_is_the_upper_half_of_a_float32(tmp_path, kind):
  values = np.array([1.0, -2.5, 3.140625, 0, 1e30, -1e-30], 'f')
  raw = (values.view('<u4') >> 16).astype('<u2')
  read = torch_files.load(write(tmp_path, kind, one(kind, 'BFloat16Storage'), {'0': (6, raw.tobytes())}))
  np.testing.assert_allclose(np.asarray(read['w']).ravel(), values, rtol=2**-7)
  assert np.asarray(read['w']).dtype == np.float32


@both
@pytest.mark.parametrize('window', [
  dict(offset=1), dict(offset=-1), dict(size=(3, 3)), dict(stride=(4, 1)), dict(stride=(-3, 1)), dict(size=(-2, 3)),
  dict(size=(2,)), dict(size=(1 << 40, 1 << 40), stride=(0, 0)), dict(offset=1 << 50), dict(stride=(1 << 61, 1))],
  ids=str)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, kind, window):
  path = write(tmp_path, kind, one(kind, **window), {'0': (6, bytes(24))})
  refused(path, 'outside its storage')


@both
def test_a_storage_longer_than_the_file_is_refused(tmp_path, kind):
  path = write(tmp_path, kind, one(kind, count=1 << 40), {'0': (1 << 40, bytes(24))})
  refused(path, 'ends before its storage')


def test_views_and_other_byte_orders_are_refused(tmp_path):
  view = b'(' + files.text('0') + files.number(0) + files.number(6) + b't'
  refused(write(tmp_path, 'legacy', one('legacy', view=view), {'0': (6, bytes(24))}), 'view of another')
  refused(write(tmp_path, 'legacy', one('legacy'), {'0': (6, bytes(24))}, little_endian=False), 'big-endian')
  refused(write(tmp_path, 'zip', one('zip'), {'0': (6, bytes(24))}, byteorder=b'big'), 'big-endian')
  old = torch_files.load(write(tmp_path, 'zip', one('zip'), {'0': (6, bytes(24))}, byteorder=None))
  assert old['w'].shape == (2, 3)


def test_a_count_that_differs_is_refused(tmp_path):
  refused(write(tmp_path, 'legacy', one('legacy'), {'0': (5, bytes(24))}), '5 elements instead of 6')
  refused(write(tmp_path, 'legacy', one('legacy'), {'1': (6, bytes(24))}), 'list of storages')
  refused(write(tmp_path, 'zip', one('zip'), {'1': (6, bytes(24))}), 'missing')
  refused(write(tmp_path, 'zip', one('zip'), {'0': (6, bytes(24))}, compression=zipfile.ZIP_DEFLATED), 'compressed')


ATTACK = b'\x80\x02cposix\nsystem\nX\x0e\x00\x00\x00touch attacked\x85R.'


@both
@pytest.mark.parametrize('pickled, name', [
  (ATTACK, 'posix.system'), (b'\x80\x02ctorch\nload\n.', 'torch.load'),
  (b'\x80\x02c__builtin__\neval\nX\x01\x00\x00\x001\x85R.', '__builtin__.eval')])
def test_code_is_refused_by_name(tmp_path, monkeypatch, kind, pickled, name):
  monkeypatch.chdir(tmp_path)
  refused(write(tmp_path, kind, pickled, {}), f'refers to {name.replace(".", "[.]")}.*could run code')
  assert not (tmp_path / 'attacked').exists()


BESIDE = {  # what torch.save writes of objects beside the weights
  'argparse.Namespace': b'cargparse\nNamespace\n)\x81}(' + files.text('lr') + b'K\x01ub',
  'collections.Counter': b'ccollections\nCounter\n}(K\x1eK\x01u\x85R',
  'torch.Size': b'ctorch\nSize\n(K\x02K\x03t\x85R', 'torch.device': b'ctorch\ndevice\n' + files.text('cpu') + b'\x85R',
  'torch.float32': b'ctorch\nfloat32\n', 'set': b'c__builtin__\nset\n](K\x01e\x85R',
  'complex': b'c__builtin__\ncomplex\nK\x01K\x02\x86R',
  'sparse': b'ctorch._utils\n_rebuild_sparse_tensor\n(K\x01tR',
  'class': b'comegaconf.dictconfig\nDictConfig\n)\x81}' + files.text('x') + b'K\x01sb',
}


@both
@pytest.mark.parametrize('beside', list(BESIDE))
def test_what_is_no_weight_is_opaque(tmp_path, kind, beside):
  path = str(tmp_path / 'weights.pth')
  files.torch_object(path, {'epoch': 3, 'args': BESIDE[beside], 'state_dict': {'w': np.arange(6, dtype='f')},
                            'optimizer': {'state': {}, 'x': BESIDE[beside]}}, kind == 'legacy')
  read = torch_files.load(path)
  np.testing.assert_array_equal(read['state_dict']['w'], np.arange(6))
  assert read['epoch'] == 3 and isinstance(read['args'], placeholders.Opaque)
  assert isinstance(read['optimizer']['x'], placeholders.Opaque)


@both
def test_complex_tensors_and_tensors_of_new_types_are_opaque(tmp_path, kind):
  """Read as float32, complex numbers would lose their imaginary half; 8-bit floats have no storage class."""
  v3 = (b'ctorch._utils\n_rebuild_tensor_v3\n((' + files.text('storage') + b'ctorch.storage\nUntypedStorage\n' +
        files.text('0') + files.text('cpu') + files.number(24) + (b'N' if kind == 'legacy' else b'') +
        b'tQK\x00' + files.numbers((24,)) + files.numbers((1,)) + b'\x89' + files.EMPTY + b'ctorch\nfloat8_e4m3fn\ntR')
  for pickled, name in ((one(kind, 'ComplexFloatStorage', 3, size=(3,), stride=(1,)), 'complex'),
                        (files.state_dict([('w', v3)]), 'float8')):
    read = torch_files.load(write(tmp_path, kind, pickled, {'0': (24 if name == 'float8' else 3, bytes(24))}))
    assert isinstance(read['w'], placeholders.Opaque) and name in read['w'].name


@both
def test_parameters_and_tensors_with_attributes_are_read(tmp_path, kind):
  plain = files.tensor('FloatStorage', '0', 6, 0, (2, 3), (3, 1), kind == 'legacy')
  parameter = b'ctorch._utils\n_rebuild_parameter_with_state\n(' + plain + b'\x88' + files.EMPTY + b'}tR'
  arguments = plain.removeprefix(b'ctorch._utils\n_rebuild_tensor_v2\n').removesuffix(b'R')
  typed = (b'ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n' +
           b'ctorch\nTensor\n' + arguments + b'}tR')
  read = torch_files.load(write(tmp_path, kind, files.state_dict([('p', parameter), ('t', typed)]), {'0': (
    6, np.arange(6, dtype='f').tobytes())}))
  for name in 'pt':
    np.testing.assert_array_equal(read[name], np.arange(6).reshape(2, 3))


@both
@pytest.mark.parametrize('pickled', [
  b'\x80\x02(X\x07\x00\x00\x00storagetQ.', b'\x80\x02K\x05Q.', b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(tR.',
  b'\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00)) \x89NtR.', b'\x80\x02', b''], ids=repr)
def test_malformed_pickles(tmp_path, kind, pickled):
  refused(write(tmp_path, kind, pickled, {}), 'not a complete')


@both
def test_truncated_files(tmp_path, kind):
  arrays = {'a': np.arange(200, dtype='f'), 'b': np.arange(100, dtype='f')}
  path = write(tmp_path, kind, *files.plain(arrays, kind == 'legacy'))
  content = open(path, 'rb').read()
  for length in (0, 3, 20, 60, 200, len(content) // 2, len(content) - 200, len(content) - 1):
    with open(path, 'wb') as file:
      file.write(content[:length])
    with pytest.raises(UserError) as error:
      torch_files.load(path)
    assert '\n' not in str(error.value), length


def test_a_compressed_pickle_is_refused(tmp_path):
  """Zeros shrink to a thousandth: a small file could fill the memory."""
  path = tmp_path / 'bomb.pth'
  for name, content in (('data.pkl', one('zip')), ('byteorder', b'little' + bytes(1 << 20))):
    with zipfile.ZipFile(path, 'w') as archive:
      for member in ('data.pkl', 'byteorder'):
        archive.writestr(f'archive/{member}', content if member == name else one('zip'),
                         zipfile.ZIP_DEFLATED if member == name else zipfile.ZIP_STORED)
    refused(str(path), 'data.pkl is compressed')


def test_other_archives(tmp_path):
  path = tmp_path / 'other.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('readme.txt', 'hello')
  refused(str(path), 'without data.pkl')


def test_a_local_header_that_points_outside_the_file(tmp_path):
  path = write(tmp_path, 'zip', one('zip'), {'0': (6, bytes(24))})
  data = bytearray(open(path, 'rb').read())
  begin = data.index(b'archive/data/0') - 30
  data[begin + 28:begin + 30] = struct.pack('<H', 65535)
  with open(path, 'wb') as file:
    file.write(data)
  refused(path, 'ends before its storage|not a complete zip')


@both
@pytest.mark.parametrize('pickled', [
  b'ctorch._utils\n_rebuild_tensor_v2\n(' + b'N' + files.text('x' * 200) + files.numbers([1]) + b'tR',
  b'K\x01' + b''.join(b'q' + bytes([i]) + b'h' + bytes([i]) + b'\x86' for i in range(24)) + b'Q'])
def test_messages_show_no_object_of_the_file(tmp_path, kind, pickled):
  """A persistent id of 2 ** 24 references to a number."""
  path = write(tmp_path, kind, b'\x80\x02' + pickled + b'.', {})
  refused(path, 'not a complete pickle')


def test_a_long_list_of_entries_is_not_read(tmp_path, monkeypatch):
  monkeypatch.setattr(torch_files, '_MAX_DIRECTORY', 5000)
  path = tmp_path / 'weights.pth'
  with zipfile.ZipFile(path, 'w') as archive:
    for i in range(100):
      archive.writestr(f'archive/data/{i}', b'')
  refused(str(path), 'not a complete zip archive .a list of')
