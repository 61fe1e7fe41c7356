"""The processes of a study: each trains one run at a time (worker.py), with a share of the devices of this machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rethink_tf.errors import UserError
from rethink_tf.study import worker
from rethink_tf.study.worker import Reply, Request

GROWTH_MEGABYTES = 1000  # of a process since its first run, after which another one takes its place
_COMMAND = (sys.executable, '-m', 'rethink_tf.study.worker')


class Slot:
  """A share of the devices, and the process that trains on it.

  Attributes:
    graph: key of the latest run's graph; the next run with the same key starts faster. '' without a process.
    job: what the slot is training, set by its owner; None: it is free.
  """

  def __init__(self, environment: Mapping[str, str]):
    self.graph, self.job = '', None
    self._environment = {**os.environ, **environment}
    self._process: subprocess.Popen[bytes] | None = None
    self._settings = ''  # that hold for the whole process
    self._log, self._log_begin = '', 0
    self._megabytes = math.inf  # after the first run of the process

  def start(self, request: Request, job: Any, graph: str = '', settings: str = '') -> None:
    """Start a run.

    graph: key of its graph; '' for a run that needs a process of its own. settings: key of the settings of a whole
    process;
    a run with other settings gets a new process.
    """
    known = graph and self.graph and settings == self._settings
    if self._process is not None and (not known or self._process.poll() is not None):
      self.close()
    os.makedirs(os.path.dirname(request.log) or '.', exist_ok=True)
    self._log = request.log
    self._log_begin = os.path.getsize(request.log) if os.path.exists(request.log) else 0
    self.graph, self._settings, self.job = graph, settings, job
    if self._process is None:
      # A session of its own: Ctrl-C reaches the study alone, which passes it on once. A second signal would end the run
      # without a checkpoint.
      self._process = subprocess.Popen(_COMMAND, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                       env=self._environment, start_new_session=True)
    with contextlib.suppress(OSError):  # it has ended: `result` says why
      self._process.stdin.write(json.dumps(request._asdict()).encode() + b'\n')
      self._process.stdin.flush()

  @property
  def replies(self) -> Any:
    """The file object that becomes readable when the run has ended."""
    return self._process.stdout

  def result(self) -> Reply:
    """Return the reply of a run that has ended, once `replies` is readable. The slot is free afterwards.

    Raises:
      UserError: the process has failed; the message is its error line.
    """
    self.job = None
    line = self._process.stdout.readline()
    if line:
      reply = worker.read_reply(line.decode())
      self._megabytes = min(self._megabytes, reply.megabytes)
      if reply.megabytes > self._megabytes + GROWTH_MEGABYTES:  # TensorFlow does not return all memory of a run
        self.close()
      return reply
    code = self._process.wait()
    self._forget()
    how = f'failed with exit code {code}' if code >= 0 else f'was ended by {signal.Signals(-code).name}'
    raise UserError(f'{how}: {last_error(self._log, self._log_begin)} (output: {self._log})')

  def close(self) -> None:
    """End the process, which is idle."""
    if self._process is not None:
      self._process.stdin.close()
      self._process.wait()
      self._forget()

  def signal(self) -> None:
    """Ask the process to save its run and end."""
    if self._process is not None and self._process.poll() is None:
      self._process.send_signal(signal.SIGTERM)

  def join(self) -> None:
    """Wait for the end of the process, after `signal`."""
    if self._process is not None:
      if self._process.stdout.readline():  # the run was complete, and it waits for the next one
        self._process.stdin.close()
      self._process.wait()
      self._forget()

  def _forget(self) -> None:
    for pipe in (self._process.stdin, self._process.stdout):
      with contextlib.suppress(OSError):
        pipe.close()
    self._process, self.graph, self.job, self._megabytes = None, '', None, math.inf


class Pool:
  """The slots of a study, as a context: when it ends, also by a signal, all processes have ended."""

  def __init__(self, environments: Sequence[Mapping[str, str]] = ({},)):
    self.slots = [Slot(environment) for environment in environments]

  def __enter__(self) -> Pool:
    return self

  def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
    if kind is not None:  # Ctrl-C or SIGTERM: wait until the runs have saved their checkpoints
      for slot in self.slots:
        slot.signal()
    for slot in self.slots:
      if kind is not None:
        slot.join()
      else:
        slot.close()

  def wait(self, seconds: float) -> list[Slot]:
    """Wait at most `seconds` for a run to end; return the slots whose runs have ended."""
    busy = {slot.replies: slot for slot in self.slots if slot.job is not None}
    if not busy:
      return []
    return [busy[one] for one in select.select(list(busy), [], [], seconds)[0]]


def environments(parallel: int | None, one_device_is_enough: bool) -> list[dict[str, str]]:
  """Return the environment of each slot, which gives it a share of the GPUs or of the CPU's cores.

  parallel: number of runs side by side; None: one for each GPU if `one_device_is_enough` for a run, else one.

  Raises:
    UserError: more runs than GPUs.
  """
  gpus = _gpus() if parallel != 1 else []
  count = parallel or (len(gpus) if one_device_is_enough else 1) or 1
  if count == 1:
    return [{}]
  if not gpus:
    threads = str(max((os.cpu_count() or 1) // count, 1))
    return [{name: os.environ.get(name, threads) for name in ('TF_NUM_INTRAOP_THREADS', 'TF_NUM_INTEROP_THREADS')}
            for _ in range(count)]
  if count > len(gpus):
    raise UserError(f'--parallel={count}: this machine has {len(gpus)} GPUs, one for a run at least: lower it')
  share = len(gpus) // count
  return [{'CUDA_VISIBLE_DEVICES': ','.join(gpus[i * share:(i + 1) * share])} for i in range(count)]


def _gpus() -> list[str]:
  """Return the names of the GPUs that this process may use."""
  import tensorflow as tf

  found = len(tf.config.list_physical_devices('GPU'))
  names = [name for name in os.environ.get('CUDA_VISIBLE_DEVICES', '').split(',') if name]
  return names[:found] if names else [str(i) for i in range(found)]


def last_error(log: str, begin: int = 0) -> str:
  """Return the last error line of a command's output, or else its last line; begin: byte where the output begins."""
  text = b''
  with contextlib.suppress(FileNotFoundError), open(log, 'rb') as file:
    file.seek(begin)
    text = file.read()
  lines = [line.strip() for line in text.decode(errors='replace').splitlines() if line.strip()]
  errors = [line for line in lines if line.startswith('error:')]
  return re.sub(r'^error: ', '', errors[-1] if errors else lines[-1] if lines else 'no output')
