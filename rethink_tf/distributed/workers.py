"""The processes that train together, one a machine: how they meet, and how results come to the chief, as files.

Files rather than a collective: detections of COCO's val2017 with masks are 150 MB, for which no worker should wait
while it could train, and a chief that reads them beside its own steps needs no other worker at that moment.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from rethink_tf.errors import UserError, WorkerLost, in_one_line
from rethink_tf.storage import files

_LOOK_SECONDS = 0.5  # between two looks for a file


class Workers:
  """This process's place among those that train together.

  index, count: worker 0 of `count` is the chief, the only one that writes results.
  token: of this start of the job, so that what an earlier one has left behind is not taken for new.
  timeout: seconds that the chief waits for another worker's results.
  """

  def __init__(self, index: int = 0, count: int = 1, token: str = '', timeout: float = 600.0):
    self.index, self.count, self.token, self.timeout = index, count, token, timeout
    self._stopped = threading.Event()

  @property
  def chief(self) -> bool:
    return self.index == 0

  def stop(self) -> None:
    """Ends all waiting: the process is about to end."""
    self._stopped.set()

  def send(self, run_folder: Any, name: str, data: bytes) -> None:
    """Puts down this worker's results for the chief."""
    path = self._path(run_folder, name, self.index)
    tf.io.gfile.makedirs(run_folder.join('gather'))
    files.write(path, data)

  def receive(self, run_folder: Any, name: str) -> Iterator[bytes]:
    """What each other worker has sent under this name, in their order; the files are then removed.

    Raises:
      WorkerLost: one has sent nothing within `timeout`, or `stop` was called.
    """
    for index in range(1, self.count):
      path = self._path(run_folder, name, index)
      until = time.monotonic() + self.timeout
      while not tf.io.gfile.exists(path):
        if self._stopped.wait(_LOOK_SECONDS) or time.monotonic() > until:
          raise WorkerLost(f'worker {index} has sent no {name} within {self.timeout / 60:g} minutes (strategy.'
                           'timeout_minutes): look at its log; the same command on all workers continues from the '
                           'last checkpoint')
      with tf.io.gfile.GFile(path, 'rb') as file:
        data = file.read()
      tf.io.gfile.remove(path)
      yield data

  def _path(self, run_folder: Any, name: str, index: int) -> str:
    return run_folder.join('gather', f'{self.token}-{name}-worker-{index}')


ALONE = Workers()


def assemble(addresses: Sequence[str], own: int, seconds: float) -> None:
  """Comes back when all workers are there, of which this one is number `own`.

  TensorFlow would wait for a missing one without an end, deaf to signals.

  The others knock at the chief's port, which TensorFlow takes over afterwards.

  Raises:
    UserError: the chief cannot listen on its port.
    WorkerLost: one is not there in time.
  """
  host, _, port = addresses[0].rpartition(':')
  until, count = time.monotonic() + seconds, len(addresses)
  lost = WorkerLost(f'worker {own} of {count} did not meet the others within {seconds / 60:g} minutes (strategy.'
                    'timeout_minutes): start all with the same list in TF_CONFIG, and let them reach one another')
  if own == 0:
    try:
      listener = socket.create_server(('', int(port)), backlog=count)
    except (OSError, ValueError, OverflowError) as error:
      raise UserError(f'the chief cannot listen on port {port} of TF_CONFIG: {in_one_line(error)}; choose another, or '
                      'end the process that has it') from error
    present: dict[int, socket.socket] = {}
    with listener, contextlib.ExitStack() as open_ones:
      while len(present) < count - 1:
        listener.settimeout(max(until - time.monotonic(), 0.001))
        try:
          connection = open_ones.enter_context(listener.accept()[0])
          connection.settimeout(_LOOK_SECONDS)
          index = int(connection.recv(16))
        except TimeoutError:
          if time.monotonic() >= until:
            raise lost from None
        except (OSError, ValueError):  # whoever else knocks at ports
          continue
        else:
          present[index] = connection
      for connection in present.values():
        connection.sendall(b'go')
    return
  while time.monotonic() < until:
    try:
      with socket.create_connection((host, int(port)), timeout=_LOOK_SECONDS) as connection:
        connection.sendall(str(own).encode())
        connection.settimeout(max(until - time.monotonic(), 0.001))
        if connection.recv(2) == b'go':
          return
    except OSError:
      pass
    time.sleep(_LOOK_SECONDS)
  raise lost
