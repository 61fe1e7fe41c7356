"""Interrupted transfers continue, never across two versions of a file; what cannot succeed fails in one line."""

import errno
import os
import shutil

import numpy as np
import pytest

from rethink_tf.downloads import transfer
from rethink_tf.downloads.remote_file import RemoteFile
from rethink_tf.errors import UserError
from tests.downloads.server import CONTENT, serving

OTHER = np.random.default_rng(1).bytes(len(CONTENT))


def get(server, tmp_path, **fields):
  partial = tmp_path / 'x.partial'
  joined = transfer.download(RemoteFile(server.url(), **fields), str(partial), 'x')
  return partial.read_bytes(), joined


def fails(server, tmp_path, pattern, remote=None):
  with pytest.raises(UserError, match=pattern) as error:
    transfer.download(remote or RemoteFile(server.url()), str(tmp_path / 'x.partial'), 'x')
  assert '\n' not in str(error.value)
  return str(error.value)


def ranges(server):
  return [wanted for _, wanted, _ in server.requests]


def test_a_truncated_transfer_continues(server, tmp_path):
  server.faults = [('cut', 100_000), ('cut', 100_000)]
  content, joined = get(server, tmp_path)
  assert content == CONTENT and joined
  assert ranges(server) == [None, 'bytes=100000-', 'bytes=200000-']
  assert server.requests[1][2].startswith('"')  # If-Range: its ETag


def test_a_later_process_continues(server, tmp_path):
  server.faults = [('cut', 100_000), *[503] * 9]
  message = fails(server, tmp_path, r'the server answers 503 .*; 0\.1 MiB are kept: the same command continues')
  assert server.address in message
  server.faults = []
  assert get(server, tmp_path)[0] == CONTENT and ranges(server)[-1] == 'bytes=100000-'


@pytest.mark.parametrize('honest', [True, False])
def test_a_changed_file_is_not_joined(server, tmp_path, honest):
  """Also if the server sends a part of the new one, against If-Range."""
  server.honest = honest
  server.faults = [('cut', 100_000), ('change', OTHER)]
  content, joined = get(server, tmp_path)
  assert content == OTHER and not joined and ranges(server)[1] == 'bytes=100000-'


def test_a_shorter_file_is_not_joined(server, tmp_path):
  server.etag, server.faults = False, [('cut', 100_000), ('change', OTHER[:50_000])]
  assert get(server, tmp_path, sha256='0')[0] == OTHER[:50_000]  # 416, then anew


def test_without_a_validator_only_a_checksum_allows_joining(server, tmp_path):
  server.etag = False
  server.faults = [('cut', 100_000)]
  assert get(server, tmp_path) == (CONTENT, False) and ranges(server) == [None, None]
  os.remove(tmp_path / 'x.partial')
  server.requests, server.faults = [], [('cut', 100_000)]
  assert get(server, tmp_path, sha256='0') == (CONTENT, True) and ranges(server) == [None, 'bytes=100000-']


def test_a_date_is_a_validator(server, tmp_path):
  server.etag, server.modified, server.faults = False, 'Sun, 01 Mar 2020 10:00:00 GMT', [('cut', 100_000)]
  assert get(server, tmp_path) == (CONTENT, True) and server.requests[1][2] == server.modified


def test_a_server_without_ranges(server, tmp_path):
  server.ranges, server.faults = False, [('cut', 100_000)]
  assert get(server, tmp_path) == (CONTENT, False)


def test_a_server_that_does_not_say_the_length(server, tmp_path):
  """The end of the connection is taken for that of the file only if a checksum will tell."""
  server.length = False
  assert get(server, tmp_path, sha256='0') == (CONTENT, False)
  fails(server, tmp_path, 'does not state the length of the file, and there is no checksum')


def test_errors_that_pass(server, tmp_path):
  server.faults = [500, 503]
  assert get(server, tmp_path)[0] == CONTENT and len(server.requests) == 3


@pytest.mark.parametrize('status', [401, 403, 404, 410])
def test_errors_that_stay(server, tmp_path, status):
  server.faults = [status] * 9
  fails(server, tmp_path, rf'{server.address}/some/folder/file.bin: the server answers {status} .*: the address may')
  assert len(server.requests) == 1


def test_a_server_that_fails_for_long(server, tmp_path):
  server.faults = [503] * 9
  fails(server, tmp_path, 'answers 503 .*; the same command continues, or set https_proxy')
  assert len(server.requests) == transfer.ATTEMPTS


def test_a_slow_server_is_waited_for_and_a_stalled_one_asked_again(server, tmp_path, monkeypatch):
  monkeypatch.setattr(transfer, 'TIMEOUT_SECONDS', 0.3)
  server.chunk, server.pause = 100_000, 0.1
  assert get(server, tmp_path)[0] == CONTENT and len(server.requests) == 1
  os.remove(tmp_path / 'x.partial')
  server.requests, server.faults = [], [('stall', 100_000)]
  assert get(server, tmp_path) == (CONTENT, True) and ranges(server) == [None, 'bytes=100000-']
  os.remove(tmp_path / 'x.partial')
  server.faults = [('stall', 0)] * 9
  fails(server, tmp_path, r'no answer within 0\.3 s')


def test_redirects_are_followed_to_http_only(server, tmp_path):
  with serving(OTHER) as other:
    server.faults = [('redirect', other.url())]
    assert get(server, tmp_path)[0] == OTHER
  for address in ('file:///etc/passwd', 'ftp://127.0.0.1/x'):
    os.remove(tmp_path / 'x.partial')
    server.faults = [('redirect', address)]
    fails(server, tmp_path, rf'redirects to {address}, which is not followed: get the file')
    (tmp_path / 'x.partial').touch()


def test_https_does_not_redirect_to_http():
  request = transfer.urllib.request.Request('https://host.example/x')
  redirect = transfer._SafeRedirects().redirect_request
  with pytest.raises(UserError, match='redirects to http://host.example/x, which is not followed'):
    redirect(request, None, 302, 'Found', {}, 'http://host.example/x')
  assert redirect(request, None, 302, 'Found', {}, 'https://other.example/x').full_url == 'https://other.example/x'


def test_a_web_page_is_no_file(server, tmp_path):
  server.kind = 'text/html; charset=utf-8'
  fails(server, tmp_path, 'the server sends a web page instead of the file: log in')


@pytest.mark.parametrize('address', ['file:///etc/passwd', 'ftp://host/x.bin', 'gs://bucket/x.bin', '/etc/passwd',
                                     'https://host.example/', 'https://host.example/%2e%2e%2fx/..', 'https:///x'])
def test_other_addresses_are_refused(address):
  with pytest.raises(UserError, match=r'only https:// and http://|does not end with the name'):
    RemoteFile(address).check_address()


def test_an_unreachable_server_is_one_line(tmp_path):
  with serving() as gone:
    address = gone.url()
  fails(gone, tmp_path, 'Connection refused; the same command continues', RemoteFile(address))
  fails(gone, tmp_path, 'the server is not found .*: connect this machine', RemoteFile('http://no-such-host.invalid/x'))


def test_a_full_disk_is_refused_before_the_download(server, tmp_path, monkeypatch):
  monkeypatch.setattr(shutil, 'disk_usage', lambda path: shutil._ntuple_diskusage(1, 1, 1000))
  fails(server, tmp_path, r'1 MiB are needed and 0 free: make room, or choose another folder \(RETHINK_TF_CACHE\)')
  monkeypatch.undo()
  if not os.path.exists('/dev/full'):
    pytest.skip('needs /dev/full')
  os.symlink('/dev/full', tmp_path / 'full.partial')
  with pytest.raises(UserError, match=f'cannot be written: {os.strerror(errno.ENOSPC)}: make room'):
    transfer.download(RemoteFile(server.url()), str(tmp_path / 'full.partial'), 'x')


def test_a_proxy_is_used(server, tmp_path, monkeypatch):
  monkeypatch.setenv('http_proxy', server.address)
  monkeypatch.delenv('no_proxy', raising=False)
  transfer.download(RemoteFile('http://publisher.example/a/x.bin'), str(tmp_path / 'x.partial'), 'x')
  assert server.requests[0][0] == 'http://publisher.example/a/x.bin'


def test_progress_counts_bytes(server, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(transfer.console, 'PROGRESS_SECONDS', 0.0)
  get(server, tmp_path)
  lines = capsys.readouterr().err.splitlines()
  assert lines[-1].startswith('x: 0.3/0.3 MiB, ') and lines[-1].endswith('MiB/s, ETA 0 s')
