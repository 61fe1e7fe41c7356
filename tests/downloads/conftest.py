"""A local server for every test of downloads, and no proxies or waits."""

import pytest

from rethink_tf.downloads import cache, transfer
from tests.downloads.server import CONTENT, serving


@pytest.fixture(autouse=True)
def quick(monkeypatch):
  monkeypatch.setattr(transfer, 'FIRST_PAUSE', 0.001)
  monkeypatch.setattr(transfer, 'ATTEMPTS', 3)
  monkeypatch.setattr(cache, '_POLL_SECONDS', 0.01)
  for name in ('http_proxy', 'https_proxy', 'HTTP_PROXY', 'RETHINK_TF_OFFLINE'):
    monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server():
  with serving(CONTENT) as running:
    yield running
