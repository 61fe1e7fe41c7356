"""One folder per run: its configuration, provenance, metrics, TensorBoard events and checkpoints.

Local paths and whatever `tf.io.gfile` opens (gs://...). Layout:

  config.gin      the operative configuration; it parses back to the same run
  command.json    argv, versions, git commit and start time, with the earlier starts of a resumed run
  metrics.jsonl   one object a line, kind 'train' or 'eval'
  tensorboard/    event files        checkpoints/, best.json   see checkpoints.py
  <part>/         files of a RunPart, such as the evaluations of averaged weights

Storage that fails for a moment is asked again (retries.py). Storage that is full or gone costs figures, not the run:
lines of metrics.jsonl wait in memory until they can be written.
"""

import collections
import datetime
import errno
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging
from tensorflow.core.util import event_pb2

import rethink_tf
from rethink_tf.errors import UserError, in_one_line
from rethink_tf.redaction import redact
from rethink_tf.storage import files, retries

_REMOTE_REWRITE_SECONDS = 60.0
_WAITING_LINES = 100_000  # some 40 MB; the oldest go first
_PACKAGES = {
  'tensorflow': ('tensorflow', 'tensorflow-cpu', 'tf-nightly'),
  'tf_keras': ('tf_keras',),
  'official': ('tf-models-official', 'tf-models-nightly'),
  'numpy': ('numpy',),
}


class RunFolder:
  """The folder of one run.

  `create=False` opens an existing run for reading (evaluate, compare), also one that is write-protected. Threads may
  share a run folder: scoring writes beside training.

  Raises:
    UserError: the folder cannot be created or written to, or (create=False) does not exist.
  """

  METRICS = 'metrics.jsonl'
  ALL_METRICS = ('metrics.jsonl', 'metrics-evaluator.jsonl')  # the second one is a follower's (follow.py)

  def __init__(self, path: str, create: bool = True):
    if not path:
      raise UserError('no run folder given: name one with --model_dir')
    path = os.fspath(path)
    self.remote = '://' in path
    self.path = path.rstrip('/') if self.remote else os.path.abspath(os.path.expanduser(path))
    self._lock = threading.RLock()
    self._writers: dict[str, tf.summary.SummaryWriter] = {}
    self._lines: list[bytes] | None = None  # remote only: object stores cannot append
    self._rewritten = -math.inf
    self._waiting = collections.deque(maxlen=_WAITING_LINES)  # lines that could not be written yet
    self.failures: collections.Counter[str] = collections.Counter()  # of what could not be written
    if create:
      self._create()
    elif not tf.io.gfile.isdir(self.path):
      raise UserError(f'no run folder at {self.path}: check --model_dir')

  def _create(self):
    probe = self.join(f'.writable-{os.getpid()}')

    def write():
      tf.io.gfile.makedirs(self.path)
      with tf.io.gfile.GFile(probe, 'w') as file:
        file.write('')
      tf.io.gfile.remove(probe)

    try:
      retries.call(write, self.path)
    except (OSError, tf.errors.OpError) as error:
      raise UserError(f'cannot write to the run folder {self.path}: {in_one_line(error)}; '
                      'choose another with --model_dir') from error

  def join(self, *parts: str) -> str:
    return '/'.join((self.path, *parts)) if self.remote else os.path.join(self.path, *parts)

  def writer(self, name: str = '') -> tf.summary.SummaryWriter:
    """The TensorBoard writer of tensorboard/<name>, made once."""
    with self._lock:
      if name not in self._writers:
        root = os.environ.get('AIP_TENSORBOARD_LOG_DIR') or self.join('tensorboard')  # what Vertex AI shows
        self._writers[name] = tf.summary.create_file_writer('/'.join([root.rstrip('/'), *filter(None, [name])]))
      return self._writers[name]

  def part(self, name: str) -> 'RunPart':
    """A folder in this one for figures of the same steps by other weights."""
    return RunPart(self, name)

  def attempt(self, what: str, action: Callable[[], Any]) -> bool:
    """Calls `action`, again after errors that pass. Whatever storage refuses ends no training: it is counted in
    `failures[what]` and told the first time. Returns whether it succeeded."""
    try:
      retries.call(action, f'{self.path}: {what}', attempts=1 if self.failures[what] else 3)
    except (OSError, tf.errors.OpError) as error:
      self.failures[what] += 1
      if self.failures[what] == 1:
        logging.warning('%s: %s could not be written: %s; the run goes on, further failures are only counted',
                        self.path, what, in_one_line(error))
      return False
    if self.failures[what]:
      logging.info('%s: %s can be written again after %d failure(s)', self.path, what, self.failures.pop(what))
    return True

  def add_scalars(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars for TensorBoard."""
    def write():
      with self.writer().as_default(step=step):
        for name, value in values.items():
          tf.summary.scalar(name, value)

    self.attempt('TensorBoard events', write)

  def continue_at(self, step: int) -> None:
    """Says in metrics.jsonl and to TensorBoard that the run goes on from `step`: what they hold of later steps belongs
    to lost training and is taken back."""
    self.append_metrics({'kind': 'resume', 'step': step, 'time': round(time.time(), 3)})
    started = event_pb2.Event(wall_time=time.time(), step=step + 1,
                              session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
    self.attempt('TensorBoard events', lambda: tf.raw_ops.ImportEvent(
      writer=self.writer()._resource, event=started.SerializeToString()))  # no public function writes any but summaries

  def write_text(self, name: str, text: str) -> None:
    """Writes a file in one move: readers see the old text or the new one, never a part.

    Raises:
      UserError: storage refuses it.
    """
    try:
      retries.call(lambda: self.put_text(name, text), self.join(name))
    except (OSError, tf.errors.OpError) as error:
      raise UserError(f'cannot write to the run folder {self.path}: {name}: {in_one_line(error)}') from error

  def put_text(self, name: str, text: str) -> None:
    """As write_text, once, raising what storage raises: for `attempt`."""
    files.write(self.join(name), text)

  def append_metrics(self, metrics: Mapping[str, Any]) -> None:
    """Appends one line to metrics.jsonl: whole or not at all, and on the disk when this returns.

    A number that is not finite becomes null. On gs:// training lines are uploaded once a minute (`flush` at the
    end), other lines at once. A line that cannot be written waits for the next one: a full disk ends no training.
    """
    line = json.dumps(_jsonable(metrics), allow_nan=False).encode() + b'\n'
    with self._lock:
      if self.remote:
        self._append_remote(line, now=metrics.get('kind') != 'train')
        return
      self._waiting.append(line)
      if self.attempt(self.METRICS, lambda: self._append_local(b''.join(self._waiting))):
        self._waiting.clear()

  def _append_local(self, lines: bytes):
    descriptor = os.open(self.join(self.METRICS), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
      size = os.fstat(descriptor).st_size
      if size and os.pread(descriptor, 1, size - 1) != b'\n':
        lines = b'\n' + lines  # a kill tore the last line: leave it alone
      written = os.write(descriptor, lines)
      if written < len(lines):  # the disk is full; what fitted must not stay, for it will be written again
        os.ftruncate(descriptor, size)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
      os.fsync(descriptor)
    finally:
      os.close(descriptor)

  def _append_remote(self, line: bytes, now: bool):
    if self._lines is None:
      self._lines = [part + b'\n' for part in self._read_bytes().split(b'\n') if part]
    self._lines.append(line)
    if now or time.monotonic() - self._rewritten > _REMOTE_REWRITE_SECONDS:
      self.flush()

  def flush(self) -> None:
    """Uploads pending metrics lines (gs://) and flushes the TensorBoard writers, as far as storage lets it."""
    with self._lock:
      for writer in self._writers.values():
        self.attempt('TensorBoard events', writer.flush)
      if self._lines is not None:
        text = b''.join(self._lines).decode()
        self._rewritten = time.monotonic()
        self.attempt(self.METRICS, lambda: self.put_text(self.METRICS, text))
      elif self._waiting and self.attempt(self.METRICS, lambda: self._append_local(b''.join(self._waiting))):
        self._waiting.clear()

  def _read_bytes(self) -> bytes:
    if self._lines is not None:
      return b''.join(self._lines)
    return b'\n'.join((self._read_file(self.METRICS), *self._waiting))

  def _read_file(self, name: str) -> bytes:
    path = self.join(name)

    def read():
      with tf.io.gfile.GFile(path, 'rb') as file:
        return file.read()

    try:
      return retries.call(read, path)
    except tf.errors.NotFoundError:
      return b''

  def read_metrics(self) -> list[dict[str, Any]]:
    """All metrics lines in order, without torn ones and without what a resumed run has overtaken.

    A line {'kind': 'resume', 'step': s} cancels earlier lines of later steps: they belong to lost training.
    """
    lines = []
    for _, line in sorted(self._all_lines(), key=lambda line: line[0]):
      if line.get('kind') == 'resume':
        lines = [other for other in lines if other.get('step', 0) <= line.get('step', 0)]
      else:
        lines.append(line)
    return lines

  def _all_lines(self) -> Iterator[tuple[float, dict[str, Any]]]:
    """The lines of all writers, each with a time by which those of one writer stay in their order."""
    for name in self.ALL_METRICS:
      now = -math.inf
      for raw in (self._read_bytes() if name == self.METRICS else self._read_file(name)).split(b'\n'):
        try:
          line = json.loads(raw) if raw.strip() else None
        except (ValueError, RecursionError):
          logging.warning('%s: skipped a torn line', self.join(name))
          continue
        if isinstance(line, dict) and isinstance(line.get('step', 0), (int, float)) and \
            isinstance(line.get('kind', ''), str):
          now = max(now, line['time']) if isinstance(line.get('time'), (int, float)) else now
          yield now, line

  def save_provenance(self, argv: Sequence[str], operative_config: str) -> None:
    """Writes config.gin and command.json; the record of an earlier start is kept inside the new one."""
    record = {
      'argv': [redact(argument) for argument in argv],
      'versions': versions(),
      'git_commit': git_commit(),
      'started': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
      'earlier_starts': [],
    }
    earlier = self.read_command()
    if earlier:
      record['earlier_starts'] = [*earlier.pop('earlier_starts', []), earlier]
    self.write_text('config.gin', redact(operative_config))
    self.write_text('command.json', json.dumps(record, indent=2) + '\n')

  def read_command(self) -> dict[str, Any]:
    """The record of the latest start (command.json), or {} when there is none."""
    path = self.join('command.json')
    if not tf.io.gfile.exists(path):
      return {}
    try:
      with tf.io.gfile.GFile(path) as file:
        record = json.load(file)
    except (ValueError, RecursionError):
      record = None
    if not isinstance(record, dict) or not isinstance(record.get('earlier_starts', []), list):
      logging.warning('%s is not valid JSON: ignored', path)
      return {}
    return record


class RunPart:
  """What an evaluator needs of a run folder, for figures of the same steps by other weights: averaged ones, say.

  Files go to a folder of that name in the run folder, TensorBoard's events to a run of that name beside the run's own,
  with the same tags. Lines go to the run's metrics.jsonl as kind '<kind>/<name>' with figures '<name>/<figure>', and
  are read back from there without either.
  """

  _FIELDS = ('step', 'time')  # of a line that are no figures

  def __init__(self, whole: RunFolder, name: str):
    self._whole, self.name = whole, name
    self.remote, self.path = whole.remote, whole.join(name)

  def join(self, *parts: str) -> str:
    return self._whole.join(self.name, *parts)

  def writer(self) -> tf.summary.SummaryWriter:
    return self._whole.writer(self.name)

  def append_metrics(self, metrics: Mapping[str, Any]) -> None:
    figures = {key if key in self._FIELDS else f'{self.name}/{key}': value for key, value in metrics.items()
               if key != 'kind'}
    self._whole.append_metrics({'kind': f'{metrics["kind"]}/{self.name}', **figures})

  def read_metrics(self) -> list[dict[str, Any]]:
    return [{key.removeprefix(f'{self.name}/'): value for key, value in line.items()}
            | {'kind': line['kind'].removesuffix(f'/{self.name}')}
            for line in self._whole.read_metrics() if line.get('kind', '').endswith(f'/{self.name}')]


def versions() -> dict[str, str | None]:
  """What a run depends on: the versions of Python, this package and its main dependencies."""
  found: dict[str, str | None] = {'python': platform.python_version(), 'rethink_tf': rethink_tf.__version__}
  for name, distributions in _PACKAGES.items():
    found[name] = None
    for distribution in distributions:
      try:
        found[name] = importlib.metadata.version(distribution)
        break
      except importlib.metadata.PackageNotFoundError:
        continue
  return found


def git_commit() -> str | None:
  """The commit of the checkout this package runs from ('+changes' when edited); None when it is installed."""
  root = pathlib.Path(rethink_tf.__file__).resolve().parents[1]

  def git(*arguments: str) -> str:
    return subprocess.run(['git', '-C', str(root), *arguments], capture_output=True, text=True, check=True,
                          timeout=20).stdout.strip()
  try:
    if pathlib.Path(git('rev-parse', '--show-toplevel')).resolve() != root:
      return None  # site-packages inside somebody's repository: that commit says nothing about this package
    return git('rev-parse', 'HEAD') + ('+changes' if git('status', '--porcelain', '--', 'rethink_tf') else '')
  except (OSError, subprocess.SubprocessError):
    return None


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


SCHEDULE = 'schedule.json'  # {"total_steps": 180000}, by which a follower knows the end


def write_schedule(folder: RunFolder, total_steps: int) -> None:
  """Leaves word of the run's last step."""
  folder.write_text(SCHEDULE, json.dumps({'total_steps': total_steps}) + '\n')


def total_steps(folder: RunFolder) -> int | None:
  """The run's last step, None as long as training has not said."""
  path = folder.join(SCHEDULE)
  if not tf.io.gfile.exists(path):
    return None
  with tf.io.gfile.GFile(path) as file:
    return int(json.load(file)['total_steps'])
