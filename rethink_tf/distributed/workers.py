"""The processes that train together, one per machine: connecting them, and collecting results on the chief as files.

Files rather than a collective operation: detections of COCO's val2017 with masks are 150 MB. No worker waits for their
transfer while it could train, and the chief reads them in parallel to its own steps.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

import rethink_tf
from rethink_tf.errors import UserError, WorkerLost, excerpt, in_one_line, plain
from rethink_tf.storage import files
from rethink_tf.storage.run_folder import RunFolder
from rethink_tf.storage.software import versions

_POLL_SECONDS = 0.5
_GO, _STOP = b'go', b'no'  # the chief's answers; a reason follows the second
_LATECOMERS_SECONDS = 5.0  # in which further workers learn from the chief that one of them cannot start


class Workers:
  """The index of this process among the workers of a job, and the exchange of their results.

  index, count: worker 0 of `count` is the chief, the only one that writes results.
  token: names this start of the job, so that files of an earlier start are not read.
  timeout: seconds that the chief waits for another worker's results.
  """

  def __init__(self, index: int = 0, count: int = 1, token: str = '', timeout: float = 600.0):
    self.index, self.count, self.token, self.timeout = index, count, token, timeout
    self._stopped = threading.Event()

  @property
  def chief(self) -> bool:
    return self.index == 0

  def stop(self) -> None:
    """End all waiting, because the process is about to end."""
    self._stopped.set()

  def send(self, run_folder: RunFolder, name: str, data: bytes) -> None:
    """Write this worker's results to a file for the chief."""
    path = self._path(run_folder, name, self.index)
    tf.io.gfile.makedirs(run_folder.join('gather'))
    files.write(path, data)

  def receive(self, run_folder: RunFolder, name: str) -> Iterator[bytes]:
    """Yield the results that each other worker has sent under this name, in order of index, and remove their files.

    Raises:
      WorkerLost: a worker has sent nothing within `timeout`, or `stop` was called.
    """
    for index in range(1, self.count):
      path = self._path(run_folder, name, index)
      until = time.monotonic() + self.timeout
      while not tf.io.gfile.exists(path):
        if self._stopped.wait(_POLL_SECONDS) or time.monotonic() > until:
          raise WorkerLost(f'worker {index} has sent no {name} within {self.timeout / 60:g} minutes (strategy.'
                           'timeout_minutes): look at its log; the same command on all workers continues from the '
                           'last checkpoint')
      with tf.io.gfile.GFile(path, 'rb') as file:
        data = file.read()
      tf.io.gfile.remove(path)
      yield data

  def _path(self, run_folder: RunFolder, name: str, index: int) -> str:
    return run_folder.join('gather', f'{self.token}-{name}-worker-{index}')


ALONE = Workers()


def software() -> str:
  """Return what must be equal on all workers: versions of the package and its dependencies, a digest of its source."""
  package = pathlib.Path(rethink_tf.__file__).parent
  digest = hashlib.sha256()
  for path in sorted(package.rglob('*.py')):
    digest.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
  installed = versions()
  return '\n'.join([f'rethink_tf {rethink_tf.__version__}', f'source of rethink_tf {digest.hexdigest()[:12]}',
                    *(f'{name} {installed[name]}' for name in ('tensorflow', 'tf_keras'))])


def assemble(addresses: Sequence[str], own: int, seconds: float) -> None:
  """Wait until all workers are running and can listen on their ports; this process is worker number `own`.

  TensorFlow would wait for a missing worker forever, without reacting to signals. The others connect to the chief's
  port, which TensorFlow uses afterwards, and report there their list of workers, and whether their own port is taken.

  Raises:
    UserError: this process cannot listen on its port.
    WorkerLost: a worker is missing after `seconds`, cannot listen on its port, has another list, or the index of
      another one.
  """
  until = time.monotonic() + seconds
  host, _, port = addresses[0].rpartition(':')
  if own == 0:
    _wait_for_connections(port, addresses, until, seconds)
    return
  try:
    listener, problem = _listen(f'worker {own}', addresses[own].rpartition(':')[2], 1), None
  except UserError as error:
    listener, problem = contextlib.nullcontext(), error
  with listener:
    message = ' '.join([str(own), _digest(addresses), *([] if problem is None else [problem.line()])])
    name = f'worker {own} of {len(addresses)}'
    try:
      _connect(host, port, message, until, _could_not_connect(name, seconds))
    except WorkerLost:
      if problem is None:
        raise
  if problem is not None:
    raise problem


def _could_not_connect(name: str, seconds: float, missing: str = '') -> WorkerLost:
  return WorkerLost(f'{name} could not connect to the other workers within {seconds / 60:g} minutes (strategy.'
                    f'timeout_minutes{missing}): start all with the same list in TF_CONFIG, each with its own '
                    'task.index, and check that they can reach one another')


def _digest(addresses: Sequence[str]) -> str:
  return hashlib.sha256(json.dumps(list(addresses)).encode()).hexdigest()[:12]


def _listen(name: str, port: str, backlog: int) -> socket.socket:
  try:
    return socket.create_server(('', int(port)), backlog=backlog)
  except (OSError, ValueError, OverflowError) as error:
    raise UserError(f'{name} cannot listen on port {port} of TF_CONFIG: {in_one_line(error)}; choose another port, '
                    'or end the process that uses it') from error


def _wait_for_connections(port: str, addresses: Sequence[str], until: float, seconds: float) -> None:
  """On the chief: accept a connection of every other worker, then release all of them."""
  count = len(addresses)
  connected: dict[int, socket.socket] = {}
  refused: list[socket.socket] = []
  problems: list[str] = []
  with _listen('the chief', port, count) as listener, contextlib.ExitStack() as connections:
    while time.monotonic() < until:
      if len(connected) == count - 1:
        connected = {index: connection for index, connection in connected.items() if _is_open(connection)}
        if len(connected) == count - 1:  # none has ended since
          break
      listener.settimeout(max(until - time.monotonic(), 0.001))
      try:
        connection = connections.enter_context(listener.accept()[0])
        connection.settimeout(_POLL_SECONDS)
        index, digest, problem = (*connection.recv(1000).decode().split(' ', 2), '', '')[:3]
        index = int(index)
      except (OSError, ValueError):  # a time-out, or a connection by something else, such as a port scan
        continue
      problem = _problem(index, digest, problem, addresses, connected)
      if problem:
        problems.append(problem)
        until = min(until, time.monotonic() + _LATECOMERS_SECONDS)
        refused.append(connection)
      else:
        connected[index] = connection
    missing = [f'{i} at {addresses[i]}' for i in range(1, count) if i not in connected]
    answer = _STOP + (problems[0] if problems else '').encode() if missing or problems else _GO
    for connection in (*connected.values(), *refused):
      with contextlib.suppress(OSError):
        connection.sendall(answer)
  if problems:
    raise WorkerLost(problems[0])
  if missing:
    raise _could_not_connect(f'worker 0 of {count}', seconds, f'; not seen: {", ".join(missing[:3])}'
                             f'{f" and {len(missing) - 3} more" if missing[3:] else ""}')


def _problem(index: int, digest: str, problem: str, addresses: Sequence[str],
             connected: Mapping[int, socket.socket]) -> str:
  """Describe why a worker that has connected cannot take part; '' if it can."""
  if digest != _digest(addresses):
    return (f'worker {index} has another list of workers in TF_CONFIG than the chief ({excerpt(addresses[0])} and '
            f'{len(addresses) - 1} more): start all with the same list')
  if problem:
    return f'worker {index} of {len(addresses)} cannot start: {excerpt(problem, 300)}'
  if not 0 < index < len(addresses) or index in connected and _is_open(connected[index]):
    return f'two processes are worker {index} of TF_CONFIG: give each its own task.index'
  return ''


def _is_open(connection: socket.socket) -> bool:
  """Whether the other side, which sends nothing more, has not closed its end: a worker may have been restarted."""
  connection.settimeout(0)
  try:
    return connection.recv(1) != b''
  except BlockingIOError:
    return True
  except OSError:
    return False


def _connect(host: str, port: str, message: str, until: float, lost: WorkerLost) -> None:
  """On the other workers: connect to the chief until it releases this one."""
  while time.monotonic() < until:
    try:
      with socket.create_connection((host, int(port)), timeout=_POLL_SECONDS) as connection:
        connection.sendall(message.encode())
        connection.settimeout(max(until - time.monotonic(), 0.001))
        answer = connection.recv(1000)
        if answer == _GO:
          return
        if answer.startswith(_STOP):
          reason = plain(answer.removeprefix(_STOP).decode(errors='replace'))
          raise WorkerLost(f'the chief has ended the start: {reason}') if reason else lost
    except OSError:
      pass
    time.sleep(_POLL_SECONDS)
  raise lost
