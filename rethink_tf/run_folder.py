"""One folder per run: its configuration, provenance, metrics, TensorBoard events and checkpoints.

Local paths and whatever `tf.io.gfile` opens (gs://...). Layout:

  config.gin      the operative configuration; it parses back to the same run
  command.json    argv, versions, git commit and start time, with the earlier starts of a resumed run
  metrics.jsonl   one object a line, kind 'train' or 'eval'
  tensorboard/    event files        checkpoints/    see checkpoints.py
"""

import datetime
import importlib.metadata
import json
import math
import os
import pathlib
import platform
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from absl import logging

import rethink_tf
from rethink_tf.errors import UserError

_REMOTE_REWRITE_SECONDS = 60.0
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
    self._lost_lines = 0
    if create:
      self._create()
    elif not tf.io.gfile.isdir(self.path):
      raise UserError(f'no run folder at {self.path}: check --model_dir')

  def _create(self):
    probe = self.join(f'.writable-{os.getpid()}')
    try:
      tf.io.gfile.makedirs(self.path)
      with tf.io.gfile.GFile(probe, 'w') as file:
        file.write('')
      tf.io.gfile.remove(probe)
    except (OSError, tf.errors.OpError) as error:
      raise UserError(f'cannot write to the run folder {self.path}: {_reason(error)}; '
                      'choose another with --model_dir') from error

  def join(self, *parts: str) -> str:
    return '/'.join((self.path, *parts)) if self.remote else os.path.join(self.path, *parts)

  def writer(self, name: str = '') -> tf.summary.SummaryWriter:
    """The TensorBoard writer of tensorboard/<name>, made once."""
    with self._lock:
      if name not in self._writers:
        self._writers[name] = tf.summary.create_file_writer(self.join('tensorboard', *filter(None, [name])))
      return self._writers[name]

  def write_text(self, name: str, text: str) -> None:
    """Writes a file in one move: readers see the old text or the new one, never a part."""
    path, temporary = self.join(name), self.join(f'.{name}-{os.getpid()}')
    with tf.io.gfile.GFile(temporary, 'w') as file:
      file.write(text)
    tf.io.gfile.rename(temporary, path, overwrite=True)

  def append_metrics(self, metrics: Mapping[str, Any]) -> None:
    """Appends one line to metrics.jsonl: whole or not at all, and on the disk when this returns.

    A number that is not finite becomes null. On gs:// training lines are uploaded once a minute (`flush` at the
    end), other lines at once. A line that cannot be written is counted and logged: a full disk ends no training.
    """
    line = json.dumps(_jsonable(metrics), allow_nan=False).encode() + b'\n'
    try:
      with self._lock:
        if self.remote:
          self._append_remote(line, now=metrics.get('kind') != 'train')
        else:
          self._append_local(line)
    except (OSError, tf.errors.OpError) as error:
      self._lost_lines += 1
      if self._lost_lines <= 3 or self._lost_lines % 100 == 0:
        logging.warning('%s: %d line(s) could not be written: %s', self.join('metrics.jsonl'), self._lost_lines,
                        _reason(error))

  def _append_local(self, line: bytes):
    descriptor = os.open(self.join('metrics.jsonl'), os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
      size = os.fstat(descriptor).st_size
      if size and os.pread(descriptor, 1, size - 1) != b'\n':
        line = b'\n' + line  # a kill tore the last line: leave it alone
      os.write(descriptor, line)
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
    """Uploads pending metrics lines (gs://) and flushes the TensorBoard writers."""
    with self._lock:
      for writer in self._writers.values():
        writer.flush()
      if self._lines is not None:
        self.write_text('metrics.jsonl', b''.join(self._lines).decode())
        self._rewritten = time.monotonic()

  def _read_bytes(self) -> bytes:
    if self._lines is not None:
      return b''.join(self._lines)
    path = self.join('metrics.jsonl')
    if not tf.io.gfile.exists(path):
      return b''
    with tf.io.gfile.GFile(path, 'rb') as file:
      return file.read()

  def read_metrics(self) -> list[dict[str, Any]]:
    """All metrics lines in order, without torn ones and without what a resumed run has overtaken.

    A line {'kind': 'resume', 'step': s} cancels earlier lines of later steps: they belong to lost training.
    """
    lines = []
    for raw in self._read_bytes().split(b'\n'):
      try:
        line = json.loads(raw) if raw.strip() else None
      except ValueError:
        logging.warning('%s: skipped a torn line', self.join('metrics.jsonl'))
        continue
      if not isinstance(line, dict):
        continue
      if line.get('kind') == 'resume':
        lines = [other for other in lines if other.get('step', 0) <= line['step']]
      else:
        lines.append(line)
    return lines

  def save_provenance(self, argv: Sequence[str], operative_config: str) -> None:
    """Writes config.gin and command.json; the record of an earlier start is kept inside the new one."""
    record = {
      'argv': list(argv),
      'versions': versions(),
      'git_commit': git_commit(),
      'started': datetime.datetime.now(datetime.timezone.utc).isoformat(timespec='seconds'),
      'earlier_starts': [],
    }
    earlier = self.read_command()
    if earlier:
      record['earlier_starts'] = [*earlier.pop('earlier_starts', []), earlier]
    try:
      self.write_text('config.gin', operative_config)
      self.write_text('command.json', json.dumps(record, indent=2) + '\n')
    except (OSError, tf.errors.OpError) as error:
      raise UserError(f'cannot write to the run folder {self.path}: {_reason(error)}') from error

  def read_command(self) -> dict[str, Any]:
    """The record of the latest start (command.json), or {} when there is none."""
    path = self.join('command.json')
    if not tf.io.gfile.exists(path):
      return {}
    try:
      with tf.io.gfile.GFile(path) as file:
        record = json.load(file)
    except ValueError:
      record = None
    if not isinstance(record, dict):
      logging.warning('%s is not valid JSON: ignored', path)
      return {}
    return record


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


def _reason(error: BaseException) -> str:
  """The part of an OS or TensorFlow error that says what happened, as one line."""
  text = getattr(error, 'strerror', None) or getattr(error, 'message', None) or str(error)
  return ' '.join(str(text).split())
