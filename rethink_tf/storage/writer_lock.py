"""One writer of a run folder at a time: a lease in the folder, on local disks, network file systems and gs://.

writer.json names the holder: host, process and its start, since when, a random token, and a beat that the holder
increases every 20 seconds. Whoever finds one
  of a process of this machine  asks the system whether it runs;
  of another machine            watches it for a minute: it is dead if the beat stands still. No clocks are compared.
A folder that was copied while a process of this machine writes to the original is watched as well.
Object stores have no exclusive creation, and network file systems none that can be relied on, so that the lease is
written and read back after a moment: of two that write at once, the later one has it. On a local disk a file lock of
the system makes this exact. A holder that finds another token in the file, after it was suspended or cut off from the
storage for longer than a minute, has lost the folder and stops.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf
from absl import logging

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.storage import retries
from rethink_tf.storage.files import open_regular
from rethink_tf.storage.run_folder import RunFolder

try:
  import fcntl
except ImportError:  # Windows
  fcntl = None

FILE = 'writer.json'
FOLLOWER = 'follower.json'  # of a job that evaluates a run while another one trains it
BEAT_SECONDS = 20.0
DEAD_SECONDS = 60.0  # without a beat, of a process of another machine
_SETTLE_SECONDS = 2.0  # between writing and reading back where two may write at once
_POLL_SECONDS = 1.0

_held: set[str] = set()  # tokens of this process


class Holder(NamedTuple):
  """The process that writes to a run folder."""

  token: str
  host: str
  machine: str  # of the process ids: boot and container
  pid: int
  started: str  # of the process, so that another one with the same id is not mistaken for it
  since: str
  path: str  # of the run folder as the holder sees it: the file may be in a copy
  beat: int = 0

  def __str__(self) -> str:
    return f'process {self.pid} on {self.host}, since {self.since}'


class WriterLock:
  """The lease of this process on a run folder.

  Attributes:
    lost: another process has taken it.
  """

  def __init__(self, folder: RunFolder, holder: Holder, file: str = FILE):
    self._folder, self._holder, self._file = folder, holder, file
    self._released = threading.Event()
    self._failing = False
    self.lost = False
    _held.add(holder.token)
    self._thread = threading.Thread(target=self._beat_until_released, name='writer lock', daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raise a UserError if another process has taken the folder."""
    if self.lost:
      raise UserError(f'{self._folder.path}: another process has taken the run over, since this one did not answer for '
                      f'{DEAD_SECONDS:g} s: {read(self._folder, self._file)}')

  def release(self) -> None:
    """Remove the lease."""
    self._released.set()
    self._thread.join(timeout=5)  # it may wait for storage
    _held.discard(self._holder.token)
    with contextlib.suppress(UserError, OSError, tf.errors.OpError):
      found = read(self._folder, self._file)
      if found is not None and found.token == self._holder.token:
        tf.io.gfile.remove(self._folder.join(self._file))

  def _beat_until_released(self) -> None:
    while not self.lost and not self._released.wait(BEAT_SECONDS):
      try:
        found = read(self._folder, self._file)
        if found is not None and found.token != self._holder.token:
          self.lost = True
          return
        self._holder = self._holder._replace(beat=self._holder.beat + 1)
        _write(self._folder, self._holder, self._file)
        self._failing = False
      except (UserError, OSError, tf.errors.OpError) as error:  # a full disk, or storage that is away for a while
        if not self._failing:
          logging.warning('%s: %s cannot be renewed: %s', self._folder.path, self._file, in_one_line(error))
        self._failing = True


@contextlib.contextmanager
def held(folder: RunFolder, chief: bool = True, file: str = FILE) -> Iterator[WriterLock | None]:
  """Hold the lease on a run folder; on workers other than the chief, which write nothing, yield None.

  Raises:
    UserError: another process holds it, or the storage refuses it.
  """
  if not chief:
    yield None
    return
  lock = acquire(folder, file)
  try:
    yield lock
  finally:
    lock.release()


def acquire(folder: RunFolder, file: str = FILE) -> WriterLock:
  """Take the lease on a run folder, from a dead holder if need be.

  Raises:
    UserError: another process holds it, or the storage refuses it.
  """
  own = _this_process(folder)
  dead = refuse_if_held(folder, file)
  try:
    with _exclusive(folder) as exact:
      found = read(folder, file)
      if found is not None and found != dead:
        raise _taken(folder, found, file)
      retries.call(lambda: _write(folder, own, file), folder.join(file))
    if not exact:
      time.sleep(_SETTLE_SECONDS)
    found = read(folder, file)
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'cannot write to the run folder {folder.path}: {file}: {in_one_line(error)}') from error
  if found is not None and found.token != own.token:
    raise _taken(folder, found, file)
  return WriterLock(folder, own, file)


def refuse_if_held(folder: RunFolder, file: str = FILE) -> Holder | None:
  """Raise a UserError if a living process writes to a run folder; return a dead holder, None if there is none.

  Takes up to a minute if the process is of another machine.
  """
  found = read(folder, file)
  if found is None:
    return None
  own = found.pid == os.getpid()
  here = found.machine == _machine() and (own or os.name == 'posix')  # os.kill ends a process on Windows
  alive = not here or (found.token in _held if own else _runs(found))
  if alive and (not here or found.path != _real(folder)):
    alive = _beats(folder, found, file)
  if alive:
    raise _taken(folder, found, file)
  logging.info('%s: its last writer (%s) has ended without notice', folder.path, found)
  return found


def read(folder: RunFolder, file: str = FILE) -> Holder | None:
  """Return the holder that the file names, dead or alive; None without one or with a damaged file.

  Raises:
    UserError: the storage refuses it.
  """
  path = folder.join(file)

  def read_file() -> bytes:
    with open_regular(path) as opened:
      return opened.read(1 << 16)

  try:
    return _parse(retries.call(read_file, path))
  except tf.errors.NotFoundError:
    return None
  except (OSError, tf.errors.OpError) as error:
    raise UserError(f'{path}: cannot be read: {in_one_line(error)}') from error


def _parse(content: bytes) -> Holder | None:
  try:
    found = Holder(**json.loads(content))
    kinds = (str, str, str, int, str, str, str, int)
    sound = all(isinstance(value, kind) for value, kind in zip(found, kinds, strict=True))
  except (ValueError, TypeError, RecursionError):
    return None
  return found if sound and str(found).isprintable() and 0 < found.pid < 1 << 32 else None


def _taken(folder: RunFolder, holder: Holder, file: str) -> UserError:
  if file == FOLLOWER:
    return UserError(f'{folder.path}: {holder}, is evaluating this run already: end it first')
  return UserError(f'{folder.path}: {holder}, is writing to this run: end it first, or choose another --model_dir')


def _this_process(folder: RunFolder) -> Holder:
  now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds')
  return Holder(uuid.uuid4().hex, socket.gethostname(), _machine(), os.getpid(), _start_of(os.getpid()), now,
                _real(folder))


def _real(folder: RunFolder) -> str:
  return folder.path if folder.remote else os.path.realpath(folder.path)


def _machine() -> str:
  """Return a name of this boot of this machine, or of this container, within which process ids are unique."""
  with contextlib.suppress(OSError):
    with open('/proc/sys/kernel/random/boot_id') as file:
      return f'{file.read().strip()} {os.readlink("/proc/self/ns/pid")}'
  return socket.gethostname()


def _start_of(pid: int) -> str:
  """Return the start time of a process in ticks since boot; '' if the system does not provide it."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      fields = file.read().rpartition(')')[2].split()
    return '' if fields[0] in 'ZX' else fields[19]
  except (OSError, IndexError):
    return ''


def _runs(holder: Holder) -> bool:
  """Whether a process of this machine is running."""
  try:
    os.kill(holder.pid, 0)
  except ProcessLookupError:
    return False
  except OSError:  # of another user
    pass
  return not holder.started or _start_of(holder.pid) == holder.started


def _beats(folder: RunFolder, holder: Holder, file: str) -> bool:
  """Whether a process of another machine renews its lease, or yet another has taken it; waits until that is known."""
  logging.info('%s: %s, may be writing to this run: watching it for up to %g s', folder.path, holder, DEAD_SECONDS)
  until = time.monotonic() + DEAD_SECONDS
  while time.monotonic() < until:
    time.sleep(_POLL_SECONDS)
    found = read(folder, file)
    if found != holder:
      return found is not None
  return False


def _write(folder: RunFolder, holder: Holder, file: str = FILE) -> None:
  folder.put_text(file, json.dumps(holder._asdict()) + '\n')


@contextlib.contextmanager
def _exclusive(folder: RunFolder) -> Iterator[bool]:
  """Hold the system's lock on a local folder; yields False where there is none, as on gs:// and some network disks."""
  descriptor, exact = None, False
  if not folder.remote and fcntl is not None:
    with contextlib.suppress(OSError):
      descriptor = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY)
      fcntl.flock(descriptor, fcntl.LOCK_EX)
      exact = True
  try:
    yield exact
  finally:
    if descriptor is not None:
      os.close(descriptor)
