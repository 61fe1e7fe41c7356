"""One writer of a run folder: the living are respected, the dead are not, on local disks and on object stores."""

import json
import os
import pathlib
import subprocess
import sys
import threading

import pytest
import tensorflow as tf

from rethink_tf.errors import UserError
from rethink_tf.storage import writer_lock
from rethink_tf.storage.run_folder import RunFolder


@pytest.fixture(params=['local', 'remote'])
def folder(request, tmp_path, monkeypatch):
  """A run folder; 'remote' is treated as one of an object store: no file locks, and two may write at once."""
  monkeypatch.setattr(writer_lock, '_SETTLE_SECONDS', 0.1)
  monkeypatch.setattr(writer_lock, '_POLL_SECONDS', 0.02)
  monkeypatch.setattr(writer_lock, 'DEAD_SECONDS', 0.2)
  found = RunFolder(str(tmp_path / 'run'))
  found.remote = request.param == 'remote'
  return found


def write(folder, **fields):
  """Write the lease of another process, with these fields."""
  holder = writer_lock._this_process(folder)._replace(**{'token': 'another', **fields})
  writer_lock._write(folder, holder)
  return holder


def elsewhere(folder, **fields):
  return write(folder, machine='another machine', host='node-2', **fields)


def test_a_second_writer_is_refused_with_the_holder(folder):
  with writer_lock.held(folder):
    found = writer_lock.read(folder)
    with pytest.raises(UserError, match=rf'process {os.getpid()} on {found.host}, since {found.since[:4]}.*is writing'):
      writer_lock.acquire(folder)
  assert not os.path.exists(folder.join(writer_lock.FILE))
  with writer_lock.held(folder):
    pass


def test_workers_other_than_the_chief_hold_nothing(folder):
  with writer_lock.held(folder, chief=False) as lock:
    assert lock is None and not os.path.exists(folder.join(writer_lock.FILE))


def test_a_living_process_of_this_machine(folder):
  with subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']) as process:
    try:
      write(folder, pid=process.pid, started=writer_lock._start_of(process.pid))
      with pytest.raises(UserError, match=f'process {process.pid}'):
        writer_lock.acquire(folder)
      write(folder, pid=process.pid, started='12345')  # another process had that id
      writer_lock.acquire(folder).release()
      write(folder, pid=process.pid, started=writer_lock._start_of(process.pid))
    finally:
      process.kill()
  writer_lock.acquire(folder).release()  # at once after SIGKILL


def take_over(folder):
  """Acquire and release the lease: it is this process' meanwhile, and nobody's afterwards."""
  lock = writer_lock.acquire(folder)
  holder = writer_lock.read(folder)
  assert holder.token != 'another' and holder.pid == os.getpid()
  lock.release()
  assert writer_lock.read(folder) is None


def test_a_lease_of_this_process_that_it_no_longer_holds(folder):
  write(folder)
  take_over(folder)


def test_a_silent_process_of_another_machine_is_dead(folder):
  elsewhere(folder)
  lock = writer_lock.acquire(folder)
  assert writer_lock.read(folder).token != 'another'
  lock.release()


def test_a_beating_process_of_another_machine_is_alive(folder):
  elsewhere(folder)
  timer = threading.Timer(0.05, lambda: elsewhere(folder, beat=1))
  timer.start()
  with pytest.raises(UserError, match='on node-2, since'):
    writer_lock.acquire(folder)
  timer.join()


def test_a_copy_of_a_folder_that_is_written_to(folder, tmp_path):
  with writer_lock.held(folder):
    copy = RunFolder(str(tmp_path / 'copy'))
    copy.remote = folder.remote
    pathlib.Path(copy.join(writer_lock.FILE)).write_bytes(pathlib.Path(folder.join(writer_lock.FILE)).read_bytes())
    with writer_lock.held(copy):
      assert writer_lock.read(copy).token != writer_lock.read(folder).token


def test_one_that_ends_while_it_is_watched(folder):
  elsewhere(folder)
  timer = threading.Timer(0.05, lambda: os.remove(folder.join(writer_lock.FILE)))
  timer.start()
  take_over(folder)
  timer.join()


def test_of_two_that_write_at_once_one_has_it(folder):
  folder.remote = True
  timer = threading.Timer(0.05, lambda: elsewhere(folder))
  timer.start()
  with pytest.raises(UserError, match='on node-2'):
    writer_lock.acquire(folder)
  timer.join()


def test_a_holder_that_was_suspended_finds_another(folder, monkeypatch):
  monkeypatch.setattr(writer_lock, 'BEAT_SECONDS', 0.02)
  lock = writer_lock.acquire(folder)
  lock.check()
  for _ in range(100):  # a beat between its reading and its writing replaces one
    elsewhere(folder)
    lock._thread.join(0.1)
    if lock.lost:
      break
  assert lock.lost
  with pytest.raises(UserError, match='another process has taken the run over.*node-2'):
    lock.check()
  lock.release()
  assert writer_lock.read(folder).token == 'another'  # not removed


def test_the_beat_goes_on_and_survives_errors_of_the_storage(folder, monkeypatch, caplog):
  monkeypatch.setattr(writer_lock, 'BEAT_SECONDS', 0.02)
  lock, calls, whole = writer_lock.acquire(folder), [], writer_lock._write

  def failing(*arguments):
    calls.append(arguments)
    if len(calls) < 3:
      raise tf.errors.ResourceExhaustedError(None, None, 'no space left on device')
    if len(calls) == 5:
      done.set()
    whole(*arguments)

  done = threading.Event()
  monkeypatch.setattr(writer_lock, '_write', failing)
  assert done.wait(5) and writer_lock.read(folder).beat >= 4 and not lock.lost
  assert caplog.text.count('cannot be renewed: no space left') == 1
  lock.release()


def test_a_removed_file_is_written_again(folder, monkeypatch):
  monkeypatch.setattr(writer_lock, 'BEAT_SECONDS', 0.02)
  with writer_lock.held(folder) as lock:
    os.remove(folder.join(writer_lock.FILE))
    for _ in range(500):
      if os.path.exists(folder.join(writer_lock.FILE)):
        break
      threading.Event().wait(0.01)
    assert writer_lock.read(folder).beat and not lock.lost


@pytest.mark.parametrize('content', [
  b'', b'{', b'[]', b'{"token": 1}', b'\xff' * 100, b'[' * 70_000,
  json.dumps(['x', 'a', 'm', 1, '', '', '', 0]).encode(),
  b'{"token": "x", "host": "a\\u001b[2J", "machine": "m", "pid": 1, "started": "", "since": "", "path": ""}',
  b'{"token": "x", "host": "a", "machine": "m", "pid": -1, "started": "", "since": "", "path": ""}'])
def test_a_damaged_file_is_nobodys(tmp_path, content):
  folder = RunFolder(str(tmp_path))
  pathlib.Path(folder.join(writer_lock.FILE)).write_bytes(content)
  assert writer_lock.read(folder) is None
  take_over(folder)


def test_a_second_follower_is_refused_while_training_goes_on(tmp_path):
  folder = RunFolder(str(tmp_path))
  with writer_lock.held(folder), writer_lock.held(folder, file=writer_lock.FOLLOWER):
    with pytest.raises(UserError, match='is evaluating this run already'):
      writer_lock.acquire(folder, writer_lock.FOLLOWER)
    assert {path.name for path in tmp_path.iterdir()} == {'writer.json', 'follower.json'}
  assert not list(tmp_path.iterdir())
