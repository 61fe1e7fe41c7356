"""One folder per run: its configuration, provenance, metrics, TensorBoard events and checkpoints.

Local or any path of `tf.io.gfile` (gs://...). Layout:

  config.gin      the operative configuration, from which the same run can be started
  identity.json   what the run is, with the history of its configurations; categories.json    see identity.py
  command.json    argv, versions, git commit, devices, start time, also of the earlier starts of a resumed run
  metrics.jsonl   one object per line, kind 'train' or 'eval'
  tensorboard/    event files        checkpoints/, best.json   see checkpoints.py
  <name>/         files of a RunSubfolder, such as the evaluations of averaged weights

Transient storage errors are retried with backoff (retries.py). Full or missing storage does not end the run: lines of
metrics.jsonl are kept in memory until they can be written.
"""

import collections
import contextlib
import datetime
import errno
import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.util import event_pb2

from rethink_tf.errors import UserError, in_one_line
from rethink_tf.redaction import redact, redact_arguments
from rethink_tf.storage import files, manifests, metrics_lines, retries, software
from rethink_tf.storage.event_writers import EventWriters
from rethink_tf.storage.files import open_regular
from rethink_tf.storage.written_texts import WrittenTexts

_REMOTE_REWRITE_SECONDS = 60.0
_PENDING_LINES = 100_000  # some 40 MB; beyond it the oldest are dropped
_OPEN = getattr(os, 'O_NOFOLLOW', 0) | getattr(os, 'O_BINARY', 0)  # the second is Windows': else lines end with \r\n
_NO_STEPS = (ValueError, TypeError, LookupError, ArithmeticError, tf.errors.OpError)
SCHEDULE = 'schedule.json'  # {"total_steps": 180000}, from which a follower knows the last step


class RunFolder:
  """The folder of one run.

  create=False opens an existing run for reading (evaluate, compare), write-protected ones too. Thread-safe, since
  scoring writes in parallel to training.

  Raises:
    UserError: the folder cannot be created or written to, or (create=False) does not exist.
  """

  METRICS = 'metrics.jsonl'
  ALL_METRICS = ('metrics.jsonl', 'metrics-evaluator.jsonl')  # the second one of a follower (follow.py)

  def __init__(self, path: str, create: bool = True):
    if not path:
      raise UserError('no run folder given: name one with --model_dir')
    path = os.fspath(path)
    self.remote = '://' in path
    self.path = path.rstrip('/') if self.remote else os.path.abspath(os.path.expanduser(path))
    self._lock = threading.RLock()
    self._events = EventWriters(os.environ.get('AIP_TENSORBOARD_LOG_DIR') or self.join('tensorboard'))  # of Vertex AI
    self._subfolders: set[str] = set()
    self._lines: list[bytes] | None = None  # remote only: object stores cannot append
    self._rewritten = -math.inf
    self._size = 0  # of metrics.jsonl after the latest line
    self._pending: collections.deque[bytes] = collections.deque(maxlen=_PENDING_LINES)  # lines still to be written
    self.texts = WrittenTexts()  # of write_text
    self.failures: collections.Counter[str] = collections.Counter()  # of writing, by file
    if create:
      self._create()
    elif not tf.io.gfile.isdir(self.path):
      tf.io.gfile.exists(self.path)  # raises for an address out of reach
      raise UserError(f'no run folder at {self.path}: check --model_dir')

  def _create(self) -> None:
    files.refuse_patterns(self.path)
    files.refuse_links(self.path)

    def write() -> None:
      tf.io.gfile.makedirs(self.path)
      for parent in (self.path, self.join('checkpoints')):  # without checkpoints the work would be lost
        if parent == self.path or tf.io.gfile.exists(parent):
          probe = os.path.join(parent, f'.writable-{os.getpid()}')
          with tf.io.gfile.GFile(probe, 'w') as file:
            file.write('')
          tf.io.gfile.remove(probe)

    try:
      retries.call(write, self.path)
    except (OSError, tf.errors.OpError) as error:
      raise UserError(f'cannot write to the run folder {self.path}: {in_one_line(error)}; '
                      'choose another with --model_dir') from error

  def join(self, *components: str) -> str:
    """Return a path inside this folder."""
    return '/'.join((self.path, *components)) if self.remote else os.path.join(self.path, *components)

  def writer(self, name: str = '') -> tf.summary.SummaryWriter:
    """Return the TensorBoard writer of tensorboard/<name>, created on first use."""
    return self._events.get(name)

  def subfolder(self, name: str) -> 'RunSubfolder':
    """Return a subfolder for evaluations of the same steps with other weights."""
    self._subfolders.add(name)
    return RunSubfolder(self, name)

  def attempt(self, name: str, action: Callable[[], Any]) -> bool:
    """Call `action`, which writes `name`, with retries; return whether it succeeded.

    Errors of storage do not end training: they are counted in `failures[name]`, and the first is logged.
    """
    try:
      retries.call(action, f'{self.path}: {name}', attempts=1 if self.failures[name] else 3)
    except (OSError, tf.errors.OpError) as error:
      self.failures[name] += 1
      if self.failures[name] == 1:
        logging.warning('%s: %s could not be written: %s; the run continues, further failures are only counted',
                        self.path, name, in_one_line(error))
      return False
    if self.failures[name]:
      logging.info('%s: %s can be written again after %d failure(s)', self.path, name, self.failures.pop(name))
    return True

  def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Write scalars for TensorBoard."""
    def write() -> None:
      with self.writer().as_default(step=step):
        for name, value in values.items():
          tf.summary.scalar(name, value)

    self.attempt('TensorBoard events', write)

  def continue_at(self, step: int) -> None:
    """Record in metrics.jsonl and in TensorBoard that the run resumes at `step`, which cancels later steps there.

    Evaluations of later steps are renamed to eval/cancelled-step-…: they would pass for those of this training.
    """
    self.append_metrics({'kind': 'resume', 'step': step, 'time': round(time.time(), 3)})
    started = event_pb2.Event(wall_time=time.time(), step=step + 1,
                              session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
    for name in ('', *self._subfolders):
      # TensorBoard takes the first one that it sees for the beginning; a subfolder begins with its first evaluation.
      for _ in range(1 if not name else 2 * self._events.written(name)):
        self.attempt('TensorBoard events', lambda name=name: tf.raw_ops.ImportEvent(  # public functions: summaries only
          writer=self.writer(name)._resource, event=started.SerializeToString()))
      parent = self.join(*filter(None, [name]), 'eval')
      self.attempt(f'{parent}: cancelled evaluations', lambda parent=parent: _set_aside(parent, step))

  def write_text(self, name: str, text: str) -> None:
    """Write a file atomically, with retries.

    Raises:
      UserError: it cannot be written.
    """
    try:
      retries.call(lambda: self.put_text(name, text), self.join(name))
    except (OSError, tf.errors.OpError) as error:
      raise UserError(f'cannot write to the run folder {self.path}: {name}: {in_one_line(error)}') from error
    self.texts.add(self.join(name), text)

  def make_folder(self, name: str) -> None:
    """Create a folder inside this one unless it exists; raises UserError if it cannot be created."""
    try:
      retries.call(lambda: tf.io.gfile.makedirs(self.join(name)), self.join(name))
    except (OSError, tf.errors.OpError) as error:
      raise UserError(f'cannot write to the run folder {self.path}: {name}: {in_one_line(error)}') from error

  def put_text(self, name: str, text: str) -> None:
    """Write a file atomically, without retries, raising the error of the storage: for `attempt`."""
    files.write(self.join(name), text)

  def append_metrics(self, metrics: Mapping[str, Any]) -> None:
    """Append one line to metrics.jsonl, as a whole and synchronously.

    Numbers that are not finite become null. On gs:// training lines are uploaded once a minute (`flush` at the end),
    other lines at once. A line that cannot be written is written with the next one.
    """
    line = json.dumps(_jsonable(metrics), allow_nan=False).encode() + b'\n'
    with self._lock:
      if self.remote:
        self._append_remote(line, now=metrics.get('kind') != 'train')
        return
      self._pending.append(line)
      self._write_pending()

  def _write_pending(self) -> None:
    if self.attempt(self.METRICS, lambda: self._append_local(b''.join(self._pending))):
      self._pending.clear()

  def _append_local(self, lines: bytes) -> None:
    descriptor = os.open(self.join(self.METRICS), os.O_RDWR | os.O_APPEND | os.O_CREAT | _OPEN, 0o644)
    try:
      size = os.fstat(descriptor).st_size
      if size < self._size:
        logging.warning('%s was deleted or truncated during the run: its earlier lines are lost, and with them that '
                        'part of the curves', self.join(self.METRICS))
      if size and os.lseek(descriptor, size - 1, os.SEEK_SET) >= 0 and os.read(descriptor, 1) != b'\n':
        lines = b'\n' + lines  # the last line is incomplete after a kill: leave it alone
      written = os.write(descriptor, lines)
      if written < len(lines):  # the disk is full; remove the beginning, since all will be written again
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      self._size = size + written
      os.fsync(descriptor)
    finally:
      os.close(descriptor)

  def _append_remote(self, line: bytes, now: bool) -> None:
    self._pending.append(line)
    if self._lines is None and not self.attempt(self.METRICS, self._read_earlier):
      return  # the file is not overwritten before its earlier lines are known
    self._lines += self._pending
    self._pending.clear()
    if now or time.monotonic() - self._rewritten > _REMOTE_REWRITE_SECONDS:
      self.flush()

  def _read_earlier(self) -> None:
    self._lines = [earlier + b'\n' for earlier in self._read_file(self.METRICS).split(b'\n') if earlier]

  def flush(self) -> None:
    """Upload pending metrics lines (gs://) and flush the TensorBoard writers; failures are logged."""
    with self._lock:
      for writer in self._events:
        self.attempt('TensorBoard events', writer.flush)
      if self._lines is not None:
        content = b''.join(self._lines)
        self._rewritten = time.monotonic()
        self.attempt(self.METRICS, lambda: files.write(self.join(self.METRICS), content))
      elif self._pending and not self.remote:
        self._write_pending()

  def _read_bytes(self) -> bytes:
    if self._lines is not None:
      return b''.join(self._lines)
    return b'\n'.join((self._read_file(self.METRICS), *self._pending))

  def _read_file(self, name: str) -> bytes:
    path = self.join(name)

    def read() -> bytes:
      with open_regular(path) as file:
        return file.read()

    try:
      return retries.call(read, path)
    except tf.errors.NotFoundError:
      return b''

  def read_metrics(self) -> list[dict[str, Any]]:
    """Return all metrics lines in order, without incomplete ones and those of steps that a resumed run repeats.

    Raises:
      UserError: a file exists and cannot be read.
    """
    return metrics_lines.without_repeated(metrics_lines.merged(self._files_of_lines()))

  def readable_metrics(self) -> list[dict[str, Any]] | None:
    """Return the metrics lines for training, which continues without them: None, with a warning, if unreadable."""
    try:
      return self.read_metrics()
    except UserError as error:
      if not self.failures['reading metrics']:
        logging.warning('%s; training continues without its earlier lines', error.line())
      self.failures['reading metrics'] += 1
      return None

  def _files_of_lines(self) -> Iterator[Iterator[tuple[float, dict[str, Any]]]]:
    """Yield the lines of each file, those of training first, each with a time (metrics_lines.parse)."""
    for name in self.ALL_METRICS:
      try:
        content = self._read_bytes() if name == self.METRICS else self._read_file(name)
      except (OSError, tf.errors.OpError) as error:
        raise UserError(f'{self.join(name)}: cannot be read: {in_one_line(error)}; repair or move it') from error
      yield metrics_lines.parse(content, self.join(name))

  def save_provenance(self, argv: Sequence[str], operative_config: str, devices: Mapping[str, int] | None = None,
                      hardware: str | None = None) -> None:
    """Write config.gin and command.json; the records of earlier starts are kept in the latter.

    devices: how a batch is spread over them (structures.Devices). hardware: what they are (distributed.devices).
    """
    record = {
      'argv': redact_arguments(argv),
      'versions': software.versions(),
      'git_commit': software.git_commit(),
      'devices': dict(devices) if devices else None,
      'hardware': hardware,
      'started': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
      'earlier_starts': [],
    }
    earlier = self.read_command()
    if earlier:
      record['earlier_starts'] = [*earlier.pop('earlier_starts', []), earlier]
    self.write_text('config.gin', redact(operative_config))
    self.write_text('command.json', json.dumps(record, indent=2) + '\n')

  def read_command(self) -> dict[str, Any]:
    """Return the record of the latest start (command.json), {} if there is none."""
    path = self.join('command.json')
    if not tf.io.gfile.exists(path):
      return {}
    try:
      with open_regular(path, 'r') as file:
        record = json.load(file)
    except (ValueError, RecursionError, tf.errors.OpError):
      record = None
    if not isinstance(record, dict) or not isinstance(record.get('earlier_starts', []), list):
      logging.warning('%s cannot be read as JSON: ignored', path)
      return {}
    return record


class RunSubfolder:
  """Gives evaluators the interface of a run folder, for evaluations of the same steps with other weights.

  Files go to a subfolder of that name, TensorBoard events to a TensorBoard run of that name with the same tags. Lines
  go to
  the metrics.jsonl of the run as kind '<kind>/<name>' with metrics '<name>/<metric>', and are read without both
  prefixes.
  """

  _FIELDS = ('step', 'time')  # of a line that are not renamed

  def __init__(self, folder: RunFolder, name: str):
    self._folder, self.name = folder, name
    self.remote, self.path = folder.remote, folder.join(name)

  def join(self, *components: str) -> str:
    """Return a path inside this folder."""
    return self._folder.join(self.name, *components)

  def writer(self) -> tf.summary.SummaryWriter:
    """Return the TensorBoard writer of tensorboard/<name>."""
    return self._folder.writer(self.name)

  def append_metrics(self, metrics: Mapping[str, Any]) -> None:
    """Append one line to the metrics.jsonl of the run."""
    renamed = {key if key in self._FIELDS else f'{self.name}/{key}': value for key, value in metrics.items()
               if key != 'kind'}
    self._folder.append_metrics({'kind': f'{metrics["kind"]}/{self.name}', **renamed})

  def read_metrics(self) -> list[dict[str, Any]]:
    """Return the lines that were appended through subfolders of this name."""
    return self._own(self._folder.read_metrics())

  def readable_metrics(self) -> list[dict[str, Any]] | None:
    """Return them for training, which continues without them: None if they cannot be read."""
    lines = self._folder.readable_metrics()
    return None if lines is None else self._own(lines)

  def _own(self, lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key.removeprefix(f'{self.name}/'): value for key, value in line.items()}
            | {'kind': line['kind'].removesuffix(f'/{self.name}')}
            for line in lines if line.get('kind', '').endswith(f'/{self.name}')]


def write_schedule(folder: RunFolder, total_steps: int) -> None:
  """Record the run's last step in schedule.json."""
  folder.write_text(SCHEDULE, json.dumps({'total_steps': total_steps}) + '\n')


def total_steps(folder: RunFolder) -> int | None:
  """Return the run's last step, None if training has not recorded it yet."""
  path = folder.join(SCHEDULE)
  if tf.io.gfile.exists(path):
    with contextlib.suppress(*_NO_STEPS), open_regular(path, 'r') as file:
      return int(json.load(file)['total_steps'])
  return None


def _set_aside(parent: str, step: int) -> None:
  """Rename the folders of evaluations after `step`; folders that were renamed at an earlier restart are removed."""
  for later in manifests.steps(parent):
    if later > step:
      folder = manifests.step_folder(parent, later)
      aside = os.path.join(parent, f'cancelled-{os.path.basename(folder)}')
      if tf.io.gfile.isdir(aside):
        tf.io.gfile.rmtree(aside)
      tf.io.gfile.rename(folder, aside)
      logging.info('%s: is of a step that is trained again: renamed to %s', folder, os.path.basename(aside))


def _jsonable(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(key): _jsonable(item) for key, item in value.items()}
  if isinstance(value, (list, tuple)):
    return [_jsonable(item) for item in value]
  if isinstance(value, (np.ndarray, np.generic)) or tf.is_tensor(value):
    return _jsonable(np.asarray(value).tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
