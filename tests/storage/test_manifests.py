"""Manifests of checkpoints: what is damaged, incomplete or hostile is not read."""

import json

import numpy as np
import pytest
import tensorflow as tf

from rethink_tf.storage import manifests


@pytest.fixture
def folder(tmp_path):
  """A checkpoint folder of step 7."""
  folder = tmp_path / 'checkpoints/step-00000007'
  folder.mkdir(parents=True)
  (folder / 'weights.index').write_bytes(b'index')
  (folder / 'weights.data').write_bytes(bytes(range(100)))
  manifests.write(str(folder), 7, {'seen': np.int64(3), 'mean': np.ones(2)})
  return folder


def forge(folder, **fields):
  """Change fields of the manifest; its checksum matches."""
  manifest = json.loads((folder / 'manifest.json').read_text()) | fields
  del manifest['checksum']
  (folder / 'manifest.json').write_text(json.dumps(manifest | {'checksum': manifests.checksum(manifest)}))


def test_a_manifest_is_read_as_it_was_written(folder):
  for manifest in (manifests.read(str(folder)), manifests.read(str(folder), 7), manifests.verify(str(folder), 7)):
    assert manifest['step'] == 7 and manifest['state'] == {'seen': 3, 'mean': [1.0, 1.0]}
    assert manifest['files'] == {'weights.data': 100, 'weights.index': 5} and manifest['sha256'].keys() == manifest[
      'files'].keys()
  with pytest.raises(ValueError, match='its manifest is damaged'):
    manifests.read(str(folder), 8)


def test_a_state_that_is_not_json(folder):
  with pytest.raises(TypeError, match='must be JSON, not set'):
    manifests.write(str(folder), 7, {'seen': {1}})


def test_only_verify_compares_checksums(folder):
  (folder / 'weights.data').write_bytes(bytes(100))
  manifests.read(str(folder))
  with pytest.raises(ValueError, match='weights.data is damaged'):
    manifests.verify(str(folder))
  (folder / 'weights.data').write_bytes(bytes(99))
  with pytest.raises(ValueError, match='cut short'):
    manifests.read(str(folder))
  (folder / 'weights.data').unlink()
  with pytest.raises(tf.errors.NotFoundError):
    manifests.read(str(folder))


@pytest.mark.parametrize('text', [
  '', '[' * 100_000, '[]', '7', '{"files": {"../../x": 5}}', '{"files": []}', '{"files": {"a": "b"}}',
  '{"step": 7, "files": {"../../x": 5}, "state": {}}', '{"step": 7, "files": {"weights.index": "5"}, "state": {}}',
  '{"step": 7, "files": [], "state": {}}', '{"step": 7, "files": {}, "state": {}}',
  '{"step": 7, "files": {"weights.index": 5}, "state": []}'])
def test_a_file_that_is_not_a_manifest(folder, tmp_path, text):
  (tmp_path / 'x').write_text('12345')
  (folder / 'manifest.json').write_text(text)
  with pytest.raises(ValueError, match='its manifest is damaged|cut short'):
    manifests.read(str(folder))
  assert manifests.newest_sound(str(tmp_path)) is None and manifests.newest_sound(str(folder)) is None


@pytest.mark.parametrize('fields', [
  {'files': {'../../x': 5}}, {'sha256': {'/dev/zero': 'x'}}, {'sha256': ['weights.index']}, {'sha256': 7}], ids=str)
def test_a_forged_manifest_reaches_no_other_file(folder, tmp_path, fields):
  (tmp_path / 'x').write_text('12345')
  forge(folder, **fields)
  with pytest.raises(ValueError, match='its manifest is damaged'):
    manifests.verify(str(folder))


def test_a_manifest_that_is_too_long(folder, monkeypatch):
  monkeypatch.setattr(manifests, '_MAX_BYTES', 100)
  with pytest.raises(ValueError, match='its manifest is damaged'):
    manifests.read(str(folder))


def test_the_newest_sound_checkpoint(folder, tmp_path):
  assert manifests.newest_sound(str(tmp_path / 'none')) is None
  newer = tmp_path / 'checkpoints/step-00000010'
  newer.mkdir()
  (newer / 'weights.data').write_bytes(bytes(100))
  assert manifests.newest_sound(str(tmp_path)) == str(folder)  # no manifest yet
  manifests.write(str(newer), 10, {})
  assert manifests.newest_sound(str(tmp_path)) == str(newer) == manifests.newest_sound(str(newer))
  (newer / 'weights.data').write_bytes(bytes(99) + b'\1')
  assert manifests.newest_sound(str(tmp_path)) == str(folder)
  assert manifests.steps(str(tmp_path / 'checkpoints')) == [7, 10]
