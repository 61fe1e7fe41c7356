"""One process downloads and others wait; only the published file is put in place; every failure is one line."""

import fcntl
import json
import multiprocessing
import os
import shutil
import sys
import threading
import time

import pytest

from rethink_tf.downloads import cache, transfer
from rethink_tf.downloads.remote_file import RemoteFile, digests
from rethink_tf.errors import UserError
from tests.downloads.server import CONTENT


def known(server, tmp_path):
  (tmp_path / 'whole').write_bytes(server.content)
  size, sha256, md5 = digests(str(tmp_path / 'whole'))
  return RemoteFile(server.url(), size, sha256=sha256[:8], md5=md5)


def fails(remote, folder, pattern):
  with pytest.raises(UserError, match=pattern) as error:
    cache.fetch(remote, str(folder), 'some_name')
  assert '\n' not in str(error.value)
  assert not (folder / remote.name).exists()


def test_a_file_is_verified_and_recorded(server, tmp_path):
  remote, folder = known(server, tmp_path), tmp_path / 'cache'
  path = cache.fetch(remote, str(folder), 'some_name')
  assert open(path, 'rb').read() == CONTENT and path == str(folder / 'file.bin')
  record = json.loads((folder / 'file.bin.download.json').read_text())
  assert record['url'] == remote.url and record['sha256'].startswith(remote.sha256) and record['md5'] == remote.md5
  assert sorted(os.listdir(folder)) == ['file.bin', 'file.bin.download.json', 'file.bin.lock']
  assert cache.fetch(remote, str(folder), 'some_name') == path and len(server.requests) == 1


@pytest.mark.parametrize('change, message', [
  ({'sha256': '00000000'}, 'has the sha256 [0-9a-f]{16} instead of 00000000: the download was damaged or'),
  ({'md5': '00'}, 'has the md5'), ({'size': 5}, 'the server has 300,000 bytes instead of 5'),
  ({'size': None, 'mib': 0.3}, 'has 0.286 MiB instead of 0.300')])
def test_another_file_is_not_put_in_place(server, tmp_path, change, message):
  folder = tmp_path / 'cache'
  fails(known(server, tmp_path)._replace(**change), folder, message)
  assert os.listdir(folder) == ['file.bin.lock'] and len(server.requests) == 1


def test_a_checksum_beside_the_file(server, tmp_path):
  """As Detectron has them; without it the file is still recorded."""
  remote = RemoteFile(server.url(), md5_suffix='.md5sum')
  server.contents['/some/folder/file.bin.md5sum'] = b'0' * 32 + b'  file.bin\n'
  fails(remote, tmp_path / 'a', 'has the md5 [0-9a-f]+ instead of 0{32}')
  md5 = known(server, tmp_path).md5
  server.contents['/some/folder/file.bin.md5sum'] = f'{md5}\n'.encode()
  assert json.loads(open(cache.fetch(remote, str(tmp_path / 'b'), 'x') + '.download.json').read())['md5'] == md5
  server.faults = [404]
  assert cache.fetch(remote, str(tmp_path / 'c'), 'x')


def test_a_later_download_is_compared_with_the_first_one(server, tmp_path):
  remote, folder = RemoteFile(server.url()), tmp_path / 'cache'
  path = cache.fetch(remote, str(folder), 'some_name')
  os.remove(path)
  assert cache.fetch(remote, str(folder), 'some_name') == path
  os.remove(path)
  server.content = CONTENT[::-1]
  fails(remote, folder, 'the publisher has changed the file since 20.*delete .*download.json to accept')
  os.remove(f'{path}.download.json')
  requests = len(server.requests)
  assert open(cache.fetch(remote, str(folder), 'some_name'), 'rb').read() == CONTENT[::-1]
  assert len(server.requests) == requests  # what was downloaded is not downloaded again


def test_a_file_that_changes_in_the_cache_is_not_used(server, tmp_path):
  remote = RemoteFile(server.url())
  path = cache.fetch(remote, str(tmp_path), 'some_name')
  os.utime(path, (1, 1))  # as by a copy: the content decides
  assert cache.fetch(remote, str(tmp_path), 'some_name') == path
  with open(path, 'ab') as file:
    file.write(b'x')
  with pytest.raises(UserError, match='has changed since it was downloaded on 20.*: delete it'):
    cache.fetch(remote, str(tmp_path), 'some_name')


def test_a_file_that_was_copied_there_is_verified(server, tmp_path, monkeypatch):
  monkeypatch.setenv('RETHINK_TF_OFFLINE', '1')
  remote = known(server, tmp_path)
  fails(remote, tmp_path, r'some_name: is not at .*file\.bin, and downloads are off \(--offline or '
        r'RETHINK_TF_OFFLINE\): leave it out, or copy http://.*file\.bin to that path')
  shutil.copy(tmp_path / 'whole', tmp_path / 'file.bin')
  assert cache.fetch(remote, str(tmp_path), 'some_name') == str(tmp_path / 'file.bin')
  with pytest.raises(UserError, match='has the md5 .* it is not http'):
    cache.fetch(remote._replace(md5='0' * 32), str(tmp_path), 'some_name')
  assert not server.requests


class Windows:
  """msvcrt: fcntl does not exist there, and what is locked cannot be read."""

  LK_NBLCK = 2

  @staticmethod
  def locking(descriptor, mode, size):
    assert mode == Windows.LK_NBLCK and size == 1 and os.lseek(descriptor, 0, os.SEEK_CUR) > 1e9
    try:
      fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise PermissionError(13, 'Permission denied') from None


@pytest.mark.parametrize('windows', [False, True])
def test_one_downloads_while_others_wait(server, tmp_path, monkeypatch, windows):
  """The lock belongs to an open file: threads hold it as processes do."""
  if windows:
    monkeypatch.setattr(cache, 'fcntl', None)
    monkeypatch.setitem(sys.modules, 'msvcrt', Windows)
  lines, started = [], threading.Event()
  monkeypatch.setattr(cache.logging, 'info', lambda text, *values: (
    lines.append(text % values), 'waiting for' in text and started.set()))
  server.faults = [('stall', 1000)]
  remote = known(server, tmp_path)
  monkeypatch.setattr(transfer, 'TIMEOUT_SECONDS', 0.5)
  found = []
  threads = [threading.Thread(target=lambda: found.append(cache.fetch(remote, str(tmp_path / 'c'), 'some_name')))
             for _ in range(4)]
  for thread in threads:
    thread.start()
  assert started.wait(20)
  server.released.set()
  for thread in threads:
    thread.join(30)
  assert found == [str(tmp_path / 'c' / 'file.bin')] * 4
  assert sum(wanted is None for _, wanted, _ in server.requests) == 1  # the second request continues the first
  assert any(f'waiting for process {os.getpid()} on' in line for line in lines)


def test_a_process_that_has_just_taken_the_lock_is_named(server, tmp_path, monkeypatch):
  lines = []
  monkeypatch.setattr(cache.logging, 'info', lambda text, *values: lines.append(text % values))
  monkeypatch.setattr(cache, '_POLL_SECONDS', 0.02)
  remote = known(server, tmp_path)
  (tmp_path / 'c').mkdir()
  waiting = threading.Thread(target=lambda: cache.fetch(remote, str(tmp_path / 'c'), 'some_name'))
  with open(tmp_path / 'c/file.bin.lock', 'w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    waiting.start()
    time.sleep(0.1)
    file.write('process 7 on host')
    file.flush()
    time.sleep(0.1)
  waiting.join(30)
  assert [line for line in lines if 'waiting for' in line] == [
    'some_name: waiting for process 7 on host, which is downloading it']


def test_the_lock_of_a_dead_process_is_void(server, tmp_path):
  (tmp_path / 'file.bin.lock').write_text('process 1 on nowhere')
  (tmp_path / 'file.bin.partial').write_bytes(b'of another file')
  assert open(cache.fetch(RemoteFile(server.url()), str(tmp_path), 'some_name'), 'rb').read() == CONTENT


def test_without_locks_each_process_has_its_own_partial_file(server, tmp_path, monkeypatch):
  def no_locks(*_):
    raise OSError(95, 'Operation not supported')
  monkeypatch.setattr(cache.fcntl, 'flock', no_locks)
  assert open(cache.fetch(known(server, tmp_path), str(tmp_path / 'c'), 'some_name'), 'rb').read() == CONTENT


def test_a_folder_that_cannot_be_written(server, tmp_path):
  (tmp_path / 'file').write_text('')
  fails(RemoteFile(server.url()), tmp_path / 'file' / 'cache', 'cannot be (read|written): .*Not a directory')


def in_process(url, folder, start, results):
  start.wait()
  results.put(cache.fetch(RemoteFile(url), folder, 'some_name'))


@pytest.mark.slow
def test_processes_download_once(server, tmp_path):
  server.pause = 0.2
  context = multiprocessing.get_context('spawn')
  start, results = context.Barrier(3), context.Queue()
  running = [context.Process(target=in_process, args=(server.url(), str(tmp_path / 'c'), start, results))
             for _ in range(3)]
  for process in running:
    process.start()
  assert [results.get(timeout=120) for _ in running] == [str(tmp_path / 'c' / 'file.bin')] * 3
  assert len(server.requests) == 1
