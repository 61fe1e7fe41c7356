"""TFRecord files: checksums, random access, damaged and truncated records."""

import struct

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.data.tfrecord import FOOTER, HEADER, DamagedRecord, masked_crc, read_record, scan


def test_checksum_of_the_example_in_the_standard():
  crc = 0xE3069283  # CRC-32C of "123456789" (RFC 3720)
  assert masked_crc(b'123456789') == ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@pytest.mark.parametrize('length', [0, 1, 3, 8, 63, 64, 65, 128, 191, 192, 1000, 4096, 150_001])
def test_checksum_equals_tensorflows(tmp_path, length):
  data = np.random.default_rng(length).bytes(length)
  with tf.io.TFRecordWriter(str(tmp_path / 'x')) as writer:
    writer.write(data)
  written = (tmp_path / 'x').read_bytes()
  assert len(written) == HEADER + length + FOOTER
  assert masked_crc(data) == struct.unpack('<I', written[-4:])[0]


@pytest.fixture
def shard(tmp_path):
  payloads = [np.random.default_rng(k).bytes(50 * k) for k in range(6)]
  path = str(tmp_path / 'shard')
  with tf.io.TFRecordWriter(path) as writer:
    for payload in payloads:
      writer.write(payload)
  return path, payloads


def test_scan_and_random_reads(shard):
  path, payloads = shard
  records = list(scan(path))
  assert [payload for _, payload in records] == payloads
  with tf.io.gfile.GFile(path, 'rb') as file:
    for k in (4, 0, 5, 2):
      assert read_record(file, records[k][0])[0] == payloads[k]
    with pytest.raises(EOFError):
      read_record(file, file.size())


@pytest.mark.parametrize('place, survivors', [(HEADER + 7, 4), (2, 1)], ids=['payload', 'length'])
def test_flipped_bit(shard, place, survivors):
  path, payloads = shard
  start = list(scan(path))[1][0]
  content = bytearray(open(path, 'rb').read())
  content[start + place] ^= 4
  open(path, 'wb').write(content)
  records = [payload for _, payload in scan(path)]
  assert isinstance(records[1], DamagedRecord)
  assert records[2:] == (payloads[2:] if survivors == 4 else [])  # without the length the next offset is unknown


@pytest.mark.parametrize('kept', [1, 8, HEADER - 1, HEADER, HEADER + 1, HEADER + 250, HEADER + 250 + FOOTER - 1])
def test_truncated_file(shard, kept):
  path, payloads = shard
  content = open(path, 'rb').read()
  last, _ = list(scan(path))[-1]
  open(path, 'wb').write(content[:last + kept])
  records = [payload for _, payload in scan(path)]
  assert records[:-1] == payloads[:-1]
  with pytest.raises(DamagedRecord, match=f'the record at byte {last} (is truncated|has a damaged header)'):
    raise records[-1]


@pytest.mark.parametrize('length', [1 << 25, 1 << 32, 1 << 60, (1 << 64) - 1, (1 << 64) - 16])
def test_length_beyond_the_file_with_a_valid_checksum(shard, length):
  """TensorFlow's reader aborts the process when it allocates as much memory."""
  path, payloads = shard
  header = struct.pack('<Q', length)
  with open(path, 'ab') as file:
    file.write(header + struct.pack('<I', masked_crc(header)) + b'little')
  records = [payload for _, payload in scan(path)]
  assert records[:-1] == payloads and 'truncated' in str(records[-1])


def test_long_record(tmp_path):
  with tf.io.TFRecordWriter(str(tmp_path / 'x')) as writer:
    writer.write(bytes(17 << 20))
  (_, payload), = scan(str(tmp_path / 'x'))
  assert len(payload) == 17 << 20
