"""YAML files beside weights: plain values, looked up by dotted names; anything else is skipped with a warning."""

import pytest

from rethink_tf.weights import settings_files


def test_the_first_file_that_can_be_read_counts(tmp_path, caplog):
  (tmp_path / 'a.yaml').write_text('- 1\n')
  (tmp_path / 'b.yaml').write_text('MODEL:\n  RESNETS: {DEPTH: 50}\n')
  weights = str(tmp_path / 'model.pth')
  place, settings = settings_files.beside(weights, ('none.yaml', 'a.yaml', 'b.yaml'))
  assert place == str(tmp_path / 'b.yaml') and 'not a mapping' in caplog.text
  assert settings_files.get(settings, 'MODEL.RESNETS.DEPTH') == 50
  assert settings_files.get(settings, 'MODEL.RESNETS.DEPTH.X') is None
  assert settings_files.beside(weights, ('none.yaml',)) == ('', {})


@pytest.mark.parametrize('text', ['!!python/object/apply:os.system ["touch attacked"]', 'a: [', '\x00',
                                  'a: 1\n' * 60_000, '[' * 50_000,
                                  'a: &a {x: 1}\nb: &b {<<: [*a, *a]}\nc: {<<: [*b, *b]}'])
def test_other_files_are_skipped(tmp_path, monkeypatch, caplog, text):
  monkeypatch.chdir(tmp_path)
  (tmp_path / 'config.yaml').write_text(text)
  assert settings_files.beside(str(tmp_path / 'x'), ('config.yaml',)) == ('', {})
  assert 'is ignored: not a YAML file of settings' in caplog.text and not (tmp_path / 'attacked').exists()
