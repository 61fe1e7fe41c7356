"""The folder of the cache, and downloads that are off."""

import pytest

from rethink_tf.downloads import settings
from rethink_tf.errors import UserError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
  for name in (settings.CACHE, settings.OFFLINE, 'XDG_CACHE_HOME'):
    monkeypatch.setenv(name, '')  # restored after the test, whatever it sets


def test_the_folder_of_the_cache(monkeypatch):
  monkeypatch.setenv('HOME', '/home/x')
  assert settings.cache_folder('weights') == '/home/x/.cache/rethink_tf/weights'
  monkeypatch.setenv('XDG_CACHE_HOME', '/cache')
  assert settings.cache_folder('weights') == '/cache/rethink_tf/weights'
  settings.apply('~/mine', offline=False)
  assert settings.cache_folder('data') == '/home/x/mine/data'
  monkeypatch.setenv(settings.CACHE, 'gs://bucket/cache')
  with pytest.raises(UserError, match='RETHINK_TF_CACHE = gs://bucket/cache: use a folder of this machine'):
    settings.cache_folder('data')


@pytest.mark.parametrize('value, off', [('', False), ('0', False), ('False', False), ('1', True), ('yes', True)])
def test_downloads_are_off(monkeypatch, value, off):
  monkeypatch.setenv(settings.OFFLINE, value)
  assert settings.is_offline() == off


def test_the_flag_turns_downloads_off():
  settings.apply(None, offline=True)
  assert settings.is_offline()
