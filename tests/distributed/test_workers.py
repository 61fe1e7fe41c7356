"""Connecting the workers, and sending their results to the chief."""

import contextlib
import socket
import threading
import time
from unittest import mock

import pytest

import rethink_tf
from rethink_tf.distributed import workers
from rethink_tf.distributed.strategy import check_same_settings
from rethink_tf.distributed.workers import ALONE, Workers, assemble
from rethink_tf.errors import UserError, WorkerLost
from rethink_tf.storage.run_folder import RunFolder
from tests import two_workers


def test_the_chief_receives_the_results_of_all_workers_in_order(tmp_path):
  folder = RunFolder(str(tmp_path))
  first, *others = (Workers(index, 4, 'token') for index in range(4))
  threads = [threading.Thread(target=one.send, args=(folder, 'results-7', f'of {one.index}'.encode()))
             for one in reversed(others)]
  for thread in threads:
    thread.start()
  assert list(first.receive(folder, 'results-7')) == [b'of 1', b'of 2', b'of 3']
  assert list((tmp_path / 'gather').iterdir()) == []


def test_results_of_an_earlier_start_are_ignored(tmp_path):
  folder = RunFolder(str(tmp_path))
  Workers(1, 2, 'before').send(folder, 'results-7', b'old')
  with pytest.raises(WorkerLost, match='worker 1 has sent no results-7') as caught:
    next(Workers(0, 2, 'now', timeout=0.1).receive(folder, 'results-7'))
  assert '\n' not in str(caught.value)


def test_stop_ends_waiting(tmp_path):
  chief = Workers(0, 2, 'token', timeout=3600)
  chief.stop()
  before = time.monotonic()
  with pytest.raises(WorkerLost):
    next(chief.receive(RunFolder(str(tmp_path)), 'results-7'))
  assert time.monotonic() - before < 600


def test_a_single_worker_receives_nothing(tmp_path):
  assert ALONE.chief and list(ALONE.receive(RunFolder(str(tmp_path)), 'results-7')) == []


def assembled(number, present, seconds):
  """Assemble the workers `present` out of `number`; return None or the error of each."""
  addresses = tuple(f'127.0.0.1:{port}' for port in two_workers.free_ports(number))
  results = {}

  def one(index):
    try:
      results[index] = assemble(addresses, index, seconds)
    except UserError as error:
      results[index] = error

  threads = [threading.Thread(target=one, args=[index]) for index in present]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  return results


def test_workers_wait_until_all_are_there():
  assert assembled(3, [2, 0, 1], 600) == {0: None, 1: None, 2: None}


@pytest.mark.parametrize('present', [[0], [1], [0, 1]], ids=str)
def test_a_missing_worker_is_an_error_after_the_timeout(present):
  for index, error in assembled(3, present, 1.2).items():
    assert isinstance(error, WorkerLost) and '\n' not in str(error)
    assert str(error).startswith(f'worker {index} of 3 could not connect to the other workers within 0.02 minutes')
    assert 'each with its own task.index' in str(error) and ('not seen: ' in str(error)) == (index == 0)


def test_a_port_of_another_worker_in_use_ends_all_at_once():
  addresses = tuple(f'127.0.0.1:{port}' for port in two_workers.free_ports(3))
  results, begin = {}, time.monotonic()

  def one(index):
    with pytest.raises(UserError) as caught:
      assemble(addresses, index, 600)
    results[index] = caught.value

  with two_workers.socket.create_server(('', int(addresses[1].split(':')[1]))):
    threads = [threading.Thread(target=one, args=[index]) for index in (2, 0, 1)]
    for thread in threads:
      thread.start()
      time.sleep(0.05)
    for thread in threads:
      thread.join()
  assert time.monotonic() - begin < 60
  assert 'worker 1 cannot listen on port' in str(results[1]) and not isinstance(results[1], WorkerLost)
  assert 'worker 1 of 3 cannot start' in str(results[0]) and 'cannot listen on port' in str(results[0])
  assert isinstance(results[0], WorkerLost) and isinstance(results[2], WorkerLost)


def started(*lists):
  """Assemble workers, each given as (addresses, index), in order; return the error of each, and the seconds taken."""
  results, begin = {}, time.monotonic()

  def one(number, addresses, index):
    with pytest.raises(UserError) as caught:
      assemble(addresses, index, 30)
    results[number] = caught.value

  threads = [threading.Thread(target=one, args=[number, *own]) for number, own in enumerate(lists)]
  for thread in threads:
    thread.start()
    time.sleep(0.05)
  for thread in threads:
    thread.join()
  return [results[number] for number in range(len(lists))], time.monotonic() - begin


@pytest.mark.parametrize('own', [(0, 1, 2), (0, 2), (0, 2, 1)], ids=str)
def test_workers_with_other_lists_do_not_start(own):
  addresses = [f'127.0.0.1:{port}' for port in two_workers.free_ports(3)]
  errors, seconds = started((tuple(addresses[:2]), 0), (tuple(addresses[i] for i in own), 1))
  assert seconds < 20
  for error in errors:
    assert isinstance(error, WorkerLost) and 'worker 1 has another list of workers in TF_CONFIG than the' in str(error)


def test_two_workers_of_one_index_do_not_start():
  ports = two_workers.free_ports(4)
  addresses = tuple(f'127.0.0.1:{port}' for port in ports[:3])
  # On another machine the port of worker 1 is free.
  elsewhere = mock.patch.object(workers, '_listen', lambda name, port, backlog: (
    socket.create_server(('', ports[0] if name == 'the chief' else 0), backlog=backlog)))
  with elsewhere:
    errors, seconds = started((addresses, 0), (addresses, 1), (addresses, 1))
  assert seconds < 20
  for error in errors:
    assert isinstance(error, WorkerLost) and 'two processes are worker 1 of TF_CONFIG: give each its own' in str(error)


def test_a_worker_that_was_restarted_before_all_are_there_takes_its_place():
  addresses = tuple(f'127.0.0.1:{port}' for port in two_workers.free_ports(3))
  results = {}

  def one(index):
    results[index] = assemble(addresses, index, 30)

  threads = [threading.Thread(target=one, args=[index]) for index in range(3)]
  threads[0].start()
  with connected(addresses, 1):
    time.sleep(0.2)
  for thread in threads[1:]:
    thread.start()
  for thread in threads:
    thread.join()
  assert results == {0: None, 1: None, 2: None}


@contextlib.contextmanager
def connected(addresses, index):
  """A connection to the chief as worker `index`."""
  host, _, port = addresses[0].rpartition(':')
  while True:
    try:
      connection = socket.create_connection((host, int(port)))
      break
    except OSError:
      time.sleep(0.05)
  with connection:
    connection.sendall(f'{index} {workers._digest(addresses)}'.encode())
    yield


def test_a_port_in_use_is_a_user_error():
  [port] = two_workers.free_ports(1)
  with two_workers.socket.create_server(('', port)):
    with pytest.raises(UserError, match=f'the chief cannot listen on port {port} of TF_CONFIG'):
      assemble((f'127.0.0.1:{port}', 'b:1'), 0, 1)


def test_another_version_of_the_package_is_another_configuration(monkeypatch):
  chief = workers.software()
  assert workers.software() == chief and f'rethink_tf {rethink_tf.__version__}' in chief
  monkeypatch.setattr(rethink_tf, '__version__', '0.0.1')
  with pytest.raises(UserError, match='rethink_tf 0.0.1 here; rethink_tf .* on the chief'):
    check_same_settings(chief, workers.software())
