"""The index of a TensorFlow checkpoint is validated first: a forged one would abort the process."""

import json
import struct

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.tfrecord import masked_crc
from rethink_tf.errors import UserError
from rethink_tf.storage import checkpoint_index
from rethink_tf.storage.checkpoints import RunCheckpoints
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.weights import formats

KEY = b'kernel/.ATTRIBUTES/VARIABLE_VALUE'


@pytest.fixture
def prefix(tmp_path):
  values = {'layer_with_weights-0': tf.train.Checkpoint(kernel=tf.Variable(np.ones([7, 7, 3, 4], 'f'))),
            'many': [tf.Variable(np.ones([i], 'f')) for i in range(100)], 'none': tf.Variable(np.zeros([0, 4], 'f')),
            'half': tf.Variable(np.ones([2], np.float16)), 'yes': tf.Variable(True)}
  tf.train.Checkpoint(**values).write(str(tmp_path / 'official'))
  return str(tmp_path / 'official')


def forge(prefix, change):
  """Change the block of entries; its checksum matches."""
  with open(f'{prefix}.index', 'rb') as file:
    data = file.read()
  meta, _ = checkpoint_index._varint(data, len(data) - 48)
  block = bytearray(data[:meta - 5])
  change(block)
  assert len(block) == meta - 5
  checked = bytes(block) + b'\0'
  with open(f'{prefix}.index', 'wb') as file:
    file.write(checked + struct.pack('<I', masked_crc(checked)) + data[meta:])


def test_valid_checkpoints(prefix):
  assert checkpoint_index.problem(prefix) is None
  with open(f'{prefix}.index', 'rb') as file:
    entries = checkpoint_index._entries(file.read())
  names = {name for name, _ in tf.train.list_variables(prefix)}
  assert {key.decode() for key in entries if key} == names and len(names) == 105


def test_an_invalid_entry(prefix):
  def damage(block):
    block[block.index(KEY) + len(KEY)] = 0xff
  forge(prefix, damage)
  assert checkpoint_index.problem(prefix) == 'its index is damaged'
  with pytest.raises(UserError, match='not a complete TensorFlow checkpoint.*index is damaged'):
    formats.read(prefix)


@pytest.mark.parametrize('old, new, message', [
  # shape { dim { size: 7 } }, then 127: the file has fewer bytes
  (b'\x12\x02\x08\x07\x12\x02\x08\x07', b'\x12\x02\x08\x07\x12\x02\x08\x7f', 'bytes for the shape'),
  (b'\x08\x01\x12\x10\x12\x02\x08\x07', b'\x08\x00\x12\x10\x12\x02\x08\x07', 'unknown type|bytes for the shape'),
  (b'\x08\x01\x12\x10\x12\x02\x08\x07', b'\x08\x02\x12\x10\x12\x02\x08\x07', 'bytes for the shape')],
  ids=['shape', 'no type', 'type'])
def test_entries_that_do_not_match_their_files(prefix, old, new, message):
  def damage(block):
    position = block.index(old)
    block[position:position + len(old)] = new
  forge(prefix, damage)
  with pytest.raises(UserError, match=message) as error:
    formats.read(prefix)
  assert '\n' not in str(error.value)


def test_a_truncated_or_missing_data_file(prefix, tmp_path):
  data = tmp_path / 'official.data-00000-of-00001'
  data.write_bytes(data.read_bytes()[:1000])
  assert 'exceeds the end of its data file' in checkpoint_index.problem(prefix)
  data.unlink()
  assert 'exceeds the end of its data file' in checkpoint_index.problem(prefix)


@pytest.mark.parametrize('keep', [0, 7, 40, 60, 500])
def test_a_truncated_index(prefix, tmp_path, keep):
  path = tmp_path / 'official.index'
  path.write_bytes(path.read_bytes()[:keep])
  assert checkpoint_index.problem(prefix) == 'its index is damaged'
  path.write_bytes(bytes(keep))
  assert checkpoint_index.problem(prefix) == 'its index is damaged'


def test_a_run_skips_a_forged_checkpoint(tmp_path):
  variable = tf.Variable(5.0)
  run = RunCheckpoints(RunFolder(str(tmp_path)))
  run.save(1, {'v': tf.train.Checkpoint(kernel=variable)}, {})
  run.save(2, {'v': tf.train.Checkpoint(kernel=variable)}, {})
  folder = tmp_path / 'checkpoints/step-00000002'

  def damage(block):
    block[block.index(KEY) + len(KEY)] = 0xff
  forge(str(folder / 'weights'), damage)
  manifest = folder / 'manifest.json'
  content = json.loads(manifest.read_text())
  manifest.write_text(json.dumps({key: content[key] for key in ('step', 'files', 'state')}))  # as before checksums
  variable.assign(0.0)
  assert run.restore({'v': tf.train.Checkpoint(kernel=variable)}) == {} and variable.numpy() == 5.0


def block_of(entries):
  """A block of a table; an entry is (length of the prefix shared with the one before, rest of the key, value)."""
  def varint(value):
    return bytes([value & 127 | 128]) + varint(value >> 7) if value > 127 else bytes([value])
  body = b''.join(varint(shared) + varint(len(key)) + varint(len(value)) + key + value
                  for shared, key, value in entries)
  return body + struct.pack('<II', 0, 1)


@pytest.mark.parametrize('entries, index, message', [
  ([(0, b'k' * 3000, b''), *[(3000, b'', b'')] * 1000], 1, 'is damaged'),  # every entry copies the key before
  ([(0, b'%06d' % i, b'') for i in range(2000)], 1000, 'is damaged'),  # a thousand references to one block
], ids=['keys', 'blocks'])
def test_work_is_bounded_by_the_length_of_the_index(tmp_path, entries, index, message):
  block = block_of(entries) + bytes(5)
  handle = b'\x00' + bytes([len(block) - 5 & 127 | 128, (len(block) - 5) >> 7 & 127 | 128, (len(block) - 5) >> 14])
  table = block_of([(0, b'%04d' % i, handle) for i in range(index)])
  size = bytes([len(table) & 127 | 128, len(table) >> 7 & 127 | 128, len(table) >> 14])
  start = bytes([len(block) & 127 | 128, len(block) >> 7 & 127 | 128, len(block) >> 14])
  footer = (b'\x00\x00' + start + size).ljust(40, b'\0') + struct.pack('<Q', checkpoint_index._MAGIC)
  (tmp_path / 'x.index').write_bytes(block + table + bytes(5) + footer)
  assert message in checkpoint_index.problem(str(tmp_path / 'x'))
